"""The presets that ship: the numbers of published protocols, and two mixes of our own.

What the published code does and ours cannot: TGIF2 also upscales with Real-ESRGAN, which needs a network's weights.
IMDLBenCo encodes JPEG with OpenCV; it and Pillow use libjpeg-turbo's standard tables with 4:2:0.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from dlprobe.data.degrade.chain import CLEAN
from dlprobe.data.degrade.presets import PRESETS, Preset, Stage

Ladder: TypeAlias = tuple[tuple[str, float, str], ...]

_CLEAN: Ladder = ((CLEAN, 0.0, CLEAN),)


def _jpeg(*qualities: int) -> Ladder:
    return tuple(("jpeg", float(q), f"jpeg:quality={q},subsampling=4:2:0") for q in qualities)


def _webp(*qualities: int) -> Ladder:
    return tuple(("webp", float(q), f"webp:quality={q}") for q in qualities)


def _noise(*sigmas: float) -> Ladder:
    return tuple(("noise", float(sigma), f"noise:sigma={sigma}") for sigma in sigmas)


def _noise_variance(*variances: float) -> Ladder:
    return tuple(("noise-variance", float(v), f"noise:sigma={math.sqrt(v)!r}") for v in variances)


def _blur(*kernels: int) -> Ladder:
    return tuple(("blur", float(k), f"blur:kernel={k}") for k in kernels)


def _gamma(*exponents: float) -> Ladder:
    return tuple(("gamma", e, f"gamma:exponent={e}") for e in exponents)


def _round_trip(*factors: float) -> Ladder:
    return tuple(("resize", f, f"resize:factor={f},filter=bicubic,back=bicubic") for f in factors)


def _upscale(*kinds: str) -> Ladder:
    return tuple(
        (f"up-{kind}", float(f), f"resize:factor={f},filter=cv-{kind},back=cv-area") for kind in kinds for f in (2, 4)
    )


def _double_jpeg(name: str, shift_px: int, q2: int, *first: int) -> Ladder:
    shift = f"shift_y={shift_px},shift_x={shift_px}"
    return tuple((name, float(q1), f"double-jpeg:q1={q1},q2={q2},{shift},subsampling=4:2:0") for q1 in first)


_OURS = (
    Preset(
        name="dinolizer",
        source=(
            "ours: the paper (arXiv 2511.20722) names resizing, noise, JPEG and double JPEG, and B-Free's training "
            "adds blur, cut-out and jitter; neither gives numbers"
        ),
        ladder=(
            *_CLEAN,
            *_jpeg(95, 90, 80, 70, 60, 50),
            *_double_jpeg("double-jpeg-90-aligned", 0, 90, 90, 75, 60),
            *_double_jpeg("double-jpeg-90-shifted", 4, 90, 90, 75, 60),
            *_round_trip(0.5, 0.75, 1.25, 1.5),
            *_noise(1, 2, 4, 8),
        ),
        stages=(
            Stage(0.4, ("resize:factor=0.5..1.5,filter=box/bilinear/bicubic/lanczos,back=bicubic",)),
            Stage(0.25, ("blur:sigma=0.3..2.0",)),
            Stage(0.25, ("jitter:brightness=0.8..1.2,contrast=0.8..1.2,saturation=0.8..1.2,hue=-0.02..0.02",)),
            Stage(0.4, ("noise:sigma=0.5..8.0",)),
            Stage(0.1, ("cutout:side=0.05..0.25,y=0.0..1.0,x=0.0..1.0",)),
            Stage(
                0.8,
                (
                    "jpeg:quality=40..100,subsampling=4:2:0/4:4:4",
                    "double-jpeg:q1=50..100,q2=50..100,shift_y=0..7,shift_x=0..7",
                    "webp:quality=50..100",
                ),
            ),
        ),
    ),
    Preset(
        name="social",
        source=(
            "ours, but for limit-1080 at quality 80, which is image-forensics-toolkit's: platforms shrink, encode, and "
            "encode again when an image is shared on"
        ),
        ladder=(
            *_CLEAN,
            *((f"limit-{side}", 80.0, f"limit:side={side}|jpeg:quality=80") for side in (2048, 1080, 720)),
            *(
                ("limit-1080-shared-on", float(q), f"limit:side=1080|jpeg:quality=80|jpeg:quality={q}")
                for q in (80, 70)
            ),
            ("limit-1080-webp", 80.0, "limit:side=1080|webp:quality=80"),
        ),
        stages=(
            Stage(1.0, ("limit:side=1080/1280/1600/2048",)),
            Stage(0.5, ("resize:factor=0.5..1.0,filter=bilinear/bicubic/lanczos",)),
            Stage(1.0, ("jpeg:quality=65..92", "jpeg:quality=65..92", "jpeg:quality=65..92", "webp:quality=65..90")),
            Stage(0.3, ("jpeg:quality=60..90",)),
        ),
    ),
)

_PUBLISHED = (
    Preset(
        name="tgif",
        source=(
            "TGIF postprocess_images.py: JPEG and WebP at 80 and 60; TGIF2: upscaling by 2 and 4 with four OpenCV "
            "filters and back with INTER_AREA"
        ),
        ladder=(*_CLEAN, *_jpeg(80, 60), *_webp(80, 60), *_upscale("cubic", "linear", "nearest", "lanczos")),
    ),
    Preset(
        name="imdlbenco",
        source="IMDLBenCo: kernel of the blur, variance of the noise, JPEG quality",
        ladder=(
            *_CLEAN,
            *_blur(3, 7, 11, 15, 19, 23),
            *_noise_variance(3, 7, 11, 15, 19, 23),
            *_jpeg(50, 60, 70, 80, 90, 100),
        ),
    ),
    Preset(
        name="safire",
        source="SAFIRE: kernel of the blur, standard deviation of the noise, JPEG quality, gamma",
        ladder=(
            *_CLEAN,
            *_blur(3, 7, 11, 15, 19),
            *_noise(3, 7, 11, 15, 19, 23),
            *_jpeg(50, 60, 70, 80, 90, 100),
            *_gamma(0.7, 0.85, 1.0, 1.15, 1.3),
        ),
    ),
)

for _preset in (*_OURS, *_PUBLISHED):
    PRESETS.register(_preset.name)(_preset)
