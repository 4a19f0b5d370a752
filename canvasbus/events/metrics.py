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
    metric: str
    """Its name, for example `accuracy`, `fid` or `latency_p99`."""
    value: float
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
    """The metric, in its own unit; durations in seconds. Under the condition `absent`: what was reported last."""
    bound: float | None = None
    """What `value` was expected or allowed to be, in the same unit; None: the condition is another one than `value`."""
    condition: Literal["value", "change", "relative_change", "absent"] = "value"
    """What is on the wrong side of its bound: `value` and `bound`; `change` and `change_bound`; `relative_change` and
    `relative_bound`; or, absent, `silent_seconds` and `allowed_seconds`. The other pairs are None."""
    change: float | None = None
    """By how much the metric differs from what it was `over_seconds` before, in its own unit."""
    change_bound: float | None = None
    """What `change` was allowed to be, in the same unit."""
    relative_change: float | None = None
    """The change as a share of what the metric was: -0.22 is 22 % less."""
    relative_bound: float | None = None
    """What `relative_change` was allowed to be: a share, too."""
    over_seconds: float | None = None
    """The time of the change, in seconds; None: it is about no change."""
    silent_seconds: float | None = None
    """Seconds without a report."""
    allowed_seconds: float | None = None
    """Seconds without a report that were allowed."""
    direction: Literal["below", "above"] = "below"
    """On which side of its bound it lies."""
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
    """The metric, in its own unit."""
    bound: float | None = None
    """What `value` keeps to, in the same unit; None: the condition is another one, or the rule was taken away."""
    condition: Literal["value", "change", "relative_change", "absent"] = "value"
    """What keeps its bound again, as in `metric.threshold_breached`; absent: reports come again."""
    change: float | None = None
    """By how much the metric differs from what it was `over_seconds` before, in its own unit."""
    change_bound: float | None = None
    """What `change` keeps to, in the same unit."""
    relative_change: float | None = None
    """The change as a share of what the metric was: -0.22 is 22 % less."""
    relative_bound: float | None = None
    """What `relative_change` keeps to: a share, too."""
    over_seconds: float | None = None
    """The time of the change, in seconds; None: it is about no change."""
    allowed_seconds: float | None = None
    """Seconds without a report that are allowed; None: it is not about silence."""
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
    segment: str = ""
    """The segment of the traffic; empty: all of it."""
