"""Signals become incidents: the pure part, by tables and against a naive model."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canvasbus import Event
from canvasbus.events import (
    BusLoss,
    DataQualityViolated,
    DriftDetected,
    DriftResolved,
    HandlerFailed,
    IncidentOpened,
    IncidentResolved,
    MetricRecovered,
    MetricThresholdBreached,
    ModelPromoted,
    RetrainFailed,
    RetrainProposed,
    RetrainRejected,
    RetrainRequested,
    RetrainSucceeded,
)
from canvasbus_workers.alerts.incidents import KEPT_ENDED, LINE, MOST_RINGING, RANK, SHOWN, Ended, Incident
from canvasbus_workers.alerts.settings import Settings
from canvasbus_workers.alerts.signals import Signal, group_of, signal_of

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
GROUP = "model_name=m"


def signal(name: str, severity: Any = "warning", *, after: float = 0.0, **fields: Any) -> Signal:
    kind, _, what = name.partition(":")
    known = {"model_name": "m", "title": name, "at": BEGAN + timedelta(seconds=after)}
    return Signal(kind=kind, what=what, severity=severity, **{**known, **fields})


class Play:
    """One incident, and a clock."""

    def __init__(self, **rules: Any) -> None:
        self.settings = Settings(**rules)
        self.incident = Incident()
        self.now = 1000.0
        self.number = 0

    def after(self, seconds: float) -> IncidentOpened | IncidentResolved | None:
        self.now += seconds
        self.number += 1
        at = BEGAN + timedelta(seconds=self.now - 1000)
        return self.incident.step(GROUP, UUID(int=self.number), at, self.now, self.settings)

    def ring(self, name: str, severity: Any = "warning", **fields: Any) -> IncidentOpened | IncidentResolved | None:
        self.incident.ring(signal(name, severity, after=self.now - 1000, **fields), self.now, self.settings)
        return self.after(0)

    def end(self, name: str) -> IncidentOpened | IncidentResolved | None:
        self.incident.end(signal(name, None))
        return self.after(0)

    @property
    def due(self) -> float | None:
        due = self.incident.due(self.settings)
        return None if due is None else due - self.now


def test_one_incident_gathers_all_signals() -> None:
    """The first signal opens, others join in silence, and only the last one to end resolves."""
    play = Play()
    opened = play.ring("drift:1")
    assert isinstance(opened, IncidentOpened)
    assert (opened.incident_id, opened.signals, opened.summary) == ("m/000000000001", ("drift:1",), ("drift:1",))
    assert play.after(60) is None
    assert play.ring("accuracy:1") is None
    assert play.incident.signals == ("drift:1", "accuracy:1")
    assert play.end("drift:1") is None
    assert play.after(60) is None
    resolved = play.end("accuracy:1")
    assert isinstance(resolved, IncidentResolved)
    assert (resolved.incident_id, resolved.duration, resolved.since) == (opened.incident_id, 120.0, BEGAN)
    assert play.end("accuracy:1") is None


def test_a_more_severe_signal_escalates_under_the_same_id() -> None:
    """Escalation publishes the incident again, names all signals, and happens once; what is less severe changes nothing,
    not even its own signal."""
    play = Play()
    opened, escalated = play.ring("drift:1"), play.ring("accuracy:1", "critical")
    assert isinstance(opened, IncidentOpened) and isinstance(escalated, IncidentOpened)
    assert (escalated.incident_id, escalated.severity, escalated.escalated) == (opened.incident_id, "critical", True)
    assert escalated.signals == ("drift:1", "accuracy:1")
    assert play.ring("drift:2", "critical") is None
    assert play.ring("accuracy:1", "info") is None
    assert play.incident.ringing["accuracy:1"].severity == "critical"


def test_a_new_incident_has_another_name() -> None:
    """And begins at the severity of its own signals."""
    play = Play()
    first = play.ring("drift:1", "critical")
    play.end("drift:1")
    again = play.ring("drift:2", "info")
    assert isinstance(first, IncidentOpened) and isinstance(again, IncidentOpened)
    assert again.incident_id != first.incident_id and again.severity == "info" and not again.escalated


@pytest.mark.parametrize(
    ("rules", "severity", "due"),
    [
        ({}, "warning", None),
        ({"for_seconds": 60}, "warning", 60),
        ({"for_seconds": 60}, "critical", None),
        ({"escalate_seconds": 90}, "warning", 90),
        ({"escalate_seconds": 90}, "critical", None),
        ({"for_seconds": 60, "escalate_seconds": 30}, "info", 60),
    ],
)
def test_when_time_has_to_be_asked(rules: dict[str, float], severity: str, due: float | None) -> None:
    """Only when time alone would change something."""
    play = Play(**rules)
    play.ring("drift:1", severity)
    assert play.due == due


def test_a_signal_that_fades() -> None:
    """Over by itself when it was not heard for `quiet_seconds`; heard again it lasts longer."""
    play = Play(quiet_seconds=100)
    play.ring("quality:range", fades=True)
    assert play.due == 100
    play.after(60)
    play.ring("quality:range", fades=True)
    assert play.after(99) is None
    resolved = play.after(1)
    assert isinstance(resolved, IncidentResolved) and resolved.title == "quality:range: not heard of any more"
    assert play.due is None


def test_calm_is_waited_for() -> None:
    """What rings again in time goes on as the same incident."""
    play = Play(resolve_seconds=100)
    play.ring("drift:1")
    assert play.end("drift:1") is None and play.due == 100
    assert play.after(99) is None
    assert play.ring("drift:2") is None and play.due is None
    play.end("drift:2")
    assert play.after(99.5) is None
    assert isinstance(play.after(0.5), IncidentResolved)


def test_severity_rises_step_by_step() -> None:
    """From info to critical in two steps, each told; then no further."""
    play = Play(escalate_seconds=100)
    play.ring("drift:1", "info")
    found = [play.after(50) for _ in range(8)]
    assert [one.severity for one in found if isinstance(one, IncidentOpened)] == ["warning", "critical"]
    assert found[0] is None and found[2] is None and play.due is None


def test_what_ended_is_remembered() -> None:
    """A named episode never rings again; one without a name rings again when it is newer; the oldest are forgotten."""
    ended = Ended()
    ended.note(signal("drift:1", None, after=10))
    ended.note(signal("drift:", None, after=10))
    assert ended.outlives(signal("drift:1", once=True, after=20))
    assert ended.outlives(signal("drift:", after=10)) and not ended.outlives(signal("drift:", after=11))
    assert not ended.outlives(signal("drift:2", once=True))
    for number in range(KEPT_ENDED):
        ended.note(signal(f"drift:x{number}", None))
    assert len(ended.signals) == KEPT_ENDED and not ended.outlives(signal("drift:1", once=True))


def test_there_is_an_end_to_it() -> None:
    """However many episodes ring, and however they are called, the incident fits into a state and its events stay small;
    what is severe of them counts all the same."""
    play = Play()
    for number in range(MOST_RINGING + 50):
        play.ring(f"drift:{number}/{'é' * 60}")
    opened = play.ring(f"accuracy:{'é' * 500}", "critical")
    assert isinstance(opened, IncidentOpened) and opened.severity == "critical"
    assert len(play.incident.ringing) == MOST_RINGING
    assert len(opened.signals) == len(opened.summary) == SHOWN and opened.signals[-1].startswith("accuracy:é")
    assert all(len(text.encode()) <= LINE for text in (opened.title, *opened.signals, *opened.summary))
    assert play.incident.kinds == ("drift", "accuracy")
    assert len(msgspec.msgpack.encode(play.incident)) < 1024 * 1024 / 2


def test_names_of_any_length_fit_into_a_state() -> None:
    """A thousand models, metrics and episodes with the longest names that there are."""
    play, long = Play(), "😀" * 1000
    for number in range(MOST_RINGING):
        play.ring(f"{long}:{number}{long}", title=long, model_name=f"{number}{long}", fades=True)
    assert len(play.incident.ringing) == MOST_RINGING
    assert len(msgspec.msgpack.encode(play.incident)) < 1024 * 1024


M = {"model_name": "m"}


@pytest.mark.parametrize(
    ("event", "name", "severity", "fades"),
    [
        (DriftDetected(**M, drift_score=1, drift_type="ks", episode_id="e"), "drift:e", "warning", False),
        (DriftResolved(**M, episode_id="e"), "drift:e", None, False),
        (MetricThresholdBreached(**M, metric="fid", episode_id="e"), "metric:fid:e", "critical", False),
        (MetricRecovered(**M, metric="fid", episode_id="e"), "metric:fid:e", None, False),
        (MetricRecovered(**M, metric="drift", episode_id="e"), "metric:drift:e", None, False),
        (DataQualityViolated(**M, check="range", model_version="v1"), "quality:range/v1", "critical", True),
        (RetrainFailed(**M, run_id="r"), "retrain:", "warning", True),
        (RetrainSucceeded(**M, run_id="r"), "retrain:", None, False),
        (RetrainProposed(**M, proposal_id="m/p1"), "approval:m/p1", "critical", False),
        (RetrainRequested(**M, proposal_id="m/p1"), "approval:m/p1", None, False),
        (RetrainRejected(**M, proposal_id="m/p1"), "approval:m/p1", None, False),
        (
            HandlerFailed(group="g", handler="h", event_type="a.b", entry_id="1", reason="x", error="y", attempts=1),
            "handler:g/a.b",
            "warning",
            True,
        ),
        (BusLoss(topic="a.b", reason="x", detail="y"), "loss:a.b", "critical", True),
    ],
)
def test_what_events_say(event: Event, name: str, severity: str | None, fades: bool) -> None:
    """Each is a signal with a name; those of the bus belong to no model."""
    made = signal_of(event)
    assert (made.name, made.severity, made.fades, made.at) == (name, severity, fades, event.occurred_on)
    assert made.model_name == ("" if isinstance(event, HandlerFailed | BusLoss) else "m")


BROKEN = MetricThresholdBreached(**M, metric="fid", value=31.5, bound=30.0, direction="above")
KEPT = MetricRecovered(**M, metric="fid", value=24.0, bound=25.0)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (BROKEN, "m: fid 31.5, expected 30"),
        (msgspec.structs.replace(BROKEN, rule="low", segment="eu"), "m: fid 31.5, above 30 (rule low, segment eu)"),
        (
            msgspec.structs.replace(BROKEN, rule="r", condition="change", change=1.5, change_bound=1.0),
            "m: fid has changed by 1.5, above 1 (rule r)",
        ),
        (
            msgspec.structs.replace(
                BROKEN,
                rule="r",
                condition="relative_change",
                relative_change=-0.22,
                relative_bound=-0.05,
                direction="below",
            ),
            "m: fid has changed by -22 %, below -5 % (rule r)",
        ),
        (
            msgspec.structs.replace(BROKEN, rule="r", condition="absent", silent_seconds=900.01),
            "m: fid has not been reported for 900 s (rule r)",
        ),
        (KEPT, "m: fid is 24 again"),
        (msgspec.structs.replace(KEPT, rule="low", segment="eu"), "m: fid is 24 again (rule low, segment eu)"),
        (
            msgspec.structs.replace(KEPT, rule="r", condition="change", change=0.5),
            "m: fid keeps its bound again, having changed by 0.5 (rule r)",
        ),
        (
            msgspec.structs.replace(KEPT, rule="r", condition="relative_change", relative_change=0.01),
            "m: fid keeps its bound again, having changed by 1 % (rule r)",
        ),
        (msgspec.structs.replace(KEPT, rule="r", condition="absent"), "m: fid is reported again (rule r)"),
    ],
)
def test_what_is_told_of_a_metric(event: Event, told: str) -> None:
    """A change is not the metric, nor are seconds of silence; whoever is woken reads which rule and segment it is."""
    assert signal_of(event).title == told


def test_what_is_no_signal() -> None:
    """An event that nobody meant to be one is a mistake of the program."""
    with pytest.raises(TypeError, match="ModelPromoted"):
        signal_of(ModelPromoted(model_name="m"))


@pytest.mark.parametrize(
    ("group_by", "group"),
    [
        (("model_name",), "model_name=m"),
        (("model_name", "signal"), "model_name=m,signal=drift"),
        (("segment",), "segment=eu"),
        ((), ""),
    ],
)
def test_groups(group_by: tuple[str, ...], group: str) -> None:
    """A beginning and its end are in one group, and what is drift and what is its cost in the same segment, too."""
    scope = {"model_name": "m", "segment": "eu"}
    began, over = DriftDetected(**scope, drift_score=1, drift_type="ks"), DriftResolved(**scope)
    assert group_of(signal_of(began), group_by) == group_of(signal_of(over), group_by) == group
    if "signal" not in group_by:
        breach, recovery = MetricThresholdBreached(**scope, metric="fid"), MetricRecovered(**scope, metric="fid")
        assert group_of(signal_of(breach), group_by) == group_of(signal_of(recovery), group_by) == group


def test_names_that_join_to_the_same_are_two() -> None:
    """Commas and colons in the words of users: no two groups, and no two signals, become one."""
    groups = [
        group_of(
            signal_of(DriftDetected(model_name=model, segment=segment, drift_score=1, drift_type="ks")),
            ("model_name", "segment"),
        )
        for model, segment in (("a,segment=b", ""), ("a", "b,segment="))
    ]
    assert len(set(groups)) == 2
    signals = [
        signal_of(MetricThresholdBreached(model_name="m", metric=metric, episode_id=episode)).name
        for metric, episode in (("a:b", "c"), ("a", "b:c"))
    ]
    failed = {"handler": "h", "entry_id": "1-0", "reason": "exhausted", "error": "e", "attempts": 1}
    handlers = [
        signal_of(HandlerFailed(group=group, event_type=kind, **failed)).name
        for group, kind in (("a/b", "c"), ("a", "b/c"))
    ]
    assert len({*signals, *handlers}) == 4


# --- against a naive model --------------------------------------------------------------------------------------------

NAMES = ("drift:1", "drift:2", "accuracy:1")
STEP = st.one_of(
    st.tuples(st.just("ring"), st.sampled_from(NAMES), st.sampled_from(tuple(RANK))),
    st.tuples(st.just("end"), st.sampled_from(NAMES), st.just("")),
    st.tuples(st.just("wait"), st.sampled_from((1, 5, 10, 20, 40)), st.just("")),
)
RULES = st.fixed_dictionaries({name: st.sampled_from((0, 10, 25)) for name in ("for_seconds", "resolve_seconds")})


def second_by_second(steps: list[Any], rules: dict[str, int]) -> list[tuple[int, str, str]]:
    """What follows, by looking at all that ever happened, second after second: (when, opened | escalated | resolved,
    severity)."""
    rung: dict[str, tuple[int, str]] = {}
    severity, calm, told, now = "", None, [], 0

    def look() -> None:
        nonlocal severity, calm
        calm = None if rung else (now if calm is None else calm)
        firm = [s for since, s in rung.values() if s == "critical" or now - since >= rules["for_seconds"]]
        worst = max(firm, key=RANK.__getitem__, default="")
        if worst and not severity:
            severity = worst
            told.append((now, "opened", severity))
        elif worst and RANK[worst] > RANK[severity]:
            severity = worst
            told.append((now, "escalated", severity))
        elif severity and calm is not None and now - calm >= rules["resolve_seconds"]:
            told.append((now, "resolved", severity))
            severity = ""

    for what, which, how in steps:
        if what == "ring":
            since, before = rung.get(which, (now, how))
            rung[which] = since, max(before, how, key=RANK.__getitem__)
        elif what == "end":
            rung.pop(which, None)
        for _ in range(which if what == "wait" else 0):
            now += 1
            look()
        look()
    return told


@settings(max_examples=400, deadline=None)
@given(st.lists(STEP, max_size=25), RULES)
def test_a_machine_that_sleeps_until_it_is_due_says_the_same(steps: list[Any], rules: dict[str, int]) -> None:
    """Asked only at events and when it is due, with its state stored and read in between, it tells what somebody tells
    who looks every second."""
    incident, now, told, number = Incident(), 0, [], 0
    given_rules = Settings(**{name: float(seconds) for name, seconds in rules.items()})

    def ask() -> None:
        nonlocal incident, number
        number += 1
        event = incident.step(GROUP, UUID(int=number), BEGAN, 1000.0 + now, given_rules)
        if isinstance(event, IncidentOpened):
            told.append((now, "escalated" if event.escalated else "opened", event.severity))
        elif event is not None:
            told.append((now, "resolved", event.severity))
        incident = msgspec.msgpack.decode(msgspec.msgpack.encode(incident), type=Incident)

    for what, which, how in steps:
        if what == "ring":
            incident.ring(signal(which, how), 1000.0 + now, given_rules)
        elif what == "end":
            incident.end(signal(which, None))
        else:
            until = now + which
            while (due := incident.due(given_rules)) is not None and due <= 1000.0 + until:
                assert due > 1000.0 + now, "it would never sleep"
                now = int(due - 1000)
                ask()
            now = until
        ask()
    assert told == second_by_second(steps, rules)


def test_the_severities_of_the_settings_exist() -> None:
    """What mutes what by default names severities that there are."""
    (rule,) = msgspec.convert({}, Settings).inhibit
    assert {rule.source.severity, *rule.target.severity.split("|")} == set(RANK)


def test_without_room_it_asks_ever_more_rarely() -> None:
    """A minute after it was raised, then as long again as it has waited, ten minutes at most: thousands that wait are no
    load."""
    play, waits = Play(), []
    play.ring("drift:1")
    for _ in range(8):
        play.incident.heard(False, play.now)
        assert play.due is not None
        waits.append(play.due)
        play.after(play.due)
    assert waits == [60, 60, 120, 240, 480, 600, 600, 600]
    play.incident.heard(True, play.now)
    assert play.due is None


@pytest.mark.parametrize(
    ("rules", "opened", "resolved"),
    [
        ({"for_seconds": 60}, 0, 0),
        ({"for_seconds": 60, "resolve_seconds": 60}, 0, 0),
        ({}, 20, 20),
        ({"resolve_seconds": 60}, 1, 1),
        ({"for_seconds": 30, "resolve_seconds": 60}, 1, 1),
    ],
)
def test_what_flaps(rules: dict[str, Any], opened: int, resolved: int) -> None:
    """Twenty times there for 50 s and away for 20: shorter than for_seconds it is never told, with or without
    resolve_seconds; with resolve_seconds longer than its pauses it is one incident. As `for` and `keep_firing_for` do."""
    play, said = Play(**rules), []
    for number in range(20):
        said.append(play.ring(f"drift:{number}"))
        said.extend(play.after(10) for _ in range(5))
        said.append(play.end(f"drift:{number}"))
        said.append(play.after(20))
    said.append(play.after(60))
    assert sum(isinstance(one, IncidentOpened) for one in said) == opened
    assert sum(isinstance(one, IncidentResolved) for one in said) == resolved


def test_an_end_says_whether_anybody_knew() -> None:
    """A signal that ends while it had yet to last is one that nobody hears of; an unknown one is nothing."""
    play = Play(for_seconds=60)
    play.ring("drift:1")
    assert play.incident.end(signal("drift:1", None)) is False
    assert play.incident.end(signal("drift:1", None)) is True
    play.ring("drift:2")
    play.after(60)
    assert play.incident.end(signal("drift:2", None)) is True
