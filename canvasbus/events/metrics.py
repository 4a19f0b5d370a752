"""Metrics of models, and the bounds they should keep."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from canvasbus.contract.event import Event
from canvasbus.contract.registry import event
from canvasbus.events.parts import Count, Fraction, Severity


@event("metric.reported", key="model_name")
class MetricReported(Event):
    """One value of one metric."""

    model_name: str
    """The model."""
    metric: str = ""
    """Its name, for example `accuracy`, `fid` or `latency_p99`."""
    value: float = 0.0
    """In the metric's own unit; durations in seconds."""
    items: Count = 0
    """How many observations it is computed from; 0: not stated."""
    model_version: str = ""
    """The version that was measured."""
    window_id: str = ""
    """The window that was measured; empty: none."""
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Dimensions, for example the segment."""


@event("metric.threshold_breached", key="model_name")
class MetricThresholdBreached(Event):
    """A metric is on the wrong side of its bound, and not by chance. Repeated as a reminder while it stays there."""

    model_name: str
    """The model."""
    metric: str = ""
    """Its name."""
    value: float = 0.0
    """What was measured."""
    bound: float = 0.0
    """What was expected or allowed."""
    direction: Literal["below", "above"] = "below"
    """On which side of the bound the value lies."""
    p_value: Fraction | None = None
    """Probability of such a value when the bound is kept; None: a plain comparison."""
    items: Count = 0
    """Observations behind the value."""
    model_version: str = ""
    """The version that was measured."""
    window_id: str = ""
    """The window that decided."""
    window_number: Count = 0
    """Its number."""
    first_window: Count = 0
    """The number of the oldest window behind the value."""
    reference_id: str = ""
    """The reference that set the bound; empty: a constant."""
    episode_id: str = ""
    """The same from the first breach to the recovery."""
    severity: Severity = "critical"
    """How bad it is."""
    reminder: bool = False
    """True when an earlier event opened this episode already."""
    rule: str = ""
    """The rule that was broken; empty: none, a monitor has judged."""
    condition: Literal["value", "change", "relative_change", "absent"] = "value"
    """What `value` and `bound` are: the metric; its change over the rule's time, in its own unit or as a share; or
    absent: seconds without a report."""
    segment: str = ""
    """The segment of the traffic; empty: all of it."""


@event("metric.recovered", key="model_name")
class MetricRecovered(Event):
    """The metric keeps its bound again, long enough to believe it."""

    model_name: str
    """The model."""
    metric: str = ""
    """Its name."""
    value: float = 0.0
    """What was measured."""
    bound: float = 0.0
    """The bound that it keeps."""
    model_version: str = ""
    """The version that was measured."""
    window_id: str = ""
    """The window that decided."""
    window_number: Count = 0
    """Its number."""
    episode_id: str = ""
    """As in `metric.threshold_breached`."""
    rule: str = ""
    """As in `metric.threshold_breached`."""
    condition: Literal["value", "change", "relative_change", "absent"] = "value"
    """As in `metric.threshold_breached`."""
    segment: str = ""
    """The segment of the traffic; empty: all of it."""
