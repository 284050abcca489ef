"""The command line: each command parses, calls one public function and prints what it returns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import (
    cache,
    doctor,
    evaluation,
    exchange,
    extraction,
    finetune,
    fitting,
    images,
    scanning,
    separability,
    studies,
    synthesis,
)
from .boundary import Boundary

app = typer.Typer(
    name="dlprobe",
    cls=Boundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Tell whether, and where, an image was inpainted by a generative model, and which backbone sees it best.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from dlprobe import __version__

        typer.echo(f"dlprobe {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Tell whether, and where, an image was inpainted by a generative model, and which backbone sees it best."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into; run again to resume.")] = Path("demo"),
) -> None:
    """Run the whole flow offline on photographs that ship with scikit-image and scikit-learn."""
    from dlprobe.demo import run_demo

    from .boundary import talk

    result = run_demo(out, say=talk)
    typer.echo(result.text)
    typer.echo(f"report: {result.report}")


app.command()(scanning.scan)
app.command()(extraction.extract)
app.command()(extraction.backbones)
app.command()(doctor.doctor)
app.command()(synthesis.synthesize)
app.command()(fitting.fit)
app.command()(evaluation.evaluate)
app.command()(finetune.finetune)
app.command()(fitting.report)
app.command()(separability.separate)
app.command()(images.localize)
app.command()(exchange.export)
app.command()(exchange.push)
app.command()(exchange.pull)
app.add_typer(studies.app, name="study")
app.add_typer(cache.app, name="cache")
