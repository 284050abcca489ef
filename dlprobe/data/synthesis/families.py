"""The family of a photograph: real, auto-encoded, spliced and fully regenerated images."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.data.provenance import Variant
from dlprobe.data.synthesis.inpainters import INPAINTERS
from dlprobe.data.synthesis.masks import MASK_SHARES, blob_mask, window_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from dlprobe.data.synthesis.autoencoders import Autoencoder
    from dlprobe.data.synthesis.photographs import Photograph

#: The auto-encoder that training may see, and the one that only test images have gone through.
TRAINING_AUTOENCODER, HELD_OUT_AUTOENCODER = "pca", "sr"
#: Which content goes through which auto-encoder.
COMBINATIONS: tuple[tuple[str, str], ...] = (
    ("telea", TRAINING_AUTOENCODER),
    ("ns", TRAINING_AUTOENCODER),
    ("donor", TRAINING_AUTOENCODER),
    ("telea", HELD_OUT_AUTOENCODER),
    ("donor", HELD_OUT_AUTOENCODER),
)
#: Generators of images that are for testing only: no probe may be fitted on them.
HELD_OUT_GENERATORS: tuple[str, ...] = (
    HELD_OUT_AUTOENCODER,
    *(f"{filling}+{coder}" for filling, coder in COMBINATIONS if coder == HELD_OUT_AUTOENCODER),
)


class Member(NamedTuple):
    """One image of a family; `mask` is None for `real` and `ae`, and names are as in the manifest."""

    variant: Variant
    generator: str
    mask_kind: str
    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None


def family(
    photograph: Photograph,
    donor: Photograph,
    autoencoders: Mapping[str, Autoencoder],
    rng: np.random.Generator,
    *,
    window_px: int,
    turn: int,
) -> Iterator[Member]:
    """Yield the images that come from one photograph.

    Each inpainter has one mask, which all its images share, so that `sp` and `fr` and the two auto-encoders can be
    compared on the same region; the mask's size goes round with the inpainter and with `turn`.

    Parameters
    ----------
    photograph, donor : Photograph
        Receiver, and the other photograph of its pair.
    autoencoders : mapping of str to Autoencoder
        ``pca`` and ``sr``, fitted on neither of the two photographs.
    rng : Generator
        Decides masks and the place of the donor's content.
    window_px : int
        Side of the windows that a mask's share refers to.
    turn : int
        Number of the photograph, which rotates the mask sizes.
    """
    yield Member(Variant.REAL, "", "", photograph.pixels, None)
    for name in (TRAINING_AUTOENCODER, HELD_OUT_AUTOENCODER):
        yield Member(Variant.AE, name, "", through(autoencoders[name], photograph.pixels, grey=photograph.grey), None)
    size = photograph.pixels.shape[0], photograph.pixels.shape[1]
    for place, filling in enumerate(dict.fromkeys(filling for filling, _ in COMBINATIONS)):
        kind = tuple(MASK_SHARES)[(turn + place) % len(MASK_SHARES)]
        mask = blob_mask(rng, size, window_frame(rng, size, window_px), MASK_SHARES[kind])
        filled = INPAINTERS[filling](photograph.pixels, mask, donor.pixels, rng)
        for name in (coder for other, coder in COMBINATIONS if other == filling):
            whole = through(autoencoders[name], filled, grey=photograph.grey)
            spliced = np.where(mask[..., None], whole, photograph.pixels)
            yield Member(Variant.SP, f"{filling}+{name}", kind, spliced, mask)
            yield Member(Variant.FR, f"{filling}+{name}", kind, whole, mask)


def through(autoencoder: Autoencoder, pixels: NDArray[np.uint8], *, grey: bool) -> NDArray[np.uint8]:
    """Return pixels that went through an auto-encoder; a grey photograph stays grey.

    Else the faint colour that a colour auto-encoder gives to grey would betray it without looking at any texture.
    """
    decoded = autoencoder(pixels)
    if not grey:
        return decoded
    mean = np.rint(decoded.mean(axis=2, keepdims=True)).astype(np.uint8)
    return np.repeat(mean, 3, axis=2)
