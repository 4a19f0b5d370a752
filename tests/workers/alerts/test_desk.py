"""Whom to tell what: the pure part, by tables and against a naive model."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canvasbus.events import IncidentOpened, IncidentResolved, Severity
from canvasbus_workers.alerts.desk import MOST_OPEN, MOST_SILENCES, MOST_TRAININGS, Desk, Silence
from canvasbus_workers.alerts.incidents import MOST_KINDS, MOST_RINGING, OTHERS, RANK, SHOWN, Incident, Ringing, cut
from canvasbus_workers.alerts.matching import Matcher
from canvasbus_workers.alerts.settings import Settings
from canvasbus_workers.patterns import fits

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LOG = {"kind": "log"}


def hear(
    desk: Desk,
    name: str,
    model: str = "m",
    severity: Severity = "warning",
    signals: tuple[str, ...] = ("drift:1",),
    since: float = 0,
) -> None:
    """The desk hears that an incident is open like this."""
    at = BEGAN + timedelta(seconds=since)
    ringing = {one: Ringing(model, severity, one, 0.0, at, kind=one.rpartition(":")[0]) for one in signals}
    incident = Incident(incident_id=name, severity=severity, since=at, model_name=model, ringing=ringing)
    event = IncidentOpened(
        model_name=model,
        incident_id=name,
        severity=severity,
        title=f"{model} {severity}",
        group=f"model_name={model}",
        since=at,
    )
    desk.hear(event.group, incident, event, at, UUID(int=1))


def hear_the_end(desk: Desk, name: str) -> None:
    """And that it is over."""
    over = IncidentResolved(model_name="m", incident_id=name, severity="warning", title="over")
    desk.hear(over.group, Incident(), over, BEGAN, UUID(int=2))


class Play:
    """A desk and a clock."""

    def __init__(self, **rules: Any) -> None:
        self.settings = msgspec.convert(rules, Settings)
        self.desk = Desk()
        self.now = 1000.0

    def after(self, seconds: float) -> list[tuple[str, str, str]]:
        """(destination, kind, incident) of what is told then."""
        self.now += seconds
        tells, _ = self.desk.tell(self.now, self.settings)
        return [(one.destination, one.notification.kind, one.notification.incident_id) for one in tells]

    def open(self, name: str, *args: Any, **fields: Any) -> list[tuple[str, str, str]]:
        hear(self.desk, name, *args, **fields)
        return self.after(0)

    def end(self, name: str) -> list[tuple[str, str, str]]:
        hear_the_end(self.desk, name)
        return self.after(0)

    @property
    def due(self) -> float | None:
        due = self.desk.due(self.now, self.settings)
        return None if due is None else due - self.now


def test_an_incident_is_told_once_each_time_that_it_changes() -> None:
    """Opened, escalated, repeated, resolved; asked again, nothing."""
    play = Play(repeat_seconds=100)
    assert play.open("a") == [("log", "opened", "a")]
    assert play.after(50) == [] and play.due == 50
    assert play.open("a", severity="critical") == [("log", "escalated", "a")]
    assert play.after(99) == [] and play.after(1) == [("log", "repeated", "a")]
    assert play.end("a") == [("log", "resolved", "a")]
    assert play.after(1000) == [] and play.due is None and play.desk.cases == {}
    assert play.desk.told == {"log": 4}


def test_numbers_grow_and_times_are_told() -> None:
    """Each notification of an incident has a number; a repetition is of now, everything else of when it happened."""
    play = Play(repeat_seconds=100)
    hear(play.desk, "a", since=5)
    (first,), _ = play.desk.tell(1000, play.settings)
    (second,), _ = play.desk.tell(1100, play.settings)
    assert (first.number, second.number) == (1, 2)
    assert first.notification.at == first.notification.since == BEGAN + timedelta(seconds=5)
    assert second.notification.at == datetime.fromtimestamp(1100, UTC)
    assert first.notification.labels == {"model_name": "m", "severity": "warning", "group": "model_name=m"}


def test_the_gravest_is_told_first() -> None:
    """And of equally grave ones the oldest."""
    play = Play(inhibit=[])
    for name, severity, since in (("a", "info", 0), ("b", "critical", 9), ("c", "critical", 3), ("d", "warning", 1)):
        hear(play.desk, name, severity=severity, since=since)
    assert [name for _, _, name in play.after(0)] == ["c", "b", "d", "a"]


@pytest.mark.parametrize(
    ("matcher", "muted"),
    [
        ({}, True),
        ({"model_name": "Style*"}, True),
        ({"model_name": "style*"}, False),
        ({"model_name": "other|StyleGAN"}, True),
        ({"severity": "warning"}, True),
        ({"severity": "critical"}, False),
        ({"signal": "drift"}, False),
        ({"signal": "drift|metric:accuracy"}, True),
        ({"model_name": "Style*", "severity": "info"}, False),
    ],
)
def test_what_a_silence_covers(matcher: Mapping[str, str], muted: bool) -> None:
    """All of its patterns, and all signals of the incident."""
    play = Play()
    play.desk.silence("s", Silence(Matcher(**matcher), 0.0))
    found = play.open("a", "StyleGAN", "warning", ("drift:1", "metric:accuracy:2"))
    assert (found == []) == muted
    assert play.desk.suppressed == ({"log": {"silenced": 1}} if muted else {})


def test_a_silence_ends_by_itself() -> None:
    """The desk wakes then, tells what is still open, and counts once what it held back."""
    play = Play()
    play.desk.silence("s", Silence(Matcher(), play.now + 100))
    assert play.open("a") == [] and play.due == 100
    assert play.after(50) == []
    assert play.after(50) == [("log", "opened", "a")]
    assert play.desk.silences == {} and play.desk.suppressed == {"log": {"silenced": 1}}


def test_what_was_told_is_resolved_in_a_silence_and_what_was_not_is_not() -> None:
    """Who heard that it began hears that it is over; the others hear nothing of it at all."""
    play = Play()
    play.open("told")
    play.desk.silence("s", Silence(Matcher(), 0.0))
    play.open("muted", "n")
    assert play.end("told") == [("log", "resolved", "told")]
    assert play.end("muted") == [] and play.desk.cases == {}


@pytest.mark.parametrize(
    ("rule", "muted"),
    [
        ({"source": {"severity": "critical"}, "target": {"severity": "warning"}}, True),
        ({"source": {"severity": "critical"}, "target": {"severity": "info"}}, False),
        ({"source": {"severity": "warning"}, "target": {"severity": "warning"}}, False),
        ({"source": {"model_name": "n"}, "target": {}, "equal": ["model_name"]}, False),
        ({"source": {"model_name": "n"}, "target": {}, "equal": []}, True),
        ({"source": {"signal": "metric:accuracy"}, "target": {"signal": "drift"}, "equal": ["signal"]}, False),
        ({"source": {"signal": "retraining"}, "target": {"signal": "drift"}}, True),
        ({"source": {"signal": "retraining"}, "target": {"signal": "metric:accuracy"}}, False),
        ({"source": {"signal": "metric:retraining"}, "target": {"signal": "drift"}}, False),
        ({"source": {"signal": "retraining"}, "target": {"signal": "metric:drift"}}, False),
    ],
)
def test_what_mutes_what(rule: dict[str, Any], muted: bool) -> None:
    """A drift of m, beside a critical loss of accuracy of m, an incident of n, and a training of m in flight."""
    play = Play(inhibit=[rule])
    play.open("grave", "m", "critical", ("metric:accuracy:1",))
    play.open("other", "n", "warning", ("quality:1",))
    play.desk.trains("m", "r1", play.now + 60)
    assert (play.open("slight") == []) == muted


def test_what_mutes_ends() -> None:
    """A graver incident that is resolved, and a training that is not heard of any more, mute nothing."""
    play = Play(inhibit=[{"source": {"signal": "retraining"}, "target": {}}])
    play.desk.trains("m", "r1", play.now + 60)
    assert play.open("a") == [] and play.due == 60
    assert play.after(60) == [("log", "opened", "a")]
    play = Play()
    play.open("grave", severity="critical", signals=("metric:accuracy:1",))
    assert play.open("slight") == []
    assert play.end("grave") == [("log", "resolved", "grave"), ("log", "opened", "slight")]


def test_a_silence_together_with_an_inhibition() -> None:
    """A silenced incident mutes slighter ones all the same, as in an Alertmanager; what both hold back is told when the last
    of them ends, and each reason is counted once."""
    play = Play()
    play.desk.silence("grave", Silence(Matcher(signal="metric:accuracy"), 0.0))
    play.desk.silence("slight", Silence(Matcher(signal="drift"), play.now + 100))
    assert play.open("grave", severity="critical", signals=("metric:accuracy:1",)) == []
    assert play.open("slight") == [] and play.due == 100
    assert play.desk.suppressed == {"log": {"silenced": 2}}
    assert play.after(100) == []  # its silence is over, and what is graver goes on
    assert play.after(50) == [] and play.desk.suppressed == {"log": {"silenced": 2, "inhibited": 1}}
    assert play.end("grave") == [("log", "opened", "slight")]  # of the grave one nobody had heard
    assert play.end("slight") == [("log", "resolved", "slight")]


def test_what_was_told_is_over_although_both_would_hold_it_back() -> None:
    """Resolved is told to whoever was told that it began; escalation waits for both."""
    play = Play(inhibit=[{"source": {"signal": "metric:accuracy"}, "target": {"signal": "drift"}}])
    assert play.open("slight") == [("log", "opened", "slight")]
    play.open("grave", severity="critical", signals=("metric:accuracy:1",))
    play.desk.silence("s", Silence(Matcher(signal="drift"), play.now + 100))
    assert play.open("slight", severity="critical") == []
    assert play.after(100) == [] and play.desk.suppressed == {"log": {"silenced": 1, "inhibited": 1}}
    assert play.end("slight") == [("log", "resolved", "slight")]
    assert play.end("grave") == [("log", "resolved", "grave")]


def test_routes_and_what_none_of_them_wants() -> None:
    """A destination hears of what a route of it matches; nobody is a reason, too."""
    play = Play(
        destinations={"chat": LOG, "pager": LOG},
        routes=[
            {"severity": "critical", "destinations": ["pager"]},
            {"signal": "drift", "severity": "warning|critical", "destinations": ["chat"]},
        ],
    )
    assert play.open("a", severity="info") == [] and play.desk.suppressed == {"": {"unrouted": 1}}
    assert play.open("a") == [("chat", "opened", "a")]
    assert play.open("a", severity="critical") == [("chat", "escalated", "a"), ("pager", "opened", "a")]
    assert play.open("b", "n", "critical", ("metric:accuracy:1",)) == [("pager", "opened", "b")]
    assert sorted(play.end("a")) == [("chat", "resolved", "a"), ("pager", "resolved", "a")]


def test_tokens() -> None:
    """A burst, then one each ten seconds, the gravest first; the desk wakes for each."""
    play = Play(burst=2, rate_per_minute=6, inhibit=[])
    for number in range(4):
        hear(play.desk, f"m{number}", f"m{number}", since=number)
    assert len(play.after(0)) == 2 and play.due == pytest.approx(10)
    assert play.desk.suppressed == {"log": {"rate_limited": 2}}
    assert play.open("x", "x", "critical") == []
    assert play.after(10) == [("log", "opened", "x")]
    assert play.after(5) == [] and play.due == pytest.approx(5)
    assert play.after(5) == [("log", "opened", "m2")]
    hear_the_end(play.desk, "m3")
    assert play.after(0) == [] and "m3" not in play.desk.cases
    hear_the_end(play.desk, "m0")
    assert play.after(1) == [] and "m0" in play.desk.cases
    assert play.after(9) == [("log", "resolved", "m0")]


def test_an_end_that_waits_for_one_destination() -> None:
    """The other is told once, and what it muted is free meanwhile."""
    play = Play(
        burst=3,
        rate_per_minute=1,
        destinations={"chat": LOG, "pager": LOG},
        routes=[{"destinations": ["chat"]}, {"severity": "critical", "destinations": ["pager"]}],
    )
    play.open("grave", severity="critical")
    play.desk.buckets["pager"].tokens = 0
    assert play.open("slight") == []
    assert play.end("grave") == [("chat", "resolved", "grave"), ("chat", "opened", "slight")]
    assert play.after(1) == []
    assert play.after(59) == [("pager", "resolved", "grave")] and list(play.desk.cases) == ["slight"]


def test_a_destination_that_is_gone() -> None:
    """It is left alone until then, and told afterwards what it has not heard."""
    play = Play(destinations={"chat": LOG, "hook": LOG})
    play.open("a")
    play.desk.gone("chat", "a", play.now + 100)
    assert play.open("b", "n") == [("hook", "opened", "b")] and play.due == 100
    assert play.desk.suppressed == {"chat": {"disabled": 2}}
    assert sorted(play.after(100)) == [("chat", "opened", "a"), ("chat", "opened", "b")]


def test_a_destination_that_was_removed() -> None:
    """Nobody tells it that it is over."""
    play = Play(destinations={"chat": LOG, "hook": LOG})
    play.open("a")
    play.settings = msgspec.convert({"destinations": {"hook": LOG}}, Settings)
    assert play.end("a") == [("hook", "resolved", "a")] and play.desk.cases == {}


def test_there_is_an_end_to_it() -> None:
    """Incidents and silences beyond all measure are refused and counted; a full desk still fits into a state."""
    desk = Desk()
    long = tuple(cut(f"drift:{number}/{'é' * 1000}") for number in range(SHOWN))
    for number in range(MOST_OPEN + 5):
        hear(desk, f"m{number}/{'i' * 100}", f"m{number}", signals=long)
    hear(desk, f"m0/{'i' * 100}", "m0", "critical", signals=long)
    hear_the_end(desk, "unknown")
    assert len(desk.cases) == MOST_OPEN
    for case in desk.cases.values():
        case.summary = case.signals  # titles as long as names
    for number in range(MOST_SILENCES + 5):
        assert desk.silence(f"s{number}", Silence(Matcher(model_name="m" * 200), 0.0, long[0], long[0])) == (
            number < MOST_SILENCES
        )
    assert desk.suppressed == {"": {"overflow": 5}}
    assert len(msgspec.msgpack.encode(desk)) < 1024 * 1024


def size(desk: Desk) -> int:
    """Bytes that each commit writes."""
    return len(msgspec.msgpack.encode(desk))


def test_ten_thousand_trainings_are_no_weight() -> None:
    """Of those in flight the ones that are lost last are kept; ended and lost ones are forgotten."""
    play = Play(inhibit=[{"source": {"signal": "retraining"}, "target": {}}])
    for number in range(10_000):
        play.desk.trains(f"StyleGAN-Canvas-v{number}", f"StyleGAN-Canvas-v{number}/v1", play.now + number)
    assert len(play.desk.retraining) == MOST_TRAININGS and size(play.desk) < 20_000
    assert "StyleGAN-Canvas-v9999" in play.desk.retraining
    assert play.desk.has_trained("StyleGAN-Canvas-v9999", "StyleGAN-Canvas-v9999/v1")
    assert not play.desk.has_trained("StyleGAN-Canvas-v9998", "another run")
    assert not play.desk.has_trained("StyleGAN-Canvas-v1", "StyleGAN-Canvas-v1/v1")
    play.after(9998)
    assert play.desk.retraining == {}


def test_a_storm_of_ten_thousand_models() -> None:
    """Each with a signal of its own: what a commit writes stays as it is once the desk is full."""
    play, sizes = Play(destinations={"chat": LOG, "pager": LOG}), []
    for number in range(10_000):
        hear(play.desk, f"StyleGAN-Canvas-v{number}/0123456789ab", f"StyleGAN-Canvas-v{number}")
        if number % 100 == 0:
            play.after(0.01)
            sizes.append(size(play.desk))
    assert len(play.desk.cases) == MOST_OPEN and max(sizes) < 100_000
    assert max(sizes[3:]) - min(sizes[3:]) < 100
    assert play.desk.suppressed[""] == {"overflow": 10_000 - MOST_OPEN}


def test_the_weight_of_incidents_has_an_end() -> None:
    """Names as long as they may be and signals of all kinds: the desk takes as many as a state holds, and of those that it
    has it knows the newest severity all the same."""
    desk = Desk()
    signals = tuple(f"{number}{'é' * 200}:{number}" for number in range(MOST_RINGING))
    for number in range(MOST_OPEN):
        hear(desk, f"i{number}", f"{number}{'ü' * 500}", signals=signals)
    assert 50 < len(desk.cases) < MOST_OPEN and size(desk) < 1024 * 1024
    hear(desk, "i0", "m", "critical", signals=signals[::-1])
    assert desk.cases["i0"].severity == "critical"
    assert len(desk.cases["i1"].kinds) == MOST_KINDS + 1 and desk.cases["i1"].kinds[-1] == OTHERS
    assert not Matcher(signal="*é*").covers("m", "info", desk.cases["i1"].kinds)
    assert Matcher().covers("m", "info", desk.cases["i1"].kinds)


def test_destinations_that_come_and_go() -> None:
    """Of those that the settings know no more the last ones' counts are kept."""
    play = Play()
    play.open("a")
    for number in range(500):
        play.settings = msgspec.convert({"destinations": {f"d{number}": LOG}}, Settings)
        play.after(1)
        play.desk.gone(f"d{number}", "b", play.now + 86400)
    desk = play.desk
    maps = (desk.told, desk.buckets, desk.disabled, desk.cases["a"].told)
    assert all(50 <= len(names) <= 52 and "d499" in names for names in maps)
    assert "d100" not in desk.told


