"""The one place where errors become words and exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from dlprobe.errors import DlprobeError

EXIT_USER_ERROR = 2
EXIT_REJECTS = 3


NO_MEMORY = (
    "the device's memory does not hold this; free some, compute fewer windows at a time (--batch-size) or elsewhere "
    "(--device cpu), or choose a smaller model"
)


#: What typer raises of a command line that it cannot read; of that family it exports this one alone.
_MISUSE: type[Any] = typer.BadParameter.__bases__[0]


class Boundary(TyperGroup):
    """A command group that shows what a user can mend as one line on stderr; anything else keeps its traceback.

    That is a `DlprobeError`, a command line that cannot be read, and a device whose memory did not last.
    """

    def make_context(self, *args: Any, **more: Any) -> Any:
        """Read what stands before the command; turn an error that the user can mend into exit code 2."""
        with _told(None):
            return super().make_context(*args, **more)

    def invoke(self, ctx: typer.Context) -> object:
        """Run the command; turn an error that the user can mend into exit code 2."""
        with _told(ctx):
            return super().invoke(ctx)


@contextmanager
def _told(ctx: typer.Context | None) -> Iterator[None]:
    try:
        yield
    except DlprobeError as error:
        talk(f"error: {' '.join(str(error).split())}", colour=typer.colors.RED)
        for note in getattr(error, "__notes__", ()):
            talk(note)
        raise typer.Exit(EXIT_USER_ERROR) from error
    except _MISUSE as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command shows its help, and is no error
            raise
        talk(f"error: {_misuse(error, ctx)}", colour=typer.colors.RED)
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


def _misuse(error: Any, outer: typer.Context | None) -> str:
    """Say in a line what of a command line cannot be read, what it may have meant, and where to look."""
    command = error.ctx.command_path if error.ctx else f"dlprobe {getattr(outer, 'invoked_subcommand', None) or ''}"
    if near := getattr(error, "possibilities", None):
        said = f"{error.message}; did you mean {near[0]}?"
    elif isinstance(error, typer.BadParameter) and error.param is None and error.param_hint is None:
        said = error.message  # our own, which names its option
    else:
        said = error.format_message()
    said = " ".join(said.split()).rstrip(".").replace(". Did you", "; did you")
    return f"{said[:1].lower()}{said[1:]}{'' if said.endswith('?') else ';'} see `{command.strip()} --help`"


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
