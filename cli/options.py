"""Options that several commands share, so that one name means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .boundary import talk

JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")]
WeightsOpt = Annotated[
    str, typer.Option("--weights", help="'pretrained', a file, or 'random:SEED' (spoken, never a fall-back).")
]
DeviceOpt = Annotated[
    str, typer.Option("--device", help="'auto', 'cpu', 'cuda' or 'cuda:N'; an absent one is refused.")
]
EngineOpt = Annotated[
    str, typer.Option("--engine", help="'torch', or 'openvino' (faster on CPUs; needs the extra openvino).")
]
CompileOpt = Annotated[
    bool, typer.Option("--compile", help="Compile the network with torch.compile; pays in long runs on CUDA.")
]
PrecisionOpt = Annotated[
    str,
    typer.Option(
        "--precision",
        help="'float32', 'bfloat16' or 'auto': bfloat16 on a GPU that has it, and with openvino on a CPU that has it.",
    ),
]
BatchOpt = Annotated[int | None, typer.Option("--batch-size", min=1, help="Windows per forward pass.")]
RootOpt = Annotated[Path | None, typer.Option("--root", help="Folder of the images, if the manifest's own has moved.")]
MaxPixelsOpt = Annotated[
    int | None,
    typer.Option("--max-pixels", min=1, help="Larger images are rejects (89,478,485); raise it for files you trust."),
]


def pixel_limit(max_pixels: int | None) -> dict[str, int]:
    """Return the limit as a named argument, or none at all: what holds then is the library's to say."""
    return {} if max_pixels is None else {"max_pixels": max_pixels}


def tell_faults(manifest: Path) -> None:
    """Say again what the scan of a manifest found that bends numbers."""
    from dlprobe.data.manifest import read_noted

    if errors := [f"{noted.name} ({noted.images})" for noted in read_noted(manifest) if noted.severity == "error"]:
        what = "an error" if len(errors) == 1 else f"{len(errors)} errors"
        talk(
            f"warning: the scan that wrote {manifest} found {what}: {', '.join(errors)}; numbers that rest on these "
            "images will be wrong: scan again to read what to do",
            colour=typer.colors.YELLOW,
        )


def tell_dropped(backbone: object) -> None:
    """Name the tensors of a checkpoint that the backbone has no use for."""
    if dropped := getattr(backbone, "dropped", ()):
        talk(f"not used of the weights: {', '.join(sorted(dropped))}")


def layer_numbers(text: str) -> tuple[int, ...]:
    """Return the block numbers that ``--layers`` names."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        msg = f"--layers {text!r} is no list of block numbers; write such as -1 or -1,-4"
        raise typer.BadParameter(msg) from None
