"""Heads as columns: their masters in float32, their own standardisation as an affine map, and the optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from dlprobe.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dlprobe.probes.heads import HeadSpec
    from dlprobe.probes.moments import GroupMoments, Standardisation

#: Standard deviation of the initial weights on standardised features, as in DINOv2's linear evaluation.
INITIAL_DEVIATION = 0.01


class Folded(NamedTuple):
    """Weights (columns, width) and bias (columns,) on the features that the matrix product sees."""

    weights: Tensor
    bias: Tensor


class Columns:
    """Weights, momentum and learning rates of all heads.

    The matrix product sees features z from which `centre` was subtracted once for all heads. Head h wants its own
    ``(z - m) / s``, so that its logit is ``z . (w / s) + (b - m . w / s)``, and the gradient of w is
    ``(Z' g - m sum g) / s``. A feature that is constant in a head's training groups has ``1 / s = 0``.

    Parameters
    ----------
    heads : sequence of HeadSpec
        In the order of the columns, of which each has one for each of its logits.
    moments : GroupMoments
        Of the embeddings.
    centre : ndarray of float32, shape (width,)
        What is subtracted from the embeddings for all heads alike.
    layers : mapping of int to slice
        Which features each layer number stands for.
    steps : int
        Planned steps, over which the cosine falls to 0.
    device : torch.device
    """

    def __init__(
        self,
        heads: Sequence[HeadSpec],
        moments: GroupMoments,
        *,
        centre: NDArray[np.float32],
        layers: Mapping[int, slice],
        steps: int,
        device: torch.device,
    ) -> None:
        self._steps = steps
        self._own = _own_standardisations(heads, moments, layers)
        inverse = np.stack([each.inverse for each in self._own.values()])
        mean = np.stack([each.mean - centre for each in self._own.values()])
        of = {key: row for row, key in enumerate(self._own)}
        rows = torch.tensor([of[_key(head)] for head in heads for _ in range(head.n_logits)])
        self._inverse = torch.as_tensor(inverse, dtype=torch.float32)[rows].to(device)
        self._mean = torch.as_tensor(mean, dtype=torch.float32)[rows].to(device)
        self._row = rows.numpy()
        initial = np.concatenate([initial_weights(head, len(centre)) for head in heads])
        heads = [head for head in heads for _ in range(head.n_logits)]
        self.weights = torch.as_tensor(initial, dtype=torch.float32, device=device)
        self.bias = torch.zeros(len(heads), device=device)
        self.weight_velocity = torch.zeros_like(self.weights)
        self.bias_velocity = torch.zeros_like(self.bias)
        self._rate = _vector([head.learning_rate for head in heads], device)
        self._cosine = _vector([head.schedule == "cosine" for head in heads], device)
        self._decay = _vector([head.weight_decay for head in heads], device)[:, None]
        self._momentum = _vector([head.momentum for head in heads], device)

    def folded(self) -> Folded:
        """Return the heads as one affine map of the centred features."""
        weights = self.weights * self._inverse
        return Folded(weights, self.bias - (weights * self._mean).sum(dim=1))

    def update(self, weight_gradient: Tensor, bias_gradient: Tensor, step: int) -> None:
        """Take one step of SGD with momentum.

        Parameters
        ----------
        weight_gradient : Tensor of float32, shape (columns, width)
            With respect to the folded weights at fixed folded bias; it is overwritten.
        bias_gradient : Tensor of float32, shape (columns,)
        step : int
            Number of the step, from 0.
        """
        weight_gradient.addcmul_(self._mean, bias_gradient[:, None], value=-1).mul_(self._inverse)
        weight_gradient.addcmul_(self.weights, self._decay)
        fallen = 0.5 * (1 + np.cos(np.pi * step / self._steps))
        rate = self._rate * (1 - self._cosine + self._cosine * fallen)
        self.weight_velocity.mul_(self._momentum[:, None]).add_(weight_gradient)
        self.bias_velocity.mul_(self._momentum).add_(bias_gradient)
        self.weights.addcmul_(self.weight_velocity, rate[:, None], value=-1)
        self.bias.addcmul_(self.bias_velocity, rate, value=-1)

    def raw(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weights (columns, width) and biases (columns,) on raw embeddings, folded in float64."""
        weights = self.weights.to("cpu", torch.float64).numpy()
        bias = self.bias.to("cpu", torch.float64).numpy()
        own = list(self._own.values())
        folded: NDArray[np.float64] = weights * np.stack([each.inverse for each in own])[self._row]
        return folded, bias - (folded * np.stack([each.mean for each in own])[self._row]).sum(axis=1)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that training changes, by name; they are the originals."""
        return {name: getattr(self, name) for name in ("weights", "bias", "weight_velocity", "bias_velocity")}

    def keep(self, columns: NDArray[np.int64]) -> None:
        """Forget all columns but these."""
        chosen = torch.from_numpy(columns).to(self.weights.device)
        for name in (*self.state(), "_inverse", "_mean", "_rate", "_cosine", "_decay", "_momentum"):
            setattr(self, name, getattr(self, name)[chosen])
        self._row = self._row[columns]


def _key(head: HeadSpec) -> tuple[tuple[int, ...], int]:
    return head.train_groups, head.layer


def _own_standardisations(
    heads: Sequence[HeadSpec], moments: GroupMoments, layers: Mapping[int, slice]
) -> dict[tuple[tuple[int, ...], int], Standardisation]:
    """Return the standardisation of each pair of fold and layer; features of other layers count as constant."""
    result = {}
    for groups, layer in sorted({_key(head) for head in heads}):
        if layer not in layers:
            msg = f"a head wants layer {layer}; these embeddings have {', '.join(map(str, sorted(layers)))}"
            raise ProbeError(msg)
        whole = moments.standardisation(groups)
        deviation = np.zeros_like(whole.deviation)
        deviation[layers[layer]] = whole.deviation[layers[layer]]
        result[groups, layer] = whole._replace(deviation=deviation)
    return result


def initial_weights(head: HeadSpec, width: int) -> NDArray[np.float64]:
    """Return the weights (logits, width) on standardised features from which a head starts."""
    return np.random.default_rng(head.seed).normal(0, INITIAL_DEVIATION, (head.n_logits, width))


def _vector(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
