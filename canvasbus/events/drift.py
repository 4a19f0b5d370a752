"""What monitors found out about windows of observations."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from canvasbus.contract.event import AwareDatetime, Event
from canvasbus.contract.registry import event
from canvasbus.events.parts import Count, Fraction, NonNegative, Severity


@event("window.evaluated", key="model_name")
class WindowEvaluated(Event):
    """One window was tested. Clean windows are reported too: charts and audits need the denominator."""

    model_name: str
    """The model."""
    model_version: str = ""
    """The version that answered."""
    window_id: str = ""
    """Unique; the same window evaluated again has the same id."""
    number: Count = 0
    """The windows of a model count from 0."""
    window_start: AwareDatetime | None = None
    """`occurred_on` of the first batch in it."""
    window_end: AwareDatetime | None = None
    """`occurred_on` of the last batch in it."""
    items: Count = 0
    """Observations in the window."""
    status: Literal["ok", "flagged", "warmup"] = "ok"
    """flagged: some test is significant for every reference. warmup: the version has no reference yet."""
    drift_score: NonNegative = 0.0
    """Largest statistic against the best matching reference; 0 means equal, KS distances end at 1."""
    drift_type: str = ""
    """The most significant test, for example `ks:sharpness` or `mmd:embedding`."""
    p_value: Fraction = 1.0
    """Adjusted for all tests of the window, against the best matching reference."""
    reference_id: str = ""
    """The best matching reference; empty in warmup."""
    regime: str = ""
    """The data that this reference was made from."""
    scores: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Test → statistic, against the best matching reference."""
    confidence: Fraction = 0.0
    """Mean top probability. It ranks windows well and overstates accuracy: an estimate to watch change, no more."""


@event("drift.detected", version=1, key="model_name")
class DriftDetected(Event):
    """A model's data have left every active reference, in more than one window."""

    model_name: str
    """The model."""
    drift_score: float
    """The statistic named by `drift_type`."""
    drift_type: str
    """Which test says so, for example `ks:sharpness`, `mmd:embedding` or `psi`."""
    model_version: str = ""
    """The version that answered."""
    p_value: Fraction | None = None
    """Adjusted for all tests of the window; None: the test gives none."""
    severity: Severity = "warning"
    """critical once labels show that quality suffers."""
    state: Literal["opened", "escalated"] = "opened"
    """escalated: the same episode, more severe than when it opened."""
    episode_id: str = ""
    """The same from opening to resolution."""
    window_id: str = ""
    """The window that decided."""
    window_number: Count = 0
    """Its number."""
    first_window: Count = 0
    """The first window of the episode that was flagged."""
    reference_id: str = ""
    """The closest reference, which it still does not match."""
    reminder: bool = False
    """True when nothing is new: the episode goes on, and what was done about it has not helped."""


@event("drift.resolved", key="model_name")
class DriftResolved(Event):
    """The data match an active reference again, for several windows."""

    model_name: str
    """The model."""
    model_version: str = ""
    """The version that answered."""
    episode_id: str = ""
    """As in `drift.detected`."""
    window_id: str = ""
    """The window that decided."""
    window_number: Count = 0
    """Its number."""
    windows: Count = 0
    """Windows from the first flagged one to this one."""
    reference_id: str = ""
    """The reference that it matches."""
    regime: str = ""
    """The data that this reference was made from: tells a return to normal from a model that has adapted."""


@event("data_quality.violated", key="model_name")
class DataQualityViolated(Event):
    """Data break their schema or plain expectations; drift tests leave the feature out in that window."""

    model_name: str
    """The model that consumes the data."""
    check: Literal["schema", "type", "range", "category", "missing", "constant", "duplicate"] = "schema"
    """What was checked."""
    feature: str = ""
    """The column; empty: the whole batch."""
    observed: float | None = None
    """What was found, for example a share of missing values; None: not a number."""
    allowed: float | None = None
    """The bound that was broken."""
    items: Count = 0
    """Rows that were looked at."""
    batch_id: str = ""
    """The batch or window."""
    severity: Severity = "critical"
    """How bad it is."""
