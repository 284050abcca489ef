"""Presets: a random mix to train with, and a ladder of strengths to evaluate with, both from one set of chains."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

from dlprobe.data.degrade.base import DEGRADATIONS
from dlprobe.data.degrade.chain import CLEAN, Chain, build_step, degrade, derive_seed, generator, split_step
from dlprobe.data.degrade.geometry import resample
from dlprobe.data.samples import Sample
from dlprobe.errors import DataError
from dlprobe.registry import Registry
from dlprobe.spec import fingerprint

if TYPE_CHECKING:
    import numpy as np

    from dlprobe.data.degrade.base import Degradation

_DECIMALS = 3


class Level(NamedTuple):
    """One rung of a ladder: what is done, how strongly in the source's own unit, and the chain that does it."""

    name: str
    strength: float
    chain: Chain


@dataclass(frozen=True, slots=True)
class Stage:
    """One turn of a random mix: with some probability, one of several steps happens.

    Parameters
    ----------
    probability : float
        That the stage happens at all.
    options : tuple of str
        Steps as in a chain's text, each as likely. A value ``low..high`` is drawn evenly between the two (whole numbers
        where both ends are), a value ``a/b/c`` is one of those.
    """

    probability: float
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Preset:
    """Degradations under one name.

    Parameters
    ----------
    name : str
        What it is registered as.
    source : str
        Where its numbers come from.
    ladder : tuple of (str, float, str)
        Name, strength and chain of each level of the evaluation, the clean image first.
    stages : tuple of Stage
        The random mix; where there are none, a draw is one of the ladder's levels, each as likely.
    """

    name: str
    source: str
    ladder: tuple[tuple[str, float, str], ...]
    stages: tuple[Stage, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines a draw or a level, as 64 hexadecimal digits."""
        record = asdict(self)
        return fingerprint({key: record[key] for key in ("ladder", "stages")})

    @property
    def levels(self) -> list[Level]:
        """The levels of the evaluation, the clean image first."""
        return [Level(name, strength, Chain.parse(text)) for name, strength, text in self.ladder]

    def draw(self, seed: int, view: int, image_key: str) -> Chain:
        """Return the chain of one view of one image.

        Parameters
        ----------
        seed : int
            Of the whole run.
        view : int
            Number of the view; 0 is the clean one.
        image_key : str
            What tells the image from others: its path in the manifest, or its sha256.

        Raises
        ------
        DataError
            If the view is negative.
        """
        if view < 0:
            msg = f"view is {view}; views are numbered from 0, the clean one"
            raise DataError(msg)
        if view == 0:
            return Chain()
        rng = generator(seed, "draw", image_key, view)
        if not self.stages:
            return Chain.parse(self.ladder[int(rng.integers(len(self.ladder)))][2])
        steps = [_drawn(stage, rng) for stage in self.stages if rng.random() < stage.probability]
        return Chain(tuple(steps))


#: All presets; other packages announce theirs under the entry-point group.
PRESETS: Registry[Preset] = Registry("preset of degradations", "dlprobe.degrade_presets")


def find_preset(text: str) -> Preset:
    """Return a registered preset, or one that gives every view the chain that the text stands for.

    Raises
    ------
    RegistryError
        If the text is neither the name of a preset nor that of a degradation.
    DataError
        If it is a chain that cannot be read.
    """
    if ":" not in text and "|" not in text and text.strip() not in {CLEAN, *DEGRADATIONS}:
        return PRESETS[text]
    chain = str(Chain.parse(text))
    stages = () if chain == CLEAN else tuple(Stage(1.0, (step,)) for step in chain.split("|"))
    ladder = ((CLEAN, 0.0, CLEAN), (chain, 1.0, chain))[: 1 + bool(stages)]
    return Preset(chain, "given as a chain", ladder, stages)


def view_sample(sample: Sample, preset: str | Preset, seed: int, view: int, key: str) -> Sample:
    """Return one view of a decoded image: the sample itself for view 0, else degraded by a random draw.

    A view has the size of its sample, so that windows lie where the plan put them: what a crop or a resize has changed
    is brought back to that size (Pillow bicubic; nearest neighbour for the region map).

    Parameters
    ----------
    sample : Sample
        Pixels and region map at working size; left as they are.
    preset : str or Preset
        A registered name, the text of a chain, or a preset.
    seed : int
        Of the whole run.
    view : int
        Number of the view.
    key : str
        What tells the image from others: its path in the manifest, or its sha256.

    Returns
    -------
    Sample
        With the hash of the file that it was decoded from. It follows from the arguments alone: the same bytes in any
        process, whatever was drawn before.
    """
    chosen = find_preset(preset) if isinstance(preset, str) else preset
    chain = chosen.draw(seed, view, key)
    if not chain.steps:
        return sample
    pixels, regions = degrade(sample.pixels, sample.regions, chain, derive_seed(seed, "view", key, view))
    size = sample.pixels.shape[0], sample.pixels.shape[1]
    return Sample(resample(pixels, size, "bicubic"), resample(regions, size, "nearest"), sample.sha256)


def _drawn(stage: Stage, rng: np.random.Generator) -> Degradation:
    name, values = split_step(stage.options[int(rng.integers(len(stage.options)))])
    return build_step(name, {key: _drawn_value(text, rng) for key, text in values.items()})


def _drawn_value(text: str, rng: np.random.Generator) -> str:
    if ".." in text:
        low, high = text.split("..")
        if "." not in low + high:
            return str(rng.integers(int(low), int(high), endpoint=True))
        return repr(round(float(rng.uniform(float(low), float(high))), _DECIMALS))
    choices = text.split("/")
    return choices[int(rng.integers(len(choices)))] if len(choices) > 1 else text
