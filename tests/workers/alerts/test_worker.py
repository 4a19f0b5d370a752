"""The alerts worker on a test bus: one incident however much rings, told once to each destination, and no death, outage or
repetition changes that."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from studio import Eyes, quiet, running
from trio.testing import MockClock
from waiting import until
from workers.telling import events, told

from canvasbus import Event, clock
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
    RetrainFailed,
    RetrainProposed,
    RetrainRejected,
    RetrainRequested,
    RetrainStarted,
    RetrainSucceeded,
    SilenceAdded,
    SilenceExpired,
)
from canvasbus.testing import TestBus
from canvasbus.worker import Reject, RetryLater
from canvasbus_workers import alerts
from canvasbus_workers.alerts import edge
from canvasbus_workers.alerts.events import NotificationDue
from canvasbus_workers.alerts.notification import Gone, Notification


class Phone:
    """A destination that writes down what it is told, and fails when asked to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[Notification] = []
        self.troubles: list[Exception] = []
        self.calls = 0

    async def send(self, notification: Notification) -> None:
        self.calls += 1
        if self.troubles:
            raise self.troubles.pop(0)
        self.heard.append(notification)

    @property
    def kinds(self) -> list[str]:
        return [one.kind for one in self.heard]


class Phones(dict[str, Phone]):
    """The destinations that settings name."""

    def __missing__(self, name: str) -> Phone:
        phone = self[name] = Phone(name)
        return phone


@pytest.fixture
def phones(monkeypatch: pytest.MonkeyPatch) -> Phones:
    made = Phones()

    @asynccontextmanager
    async def opened(table: Mapping[str, object]) -> AsyncIterator[Mapping[str, Phone]]:
        yield {name: made[name] for name in table or ("log",)}

    monkeypatch.setattr(edge, "opened", opened)
    return made


