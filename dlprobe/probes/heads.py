"""What determines a head: one frozen record, which is its key everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from dlprobe.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OBJECTIVES = ("dice-batch", "dice-window", "bce", "dice+bce", "tversky", "focal", "lovasz")
#: The scheme whose targets are class numbers (PRISTINE, AUTOENCODED, INPAINTED); its heads have a softmax over them.
THREE_CLASS = "three-class"
THREE_CLASS_OBJECTIVES = ("dice-batch", "dice-window")
SCHEDULES = ("cosine", "constant")
#: 13 rates, as many as DINOv2's grid. Dice sums to a gradient of order one over a batch of any size, so that its useful
#: rates lie far above those of a mean cross-entropy.
LEARNING_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """One linear map to be fitted.

    Parameters
    ----------
    objective : str
        What is minimised: one of `OBJECTIVES`.
    scheme : str
        Name of the labelling scheme whose targets it learns.
    learning_rate : float
        Of the first step, on standardised embeddings.
    weight_decay : float
        Added to the gradient of the standardised weights as ``weight_decay * weights``; the bias has none.
    momentum : float
        Of stochastic gradient descent, in [0, 1).
    schedule : str
        ``cosine`` falls to 0 over the planned steps; ``constant`` stays.
    seed : int
        Of the initial weights and of the Poisson weights of windows.
    layer : int
        Which of the concatenated layers it sees; -1 sees all features.
    positive_weight : float
        A positive patch counts this many times; a soft target t counts as t positive and 1 - t negative patches.
    train_groups : tuple of int
        Groups of windows (folds of sources) that it is trained on, and by whose moments it is standardised.

    Raises
    ------
    ProbeError
        If a value is out of its range.
    """

    objective: str = "dice-batch"
    scheme: str
    learning_rate: float
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "cosine"
    seed: int = 0
    layer: int = -1
    positive_weight: float = 1.0
    train_groups: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        groups = self.train_groups
        rules = {
            f"objective {self.objective!r}; write one of {', '.join(OBJECTIVES)}": self.objective in OBJECTIVES,
            f"schedule {self.schedule!r}; write one of {', '.join(SCHEDULES)}": self.schedule in SCHEDULES,
            f"learning_rate {self.learning_rate}; it must be finite and above 0": 0 < self.learning_rate < math.inf,
            f"weight_decay {self.weight_decay}; it must be finite and 0 or more": 0 <= self.weight_decay < math.inf,
            f"momentum {self.momentum}; it must lie in [0, 1)": 0 <= self.momentum < 1,
            f"seed {self.seed}; it must be 0 or more": self.seed >= 0,
            f"positive_weight {self.positive_weight}; it must be finite and above 0": 0
            < self.positive_weight
            < math.inf,
            f"train_groups {groups}; name each group once, in ascending order, from 0 up": bool(groups)
            and groups == tuple(sorted(set(groups)))
            and groups[0] >= 0,
        }
        if self.scheme == THREE_CLASS:
            choice = " or ".join(THREE_CLASS_OBJECTIVES)
            rules[f"objective {self.objective!r} on three classes; write {choice}"] = (
                self.objective in THREE_CLASS_OBJECTIVES
            )
            rules[f"positive_weight {self.positive_weight} on three classes; it must be 1"] = self.positive_weight == 1
        for complaint, holds in rules.items():
            if not holds:
                msg = f"a head has {complaint}"
                raise ProbeError(msg)

    @property
    def n_logits(self) -> int:
        """Three for the scheme ``three-class``, else one."""
        return 3 if self.scheme == THREE_CLASS else 1


def default_grid(
    schemes: Iterable[str],
    train_groups_per_fold: Iterable[Sequence[int]] = ((0,),),
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    seeds: Sequence[int] = (0,),
    objectives: Sequence[str] = ("dice-batch",),
    layers: Sequence[int] = (-1,),
    positive_weights: Sequence[float] = (1.0,),
) -> list[HeadSpec]:
    """Return every combination of the given settings as heads.

    Parameters
    ----------
    schemes : iterable of str
        Names of labelling schemes.
    train_groups_per_fold : iterable of sequence of int
        For each fold, the groups that its heads are trained on.
    learning_rates, weight_decays, seeds, objectives, layers, positive_weights : sequence
        The grid; 13 learning rates x 3 weight decays by default.

    Returns
    -------
    list of HeadSpec
        Schemes vary slowest, learning rates fastest.
    """
    folds = [tuple(sorted(groups)) for groups in train_groups_per_fold]
    cells = product(schemes, objectives, folds, seeds, layers, positive_weights, weight_decays, learning_rates)
    return [
        HeadSpec(
            scheme=scheme,
            objective=objective,
            train_groups=groups,
            seed=seed,
            layer=layer,
            positive_weight=positive_weight,
            weight_decay=weight_decay,
            learning_rate=learning_rate,
        )
        for scheme, objective, groups, seed, layer, positive_weight, weight_decay, learning_rate in cells
    ]


def edge_of_grid(chosen: HeadSpec, grid: Iterable[HeadSpec]) -> list[str]:
    """Say in which settings a chosen head lies at the edge of its grid, so that a better one may lie outside.

    Parameters
    ----------
    chosen : HeadSpec
        The head that a selection picked.
    grid : iterable of HeadSpec
        All heads it was picked from; those of other schemes, objectives and layers do not count.

    Returns
    -------
    list of str
        One sentence for each setting; empty inside the grid, or where fewer than three values were tried, of which
        every one is at an edge. A weight decay of 0 is no edge: there is nothing below it.
    """
    kind = (chosen.scheme, chosen.objective, chosen.layer)
    rivals = [head for head in grid if (head.scheme, head.objective, head.layer) == kind]
    found = []
    for name in ("learning_rate", "weight_decay"):
        values = sorted({getattr(head, name) for head in rivals})
        value = getattr(chosen, name)
        if len(values) > 2 and value in (values[0], values[-1]) and value > 0:
            side = "smallest" if value == values[0] else "largest"
            found.append(f"{name} {value:g} is the {side} of the grid ({values[0]:g} to {values[-1]:g}); widen it")
    return found
