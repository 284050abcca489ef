"""The saved result: weights and bias on raw embeddings, with a card that says what they are. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.errors import IdentityError, OutputError, ProbeError
from dlprobe.publish import publish
from dlprobe.spec import ModelSpec, canonical_json, require_same

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

SCHEMA = {"kind": "dlprobe-probe", "version": 1}
#: One key only: the order of several in the header is not defined, and the bytes must be.
_CARD_KEY = "dlprobe"
#: What a card must hold; None is a value, absence is not.
CARD_FIELDS = (
    "schema",
    "model",
    "model_fingerprint",
    "scheme",
    "objective",
    "classes",
    "threshold",
    "threshold_policy",
    "metrics",
    "data",
    "notes",
)


#: What a card lists of image files: as many digits of the sha256 of each.
FILE_DIGITS = 16
#: Ending of the fields of a card's ``data`` that list files, and what a probe owes to the photographs of each.
FILES = "_files"
PARTS = {"train": "trained on", "val": "chosen on", "calibration": "calibrated on"}
#: Tensors of these names hold such lists in a file, as bytes: its header may not grow with the images.
_LISTS = tuple(f"{part}{FILES}" for part in PARTS)
_DIGITS = re.compile(rf"[0-9a-f]{{{FILE_DIGITS}}}")


def make_card(
    *,
    model: ModelSpec | None,
    scheme: str,
    objective: str,
    classes: Sequence[str],
    threshold: float,
    threshold_policy: str,
    metrics: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """Return the card of a probe.

    Parameters
    ----------
    model : ModelSpec or None
        What the embeddings are; None for embeddings of unknown origin, which then cannot be checked.
    scheme : str
        Labelling scheme that was learned.
    objective : str
        What was minimised.
    classes : sequence of str
        Names of the probe's rows of weights; one logit has the name of its positive class.
    threshold : float
        On the score map, in [0, 1]: a score at or above it is marked.
    threshold_policy : str
        How the threshold was chosen.
    metrics, data : mapping, optional
        Scores with their protocols, and fingerprints of what the probe was fitted and selected on.
    notes : sequence of str
        What a user should know, such as licences.
    **more
        Further fields, kept as they are.

    Returns
    -------
    dict
        Ready for JSON.
    """
    return {
        **more,
        "schema": dict(SCHEMA),
        "model": None if model is None else asdict(model),
        "model_fingerprint": None if model is None else model.fingerprint,
        "scheme": scheme,
        "objective": objective,
        "classes": list(classes),
        "threshold": float(threshold),
        "threshold_policy": threshold_policy,
        "metrics": dict(metrics or {}),
        "data": dict(data or {}),
        "notes": list(notes),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A linear map from a raw embedding to logits, with its card.

    Parameters
    ----------
    weights : ndarray of float32 or float64, shape (k, width)
        One row for each logit; a single logit is the positive class's.
    bias : ndarray, shape (k,)
    card : dict
        As `make_card` returns it.

    Raises
    ------
    ProbeError
        If the shapes do not fit, a value is not finite, or the card lacks a field or is not JSON.
    """

    weights: NDArray[np.floating]
    bias: NDArray[np.floating]
    card: dict[str, Any]

    def __post_init__(self) -> None:
        if self.weights.dtype not in (np.float32, np.float64) or self.bias.dtype != self.weights.dtype:
            msg = f"a probe of {self.weights.dtype} weights, {self.bias.dtype} bias; use float32 or float64 for both"
            raise ProbeError(msg)
        if self.weights.ndim != 2 or self.bias.shape != self.weights.shape[:1]:
            msg = f"a probe has weights of shape {self.weights.shape}, bias {self.bias.shape}; give (k, width) and (k,)"
            raise ProbeError(msg)
        if not (np.isfinite(self.weights).all() and np.isfinite(self.bias).all()):
            msg = "a probe has weights that are not finite; its fit diverged, choose another head"
            raise ProbeError(msg)
        if missing := [name for name in CARD_FIELDS if name not in self.card]:
            msg = f"the card of a probe lacks {', '.join(missing)}; build it with make_card"
            raise ProbeError(msg)
        if self.card["schema"] != SCHEMA:
            msg = f"a probe's card has schema {self.card['schema']}, this release reads {SCHEMA}; fit the probe again"
            raise ProbeError(msg)
        if len(self.card["classes"]) != len(self.bias):
            msg = f"a probe has {len(self.bias)} logits and {len(self.card['classes'])} classes; name one for each"
            raise ProbeError(msg)
        if self.model_spec is not None and self.model_spec.width != self.width:
            msg = f"a probe has width {self.width}, the model on its card {self.model_spec.width}; they must agree"
            raise ProbeError(msg)

    @property
    def width(self) -> int:
        """Numbers per embedding."""
        return int(self.weights.shape[1])

    @property
    def model_spec(self) -> ModelSpec | None:
        """What the embeddings must be; None if the card does not say."""
        record = self.card["model"]
        return None if record is None else ModelSpec.from_dict(record)

    @property
    def threshold(self) -> float:
        """On the score map, in [0, 1]."""
        return float(self.card["threshold"])

    @property
    def sha256(self) -> str:
        """Hash of the bytes that `save` writes."""
        return hashlib.sha256(self._bytes()).hexdigest()

    def logits(self, embeddings: NDArray[np.floating]) -> NDArray[np.floating]:
        """Apply the probe.

        Parameters
        ----------
        embeddings : ndarray, shape (..., width)
            Raw, as the backbone returned them.

        Returns
        -------
        ndarray of the weights' dtype, shape (..., k)

        Raises
        ------
        ProbeError
            If the last axis is not the probe's width.
        """
        if embeddings.shape[-1:] != (self.width,):
            msg = f"a probe of width {self.width} was given embeddings of shape {embeddings.shape}"
            raise ProbeError(msg)
        result: NDArray[np.floating] = embeddings.astype(self.weights.dtype, copy=False) @ self.weights.T + self.bias
        return result

    def seen_files(self) -> dict[str, str] | None:
        """Return what the probe owes to image files, by the first digits of their sha256; None if the card lists none.

        Files are of photographs that it was ``trained on``, ``chosen on`` (with settings and threshold) or
        ``calibrated on``; all files of a photograph count that the caches held.
        """
        lists = {part: self.card["data"].get(f"{part}{FILES}") for part in PARTS}
        if all(found is None for found in lists.values()):
            return None
        return {file: what for part, what in reversed(PARTS.items()) for file in lists[part] or ()}

    def require_model(self, spec: ModelSpec | None, what: str = "the probe and these embeddings") -> bool:
        """Refuse embeddings of another model.

        Parameters
        ----------
        spec : ModelSpec or None
            Of the embeddings; None for a user's own callable, which is accepted.
        what : str
            Which two things are compared, for the message.

        Returns
        -------
        bool
            False if one side has no identity, so that nothing was checked; the caller should say so.

        Raises
        ------
        IdentityError
            Naming the fields that differ.
        """
        own = self.model_spec
        if own is None or spec is None:
            return False
        require_same(own, spec, what, "use the backbone that the probe was fitted on, or fit a probe on this one")
        return True

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, atomically; equal probes give equal bytes.

        Parameters
        ----------
        path : str or Path
            An existing file is replaced.

        Raises
        ------
        OutputError
            If the folder does not exist or the path is a folder.
        ProbeError
            If the card is not JSON or larger than the header of a .safetensors file may be.
        """
        path = Path(path)
        if path.is_dir() or not path.parent.is_dir():
            msg = (
                f"cannot write a probe to {path}: {'it is a folder' if path.is_dir() else 'its folder does not exist'}"
            )
            raise OutputError(msg)
        content = self._bytes()
        with publish(path) as scratch:
            scratch.write_bytes(content)

    def _bytes(self) -> bytes:
        from safetensors import SafetensorError
        from safetensors.numpy import save

        lists, short = _without_lists(self.card)
        try:
            card = canonical_json(short)
        except (TypeError, ValueError) as error:
            msg = f"the card of a probe is not JSON ({error}); keep to finite numbers, strings, lists and dictionaries"
            raise ProbeError(msg) from error
        tensors = {"weights": np.ascontiguousarray(self.weights), "bias": np.ascontiguousarray(self.bias)}
        try:
            return bytes(save(tensors | lists, metadata={_CARD_KEY: card}))
        except SafetensorError as error:
            field = max(short, key=lambda name: len(canonical_json(short[name])))
            msg = (
                f"the card of a probe has {len(card) / 1e6:.0f} MB, most of them in its field {field!r}, and cannot be "
                f"saved ({error}); keep it below 100 MB, in the field 'data' with fewer or shorter source_ids"
            )
            raise ProbeError(msg) from error

    @classmethod
    def load(cls, path: str | Path) -> Probe:
        """Read what `save` wrote.

        Parameters
        ----------
        path : str or Path

        Returns
        -------
        Probe

        Raises
        ------
        ProbeError
            If the file is missing, damaged, no probe, or of another release.
        """
        tensors, metadata = _read(Path(path))
        if _CARD_KEY not in metadata or set(tensors) - set(_LISTS) != {"weights", "bias"}:
            msg = f"{path} is a .safetensors file but no probe of dlprobe; give a file written by `dlprobe fit`"
            raise ProbeError(msg)
        try:
            return cls(tensors["weights"], tensors["bias"], _with_lists(json.loads(metadata[_CARD_KEY]), tensors))
        except (ProbeError, IdentityError, json.JSONDecodeError) as error:
            msg = f"{path}: {error}"
            raise ProbeError(msg) from error


def _without_lists(card: dict[str, Any]) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Any]]:
    """Return a card's lists of files as tensors (file, byte) by name, and the card without them."""
    data = card["data"] if isinstance(card["data"], dict) else {}
    lists = {name: data[name] for name in _LISTS if isinstance(data.get(name), list)}
    tensors = {
        name: np.frombuffer(bytes.fromhex("".join(marks)), np.uint8).reshape(-1, FILE_DIGITS // 2)
        for name, marks in lists.items()
        if all(isinstance(mark, str) and _DIGITS.fullmatch(mark) for mark in marks)
    }
    return tensors, {**card, "data": {k: v for k, v in data.items() if k not in tensors}} if tensors else card


def _with_lists(card: Any, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return what `_without_lists` was given; a card that has its lists in the header is returned as it is."""
    found = {}
    listing = isinstance(card, dict) and isinstance(card.get("data"), dict)
    for name in sorted(set(_LISTS) & set(tensors)):
        if not listing or tensors[name].dtype != np.uint8 or tensors[name].shape[1:] != (FILE_DIGITS // 2,):
            msg = f"{name} is no list of files that dlprobe wrote; copy or fit the probe again"
            raise ProbeError(msg)
        digits = tensors[name].tobytes().hex()
        found[name] = [digits[start : start + FILE_DIGITS] for start in range(0, len(digits), FILE_DIGITS)]
    return {**card, "data": {**card["data"], **found}} if found else card


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        msg = f"no probe at {path}; give a file written by `dlprobe fit`"
        raise ProbeError(msg)
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        msg = f"{path} is no whole .safetensors file ({error}); copy or fit the probe again"
        raise ProbeError(msg) from error
