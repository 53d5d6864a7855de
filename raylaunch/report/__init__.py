"""The launch report: what each rank did in each phase, how long it took, and what it said of itself."""

from raylaunch.report.launch_report import LaunchReport
from raylaunch.report.records import Due, KeptWeights, RankPlace, Span, Standing, StepRecord, timed
from raylaunch.report.table import describe_routes

__all__ = [
    "Due",
    "KeptWeights",
    "LaunchReport",
    "RankPlace",
    "Span",
    "Standing",
    "StepRecord",
    "describe_routes",
    "timed",
]
