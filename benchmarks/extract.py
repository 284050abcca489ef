"""What extraction costs beside the model: end to end, against the bare model and a plain loop, in one run.

Run as ``python benchmarks/extract.py``: ViT-B/14 with registers at 504 px, random weights, OpenVINO where it is
installed, bfloat16 where the processor has it. ``--quick`` takes a small network. Images are JPEG files of 512x512 px
(8 px more than another window), one window each. The arms take turns; the medians of their rates are compared:

- bare model: the compiled network on pixels that are ready and normalised in memory, several batches at work;
- end to end: `dlprobe.extraction.extract` from files to a durable cache;
- plain loop: decode an image, embed it with timm in float32, `numpy.save` one file an image, as peers do.

On CUDA the share of the measured bfloat16 matrix product is printed too. Memory: ``python benchmarks/growth.py``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from dlprobe.backbones import load_backbone
from dlprobe.backbones.engines.batching import find_batch_size
from dlprobe.data import Manifest
from dlprobe.doctor.rates import gemm_rates
from dlprobe.extraction import extract
from dlprobe.extraction.estimating import windows_per_s
from dlprobe.extraction.planning import MOST_BLOCK_WINDOWS
from dlprobe.extras import has

if TYPE_CHECKING:
    from collections.abc import Callable

    from dlprobe.backbones.torch_backbone import TorchBackbone

BARE, WHOLE, LOOP = "bare model (baseline)", "end to end", "plain float32 loop"


def photographs(folder: Path, count: int, side_px: int) -> Manifest:
    """Write images of smooth noise and return their manifest."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
        coarse.resize((side_px, side_px), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)
        row = {"path": f"{i:05d}.jpg", "variant": "real", "source_id": str(i)}
        rows.append({**row, "width": side_px, "height": side_px})
    return Manifest.from_records(rows, folder)


def bare(backbone: TorchBackbone, pixels: torch.Tensor, windows: int) -> None:
    """Run the engine on ready pixels, a batch ahead; as many windows as there are, in the batches of extraction."""
    size, waiting = backbone.pins.batch_size, []
    with torch.inference_mode():
        for start in range(0, windows, size):
            waiting.append(backbone.engine.start(pixels[: min(size, windows - start)]))
            if len(waiting) > 1:
                waiting.pop(0)()
        for finish in waiting:
            finish()
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()


def plain_loop(backbone: TorchBackbone, manifest: Manifest, out: Path) -> None:
    """Write one float32 file an image."""
    out.mkdir()
    network: Any = backbone.network
    side = backbone.spec.window_px
    for name in manifest.frame["path"]:
        pixels = np.array(Image.open(manifest.root / name).convert("RGB"))[:side, :side]
        with torch.inference_mode():
            tokens = network.forward_features(backbone.normalise(torch.from_numpy(pixels[None]).to(backbone.device)))
        np.save(out / f"{name}.npy", tokens[0, network.num_prefix_tokens :].cpu().numpy())


def measure(arms: dict[str, Callable[[int], object]], windows: int, repeats: int) -> dict[str, float]:
    """Return median windows/s of each arm; they take turns, and the first turn only warms up."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats + 1):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm(turn)
            rates[name].append(windows / (time.perf_counter() - start))
    return {name: statistics.median(found[1:]) for name, found in rates.items()}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="timm:vit_base_patch14_reg4_dinov2")
    parser.add_argument("--engine", default="auto", help="openvino on a CPU where it is installed, else torch")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--window", type=int, help="pixels")
    parser.add_argument("--windows", type=int, help="how many; 16 on a CPU, 2,048 on CUDA")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small network, for a look at whether it runs")
    given = parser.parse_args()
    if given.quick:
        given.backbone, given.window, given.windows, given.repeats = "timm:test_vit", 160, 16, 1
    if given.engine == "auto":
        given.engine = "openvino" if has("openvino") and not torch.cuda.is_available() else "torch"
    given.windows = given.windows or (2048 if torch.cuda.is_available() else 16)
    return given


def main() -> None:
    given = options()
    common = {"weights": "random:0", "window_px": given.window}
    execution = {"engine": given.engine, "precision": given.precision, "compiled": given.compile}
    backbone: Any = load_backbone(given.backbone, **common, **execution, batch_size=given.batch_size)
    if backbone.automatic_batch:
        backbone = backbone.with_batch_size(find_batch_size(backbone, windows_per_s, block_windows=MOST_BLOCK_WINDOWS))
    exact: Any = load_backbone(given.backbone, **common, precision="float32")
    side, pins = backbone.spec.window_px, backbone.pins
    noise = np.random.default_rng(0).integers(0, 256, (min(pins.batch_size, given.windows), side, side, 3), np.uint8)
    ready = backbone.normalise(torch.from_numpy(noise).to(backbone.device))
    with tempfile.TemporaryDirectory() as folder:
        manifest = photographs(Path(folder), given.windows, side + 8)
        arms = {
            BARE: lambda _turn: bare(backbone, ready, given.windows),
            WHOLE: lambda turn: extract(manifest, backbone, Path(folder) / f"cache-{turn}", stride_px=side),
            LOOP: lambda turn: plain_loop(exact, manifest, Path(folder) / f"files-{turn}"),
        }
        rates = measure(arms, given.windows, given.repeats)
    how = f"{pins.engine}{', compiled' if pins.compiled else ''}, {pins.device}, {pins.precision}"
    print(f"{given.backbone} at {side} px, {how}, batches of {pins.batch_size}, {os.cpu_count()} cores")
    print(f"{'arm':24} {'windows/s':>10} {'x bare':>7} {'x loop':>7}")
    for name, rate in rates.items():
        print(f"{name:24} {rate:10.2f} {rate / rates[BARE]:7.2f} {rate / rates[LOOP]:7.2f}")
    if pins.device == "cuda":
        with FlopCounterMode(display=False) as counter:
            exact(noise[:1])
        share = rates[WHOLE] * counter.get_total_flops() / gemm_rates()["cuda:0", "bfloat16"]
        print(f"end to end is {share:.0%} of the measured bfloat16 matrix product")


if __name__ == "__main__":
    main()
