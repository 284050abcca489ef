"""The manifest: a table of images with their masks, variants, sources and splits."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from dlprobe.data.images import MASK_READINGS
from dlprobe.data.provenance import VARIANTS
from dlprobe.errors import DataError, OutputError
from dlprobe.publish import publish

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

#: Columns in their order; strings are empty where unknown, sizes 0.
TEXT_COLUMNS = (
    "path",
    "mask",
    "variant",
    "source_id",
    "donor_id",
    "generator",
    "mask_kind",
    "split",
    "dataset",
)
SIZE_COLUMNS = ("width", "height")
COLUMNS = (*TEXT_COLUMNS, *SIZE_COLUMNS)
#: How masks are read, one of `dlprobe.data.images.MASK_READINGS`; a column that is there only where some mask is read
#: otherwise than white on black at its image's size, so that other manifests are what they were before there was it.
MASK_READING = "mask_reading"
REQUIRED = ("path", "variant", "source_id")
SPLITS = ("train", "val", "test", "calibration")
#: What no text of a manifest may hold: CSV cannot carry it, and no terminal shows it.
UNSTORABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_ROOT_KEY, _NOTED_KEY = b"dlprobe.root", b"dlprobe.noted"


class Noted(NamedTuple):
    """What a scan's audit holds against the images of a manifest: which check, how bad, how many images, in words."""

    name: str
    severity: str
    images: int
    detail: str


