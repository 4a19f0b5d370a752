"""The retrain worker: what asks for a run, what becomes of it, and who may promote."""

from pathlib import Path
from typing import Any

import pytest
import trio
from studio import Eyes, quiet, running
from trio.testing import MockClock
from waiting import until
from workers.telling import events, told

from canvasbus import clock
from canvasbus.errors import LifespanError
from canvasbus.events import (
    DriftDetected,
    DriftResolved,
    LabelsRecorded,
    MetricRecovered,
    MetricThresholdBreached,
    ModelPromoted,
    RetrainFailed,
    RetrainProposed,
    RetrainRejected,
    RetrainRequested,
    RetrainStarted,
    RetrainSucceeded,
)
from canvasbus.testing import TestBus
from canvasbus_workers import retrain
from canvasbus_workers.retrain.launchers import folders, records
from canvasbus_workers.retrain.launchers.prefect import Prefect
from canvasbus_workers.retrain.launchers.protocol import Busy, Ended, Launched, Order, Running
from canvasbus_workers.retrain.launchers.subprocess import Subprocess
from canvasbus_workers.retrain.settings import Policy

FREE = "[workers.retrain]\ndebounce_seconds = 0\ncooldown_seconds = 0\n"


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """canvasbus.toml, in which nothing has to wait."""
    path = tmp_path / "canvasbus.toml"
    path.write_text(FREE)
    monkeypatch.setenv("CANVASBUS_CONFIG", str(path))
    return path


@pytest.fixture
def bus() -> TestBus:
    return TestBus(retrain.worker)


def breach(episode: str = "e1", **fields: Any) -> MetricThresholdBreached:
    values = {"model_name": "m", "metric": "accuracy", "value": 0.5, "bound": 0.9, "episode_id": episode}
    return MetricThresholdBreached(**values | fields)


def answer(started: RetrainStarted, **fields: Any) -> RetrainSucceeded:
    values = {"run_id": started.run_id, "fence": started.fence, "correlation_id": started.correlation_id}
    return RetrainSucceeded(model_name="m", **values, **fields)


# --- what asks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "starts"),
    [
        (breach(), True),
        (breach(severity="warning"), False),
        (breach(condition="absent"), False),
        (breach(metric="latency"), False),
        (DriftDetected(model_name="m", drift_score=1, drift_type="ks", severity="critical"), True),
        (DriftDetected(model_name="m", drift_score=1, drift_type="ks", severity="warning"), False),
        (DriftDetected(model_name="m", drift_score=1, drift_type="ks", severity="critical", state="escalated"), False),
        (RetrainRequested(model_name="m"), True),
        (breach(model_name="quiet"), False),
        (RetrainRequested(model_name="quiet"), True),
    ],
)
async def test_what_starts_a_run(
    autojump_clock: MockClock, bus: TestBus, settings: Path, event: Any, starts: bool
) -> None:
    """Lost quality, drift that is critical at once, and requests; not input drift, not silence, not other metrics, and for
    some models nothing but requests."""
    settings.write_text(f'{FREE}metrics = "acc*|f1"\n[workers.retrain.models.quiet]\non = []\n')
    async with bus:
        await told(bus, event)
    assert len(events(bus, RetrainStarted)) == starts


async def test_the_start_says_what_it_is_for(autojump_clock: MockClock, bus: TestBus) -> None:
    """Model, version, run, fence, episode, reason, and how many windows show it; caused by the breach."""
    asked = breach("e7", window_number=12, first_window=9)
    async with bus:
        await told(bus, asked)
    (started,) = bus.published(RetrainStarted)
    event = started.event
    assert (event.run_id, event.model_version, event.fence, event.windows) == ("m/v1", "v1", 1, 4)
    assert (event.episode_id, event.reason) == ("e7", "accuracy 0.500, expected 0.900")
    assert started.cause.event == asked and event.correlation_id == asked.correlation_id


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "accuracy 0.500, expected 0.900"),
        ({"condition": "change", "change": -0.2, "change_bound": -0.1}, "accuracy changed by -0.200, expected -0.100"),
        (
            {"condition": "relative_change", "relative_change": -0.22, "relative_bound": -0.05},
            "accuracy changed by -22.0%, expected -5.0%",
        ),
        ({"bound": None}, "accuracy 0.500"),
    ],
)
async def test_the_reason_says_what_was_lost(
    autojump_clock: MockClock, bus: TestBus, fields: dict[str, Any], reason: str
) -> None:
    """The value, or the change; also of an event that names no bound."""
    async with bus:
        await told(bus, breach(**fields))
    assert [event.reason for event in events(bus, RetrainStarted)] == [reason]


