"""The vocabulary keeps its promises: names, defaults, bounds, round trips, and a docstring for every field."""

import ast
import inspect

import msgspec
import pytest

import canvasbus.events as vocabulary
from canvasbus import Event
from canvasbus.contract.registry import registry
from canvasbus.errors import EncodeError
from canvasbus.events import (
    DriftDetected,
    FloatArray,
    MetricReported,
    ObservationsRecorded,
    RetrainSucceeded,
    WindowEvaluated,
)
from canvasbus.wire.codec import Codec

NAMES = {
    "observations.recorded",
    "labels.recorded",
    "reference.registered",
    "features.computed",
    "window.evaluated",
    "drift.detected",
    "drift.resolved",
    "data_quality.violated",
    "metric.reported",
    "metric.threshold_breached",
    "metric.recovered",
    "incident.opened",
    "incident.resolved",
    "silence.added",
    "silence.expired",
    "retrain.requested",
    "retrain.proposed",
    "retrain.rejected",
    "retrain.started",
    "retrain.succeeded",
    "retrain.failed",
    "model.promoted",
    "handler.failed",
    "bus.loss",
}

CLASSES = [v for v in vars(vocabulary).values() if isinstance(v, type) and issubclass(v, Event)]
STRUCTS = [v for v in vars(vocabulary).values() if isinstance(v, type) and issubclass(v, msgspec.Struct)]


def minimal(cls: type[Event]) -> Event:
    """The event with nothing but its required fields."""
    fillers = {str: "x", float: 0.5}
    required = {f.name: fillers[f.type] for f in msgspec.structs.fields(cls) if f.required}
    return cls(**required)


def test_the_vocabulary_is_the_contracts() -> None:
    """Exactly the agreed event types are exported, each in its first version."""
    assert {registry.of(cls).name for cls in CLASSES} == NAMES
    assert {registry.of(cls).version for cls in CLASSES} == {1}


def test_three_fields_make_a_drift_event() -> None:
    """model_name, drift_score and drift_type alone are a valid drift.detected."""
    event = DriftDetected(model_name="StyleGAN-Canvas-v3", drift_score=0.4, drift_type="psi")
    assert event.severity == "warning"
    assert event.occurred_on.tzinfo is not None


@pytest.mark.parametrize("cls", [c for c in CLASSES if c.__module__.startswith("canvasbus.events")])
def test_every_event_survives_the_wire(cls: type[Event]) -> None:
    """An event with defaults only decodes to itself, and only its key is required; of drift and of a reported metric also
    what they say, which nothing stands for."""
    event = minimal(cls)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=cls) == event
    assert msgspec.json.decode(msgspec.json.encode(event), type=cls) == event
    required = [f.name for f in msgspec.structs.fields(cls) if f.required]
    more = {DriftDetected: ["drift_score", "drift_type"], MetricReported: ["metric", "value"]}.get(cls, [])
    assert required == [registry.of(cls).key, *more]


def test_packed_arrays_survive_the_wire() -> None:
    """Bytes and shape of an array come back as they were."""
    array = FloatArray(shape=(2, 1), data=b"\0\0\x80\x3f\0\0\0\x40")
    event = ObservationsRecorded(model_name="m", arrays={"embedding": array})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=ObservationsRecorded).arrays == {
        "embedding": array
    }


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (WindowEvaluated, {"p_value": 1.5}),
        (WindowEvaluated, {"items": -1}),
        (WindowEvaluated, {"status": "fine"}),
        (DriftDetected, {"drift_score": 1, "drift_type": "x", "severity": "bad"}),
        (RetrainSucceeded, {"duration": -1.0}),
        (RetrainSucceeded, {"model": {"uri": "file:///x", "sha256": "ABC"}}),
    ],
)
def test_bounded_fields_refuse_what_is_out_of_bounds(cls: type[Event], fields: dict[str, object]) -> None:
    """A value outside its bounds does not decode."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"model_name": "m", **fields}, cls)


def test_nan_is_refused_when_it_is_published() -> None:
    """A drift score of NaN is an EncodeError for the publisher, not a riddle for every reader."""
    with pytest.raises(EncodeError, match="drift_score"):
        Codec("test").encode(DriftDetected(model_name="m", drift_score=float("nan"), drift_type="psi"))


@pytest.mark.parametrize("cls", STRUCTS)
def test_every_class_and_field_is_documented(cls: type[msgspec.Struct]) -> None:
    """The docstring of a class, and a string below every field, say what is meant."""
    assert cls.__doc__
    body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert documented, f"{cls.__name__}.{ast.unparse(statement.target)}"
