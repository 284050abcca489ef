"""Whether every engine gives the embeddings of float32 torch, and how many windows a second it may give."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.backbones import load_backbone
from dlprobe.doctor.findings import Finding, measured
from dlprobe.errors import BackboneError, ExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone

#: Small, and part of timm: what is compared when no backbone is named.
SMALL_BACKBONE = "timm:test_vit"
SMALL_WINDOW_PX = 160
#: Relative error, against the largest value, that each precision may have.
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1, "float16": 1e-1}
_MIN_SECONDS = 2.0


class Arm(NamedTuple):
    """A way to run a network."""

    engine: str
    precision: str
    device: str


def compare_engines(
    name: str, weights: str, window_px: int | None, gemm: Mapping[tuple[str, str], float], *, timing: bool
) -> Iterator[Finding]:
    """Compare every engine on one seeded window with float32 torch on the CPU.

    Parameters
    ----------
    name, weights, window_px
        As for `dlprobe.backbones.load_backbone`.
    gemm : mapping
        What `dlprobe.doctor.rates.gemm_rates` measured.
    timing : bool
        Time each engine for some seconds too.
    """
    exact = load_backbone(name, weights=weights, device="cpu", window_px=window_px)
    side = exact.spec.window_px
    window = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    expected, flops = counted(exact, window)
    yield measured(f"work {name} {side} px", flops / 1e9, "GFLOP/window")
    for arm in _arms():
        topic = f"{arm.engine} {arm.device} {arm.precision}"
        try:
            backbone = load_backbone(name, weights=weights, window_px=window_px, **arm._asdict())
        except (BackboneError, ExtraError) as error:
            yield Finding(topic=f"engine {topic}", found="cannot run", advice=str(error))
            continue
        yield _parity(topic, arm, backbone(window), expected)
        if flops:
            yield measured(f"at most {topic}", _peak(arm, gemm) / flops, "windows/s")
        if timing:
            yield _timing(topic, backbone, window)


def _arms() -> list[Arm]:
    import torch

    from dlprobe.extras import has

    arms = [Arm("torch", "float32", "cpu"), Arm("torch", "bfloat16", "cpu")]
    if has("openvino"):
        from dlprobe.backbones.engines.openvino_engine import has_bfloat16

        arms += [Arm("openvino", name, "cpu") for name in ("float32", "bfloat16")[: 1 + has_bfloat16()]]
    if torch.cuda.is_available():
        arms += [Arm("torch", "float32", "cuda"), Arm("torch", "bfloat16", "cuda")]
    return arms


def _parity(topic: str, arm: Arm, found: torch.Tensor, expected: torch.Tensor) -> Finding:
    import torch

    found = found.cpu()
    error = float((found - expected).abs().max() / expected.abs().max())
    cosine = float(torch.nn.functional.cosine_similarity(found, expected, dim=-1).min())
    wrong = not error <= TOLERANCE[arm.precision]
    advice = f"more than {TOLERANCE[arm.precision]:g}: use another engine, and report this" if wrong else ""
    told = f"differs by {error:.2g} of the largest value from float32 torch, least cosine {cosine:.6f}"
    return Finding(topic=f"engine {topic}", found=told, value=error, unit="relative error", advice=advice)


def counted(backbone: Backbone, window: NDArray[np.uint8]) -> tuple[torch.Tensor, int]:
    """Return embeddings of a window, and the floating-point operations of the matrix products behind them.

    Attention is taken apart into its products: not every release of torch counts every fused kernel of it.

    Parameters
    ----------
    backbone : Backbone
        On the engine torch.
    window : ndarray of uint8, shape (1, window_px, window_px, 3)

    Returns
    -------
    tuple of (tensor of float32, int)
        On the CPU; a multiplication and an addition are two operations.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        embeddings = backbone(window)
    return embeddings.cpu(), int(counter.get_total_flops())


def _peak(arm: Arm, gemm: Mapping[tuple[str, str], float]) -> float:
    return gemm["cuda:0" if arm.device == "cuda" else arm.device, arm.precision]


def _timing(topic: str, backbone: Backbone, window: np.ndarray) -> Finding:
    from dlprobe.backbones.engines.batching import is_out_of_memory

    try:
        return measured(f"timed {topic}", _timed(backbone, window), "windows/s")
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    found = f"memory does not hold batches of {backbone.pins.batch_size} windows"
    return Finding(topic=f"timed {topic}", found=found, advice="free some; extract finds a size that fits by itself")


def _timed(backbone: Backbone, window: np.ndarray) -> float:
    batch = np.repeat(window, backbone.pins.batch_size, axis=0)
    backbone(batch).sum().item()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < _MIN_SECONDS:
        backbone(batch).sum().item()
        done += len(batch)
    return done / (time.perf_counter() - start)