Configure = Callable[..., None]


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Give the worker the table [workers.alerts], and destinations of these names."""

    def write(text: str, *names: str) -> None:
        tables = "".join(f'[workers.alerts.destinations.{name}]\nkind = "log"\n' for name in names)
        path = tmp_path / "canvasbus.toml"
        path.write_text(f"[workers.alerts]\n{text}\n{tables}")
        monkeypatch.setenv("CANVASBUS_CONFIG", str(path))

    return write


def drift(model: str, episode: str = "e1", severity: Any = "warning", **fields: Any) -> DriftDetected:
    return DriftDetected(
        model_name=model, drift_score=0.5, drift_type="ks:sharpness", episode_id=episode, severity=severity, **fields
    )


def breach(model: str, episode: str = "a1", severity: Any = "critical") -> MetricThresholdBreached:
    return MetricThresholdBreached(
        model_name=model, metric="accuracy", value=0.5, bound=0.9, episode_id=episode, severity=severity
    )


def over(model: str, episode: str = "e1") -> DriftResolved:
    return DriftResolved(model_name=model, episode_id=episode, regime="baseline")


# --- incidents -------------------------------------------------------------------------------------------------------


async def test_a_drift_opens_an_incident_and_its_end_resolves_it(
    autojump_clock: MockClock, model: str, phones: Phones
) -> None:
    """incident.opened is caused by the drift, carries its correlation, and is told once; so is its end."""
    drifted = drift(model)
    async with TestBus(alerts.worker) as bus:
        await told(bus, drifted, over(model))
    (opened,), (resolved,) = bus.published(IncidentOpened), bus.published(IncidentResolved)
    assert (opened.event.severity, opened.event.signals) == ("warning", ("drift:e1",))
    assert (opened.event.group, opened.event.since) == (f"model_name={model}", drifted.occurred_on)
    assert opened.event.correlation_id == drifted.correlation_id
    assert opened.cause.event == drifted
    assert resolved.event.incident_id == opened.event.incident_id
    began, ended = phones["log"].heard
    assert (began.kind, ended.kind, ended.title) == ("opened", "resolved", f"{model}: data match baseline again")
    assert began.incident_id == ended.incident_id == opened.event.incident_id
    assert (began.correlation_id, began.since, began.at) == (drifted.correlation_id,) + 2 * (drifted.occurred_on,)
    assert began.labels == {"model_name": model, "severity": "warning", "group": f"model_name={model}"}
    assert began.idempotency_key != ended.idempotency_key


async def test_an_incident_is_opened_although_its_worker_dies(
    autojump_clock: MockClock, model: str, phones: Phones
) -> None:
    """It dies before it could say so: who runs the drift again opens it. It dies later: the incident is open still."""
    drifted = drift(model)
    async with TestBus(alerts.worker) as bus:
        bus.fail_next("commit", "crash", group="alerts")
        await told(bus, drifted)
        assert len(bus.attempts(drifted)) == 2
        (opened,) = bus.published(IncidentOpened)
        await bus.crash("alerts")
        await told(
            bus, breach(model), over(model), MetricRecovered(model_name=model, metric="accuracy", episode_id="a1")
        )
    said = [(one.incident_id, one.severity, one.escalated) for one in events(bus, IncidentOpened)]
    assert said == [(opened.event.incident_id, "warning", False), (opened.event.incident_id, "critical", True)]
    assert [one.incident_id for one in events(bus, IncidentResolved)] == [opened.event.incident_id]
    assert phones["log"].kinds == ["opened", "escalated", "resolved"]


async def test_a_storm_is_one_incident(autojump_clock: MockClock, model: str, phones: Phones) -> None:
    """Fifty episodes and the same event ten times are one notification, with all of them in the incident."""
    async with TestBus(alerts.worker) as bus:
        storm = [drift(model, f"e{number}") for number in range(50)]
        await bus.publish_many(storm + storm[:1] * 10)
        await bus.settle(horizon=0)
        await bus.publish_many([over(model, f"e{number}") for number in range(49)])
        await bus.settle(horizon=0)
        assert phones["log"].kinds == ["opened"]
        await told(bus, over(model, "e49"))
    assert len(events(bus, IncidentOpened)) == len(events(bus, IncidentResolved)) == 1
    assert phones["log"].kinds == ["opened", "resolved"]


async def test_an_end_that_comes_first_is_believed(autojump_clock: MockClock, model: str, phones: Phones) -> None:
    """They come on streams of their own: the end of an episode may be read before its beginning."""
    async with TestBus(alerts.worker) as bus:
        await told(bus, over(model), drift(model))
        assert events(bus, IncidentOpened) == []
        await told(bus, drift(model, "e2"))
    assert len(events(bus, IncidentOpened)) == 1


@pytest.mark.parametrize(
    ("event", "severity", "title"),
    [
        (DataQualityViolated(model_name="m", check="range", feature="x", severity="warning"), "warning", "range in x"),
        (RetrainFailed(model_name="m", run_id="m/v2", error="no labels"), "warning", "m/v2 failed: no labels"),
        (
            HandlerFailed(
                group="tagger",
                handler="f",
                event_type="a.b",
                entry_id="1-0",
                reason="exhausted",
                error="E: x",
                attempts=5,
            ),
            "warning",
            "tagger gave up on a.b",
        ),
        (BusLoss(topic="a.b", reason="stream_full", detail="9 are gone"), "critical", "lost entries: 9 are gone"),
    ],
)
async def test_what_nobody_ends_ends_when_it_is_quiet(
    autojump_clock: MockClock, phones: Phones, event: Event, severity: str, title: str
) -> None:
    """Each of these opens an incident; an hour after it was heard last it is over."""
    async with TestBus(alerts.worker) as bus:
        await told(bus, event)
        await bus.advance(3000)
        await told(bus, event)
        await bus.advance(3000)
        assert phones["log"].kinds == ["opened"]
        await bus.advance(700)
    (opened,), (resolved,) = events(bus, IncidentOpened), events(bus, IncidentResolved)
    assert opened.severity == severity and title in opened.title
    assert resolved.title.endswith("not heard of any more")
    assert phones["log"].kinds == ["opened", "resolved"]


async def test_a_training_that_succeeds_ends_what_a_failed_one_began(
    autojump_clock: MockClock, model: str, phones: Phones
) -> None:
    """retrain.failed rings until retrain.succeeded."""
    async with TestBus(alerts.worker) as bus:
        await told(bus, RetrainFailed(model_name=model, run_id="r1"), RetrainSucceeded(model_name=model, run_id="r2"))
    assert phones["log"].kinds == ["opened", "resolved"]


@pytest.mark.parametrize("answer", [RetrainRequested, RetrainRejected])
async def test_who_must_approve_is_told(
    autojump_clock: MockClock, model: str, phones: Phones, answer: type[RetrainRequested] | type[RetrainRejected]
) -> None:
    """Although an incident of the model is open, which would take it in or mute it; and told that it is answered."""
    async with TestBus(alerts.worker) as bus:
        await told(bus, breach(model), RetrainRequested(model_name=model, reason="by hand"))
        await told(bus, RetrainProposed(model_name=model, proposal_id=f"{model}/p1", reason="accuracy 0.5"))
        assert phones["log"].kinds == ["opened", "opened"]
        await told(bus, answer(model_name=model, proposal_id=f"{model}/p1"))
        assert phones["log"].kinds == ["opened", "opened", "resolved"]
    _, asked = events(bus, IncidentOpened)
    assert "waits for approval, accuracy 0.5" in asked.title and asked.signals == (f"approval:{model}/p1",)


# --- time ------------------------------------------------------------------------------------------------------------


async def test_a_warning_has_to_last(
    autojump_clock: MockClock, model: str, phones: Phones, configure: Configure
) -> None:
    """With `for_seconds` what is over by then was nothing; what lasts opens, although the worker died meanwhile. What is
    critical does not wait."""
    configure("for_seconds = 60")
    async with TestBus(alerts.worker) as bus:
        await told(bus, drift(model, "short"), over(model, "short"))
        await bus.advance(120)
        assert events(bus, IncidentOpened) == []
        await told(bus, drift(model, "long"))
        await bus.advance(50)
        await bus.crash("alerts")
        assert events(bus, IncidentOpened) == []
        await bus.advance(12)
        assert phones["log"].kinds == ["opened"]
        await told(bus, breach(model))
    assert phones["log"].kinds == ["opened", "escalated"]


async def test_what_flaps_is_one_incident(
    autojump_clock: MockClock, model: str, phones: Phones, configure: Configure
) -> None:
    """With `resolve_seconds` an incident is resolved when nothing has rung for so long."""
    configure("resolve_seconds = 300")
    async with TestBus(alerts.worker) as bus:
        for number in range(5):
            await told(bus, drift(model, f"e{number}"), over(model, f"e{number}"))
            await bus.advance(200)
        assert phones["log"].kinds == ["opened"]
        await bus.advance(110)
    assert phones["log"].kinds == ["opened", "resolved"]
    assert len(events(bus, IncidentOpened)) == 1


async def test_an_open_incident_is_told_again_and_becomes_worse(
    autojump_clock: MockClock, model: str, phones: Phones, configure: Configure
) -> None:
    """Repeated after `repeat_seconds`, escalated after `escalate_seconds`; the timers outlive the worker."""
    configure("repeat_seconds = 1000\nescalate_seconds = 2500")
    async with TestBus(alerts.worker) as bus:
        await told(bus, drift(model))
        await bus.advance(900)
        await bus.crash("alerts")
        await bus.advance(3700)
        await told(bus, over(model))
        await bus.advance(5000)
    assert phones["log"].kinds == ["opened", "repeated", "repeated", "escalated", "repeated", "repeated", "resolved"]
    assert [one.severity for one in events(bus, IncidentOpened)] == ["warning", "critical"]
    assert events(bus, IncidentOpened)[1].title.endswith("and it goes on")


# --- who is told -----------------------------------------------------------------------------------------------------


async def test_routes_say_who_is_told(
    autojump_clock: MockClock, model: str, phones: Phones, configure: Configure
) -> None:
    """A warning goes to the one, and when it is critical to the other too; both hear that it is over."""
    configure(
        '[[workers.alerts.routes]]\nseverity = "warning|critical"\ndestinations = ["chat"]\n'
        '[[workers.alerts.routes]]\nseverity = "critical"\ndestinations = ["pager"]',
        "chat",
        "pager",
    )
    async with TestBus(alerts.worker) as bus:
        await told(bus, drift(model, severity="info"))
        assert not phones["chat"].heard and not phones["pager"].heard
        await told(bus, drift(model, "e2"), breach(model), over(model), over(model, "e2"))
        await told(bus, MetricRecovered(model_name=model, metric="accuracy", episode_id="a1"))
    assert phones["chat"].kinds == ["opened", "escalated", "resolved"]
    assert phones["pager"].kinds == ["opened", "resolved"]


async def test_a_grave_incident_mutes_slight_ones_of_its_model(
    autojump_clock: MockClock, model: str, phones: Phones, configure: Configure
) -> None:
    """With incidents by signal: a warning that opens while a critical one is open is told when that is over; one of another
    model is told at once."""
    configure('group_by = ["model_name", "signal"]')
    async with TestBus(alerts.worker) as bus:
        await told(bus, breach(model), drift(model), drift("another"))
        assert [one.title.split(":")[0] for one in phones["log"].heard] == [model, "another"]
        await told(bus, MetricRecovered(model_name=model, metric="accuracy", episode_id="a1"))
    assert sorted(phones["log"].kinds[2:]) == ["opened", "resolved"]
    assert len(events(bus, IncidentOpened)) == 3


async def test_a_training_in_flight_mutes_what_a_rule_says(
    autojump_clock: MockClock, model: str, phones: Phones, configure: Configure
) -> None:
    """While the model is retrained nobody hears of its quality; when that has failed, they do."""
    configure(
        '[[workers.alerts.inhibit]]\nsource = {signal = "retraining"}\ntarget = {signal = "metric:accuracy|quality"}'
    )
    async with TestBus(alerts.worker) as bus:
        await told(bus, RetrainStarted(model_name=model, run_id="r1"), breach(model))
        assert events(bus, IncidentOpened) and not phones["log"].heard
        await told(bus, RetrainSucceeded(model_name=model, run_id="r0"))
        assert not phones["log"].heard
        await told(bus, RetrainSucceeded(model_name=model, run_id="r1"))
    assert phones["log"].kinds == ["opened"]


async def test_a_silence_mutes_until_it_ends(autojump_clock: MockClock, model: str, phones: Phones) -> None:
    """What it matches is opened and not told; when its time is over, or somebody ends it, what is still open is told. What
    was told before is resolved in the open."""
    async with TestBus(alerts.worker) as bus:
        await told(bus, drift("before"))
        until = clock.now() + timedelta(seconds=600)
        await told(bus, SilenceAdded(silence_id="s1", signal="drift", until=until, author="ada", comment="known"))
        await told(bus, drift(model), over("before"))
        assert phones["log"].kinds == ["opened", "resolved"] and len(events(bus, IncidentOpened)) == 2
        await bus.crash("alerts")
        await bus.advance(602)
        assert phones["log"].kinds == ["opened", "resolved", "opened"]
        await told(bus, SilenceAdded(silence_id="s2", model_name="model-*|other"), drift("other"), drift("third"))
        assert [one.model_name for one in phones["log"].heard[3:]] == ["third"]
        await told(bus, SilenceExpired(silence_id="s2"), SilenceExpired(silence_id="never"))
        assert [one.model_name for one in phones["log"].heard[3:]] == ["third", "other"]


async def test_what_joins_a_silenced_incident_is_heard(autojump_clock: MockClock, model: str, phones: Phones) -> None:
    """A silence of drift does not hide that accuracy is lost, too, although the incident is no graver than it was."""
    async with TestBus(alerts.worker) as bus:
        await told(bus, SilenceAdded(silence_id="s", signal="drift"), drift(model))
        assert not phones["log"].heard
        await told(bus, breach(model, severity="warning"))
    (notification,) = phones["log"].heard
    assert (notification.kind, notification.signals) == ("opened", ("drift:e1", "metric:accuracy:a1"))


async def test_a_destination_is_told_no_more_than_its_rate(
    autojump_clock: MockClock, phones: Phones, configure: Configure
) -> None:
    """Incidents beyond the burst wait for tokens; those that are resolved meanwhile are never told."""
    configure("rate_per_minute = 6\nburst = 3")
    async with TestBus(alerts.worker) as bus:
        await bus.publish_many([drift(f"m{number}") for number in range(8)])
        await bus.settle(horizon=0)
        assert len(phones["log"].heard) == 3
        await bus.advance(11)
        assert len(phones["log"].heard) == 4
        heard = {one.model_name for one in phones["log"].heard}
        await bus.publish_many([over(f"m{number}") for number in range(8) if f"m{number}" not in heard])
        await bus.advance(120)
    assert phones["log"].kinds == ["opened"] * 4
    assert len(events(bus, IncidentResolved)) == 4


# --- deliveries ------------------------------------------------------------------------------------------------------


async def test_a_destination_that_is_away_holds_up_nobody_else(
    autojump_clock: MockClock, model: str, phones: Phones, configure: Configure
) -> None:
    """It is tried again with the same idempotency key, and the other is told once and at once."""
    configure("", "slack", "hook")
    phones["slack"].troubles = [ConnectionError("away")] * 4 + [RetryLater(30)]
    async with TestBus(alerts.worker) as bus:
        await bus.publish(drift(model))
        await bus.advance(0)
        assert phones["hook"].kinds == ["opened"] and not phones["slack"].heard
        await bus.settle(limit=7200)
    assert (phones["slack"].kinds, phones["slack"].calls) == (["opened"], 6)
    assert (phones["hook"].kinds, phones["hook"].calls) == (["opened"], 1)
    assert phones["slack"].heard[0].idempotency_key != phones["hook"].heard[0].idempotency_key


async def test_what_was_overtaken_is_not_told(autojump_clock: MockClock, model: str, phones: Phones) -> None:
    """That it was opened waits for its next try while it is told that it is over: nobody is woken afterwards."""
    phones["log"].troubles = [RetryLater(100)]
    async with TestBus(alerts.worker) as bus:
        await bus.publish(drift(model))
        await bus.advance(1)
        await bus.publish(over(model))
        await bus.advance(200)
    assert phones["log"].kinds == ["resolved"]
    assert bus.dead_letters() == []


async def test_what_comes_twice_is_told_once(autojump_clock: MockClock, model: str, phones: Phones) -> None:
    """A group that is set back hands out its notifications again, under the numbers that they had."""
    async with TestBus(alerts.worker) as bus:
        await told(bus, drift(model))
        (due,) = events(bus, NotificationDue)
        await told(bus, due, due)
    assert phones["log"].kinds == ["opened"]


async def test_what_is_refused_is_a_dead_letter_and_can_be_redriven(
    autojump_clock: MockClock, model: str, phones: Phones
) -> None:
    """A 4xx goes to the dead letters at once. That the worker itself gave something up is an incident, too, and told once
    however often it happens."""
    phones["log"].troubles = [Reject("404 no such webhook")]
    async with TestBus(alerts.worker) as bus:
        await told(bus, drift(model))
        (letter,) = bus.dead_letters("alerts")
        assert (letter.reason, letter.envelope.type) == ("rejected", "alert.notification_due")
        assert [one.title.split(":")[0] for one in phones["log"].heard] == ["alerts gave up on alert.notification_due"]
        bus.redrive("alerts")
        await bus.settle(horizon=0)
    assert [one.model_name for one in phones["log"].heard] == ["", model]


async def test_a_failing_destination_does_not_feed_itself(
    autojump_clock: MockClock, model: str, phones: Phones
) -> None:
    """With every call refused for a day there are a few calls, no storm."""
    phones["log"].troubles = [Reject("404")] * 1000
    async with TestBus(alerts.worker) as bus:
        await told(bus, drift(model))
        await bus.advance(86400)
    assert phones["log"].calls < 60


async def test_a_destination_that_is_gone_is_left_alone(
    autojump_clock: MockClock, model: str, phones: Phones, configure: Configure
) -> None:
    """After 410 it is not called for a day, and then told what is still open; the others go on."""
    configure("repeat_seconds = 0", "slack", "hook")
    phones["slack"].troubles = [Gone("410")]
    async with TestBus(alerts.worker) as bus:
        await told(bus, drift(model))
        await told(bus, drift("other"))
        assert (phones["slack"].calls, phones["hook"].calls) == (1, 2)
        await bus.advance(86402)
    assert sorted(one.model_name for one in phones["slack"].heard) == sorted([model, "other"])
    assert phones["hook"].calls == 2
    assert bus.dead_letters() == []


# --- on every kind of server -----------------------------------------------------------------------------------------


async def test_two_workers_share_what_they_know(
    any_url: str, namespace: str, phones: Phones, configure: Configure, eyes: Eyes
) -> None:
    """Whoever gets an event: incidents, silences, tokens and what was told are those of the group. Each incident is told
    once, those that are silenced not at all, and the end of a silence tells them all."""
    configure("rate_per_minute = 6000\nburst = 1000")
    models = [f"m{number}" for number in range(20)]

    def kinds(kind: str) -> list[str]:
        return sorted(one.model_name for one in phones["log"].heard if one.kind == kind)

    async with (
        running(any_url, alerts.worker, namespace=namespace) as first,
        running(any_url, alerts.worker, namespace=namespace),
    ):
        await first.publish(SilenceAdded(silence_id="s", model_name="m1*"))
        await quiet(eyes, event_type="silence.added", timeout=30)
        for episode in range(3):
            await first.publish_many([drift(model, f"e{episode}") for model in models])
        await quiet(eyes, event_type="drift.detected", timeout=30)
        loud = sorted(model for model in models if not model.startswith("m1"))
        await until(lambda: kinds("opened") == loud, 30)
        assert eyes.count("incident.opened") == 20
        await first.publish(SilenceExpired(silence_id="s"))
        await until(lambda: kinds("opened") == sorted(models), 30)
        for episode in range(3):
            await first.publish_many([over(model, f"e{episode}") for model in models])
        await until(lambda: kinds("resolved") == sorted(models), 30)
    assert eyes.count("incident.resolved") == 20 and eyes.count("alert.notification_due") == 40
    assert len({one.idempotency_key for one in phones["log"].heard}) == len(phones["log"].heard) == 40
    assert eyes.dead("alerts") == []
    kept = [eyes.keys.state("alerts", f"incident/model_name={model}") for model in models]
    assert eyes.call("EXISTS", *kept) == 0


async def test_timers_go_on_on_every_kind_of_server(
    any_url: str, namespace: str, phones: Phones, configure: Configure, eyes: Eyes
) -> None:
    """Debounce, repetition and calm, with a worker that was not there when it began."""
    configure("for_seconds = 0.3\nrepeat_seconds = 0.6\nresolve_seconds = 0.3")

    def heard(kind: str) -> bool:
        return kind in phones["log"].kinds

    async with running(any_url, alerts.worker, namespace=namespace) as bus:
        await bus.publish(drift("m"))
        await quiet(eyes, event_type="drift.detected", timeout=30)
    async with running(any_url, alerts.worker, namespace=namespace) as bus:
        await until(partial(heard, "repeated"), 30)
        await bus.publish(over("m"))
        await until(partial(heard, "resolved"), 30)
    kinds = phones["log"].kinds
    assert kinds[0] == "opened" and kinds[-1] == "resolved" and set(kinds[1:-1]) == {"repeated"}


async def test_a_colon_in_a_metrics_name(
    autojump_clock: MockClock, model: str, phones: Phones, configure: Configure
) -> None:
    """Routes and silences know a metric by the whole of its name."""
    configure('routes = [{ signal = "metric:val:accuracy", destinations = ["chat"] }]', "chat")
    values = {"value": 0.5, "bound": 0.9, "episode_id": "a:1"}
    async with TestBus(alerts.worker) as bus:
        await told(bus, MetricThresholdBreached(model_name=model, metric="val:accuracy", **values))
    assert phones["chat"].kinds == ["opened"]


async def test_what_was_too_much_is_told_when_there_is_room(
    autojump_clock: MockClock, phones: Phones, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three incidents at a desk for two: the third is told a minute after another one is over, and then that it is over;
    the fourth, which ended while there was no room, is never told."""
    monkeypatch.setattr("canvasbus_workers.alerts.desk.MOST_OPEN", 2)
    configure("repeat_seconds = 0", "chat")
    async with TestBus(alerts.worker) as bus:
        await told(bus, *(drift(f"m{number}") for number in range(4)), over("m3"))
        assert [one.model_name for one in phones["chat"].heard] == ["m0", "m1"]
        await told(bus, over("m0"))
        await bus.advance(61)
        await told(bus, over("m2"))
    said = [(one.model_name, one.kind) for one in phones["chat"].heard]
    assert said[2:] == [("m0", "resolved"), ("m2", "opened"), ("m2", "resolved")]
    assert len(events(bus, IncidentOpened)) == 4


