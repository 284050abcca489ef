"""Chains of degradations: applied in order, written as text, reproducible from a seed.

The text form is ``jpeg:quality=80,subsampling=4:2:0|noise:sigma=2``; the units that end a field's name are left out of
it. An empty chain is written ``clean``.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from dlprobe.data.degrade.base import DEGRADATIONS, Degradation
from dlprobe.errors import DataError
from dlprobe.spec import canonical_json

if TYPE_CHECKING:
    from dlprobe.data.degrade.base import Pixels

CLEAN = "clean"
_UNITS = ("_pct", "_px", "_levels", "_share", "_turns")


@dataclass(frozen=True, slots=True)
class Chain:
    """Degradations in the order in which they happen.

    Parameters
    ----------
    steps : tuple of Degradation
        None of them for a clean image.
    """

    steps: tuple[Degradation, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Chain:
        """Return the chain that a text stands for.

        Raises
        ------
        DataError
            If a field is unknown, missing, doubled or of a wrong value.
        RegistryError
            If no degradation has a name.
        """
        if text.strip() == CLEAN:
            return cls()
        return cls(tuple(build_step(*split_step(part)) for part in text.split("|")))

    def __str__(self) -> str:
        """Return the one text of this chain: every field that has a value, in the order of its declaration."""
        return "|".join(map(_text, self.steps)) or CLEAN

    @property
    def geometric(self) -> bool:
        """Whether the region map can change."""
        return any(step.geometric for step in self.steps)


def degrade(pixels: Pixels, regions: Pixels, chain: Chain | str, seed: int) -> tuple[Pixels, Pixels]:
    """Apply a chain to an image and its region map.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width, 3)
        RGB; left as it is.
    regions : ndarray of uint8, shape (height, width)
        Region map; left as it is.
    chain : Chain or str
        What happens, or its text form.
    seed : int
        The same seed gives the same bytes. Each step has random numbers of its own, which depend on the seed and on
        its place in the chain only.

    Returns
    -------
    pixels, regions : ndarray of uint8
        Of one size, which differs from the given one if a step changes it.

    Raises
    ------
    DataError
        If the two sizes differ, or the chain cannot be read or applied.
    """
    if pixels.shape != (*regions.shape, 3) or pixels.dtype != np.uint8 or regions.dtype != np.uint8:
        msg = (
            f"pixels are {pixels.dtype} {pixels.shape} and regions {regions.dtype} {regions.shape}; "
            "they must be uint8 of shapes (height, width, 3) and (height, width)"
        )
        raise DataError(msg)
    steps = (Chain.parse(chain) if isinstance(chain, str) else chain).steps
    for place, step in enumerate(steps):
        pixels, regions = step.apply(pixels, regions, generator(seed, "step", place))
    return pixels, regions


def derive_seed(*parts: int | str) -> int:
    """Return a seed of 128 bits that follows from numbers and names, in any process and on any machine."""
    text = canonical_json({"seed": [part if isinstance(part, str) else int(part) for part in parts]})
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def generator(*parts: int | str) -> np.random.Generator:
    """Return random numbers that follow from numbers and names (PCG64)."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))


def split_step(text: str) -> tuple[str, dict[str, str]]:
    """Return name and written values of one step of a chain's text.

    Raises
    ------
    DataError
        If a value has no name or a name stands twice.
    """
    name, _, values = text.strip().partition(":")
    found: dict[str, str] = {}
    for part in values.split(",") if values else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value) or key in found:
            msg = f"{part.strip()!r} in {text.strip()!r} cannot be read; write each value once, as in jpeg:quality=80"
            raise DataError(msg)
        found[key] = value
    return name, found


def build_step(name: str, values: dict[str, str]) -> Degradation:
    """Return the degradation that a name and written values stand for; raises as `Chain.parse`."""
    kind = DEGRADATIONS[name]
    hints = get_type_hints(kind)
    known = {_short(field.name): field for field in fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        msg = f"{name} has no {' or '.join(unknown)}; it has {', '.join(known) or 'no values'}"
        raise DataError(msg)
    if missing := [key for key, field in known.items() if field.default is MISSING and key not in values]:
        msg = f"{name} needs a value for {' and '.join(missing)}, as in {name}:{missing[0]}=..."
        raise DataError(msg)
    return kind(**{known[key].name: _value(name, key, text, hints[known[key].name]) for key, text in values.items()})


def _value(name: str, key: str, text: str, hint: Any) -> str | int | float:
    if hint is str:
        return text
    whole = hint in (int, int | None)
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        msg = f"{name}:{key}={text} is not a {'whole ' if whole else ''}number"
        raise DataError(msg) from None
    return value


def _text(step: Degradation) -> str:
    values = [(_short(field.name), getattr(step, field.name)) for field in fields(step)]
    written = ",".join(f"{key}={_written(value)}" for key, value in values if value is not None)
    return f"{step.name}:{written}" if written else step.name


def _written(value: str | float) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _short(name: str) -> str:
    return next((name.removesuffix(unit) for unit in _UNITS if name.endswith(unit)), name)
