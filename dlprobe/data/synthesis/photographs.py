"""The photographs that ship inside the wheels of scikit-image and scikit-learn, in pairs of donor and receiver."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dlprobe.data.images import read_image
from dlprobe.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Folder of the photographs below each package.
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}

#: Neighbours are each other's donors, colour with colour and grey with grey; no photograph stands in two pairs.
PAIRS: tuple[tuple[str, str], ...] = (
    ("skimage:astronaut.png", "skimage:coffee.png"),
    ("skimage:brick.png", "skimage:grass.png"),
    ("sklearn:china.jpg", "skimage:rocket.jpg"),
    ("skimage:chelsea.png", "sklearn:flower.jpg"),
    ("skimage:camera.png", "skimage:gravel.png"),
    ("skimage:hubble_deep_field.jpg", "skimage:retina.jpg"),
    ("skimage:ihc.png", "skimage:motorcycle_left.png"),
    ("skimage:coins.png", "skimage:moon.png"),
)


class Photograph(NamedTuple):
    """A photograph: ``source_id`` such as ``skimage:astronaut``, and RGB bytes of shape (height, width, 3)."""

    source_id: str
    pixels: NDArray[np.uint8]

    @property
    def name(self) -> str:
        """The part of the source_id that names a folder."""
        return self.source_id.partition(":")[2]

    @property
    def grey(self) -> bool:
        """Whether the three channels are equal everywhere."""
        return bool((self.pixels == self.pixels[..., :1]).all())


def load_photograph(name: str, side_px: int) -> Photograph:
    """Read one shipped photograph; nothing is ever downloaded.

    Parameters
    ----------
    name : str
        Package and file, such as ``skimage:astronaut.png``.
    side_px : int
        Longer sides are cut to it, about the centre.

    Raises
    ------
    DataError
        If the package is not installed or lacks the file.
    """
    package, _, file = name.partition(":")
    found = find_spec(package)  # finds the package without importing it
    if found is None or not found.submodule_search_locations:
        msg = f"the photograph {name} ships with the package {package}, which is not installed; install dlprobe again"
        raise DataError(msg)
    path = Path(found.submodule_search_locations[0]) / _FOLDERS[package] / file
    return Photograph(f"{package}:{path.stem}", _centre(read_image(path), side_px))


def _centre(pixels: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    y, x = (max(0, (side - side_px) // 2) for side in pixels.shape[:2])
    return pixels[y : y + side_px, x : x + side_px].copy()
