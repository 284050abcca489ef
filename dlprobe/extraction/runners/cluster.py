"""Blocks over a Ray cluster: each worker decodes, embeds, writes and records blocks of its own."""

from __future__ import annotations

import logging
import os
import socket
import textwrap
import time
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dlprobe.backbones.loading import recipe_of
from dlprobe.errors import BackboneError, CacheError
from dlprobe.extraction.runners.worker import IN_HAND, BlockWorker, order_of, pins_there
from dlprobe.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from dlprobe.backbones.base import Backbone
    from dlprobe.cache import CacheWriter
    from dlprobe.extraction.runners.base import Job
    from dlprobe.extraction.runners.worker import Order

#: Workers that may die over one block, with nothing else in their hands, before it is taken for the cause.
_MOST_DEATHS = 3
#: How long a cluster may take to answer.
_ANSWER_S = 5
#: How long workers that are free may take to be reserved, and how often that is looked at.
_RESERVE_S, _LOOK_S = 2.0, 0.1
#: How long no block may be recorded before it is looked at whether the workers' machines are still there.
_SILENCE_S = 60.0
#: Length of a reason in a message.
_REASON_CHARS = 300
_ADDRESS = "RAY_ADDRESS"
#: What addresses of Ray's client begin with, which needs a package more than the rest of Ray.
_CLIENT = "ray://"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayRunner:
    """Maps blocks over a Ray cluster, an actor for each GPU or for some CPU cores.

    Images, weights and the cache must be reachable from every machine by the same paths or URLs. A backbone that was
    loaded by name is loaded again by each worker, and must be the same there; one of your own is pickled. A worker that
    dies costs the blocks in its hands, which others compute again.

    Parameters
    ----------
    address : str, optional
        Of a cluster: ``auto`` for the one that runs on this machine, ``HOST:6379``, ``ray://HOST:10001``, or ``local``
        for one of its own. Without it, the cluster that this process is connected to, else that of the environment
        variable ``RAY_ADDRESS``, else one of its own: started on this machine, whatever runs there, and ended at last.
    workers : int, optional
        Actors; by default as many as there are GPUs, or CPU cores for, and are free.
    cpus_per_worker : int
        Cores of an actor that embeds on the CPU, and its number of threads there.
    wait_s : float
        How long to wait for workers, while others hold the cluster's resources or machines have yet to join it. Those
        that join later are not used.
    device : str, optional
        What workers compute on, ``cuda``, where this machine has no such device; by default the backbone's own.
    """

    address: str | None = None
    workers: int | None = None
    cpus_per_worker: int = 1
    wait_s: float = 60.0
    device: str | None = None

    def __post_init__(self) -> None:
        """Raise `CacheError` if a number is out of range."""
        if (self.workers is not None and self.workers < 1) or self.cpus_per_worker < 1:
            msg = f"{self.workers} workers of {self.cpus_per_worker} CPU cores; give at least one of each"
            raise CacheError(msg)

    def placed(self, backbone: Backbone) -> Backbone:
        """Return the backbone as it is on the workers' device; itself if none was asked for.

        Raises
        ------
        BackboneError
            If it was not loaded by name, or cannot be loaded there.
        """
        if self.device is None:
            return backbone
        require("ray", "the runner ray", "ray")
        recipe = recipe_of(backbone)
        if recipe is None:
            msg = f"{backbone.spec.backbone} was not loaded by name, and no worker can load it on {self.device}"
            raise BackboneError(msg)
        from dlprobe.extraction.runners.elsewhere import Elsewhere  # which needs torch

        return Elsewhere(backbone, recipe, self._call(pins_there, recipe, self.device), self._call)

    def run(self, job: Job, writer: CacheWriter, blocks: Sequence[int], written: Callable[[int], None]) -> None:
        """Compute and record blocks, in any order."""
        require("ray", "the runner ray", "ray")
        if not blocks:
            return
        needs = self._needs(job.backbone.pins.device)
        order = order_of(job, writer, None if "GPU" in needs else self.cpus_per_worker)
        with self._cluster() as own, _loss_told(), self._reserved(needs, len(blocks), own=own) as groups:
            pool = _Pool(order, writer, needs, groups)
            try:
                pool.run(deque(blocks), written)
            finally:
                try:
                    pool.end()
                finally:
                    writer.sweep()

    def _needs(self, device: str) -> dict[str, int]:
        return {"GPU": 1, "CPU": 1} if device.startswith("cuda") else {"CPU": self.cpus_per_worker}

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function where a worker would be, and return or raise what it does."""
        import ray

        needs = self._needs(self.device or "cpu")
        with self._cluster() as own, _loss_told(), self._reserved(needs, 1, own=own) as [group]:
            placed = ray.remote(**_resources(needs), scheduling_strategy=_place(group))(function)
            try:
                return ray.get(placed.remote(*arguments))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                msg = f"a Ray worker died over the backbone ({_told_of(error)}); run the same command again"
                raise CacheError(msg) from error

    @contextmanager
    def _reserved(self, needs: dict[str, int], blocks: int, *, own: bool) -> Iterator[list[Any]]:
        """Hold the places of workers, each on one machine; raise `CacheError` if there are too few, or none is free.

        Machines may yet join a cluster that is not our own, and some are only started where a place is waited for.
        """
        from ray.util.placement_group import placement_group, remove_placement_group

        room = _room(needs)
        count = max(1, min(self.workers or room, blocks))
        groups = [placement_group([needs]) for _ in range(count)]
        try:
            fewest = count if self.workers else 1
            wait_s = 0.0 if own and room < fewest else self.wait_s
            free = _created(groups, fewest, wait_s)
            if len(free) < fewest:
                raise _too_few(needs, fewest, len(free), wait_s)
            for late in [group for group in groups if group not in free]:
                remove_placement_group(late)  # else the cluster would hold it for nobody once it has room
            yield free
        finally:
            if _connected():
                for group in groups:
                    remove_placement_group(group)

    @contextmanager
    def _cluster(self) -> Iterator[bool]:
        """Connect to the cluster, or begin one; tell whether it is our own."""
        import ray

        if ray.is_initialized() and self.address is None:
            yield False
            return
        address = self.address or os.environ.get(_ADDRESS) or "local"
        if address.startswith(_CLIENT):
            require("ray", f"an address {_CLIENT}HOST:PORT", "grpc")
        own = {"include_dashboard": False, "num_cpus": self._own_cpus()} if address == "local" else {}
        try:
            _require_answer(address)
            if not ray.is_initialized():
                _forget_lost_client()
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **own)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            place = "this machine" if address == "local" else address
            token = ", or set RAY_AUTH_MODE=token if it asks for a token" if address.startswith(_CLIENT) else ""
            advice = f"start one with `ray start --head`, or leave the address out{token}"
            msg = f"no Ray cluster at {place} ({reason}); {advice}"
            raise CacheError(msg) from error
        try:
            yield address == "local"
        finally:
            ray.shutdown()

    def _own_cpus(self) -> int | None:
        return None if self.workers is None else self.workers * self.cpus_per_worker


def _too_few(needs: dict[str, int], fewest: int, free: int, waited_s: float) -> CacheError:
    asked = f"{f'waited {waited_s:g} s' if waited_s > 0 else 'asked'} for {fewest} workers of {_told(needs)}"
    if (room := _room(needs)) < fewest:
        here = f"the Ray cluster has room for {room} workers of {_told(needs)}"
        return CacheError(f"{asked}: {here}; ask for fewer, or for smaller ones")
    msg = (
        f"{asked}: others hold the Ray cluster, which has room for {free} now; wait for them, "
        "or ask for fewer or smaller ones (--workers)"
    )
    return CacheError(msg)


@contextmanager
def _loss_told() -> Iterator[None]:
    """Turn what Ray's client raises of a cluster that has gone into one line; other lost connections are not Ray's."""
    from ray.util import client

    through_client = client.ray.is_connected()
    try:
        yield
    except ConnectionError as error:
        if not through_client or _answers():
            raise
        reason = " ".join(str(error).split())
        msg = f"the Ray cluster cannot be reached any more ({reason}); run the same command again, it will go on"
        raise CacheError(msg) from error


def _connected() -> bool:
    """Tell whether the cluster is still there to be asked: where Ray's client has lost it, Ray would begin another."""
    import ray

    return bool(ray.is_initialized())


