"""Probes for others: as an ONNX graph, and in a folder or a repository of the Hugging Face hub, with a page."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.errors import OutputError, ProbeError
from dlprobe.extras import require
from dlprobe.probes.probe import Probe
from dlprobe.publish import publish
from dlprobe.spec import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable

HUB_PREFIX = "hf:"
PROBE_FILE = "probe.safetensors"
PAGE_FILE = "README.md"
#: Ends a page, so that one that its owner wrote or edited is not overwritten.
_MARK = "<!-- written by dlprobe; sha256 of the above: {} -->\n"
_MARK_BYTES = len(_MARK.format("0" * 64))
_OPSET = 17
_TOLERANCE = 1e-4


def export_onnx(probe: Probe, path: str | Path) -> Path:
    """Write a probe as an ONNX graph from raw embeddings to logits and scores, and check that it computes the same.

    The input ``embeddings`` is float32 of shape (windows, rows, cols, width); the outputs ``logits`` and ``scores``
    have one number for each logit. The card stands in the graph's metadata under ``dlprobe``. Equal probes give equal
    bytes.

    Parameters
    ----------
    probe : Probe
    path : str or Path
        An existing file is replaced.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    OutputError
        If the folder does not exist.
    ExtraError
        If the packages ``onnx`` and ``onnxruntime`` are missing.
    ProbeError
        If the graph computes something else.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        msg = f"cannot write a graph to {path}: {'it is a folder' if path.is_dir() else 'its folder does not exist'}"
        raise OutputError(msg)
    require("onnx", "writing ONNX", "onnx", "onnxruntime")
    content = _graph(probe)
    _check_graph(content, probe)
    with publish(path) as scratch:
        scratch.write_bytes(content)
    return path


