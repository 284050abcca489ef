"""What is known of every head while a fit runs, and the checkpoint that holds it all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.errors import ProbeError
from dlprobe.publish import publish
from dlprobe.spec import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.probes.heads import HeadSpec
    from dlprobe.probes.moments import GroupMoments

SCHEMA = {"kind": "dlprobe-fit-checkpoint", "version": 1}
_METADATA_KEY = "dlprobe"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedHead:
    """A head after training, or at the end of an epoch.

    Parameters
    ----------
    spec : HeadSpec
        Its key.
    weights : ndarray of float64, shape (width,)
        On raw embeddings; (3, width) for ``three-class``.
    bias : float
        On raw embeddings; an ndarray of shape (3,) for ``three-class``.
    loss_by_epoch : tuple of float
        Mean over the steps of each epoch that it was trained for.
    steps : int
        Steps after which it had these weights.
    flag : str or None
        Why the head is not to be trusted; None if nothing is wrong with it.
    epoch : int
        Epoch at whose end it had these weights: the last one, or the best under `watch`.
    score : float or None
        Of these weights under `watch`; None without.
    lone_share : float or None
        For ``dice-window``, the share of absolute gradient that came from windows without positives; else None.
    """

    spec: HeadSpec
    weights: NDArray[np.float64]
    bias: Any
    loss_by_epoch: tuple[float, ...]
    steps: int
    flag: str | None = None
    epoch: int = 0
    score: float | None = None
    lone_share: float | None = None


class Ledger:
    """Arrays over all heads, or over all their columns, in the caller's order.

    Parameters
    ----------
    heads : sequence of HeadSpec
    epochs, steps_per_epoch, width : int
    """

    def __init__(self, heads: Sequence[HeadSpec], epochs: int, steps_per_epoch: int, width: int) -> None:
        self.heads = heads
        self.steps_per_epoch = steps_per_epoch
        sizes = [head.n_logits for head in heads]
        self.first = np.concatenate([[0], np.cumsum(sizes)])
        columns = int(self.first[-1])
        self.loss = np.full((epochs, len(heads)), np.nan)
        self.score = np.full(len(heads), np.nan)
        self.epoch = np.zeros(len(heads), np.int64)  # whose weights are kept
        self.trained = np.zeros(len(heads), np.int64)  # how many epochs
        self.running = np.ones(len(heads), np.uint8)
        self.weights = np.zeros((columns, width))
        self.bias = np.zeros(columns)
        self.shown = np.zeros((2, columns))  # positive, negative patches
        self.gradient = np.zeros((2, columns))  # from windows without positives, from all

    def columns_of(self, chosen: Sequence[int]) -> NDArray[np.int64]:
        """Return the columns of some heads, in their order."""
        return np.concatenate([np.arange(self.first[i], self.first[i + 1]) for i in chosen])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything that changes, by name; they are the originals."""
        names = ("loss", "score", "epoch", "trained", "running", "weights", "bias", "shown", "gradient")
        return {name: getattr(self, name) for name in names}

    def keep(self, index: int, epoch: int, weights: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        """Keep the weights that a head has at the end of an epoch."""
        columns = slice(self.first[index], self.first[index + 1])
        self.weights[columns], self.bias[columns], self.epoch[index] = weights, bias, epoch

    def improves(self, index: int, score: float) -> bool:
        """Tell whether a score is the first of a head, or above those before; not a number is never above."""
        before = self.score[index]
        return bool(self.trained[index] == 1 or score > before or (np.isnan(before) and not np.isnan(score)))

    def fitted(self, index: int) -> FittedHead:
        """Return a head with the weights that are kept."""
        columns = slice(self.first[index], self.first[index + 1])
        made = self.describe(index, int(self.epoch[index]), self.weights[columns], self.bias[columns])
        score = self.score[index]
        return replace(made, score=None if np.isnan(score) else float(score))

    def describe(self, index: int, epoch: int, weights: NDArray[np.float64], bias: NDArray[np.float64]) -> FittedHead:
        """Return a head with the weights (logits, width) and bias (logits,) of the end of an epoch."""
        head = self.heads[index]
        columns = slice(self.first[index], self.first[index + 1])
        losses = self.loss[: self.trained[index], index]
        lone, total = self.gradient[:, columns].sum(axis=1)
        single = head.n_logits == 1
        return FittedHead(
            spec=head,
            weights=weights[0].copy() if single else weights.copy(),
            bias=float(bias[0]) if single else bias.copy(),
            loss_by_epoch=tuple(losses.tolist()),
            steps=(epoch + 1) * self.steps_per_epoch,
            flag=_flag(losses, weights, bias, self.shown[:, columns]),
            epoch=epoch,
            lone_share=float(lone / total) if head.objective == "dice-window" and total > 0 else None,
        )


def identity_of_fit(heads: Sequence[HeadSpec], moments: GroupMoments, settings: Mapping[str, Any]) -> str:
    """Return the fingerprint of everything that determines a fit but the batches themselves."""
    digest = hashlib.sha256()
    for array in (moments.count, moments.sum, moments.sum_of_squares):
        digest.update(np.ascontiguousarray(array).tobytes())
    return fingerprint({"heads": [asdict(head) for head in heads], "moments": digest.hexdigest(), **settings})


def write_checkpoint(path: Path, arrays: Mapping[str, NDArray[Any]], identity: str, epochs_done: int) -> None:
    """Write a checkpoint, atomically, in place of the one before."""
    from safetensors.numpy import save

    card = {"schema": SCHEMA, "identity": identity, "epochs_done": epochs_done}
    with publish(path) as scratch:
        content = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        scratch.write_bytes(save(content, metadata={_METADATA_KEY: json.dumps(card)}))


def read_checkpoint(path: Path, identity: str) -> tuple[dict[str, NDArray[Any]], int]:
    """Return the arrays of a checkpoint, and how many epochs it has behind it.

    Raises
    ------
    ProbeError
        If the file is damaged or something else, or belongs to a fit with other settings or embeddings.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            card = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        msg = f"{path} is no whole checkpoint ({error}); remove it to start the fit again"
        raise ProbeError(msg) from error
    if card.get("schema") != SCHEMA:
        msg = f"{path} is no checkpoint of this release; remove it to start the fit again"
        raise ProbeError(msg)
    if card["identity"] != identity:
        msg = f"{path} belongs to a fit with other heads, settings or embeddings; remove it, or give another path"
        raise ProbeError(msg)
    return arrays, int(card["epochs_done"])


def _flag(
    losses: NDArray[np.float64], weights: NDArray[np.float64], bias: NDArray[np.float64], shown: NDArray[np.float64]
) -> str | None:
    positives, negatives = shown
    if not (positives + negatives).any():
        return "all patches of its training windows are ignored"
    if not (positives.all() and negatives.all()):
        if len(positives) > 1:
            return f"its training windows hold no patch of class {int(np.argmin(positives))}"
        return f"its training windows hold no {'negative' if positives[0] else 'positive'} patch"
    if not np.isfinite(losses).all():
        return f"its loss is not finite from epoch {int(np.argmin(np.isfinite(losses)))} on"
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        return "its weights are not finite"
    return None