async def test_long_names_have_fences_of_their_own(autojump_clock: MockClock, bus: TestBus) -> None:
    """Two models whose names begin with the same five hundred characters: each has its first run, and the names of the two
    runs differ, as they do for names that hold slashes."""
    models = ["x" * 600 + end for end in "12"] + ["a", "a/v1"]
    async with bus:
        await told(bus, *(breach(model_name=model, episode=f"e of {model}") for model in models))
    started = events(bus, RetrainStarted)
    assert [(e.model_name, e.fence) for e in started] == [(model, 1) for model in models]
    assert len({e.run_id for e in started}) == len(models) and max(len(e.run_id) for e in started) <= 200


async def test_debounce_cooldown_and_the_trailing_run(autojump_clock: MockClock, bus: TestBus, settings: Path) -> None:
    """Signals join for a while; those that come during the run wait for the cooldown and are one run."""
    settings.write_text("[workers.retrain]\ndebounce_seconds = 30\ncooldown_seconds = 600\n")
    async with bus:
        await told(bus, breach("e1"), breach("e2"))
        await bus.advance(25)
        assert events(bus, RetrainStarted) == []
        await bus.advance(10)
        (first,) = events(bus, RetrainStarted)
        await told(bus, breach("e1"), breach("e2"), breach("e3"), breach("e4"))
        await bus.advance(1000)
        await told(bus, answer(first))
        await bus.advance(590)
        assert len(events(bus, RetrainStarted)) == 1
        await bus.advance(20)
        _, second = events(bus, RetrainStarted)
        await told(bus, answer(second))
        await bus.advance(5000)
    assert len(events(bus, RetrainStarted)) == 2
    assert second.episode_id == "e3"


async def test_the_budget_of_a_day(autojump_clock: MockClock, bus: TestBus, settings: Path) -> None:
    """One more than it allows waits until the first one is a day old."""
    settings.write_text(f"{FREE}daily_runs = 2\n")
    async with bus:
        for number in range(3):
            await told(bus, breach(f"e{number}"))
            await told(bus, answer(events(bus, RetrainStarted)[-1]))
        assert len(events(bus, RetrainStarted)) == 2
        await bus.advance(86395)
        assert len(events(bus, RetrainStarted)) == 2
        await bus.advance(10)
    assert len(events(bus, RetrainStarted)) == 3


async def test_labels_are_counted(autojump_clock: MockClock, bus: TestBus, settings: Path) -> None:
    """Those for training, since the last run began."""
    settings.write_text(f"{FREE}min_new_labels = 3\n")
    async with bus:
        await told(bus, LabelsRecorded(model_name="m", item_ids=("a", "b"), labels=(1, 1)))
        await told(bus, LabelsRecorded(model_name="m", item_ids=("c", "d"), labels=(1, 1), split="test"))
        await told(bus, breach())
        assert events(bus, RetrainStarted) == []
        await told(bus, LabelsRecorded(model_name="m", item_ids=("e",), labels=(1,), split="train"))
        await told(bus, LabelsRecorded(model_name="m", item_ids=("f", "g"), labels=(1, 1), split="train"))
        await told(bus, breach())
    assert len(events(bus, RetrainStarted)) == 1


