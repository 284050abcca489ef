"""Layouts: functions that read a data set's folders into records, one per image.

A layout is a callable ``layout(root, **options) -> Iterator[Record | Reject]``; other packages announce theirs under
the entry-point group ``dlprobe.layouts``. It neither opens images nor drops anything silently: a file that it cannot
place becomes a `Reject` with the reason.
"""

from dlprobe.data.layouts.base import LAYOUTS, Record, Reject
from dlprobe.data.layouts.generic import csv_layout, folder_layout

__all__ = ["LAYOUTS", "Record", "Reject", "csv_layout", "folder_layout"]
