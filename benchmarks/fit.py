"""How fast heads are fitted, as ratios against baselines timed in the same run.

    python benchmarks/fit.py [--windows 64] [--threads 2] [--repeats 7]

Arms of heads and regressions read the same float16 embeddings from memory. Repeats of the arms are interleaved and the
fastest counts, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier

from dlprobe.probes import GroupMoments, HeadBatch, default_grid, fit_heads
from dlprobe.probes.exact import Rows, stream_logistic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATCHES, WIDTH, BATCH_WINDOWS = 1296, 768, 16
#: The fastest of 32 to 2048 for converting alone.
TILE_ROWS = 128
#: Coefficients of two regressions may be so far apart to count as one solution.
EQUAL = 1e-4


class Data:
    """Correlated embeddings with a linear signal, as large as ViT-B's of 504 px windows."""

    def __init__(self, windows: int) -> None:
        rng = np.random.default_rng(0)
        mixing = (np.eye(WIDTH) + 0.03 * rng.standard_normal((WIDTH, WIDTH))).astype(np.float32)
        direction = rng.standard_normal(WIDTH).astype(np.float32) / WIDTH**0.5
        self.embeddings = np.empty((windows, PATCHES, WIDTH), np.float16)
        self.targets = np.empty((windows, PATCHES), np.int8)
        for i in range(windows):
            rows = rng.standard_normal((PATCHES, WIDTH), dtype=np.float32) @ mixing
            self.targets[i] = rows @ direction + rng.logistic(size=PATCHES) * 0.3 > 1
            self.embeddings[i] = rows + 1
        self.groups = np.zeros(windows, np.int64)
        self.windows = np.arange(windows)
        self.moments = GroupMoments.of(self.embeddings, self.groups)
        self.steps = -(-windows // BATCH_WINDOWS)
        self.rows = windows * PATCHES

    def batches(self, epoch: int) -> Iterator[HeadBatch]:
        """Yield one epoch."""
        del epoch
        for start in range(0, len(self.windows), BATCH_WINDOWS):
            part = slice(start, start + BATCH_WINDOWS)
            targets = {"truth": self.targets[part]}
            yield HeadBatch(self.embeddings[part], targets, self.groups[part], self.windows[part])

    def fit(self, n_heads: int) -> None:
        """Fit heads for one epoch in bfloat16."""
        heads = default_grid(["truth"], learning_rates=np.geomspace(0.01, 100, n_heads).tolist(), weight_decays=(0.0,))
        options = {"precision": "bfloat16", "window_weights": "ones"}
        fit_heads(self.batches, heads, self.moments, epochs=1, steps_per_epoch=self.steps, **options)

    def read_convert_multiply(self) -> None:
        """Read, convert float16 to float32 to bfloat16 in tiles, and multiply by one vector."""
        vector = torch.ones((WIDTH, 1), dtype=torch.bfloat16)
        tile = torch.empty((TILE_ROWS, WIDTH))
        ready = torch.empty((BATCH_WINDOWS * PATCHES, WIDTH), dtype=torch.bfloat16)
        for batch in self.batches(0):
            rows = torch.from_numpy(batch.embeddings).view(-1, WIDTH)
            for start in range(0, len(rows), TILE_ROWS):
                part = rows[start : start + TILE_ROWS]
                tile[: len(part)].copy_(part)
                ready[start : start + TILE_ROWS].copy_(tile[: len(part)])
            torch.mm(ready[: len(rows)], vector)

    def bare_products(self, n_heads: int) -> None:
        """Multiply ready bfloat16 tensors of the shapes of a step, forward and backward."""
        for batch in self.batches(0):
            rows = len(batch.windows) * PATCHES
            torch.mm(self.ready[:rows], self.weights[n_heads].T)
            torch.mm(self.gradients[n_heads][:rows].T, self.ready[:rows])

    def prepare_products(self, n_heads: int) -> None:
        """Make the operands of `bare_products`."""
        rows = BATCH_WINDOWS * PATCHES
        self.ready = torch.randn(rows, WIDTH).bfloat16()
        self.weights = {n_heads: torch.randn(n_heads, WIDTH).bfloat16()}
        self.gradients = {n_heads: torch.randn(rows, n_heads).bfloat16()}

    def sgd_classifier(self, rows: int) -> Callable[[], object]:
        """Return one epoch of scikit-learn's SGD on standardised float32 rows that are ready."""
        flat = self.embeddings.reshape(-1, WIDTH)[:rows].astype(np.float32) - 1
        labels = self.targets.reshape(-1)[:rows]
        return lambda: SGDClassifier(loss="log_loss", max_iter=1, tol=None).fit(flat, labels)


def timed(arm: Callable[[], object]) -> float:
    """Return the seconds that an arm takes."""
    start = time.perf_counter()
    arm()
    return time.perf_counter() - start


def fastest(arms: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the fastest time of each arm, their repeats interleaved."""
    found = {name: timed(arm) for name, arm in arms.items()}  # warms up, too
    for _ in range(repeats - 1):
        found = {name: min(found[name], timed(arm)) for name, arm in arms.items()}
    return found


def report(what: str, ratio: float, target: str, detail: str) -> None:
    """Print one row of docs/performance.md."""
    print(f"| {what} | {target} | {ratio:.2f} x | {detail} |", flush=True)


def heads(data: Data, repeats: int) -> None:
    """One head, 128 heads, and one of 128 against scikit-learn."""
    data.prepare_products(128)
    arms = {"read": data.read_convert_multiply, "one": lambda: data.fit(1)}
    seconds = fastest(arms, repeats)
    rate = {name: data.rows / each / 1e6 for name, each in seconds.items()}
    detail = f"{rate['one']:.2f} M patches/s against {rate['read']:.2f} M"
    report("one head, one epoch, bfloat16", rate["one"] / rate["read"], ">= 0.5 x", detail)

    rows = min(data.rows, 50_000)
    arms = {"bare": lambda: data.bare_products(128), "many": lambda: data.fit(128), "sgd": data.sgd_classifier(rows)}
    seconds = fastest(arms, repeats)
    bare, many = (128 * data.rows / seconds[name] / 1e6 for name in ("bare", "many"))
    detail = f"{many / 128:.2f} M patches/s, {many:.0f} M head-patches/s against {bare:.0f} M"
    report("128 heads, one epoch, bfloat16", many / bare, ">= 0.5 x", detail)
    sgd = rows / seconds["sgd"] / 1e6
    report("per head at 128 heads", many / sgd, ">= 100 x", f"SGDClassifier {sgd:.2f} M patches/s on {rows} rows")


def logistic(data: Data, rows: int) -> None:
    """Streamed Newton against newton-cholesky, to the same gradient."""
    X, y = data.embeddings.reshape(-1, WIDTH)[:rows], data.targets.reshape(-1)[:rows]
    wide = X.astype(np.float64)
    results = {}

    def ours() -> None:
        results["ours"] = stream_logistic(lambda: [Rows(X, y)], WIDTH)

    def theirs() -> None:
        results["theirs"] = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-9).fit(wide, y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        seconds = fastest({"ours": ours, "theirs": theirs}, 2)
    apart = np.abs(results["ours"].weights - results["theirs"].coef_[0]).max()
    if not apart <= EQUAL:
        sys.exit(f"the solutions are {apart:.1e} apart, more than {EQUAL:g}: their times say nothing")
    detail = f"{seconds['ours']:.1f} s against {seconds['theirs']:.1f} s, {rows} rows, coefficients {apart:.0e} apart"
    report("streamed logistic regression", seconds["theirs"] / seconds["ours"], "> 1 x", detail)


def filled_cache(folder: Path, windows: int) -> tuple[Path, float]:
    """Extract a cache of photographs and their spliced twins, one window each; return it and the seconds it took."""
    from growth import Projection, images
    from PIL import Image

    from dlprobe.data import Manifest
    from dlprobe.extraction import extract

    folder.mkdir()
    images(folder, windows)
    mask = np.zeros((512, 512), np.uint8)
    mask[100:400, 100:300] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    rows = [
        {
            "path": f"{i:05d}.jpg",
            "mask": "mask.png" if i % 2 else "",
            "variant": "sp" if i % 2 else "real",
            "source_id": str(i // 2),
            "width": 512,
            "height": 512,
        }
        for i in range(windows)
    ]
    start = time.perf_counter()
    extract(Manifest.from_records(rows, folder), Projection(), folder / "cache")
    return folder / "cache", time.perf_counter() - start


def peak_gb() -> float:
    """Return the peak memory of this process's own image; that of `resource` counts its parent's before the exec."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e6


def fit_cache(cache: Path) -> None:
    """Fit a whole cache in this process; print the peak of memory above the libraries, and seconds."""
    from dlprobe.studies import FitSettings, fit_caches

    np.asarray(timed(lambda: SGDClassifier().fit(np.eye(4), [0, 1, 0, 1])))  # what libraries load on first use
    before = peak_gb()
    start = time.perf_counter()
    fit_caches([cache], cache.parent / "run", settings=FitSettings(epochs=1, n_folds=5, baselines=("ridge", "lda")))
    seconds = time.perf_counter() - start
    print(json.dumps({"above": peak_gb() - before, "before": before, "seconds": seconds}))


def stream_cache(cache: Path) -> None:
    """Solve a logistic regression on half of a cache in this process; print the peak of memory, and seconds."""
    from dlprobe.cache import open_cache
    from dlprobe.data import label_patches

    opened = open_cache(cache)

    def rows() -> Iterator[Rows]:
        for block in opened.blocks(windows=np.arange(len(opened) // 2)):
            labels = label_patches(block.coverage, "autoencoded-pristine")
            for embeddings, each in zip(block.embeddings, labels, strict=True):
                yield Rows(embeddings.reshape(-1, WIDTH), each.reshape(-1))

    before = peak_gb()
    start = time.perf_counter()
    found = stream_logistic(rows, WIDTH, C=1e-3)
    seconds = time.perf_counter() - start
    print(json.dumps({"above": peak_gb() - before, "seconds": seconds, "rows": found.total_weight}))


def measured(option: str, cache: Path) -> dict[str, float]:
    """Return what a process of its own prints of a cache; it may take half an hour."""
    command = [sys.executable, __file__, option, str(cache)]
    found: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800).stdout
    )
    return found


def caches(sizes: list[int], vit_windows: int) -> None:
    """Memory of `dlprobe fit` and of a streamed regression at two sizes of cache, and a new scheme on a filled cache.

    Both sizes are more than four blocks, below which not all buffers of a stream are in use.
    """
    from dlprobe.backbones import load_backbone
    from dlprobe.studies import FitSettings, fit_caches

    fits, streams = [], []
    with tempfile.TemporaryDirectory() as folder:
        for windows in sizes:
            cache, _ = filled_cache(Path(folder) / str(windows), windows)
            fits.append(measured("--fit-cache", cache))
            streams.append(measured("--stream-cache", cache))
        told = ", ".join(f"{fit['above']:.2f} GB at {n} windows" for fit, n in zip(fits, sizes, strict=True))
        detail = f"{told}, 585 heads in 5 folds, ridge and LDA; {fits[-1]['before']:.2f} GB are the libraries"
        growth = fits[-1]["above"] / fits[0]["above"]
        print(f"| memory of `fit` | < 2 GB above, flat | {growth:.2f} x | {detail} |", flush=True)
        detail = ", ".join(f"{each['above']:.2f} GB at {each['rows']:.0f} rows" for each in streams)
        growth = streams[-1]["above"] / streams[0]["above"]
        print(f"| memory of a streamed logistic regression | flat | {growth:.2f} x | {detail} |", flush=True)
        settings = FitSettings(schemes=("autoencoded-ignored",), epochs=1, baselines=(), n_folds=5)
        again = timed(lambda: fit_caches([cache], cache.parent / "again", settings=settings))
    name = "timm:vit_base_patch14_dinov2"
    backbone = load_backbone(name, weights="random:0", window_px=504, device="cpu")
    pixels = np.zeros((vit_windows, 504, 504, 3), np.uint8)
    embedding = fastest({"vit": lambda: backbone(pixels)}, 2)["vit"] / vit_windows * sizes[-1]
    detail = f"{again:.1f} s for {sizes[-1]} windows; ViT-B alone {embedding:.0f} s, from {vit_windows} windows"
    report("a new labelling scheme on a filled cache", embedding / again, "seconds, no extraction", detail)


def main() -> None:
    """Run all arms and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--logistic-rows", type=int, default=30_000)
    parser.add_argument("--cache-windows", type=int, nargs=2, default=[400, 1600])
    parser.add_argument("--vit-windows", type=int, default=2)
    parser.add_argument("--only", choices=["caches", "heads", "logistic"])
    parser.add_argument("--fit-cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stream-cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.fit_cache:
        fit_cache(options.fit_cache)
        return
    if options.stream_cache:
        stream_cache(options.stream_cache)
        return
    print("| what | target | measured | detail |\n|---|---|---|---|")
    if options.only in (None, "caches"):
        caches(options.cache_windows, options.vit_windows)
    if options.only == "caches":
        return
    data = Data(options.windows)
    if options.only != "logistic":
        heads(data, options.repeats)
    if options.only != "heads":
        logistic(data, min(data.rows, options.logistic_rows))


if __name__ == "__main__":
    main()