def _answers() -> bool:
    """Tell whether the cluster takes an object: Ray's client may think it is there when its channel has gone."""
    import ray

    try:
        return _connected() and ray.put(None) is not None
    except ConnectionError:
        return False


def _forget_lost_client() -> None:
    """Drop a client whose cluster has gone: Ray says that nothing is connected, and still refuses another."""
    from ray.util import client

    client.ray.get_context().disconnect()


def _require_answer(address: str) -> None:
    """Raise `OSError` at once if nobody listens: Ray itself would try for minutes, and then end the process."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()


def _room(needs: dict[str, int]) -> int:
    """Return how many workers the machines have room for if nobody else is there; a worker has all it needs on one."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(machine.get(kind, 0) // each) for kind, each in needs.items()) for machine in machines)


def _told(needs: dict[str, int]) -> str:
    return " and ".join(f"{each} {kind}" for kind, each in needs.items())


def _resources(needs: dict[str, int]) -> dict[str, int]:
    return {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0)}


def _place(group: Any) -> Any:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)


def _created(groups: list[Any], fewest: int, wait_s: float) -> list[Any]:
    """Wait for places to become free, for a moment longer than the fewest need, and return those that are."""
    begun = time.monotonic()
    while True:
        found = _held(groups)
        waited = time.monotonic() - begun
        if len(found) == len(groups) or waited >= (_RESERVE_S if len(found) >= fewest else wait_s):
            return found
        time.sleep(_LOOK_S)


def _held(groups: Iterable[Any]) -> list[Any]:
    """Return which places the cluster holds for us at this moment."""
    from ray.util.placement_group import placement_group_table

    states = placement_group_table()
    return [group for group in groups if states[group.id.hex()]["state"] == "CREATED"]


