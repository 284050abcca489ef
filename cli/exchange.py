"""Commands that carry probes elsewhere: export, push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOpt
from .output import emit


def export(
    probe: Annotated[Path, typer.Argument(help="Probe file that `dlprobe fit` wrote (.safetensors).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="ONNX file to write.")],
    with_backbone: Annotated[
        bool, typer.Option("--with-backbone", help="From windows of RGB bytes, not from embeddings.")
    ] = False,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Where the backbone's weights are, if not where the probe says.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Write a probe, or its backbone and the probe, as an ONNX graph that was checked with onnxruntime."""
    if with_backbone:
        from dlprobe.exporting import export_with_backbone

        written = export_with_backbone(probe, out, weights=weights)
    else:
        from dlprobe.probes import Probe, export_onnx

        written = export_onnx(Probe.load(probe), out)
    emit([{"path": str(written), "bytes": written.stat().st_size}], as_json=as_json)


def push(
    probe: Annotated[Path, typer.Argument(help="Probe file that `dlprobe fit` wrote (.safetensors).")],
    target: Annotated[str, typer.Argument(help="Folder, or hf:OWNER/NAME on the Hugging Face hub.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch of the repository.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a repository that is new public.")] = False,
) -> None:
    """Put a probe and a page about it into a folder, or into a repository of the hub."""
    from dlprobe.probes import Probe
    from dlprobe.probes import push as run

    typer.echo(run(Probe.load(probe), target, revision=revision, private=not public))


def pull(
    source: Annotated[str, typer.Argument(help="Folder, or hf:OWNER/NAME on the Hugging Face hub.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Probe file to write (.safetensors).")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
) -> None:
    """Fetch a probe that `dlprobe push` put there."""
    from dlprobe.probes import pull as run

    run(source, revision=revision).save(out)
    typer.echo(str(out))
