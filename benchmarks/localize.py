"""What localization costs beside the backbone, and what the adaptive stride saves and loses.

Run as ``python benchmarks/localize.py cost``, ``... memory`` or ``... adaptive --demo DEMO``, with the folder that
``dlprobe demo -o DEMO`` filled.

- cost: windows of a ViT-B with random weights at 504 px, stride 128, on one image. Baseline: the bare backbone and
  probe on the same windows. Arms: putting the maps together, and post-processing with every step.
- memory: peak resident size of a score map with three logits of an image of so many megapixels, with a backbone that
  costs next to nothing, above that of the libraries, the model and a small image. Baseline: the bytes of the maps.
- adaptive: windows looked at, and pixel IoU lost at the probe's threshold, against the dense stride on the same
  images; each image is seen by the probe of the fold that knows neither it nor its donor.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dlprobe.backbones import load_backbone
from dlprobe.data import Manifest
from dlprobe.data.images import read_image
from dlprobe.data.samples import mask_of
from dlprobe.data.tiling import tile
from dlprobe.localization import Adaptive, PostProcessing, masks_by_step, score_map
from dlprobe.localization.canvas import LogitCanvas
from dlprobe.localization.planes import Scratch
from dlprobe.localization.settings import SlidingSettings
from dlprobe.probes import Probe, make_card

if TYPE_CHECKING:
    from dlprobe.backbones import Backbone

EVERYTHING = PostProcessing(
    guided_radius_px=8, fill_holes=True, min_area_px=64, min_area_share=0.0005, smooth_radius_px=3
)


def random_probe(backbone: Backbone, n_logits: int) -> Probe:
    """Return a probe with random weights."""
    rng = np.random.default_rng(0)
    card = make_card(
        model=backbone.spec,
        scheme="autoencoded-pristine",
        objective="dice-batch",
        classes=["PRISTINE", "AUTOENCODED", "INPAINTED"][-n_logits:],
        threshold=0.5,
        threshold_policy="fixed",
    )
    weights = rng.normal(0, 1 / backbone.spec.width**0.5, (n_logits, backbone.spec.width))
    return Probe(weights, np.zeros(n_logits), card)


def cost(given: argparse.Namespace) -> None:
    """Time the parts on one image."""
    backbone = load_backbone(given.backbone, weights=given.weights, device=given.device)
    probe = random_probe(backbone, given.logits)
    side = backbone.spec.window_px
    image = np.random.default_rng(0).integers(0, 256, (given.side, given.side, 3), np.uint8)
    boxes = tile(given.side, given.side, side, 128, "cover")
    weights = torch.as_tensor(probe.weights.T.astype(np.float32), device=backbone(image[None, :side, :side]).device)
    times: dict[str, list[float]] = {"backbone and probe (baseline)": [], "maps": [], "post-processing": []}
    for turn in range(given.repeats + 1):
        start = time.perf_counter()
        logits = []
        for first in range(0, len(boxes), backbone.pins.batch_size):
            batch = boxes[first : first + backbone.pins.batch_size]
            logits.append(backbone(np.stack([image[box.slices] for box in batch])) @ weights)
        stacked = torch.cat(logits)
        if stacked.device.type == "cuda":
            torch.cuda.synchronize()
        between = time.perf_counter()
        canvas = LogitCanvas(
            image.shape[:2],
            image.shape[:2],
            given.logits,
            window_px=side,
            settings=SlidingSettings(),
            device=stacked.device,
            scratch=Scratch(),
        )
        canvas.feed(boxes, stacked)
        maps = canvas.maps()
        after = time.perf_counter()
        masks_by_step(maps.scores[..., -1], image, 0.5, EVERYTHING)
        end = time.perf_counter()
        if turn:  # the first one warms up
            for name, seconds in zip(times, (between - start, after - between, end - after), strict=True):
                times[name].append(seconds)
    base = statistics.median(times["backbone and probe (baseline)"])
    print(f"{given.backbone}, {backbone.pins.device}, {len(boxes)} windows of {side} px, {given.logits} logits")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:30} {1e3 * median / len(boxes):9.2f} ms a window  ratio {median / base:.4f}")


class Cheap:
    """Mean colours of patches: a backbone that costs next to nothing."""

    def __init__(self) -> None:
        residual = load_backbone("residual:srm", device="cpu")
        self.spec, self.pins = replace(residual.spec, backbone="benchmark:means", width=3), residual.pins
        self.card, self.weights = residual.card, residual.weights

    def __call__(self, windows: np.ndarray) -> torch.Tensor:
        """Embed windows."""
        grid, patch = self.spec.grid, self.spec.patch_px
        return torch.as_tensor(windows).reshape(-1, grid, patch, grid, patch, 3).float().mean(dim=(2, 4)) / 255


def memory(given: argparse.Namespace) -> None:
    """Measure the peak of one large image."""
    backbone = Cheap()
    probe = random_probe(backbone, given.logits)
    score_map(np.zeros((600, 600, 3), np.uint8), backbone, probe)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    side = round((given.megapixels * 1e6) ** 0.5)
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    found = score_map(image, backbone, probe, stride_px=given.stride)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    maps = sum(array.nbytes for array in (found.scores, found.logits, found.disagreement, found.n_windows))
    print(f"{side}x{side} px, {given.logits} logits: peak {peak / 1e6:.0f} MB, the image is {image.nbytes / 1e6:.0f}")
    print(f"maps (baseline) {maps / 1e6:.0f} MB  ratio {peak / maps:.2f}")


class Remembering:
    """A backbone that embeds a window once."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone, self._known = backbone, {}
        self.spec, self.pins, self.card, self.weights = backbone.spec, backbone.pins, backbone.card, backbone.weights

    def __call__(self, windows: np.ndarray) -> torch.Tensor:
        """Embed windows."""
        for window in windows:
            if window.tobytes() not in self._known:
                self._known[window.tobytes()] = self._backbone(window[None])[0]
        return torch.stack([self._known[window.tobytes()] for window in windows])