def push(probe: Probe, target: str | Path, *, revision: str | None = None, private: bool = True) -> str:
    """Put a probe and a page about it into a folder, or into a repository of the hub.

    What `push` wrote before is replaced. In a folder, a README.md or a probe.safetensors that is something else is
    refused, a page that was edited since among them; a repository keeps its earlier versions anyway.

    Parameters
    ----------
    probe : Probe
    target : str or Path
        A folder, which is made if its parent exists, or ``hf:OWNER/NAME``; the repository is made if it is missing.
    revision : str, optional
        Branch of the repository.
    private : bool
        Whether a repository that is made is private.

    Returns
    -------
    str
        Where the probe is now: a path or an address.

    Raises
    ------
    OutputError
        If the folder cannot be made or holds such files of others, or the hub refuses or cannot be reached.
    """
    if not str(target).startswith(HUB_PREFIX):
        return str(_write_folder(probe, Path(target)))
    name = str(target).removeprefix(HUB_PREFIX)

    def upload() -> str:
        from huggingface_hub import create_repo, upload_folder

        create_repo(name, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            _write_folder(probe, Path(folder))
            return str(upload_folder(repo_id=name, folder_path=folder, revision=revision))

    return str(_on_the_hub(upload, OutputError, f"cannot push to {target}"))


def pull(source: str | Path, *, revision: str | None = None) -> Probe:
    """Read a probe that `push` wrote.

    Parameters
    ----------
    source : str or Path
        A folder, or ``hf:OWNER/NAME``.
    revision : str, optional
        Branch, tag or commit of the repository.

    Returns
    -------
    Probe

    Raises
    ------
    ProbeError
        If there is no probe, or the hub refuses or cannot be reached and has nothing in its cache.
    """
    if not str(source).startswith(HUB_PREFIX):
        return Probe.load(Path(source) / PROBE_FILE)
    name = str(source).removeprefix(HUB_PREFIX)

    def download() -> str:
        from huggingface_hub import hf_hub_download

        return str(hf_hub_download(name, PROBE_FILE, revision=revision))

    return Probe.load(_on_the_hub(download, ProbeError, f"cannot pull from {source}"))


def page(probe: Probe) -> str:
    """Return the text of a probe's page, in Markdown, from its card.

    Parameters
    ----------
    probe : Probe

    Returns
    -------
    str
    """
    card = probe.card
    model = card["model"]
    backbone = model["backbone"] if model else "unknown: the embeddings came without an identity"
    lines = [
        "---",
        "library_name: dlprobe",
        "tags: [image-forensics, linear-probe]",
        "---",
        "# A linear probe for inpainted regions",
        "",
        f"- Backbone: {backbone}",
        f"- Labelling scheme: {card['scheme']}; objective: {card['objective']}; classes: {', '.join(card['classes'])}",
        f"- Threshold: {probe.threshold:g} ({card['threshold_policy']})",
        *(f"- {name}: {_metric(value)}" for name, value in sorted(card["metrics"].items())),
        *(f"- {note}" for note in card["notes"]),
        "",
        f"`dlprobe.probes.Probe.load({PROBE_FILE!r})` reads it; the header of the file holds this and more as JSON.",
        "",
    ]
    text = "\n".join(lines)
    return text + _MARK.format(hashlib.sha256(text.encode()).hexdigest())


def _metric(value: Any) -> str:
    """Return a metric of a card as text: a number, or one with its interval and sources."""
    if not isinstance(value, dict) or "value" not in value:
        return str(value)
    told = "not defined" if value["value"] is None else f"{value['value']:.3f}"
    if value.get("low") is not None:
        told += f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{told} over {value['sources']} sources" if "sources" in value else told


def _write_folder(probe: Probe, folder: Path) -> Path:
    if folder.is_file() or not folder.parent.is_dir():
        msg = f"cannot push to {folder}: {'it is a file' if folder.is_file() else 'its parent does not exist'}"
        raise OutputError(msg)
    _require_ours(folder)
    folder.mkdir(exist_ok=True)
    probe.save(folder / PROBE_FILE)
    with publish(folder / PAGE_FILE) as scratch:
        scratch.write_text(page(probe), encoding="utf-8")
    return folder


def _require_ours(folder: Path) -> None:
    """Raise `OutputError` if `push` would overwrite what it did not write."""
    for path, ours in ((folder / PAGE_FILE, _is_page), (folder / PROBE_FILE, _is_probe)):
        if path.exists() and not ours(path):
            msg = f"{path} was not written by dlprobe, or was changed since; move it away, or push to another folder"
            raise OutputError(msg)


def _is_page(path: Path) -> bool:
    """Tell whether a file is a page as `page` returned it, to the last byte."""
    content = path.read_bytes() if path.is_file() else b""
    text, mark = content[:-_MARK_BYTES], content[-_MARK_BYTES:]
    return mark == _MARK.format(hashlib.sha256(text).hexdigest()).encode()


def _is_probe(path: Path) -> bool:
    try:
        Probe.load(path)
    except ProbeError:
        return False
    return True


def _on_the_hub(call: Callable[[], str], kind: type[OutputError | ProbeError], what: str) -> str:
    """Return what a call to the hub returns; raise `kind` in one line if the hub refuses or is out of reach."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return call()
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        msg = f"{what}: {reason}; check the name, the network and `hf auth login`, or use a folder"
        raise kind(msg) from error


def _graph(probe: Probe) -> bytes:
    from onnx import TensorProto, checker, helper, numpy_helper

    k, width = probe.weights.shape
    shape = ["windows", "rows", "cols"]
    last = helper.make_node("Sigmoid", ["logits"], ["scores"])
    if k > 1:
        last = helper.make_node("Softmax", ["logits"], ["scores"], axis=-1)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["embeddings", "weights"], ["projected"]),
            helper.make_node("Add", ["projected", "bias"], ["logits"]),
            last,
        ],
        "dlprobe",
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [*shape, width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [*shape, k]) for name in ("logits", "scores")],
        [
            numpy_helper.from_array(np.ascontiguousarray(probe.weights.T, np.float32), "weights"),
            numpy_helper.from_array(probe.bias.astype(np.float32), "bias"),
        ],
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8, producer_name="dlprobe")
    helper.set_model_props(model, {"dlprobe": canonical_json(probe.card)})
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _check_graph(content: bytes, probe: Probe) -> None:
    """Raise `ProbeError` if onnxruntime computes other logits than the probe on fixed embeddings."""
    import onnxruntime

    embeddings = np.random.default_rng(0).standard_normal((2, 3, 4, probe.width), dtype=np.float32)
    session: Any = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"embeddings": embeddings})[0]
    expected = probe.logits(embeddings)
    apart = float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))
    if not apart <= _TOLERANCE:
        msg = f"the ONNX graph of a probe differs from it by {apart:.1e}; its weights may be too large for float32"
        raise ProbeError(msg)
