"""Reports: one self-contained HTML file each."""

from dlprobe.reports.case import write_case_report
from dlprobe.reports.evaluation import write_evaluation_report
from dlprobe.reports.fits import Picture, write_report
from dlprobe.reports.folders import report_folder
from dlprobe.reports.scan import write_scan_report
from dlprobe.reports.study import write_study_report

__all__ = [
    "Picture",
    "report_folder",
    "write_case_report",
    "write_evaluation_report",
    "write_report",
    "write_scan_report",
    "write_study_report",
]
