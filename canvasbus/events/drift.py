"""What monitors found out about windows of observations."""

from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from canvasbus.contract.event import AwareDatetime, Event
from canvasbus.contract.registry import event
from canvasbus.events.parts import Count, Fraction, NonNegative, Severity


class FeatureDrift(Struct, frozen=True, kw_only=True):
    """One feature that has drifted."""

    feature: str
    """The column or array, for example `sharpness`, `probabilities[3]` or `embedding`."""
    test: str = ""
    """`ks` (Kolmogorov-Smirnov, numeric columns), `chi2` (categories) or `mmd` (squared maximum mean discrepancy of random
    features, embeddings)."""
    score: NonNegative = 0.0
    """The statistic of that test."""
    threshold: NonNegative = 0.0
    """What a clean window of this size exceeds with the probability `level`."""
    p_value: Fraction = 1.0
    """Of this feature alone."""
    p_adjusted: Fraction = 1.0
    """For all features of the window."""
    effect: NonNegative = 0.0
    """How much, beyond what is usual for clean windows of this size. Numeric: standard deviations that the mass has moved
    on average. Categorical: share of rows that have changed. Embedding: distance of the means in units of the spread."""
    direction: Literal["up", "down", "mixed"] = "mixed"
    """Where numbers have moved; mixed: their shape has changed, or they are no numbers."""
    scores: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Other statistics of the feature by name: `psi`, `kl`, `jensen_shannon`, `hellinger`, `wasserstein` (in standard
    deviations), `total_variation`, `frechet`."""


@event("window.evaluated", key="model_name")
class WindowEvaluated(Event):
    """One window was tested. Clean windows are reported too: charts and audits need the denominator."""

    model_name: str
    """The model."""
    model_version: str = ""
    """The version that answered."""
    segment: str = ""
    """The segment of the traffic; empty: all of it."""
    window_id: str = ""
    """The id of its first batch: the same window evaluated again has the same id."""
    number: Count = 0
    """The windows of a model count from 0, over all versions and segments."""
    window_start: AwareDatetime | None = None
    """`occurred_on` of the first batch in it."""
    window_end: AwareDatetime | None = None
    """`occurred_on` of the last batch in it."""
    items: Count = 0
    """Observations in the window."""
    batches: Count = 0
    """Batches in it."""
    status: Literal["ok", "flagged", "warmup"] = "ok"
    """flagged: for every reference some feature has drifted. warmup: the version has no reference yet."""
    span: Count = 1
    """Windows that were looked at together: 1, or those of the long span where only that one shows a drift."""
    drift_score: NonNegative = 0.0
    """The statistic named by `drift_type`, against the best matching reference."""
    threshold: NonNegative = 0.0
    """What a clean window of this size exceeds with the probability `level`."""
    level: Fraction = 0.0
    """Of the adjusted p-value, at which a feature is flagged."""
    effect: NonNegative = 0.0
    """How much it has changed, beyond the usual; see FeatureDrift."""
    tested: Count = 0
    """Features that were tested: the family that p-values are adjusted for."""
    features: tuple[str, ...] = ()
    """Those that have drifted, most significant first, at most 20."""
    excluded: tuple[str, ...] = ()
    """Features that were not tested because they break plain expectations, at most 20; see `data_quality.violated`."""
    drift_type: str = ""
    """The most significant test, for example `ks:sharpness` or `mmd:embedding`."""
    p_value: Fraction = 1.0
    """Adjusted for all tests of the window, against the best matching reference."""
    reference_id: str = ""
    """The best matching reference; empty in warmup."""
    regime: str = ""
    """The data that this reference was made from."""
    scores: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Test → statistic, against the best matching reference, of the 20 most significant ones."""
    confidence: Fraction = 0.0
    """Mean top probability; 0.0: there are no probabilities. It overstates accuracy."""
    estimated_accuracy: Fraction | None = None
    """Share of right answers that the model's confidence promises, calibrated on the reference, without any label. It
    ranks windows well and overstates the level under a real shift: watch its change. None: there are no probabilities."""