SWEEP = {
    "default": Adaptive(),
    "coarse pass only": Adaptive(budget=0.01),
    "budget 0.3": Adaptive(budget=0.3),
    "budget 0.5": Adaptive(budget=0.5),
    "margin 0.1": Adaptive(margin=0.1),
    "margin 0.3": Adaptive(margin=0.3),
    "edge 0": Adaptive(edge_px=0),
    "edge 56": Adaptive(edge_px=56),
    "coarse every 3": Adaptive(coarse_every=3),
}


def adaptive(given: argparse.Namespace) -> None:
    """Compare on the demo's images."""
    import pandas as pd

    backbone = load_backbone("residual:srm")
    manifest = Manifest.read(given.demo / "manifest.parquet")
    folds = pd.read_parquet(given.demo / "run/images.parquet")
    folds = folds[(folds["method"] == "dice") & (folds["scheme"] == "autoencoded-pristine")]
    fold_of = dict(zip(folds["path"], folds["fold"], strict=True))
    rows = []
    for row in manifest.frame.itertuples():
        if row.generator not in given.generator:
            continue
        pixels = read_image(manifest.root / row.path)
        mask = mask_of(row._asdict(), manifest.root, pixels.shape[:2])
        truth = np.zeros(pixels.shape[:2], bool) if mask is None else mask
        name = f"run/probes/residual-srm/folds/dice-autoencoded-pristine-{fold_of[row.path]}.safetensors"
        probe = Probe.load(given.demo / name)
        remembering = Remembering(backbone)
        for setting, chosen in {"dense": None, **SWEEP}.items():
            found = score_map(pixels, remembering, probe, adaptive=chosen)
            marked = found.inpainted >= probe.threshold
            iou = (marked & truth).sum() / max((marked | truth).sum(), 1) if truth.any() else float("nan")
            rows.append(
                {
                    "setting": setting,
                    "source": row.source_id,
                    "windows": found.windows_seen,
                    "dense": found.windows_dense,
                    "iou": iou,
                    "false_area": float("nan") if truth.any() else marked.mean(),
                }
            )
    frame = pd.DataFrame(rows)
    base = frame[frame["setting"] == "dense"].reset_index(drop=True)
    print(f"{len(base)} images of {base['source'].nunique()} photographs, {base['dense'].sum()} windows at stride 128")
    for setting, part in frame.groupby("setting", sort=False):
        here = part.reset_index(drop=True)
        print(
            f"{setting:20} windows {here['windows'].sum() / base['dense'].sum():.3f}  IoU {here['iou'].mean():.4f} "
            f"lost {(base['iou'] - here['iou']).mean():+.4f} (largest {(base['iou'] - here['iou']).max():+.3f})  "
            f"false area {here['false_area'].mean():.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    timing = tasks.add_parser("cost")
    timing.add_argument("--backbone", default="timm:vit_base_patch14_reg4_dinov2.lvd142m")
    timing.add_argument("--weights", default="random:0")
    timing.add_argument("--device", default="auto")
    timing.add_argument("--side", type=int, default=760)
    timing.add_argument("--logits", type=int, default=3)
    timing.add_argument("--repeats", type=int, default=3)
    large = tasks.add_parser("memory")
    large.add_argument("--megapixels", type=float, default=100)
    large.add_argument("--stride", type=int, default=128)
    large.add_argument("--logits", type=int, default=3)
    sparse = tasks.add_parser("adaptive")
    sparse.add_argument("--demo", type=Path, default=Path("demo"))
    sparse.add_argument("--generator", nargs="*", default=["", "telea+pca", "donor+pca"])
    given = parser.parse_args()
    {"cost": cost, "memory": memory, "adaptive": adaptive}[given.task](given)


if __name__ == "__main__":
    main()
