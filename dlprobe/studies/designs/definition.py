"""A study as a small TOML file says it: frozen records, checked key by key."""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dlprobe.errors import DataError
from dlprobe.finetune import MODES, FinetuneSettings
from dlprobe.studies.designs.base import STUDIES
from dlprobe.studies.fitting.settings import FitSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Where the images of a study come from: the demo's photographs, a manifest, or a folder to be scanned.

    Parameters
    ----------
    demo : bool
        Build the demo data set from photographs that ship with scikit-image and scikit-learn.
    photographs, side_px : int
        Of the demo: how many, and their longest side.
    ladder : bool
        Of the demo: blobs of 0.5 to 60 % of a window on every photograph instead of the demo's masks.
    manifest : str, optional
        A manifest that `dlprobe scan` wrote; relative to the TOML file.
    root, layout : str
        A folder that is scanned with a layout; relative to the TOML file.
    variant, dataset : str, optional
        Options of the layout.
    """

    demo: bool = False
    photographs: int = 16
    side_px: int = 640
    ladder: bool = False
    manifest: str | None = None
    root: str | None = None
    layout: str = "csv"
    variant: str | None = None
    dataset: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("demo", "manifest", "root") if getattr(self, name)]
        if len(given) != 1:
            msg = f"a study's [data] needs one of demo, manifest and root, and has {' and '.join(given) or 'none'}"
            raise DataError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSource:
    """A backbone to extract with, or a cache that is there already.

    Parameters
    ----------
    name : str
        As for `dlprobe.backbones.load_backbone`.
    weights : str
        As there.
    layers : tuple of int
        As there.
    norm : bool
        As there.
    window_px : int, optional
        As there.
    cache : str, optional
        A complete cache to be used as it is; relative to the TOML file.
    test_cache : str, optional
        Beside `cache`: that of the data set which the study's [test] names.
    """

    name: str = ""
    weights: str = "pretrained"
    layers: tuple[int, ...] = (-1,)
    norm: bool = True
    window_px: int | None = None
    cache: str | None = None
    test_cache: str | None = None

    def __post_init__(self) -> None:
        if self.test_cache and not self.cache:
            msg = "a study's [[backbones]] has a test_cache without a cache; [test] is extracted where there is none"
            raise DataError(msg)
        if bool(self.name) == bool(self.cache):
            msg = "a study's [[backbones]] needs either name or cache"
            raise DataError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """Settings of extraction that a study may change; see `dlprobe.extraction.plan`.

    Parameters
    ----------
    stride_px : int
        Intended distance of two windows.
    views : int
        Views of each window; view 0 is the clean one, others are degraded and train only.
    degrade : str, optional
        Preset of degradations that makes views 1 and up.
    dtype : {'float16', 'float32', 'int8'}
        Of the stored embeddings.
    engine, device : str
        What the backbone runs with, and on.
    """

    stride_px: int = 504
    views: int = 1
    degrade: str | None = None
    dtype: Literal["float16", "float32", "int8"] = "float16"
    engine: str = "torch"
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a kind of study can be told beside its data; each kind reads its own.

    Parameters
    ----------
    method, scheme : str
        Whose probes are looked at; the Dice probe taught the truth by default. Where a kind reads `scheme`, heads are
        fitted under it alone.
    hit_iou : float
        `scale`: an image counts as detected from this IoU on.
    generators : tuple of str
        `generators`: those to train on, one at a time; all that paint into masks by default. `robustness`: those
        whose images are looked at, beside photographs as they are; all by default.
    sources : tuple of int
        `data-size`: numbers of training photographs.
    degrade : tuple of str
        `robustness`: presets of `dlprobe.data.degrade`, or chains.
    stride_px : int
        `robustness`: of the sliding window.
    strides_px : tuple of int
        `localization`: those to compare; post-processing is looked at under the smallest.
    modes : tuple of str
        `adaptation`: of `dlprobe.studies.finetune`; ``head``, which leaves the backbone frozen, and at least another.
    folds : int
        `adaptation`: 0 for the one split of `dlprobe.studies.finetune`; 3 or more to train so many times, so that
        every photograph is tested once.
    """

    method: str = "dice"
    scheme: str = "autoencoded-pristine"
    hit_iou: float = 0.5
    generators: tuple[str, ...] = ()
    sources: tuple[int, ...] = (2, 4, 8)
    degrade: tuple[str, ...] = ("tgif", "dinolizer")
    stride_px: int = 128
    strides_px: tuple[int, ...] = (504, 252, 126)
    modes: tuple[str, ...] = MODES
    folds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One study.

    Parameters
    ----------
    kind : str
        A name in `dlprobe.studies.designs.STUDIES`.
    title, question : str
        For readers.
    data : DataSource
        Images.
    test : DataSource, optional
        A data set that is tested only.
    backbones : tuple of BackboneSource
        At least one.
    extract : Extraction
        How caches are filled.
    fit : FitSettings
        How heads are fitted.
    finetune : FinetuneSettings
        `adaptation`: how backbones are adapted.
    options : Question
        What this kind of study asks.
    real : str
        What changes with real data and weights, for readers.
    """

    kind: str
    title: str
    question: str
    data: DataSource
    backbones: tuple[BackboneSource, ...]
    test: DataSource | None = None
    extract: Extraction = field(default_factory=Extraction)
    fit: FitSettings = field(default_factory=FitSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    options: Question = field(default_factory=Question)
    real: str = ""

    def __post_init__(self) -> None:
        if not self.backbones:
            msg = "a study needs at least one [[backbones]]"
            raise DataError(msg)


def read_study(path: str | Path) -> tuple[Study, Path]:
    """Read a TOML file.

    Returns
    -------
    Study
        Checked.
    Path
        The folder that its relative paths start from.

    Raises
    ------
    DataError
        If the file is missing, no TOML, or a key or value is not one of a study's; the message names it.
    RegistryError
        If no kind of study has that name.
    """
    file = Path(path)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"no study at {file}; `dlprobe study list` names those that are ready"
        raise DataError(msg) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"{file} is no readable TOML ({error})"
        raise DataError(msg) from error
    study = from_table(Study, table, str(file))
    return _under_one_scheme(study, "schemes" in table.get("fit", {}), file), file.absolute().parent


def _under_one_scheme(study: Study, asked: bool, file: Path) -> Study:
    """Return the study with heads under the one scheme that its kind looks at; refuse a [fit] that asks for others."""
    if "scheme" not in STUDIES[study.kind].reads:
        return study
    only = (study.options.scheme,)
    if asked and study.fit.schemes != only:
        msg = (
            f"{file}: a study of {study.kind} looks at one scheme, which is {only[0]} in [options] scheme, and [fit] "
            f"schemes has {', '.join(study.fit.schemes)}; leave [fit] schemes out"
        )
        raise DataError(msg)
    return replace(study, fit=replace(study.fit, schemes=only))


def from_table(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build a frozen record from a table of TOML, checking names and types.

    Raises
    ------
    DataError
        Naming the key, what it holds and what it must hold.
    """
    known = {entry.name: entry for entry in fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            msg = f"{where} has no setting {key!r}; {hint}"
            raise DataError(msg)
    for name, entry in known.items():
        if name not in table and entry.default is MISSING and entry.default_factory is MISSING:
            msg = f"{where} lacks the setting {name!r}"
            raise DataError(msg)
    hints = get_type_hints(cls)
    return cls(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in table.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """Return a TOML value as a field's type wants it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in {Union, types.UnionType}:
        return _value(next(kind for kind in inner if kind is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hasattr(hint, "__dataclass_fields__") and isinstance(value, Mapping):
        return from_table(hint, value, where)
    if origin is Literal:
        if value in inner:
            return value
        msg = f"{where} is {value!r}; write one of {', '.join(map(str, inner))}"
        raise DataError(msg)
    wanted = (int, float) if hint is float else (tuple if origin is tuple else hint)
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        name = "a list" if origin is tuple else f"a {getattr(hint, '__name__', hint)}"
        msg = f"{where} is {value!r}, where {name} is wanted"
        raise DataError(msg)
    return float(value) if hint is float and isinstance(value, (int, float)) else value