class _Seat:
    """A place in the cluster, the actor that sits there, and the blocks in its hands, by task."""

    def __init__(self, group: Any, start: Callable[[], Any]) -> None:
        self.group = group
        self._start = start
        self._actor = start()
        self.hand: dict[Any, int] = {}

    def give(self, block: int) -> None:
        self.hand[self._actor.write.remote(block)] = block

    def replace(self) -> list[int]:
        """Put another actor into the place of one that died; return the blocks that were in its hands."""
        self.end()
        lost = list(self.hand.values())
        self.hand.clear()
        self._actor = self._start()
        return lost

    def end(self) -> None:
        import ray

        if _connected():
            ray.kill(self._actor)


class _Pool:
    """Actors, and which blocks are under suspicion of having killed one."""

    def __init__(self, order: Order, writer: CacheWriter, needs: dict[str, int], groups: list[Any]) -> None:
        import ray

        self._writer = writer
        made = ray.remote(max_concurrency=IN_HAND, **_resources(needs))(BlockWorker)
        sent = ray.put(order)
        placed = [(group, made.options(scheduling_strategy=_place(group))) for group in groups]
        self._seats = [_Seat(group, partial(actor.remote, sent)) for group, actor in placed]
        self._deaths: Counter[int] = Counter()
        self._suspects: set[int] = set()

    def run(self, waiting: deque[int], written: Callable[[int], None]) -> None:
        """Keep every actor supplied until all blocks are recorded."""
        import ray

        for many in range(1, IN_HAND + 1):
            for seat in self._seats:
                self._supply(seat, waiting, many)
        while tasks := {task: seat for seat in self._seats for task in seat.hand}:
            done, _ = ray.wait(list(tasks), num_returns=1, timeout=_SILENCE_S)
            if not done:
                for number in self._clear_lost(waiting):
                    written(number)
                continue
            [task] = done
            seat = tasks[task]
            block = seat.hand.pop(task)
            reason = _cause_of_death(task)
            for number in [block] if reason is None else self._bury(seat, block, reason, waiting):
                written(number)
            self._supply(seat, waiting)

    def end(self) -> None:
        """End all actors, and wait until none of them writes any more."""
        import ray

        for seat in self._seats:
            seat.end()
        if (left := [task for seat in self._seats for task in seat.hand]) and _connected():
            ray.wait(left, num_returns=len(left))

    def _supply(self, seat: _Seat, waiting: deque[int], many: int = IN_HAND) -> None:
        """Give blocks to an actor; one that an actor died over is given alone, so that what kills is known."""
        while waiting and len(seat.hand) < many:
            if seat.hand and not self._suspects.isdisjoint({waiting[0], *seat.hand.values()}):
                return
            seat.give(waiting.popleft())

    def _clear_lost(self, waiting: deque[int]) -> list[int]:
        """Give the blocks of actors whose machines have left the cluster, and that wait for others, to those that work.

        Returns
        -------
        list of int
            Those of them that were recorded before the machine was lost; they are not written again.

        Raises
        ------
        CacheError
            If none does.
        """
        held = _held(seat.group for seat in self._seats)
        missing, recorded = set(self._writer.missing), list[int]()
        for seat in [seat for seat in self._seats if seat.group not in held]:
            seat.end()
            hand = list(seat.hand.values())
            waiting.extendleft(number for number in reversed(hand) if number in missing)
            recorded += [number for number in hand if number not in missing]
            self._seats.remove(seat)
        if not self._seats:
            path = self._writer.path
            msg = (
                f"the machines of all workers have left the Ray cluster; run the same command again, {path} will go on"
            )
            raise CacheError(msg)
        for seat in self._seats:
            self._supply(seat, waiting)
        return recorded

    def _bury(self, seat: _Seat, block: int, reason: str, waiting: deque[int]) -> list[int]:
        """Put another actor into the place of a dead one; return which of its blocks are recorded all the same.

        The others are computed again, each with no other beside it.
        """
        hand = [block, *seat.replace()]
        missing = set(self._writer.missing)
        lost = [number for number in hand if number in missing]
        if lost == hand == [block]:
            self._deaths[block] += 1
        if self._deaths[block] >= _MOST_DEATHS:
            msg = (
                f"{_MOST_DEATHS} workers died over block {block} of {self._writer.path} ({reason}); "
                "mend that, or give each more room (--workers, --cpus-per-worker)"
            )
            raise CacheError(msg)
        self._suspects.update(lost)
        waiting.extendleft(reversed(lost))
        return [number for number in hand if number not in missing]


def _cause_of_death(task: Any) -> str | None:
    """Return why the worker of a task died; None if it recorded its block. Raise what the block's own work raised."""
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        return _told_of(error)
    return None


def _told_of(error: Exception) -> str:
    """Return what Ray says of a worker that died in a few words; of memory it has a page of advice."""
    import ray

    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "their machine was short of memory"
    said = str(error).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(said[-1], _REASON_CHARS, placeholder=" ...")
