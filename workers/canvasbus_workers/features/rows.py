"""What a feature row is, and which events make one. No trio, no server.

A row says all of a feature set about one entity at one moment: it replaces the one before as a whole, so that no feature
of an earlier moment stays behind. Of two rows the one with the later event time counts, of two of the same time the one
with the greater event id. So the row that remains does not depend on the order in which they come, nor on how often.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import prod
from typing import Any

import msgspec
from msgspec import Struct

from canvasbus.events import FeaturesComputed, FloatArray, WindowEvaluated

DRIFT_VIEW = "drift"
"""The feature set of the rows that are made of `window.evaluated`."""
MAX_FEATURES = 1000
"""Of one row; more of them are a vector."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class FeatureRow(Struct, frozen=True, kw_only=True):
    """One row for the feature store."""

    view: str
    """The feature set."""
    entity: str
    """What it describes."""
    event_time: datetime
    """The moment it is true for, aware."""
    event_id: str
    """Of the event that brought it, 32 hexadecimal digits: writing it twice is writing it once."""
    values: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Scalar features by name."""
    vectors: Mapping[str, FloatArray] = msgspec.field(default_factory=dict)
    """Vector features by name."""

    @property
    def order(self) -> tuple[int, str]:
        """Of rows of one view and entity the greatest is the one that counts."""
        return micros(self.event_time), self.event_id


class BadRow(ValueError):
    """A row that no store should take; the text says why."""


def micros(moment: datetime) -> int:
    """Microseconds since 1970, UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def moment_of(micros: int) -> datetime:
    """The other way."""
    return _EPOCH + timedelta(microseconds=micros)


def row_of(event: FeaturesComputed | WindowEvaluated, event_id: str) -> FeatureRow | None:
    """The row of an event; None: it has none, since the window was compared with nothing."""
    if isinstance(event, FeaturesComputed):
        return FeatureRow(
            view=event.feature_set,
            entity=event.entity,
            event_time=event.event_time or event.occurred_on,
            event_id=event_id,
            values=event.values,
            vectors=event.vectors,
        )
    if event.status == "warmup":
        return None
    return FeatureRow(
        view=DRIFT_VIEW,
        entity=f"{event.model_name}/{event.segment}" if event.segment else event.model_name,
        event_time=event.window_end or event.occurred_on,
        event_id=event_id,
        values=_drift_values(event),
    )


def _drift_values(event: WindowEvaluated) -> dict[str, float]:
    found: dict[str, Any] = {
        **event.scores,
        "flagged": event.status == "flagged",
        "drift_score": event.drift_score,
        "threshold": event.threshold,
        "p_value": event.p_value,
        "effect": event.effect,
        "items": event.items,
        "window": event.number,
        "confidence": event.confidence,
    }
    if event.estimated_accuracy is not None:
        found["estimated_accuracy"] = event.estimated_accuracy
    return {name: float(value) for name, value in found.items()}


def check(row: FeatureRow, now: datetime, ahead_seconds: float) -> None:
    """Raise BadRow when the row is not to be stored. `ahead_seconds`: seconds that it may lie in the future: it would keep
    everything out that comes before its time."""
    ahead = (row.event_time - now).total_seconds()
    if ahead > ahead_seconds:
        raise BadRow(
            f"its event time {row.event_time.isoformat()} is {ahead:.0f} s ahead of the clock here, and {ahead_seconds:g} s "
            "are allowed (ahead_seconds): is the clock of the producer right?"
        )
    if not row.entity:
        raise BadRow("it has no entity")
    if len(row.values) + len(row.vectors) > MAX_FEATURES:
        raise BadRow(
            f"it has {len(row.values) + len(row.vectors)} features, at most {MAX_FEATURES} are allowed: make a vector of them"
        )
    if both := row.values.keys() & row.vectors.keys():
        raise BadRow(f"{min(both)!r} is a value and a vector")
    for name, vector in row.vectors.items():
        if 4 * prod(vector.shape) != len(vector.data):
            raise BadRow(
                f"the vector {name!r} has {len(vector.data)} bytes, which is no float32 of shape {vector.shape}"
            )
