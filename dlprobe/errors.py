"""Errors that a user can mend: each says what, where and what to do next, in one line.

Everything else that is raised is a bug and keeps its traceback. The command line shows these in one place
(``dlprobe_cli.boundary``) and exits with 2.
"""


class DlprobeError(Exception):
    """Base of all errors that the user of dlprobe can mend."""


class DataError(DlprobeError):
    """An image, mask, manifest or layout is not what it has to be."""


class RegistryError(DlprobeError):
    """A name stands for nothing, or for two things."""


class IdentityError(DlprobeError):
    """Two things that must come from the same model or cache do not."""


class BackboneError(DlprobeError):
    """A backbone or its weights cannot be loaded or used as asked."""


class CacheError(DlprobeError):
    """A cache is missing, incomplete, damaged, locked or something else."""


class ProbeError(DlprobeError):
    """A probe cannot be fitted, read or applied."""


class MetricError(DlprobeError):
    """A score or statistic is undefined for what was given."""


class OutputError(DlprobeError):
    """An output path exists and is something else, or cannot be written."""


class ExtraError(DlprobeError):
    """Something needs an optional dependency that is not installed."""