async def test_approval(autojump_clock: MockClock, bus: TestBus, settings: Path) -> None:
    """Proposed; yes starts it, no forgets it, and what has recovered meanwhile is withdrawn."""
    settings.write_text(f"{FREE}approval = true\n")
    async with bus:
        await told(bus, breach("e1"), breach("e1"))
        (one,) = events(bus, RetrainProposed)
        assert (one.proposal_id, one.episode_id) == ("m/p1", "e1")
        await told(bus, RetrainRequested(model_name="m", proposal_id="m/p9"))
        assert events(bus, RetrainStarted) == []
        await told(bus, RetrainRequested(model_name="m", proposal_id="m/p1", requested_by="ada"))
        (started,) = events(bus, RetrainStarted)
        await told(bus, answer(started))
        await told(bus, breach("e2"), RetrainRejected(model_name="m", proposal_id="m/p2"), breach("e2"))
        await told(bus, breach("e3"), MetricRecovered(model_name="m", metric="accuracy", episode_id="e3"))
        await told(bus, DriftResolved(model_name="m", episode_id="e2"), breach("e2"))
    assert [event.proposal_id for event in events(bus, RetrainProposed)] == ["m/p1", "m/p2", "m/p3", "m/p4"]
    assert [(e.proposal_id, e.rejected_by) for e in events(bus, RetrainRejected)] == [("m/p2", ""), ("m/p3", "retrain")]
    assert len(events(bus, RetrainStarted)) == 1


# --- what becomes of a run ---------------------------------------------------------------------------------------------


async def test_success_is_promoted_once(autojump_clock: MockClock, bus: TestBus) -> None:
    """With what the answer says, and the fence; told again it is nothing."""
    async with bus:
        await told(bus, breach())
        (started,) = events(bus, RetrainStarted)
        await told(bus, answer(started, model_version="v1-big"), answer(started))
        await told(bus, breach("e2"))
        await told(bus, answer(events(bus, RetrainStarted)[-1]))
    one, two = events(bus, ModelPromoted)
    assert (one.model_version, one.run_id, one.fence, one.previous_version) == ("v1-big", "m/v1", 1, "")
    assert (two.model_version, two.run_id, two.fence, two.previous_version) == ("v2", "m/v2", 2, "v1-big")
    assert one.correlation_id == breach_of(bus, "e1").correlation_id


def breach_of(bus: TestBus, episode: str) -> Any:
    return next(event for event in events(bus, MetricThresholdBreached) if event.episode_id == episode)


async def test_a_stale_run_cannot_promote(autojump_clock: MockClock, bus: TestBus) -> None:
    """It does not answer in time, another one begins, and then it does: the way is not free for it any more, neither
    before nor after the newer one has been promoted."""
    async with bus:
        await told(bus, breach())
        (old,) = events(bus, RetrainStarted)
        await bus.advance(6 * 3600 + 61)
        (lost,) = events(bus, RetrainFailed)
        assert "no answer in 216" in lost.error and lost.run_id == old.run_id
        await told(bus, breach())
        new = events(bus, RetrainStarted)[-1]
        await told(bus, answer(old))
        await told(bus, answer(new))
        await told(bus, answer(old))
        await told(bus, answer(new, model_version="again"))
    assert [(event.run_id, event.fence) for event in events(bus, ModelPromoted)] == [("m/v2", 2)]


