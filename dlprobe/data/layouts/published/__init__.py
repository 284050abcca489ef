"""Layouts of published data sets, each as its authors' names and tables say; importing this package registers them."""

from dlprobe.data.layouts.published.bfree import bfree_layout
from dlprobe.data.layouts.published.btb import btb_layout
from dlprobe.data.layouts.published.pairs import autosplice_layout, brgen_layout, cocoglide_layout, opensdi_layout
from dlprobe.data.layouts.published.sagi import sagi_layout
from dlprobe.data.layouts.published.tgif import tgif2_layout, tgif_layout

__all__ = [
    "autosplice_layout",
    "bfree_layout",
    "brgen_layout",
    "btb_layout",
    "cocoglide_layout",
    "opensdi_layout",
    "sagi_layout",
    "tgif2_layout",
    "tgif_layout",
]
