"""Optional dependencies: asked for where they are needed, missed with a line that names the extra."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from dlprobe.errors import ExtraError


def require(extra: str, purpose: str, *modules: str) -> None:
    """Raise if a module of an extra is not installed; importing it stays with the caller.

    Parameters
    ----------
    extra : str
        Name of the extra in ``dlprobe[...]``.
    purpose : str
        What needs it, as the subject of the sentence: "the engine openvino", "a cache on S3".
    *modules : str
        Top-level modules that the extra brings.

    Raises
    ------
    ExtraError
        If one of them is missing; the line says how to install the extra.
    """
    if missing := [name for name in modules if not has(name)]:
        msg = f"{purpose} needs {' and '.join(missing)}; install with pip install 'dlprobe[{extra}]'"
        raise ExtraError(msg)


def has(name: str) -> bool:
    """Tell whether a module is installed, without importing it."""
    return sys.modules[name] is not None if name in sys.modules else find_spec(name) is not None
