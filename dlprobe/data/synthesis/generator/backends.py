"""Back ends of the generator: what fills a mask, and what auto-encodes. The offline ones need no model."""

from __future__ import annotations

from functools import lru_cache
from inspect import signature
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dlprobe.data.synthesis.autoencoders import (
    fit_pca,
    fit_super_resolution,
    pca_moments,
    super_resolution_moments,
)
from dlprobe.data.synthesis.families import through
from dlprobe.data.synthesis.inpainters import INPAINTERS
from dlprobe.errors import DataError
from dlprobe.extras import require
from dlprobe.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dlprobe.data.synthesis.autoencoders import Autoencoder, Moments
    from dlprobe.data.synthesis.generator.sources import Source
    from dlprobe.data.synthesis.photographs import Photograph

#: Offline auto-encoders: how to sum up a photograph, and how to fit on such sums.
AUTOENCODERS: dict[str, tuple[Callable[[NDArray[np.uint8]], Moments], Callable[[Sequence[Moments]], Autoencoder]]] = {
    "pca": (pca_moments, fit_pca),
    "sr": (super_resolution_moments, fit_super_resolution),
}
#: What the offline back end makes where nothing is asked for.
OFFLINE_GENERATORS = ("telea+pca", "donor+pca")
#: The filling that takes content of another photograph.
DONATING = "donor"
#: Photographs that the auto-encoders are fitted on at most: they are small linear maps, and their sums stay in memory.
FITTING_PHOTOGRAPHS = 64
#: Fitted auto-encoders that are kept, for the photographs that threads work on.
_FITS_KEPT = 32
#: Longest side of a photograph with the offline back end, as in the demo: two windows of 504 px.
OFFLINE_SIDE_PX = 1016


class Made(NamedTuple):
    """A whole image that a back end made, under the names of the manifest, with what it was made with."""

    generator: str
    pixels: NDArray[np.uint8]
    parameters: dict[str, object]
    donor_id: str = ""


class Synthesizer(Protocol):
    """What a back end has to do; one is built by an entry of `BACKENDS` from its own options.

    `side_px` is the longest side of a photograph where the user names none, `multiple_px` what has to divide sides,
    `parallel` whether several threads may call it, `donating` whether it uses other photographs' content.
    """

    side_px: int
    multiple_px: int
    parallel: bool
    donating: bool

    def prepare(self, sources: Sequence[Source], donors: Mapping[str, Source]) -> None:
        """See all photographs before the first is altered; raise `DataError` if they are too few."""
        ...

    def autoencoded(self, photograph: Photograph) -> Iterator[Made]:
        """Yield the photograph after each auto-encoder's round trip."""
        ...

    def inpainted(
        self, photograph: Photograph, donor: Photograph | None, mask: NDArray[np.bool_], rng: np.random.Generator
    ) -> Iterator[Made]:
        """Yield fully regenerated images: the mask holds new content, and everything went through an auto-encoder."""
        ...


#: Back ends by name; called with the options that the user gave, by name.
BACKENDS: Registry[Callable[..., Synthesizer]] = Registry("synthesis back end", "dlprobe.synthesizers")


def open_backend(name: str, **options: object) -> Synthesizer:
    """Return a back end.

    Parameters
    ----------
    name : str
        Of `BACKENDS`.
    **options
        Of the back end; one whose value is None counts as not given.

    Raises
    ------
    RegistryError
        If no back end has that name.
    DataError
        If it has no such option, or cannot be set up.
    """
    make = BACKENDS[name]
    given = {option: value for option, value in options.items() if value is not None}
    known = list(signature(make).parameters)
    if unknown := next((option for option in given if option not in known), None):
        msg = f"the back end {name} has no option {unknown}; it has {', '.join(known)}"
        raise DataError(msg)
    return make(**given)


