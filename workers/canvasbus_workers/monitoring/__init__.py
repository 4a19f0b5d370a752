"""Monitoring as a library: statistics, and a monitor that turns windows of rows into verdicts. numpy and scipy; no bus.

    statistics    how far two samples are apart: plain functions over arrays
    nulls         what is usual for two clean samples of these sizes: thresholds and p-values
    reference     rows known to be good, immutable, named by their digest          (columns, embeddings, estimate)
    partial       what rows add to a window: whole numbers that add up in any order
    verdict       a window against its references, one report for each feature      (expectations, policy)
    episodes      from flags to episodes that somebody is woken for
    monitor       all of it in one object
    sequential    HDDM_A and ADWIN, with a state of a few numbers
    quality       late labels: is the model as right as it was promised to be?

The drift worker is these, and a bus around them.
"""

from canvasbus_workers.monitoring.episodes import Episode
from canvasbus_workers.monitoring.estimate import Calibration
from canvasbus_workers.monitoring.expectations import Violation
from canvasbus_workers.monitoring.monitor import Course, Monitor, judge
from canvasbus_workers.monitoring.partial import Partial, count
from canvasbus_workers.monitoring.policy import Policy
from canvasbus_workers.monitoring.reference import Reference, ShapeError
from canvasbus_workers.monitoring.sequential import Adwin, HddmA
from canvasbus_workers.monitoring.verdict import Comparison, FeatureReport, Measure, Verdict, compare

__all__ = [
    "Adwin",
    "Calibration",
    "Comparison",
    "Course",
    "Episode",
    "FeatureReport",
    "HddmA",
    "Measure",
    "Monitor",
    "Partial",
    "Policy",
    "Reference",
    "ShapeError",
    "Verdict",
    "Violation",
    "compare",
    "count",
    "judge",
]
