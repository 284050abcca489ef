"""Which engine, device, precision and batch size: settled once, when a backbone is loaded, every ``auto`` gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dlprobe.errors import BackboneError
from dlprobe.extras import require
from dlprobe.spec import Pins

if TYPE_CHECKING:
    from dlprobe.backbones.base import LoadRequest

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: ``torch`` runs on every device of torch, ``openvino`` on the CPU.
ENGINES = ("torch", "openvino")
DEFAULT_BATCH_SIZES = {"cpu": 8, "cuda": 64}


def choose_device(device: str) -> torch.device:
    """Return the device of that name, numbered as tensors say it; ``auto`` is CUDA where there is one, else the CPU.

    Raises
    ------
    BackboneError
        If it is unknown or absent; nothing falls back to another device silently.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type != "meta":
            return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        msg = f"device {device!r} is not on this machine; write auto, cpu{_cuda_names()} (--device)"
        raise BackboneError(msg) from error
    msg = f"device {device!r} cannot compute; write auto, cpu{_cuda_names()} (--device)"
    raise BackboneError(msg)


def choose_execution(request: LoadRequest, name: str, *, network: bool = True) -> tuple[torch.device, Pins]:
    """Return where and how to compute what was asked for.

    Parameters
    ----------
    request : LoadRequest
        Engine, device, precision, batch size, and whether to compile.
    name : str
        Of the backbone, for messages.
    network : bool
        Whether it is a torch network, which can be converted and compiled.

    Raises
    ------
    BackboneError
        If engine, device or precision are unknown, absent, or not for each other, or the batch size is below 1.
    ExtraError
        If the engine is not installed.
    """
    if request.engine not in ENGINES:
        msg = f"no engine {request.engine!r}; write {' or '.join(ENGINES)} (--engine)"
        raise BackboneError(msg)
    if not network and (request.engine != "torch" or request.compiled):
        msg = f"{name} is no network to be converted or compiled; leave --engine and --compile out"
        raise BackboneError(msg)
    device = _openvino_device(request) if request.engine == "openvino" else choose_device(request.device)
    precision = _precision(request, device)
    batch_size = request.batch_size
    if batch_size is None:
        batch_size = DEFAULT_BATCH_SIZES.get(device.type, 8)
    if batch_size < 1:
        msg = f"batch_size is {batch_size}; it must be at least 1"
        raise BackboneError(msg)
    return device, Pins(
        engine=request.engine,
        precision=precision,
        device=device.type,
        batch_size=batch_size,
        compiled=request.compiled,
    )


def _openvino_device(request: LoadRequest) -> torch.device:
    if request.device not in {"auto", "cpu"}:
        msg = f"the engine openvino computes on the CPU, not on {request.device}; leave --device out, or --engine"
        raise BackboneError(msg)
    if request.compiled:
        msg = "torch.compile is for the engine torch; leave --compile out, or --engine"
        raise BackboneError(msg)
    require("openvino", "the engine openvino", "openvino")
    return torch.device("cpu")


def _precision(request: LoadRequest, device: torch.device) -> str:
    """Return the precision: with ``auto`` bfloat16 on a GPU, and under OpenVINO on a CPU, that has it, else float32."""
    precision = request.precision
    if precision not in {"auto", *PRECISIONS}:
        msg = f"no precision {precision!r}; write auto, {', '.join(PRECISIONS)} (--precision)"
        raise BackboneError(msg)
    if precision == "float16" and device.type == "cpu":
        msg = "float16 is not for the CPU; write float32 or bfloat16 (--precision)"
        raise BackboneError(msg)
    if request.engine == "openvino":
        from dlprobe.backbones.engines.openvino_engine import has_bfloat16

        if precision == "bfloat16" and not has_bfloat16():
            msg = "OpenVINO has no bfloat16 on this CPU; write auto or float32 (--precision)"
            raise BackboneError(msg)
        return ("bfloat16" if has_bfloat16() else "float32") if precision == "auto" else precision
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" and _gpu_has_bfloat16(device) else "float32"
    return precision


def _gpu_has_bfloat16(device: torch.device) -> bool:
    """Tell whether a GPU computes in bfloat16 rather than emulate it: NVIDIA's do from Ampere on, AMD's all."""
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cuda_names() -> str:
    count = torch.cuda.device_count()
    return "".join(f", cuda:{number}" for number in range(count)) if count else ""
