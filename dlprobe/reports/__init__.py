"""Reports: one self-contained HTML file each."""

from dlprobe.reports.case import write_case_report
from dlprobe.reports.evaluation import write_evaluation_report
from dlprobe.reports.html import Picture, report_folder, write_report
from dlprobe.reports.scan import write_scan_report

__all__ = [
    "Picture",
    "report_folder",
    "write_case_report",
    "write_evaluation_report",
    "write_report",
    "write_scan_report",
]
