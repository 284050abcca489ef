"""Blocks over a Ray cluster: each worker decodes, embeds, writes and records blocks of its own."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlprobe.cache.buffers import Buffers
from dlprobe.cache.writer import join_writer
from dlprobe.errors import BackboneError, CacheError
from dlprobe.extraction.decoding import decoded_ahead
from dlprobe.extraction.embedding import BlockWork, embed_blocks
from dlprobe.extraction.planning import degradations_of
from dlprobe.extraction.runners.local import write
from dlprobe.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from dlprobe.cache import CacheWriter
    from dlprobe.extraction.runners.base import Job

#: Blocks in the hands of a worker: one is decoded or written while the other is embedded.
_IN_HAND = 2
#: Workers that may die over one block before it is taken for the cause.
_MOST_DEATHS = 3
#: How long a cluster may take to answer.
_ANSWER_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RayRunner:
    """Maps blocks over a Ray cluster, an actor for each GPU or for some CPU cores.

    Images and the cache must be reachable from every machine by the same paths or URLs. A worker that dies costs the
    blocks in its hands, which others compute again.

    Parameters
    ----------
    address : str, optional
        Of a cluster, such as ``auto`` or ``ray://HOST:10001``; without it, the one that this process is connected to,
        else one that is started on this machine and ended afterwards.
    workers : int, optional
        Actors; by default as many as there are GPUs, or CPU cores for.
    cpus_per_worker : int
        Cores of an actor that embeds on the CPU, and its number of threads there.
    """

    address: str | None = None
    workers: int | None = None
    cpus_per_worker: int = 1

    def __post_init__(self) -> None:
        """Raise `CacheError` if a number is out of range."""
        if (self.workers is not None and self.workers < 1) or self.cpus_per_worker < 1:
            msg = f"{self.workers} workers of {self.cpus_per_worker} CPU cores; give at least one of each"
            raise CacheError(msg)

    def run(self, job: Job, writer: CacheWriter, blocks: Sequence[int], written: Callable[[int], None]) -> None:
        """Compute and record blocks, in any order."""
        require("ray", "the runner ray", "ray")
        if not blocks:
            return
        with self._cluster():
            pool = _Pool(self, job, writer, len(blocks))
            try:
                pool.run(deque(blocks), written)
            finally:
                pool.end()
                writer.sweep()

    def actors(self, job: Job, blocks: int) -> tuple[int, dict[str, Any]]:
        """Return how many actors there are to be, and what each of them needs."""
        import ray

        kind = "GPU" if job.backbone.pins.device.startswith("cuda") else "CPU"
        each = 1 if kind == "GPU" else self.cpus_per_worker
        found = int(ray.cluster_resources().get(kind, 0)) // each
        count = min(self.workers or found, blocks)
        if found < max(count, 1):
            msg = f"the Ray cluster has room for {found} workers of {each} {kind}; ask for fewer, or for smaller ones"
            raise CacheError(msg)
        return count, {"num_gpus": 1, "num_cpus": 1} if kind == "GPU" else {"num_cpus": each}

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        import ray

        if ray.is_initialized() and self.address is None:
            yield
            return
        own = {} if self.address else {"include_dashboard": False, "num_cpus": self._own_cpus()}
        try:
            _require_answer(self.address or "")
            ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False, **own)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            msg = f"no Ray cluster at {self.address or 'this machine'} ({reason}); start one with `ray start --head`"
            raise CacheError(msg) from error
        try:
            yield
        finally:
            ray.shutdown()

    def _own_cpus(self) -> int | None:
        return None if self.workers is None else self.workers * self.cpus_per_worker


def _require_answer(address: str) -> None:
    """Raise `OSError` at once if nobody listens: Ray itself would try for minutes, and then end the process."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()


class BlockWorker:
    """Writes blocks of a cache whose lock the driver holds.

    Parameters
    ----------
    job : Job
        What blocks are made from.
    path : path
        Of the cache.
    threads : int, optional
        Of torch on the CPU; None leaves the process's own number.
    """

    def __init__(self, job: Job, path: Path | str, threads: int | None = None) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self._job = job
        self._writer = join_writer(path)
        self._memory = Buffers((_IN_HAND + 1) * len(self._writer.layout.block_arrays))
        self._embedding = threading.Lock()

    def write(self, block: int) -> int:
        """Decode, embed, store and record a block; return its number."""
        job, layout = self._job, self._writer.layout
        windows = job.windows[slice(*layout.block_range(block))]
        degradations = degradations_of(layout.spec)
        with decoded_ahead(
            job.manifest, [windows], layout.spec.model, degradations, max_pixels=job.max_pixels
        ) as decoded:
            images = next(decoded)
        with self._embedding:
            work = BlockWork(job.manifest, layout, block, images, self._memory)
            [work] = embed_blocks(job.backbone, [work])
        write(self._writer, block, work.content())
        return block


class _Pool:
    """Actors, and which blocks each of them has in its hands."""

    def __init__(self, runner: RayRunner, job: Job, writer: CacheWriter, blocks: int) -> None:
        import ray

        self._writer = writer
        count, needs = runner.actors(job, blocks)
        try:
            self._job = ray.put(job)
        except TypeError as error:
            msg = (
                f"{job.backbone.spec.backbone} cannot be sent to other machines ({str(error).splitlines()[0]}); "
                "use the engine torch, or shards (--shard)"
            )
            raise BackboneError(msg) from error
        self._threads = None if "num_gpus" in needs else runner.cpus_per_worker
        self._made = ray.remote(max_concurrency=_IN_HAND, **needs)(BlockWorker)
        self._deaths: Counter[int] = Counter()
        self._in_work: dict[Any, tuple[int, Any, int]] = {}
        self._actors = [self._start() for _ in range(count)]

    def run(self, waiting: deque[int], written: Callable[[int], None]) -> None:
        """Keep every actor supplied until all blocks are recorded."""
        import ray

        for place in [*range(len(self._actors))] * _IN_HAND:
            self._give(place, waiting)
        while self._in_work:
            [task], _ = ray.wait(list(self._in_work), num_returns=1)
            place, actor, block = self._in_work.pop(task)
            if self._is_recorded(task, block):
                written(block)
            else:
                waiting.appendleft(block)
                if self._actors[place] is actor:  # the first of its blocks to tell of its death
                    ray.kill(actor)
                    self._actors[place] = self._start()
            self._give(place, waiting)

    def end(self) -> None:
        """End all actors, and wait until none of them writes any more."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        if self._in_work:
            ray.wait(list(self._in_work), num_returns=len(self._in_work))

    def _start(self) -> Any:
        return self._made.remote(self._job, str(self._writer.path), self._threads)

    def _give(self, place: int, waiting: deque[int]) -> None:
        if waiting:
            block, actor = waiting.popleft(), self._actors[place]
            self._in_work[actor.write.remote(block)] = place, actor, block

    def _is_recorded(self, task: Any, block: int) -> bool:
        """Tell whether a task recorded its block; if not, its worker died. Raise what the block's own work raised."""
        import ray

        try:
            ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError as error:
            if block not in self._writer.missing:  # it died before it could answer
                return True
            self._deaths[block] += 1
            if self._deaths[block] >= _MOST_DEATHS:
                reason = str(error).strip().splitlines()[-1]
                msg = f"{_MOST_DEATHS} workers died over block {block} of {self._writer.path} ({reason}); mend that"
                raise CacheError(msg) from error
            return False
        return True