@pytest.mark.parametrize("asked", [True, False])
async def test_many_trainings_are_no_weight(
    any_url: str, namespace: str, phones: Phones, configure: Configure, eyes: Eyes, asked: bool
) -> None:
    """With models in training without end each commit writes no more than the bound; and nothing where no rule asks for
    trainings. What ended is forgotten."""
    configure(
        '[[workers.alerts.inhibit]]\nsource = {signal = "retraining"}\ntarget = {signal = "drift"}' if asked else ""
    )
    models, desk = [f"StyleGAN-Canvas-v{number}" for number in range(400)], eyes.keys.state("alerts", "desk")
    async with running(any_url, alerts.worker, namespace=namespace) as bus:
        await bus.publish_many([RetrainStarted(model_name=model, run_id=f"{model}/v1") for model in models])
        await quiet(eyes, event_type="retrain.started", timeout=60)
        assert (5000 < eyes.call("STRLEN", desk) < 20_000) if asked else eyes.call("EXISTS", desk) == 0
        await bus.publish_many([RetrainSucceeded(model_name=model, run_id=f"{model}/v1") for model in models])
        await quiet(eyes, event_type="retrain.succeeded", timeout=60)
        assert not asked or eyes.call("STRLEN", desk) < 200
    assert eyes.dead("alerts") == []


async def test_a_silence_of_endless_patterns_is_refused(autojump_clock: MockClock, phones: Phones, model: str) -> None:
    """It goes to the dead letters with the reason, which rings, and mutes nothing."""
    async with TestBus(alerts.worker) as bus:
        await told(bus, SilenceAdded(silence_id="s", model_name="|".join(["m*"] * 200)), drift(model))
        (dead,) = bus.dead_letters("alerts")
    assert "the patterns have more than 300 bytes" in dead.error
    assert sorted(one.model_name for one in phones["log"].heard) == ["", model]
