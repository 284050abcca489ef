"""What extraction costs beside the model: end to end, against the bare model and a plain loop, in one run.

Run as ``python benchmarks/extract.py``: ViT-B/14 with registers at 504 px, random weights, OpenVINO where it is
installed, bfloat16 where the processor has it. ``--quick`` takes a small network. Images are JPEG files of 512x512 px
(8 px more than another window), one window each. The arms take turns, after a short one that only warms up; the medians
of their rates are compared:

- bare model: the compiled network on pixels that are ready and normalised in memory, several batches at work;
- end to end: `dlprobe.extraction.extract` from files to a durable cache, with all that it does once: the plan, the
  reference window, a first block to decode and a last one to write. There are windows enough that this shows as the
  percent or two that it is in the smallest of real runs;
- plain loop: decode an image, embed it with timm in float32, `numpy.save` one file an image, as peers do. It does
  nothing once, and has fewer windows.

On two cores all of it takes about ten minutes. On CUDA the share of the measured bfloat16 matrix product is printed
too. Memory: ``python benchmarks/growth.py``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from dlprobe.backbones import load_backbone
from dlprobe.backbones.engines.batching import evened, find_batch_size
from dlprobe.data import Manifest
from dlprobe.doctor.engines import counted
from dlprobe.doctor.rates import gemm_rates
from dlprobe.extraction import extract, plan
from dlprobe.extraction.estimating import windows_per_s
from dlprobe.extras import has

if TYPE_CHECKING:
    from collections.abc import Callable

    from dlprobe.backbones.torch_backbone import TorchBackbone
    from dlprobe.spec import CacheSpec

BARE, WHOLE, LOOP = "bare model (baseline)", "end to end", "plain float32 loop"
#: Enough to fill queues and caches before anything is timed.
WARM_WINDOWS = 16


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


class Arm(NamedTuple):
    """What embeds the windows of a manifest, into a path that is absent if it writes, and how many it is given."""

    run: Callable[[Manifest, Path], object]
    windows: int


def measure(arms: dict[str, Arm], manifest: Manifest, repeats: int) -> dict[str, float]:
    """Return median windows/s of each arm; they take turns, and the first turn only warms up."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats + 1):
        for name, arm in arms.items():
            windows = arm.windows if turn else min(WARM_WINDOWS, arm.windows)
            part, out = Manifest(manifest.frame.head(windows), manifest.root), manifest.root / "out"
            start = time.perf_counter()
            arm.run(part, out)
            rates[name].append(windows / (time.perf_counter() - start))
            shutil.rmtree(out, ignore_errors=True)
    return {name: statistics.median(found[1:]) for name, found in rates.items()}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="timm:vit_base_patch14_reg4_dinov2")
    parser.add_argument("--engine", default="auto", help="openvino on a CPU where it is installed, else torch")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--window", type=int, help="pixels")
    parser.add_argument("--windows", type=int, help="how many; 160 on a CPU, 2,048 on CUDA")
    parser.add_argument(
        "--loop-windows", type=int, help="how many of them for the plain loop; 16 on a CPU, 256 on CUDA"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small network, for a look at whether it runs")
    given = parser.parse_args()
    if given.quick:
        given.backbone, given.window, given.windows, given.repeats = "timm:test_vit", 160, 32, 1
    if given.engine == "auto":
        given.engine = "openvino" if has("openvino") and not torch.cuda.is_available() else "torch"
    cuda = torch.cuda.is_available()
    given.windows = given.windows or (2048 if cuda else 160)
    given.loop_windows = min(given.windows, given.loop_windows or (256 if cuda else 16))
    return given


def settled(backbone: Any, spec: CacheSpec) -> Any:
    """Return a backbone with the batch size that an extraction uses: found where it finds one, within a block."""
    if backbone.automatic_batch:
        return backbone.with_batch_size(find_batch_size(backbone, windows_per_s, block_windows=spec.block_windows))
    size = backbone.pins.batch_size
    return backbone.with_batch_size(evened(size, spec.block_windows) if backbone.pins.compiled else size)


def main() -> None:
    given = options()
    common = {"weights": "random:0", "window_px": given.window}
    execution = {"engine": given.engine, "precision": given.precision, "compiled": given.compile}
    backbone: Any = load_backbone(given.backbone, **common, **execution, batch_size=given.batch_size)
    exact: Any = load_backbone(given.backbone, **common, precision="float32")
    side = backbone.spec.window_px
    with tempfile.TemporaryDirectory() as folder:
        manifest = photographs(Path(folder), given.windows, side + 8)
        backbone = settled(backbone, plan(manifest, backbone.spec, stride_px=side).cache_spec)
        pins = backbone.pins
        noise = np.random.default_rng(0).integers(0, 256, (pins.batch_size, side, side, 3), np.uint8)
        ready = backbone.normalise(torch.from_numpy(noise).to(backbone.device))
        arms = {
            BARE: Arm(lambda part, _out: bare(backbone, ready, len(part)), given.windows),
            WHOLE: Arm(lambda part, out: extract(part, backbone, out, stride_px=side), given.windows),
            LOOP: Arm(lambda part, out: plain_loop(exact, part, out), given.loop_windows),
        }
        rates = measure(arms, manifest, given.repeats)
    how = f"{pins.engine}{', compiled' if pins.compiled else ''}, {pins.device}, {pins.precision}"
    print(f"{given.backbone} at {side} px, {how}, batches of {pins.batch_size}, {os.cpu_count()} cores")
    print(f"{'arm':24} {'windows/s':>10} {'x bare':>7} {'x loop':>7}")
    for name, rate in rates.items():
        print(f"{name:24} {rate:10.2f} {rate / rates[BARE]:7.2f} {rate / rates[LOOP]:7.2f}")
    if pins.device == "cuda":
        _, flops = counted(exact, noise[:1])
        share = rates[WHOLE] * flops / gemm_rates()["cuda:0", "bfloat16"]
        print(f"end to end is {share:.0%} of the measured bfloat16 matrix product")


if __name__ == "__main__":
    main()
