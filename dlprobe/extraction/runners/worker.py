"""What a Ray actor does: it loads the backbone where it is, and decodes, embeds, writes and records blocks."""

from __future__ import annotations

import pickle
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlprobe.backbones.engines.threads import threads_beside
from dlprobe.backbones.loading import Recipe, recipe_of
from dlprobe.cache.buffers import Buffers
from dlprobe.cache.writer import join_writer
from dlprobe.data.manifest import Manifest
from dlprobe.errors import BackboneError
from dlprobe.extraction.decoding import decoded_ahead
from dlprobe.extraction.embedding import BlockWork, embed_blocks
from dlprobe.extraction.planning import degradations_of
from dlprobe.extraction.runners.local import write
from dlprobe.spec import require_same

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone
    from dlprobe.cache import CacheWriter
    from dlprobe.extraction.runners.base import Job
    from dlprobe.spec import ModelSpec, Pins

#: Blocks in the hands of a worker: one is decoded or written while the other is embedded.
IN_HAND = 2


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Order:
    """What is sent to every worker; the same on every machine, so that no path in it is relative.

    Parameters
    ----------
    manifest : Manifest
        Of the images.
    windows : ndarray of int32, shape (n_windows, 6)
        The windows table of the cache.
    max_pixels : int
        Larger images are rejects.
    backbone : Recipe or bytes
        How to load it, or the pickle of a user's own object.
    spec : ModelSpec
        What it must be, its weights included.
    pins : Pins
        How it is to compute.
    path : str
        Of the cache, or its URL.
    threads : int or None
        Of torch on the CPU; None leaves the process's own number.
    """

    manifest: Manifest
    windows: NDArray[np.int32]
    max_pixels: int
    backbone: Recipe | bytes
    spec: ModelSpec
    pins: Pins
    path: str
    threads: int | None


def order_of(job: Job, writer: CacheWriter, threads: int | None) -> Order:
    """Return the order to do a job.

    Raises
    ------
    BackboneError
        If the backbone was not loaded by name and cannot be pickled.
    """
    return Order(
        manifest=Manifest(job.manifest.frame, job.manifest.root.absolute()),
        windows=job.windows,
        max_pixels=job.max_pixels,
        backbone=recipe_of(job.backbone) or _pickled(job.backbone),
        spec=job.backbone.spec,
        pins=job.backbone.pins,
        path=str(writer.path.absolute() if isinstance(writer.path, Path) else writer.path),
        threads=threads,
    )


class BlockWorker:
    """Writes blocks of a cache whose lock the driver holds.

    Parameters
    ----------
    order : Order
        What blocks are made from; the backbone is loaded with the first of them, so that what is wrong with it is said.
    """

    def __init__(self, order: Order) -> None:
        if order.threads is not None:
            import torch

            torch.set_num_threads(order.threads)
        self._order = order
        self._writer = join_writer(order.path)
        self._memory = Buffers((IN_HAND + 1) * len(self._writer.layout.block_arrays))
        self._backbone: Backbone | None = None
        self._embedding = threading.Lock()

    def write(self, block: int) -> int:
        """Decode, embed, store and record a block; return its number."""
        order, layout = self._order, self._writer.layout
        windows = order.windows[slice(*layout.block_range(block))]
        degradations = degradations_of(layout.spec)
        with decoded_ahead(
            order.manifest, [windows], layout.spec.model, degradations, max_pixels=order.max_pixels
        ) as decoded:
            images = next(decoded)
        with self._embedding:
            self._backbone = self._backbone or load_there(order.backbone, order.spec, order.pins)
            work = BlockWork(order.manifest, layout, block, images, self._memory)
            with threads_beside(order.pins):
                [work] = embed_blocks(self._backbone, [work])
        write(self._writer, block, work.content())
        return block


def load_there(how: Recipe | bytes, spec: ModelSpec, pins: Pins) -> Backbone:
    """Load a backbone on this machine, which is another than the driver's.

    Parameters
    ----------
    how : Recipe or bytes
        How to load it, or the pickle of a user's own object.
    spec : ModelSpec
        What it must be.
    pins : Pins
        How it is to compute.

    Raises
    ------
    BackboneError
        If it is not here.
    IdentityError
        If what is here is another one, or computes otherwise.
    """
    host = socket.gethostname()
    if isinstance(how, bytes):
        return _unpickled(how, spec.backbone, host)
    with _named(host):
        backbone = how.load(pins)
    advice = "give every machine the same weights, under the same path (--weights)"
    require_same(spec, backbone.spec, f"the model of the cache and the one that the worker on {host} loads", advice)
    require_same(pins, backbone.pins, f"the pins of the cache and of the worker on {host}", "use machines alike")
    return backbone


def pins_there(recipe: Recipe, device: str) -> Pins:
    """Return the pins that a backbone has on a device of this machine; raise `BackboneError` if it has none here."""
    with _named(socket.gethostname()):
        return recipe.pins_on(device)


@contextmanager
def _named(host: str) -> Iterator[None]:
    try:
        yield
    except BackboneError as error:
        msg = f"the worker on {host} cannot load the backbone: {error}"
        raise BackboneError(msg) from error


def _pickled(backbone: Backbone) -> bytes:
    from ray import cloudpickle

    try:
        found: bytes = cloudpickle.dumps(backbone)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        msg = (
            f"{backbone.spec.backbone} cannot be sent to other machines ({str(error).splitlines()[0]}); "
            "let its pickle leave that out, or use shards (--shard)"
        )
        raise BackboneError(msg) from error
    return found


def _unpickled(data: bytes, name: str, host: str) -> Backbone:
    try:
        found: Backbone = pickle.loads(data)  # noqa: S301 (what this run's own driver has sent)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        msg = f"the worker on {host} cannot load {name} ({' '.join(str(error).split())}); install its code there"
        raise BackboneError(msg) from error
    return found
