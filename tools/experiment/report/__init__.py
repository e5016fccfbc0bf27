"""The report of an experiment: the published table beside ours, its plots, and a verdict for each question."""

from tools.experiment.report.write import ReportFiles, write_report

__all__ = ["ReportFiles", "write_report"]
