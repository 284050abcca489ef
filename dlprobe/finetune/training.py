"""The loop: windows through the backbone, the head and objective of ``fit``, and back into what may move."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from dlprobe.cache.stream import epoch_seed
from dlprobe.data import label_patches
from dlprobe.data.labels import FULL
from dlprobe.errors import BackboneError, ProbeError
from dlprobe.extras import require
from dlprobe.finetune.adapting import adapt, parameter_groups
from dlprobe.finetune.checkpoints import read_state, write_state
from dlprobe.finetune.windows import Decoded
from dlprobe.probes import GroupMoments
from dlprobe.probes.losses import SMOOTH, target_basis
from dlprobe.probes.multihead.columns import Columns
from dlprobe.probes.multihead.objectives import Importance, Labels, objective
from dlprobe.probes.multihead.workers import Workers
from dlprobe.spec import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.finetune.settings import FinetuneSettings
    from dlprobe.finetune.windows import LiveWindows

    Progress = Callable[[int, int], None]
    #: From weights (width,) and bias on raw embeddings to a score, higher being better, and a logit threshold.
    Validate = Callable[[NDArray[np.float64], float], tuple[float, float]]

_TIMED_STEPS, _TIMED_S = 8, 2.0
#: Names that Accelerate has for the precisions of `dlprobe.backbones`.
_MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


class Epoch(NamedTuple):
    """What an epoch came to: its number, mean loss, and score and logit threshold on validation."""

    epoch: int
    loss: float
    f1: float
    threshold: float


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The epoch that was kept; the backbone's network has its weights.

    Attributes
    ----------
    weights : ndarray of float64, shape (width,)
        Of the head, on raw embeddings.
    bias : float
        On raw embeddings.
    epoch : Epoch
        Which one it was.
    history : list of Epoch
        All of them.
    trainable : int
        Numbers that could move in the backbone.
    """

    weights: NDArray[np.float64]
    bias: float
    epoch: Epoch
    history: list[Epoch]
    trainable: int


def train(
    windows: LiveWindows,
    selected: NDArray[np.bool_],
    mode: str,
    settings: FinetuneSettings,
    *,
    validate: Validate,
    state: Path,
    progress: Progress | None = None,
) -> Chosen:
    """Train a head, and the backbone with it as far as the mode lets it move.

    Nothing is drawn at random on the way but what the seed says beforehand (order, degradations, initial weights), so
    that a fit that was interrupted and goes on from its checkpoint ends as it would have.

    Parameters
    ----------
    windows : LiveWindows
        Its backbone is changed in place.
    selected : ndarray of bool, shape (window,)
        Windows that train.
    mode : {'head', 'lora', 'full'}
    settings : FinetuneSettings
    validate : callable
        Called after each epoch.
    state : Path
        Checkpoint; if it exists, training goes on from it.
    progress : callable, optional
        Called with the steps taken and planned.

    Returns
    -------
    Chosen

    Raises
    ------
    BackboneError
        If the backbone cannot be trained in this mode.
    ProbeError
        If nothing can be learned from the windows, the loss is no longer finite, or the checkpoint does not fit.
    ExtraError
        If Accelerate or PEFT is missing.
    """
    require("finetune", "fine-tuning", "accelerate")
    done = read_state(state, identity := _identity(windows, selected, mode, settings))
    if done is not None:
        windows.kept &= done["kept"].numpy()
    moments = windows.moments(selected) if done is None else _moments(done["moments"])
    loop = _Loop(windows, selected, mode, settings, moments)
    if done is not None:
        loop.restore(done)
    with Workers(loop.device) as workers:
        while loop.epoch < settings.epochs:
            for batch in loop.batches():
                loop.step(batch, workers)
                if progress is not None:
                    progress(loop.number, loop.planned)
                if loop.number % settings.checkpoint_steps == 0:
                    write_state(state, identity, loop.state())
            loop.close_epoch(validate)
            write_state(state, identity, loop.state())
    return loop.chosen()


def seconds_per_step(
    windows: LiveWindows, selected: NDArray[np.bool_], mode: str, settings: FinetuneSettings
) -> tuple[float, int]:
    """Time a few steps on noise, after one to warm up; return seconds of one, and how many numbers may move.

    Parameters
    ----------
    windows, selected, mode, settings
        As for `train`; the backbone is changed.
    """
    require("finetune", "fine-tuning", "accelerate")
    spec = windows.backbone.spec
    moments = GroupMoments(np.ones(1), np.zeros((1, spec.width)), np.ones((1, spec.width)))
    loop = _Loop(windows, selected, mode, settings, moments)
    count = min(settings.batch_windows, int(selected.sum()))
    rng = np.random.default_rng(0)
    noise = Decoded(
        rng.integers(0, 256, (count, spec.window_px, spec.window_px, 3), dtype=np.uint8),
        np.tile(np.array([0, 0, FULL, 0], np.uint8), (count, spec.grid, spec.grid, 1)),
        np.arange(count),
    )
    with Workers(loop.device) as workers:
        loop.step(noise, workers)
        start, steps = time.perf_counter(), 0
        while steps == 0 or (steps < _TIMED_STEPS and time.perf_counter() - start < _TIMED_S):
            loop.step(noise, workers)
            steps += 1
    return (time.perf_counter() - start) / steps, loop.trainable


