"""The demo's report: one HTML file that opens from disk, with every figure of a run and where it comes from."""

from tools.report.page import render, write_report
from tools.report.pictures import Prediction, PredictionError

__all__ = ["Prediction", "PredictionError", "render", "write_report"]
