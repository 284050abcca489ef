"""Where blocks are computed: in this process, or on the machines of a Ray cluster. The bytes are the same."""

from __future__ import annotations

from dlprobe.errors import RegistryError
from dlprobe.extraction.runners.base import Job, Runner
from dlprobe.extraction.runners.cluster import RayRunner
from dlprobe.extraction.runners.local import LocalRunner

RUNNERS: dict[str, type[LocalRunner] | type[RayRunner]] = {"local": LocalRunner, "ray": RayRunner}


def find_runner(runner: str | Runner) -> Runner:
    """Return a runner by name with its defaults, or the one that was given; raise `RegistryError` if there is none."""
    if not isinstance(runner, str):
        return runner
    if runner not in RUNNERS:
        msg = f"no runner {runner!r}; write one of {', '.join(RUNNERS)}"
        raise RegistryError(msg)
    return RUNNERS[runner]()


__all__ = ["RUNNERS", "Job", "LocalRunner", "RayRunner", "Runner", "find_runner"]