class _Loop:
    """The state of a running adaptation."""

    def __init__(
        self,
        windows: LiveWindows,
        selected: NDArray[np.bool_],
        mode: str,
        settings: FinetuneSettings,
        moments: GroupMoments,
    ) -> None:
        self._windows, self._selected, self._settings, self._moments = windows, selected, settings, moments
        self.device = torch.device(getattr(windows.backbone, "device", "cpu"))
        self.steps = windows.steps(selected, settings.batch_windows)
        self.planned = self.steps * settings.epochs
        self.number, self.epoch, self._loss = 0, 0, 0.0
        self._parameters = adapt(windows.backbone, mode, settings)
        self._accelerator, self._model, self._optimiser = _accelerated(windows, self._parameters, mode, settings)
        width = windows.backbone.spec.width
        centre = moments.standardisation((0,)).mean.astype(np.float32)
        self._centre = torch.from_numpy(centre).to(self.device)
        self._columns = Columns(
            [settings.head],
            moments,
            centre=centre,
            layers={-1: slice(0, width)},
            steps=self.planned,
            device=self.device,
        )
        self._objective = objective(settings.objective, 1, SMOOTH)
        self._history: list[Epoch] = []
        self._best: dict[str, Any] = {}

    def batches(self) -> Any:
        """Return what is left of the current epoch."""
        seed = epoch_seed(self._settings.seed, self.epoch)
        first = self.number - self.epoch * self.steps
        return self._windows.minibatches(self._selected, self._settings.batch_windows, seed=seed, first=first)

    def step(self, batch: Decoded, workers: Workers) -> None:
        """Take one step; the loss is that of the whole batch, however many windows go through the backbone at once."""
        size = self._windows.backbone.pins.batch_size
        parts = torch.split(torch.from_numpy(batch.pixels), size)
        moves = bool(self._parameters)
        with torch.set_grad_enabled(moves and len(parts) == 1):
            tokens = [self._embed(part) for part in parts]
        centred = torch.cat([part.detach() for part in tokens]).flatten(1, 2) - self._centre
        folded = self._columns.folded()
        slope = centred @ folded.weights.T
        importance = self._importance(batch)
        found = self._objective.differentiate(slope, folded.bias, self._labels(batch), importance, workers)
        if not bool(torch.isfinite(found.loss).all()):
            msg = f"the loss is not finite at step {self.number}; choose smaller learning rates (--lr, --head-lr)"
            raise ProbeError(msg)
        if moves:
            grid = self._windows.backbone.spec.grid
            pull = (slope * folded.weights).reshape(-1, grid, grid, centred.shape[-1])
            self._move(parts, tokens, torch.split(pull, size))
        flat = slope.flatten(0, 1)
        self._columns.update(flat.T @ centred.flatten(0, 1), found.bias, self.number)
        self._loss += float(found.loss)
        self.number += 1

    def _move(self, parts: Any, tokens: list[torch.Tensor], pull: Any) -> None:
        """Carry the gradient by tokens into the backbone; with several parts each goes through it once more."""
        self._optimiser.zero_grad()
        for part, known, slope in zip(parts, tokens, pull, strict=True):
            found = known if len(parts) == 1 else self._embed(part)
            self._accelerator.backward((found * slope).sum())
        if self._settings.clip_norm:
            self._accelerator.clip_grad_norm_(list(self._parameters.values()), self._settings.clip_norm)
        share = _schedule(self.number, self.planned, self._settings.warmup)
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak"] * share
        self._optimiser.step()

    def _embed(self, windows: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self._model(windows.to(self.device))
        return tokens.float()

    def _labels(self, batch: Decoded) -> Labels:
        targets = torch.from_numpy(label_patches(batch.coverage, self._settings.scheme)).flatten(1)
        basis = target_basis(targets.to(self.device), torch.float32)
        return Labels(basis, basis.sum(dim=1))

    def _importance(self, batch: Decoded) -> Importance:
        return Importance(torch.ones((len(batch.windows), 1), device=self.device), torch.ones(1, device=self.device))

    def close_epoch(self, validate: Validate) -> None:
        """Score the epoch on validation, and keep it if it is the one to keep."""
        weights, bias = self._columns.raw()
        f1, threshold = validate(weights[0], float(bias[0]))
        found = Epoch(self.epoch, self._loss / self.steps, f1, threshold)
        best = max((known.f1 for known in self._history if not math.isnan(known.f1)), default=-math.inf)
        self._history.append(found)
        if self._settings.keep == "last" or f1 > best or not self._best:
            self._best = {
                "epoch": tuple(found),
                "weights": torch.from_numpy(weights[0].copy()),
                "bias": float(bias[0]),
                "backbone": {name: value.detach().cpu().clone() for name, value in self._parameters.items()},
            }
        self.epoch, self._loss = self.epoch + 1, 0.0

    def state(self) -> dict[str, Any]:
        """Return all that training changes, as tensors and plain values."""
        return {
            "number": self.number,
            "epoch": self.epoch,
            "loss": self._loss,
            "history": [tuple(known) for known in self._history],
            "best": self._best,
            "kept": torch.from_numpy(self._windows.kept.copy()),
            "moments": {name: torch.from_numpy(getattr(self._moments, name)) for name in _MOMENTS},
            "columns": {name: value.cpu() for name, value in self._columns.state().items()},
            "backbone": {name: value.detach().cpu() for name, value in self._parameters.items()},
            "optimiser": self._optimiser.state_dict() if self._parameters else {},
            "scaler": self._accelerator.scaler.state_dict() if self._scaled else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        self.number, self.epoch, self._loss = state["number"], state["epoch"], state["loss"]
        self._history = [Epoch(*known) for known in state["history"]]
        self._best = state["best"]
        for name, value in self._columns.state().items():
            value.copy_(state["columns"][name])
        self._put(state["backbone"])
        if self._parameters:
            self._optimiser.load_state_dict(state["optimiser"])
        if self._scaled:
            self._accelerator.scaler.load_state_dict(state["scaler"])

    def chosen(self) -> Chosen:
        """Return the epoch that was kept, its weights put into the network."""
        self._put(self._best["backbone"])
        weights = self._best["weights"].numpy()
        return Chosen(weights, self._best["bias"], Epoch(*self._best["epoch"]), self._history, self.trainable)

    @property
    def trainable(self) -> int:
        """How many numbers may move in the backbone."""
        return sum(value.numel() for value in self._parameters.values())

    @property
    def _scaled(self) -> bool:
        return getattr(self._accelerator, "scaler", None) is not None

    def _put(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(tensors[name])


class _Embedder(torch.nn.Module):
    """A backbone's network as a module from bytes to tokens, for Accelerate."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.network = backbone.network
        self._backbone = [backbone]

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Embed a batch, differentiably."""
        tokens: torch.Tensor = self._backbone[0].embed(windows)
        return tokens


def _accelerated(
    windows: LiveWindows, parameters: dict[str, torch.nn.Parameter], mode: str, settings: FinetuneSettings
) -> tuple[Any, Any, Any]:
    """Return Accelerate's handle, what embeds, and the optimiser of what may move."""
    backbone = windows.backbone
    if not parameters:
        return None, lambda pixels: backbone(pixels).clone(), None
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    device = torch.device(getattr(backbone, "device", "cpu"))
    AcceleratorState._reset_state(reset_partial_state=True)  # it is one for a process, and refuses other precisions
    if device.type == "cuda":
        torch.cuda.set_device(device)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=_MIXED[backbone.pins.precision])
    if accelerator.num_processes > 1:
        msg = f"fine-tuning runs in one process, {accelerator.num_processes} were started; start it without a launcher"
        raise BackboneError(msg)
    groups = parameter_groups(parameters, settings.rate(mode), settings.weight_decay, settings.layer_decay)
    model, optimiser = accelerator.prepare(_Embedder(backbone), torch.optim.AdamW(groups))
    return accelerator, model, optimiser


def _schedule(step: int, planned: int, warmup: float) -> float:
    """Return the share of the peak rate: up in a line, then down the cosine to 0."""
    rising = round(planned * warmup)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, planned - rising)))


_MOMENTS = ("count", "sum", "sum_of_squares")


def _moments(tensors: dict[str, torch.Tensor]) -> GroupMoments:
    return GroupMoments(*(tensors[name].numpy() for name in _MOMENTS))


def _identity(windows: LiveWindows, selected: NDArray[np.bool_], mode: str, settings: FinetuneSettings) -> str:
    """Return the fingerprint of all that determines the result."""
    backbone = windows.backbone
    return fingerprint(
        {
            "mode": mode,
            "settings": {key: value for key, value in asdict(settings).items() if key != "checkpoint_steps"},
            "model": backbone.spec.fingerprint,
            "precision": backbone.pins.precision,
            "manifest": windows.manifest_sha256,
            "selected": np.flatnonzero(selected).tolist(),
        }
    )
