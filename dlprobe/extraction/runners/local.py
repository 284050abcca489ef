"""Blocks one after the other in this process, with threads that decode ahead and write behind."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from dlprobe.backbones.engines.threads import threads_beside
from dlprobe.cache.buffers import Buffers
from dlprobe.extraction.decoding import decoded_ahead
from dlprobe.extraction.embedding import AHEAD, BlockWork, embed_blocks, with_moments
from dlprobe.extraction.planning import degradations_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dlprobe.cache import CacheWriter
    from dlprobe.extraction.embedding import BlockContent
    from dlprobe.extraction.runners.base import Job

#: Threads that finish and write blocks, each one block at a time: a hash takes a millisecond a window.
WRITERS = max(1, min(8, (os.cpu_count() or 1) // 2))


class LocalRunner:
    """Computes in this process; what is in work is bounded."""

    def run(self, job: Job, writer: CacheWriter, blocks: Sequence[int], written: Callable[[int], None]) -> None:
        """Compute and record blocks, in order."""
        layout, spec = writer.layout, writer.layout.spec
        windows = [job.windows[slice(*layout.block_range(block))] for block in blocks]
        behind: deque[tuple[Future[None], int]] = deque()
        memory = Buffers((WRITERS + 1 + AHEAD) * len(layout.block_arrays))
        degradations = degradations_of(spec)
        with (
            threads_beside(job.backbone.pins),
            decoded_ahead(job.manifest, windows, spec.model, degradations, max_pixels=job.max_pixels) as decoded,
            ThreadPoolExecutor(WRITERS, thread_name_prefix="dlprobe-write") as disk,
        ):
            works = (
                BlockWork(job.manifest, layout, block, images, memory)
                for block, images in zip(blocks, decoded, strict=True)
            )
            for work in embed_blocks(job.backbone, works):
                while len(behind) >= WRITERS:
                    written(_finished(behind))
                behind.append((disk.submit(write, writer, work.block, work.content()), work.block))
            while behind:
                written(_finished(behind))


def write(writer: CacheWriter, block: int, content: BlockContent) -> None:
    """Fill in the moments of a block, and store it."""
    whole = with_moments(content)
    writer.write_block(block, whole.arrays, whole.images, whole.rejects)


def _finished(behind: deque[tuple[Future[None], int]]) -> int:
    future, block = behind.popleft()
    future.result()
    return block
