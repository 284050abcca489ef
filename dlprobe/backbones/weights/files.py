"""Read weight files without ever running code from them; say in one line what is wrong with one."""

from __future__ import annotations

import argparse
import re
import warnings
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dlprobe.errors import BackboneError

if TYPE_CHECKING:
    from pathlib import Path

#: Under these keys training programs put the tensors; tried in this order, nested ones too.
WRAPPING_KEYS = ("state_dict", "model")

#: Tried in this order when a folder is given instead of a file.
FOLDER_FILES = ("model.safetensors", "model_epoch_best.pth", "pytorch_model.bin", "pytorch_model.pth", "model.pth")

_HTML = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"


def weight_file(path: Path) -> Path:
    """Return the weight file that `path` names: itself, or the one in the folder.

    A folder may be one of the hub's, or B-Free's (``config.yaml`` beside ``model_epoch_best.pth``).

    Raises
    ------
    BackboneError
        If there is nothing there, or no weight file in the folder.
    """
    if path.is_dir():
        for name in FOLDER_FILES:
            if (path / name).is_file():
                return path / name
        msg = f"folder {path} holds no weights; expected one of {', '.join(FOLDER_FILES)}"
        raise BackboneError(msg)
    if not path.is_file():
        msg = f"no weight file {path}; give an existing file, or `pretrained`, or `random:SEED`, with --weights"
        raise BackboneError(msg)
    return path


def read_checkpoint(path: Path) -> Any:
    """Return what a weight file holds, on the CPU: a ``.safetensors`` file, or ``torch.load(weights_only=True)``.

    Raises
    ------
    BackboneError
        If it is an HTML page, is cut short, holds code, or is no weight file at all.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        msg = f"{path} is empty; download it again"
        raise BackboneError(msg)
    if _HTML.match(head):
        msg = f"{path} is a web page, not weights; the download led to a login or confirmation page: fetch it again"
        raise BackboneError(msg)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path, zipped=head.startswith(_ZIP))


def find_tensors(checkpoint: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name, taken out of ``state_dict`` and ``model`` where they are wrapped.

    Raises
    ------
    BackboneError
        If there are none, or something among them is no tensor.
    """
    inner = checkpoint
    for _ in WRAPPING_KEYS:
        key = next((k for k in WRAPPING_KEYS if isinstance(inner, dict) and isinstance(inner.get(k), dict)), None)
        inner = inner[key] if key else inner
    if not isinstance(inner, dict) or not any(isinstance(value, torch.Tensor) for value in inner.values()):
        held = f"keys {_some(inner)}" if isinstance(inner, dict) else f"a {type(inner).__name__}"
        msg = f"{path} holds no tensors by name ({held}), neither at the top nor under {' or '.join(WRAPPING_KEYS)}"
        raise BackboneError(msg)
    if strange := [name for name, value in inner.items() if not isinstance(value, torch.Tensor)]:
        msg = f"{path} holds entries that are no tensors ({_some(strange)}); save the state dict alone"
        raise BackboneError(msg)
    return strip_prefixes({str(name): value for name, value in inner.items()})


#: What training programs wrap a network in; taken off where every name begins with it.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "network.")


def strip_prefixes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with those of `PREFIXES` taken off that all names share, again and again."""
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        msg = f"{path} is no safetensors file ({_line(error)}); it is cut short or something else: fetch it again"
        raise BackboneError(msg) from error


def _read_torch(path: Path, *, zipped: bool) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # of files that are refused anyway, or fine
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UnpicklingError as error:
        raise _pickle_trouble(path, error) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, IndexError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read as weights ({_line(error)}); it is cut short or something else: fetch it again"
        raise BackboneError(msg) from error


def _pickle_trouble(path: Path, error: UnpicklingError) -> BackboneError:
    with path.open("rb") as file:
        is_pickle = file.read(4).startswith((_PICKLE, _ZIP))
    if not is_pickle:
        return BackboneError(f"{path} is no weight file of torch; fetch it again")
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    code = f": it would run {named[1]}" if named else ""
    return BackboneError(
        f"{path} holds more than tensors{code}, which dlprobe refuses; "
        "save its state dict alone, or as .safetensors, where you trust it"
    )


def _line(error: BaseException) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    return first if len(first) <= 120 else f"{first[:117]}..."


def _some(names: Any, most: int = 4) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
