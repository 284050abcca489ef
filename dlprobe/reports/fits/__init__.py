"""The page of a fit: its tables, its figures, and the images that a threshold can be tried on."""

from dlprobe.reports.fits.writing import Picture, write_report

__all__ = ["Picture", "write_report"]
