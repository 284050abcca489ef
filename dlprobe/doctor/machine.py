"""Interpreter, processor, libraries, devices and the hub: what is here."""

from __future__ import annotations

import os
import platform
import socket
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dlprobe.doctor.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What each extra is for, by the package that shows whether it is installed.
EXTRAS = {
    "hf": ("transformers", "backbones named hf:"),
    "openvino": ("openvino", "--engine openvino"),
    "s3": ("obstore", "caches on S3"),
    "ray": ("ray", "--runner ray"),
    "diffusers": ("diffusers", "generators of `dlprobe synthesize`"),
    "finetune": ("peft", "fine-tuning"),
    "onnx": ("onnxruntime", "probes as ONNX"),
    "umap": ("umap-learn", "maps of embeddings"),
}
LIBRARIES = ("numpy", "pillow", "zarr", "h5py", "scikit-learn", "timm")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
_HUB_SECONDS = 3.0


def look_around() -> Iterator[Finding]:
    """Give what can be told without measuring."""
    yield Finding(topic="python", found=f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _processor()
    yield from _torch()
    for name in LIBRARIES:
        yield Finding(topic=f"library {name}", found=version(name))
    yield from _extras()
    yield _hub()


def _processor() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(topic="cpu", found=f"{usable} of {os.cpu_count()} cores usable", value=usable, unit="cores")
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text(encoding="utf-8").split()) if info.is_file() else set()
    present = [flag for flag in _FLAGS if flag in flags]
    bfloat16 = bool({"avx512_bf16", "amx_bf16"} & set(present))
    advice = "" if bfloat16 or not flags else "no bfloat16 here: OpenVINO computes in float32, at about half the rate"
    yield Finding(topic="cpu features", found=" ".join(present) or "unknown", advice=advice)


def _torch() -> Iterator[Finding]:
    import torch

    yield Finding(topic="torch", found=f"{torch.__version__}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Finding(topic="cuda", found="none; backbones run on the CPU")
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield Finding(topic=f"cuda:{number}", found=f"{about.name}, {about.total_memory / 2**30:.0f} GiB")


def _extras() -> Iterator[Finding]:
    for extra, (package, purpose) in EXTRAS.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            advice = f"for {purpose}: pip install 'dlprobe[{extra}]'"
            yield Finding(topic=f"extra {extra}", found="missing", advice=advice)
        else:
            yield Finding(topic=f"extra {extra}", found=f"{package} {found}")


def _hub() -> Finding:
    """Try to open a connection, in a thread: looking up a name may take longer than any limit that is set."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding(topic="hub", found="not asked: HF_HUB_OFFLINE is set")
    host = urlsplit(constants.ENDPOINT)
    reached = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host.hostname or "", host.port or 443), timeout=_HUB_SECONDS).close()
        except OSError:
            return
        reached.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS + 0.5)
    if reached.is_set():
        return Finding(topic="hub", found=f"{host.netloc} answers")
    advice = "give weights with --weights FILE, or fill the hub's cache on another machine and set HF_HUB_OFFLINE=1"
    return Finding(topic="hub", found=f"{host.netloc} does not answer", advice=advice)
