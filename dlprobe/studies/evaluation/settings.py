"""What an evaluation asks for, and the two words that its modules share: yardstick and condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from dlprobe.data.degrade import Chain, find_preset
from dlprobe.data.manifest import SPLITS
from dlprobe.errors import DataError
from dlprobe.localization import PostProcessing
from dlprobe.metrics import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dlprobe.metrics import Protocol

Seen = Literal["leave-out", "refuse", "keep"]

#: Where published code marks a pixel; the toolkit's own protocol follows the probe's card as well.
PUBLISHED_THRESHOLD = 0.5
#: The protocol whose threshold is a policy.
OWN_PROTOCOL = "dlprobe"
#: In the order in which tables show them.
ALL_PROTOCOLS = (OWN_PROTOCOL, "tgif", "trufor", "imdlbenco", "imdlbenco-double", "safire", "mvss")
CLEAN = "clean"
#: What post-processing does is shown for these steps unless others are asked for.
SHOWN_STEPS = PostProcessing(guided_radius_px=8, fill_holes=True, min_area_share=0.001, smooth_radius_px=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """Settings of `dlprobe.studies.evaluate`.

    Parameters
    ----------
    protocols : tuple of str
        Names in `dlprobe.metrics.PROTOCOLS`.
    threshold : float, optional
        From which the protocol ``dlprobe`` marks, in (0, 1); that of the probe's card by default. Published protocols
        keep their own, one half.
    degrade : tuple of str
        Presets of degradations (or chains of them) under which everything is scored again.
    split : str, optional
        ``train``, ``val``, ``test``, ``calibration`` or ``all``; by default ``test`` if the manifest names such images,
        else all.
    seen : {"leave-out", "refuse", "keep"}
        What happens to images of sources that trained or chose the probe, as its card names them.
    post : PostProcessing
        Steps whose effect is shown; no score of a protocol is post-processed.
    level : float
        Nominal coverage of intervals.
    resamples : int
        Bootstrap samples.
    seed : int
        Of the resampling and of degradations.

    Raises
    ------
    DataError
        If a value is none of those listed.
    RegistryError
        If there is no such protocol.
    """

    protocols: tuple[str, ...] = ALL_PROTOCOLS
    threshold: float | None = None
    degrade: tuple[str, ...] = ()
    split: str | None = None
    seen: Seen = "leave-out"
    post: PostProcessing = SHOWN_STEPS
    level: float = 0.95
    resamples: int = 1999
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.protocols:
            PROTOCOLS[name]  # raises with the nearest names
        if not self.protocols or len(set(self.protocols)) < len(self.protocols):
            msg = "protocols are missing or named twice; name each once, or none for all of them"
            raise DataError(msg)
        if self.threshold is not None and not 0 < self.threshold < 1:
            msg = f"threshold is {self.threshold}; it must lie between 0 and 1"
            raise DataError(msg)
        _require_one_of("split", self.split, (None, *SPLITS, "all"))
        _require_one_of("seen", self.seen, get_args(Seen))


@dataclass(frozen=True, slots=True)
class Yardstick:
    """A protocol at a threshold.

    Attributes
    ----------
    label : str
        In tables: the protocol's name, with ``@0.5`` where it is taken at a second threshold.
    protocol : Protocol
        What scores a map.
    threshold : float
        From or above which a pixel is marked.
    policy : str
        Where the threshold comes from.
    """

    label: str
    protocol: Protocol
    threshold: float
    policy: str

    def column(self, metric: str) -> str:
        """Return a metric's full name: label, grid and metric, such as ``tgif.original_px.f1``."""
        return f"{self.label}.{self.protocol.grid}.{metric}"

    @property
    def headline(self) -> str:
        """The metric on fakes by which kinds and conditions are compared."""
        return "iou" if self.protocol.name == OWN_PROTOCOL else "f1"


@dataclass(frozen=True, slots=True)
class Condition:
    """One degradation at one strength, the same for all images; `presets` are those that ask for it."""

    name: str
    strength: float
    chain: str
    presets: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing happens to the image."""
        return self.chain == CLEAN

    @property
    def geometric(self) -> bool:
        """Whether the region map can change."""
        return Chain.parse(self.chain).geometric


def yardsticks(settings: EvaluateSettings, card_threshold: float, card_policy: str) -> list[Yardstick]:
    """Return the protocols at their thresholds: the own one at the policy's, then at one half, others at one half."""
    found = []
    for name in settings.protocols:
        protocol = PROTOCOLS[name]
        published = Yardstick(name, protocol, PUBLISHED_THRESHOLD, "published with the protocol")
        if name != OWN_PROTOCOL:
            found.append(published)
            continue
        by_hand = settings.threshold is not None
        cut = card_threshold if settings.threshold is None else settings.threshold
        found.append(Yardstick(name, protocol, cut, "given by hand" if by_hand else card_policy))
        if cut != PUBLISHED_THRESHOLD:
            found.append(Yardstick(f"{name}@{PUBLISHED_THRESHOLD}", protocol, PUBLISHED_THRESHOLD, "one half"))
    return found


def conditions(presets: Sequence[str]) -> list[Condition]:
    """Return the clean condition and every level of the presets, each chain once.

    Raises
    ------
    RegistryError, DataError
        If there is no such preset, or a chain cannot be read.
    """
    found: dict[tuple[str, str], Condition] = {("", CLEAN): Condition(CLEAN, 0.0, CLEAN, tuple(presets))}
    for preset in presets:
        for level in find_preset(preset).levels:
            chain = str(level.chain)
            if chain == CLEAN:
                continue
            key = level.name, chain
            earlier = found[key].presets if key in found else ()
            found[key] = Condition(level.name, level.strength, chain, tuple(dict.fromkeys((*earlier, preset))))
    return list(found.values())


def _require_one_of(name: str, value: object, choices: Iterable[object]) -> None:
    known = list(choices)
    if value not in known:
        words = ", ".join(str(choice) for choice in known if choice is not None)
        msg = f"{name} is {value!r}; write one of {words}"
        raise DataError(msg)
