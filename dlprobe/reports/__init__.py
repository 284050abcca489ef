"""Reports: one self-contained HTML file each."""

from dlprobe.reports.html import Picture, write_report
from dlprobe.reports.scan import write_scan_report

__all__ = ["Picture", "write_report", "write_scan_report"]