@pytest.mark.parametrize("adopted", [True, False])
async def test_a_run_that_began_late(
    autojump_clock: MockClock, bus: TestBus, settings: Path, tmp_path: Path, monkeypatch: Any, adopted: bool
) -> None:
    """An order waits almost as long as it may, and then takes almost as long as a run may: nothing else begins meanwhile, and
    what it has made is promoted. When nobody tells how it ended, it is overdue when its own time is over."""
    settings.write_text(
        f'{FREE}timeout_seconds = 100\nlauncher = "subprocess"\nfolder = "{tmp_path}"\nsubprocess = {{command = ["true"]}}\n'
    )
    running, most = set[str](), 0

    async def launch(self: Subprocess, order: Order, *, late: bool = False) -> Ended:
        nonlocal most
        assert not late
        folder = tmp_path / order.key
        records.claim(folder / "order.json", folders.about(order, Policy(timeout_seconds=100)))
        await trio.sleep(95)  # for one of the sixteen places
        records.claim(folder / "started.json", {"at": clock.time()})
        running.add(order.run_id)
        most = max(most, len(running))
        await trio.sleep(95)
        running.remove(order.run_id)
        if not adopted:
            await trio.sleep_forever()
        return Ended(duration=95)

    monkeypatch.setattr(Subprocess, "launch", launch)
    async with bus:
        await bus.publish(breach())
        await bus.advance(100)
        await bus.publish(breach("e2"))
        await bus.advance(85)
        assert running == {"m/v1"} and len(events(bus, RetrainStarted)) == 1
        assert events(bus, RetrainFailed) == []
        await bus.advance(85)
        assert [event.run_id for event in events(bus, ModelPromoted)] == ["m/v1"] * adopted
        assert [event.run_id for event in events(bus, RetrainFailed)] == ["m/v1"] * (not adopted)
        assert [event.run_id for event in events(bus, RetrainStarted)] == ["m/v1", "m/v2"]
        await bus.advance(100)
    assert most == 1


async def test_an_order_that_was_taken_late_elsewhere(
    autojump_clock: MockClock, bus: TestBus, settings: Path, monkeypatch: Any
) -> None:
    """The other side was busy for as long as it may: the run has its whole time from when it was taken, and then it is overdue."""
    settings.write_text(
        f'{FREE}timeout_seconds = 120\nlauncher = "prefect"\nanswer = "state"\nprefect = {{url = "http://h/", deployment = "a/b"}}\n'
    )
    begins = clock.time() + 106

    async def launch(self: Prefect, order: Order, *, late: bool = False) -> Launched:
        if clock.time() < begins:
            raise Busy("h answered 503", 10.0)
        return Launched(external_id=order.run_id)

    async def status(self: Prefect, external_id: str) -> Running:
        return Running()

    monkeypatch.setattr(Prefect, "launch", launch)
    monkeypatch.setattr(Prefect, "status", status)
    async with bus:
        await bus.publish(breach())
        await bus.advance(116)
        await bus.publish(breach("e2"))
        await bus.advance(120)
        assert events(bus, RetrainFailed) == [] and len(events(bus, RetrainStarted)) == 1
        await bus.advance(90)
        assert [event.run_id for event in events(bus, RetrainFailed)] == ["m/v1"]
        assert len(events(bus, RetrainStarted)) == 2


async def test_a_model_promoted_by_hand_stays(autojump_clock: MockClock, bus: TestBus) -> None:
    """A run that began before is not promoted; the next one is, and names what it replaces."""
    async with bus:
        await told(bus, breach())
        await told(bus, ModelPromoted(model_name="m", model_version="by hand"))
        await told(bus, answer(events(bus, RetrainStarted)[-1]))
        assert len(events(bus, ModelPromoted)) == 1
        await told(bus, breach("e2"))
        await told(bus, answer(events(bus, RetrainStarted)[-1]))
    assert events(bus, ModelPromoted)[-1].previous_version == "by hand"


async def test_a_run_that_nobody_promotes(autojump_clock: MockClock, bus: TestBus, settings: Path) -> None:
    """promote = false: it has succeeded, and somebody else decides."""
    settings.write_text(f"{FREE}promote = false\n")
    async with bus:
        await told(bus, breach())
        await told(bus, answer(events(bus, RetrainStarted)[-1]), breach("e2"))
    assert events(bus, ModelPromoted) == []
    assert len(events(bus, RetrainStarted)) == 2