@BACKENDS.register("offline")
class OfflineSynthesizer:
    """Classical fillings and two linear auto-encoders, fitted on other photographs than those that they alter.

    Parameters
    ----------
    generators : sequence of str
        Such as ``telea+pca``: a filling (an entry of `INPAINTERS`) and an auto-encoder (``pca`` or ``sr``).

    Raises
    ------
    DataError, RegistryError
        If a generator is not such a pair, or there is none.
    """

    multiple_px = 1
    side_px = OFFLINE_SIDE_PX
    parallel = True

    def __init__(self, generators: Sequence[str] = OFFLINE_GENERATORS) -> None:
        if not generators:
            msg = "no generator is named; give some such as telea+pca"
            raise DataError(msg)
        self._pairs = [_pair(generator) for generator in dict.fromkeys(generators)]
        self.donating = any(filling == DONATING for filling, _ in self._pairs)
        self._coders = list(dict.fromkeys(coder for _, coder in self._pairs))
        self._donors: Mapping[str, Source] = {}
        self._moments: dict[str, dict[str, Moments]] = {}
        self._fitted = lru_cache(maxsize=_FITS_KEPT)(self._fit)

    def prepare(self, sources: Sequence[Source], donors: Mapping[str, Source]) -> None:
        """Sum up the photographs that the auto-encoders are fitted on, evenly spread over all.

        Raises
        ------
        DataError
            If leaving out a photograph and its donor leaves none to fit on.
        """
        needed = 3 if self.donating else 2
        if len(sources) < needed:
            msg = (
                f"the offline auto-encoders are fitted on other photographs than {_left_out(self.donating)}, and "
                f"{len(sources)} can be used; give at least {needed}, or take --backend diffusers"
            )
            raise DataError(msg)
        self._donors = donors
        step = -(-len(sources) // FITTING_PHOTOGRAPHS)
        for source in islice(sources, 0, None, step):
            pixels = source.read().pixels
            self._moments[source.source_id] = {name: AUTOENCODERS[name][0](pixels) for name in self._coders}

    def autoencoded(self, photograph: Photograph) -> Iterator[Made]:
        """Yield the photograph after each auto-encoder's round trip."""
        fitted_on = self._fitted_on(photograph)
        for name in self._coders:
            pixels = through(self._fitted(name, tuple(fitted_on)), photograph.pixels, grey=photograph.grey)
            yield Made(name, pixels, {"autoencoder": name, "fitted_on": fitted_on})

    def inpainted(
        self, photograph: Photograph, donor: Photograph | None, mask: NDArray[np.bool_], rng: np.random.Generator
    ) -> Iterator[Made]:
        """Yield fully regenerated images; those of one filling differ in the auto-encoder alone."""
        fitted_on = self._fitted_on(photograph)
        filled: dict[str, NDArray[np.uint8]] = {}
        given = photograph if donor is None else donor
        for filling, name in self._pairs:
            if filling not in filled:
                filled[filling] = INPAINTERS[filling](photograph.pixels, mask, given.pixels, rng)
            pixels = through(self._fitted(name, tuple(fitted_on)), filled[filling], grey=photograph.grey)
            parameters: dict[str, object] = {"inpainter": filling, "autoencoder": name, "fitted_on": fitted_on}
            yield Made(f"{filling}+{name}", pixels, parameters, given.source_id if filling == DONATING else "")

    def _fitted_on(self, photograph: Photograph) -> list[str]:
        left_out = {photograph.source_id}
        if photograph.source_id in self._donors:
            left_out.add(self._donors[photograph.source_id].source_id)
        return [name for name in self._moments if name not in left_out]

    def _fit(self, name: str, fitted_on: tuple[str, ...]) -> Autoencoder:
        return AUTOENCODERS[name][1]([self._moments[source][name] for source in fitted_on])


@BACKENDS.register("diffusers")
def diffusers_synthesizer(
    *,
    model: str = "",
    revision: str = "",
    prompt: str = "",
    steps: int | None = None,
    guidance: float | None = None,
    strength: float | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Synthesizer:
    """Load an inpainting pipeline of diffusers (extra ``diffusers``); see `DiffusionSettings` for the options.

    Raises
    ------
    ExtraError
        If diffusers is not installed.
    DataError
        If no model is named, or it cannot be loaded or used as asked.
    """
    require("diffusers", "the back end diffusers", "diffusers", "transformers")
    from dlprobe.data.synthesis.generator.diffusion import DiffusionSettings, DiffusionSynthesizer

    settings = DiffusionSettings(
        model=model,
        revision=revision,
        prompt=prompt,
        steps=steps,
        guidance=guidance,
        strength=strength,
        device=device,
        precision=precision,
    )
    return DiffusionSynthesizer(settings)


def _pair(generator: str) -> tuple[str, str]:
    filling, _, coder = generator.partition("+")
    INPAINTERS[filling]
    if coder not in AUTOENCODERS:
        msg = (
            f"generator {generator!r} names no offline auto-encoder; write such as {filling}+{next(iter(AUTOENCODERS))}"
        )
        raise DataError(msg)
    return filling, coder


def _left_out(donating: bool) -> str:
    return "the altered one and its donor" if donating else "the altered one"