# --- against a naive model --------------------------------------------------------------------------------------------

INCIDENTS = ("a", "b", "c")
MODELS = {"a": "m", "b": "m", "c": "n"}
STEP = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(INCIDENTS), st.sampled_from(tuple(RANK))),
    st.tuples(st.just("over"), st.sampled_from(INCIDENTS), st.just("")),
    st.tuples(st.just("silence"), st.sampled_from(("m", "n", "*")), st.sampled_from((15, 40))),
    st.tuples(st.just("expire"), st.sampled_from(("m", "n", "*")), st.just("")),
    st.tuples(st.just("wait"), st.sampled_from((1, 10, 30)), st.just("")),
)
REPEAT = 25


def naive(steps: list[Any]) -> list[tuple[int, str, str, str]]:
    """What is told to whom, by somebody who looks every second at all that is and at all that was told: (when,
    destination, kind, incident)."""
    now, log = 0, []
    open_: dict[str, str] = {}
    quiet: dict[str, int] = {}

    def last(destination: str, name: str) -> tuple[int, str, str] | None:
        said = [(when, kind, how) for when, where, kind, which, how in log if (where, which) == (destination, name)]
        return said[-1] if said and said[-1][1] != "resolved" else None

    def look() -> None:
        wanted = []
        for name in INCIDENTS:
            how = open_.get(name)
            grave = any(
                each != name and MODELS[each] == MODELS[name] and severity == "critical"
                for each, severity in open_.items()
            )
            silent = any(fits(pattern, MODELS[name]) and now < until for pattern, until in quiet.items())
            for destination in ("chat", "pager"):
                said = last(destination, name)
                if how is None:
                    kind = "resolved" if said else ""
                elif silent or (grave and how != "critical") or (destination == "pager" and how != "critical"):
                    kind = ""
                elif said is None:
                    kind = "opened"
                elif RANK[how] > RANK[said[2]]:
                    kind = "escalated"
                else:
                    kind = "repeated" if now - said[0] >= REPEAT else ""
                if kind:
                    wanted.append((now, destination, kind, name, how or ""))
        log.extend(wanted)

    for what, which, how in steps:
        if what == "open" and (which not in open_ or RANK[how] > RANK[open_[which]]):
            open_[which] = how
        elif what == "over":
            open_.pop(which, None)
        elif what == "silence":
            quiet[which] = now + how
        elif what == "expire":
            quiet.pop(which, None)
        for _ in range(which if what == "wait" else 0):
            now += 1
            look()
        look()
    return sorted((when, destination, kind, name) for when, destination, kind, name, _ in log)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_a_desk_that_sleeps_until_it_is_due_tells_the_same(steps: list[Any]) -> None:
    """Asked only when something happens and when it is due, with its state stored and read in between."""
    rules = msgspec.convert(
        {
            "repeat_seconds": REPEAT,
            "burst": 1000,
            "destinations": {"chat": LOG, "pager": LOG},
            "routes": [{"destinations": ["chat"]}, {"severity": "critical", "destinations": ["pager"]}],
        },
        Settings,
    )
    desk, now, told = Desk(), 0, []
    severities: dict[str, Severity] = {}

    def ask() -> None:
        nonlocal desk
        tells, _ = desk.tell(1000.0 + now, rules)
        told.extend((now, one.destination, one.notification.kind, one.notification.incident_id) for one in tells)
        assert desk.tell(1000.0 + now, rules)[0] == []
        desk = msgspec.msgpack.decode(msgspec.msgpack.encode(desk), type=Desk)

    for what, which, how in steps:
        if what == "open" and (which not in severities or RANK[how] > RANK[severities[which]]):
            severities[which] = how
            hear(desk, which, MODELS[which], how)
        elif what == "over" and severities.pop(which, None):
            hear_the_end(desk, which)
        elif what == "silence":
            desk.silence(which, Silence(Matcher(model_name=which), 1000.0 + now + how))
        elif what == "expire":
            desk.silences.pop(which, None)
        until = now + (which if what == "wait" else 0)
        ask()
        while (due := desk.due(1000.0 + now, rules)) is not None and due <= 1000.0 + until:
            now = int(due - 1000)
            ask()
        now = until
    assert sorted(told) == naive(steps)
