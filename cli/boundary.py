"""The one place where errors become words and exit codes."""

from __future__ import annotations

import os
import sys
import warnings

import typer
from typer.core import TyperGroup

from dlprobe.errors import DlprobeError

EXIT_USER_ERROR = 2
EXIT_REJECTS = 3


NO_MEMORY = (
    "the device's memory does not hold this; free some, compute fewer windows at a time (--batch-size) or elsewhere "
    "(--device cpu), or choose a smaller model"
)


class Boundary(TyperGroup):
    """A command group that shows what a user can mend as one line on stderr; anything else keeps its traceback.

    That is a `DlprobeError`, and a device whose memory did not last.
    """

    def invoke(self, ctx: typer.Context) -> object:
        """Run the command; turn an error that the user can mend into exit code 2."""
        try:
            return super().invoke(ctx)
        except DlprobeError as error:
            talk(f"error: {' '.join(str(error).split())}", colour=typer.colors.RED)
            for note in getattr(error, "__notes__", ()):
                talk(note)
            raise typer.Exit(EXIT_USER_ERROR) from error
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            talk(f"error: {NO_MEMORY}", colour=typer.colors.RED)
            raise typer.Exit(EXIT_USER_ERROR) from error
        except BrokenPipeError:
            # the reader of our output has gone, as in `dlprobe ... | head`; keep Python from complaining at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None


def _is_out_of_memory(error: RuntimeError) -> bool:
    if "torch" not in sys.modules:
        return False
    from dlprobe.backbones.engines.batching import is_out_of_memory

    return is_out_of_memory(error)


def talk(text: str, colour: str | None = None) -> None:
    """Say something to the user on stderr."""
    typer.secho(text, err=True, fg=colour)


def expect_damage() -> None:
    """Silence what Pillow says of damaged and of huge files: each of them becomes a reject with a reason.

    This is the program's to decide and not the library's: Python's filters belong to the process, and no thread can
    change them for itself.
    """
    for category in (UserWarning, RuntimeWarning):  # the latter of decompression bombs
        warnings.filterwarnings("ignore", category=category, module=r"PIL\.")
