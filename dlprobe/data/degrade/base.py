"""What a degradation is: a frozen record with a name, applied to pixels and region map together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from dlprobe.errors import DataError
from dlprobe.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

Pixels: TypeAlias = NDArray[np.uint8]
D = TypeVar("D", bound="type[Degradation]")


@dataclass(frozen=True, slots=True)
class Degradation(ABC):
    """One thing that happens to an image; its fields say all about it but the random numbers.

    Attributes
    ----------
    name : str
        What it is called in the text form of a chain.
    geometric : bool
        Whether it can move pixels or change the size, so that the region map changes too.
    """

    name: ClassVar[str]
    geometric: ClassVar[bool] = False

    @abstractmethod
    def apply(self, pixels: Pixels, regions: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        """Return new pixels and region map.

        Parameters
        ----------
        pixels : ndarray of uint8, shape (height, width, 3)
            RGB; left as it is.
        regions : ndarray of uint8, shape (height, width)
            Region map; left as it is.
        rng : Generator
            The only source of randomness.
        """


class Photometric(Degradation):
    """A degradation that leaves every pixel in its place."""

    __slots__ = ()

    def apply(self, pixels: Pixels, regions: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        """Return new pixels, and the region map as it is."""
        return self.change(pixels, rng), regions

    @abstractmethod
    def change(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Return new pixels of the same size."""


#: All kinds of degradation; other packages announce theirs under the entry-point group.
DEGRADATIONS: Registry[type[Degradation]] = Registry("degradation", "dlprobe.degradations")


def named(name: str) -> Callable[[D], D]:
    """Return a decorator that names and registers a class of degradations."""

    def add(kind: D) -> D:
        kind.name = name
        DEGRADATIONS.register(name)(kind)
        return kind

    return add


def require_within(low: float, high: float, **values: float) -> None:
    """Raise `DataError` naming the first value that is not a number from `low` to `high`."""
    for name, value in values.items():
        if not low <= value <= high:
            msg = f"{name} is {value}; it must lie between {low:g} and {high:g}"
            raise DataError(msg)


def require_known(what: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `DataError` listing what is known if `value` is not among it."""
    if value not in known:
        msg = f"no {what} {value!r}; write one of {', '.join(known)}"
        raise DataError(msg)
