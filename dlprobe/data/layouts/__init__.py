"""Layouts: functions that read a data set's folders into records, one per image.

A layout is a callable ``layout(root, **options)`` that yields `Record`, `Reject`, `Ignored`, `Finding` and `Guess`;
other packages announce theirs under the entry-point group ``dlprobe.layouts``. It opens tables but no images, and
drops nothing silently: a file that it cannot place becomes a `Reject` with the reason, and `dlprobe.data.scan` counts
every file that no layout named.
"""

from dlprobe.data.layouts import published
from dlprobe.data.layouts.base import LAYOUTS, Finding, Guess, Ignored, Record, Reject
from dlprobe.data.layouts.generic import csv_layout, folder_layout
from dlprobe.data.layouts.lists import json_layout, list_layout, manidataset_layout

__all__ = [
    "LAYOUTS",
    "Finding",
    "Guess",
    "Ignored",
    "Record",
    "Reject",
    "csv_layout",
    "folder_layout",
    "json_layout",
    "list_layout",
    "manidataset_layout",
    "published",
]
