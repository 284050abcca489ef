"""Reports: one self-contained HTML file."""

from dlprobe.reports.html import Picture, write_report

__all__ = ["Picture", "write_report"]
