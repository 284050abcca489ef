"""What extraction costs beside the model: end to end, against the bare backbone and a plain loop, in one run.

Run as ``python benchmarks/extract.py --backbone timm:vit_small_patch14_dinov2 --weights random:0 --windows 48``. Images
are JPEG files of 512x512 px, one window each. The arms take turns, and the medians of their rates are compared:

- bare: the loaded backbone on batches that are ready as bytes in memory;
- end to end: `dlprobe.extraction.extract` from files to a durable cache;
- plain loop: decode an image, embed it in float32, `numpy.save` one file an image, as peers do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dlprobe.backbones import load_backbone
from dlprobe.data import Manifest
from dlprobe.extraction import extract

if TYPE_CHECKING:
    from dlprobe.backbones.base import Backbone


def photographs(folder: Path, count: int) -> Manifest:
    """Write images of smooth noise and return their manifest."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
        coarse.resize((512, 512), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)
        row = {"path": f"{i:05d}.jpg", "variant": "real", "source_id": str(i)}
        rows.append({**row, "width": 512, "height": 512})
    return Manifest.from_records(rows, folder)


def bare(backbone: Backbone, windows: np.ndarray) -> None:
    """Embed ready batches and fetch the result."""
    for start in range(0, len(windows), backbone.pins.batch_size):
        backbone(windows[start : start + backbone.pins.batch_size]).cpu()


def plain_loop(backbone: Backbone, manifest: Manifest, out: Path) -> None:
    """Write one float32 file an image."""
    out.mkdir()
    side = backbone.spec.window_px
    for name in manifest.frame["path"]:
        pixels = np.array(Image.open(manifest.root / name).convert("RGB"))[:side, :side]
        np.save(out / f"{name}.npy", backbone(pixels[None])[0].cpu().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="timm:vit_small_patch14_dinov2")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    backbone = load_backbone(
        given.backbone,
        weights=given.weights,
        device=given.device,
        precision=given.precision,
        batch_size=given.batch_size,
    )
    side = backbone.spec.window_px
    ready = np.random.default_rng(0).integers(0, 256, (given.windows, side, side, 3), np.uint8)
    rates: dict[str, list[float]] = {"bare model (baseline)": [], "end to end": [], "plain loop, a file an image": []}
    with tempfile.TemporaryDirectory() as folder:
        manifest = photographs(Path(folder), given.windows)
        for turn in range(given.repeats + 1):
            out = Path(folder)
            for name, arm in zip(
                rates,
                (
                    lambda: bare(backbone, ready),
                    lambda out=out, turn=turn: extract(manifest, backbone, out / f"cache-{turn}"),
                    lambda out=out, turn=turn: plain_loop(backbone, manifest, out / f"files-{turn}"),
                ),
                strict=True,
            ):
                start = time.perf_counter()
                arm()
                rates[name].append(given.windows / (time.perf_counter() - start))
    base = statistics.median(rates["bare model (baseline)"][1:])
    pins = backbone.pins
    print(f"{given.backbone}, {pins.device}, {pins.precision}, batches of {pins.batch_size}, {os.cpu_count()} cores")
    print(f"{'arm':30} {'windows/s':>10} {'ratio':>6}")
    for name, found in rates.items():
        median = statistics.median(found[1:])  # the first turn warms up
        print(f"{name:30} {median:10.2f} {median / base:6.2f}")


if __name__ == "__main__":
    main()
