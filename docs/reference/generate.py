"""Write the reference from the program itself: `python docs/reference/generate.py`; `make docs` does it first.

The pages are kept in the repository, and a test compares them with what the program says now.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
PYPROJECT = HERE.parents[1] / "pyproject.toml"
#: What the value of an option is called.
VALUES = {Path: "PATH", str: "TEXT", int: "INTEGER", float: "NUMBER", bool: ""}
#: Packages that others use through the package around them.
INSIDE = (
    "dlprobe.cache.",
    "dlprobe.data.layouts.",
    "dlprobe.data.synthesis.",
    "dlprobe.extraction.",
    "dlprobe.localization.",
    "dlprobe.probes.estimators",
    "dlprobe.probes.multihead",
    "dlprobe.studies.designs.",
)
#: Modules with public names that belong to no package.
MODULES = ("dlprobe.errors", "dlprobe.spec", "dlprobe.exporting", "dlprobe.demo")


def pages() -> dict[str, str]:
    """Return every generated page by its path below this folder."""
    packages = list(public_packages())
    return {
        "cli.md": command_line(),
        "api.md": overview(packages),
        **{f"api/{package.__name__}.md": members(package) for package in packages},
    }


def command_line() -> str:
    """Return the page of all commands."""
    (script,) = entry_points(group="console_scripts", name="dlprobe")
    app = script.load()
    sections = [command_section(path, command) for path, command in leaves(typer.main.get_command(app))]
    head = "# Command line\n\nWhat `dlprobe COMMAND --help` says, of every command."
    return "\n\n".join([head, *sections]) + "\n"


def leaves(group: Any, path: tuple[str, ...] = ("dlprobe",)) -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with what is typed to reach it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def command_section(path: str, command: Any) -> str:
    """Return usage, help, arguments and options of one command."""
    hints = get_type_hints(inspect.unwrap(command.callback))
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join([path, *map(placeholder, arguments), "[OPTIONS]"])
    rows = [(f"`{placeholder(p)}`", p.help, "") for p in arguments]
    rows += [(option_names(p, hints[p.name]), option_help(p, hints[p.name]), option_default(p)) for p in options]
    table = "\n".join(f"| {name} | {means.replace('|', chr(92) + '|')} | {default} |" for name, means, default in rows)
    return f"## {path}\n\n{command.help}\n\n```text\n{usage}\n```\n\n| | | default |\n|---|---|---|\n{table}"


def placeholder(argument: Any) -> str:
    """Return what stands for an argument in the usage."""
    return argument.name.upper() + ("..." if argument.nargs == -1 else "")


def option_names(option: Any, hint: Any) -> str:
    """Return all names of an option, and of its value if it takes one."""
    value = VALUES[plain_type(hint)]
    names = ", ".join([*option.opts, *option.secondary_opts])
    return f"`{names} {value}`" if value else f"`{names}`"


def option_help(option: Any, hint: Any) -> str:
    """Return the help of an option; say of what must or may be given several times that it is so."""
    notes = ["Required."] if option.required else []
    several = any(get_origin(part) is list for part in (hint, *get_args(hint)))
    if several and not re.search("repeat|again|several", option.help):
        notes.append("May be repeated.")
    return " ".join([option.help, *notes])


def plain_type(hint: Any) -> type:
    """Return the type of one value of an option: of `list[str] | None` it is `str`."""
    if get_origin(hint) is UnionType:
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return plain_type(get_args(hint)[0]) if get_origin(hint) is list else hint


def option_default(option: Any) -> str:
    """Return the default as it would be typed; nothing where the help says what happens without the option."""
    if option.default in {None, ""} or option.required:
        return ""
    if isinstance(option.default, bool):
        return f"`{option.opts[0] if option.default else option.secondary_opts[0]}`" if option.secondary_opts else ""
    return f"`{option.default}`"


def public_packages() -> Iterator[ModuleType]:
    """Yield the packages that offer names to others, and the modules beside them."""
    for name in tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]:
        if name.startswith("dlprobe.") and not name.startswith(INSIDE):
            module = import_module(name)
            if hasattr(module, "__all__"):
                yield module
    yield from map(import_module, MODULES)


def public_names(package: ModuleType) -> list[str]:
    """Return what a package lists in `__all__`, or what a module defines."""
    if hasattr(package, "__all__"):
        return list(package.__all__)
    return [
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == package.__name__
    ]


def overview(packages: list[ModuleType]) -> str:
    """Return the page that lists the packages and their names."""
    head = (
        "# Python\n\nThese names are public, and are imported from the package beside them. Importing has no effects. "
        "Errors that you can mend\nderive from `dlprobe.errors.DlprobeError`, and are one line each."
    )
    rows = [
        f"| [`{package.__name__}`](api/{package.__name__}.md) | {first_line(package)} | "
        f"{', '.join(f'`{name}`' for name in public_names(package))} |"
        for package in packages
    ]
    return "\n".join([head, "", "| package | is for | names |", "|---|---|---|", *rows]) + "\n"


def members(package: ModuleType) -> str:
    """Return the page of a package, which mkdocstrings fills from the docstrings."""
    blocks = [
        f"::: {place(package, name)}\n    options:\n      heading: {name}\n      toc_label: {name}"
        for name in public_names(package)
    ]
    return "\n\n".join([f"# {package.__name__}", inspect.getdoc(package) or "", *blocks]) + "\n"


def place(package: ModuleType, name: str) -> str:
    """Return where a name is defined: a submodule of the same name would hide it from mkdocstrings."""
    found = getattr(package, name)
    if inspect.isclass(found) or inspect.isfunction(found):
        return f"{found.__module__}.{found.__qualname__}"
    return f"{package.__name__}.{name}"


def first_line(package: ModuleType) -> str:
    """Return the first line of a package's docstring."""
    return (inspect.getdoc(package) or "").partition("\n")[0]


def main() -> None:
    """Write the pages, and remove those of packages that are gone."""
    wanted = pages()
    for path in HERE.glob("api/*.md"):
        if path.relative_to(HERE).as_posix() not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
