"""The command that measures how separable the classes are in caches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .boundary import talk
from .options import JsonOpt
from .output import emit
from .progress import progress_bar


def separate(
    cache: Annotated[list[Path], typer.Argument(help="Caches; several are compared with each other too.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for tables, moments and pictures.")] = None,
    probe: Annotated[
        list[Path] | None, typer.Option("--probe", help="Probe whose direction is compared; again for more.")
    ] = None,
    min_share: Annotated[
        float, typer.Option("--min-share", help="Least share of a class in a patch that counts as its own.")
    ] = 0.5,
    shrinkage: Annotated[
        float, typer.Option("--shrinkage", help="Share of the identity mixed into covariances.")
    ] = 0.01,
    sample: Annotated[int, typer.Option("--sample", help="Patches of each class for what needs distances.")] = 1000,
    neighbours: Annotated[int, typer.Option("--neighbours", help="For the purity of neighbourhoods.")] = 10,
    groups: Annotated[int, typer.Option("--groups", help="Groups of sources left out in turn, for intervals.")] = 10,
    umap: Annotated[bool, typer.Option("--umap", help="Draw UMAPs beside the PCA maps (needs umap-learn).")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of groups, sample, intervals and UMAP.")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """Measure how separable pristine, auto-encoded and inpainted patches are, and how alike embeddings are."""
    from dlprobe.separability import SeparabilitySettings
    from dlprobe.separability import separate as run

    settings = SeparabilitySettings(
        min_share=min_share,
        shrinkage=shrinkage,
        sample_per_class=sample,
        neighbours=neighbours,
        groups=groups,
        umap=umap,
        seed=seed,
    )
    with progress_bar("separate", "windows") as progress:
        result = run(cache, out, probes=probe or (), settings=settings, progress=progress)
    rows = result.frame().to_dict("records")
    if as_json:
        emit(({"kind": "statistic", **row} for row in rows), as_json=True)
        emit(({"kind": "difference", **row} for row in result.differences.to_dict("records")), as_json=True)
    else:
        emit(rows, as_json=False)
    for note in result.notes:
        talk(note)
    if out is not None:
        talk(f"tables, moments and pictures: {out}")