async def test_a_failed_run_frees_the_way(autojump_clock: MockClock, bus: TestBus) -> None:
    """For what was wanted meanwhile, and for the same episode when it asks again."""
    async with bus:
        await told(bus, breach("e1"), breach("e2"))
        (run,) = events(bus, RetrainStarted)
        await told(bus, RetrainFailed(model_name="m", run_id=run.run_id, error="x"))
        assert [event.episode_id for event in events(bus, RetrainStarted)] == ["e1", "e2"]
        await told(bus, breach("e1"))
    assert len(events(bus, RetrainStarted)) == 2
    assert events(bus, ModelPromoted) == []


async def test_nothing_happens_twice_when_it_dies(autojump_clock: MockClock, bus: TestBus) -> None:
    """The worker dies with each of its decisions in hand, and the replies get lost: one run, one promotion."""
    async with bus:
        for how in ("crash", "lost_reply"):
            bus.fail_next("commit", how, group="retrain")
            await told(bus, breach(how))
            bus.fail_next("commit", how, group="retrain")
            await told(bus, answer(events(bus, RetrainStarted)[-1]))
    assert [event.run_id for event in events(bus, RetrainStarted)] == ["m/v1", "m/v2"]
    assert [event.run_id for event in events(bus, ModelPromoted)] == ["m/v1", "m/v2"]
    assert bus.dead_letters() == []


async def test_wrong_settings_stop_it_from_starting(autojump_clock: MockClock, bus: TestBus, settings: Path) -> None:
    """Unknown keys, also of a model's table."""
    settings.write_text("[workers.retrain]\ncooldown = 3\n")
    with pytest.raises(LifespanError, match="unknown key 'cooldown'; did you mean cooldown_seconds"):
        async with bus:
            pass
    settings.write_text("[workers.retrain.models.m]\ndaily_runs = 0\n")
    with pytest.raises(LifespanError, match=r'models."m"\]: daily_runs: expected int >= 1'):
        async with TestBus(retrain.worker):
            pass


async def test_two_workers_on_any_server(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Two processes' worth of workers, twenty models with three signals each at once: one run in flight for each, one
    trailing rerun for each, and promotions in the order of their fences."""
    models = [f"m{n}" for n in range(20)]

    def of(event_type: str) -> list[Any]:
        return eyes.events(event_type)

    async with running(any_url, retrain.worker, namespace=namespace) as bus:
        async with running(any_url, retrain.worker, namespace=namespace):
            for episode in ("e1", "e2", "e3"):
                await bus.publish_many([breach(episode, model_name=model) for model in models])
            await quiet(eyes, "retrain", event_type="metric.threshold_breached")
            assert len(of("retrain.started")) == 20
            for _ in range(2):
                await bus.publish_many(
                    [
                        RetrainSucceeded(model_name=started.model_name, run_id=started.run_id, fence=started.fence)
                        for started in of("retrain.started")
                    ]
                )
                await until(lambda: len(of("retrain.started")) == 40, 30)
            await until(lambda: len(of("model.promoted")) == 40, 30)
    for model in models:
        assert sorted(event.fence for event in of("retrain.started") if event.model_name == model) == [1, 2]
        assert [event.fence for event in of("model.promoted") if event.model_name == model] == [1, 2]
    assert eyes.dead("retrain") == []


async def test_a_model_that_only_recovers_leaves_nothing(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What is over for models that nobody ever wanted to train is no state on the server; for one that was wanted it
    counts."""
    key = eyes.keys.state("retrain", "model/m")
    over = MetricRecovered(model_name="m", metric="accuracy", episode_id="e1")
    async with running(any_url, retrain.worker, namespace=namespace) as bus:
        await bus.publish(over)
        await quiet(eyes, "retrain", event_type="metric.recovered")
        assert eyes.call("EXISTS", key) == 0
        await bus.publish(breach())
        await until(lambda: eyes.count("retrain.started"))
        await bus.publish(over)
        await quiet(eyes, "retrain", event_type="metric.recovered")
    assert eyes.call("EXISTS", key) == 1 and eyes.dead("retrain") == []
