"""Whether memory grows with the number of windows: peak of extraction and of a shuffled epoch, for two sizes.

Run as ``python benchmarks/growth.py``. Windows are of 504 px, embeddings 768 numbers wide; the backbone is a random
projection of a patch's pixels, so that everything else shows. Each measurement is a fresh process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PATCH, SIDE, WIDTH = 14, 504, 768


class Projection:
    """Embeds a patch as a random projection of its pixels."""

    weights = "random:0"

    def __init__(self) -> None:
        import torch

        from dlprobe.backbones.base import BackboneCard
        from dlprobe.spec import ModelSpec, Pins

        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(PATCH * PATCH * 3, WIDTH, generator=generator) / 24
        self.card = BackboneCard(name="projection", weights="random:0", licence="none", trained_on="nothing")
        self.pins = Pins(engine="torch", precision="float32", device="cpu", batch_size=8)
        self.spec = ModelSpec(
            backbone="projection:random",
            implementation="projection",
            weights_sha256=hashlib.sha256(self.matrix.numpy().tobytes()).hexdigest(),
            layers=(),
            norm=False,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resize_rule="none",
            window_px=SIDE,
            patch_px=PATCH,
            width=WIDTH,
        )

    def __call__(self, windows: np.ndarray) -> object:
        """Embed a batch."""
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(windows)).float().div(127.5).sub(1.0)
        grid = SIDE // PATCH
        patches = pixels.reshape(len(pixels), grid, PATCH, grid, PATCH, 3).transpose(2, 3)
        return patches.reshape(len(pixels), grid, grid, -1) @ self.matrix


def images(folder: Path, count: int) -> None:
    """Write `count` JPEG files of 512x512, links to a few real ones."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i:05d}.jpg"
        if i < 16:
            coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
            coarse.resize((512, 512), Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            os.link(folder / f"{i % 16:05d}.jpg", path)


def measure(folder: Path, count: int, task: str) -> None:
    """Do one task in this process and print seconds and the peak of memory."""
    from dlprobe.cache import open_cache
    from dlprobe.data import Manifest
    from dlprobe.extraction import extract

    rows = [{"path": f"{i:05d}.jpg", "variant": "real", "source_id": str(i)} for i in range(count)]
    manifest = Manifest.from_records([{**row, "width": 512, "height": 512} for row in rows], folder)
    start = time.perf_counter()
    if task == "extract":
        extract(manifest, Projection(), folder / f"cache-{count}")
    elif sum(len(block) for block in open_cache(folder / f"cache-{count}").blocks(seed=0)) != count:
        sys.exit("the epoch lost windows")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_mb": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, nargs="+", default=[200, 500, 2000])
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        measure(Path(given.task[0]), int(given.task[1]), given.task[2])
        return
    peaks: dict[str, list[float]] = {"extract": [], "epoch": []}
    with tempfile.TemporaryDirectory() as folder:
        images(Path(folder), max(given.windows))
        print(f"{'task':8} {'windows':>8} {'peak MB':>8} {'windows/s':>10} {'files':>6}")
        for count in given.windows:
            for task, found in peaks.items():
                command = [sys.executable, __file__, "--task", folder, str(count), task]
                report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                found.append(report["peak_mb"])
                files = sum(path.is_file() for path in (Path(folder) / f"cache-{count}").rglob("*"))
                print(f"{task:8} {count:8d} {report['peak_mb']:8.0f} {count / report['seconds']:10.1f} {files:6d}")
    for task, found in peaks.items():
        ratios = ", ".join(f"{peak / found[0]:.2f}" for peak in found)
        print(f"{task}: {ratios} times the memory of {given.windows[0]} windows")


if __name__ == "__main__":
    main()
