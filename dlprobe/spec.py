"""The two identities: frozen records of everything that determines a number, and their fingerprints.

``ModelSpec`` says what an embedding is; a probe is bound to it and to nothing else. ``CacheSpec`` adds what was
embedded; resume, verify and merge compare it. ``Pins`` say how the work was carried out: written once into a cache,
reused on resume, but no identity. Both fingerprints are the sha256 of canonical JSON.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from dlprobe.errors import IdentityError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Dtype = Literal["float32", "float16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What determines an embedding, down to the last bit that is meant to matter.

    Parameters
    ----------
    backbone : str
        Full name with its source, such as ``timm:vit_base_patch14_reg4_dinov2.lvd142m``.
    implementation : str
        Which code runs it (``timm``, ``residual``); position embeddings are interpolated differently by each.
    weights_sha256 : str
        Of the weight file, or of all tensors where there is no file.
    layers : tuple of int
        Absolute block numbers whose tokens are concatenated on the feature axis; empty for a backbone without blocks.
    token : str
        Which tokens: ``patch``.
    norm : bool
        Whether the final LayerNorm was applied.
    mean, std : tuple of float
        Normalisation of RGB values in [0, 1].
    resize_rule : str
        How an image with a side below the window is enlarged (see `dlprobe.data.tiling`).
    window_px, patch_px : int
        Side of the square window and of the square patch, in pixels.
    width : int
        Numbers per patch.
    """

    backbone: str
    implementation: str
    weights_sha256: str
    layers: tuple[int, ...]
    token: str = "patch"  # noqa: S105 (a vision token)
    norm: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_rule: str
    window_px: int
    patch_px: int
    width: int

    @property
    def grid(self) -> int:
        """Patches along one side of a window."""
        return self.window_px // self.patch_px

    @property
    def fingerprint(self) -> str:
        """The model_fingerprint: 64 hexadecimal digits."""
        return fingerprint(asdict(self))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModelSpec:
        """Rebuild from JSON, where tuples have become lists."""
        return cls(**_tuples(cls, record))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """What a cache holds: a model, and the windows of a manifest under a tiling.

    Parameters
    ----------
    model : ModelSpec
        What an embedding is.
    tiling : str
        ``spread`` or ``cover`` (see `dlprobe.data.tiling`).
    stride_px : int
        Intended distance of two windows, in pixels.
    views : int
        Views of each window; view 0 is the clean one.
    degrade : str or None
        Name of the preset of degradations that makes views 1 and up.
    seed : int
        Of the degradations and of the permutation that orders images.
    dtype : str
        Of the stored embeddings.
    block_windows : int
        Windows in a block.
    manifest_sha256 : str
        Of the manifest's content (`dlprobe.data.Manifest.sha256`); its root does not count.
    cls : bool
        Whether the CLS token of every window is stored beside its patches. Left out of the record where it is not, so
        that caches without it are what they were before there was a choice.
    """

    model: ModelSpec
    tiling: str
    stride_px: int
    views: int
    degrade: str | None
    seed: int
    dtype: Dtype
    block_windows: int
    manifest_sha256: str
    cls: bool = False

    @property
    def fingerprint(self) -> str:
        """The cache_fingerprint: 64 hexadecimal digits."""
        return fingerprint(self.record())

    def record(self) -> dict[str, Any]:
        """Return what is stored and hashed."""
        found = asdict(self)
        if not self.cls:
            del found["cls"]
        return found

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> CacheSpec:
        """Rebuild from JSON."""
        found = _tuples(cls, {"cls": False, **record})
        return cls(**{**found, "model": ModelSpec.from_dict(found["model"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """How embeddings are computed: no identity, but fixed within one cache so that its bytes are reproducible."""

    engine: str
    precision: str
    device: str
    batch_size: int
    compiled: bool = False


def canonical_json(record: Mapping[str, Any]) -> str:
    """Return the one JSON text of a record: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(record: Mapping[str, Any]) -> str:
    """Return the sha256 of a record's canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(record).encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, as 64 hexadecimal digits, reading it once in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield ``name: left != right`` for each field in which two records differ, nested ones with dotted names."""
    for key in sorted({*left, *right}):
        a, b = left.get(key), right.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif _plain(a) != _plain(b):
            yield f"{prefix}{key}: {_short(a)} != {_short(b)}"


def require_same(
    left: ModelSpec | CacheSpec | Pins, right: ModelSpec | CacheSpec | Pins, what: str, advice: str
) -> None:
    """Raise `IdentityError` naming the fields in which two identities differ.

    Parameters
    ----------
    left, right : ModelSpec, CacheSpec or Pins
        Two records of the same kind.
    what : str
        Which two things are compared, for the message.
    advice : str
        What the user can do about it.
    """
    found = list(differences(asdict(left), asdict(right)))
    if found:
        msg = f"{what} differ in {'; '.join(found)}; {advice}"
        raise IdentityError(msg)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:16]}..."


def _tuples(cls: type, record: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    if unknown := sorted(set(record) - names):
        msg = f"unknown identity fields {unknown}; the file was written by another release of dlprobe"
        raise IdentityError(msg)
    if missing := sorted(names - set(record)):
        msg = f"missing identity fields {missing}; the file was written by another release of dlprobe"
        raise IdentityError(msg)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
