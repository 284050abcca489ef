"""How often the auditor tells spliced from fully regenerated, beside the test that looks for any changed pixel.

Run as ``python benchmarks/verdict.py``. Sixteen photographs that ship with scikit-image and scikit-learn, two linear
auto-encoders fitted on other photographs, three kinds of photograph file (PNG, JPEG 95, JPEG 80), and fakes stored as
PNG or as JPEG of four qualities: 16 x 2 x 3 x 5 spliced and as many regenerated images. The baseline calls a fake
spliced where more than 95 % of its background pixels equal the photograph's, and regenerated otherwise. The images are
not those on which the JPEG recipe was found.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from dlprobe.data.audit.verdict import MARGIN_PX, background_verdict, dilated
from dlprobe.data.synthesis.autoencoders import (
    fit_pca,
    fit_super_resolution,
    pca_moments,
    super_resolution_moments,
)
from dlprobe.data.synthesis.photographs import PAIRS, load_photograph

QUALITIES = (None, 75, 85, 90, 95)


def stored(pixels: np.ndarray, path: Path, quality: int | None) -> np.ndarray:
    """Write pixels as PNG (quality None) or JPEG and return what a reader sees."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(
        buffer, *(("PNG",) if quality is None else ("JPEG",)), **({} if quality is None else {"quality": quality})
    )
    path.write_bytes(buffer.getvalue())
    return np.asarray(Image.open(buffer).convert("RGB"))


def main() -> None:
    photographs = [load_photograph(name, 504).pixels for pair in PAIRS for name in pair]
    counts: dict[tuple[str, str], Counter[str]] = {}
    naive: dict[tuple[str, str], Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        fake_path = Path(folder) / "fake"
        for i, photograph in enumerate(photographs):
            others = [p for j, p in enumerate(photographs) if j != i][:6]
            encoders = (
                fit_pca([pca_moments(p) for p in others]),
                fit_super_resolution([super_resolution_moments(p) for p in others]),
            )
            mask = np.zeros(photograph.shape[:2], np.bool_)
            mask[80:240, 100:260] = True
            for encoder in encoders:
                for photo_quality in (None, 95, 80):
                    original = stored(photograph, fake_path, photo_quality)
                    coded = encoder(original)
                    new = encoder(np.roll(original, (140, 190), (0, 1)))
                    for truth, background in (("sp", original), ("fr", coded)):
                        pixels = np.where(mask[..., None], new, background)
                        for quality in QUALITIES:
                            seen = stored(pixels, fake_path, quality)
                            found = background_verdict(original, seen, mask, fake_path, exact=photo_quality is None)
                            equal = (seen == original).all(axis=2)[~dilated(mask, MARGIN_PX)].mean()
                            key = truth, "PNG" if quality is None else f"JPEG {quality}"
                            counts.setdefault(key, Counter())[found.kind or "undecided"] += 1
                            naive.setdefault(key, Counter())["sp" if equal > 0.95 else "fr"] += 1
    right = {"recipe": 0, "baseline": 0}
    for key in sorted(counts):
        total = counts[key].total()
        right["recipe"] += counts[key][key[0]]
        right["baseline"] += naive[key][key[0]]
        print(f"{key[0]} stored as {key[1]:8}: {dict(counts[key])}; baseline {dict(naive[key])} of {total}")
    wrong = sum(n for key, found in counts.items() for kind, n in found.items() if kind not in {key[0], "undecided"})
    total = sum(found.total() for found in counts.values())
    print(
        f"right {right['recipe']}, wrong {wrong} of {total}; baseline right {right['baseline']}; "
        f"ratio {right['recipe'] / right['baseline']:.2f}"
    )


if __name__ == "__main__":
    main()