class Manifest:
    """A table of images, sorted by path.

    Parameters
    ----------
    frame : DataFrame
        At least the columns ``path`` (relative to `root`), ``variant`` and ``source_id``; further ones of `COLUMNS`
        where known, and ``mask_reading``, which is kept where it is not empty throughout. Columns of other names are
        kept apart from any identity and dropped.
    root : path
        Folder that the paths are relative to; no part of any identity.

    Attributes
    ----------
    frame : DataFrame
    root : Path
    noted : tuple of Noted
        Errors and warnings of the audit, where a scan wrote the manifest; kept in Parquet and no part of any identity.

    Raises
    ------
    DataError
        If a required column or value is missing, a variant, split or reading of a mask unknown, a text not storable or
        a path stands twice.
    """

    def __init__(self, frame: pd.DataFrame, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.frame = _normalised(frame)
        self.noted: tuple[Noted, ...] = ()

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, object]], root: str | os.PathLike[str]) -> Manifest:
        """Build from one mapping per image."""
        return cls(pd.DataFrame(list(records), dtype=object), root)

    @classmethod
    def read(cls, path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Manifest:
        """Read a Parquet or CSV file.

        Parameters
        ----------
        path : path
            Parquet if the name ends in ``.parquet``, else CSV.
        root : path, optional
            Folder of the images; else the one that the Parquet file names, or the folder of the CSV file.

        Raises
        ------
        DataError
            If the file is missing, unreadable or no manifest.
        """
        path = Path(path)
        if path.is_dir():
            msg = f"{path} is a folder; give the file of its manifest, which `dlprobe scan {path} -o FILE` writes"
            raise DataError(msg)
        if not path.is_file():
            msg = f"no manifest at {path}; make one with `dlprobe scan`"
            raise DataError(msg)
        if path.suffix != ".parquet":
            return cls(read_csv(path), path.parent if root is None else root)
        frame, stored = read_parquet(path)
        found = cls(frame, path.parent / stored if root is None else root)
        found.noted = read_noted(path)
        return found

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write to Parquet (by the ending ``.parquet``) or CSV, whole or not at all; an older manifest is replaced.

        Raises
        ------
        DataError, OutputError
            As `require_target`; also if the file cannot be written.
        """
        path = Path(path)
        require_target(path, self.root)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with publish(path) as scratch:
                if path.suffix == ".parquet":
                    _write_parquet(self.frame, scratch, os.path.relpath(self.root, path.parent), self.noted)
                else:
                    self.frame.to_csv(scratch, index=False)
        except OSError as error:
            msg = f"no manifest can be written to {path} ({error.strerror}); name a file that can"
            raise OutputError(msg) from error

    @property
    def sha256(self) -> str:
        """Hash of the content without the root: the same for Parquet and CSV, and for any order of rows."""
        return hashlib.sha256(self.frame.to_csv(index=False, lineterminator="\n").encode()).hexdigest()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.frame)

    def select(self, mask: pd.Series) -> Manifest:
        """Return the manifest of the rows where `mask` is True."""
        return Manifest(self.frame[mask], self.root)


def require_target(path: Path, root: Path) -> None:
    """Raise if a manifest of images below `root` cannot be written to `path`, or would replace what is no manifest.

    Parameters
    ----------
    path : Path
        File to be written.
    root : Path
        Folder of the images.

    Raises
    ------
    DataError
        If the ending is neither ``.parquet`` nor ``.csv``, or a CSV file is to lie outside the root, which it has no
        place to name.
    OutputError
        If there is a folder of that name, or a file that dlprobe did not write as a manifest, such as a table of the
        user's own.
    """
    if path.is_dir():
        msg = f"{path} is a folder; give the manifest a file name, such as {path / 'manifest.parquet'}"
        raise OutputError(msg)
    if path.suffix not in {".parquet", ".csv"}:
        msg = f"{path} ends neither in .parquet nor in .csv; name the manifest such as {path.stem}.parquet"
        raise DataError(msg)
    if path.suffix == ".csv" and path.parent.resolve() != root.resolve():
        msg = f"a CSV manifest must lie in its root {root}; write there, or write Parquet ({path.stem}.parquet)"
        raise DataError(msg)
    if path.exists() and not _is_manifest(path):
        msg = f"{path} is there and was not written by dlprobe; write to another name, or move it away"
        raise OutputError(msg)


def _is_manifest(path: Path) -> bool:
    """Tell whether a file was written by dlprobe: by `Manifest.write`, or as the table of a synthesized data set."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return _ROOT_KEY in (pq.read_schema(path).metadata or {})
        except (pa.ArrowException, OSError):
            return False
    with path.open("rb") as file:
        header = file.readline(1000).strip()
    return header in {",".join(columns).encode() for columns in (COLUMNS, TEXT_COLUMNS, (*COLUMNS, MASK_READING))}


def source_groups(frame: pd.DataFrame) -> pd.Series:
    """Return for each image the name of its group: sources joined by donors, which no split may part.

    Parameters
    ----------
    frame : DataFrame
        With columns ``source_id`` and ``donor_id``.

    Returns
    -------
    Series of str, aligned with `frame`
        The alphabetically first source_id of the group.
    """
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for source, donor in frame[["source_id", "donor_id"]].drop_duplicates().itertuples(index=False):
        left, right = find(source), find(donor or source)
        parent[max(left, right)] = min(left, right)
    return frame["source_id"].map(find)


def crossing_sources(frame: pd.DataFrame) -> list[str]:
    """Return the groups of sources that stand in more than one split, sorted."""
    named = frame[frame["split"] != ""]
    counts = named.groupby(source_groups(named))["split"].nunique() if len(named) else pd.Series(dtype=int)
    return sorted(str(name) for name in counts[counts > 1].index)


def table_root(path: Path) -> Path:
    """Return the folder that the paths of a table are relative to.

    That is the one that a manifest names, if it is there, else the one that the table lies in; of a folder itself.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.is_dir():
        return path
    if path.suffix == ".parquet":
        try:
            named = path.parent / _stored_root(pq.read_schema(path))
        except (pa.ArrowException, OSError):  # whoever reads the table says what is wrong with it
            return path.parent
        if named.is_dir():
            return named
    return path.parent


def _stored_root(schema: pa.Schema) -> str:
    """Return the root that a manifest names, "." for another table."""
    return str((schema.metadata or {}).get(_ROOT_KEY, b".").decode())


def read_csv(path: Path) -> pd.DataFrame:
    """Return a CSV file as text columns; raise `DataError` if it is none."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:  # ParserError, EmptyDataError and UnicodeDecodeError are ValueErrors
        msg = f"{path} cannot be read as CSV ({str(error).splitlines()[0]}); give a comma-separated table with a header"
        raise DataError(msg) from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes a surplus column for the index and shifts the rest
        msg = f"{path} has rows with more fields than its header names; quote fields with commas, drop trailing ones"
        raise DataError(msg)
    return table.fillna("")


def read_parquet(path: Path) -> tuple[pd.DataFrame, str]:
    """Return a Parquet file and the root that it names ("." if none); raise `DataError` if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        msg = f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}); write it again with `dlprobe scan`"
        raise DataError(msg) from error
    return table.to_pandas(), _stored_root(table.schema)


def read_noted(path: str | os.PathLike[str]) -> tuple[Noted, ...]:
    """Return what the audit noted of a manifest, from the file's header; nothing of CSV, which has no place for it.

    Parameters
    ----------
    path : path
        Of a manifest.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stored = (pq.read_schema(path).metadata or {}).get(_NOTED_KEY, b"[]")
        return tuple(Noted(*entry) for entry in json.loads(stored))
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return ()


def _write_parquet(frame: pd.DataFrame, path: Path, root: str, noted: tuple[Noted, ...]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    about = {_ROOT_KEY: root.encode(), **({_NOTED_KEY: json.dumps(noted).encode()} if noted else {})}
    pq.write_table(table.replace_schema_metadata(about), path)


def _normalised(frame: pd.DataFrame) -> pd.DataFrame:
    if missing := [name for name in REQUIRED if name not in frame]:
        msg = f"the manifest lacks the column {' and '.join(missing)}; required are {', '.join(REQUIRED)}"
        raise DataError(msg)
    text = {
        name: as_text(frame[name]) if name in frame else pd.Series("", index=frame.index, dtype=object)
        for name in TEXT_COLUMNS
    }
    sizes = {name: _sizes(frame, name) for name in SIZE_COLUMNS}
    table = pd.DataFrame({**text, **sizes})
    if MASK_READING in frame and ((readings := as_text(frame[MASK_READING])) != "").any():
        table[MASK_READING] = readings
    _check(table)
    return table.sort_values("path", kind="stable").reset_index(drop=True)


def as_text(values: pd.Series) -> pd.Series:
    """Return a column of any type as str objects, empty where nothing is known."""
    texts = ["" if unknown else str(value) for value, unknown in zip(values, values.isna(), strict=True)]
    return pd.Series(texts, index=values.index, dtype=object)


def _sizes(frame: pd.DataFrame, name: str) -> pd.Series:
    if name not in frame:
        return pd.Series(0, index=frame.index, dtype="int64")
    known = frame[name].notna() & (frame[name].astype(object) != "")
    values = pd.to_numeric(frame[name].astype(object).where(known, 0), errors="coerce").astype("float64")
    if (wrong := ~((values >= 0) & (values < 2**31) & (values % 1 == 0)).to_numpy()).any():
        row = frame.iloc[int(wrong.argmax())]
        msg = f"the manifest gives {row['path']} the {name} {str(row[name])!r}; write whole pixels or leave it empty"
        raise DataError(msg)
    return values.astype("int64")


def _check(table: pd.DataFrame) -> None:
    for name in REQUIRED:
        if (empty := table[name] == "").any():
            msg = (
                f"the manifest has {int(empty.sum())} rows without {name} (first: row {int(empty.argmax())}); fill them"
            )
            raise DataError(msg)
    for name in TEXT_COLUMNS:
        if bad := next((value for value in table[name].unique() if UNSTORABLE.search(value)), ""):
            msg = f"the manifest has the {name} {bad!r} with a control character or bytes that are no UTF-8; rename it"
            raise DataError(msg)
    if not (known := table["variant"].isin([str(v) for v in VARIANTS])).all():
        row = table[~known].iloc[0]
        msg = f"{row['path']} has the variant {row['variant']!r}; write one of {', '.join(VARIANTS)}"
        raise DataError(msg)
    if MASK_READING in table and not (known := table[MASK_READING].isin(MASK_READINGS)).all():
        row = table[~known].iloc[0]
        choice = ", ".join(filter(None, MASK_READINGS))
        msg = f"{row['path']} has the {MASK_READING} {row[MASK_READING]!r}; write one of {choice} or leave it empty"
        raise DataError(msg)
    if MASK_READING in table and (idle := (table[MASK_READING] != "") & (table["mask"] == "")).any():
        row = table[idle].iloc[0]
        msg = f"{row['path']} has the {MASK_READING} {row[MASK_READING]!r} and no mask; name the mask or leave it empty"
        raise DataError(msg)
    if not (known := table["split"].isin(["", *SPLITS])).all():
        row = table[~known].iloc[0]
        msg = f"{row['path']} has the split {row['split']!r}; write one of {', '.join(SPLITS)} or leave it empty"
        raise DataError(msg)
    if (twice := table["path"].duplicated()).any():
        msg = f"{table.loc[twice.idxmax(), 'path']} stands twice in the manifest; keep one row an image"
        raise DataError(msg)
