"""What determines an adaptation, beside manifest and backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlprobe.data.labels import SCHEMES, TRUTH_SCHEME
from dlprobe.errors import ProbeError
from dlprobe.probes.heads import HeadSpec

if TYPE_CHECKING:
    from dlprobe.extraction.planning import PlanSettings

#: What may move: the head alone; low-rank updates of queries and values too; every weight.
MODES = ("head", "lora", "full")
KEEP = ("best", "last")
#: Of AdamW on the backbone.
LEARNING_RATES = {"lora": 1e-4, "full": 1e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """Settings of `dlprobe.studies.finetune`.

    The head is trained in every mode as `dlprobe.studies.fit_caches` trains it, so that modes differ in what the
    backbone may do and in nothing else.

    Parameters
    ----------
    scheme, objective : str
        Labelling scheme and objective of the head (see `dlprobe.probes.HeadSpec`).
    epochs : int
        Passes over the training windows.
    batch_windows : int
        Windows in a step, over which ``dice-batch`` takes its Dice, however many go through the backbone at a time.
    head_learning_rate, head_weight_decay : float
        As in a `HeadSpec`.
    learning_rate : float, optional
        Of AdamW on the backbone; 1e-4 for ``lora``, 1e-5 for ``full`` by default.
    weight_decay : float
        Of AdamW, on matrices.
    layer_decay : float
        In ``full``, the rate of a block is that of the next one times this; in (0, 1].
    warmup : float
        Share of the steps in which the backbone's rate grows from 0, before the cosine takes it back; in [0, 1).
    clip_norm : float
        Largest Euclidean norm of the backbone's gradient; 0 for no limit.
    rank : int
        Of the low-rank updates of ``lora``.
    alpha : float
        Their scale is ``alpha / rank``.
    keep : {'best', 'last'}
        The epoch that validation prefers, or the last one.
    checkpoint_steps : int
        Steps between two checkpoints, beside those at the end of each epoch.
    stride_px, tiling, views, degrade
        As for `dlprobe.extraction.extract`: the windows are those that a cache would hold.
    hold_out : tuple of str
        Generators whose images are tested but neither train nor choose.
    seed : int
        Deals sources, orders windows, draws degradations and initial weights.

    Raises
    ------
    ProbeError
        If a value is out of its range.
    RegistryError
        If no scheme has that name.
    """

    scheme: str = TRUTH_SCHEME
    objective: str = "dice-batch"
    epochs: int = 10
    batch_windows: int = 16
    head_learning_rate: float = 0.3
    head_weight_decay: float = 1e-3
    learning_rate: float | None = None
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    warmup: float = 0.1
    clip_norm: float = 1.0
    rank: int = 64
    alpha: float = 64.0
    keep: str = "best"
    checkpoint_steps: int = 200
    stride_px: int = 504
    tiling: str = "spread"
    views: int = 1
    degrade: str | None = None
    hold_out: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        SCHEMES[self.scheme]  # raises with the nearest names
        if self.head.n_logits != 1:
            msg = f"scheme {self.scheme!r} has {self.head.n_logits} logits; fine-tuning knows schemes with one"
            raise ProbeError(msg)
        rules = {
            f"epochs {self.epochs}; it must be 1 or more": self.epochs >= 1,
            f"batch_windows {self.batch_windows}; it must be 1 or more": self.batch_windows >= 1,
            f"learning_rate {self.learning_rate}; it must be above 0": self.learning_rate is None
            or self.learning_rate > 0,
            f"weight_decay {self.weight_decay}; it must be 0 or more": self.weight_decay >= 0,
            f"layer_decay {self.layer_decay}; it must lie in (0, 1]": 0 < self.layer_decay <= 1,
            f"warmup {self.warmup}; it must lie in [0, 1)": 0 <= self.warmup < 1,
            f"clip_norm {self.clip_norm}; it must be 0 or more": self.clip_norm >= 0,
            f"rank {self.rank}; it must be 1 or more": self.rank >= 1,
            f"alpha {self.alpha}; it must be above 0": self.alpha > 0,
            f"keep {self.keep!r}; write one of {', '.join(KEEP)}": self.keep in KEEP,
            f"checkpoint_steps {self.checkpoint_steps}; it must be 1 or more": self.checkpoint_steps >= 1,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ProbeError(rule)

    @property
    def head(self) -> HeadSpec:
        """The head, as ``fit`` knows it; group 0 trains."""
        return HeadSpec(
            scheme=self.scheme,
            objective=self.objective,
            learning_rate=self.head_learning_rate,
            weight_decay=self.head_weight_decay,
            seed=self.seed,
        )

    @property
    def plan(self) -> PlanSettings:
        """What lays out the windows."""
        return {
            "stride_px": self.stride_px,
            "tiling": self.tiling,
            "views": self.views,
            "degrade": self.degrade,
            "seed": self.seed,
        }

    def rate(self, mode: str) -> float:
        """Return the backbone's learning rate in a mode."""
        return LEARNING_RATES[mode] if self.learning_rate is None else self.learning_rate


def require_mode(mode: str) -> None:
    """Raise `ProbeError` if there is no such mode."""
    if mode not in MODES:
        msg = f"no mode {mode!r}; write one of {', '.join(MODES)}"
        raise ProbeError(msg)
