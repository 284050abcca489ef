"""How long a scan of many small images takes, beside a bare loop that opens the same files with Pillow.

Run as ``python benchmarks/scan.py --images 100000``. Half of the images are authentic, half spliced with a mask of
their own. Both arms open every image and every mask as far as its header; the baseline does nothing else. The peak of
memory is that of a fresh process that scans.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def generate(root: Path, images: int) -> int:
    """Write the data set and return the number of files."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 48, 48, 3), np.uint8)
    encoded = {}
    for kind, suffix in (("PNG", "png"), ("JPEG", "jpg")):
        for k, array in enumerate(pixels):
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, kind)
            encoded[suffix, k] = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((24, 24), np.uint8))).save(buffer, "PNG")
    for folder in ("real", "sp", "masks/sp"):
        for hundred in range(images // 200 + 1):
            (root / folder / f"{hundred:04d}").mkdir(parents=True, exist_ok=True)
    for i in range(images // 2):
        name = f"{i // 100:04d}/{i:012d}"
        suffix = ("png", "jpg")[i % 2]
        (root / "real" / f"{name}.{suffix}").write_bytes(encoded[suffix, i % 8])
        (root / "sp" / f"{name}.{suffix}").write_bytes(encoded[suffix, (i + 1) % 8])
        (root / "masks/sp" / f"{name}.png").write_bytes(buffer.getvalue())
    return images // 2 * 3


def baseline(root: Path) -> float:
    """Return the seconds that Pillow needs for all headers in one thread."""
    start = time.perf_counter()
    total = 0
    for path in root.rglob("*.*"):
        with Image.open(path) as image:
            total += image.size[0]
    return time.perf_counter() - start


def scan_once(root: Path) -> None:
    """Scan in this process; print seconds, peak of memory in MB and the number of images."""
    from dlprobe.data import scan

    start = time.perf_counter()
    result = scan(root, "folder")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(seconds, peak, len(result.manifest), result.accounting["ignored"], len(result.faults))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--scan", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.scan:
        scan_once(given.scan)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = generate(root, given.images)
        bare = baseline(root)
        command = [sys.executable, __file__, "--scan", str(root)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds, peak = float(out[0]), float(out[1])
    print(f"{out[2]} images and their masks, {files} files; {out[3]} ignored, {out[4]} faults")
    print(f"bare Pillow loop {bare:.1f} s; scan {seconds:.1f} s; ratio {seconds / bare:.2f}")
    print(f"scan: {given.images / seconds:.0f} images/s, peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main()
