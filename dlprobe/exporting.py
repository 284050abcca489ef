"""Backbone and probe together as one ONNX graph, from windows of RGB bytes to logits and scores of patches."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.errors import OutputError, ProbeError
from dlprobe.extras import require
from dlprobe.localization import load_probe
from dlprobe.publish import publish
from dlprobe.spec import canonical_json

if TYPE_CHECKING:
    import os

    import torch

    from dlprobe.backbones import Backbone
    from dlprobe.probes import Probe

#: Largest difference of logits that onnxruntime may show from torch, as a share of the largest logit.
TOLERANCE = 1e-3
_OPSET = 17
_CHECKED_WINDOWS = 2


def export_with_backbone(
    probe: str | os.PathLike[str], path: str | os.PathLike[str], *, weights: str | None = None
) -> Path:
    """Load a probe and the backbone that its card names, and write both as one graph.

    Parameters
    ----------
    probe : path
        A probe file.
    path, weights
        As for `export_windows` and `dlprobe.localization.localize_files`.

    Returns
    -------
    Path
        Of the graph.

    Raises
    ------
    ProbeError, IdentityError
        As `dlprobe.localization.localize_files`, and as `export_windows`.
    """
    require("onnx", "writing ONNX", "onnx", "onnxruntime")
    _require_place(Path(path))
    head, backbone = load_probe(probe, weights=weights, device="cpu", precision="float32")
    return export_windows(head, backbone, path)


def export_windows(probe: Probe, backbone: Backbone, path: str | os.PathLike[str]) -> Path:
    """Write backbone and probe as one ONNX graph, and check that onnxruntime computes what torch does.

    The input ``windows`` is uint8 RGB of shape (batch, window_px, window_px, 3), normalised within the graph. The
    outputs ``logits`` and ``scores`` have shape (batch, rows, cols, k): one number for each logit, scores by sigmoid or
    softmax. The card stands in the graph's metadata under ``dlprobe``.

    Parameters
    ----------
    probe : Probe
    backbone : Backbone
        A torch network on the CPU in float32, the one that the probe was fitted on.
    path : path
        An existing file is replaced.

    Returns
    -------
    Path
        Of the graph.

    Raises
    ------
    OutputError
        If the folder does not exist.
    ExtraError
        If the packages ``onnx`` and ``onnxruntime`` are missing.
    IdentityError
        If probe and backbone have different model identities.
    ProbeError
        If the backbone is no torch network, cannot be written, or the graph's logits differ by more than `TOLERANCE`.
    """
    require("onnx", "writing ONNX", "onnx", "onnxruntime")
    target = Path(path)
    _require_place(target)
    probe.require_model(backbone.spec, "probe and backbone")
    if not callable(getattr(backbone, "tokens", None)):
        msg = f"{backbone.spec.backbone} is no torch network and has no graph; export the head alone"
        raise ProbeError(msg)
    side = backbone.spec.window_px
    windows = np.random.default_rng(0).integers(0, 256, (_CHECKED_WINDOWS, side, side, 3), dtype=np.uint8)
    with publish(target) as scratch:
        _trace(probe, backbone, windows, scratch)
        _check(probe, backbone, windows, scratch)
    return target


def _trace(probe: Probe, backbone: Any, windows: np.ndarray[Any, Any], path: Path) -> None:
    import onnx
    import torch

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer speaks of every shape that it takes for a constant
            torch.onnx.export(
                _network(probe, backbone),
                (torch.from_numpy(windows),),
                str(path),
                input_names=["windows"],
                output_names=["logits", "scores"],
                dynamic_axes={name: {0: "batch"} for name in ("windows", "logits", "scores")},
                opset_version=_OPSET,
                dynamo=False,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = str(error).strip().splitlines()[0]
        msg = f"{backbone.spec.backbone} cannot be written as ONNX ({reason}); export the head alone"
        raise ProbeError(msg) from error
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"dlprobe": canonical_json(probe.card)})
    onnx.save(model, str(path))


def _network(probe: Probe, backbone: Any) -> torch.nn.Module:
    """Return backbone and head as one module from bytes to logits and scores."""
    import torch

    class Windows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = backbone.network
            self.weights = torch.nn.Buffer(torch.from_numpy(np.ascontiguousarray(probe.weights.T, np.float32)))
            self.bias = torch.nn.Buffer(torch.from_numpy(np.asarray(probe.bias, np.float32)))

        def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            _, patches = backbone.tokens(backbone.normalise(windows))
            grid = patches.unflatten(1, (backbone.spec.grid, backbone.spec.grid))  # keeps the batch free
            logits = grid @ self.weights + self.bias
            return logits, logits.sigmoid() if len(self.bias) == 1 else logits.softmax(dim=-1)

    return Windows().eval()


def _check(probe: Probe, backbone: Backbone, windows: np.ndarray[Any, Any], path: Path) -> None:
    """Raise `ProbeError` if onnxruntime computes other logits than torch, for one window or several."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = probe.logits(backbone(windows).cpu().numpy())
    for batch in (1, len(windows)):
        found = session.run(["logits"], {"windows": windows[:batch]})[0]
        apart = float(np.abs(found - expected[:batch]).max() / max(1.0, float(np.abs(expected).max())))
        if not apart <= TOLERANCE:
            msg = f"the ONNX graph of {backbone.spec.backbone} differs from torch by {apart:.1e}; export the head alone"
            raise ProbeError(msg)


def _require_place(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        msg = f"cannot write a graph to {path}: {'it is a folder' if path.is_dir() else 'its folder does not exist'}"
        raise OutputError(msg)