@event("drift.detected", version=1, key="model_name")
class DriftDetected(Event):
    """A model's data have left every active reference, in more than one window; or its errors have become more frequent.
    One event for each model, segment, window and scope, with the drifted features inside."""

    model_name: str
    """The model."""
    drift_score: float
    """The statistic named by `drift_type`."""
    drift_type: str
    """Which test says so, for example `ks:sharpness`, `mmd:embedding`, `hddm_a:errors` or `psi`."""
    model_version: str = ""
    """The version that answered."""
    segment: str = ""
    """The segment of the traffic; empty: all of it."""
    scope: Literal["data", "errors"] = "data"
    """data: what the model sees and says. errors: what labels say about its answers, watched one by one."""
    threshold: NonNegative = 0.0
    """What a clean window of this size exceeds with the probability `level`; 0.0: the test has none."""
    level: Fraction = 0.0
    """Of the adjusted p-value, at which a feature is flagged; 0.0: the test has none."""
    p_value: Fraction | None = None
    """Adjusted for all tests of the window (Benjamini-Hochberg); None: the test gives none."""
    effect: NonNegative = 0.0
    """Size of the change; see FeatureDrift."""
    direction: Literal["up", "down", "mixed"] = "mixed"
    """Where the feature named by `drift_type` has moved."""
    tested: Count = 0
    """Features that were tested: the family that p-values are adjusted for."""
    drifted: Count = 0
    """Features that have drifted."""
    features: tuple[FeatureDrift, ...] = ()
    """Those, most significant first, at most 10."""
    items: Count = 0
    """Rows behind it; of all its windows where they were looked at together."""
    reference_items: Count = 0
    """Rows of the reference."""
    span: Count = 1
    """Windows that were looked at together."""
    severity: Severity = "warning"
    """critical once labels show that quality suffers."""
    state: Literal["opened", "escalated"] = "opened"
    """escalated: the same episode, more severe than when it was told last: its effect has doubled, or quality suffers."""
    episode_id: str = ""
    """The same from opening to resolution."""
    window_id: str = ""
    """The window that decided."""
    window_number: Count = 0
    """Its number."""
    window_start: AwareDatetime | None = None
    """`occurred_on` of its first batch."""
    window_end: AwareDatetime | None = None
    """`occurred_on` of its last batch."""
    first_window: Count = 0
    """The first window of the episode that was flagged."""
    estimated_accuracy: Fraction | None = None
    """As in `window.evaluated`."""
    reference_id: str = ""
    """The closest reference, which it still does not match."""
    reference_hash: str = ""
    """SHA-256 of what that reference was made from, in hexadecimal; empty: there is none."""
    reminder: bool = False
    """True when nothing is new: the episode goes on, and what was done about it has not helped."""


@event("drift.resolved", key="model_name")
class DriftResolved(Event):
    """The data match an active reference again, for several windows."""

    model_name: str
    """The model."""
    model_version: str = ""
    """The version that answered."""
    segment: str = ""
    """The segment of the traffic; empty: all of it."""
    scope: Literal["data", "errors"] = "data"
    """As in `drift.detected`."""
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
    """The column; empty: the whole batch. Of several, the one that is worst."""
    features: tuple[str, ...] = ()
    """All columns that have come to break this check with this window, at most 20."""
    model_version: str = ""
    """The version that consumed them."""
    segment: str = ""
    """The segment of the traffic; empty: all of it."""
    observed: float | None = None
    """Share of rows that break it; None: not a number."""
    allowed: float | None = None
    """The reference's own share; None: not a number."""
    items: Count = 0
    """Rows that were looked at."""
    batch_id: str = ""
    """The batch, or the window by its id."""
    severity: Severity = "critical"
    """How bad it is."""
