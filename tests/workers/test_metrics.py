"""The metrics worker: rules over reported metrics, silence, rules that change while it runs, and the doctor."""

import os
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from servers import python_path
from studio import Eyes, quiet, running
from trio.testing import MockClock
from waiting import until

from canvasbus import clock
from canvasbus.errors import LifespanError
from canvasbus.events import MetricRecovered, MetricReported, MetricThresholdBreached
from canvasbus.testing import TestBus
from canvasbus_workers import metrics
from canvasbus_workers.metrics import handlers
from canvasbus_workers.metrics.edge import KEPT_AT_REST, Rules

RULES = """
[workers.metrics.rules.fid]
metric = "fid"
model = "Style*"
segment = "eu"
max = 30.0
recover_max = 25.0
severity = "critical"

[workers.metrics.rules.silence]
metric = "accuracy"
absent_seconds = 120
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """canvasbus.toml with the rules of this page."""
    path = tmp_path / "canvasbus.toml"
    path.write_text(RULES)
    monkeypatch.setenv("CANVASBUS_CONFIG", str(path))
    return path


def report(metric: str, value: float, model: str = "StyleGAN", segment: str = "eu", **fields: Any) -> MetricReported:
    return MetricReported(model_name=model, metric=metric, value=value, labels={"segment": segment}, **fields)


async def told(bus: TestBus, *reports: MetricReported) -> list[Any]:
    """What came of these reports, one after the other."""
    before = {one.id for one in bus.published()}
    for one in reports:
        await bus.publish(one)
        await bus.settle(horizon=0)
    return [one.event for one in bus.published() if one.id not in before and not isinstance(one.event, MetricReported)]


async def test_a_breach_and_its_recovery(autojump_clock: MockClock, config: Path) -> None:
    """With all that the rule and the reports say; other models, segments and metrics are nobody's business."""
    async with TestBus(metrics.worker) as bus:
        assert await told(bus, report("fid", 99, model="Pix"), report("fid", 99, segment="us"), report("kid", 99)) == []
        assert await told(bus, report("fid", 30.0)) == []
        bad = report("fid", 31.0, items=500, model_version="v3", window_id="w7")
        (breach,) = await told(bus, bad)
        assert await told(bus, report("fid", 26.0)) == []
        (recovered,) = await told(bus, report("fid", 24.0))
    assert isinstance(breach, MetricThresholdBreached) and isinstance(recovered, MetricRecovered)
    assert (breach.metric, breach.value, breach.bound, breach.direction) == ("fid", 31.0, 30.0, "above")
    assert (breach.items, breach.model_version, breach.window_id) == (500, "v3", "w7")
    assert (breach.severity, breach.rule, breach.condition, breach.segment) == ("critical", "fid", "value", "eu")
    assert breach.correlation_id == bad.correlation_id
    assert (recovered.value, recovered.bound, recovered.rule, recovered.segment) == (24.0, 25.0, "fid", "eu")
    assert recovered.episode_id == breach.episode_id


@pytest.mark.parametrize(
    ("of", "bounds", "breach", "recovery"),
    [
        ("change", "max = 5.0", {"change": 6.0, "change_bound": 5.0}, {"change": 4.0, "change_bound": 5.0}),
        (
            "relative_change",
            "max = 0.25",
            {"relative_change": 0.3, "relative_bound": 0.25},
            {"relative_change": 4 / 26, "relative_bound": 0.25},
        ),
    ],
)
async def test_what_is_held_against_what_has_names_of_its_own(
    autojump_clock: MockClock, config: Path, of: str, bounds: str, breach: dict[str, float], recovery: dict[str, float]
) -> None:
    """A rule about a change: `value` is the metric, whatever the rule is about; the change and its bound stand under their
    own names, with the time of the change, and nothing stands under `bound`."""
    config.write_text(f'[workers.metrics.rules.r]\nmetric = "fid"\nof = "{of}"\nover_seconds = 60\n{bounds}\n')
    pairs = ("bound", "change", "change_bound", "relative_change", "relative_bound", "allowed_seconds")
    async with TestBus(metrics.worker) as bus:
        assert await told(bus, report("fid", 20.0)) == []
        await bus.advance(60)
        (broken,) = await told(bus, report("fid", 26.0))
        await bus.advance(60)
        (kept,) = await told(bus, report("fid", 30.0))
    for event, value, expected in ((broken, 26.0, breach), (kept, 30.0, recovery)):
        assert (event.value, event.condition, event.over_seconds) == (value, of, 60.0)
        assert {name: getattr(event, name) for name in pairs} == pytest.approx(dict.fromkeys(pairs) | expected)
    assert broken.silent_seconds is None


async def test_silence_is_one_breach(autojump_clock: MockClock, config: Path) -> None:
    """Reports stop: one event, however long it lasts. They come back: it is over; and the next silence is another one."""
    async with TestBus(metrics.worker) as bus:
        await told(bus, report("accuracy", 0.9))
        await bus.advance(100)
        await told(bus, report("accuracy", 0.9))
        await bus.advance(100)
        assert bus.published(MetricThresholdBreached) == []
        await bus.advance(3600)
        (silent,) = bus.published(MetricThresholdBreached)
        assert (silent.event.condition, silent.event.allowed_seconds, silent.event.direction) == (
            "absent",
            120.0,
            "above",
        )
        assert 120 <= silent.event.silent_seconds < 125
        assert (silent.event.value, silent.event.bound) == (0.9, None)
        (back,) = await told(bus, report("accuracy", 0.9))
        assert (back.condition, back.episode_id) == ("absent", silent.event.episode_id)
        assert (back.value, back.bound, back.allowed_seconds) == (0.9, None, 120.0)
        await bus.advance(600)
    first, second = (one.event.episode_id for one in bus.published(MetricThresholdBreached))
    assert first != second
    assert len(bus.published(MetricRecovered)) == 1


async def test_nothing_is_told_twice_and_nothing_is_lost(autojump_clock: MockClock, config: Path) -> None:
    """The worker dies after judging and before it could say so, and the server's replies get lost: each breach, silence
    and recovery is told once all the same."""
    async with TestBus(metrics.worker) as bus:
        bus.fail_next("commit", "crash", group="metrics")
        await told(bus, bad := report("fid", 31.0))
        assert len(bus.attempts(bad)) == 2
        bus.fail_next("commit", "lost_reply", group="metrics")
        await told(bus, report("fid", 20.0))
        await bus.crash("metrics")
        await told(bus, report("accuracy", 0.9))
        await bus.advance(119)
        bus.fail_next("commit", "crash", group="metrics")
        await bus.advance(600)
    assert [one.event.rule for one in bus.published(MetricThresholdBreached)] == ["fid", "silence"]
    assert [one.event.rule for one in bus.published(MetricRecovered)] == ["fid"]


async def test_a_late_report_and_a_clock_that_goes_ahead(autojump_clock: MockClock, config: Path) -> None:
    """A report older than late_seconds changes nothing and does not break a silence; one from the future counts as one
    of now, so that the others are not late."""
    async with TestBus(metrics.worker) as bus:
        now = clock.now()
        await told(bus, report("fid", 20.0, occurred_on=now + timedelta(days=300)))
        assert len(await told(bus, report("fid", 40.0))) == 1
        assert await told(bus, report("fid", 20.0, occurred_on=now - timedelta(seconds=90))) == []
        await told(bus, report("accuracy", 0.9))
        await bus.advance(110)
        await told(bus, report("accuracy", 0.9, occurred_on=now - timedelta(days=1)))
        await bus.advance(60)
    assert [one.event.rule for one in bus.published(MetricThresholdBreached)] == ["fid", "silence"]


async def test_a_report_of_now_follows_one_from_the_future(autojump_clock: MockClock, config: Path) -> None:
    """Also within one microsecond, which is all that events know of time, whatever nanosecond the worker's clock shows."""
    async with TestBus(metrics.worker) as bus:
        for number in range(10):
            model = f"Style{number}"
            await told(bus, report("fid", 20.0, model, occurred_on=clock.now() + timedelta(days=300)))
            assert len(await told(bus, report("fid", 40.0, model))) == 1, number
            await bus.advance(0.000_000_3)


async def test_rules_change_while_it_runs(autojump_clock: MockClock, config: Path, tmp_path: Path) -> None:
    """A changed file is in force with the next report; a wrong one is not, and the log says why, once; the breach of a
    rule that was taken away is ended."""
    config.write_text(f'[workers.metrics]\nrules_file = "{tmp_path}/rules.toml"\n')
    rules = tmp_path / "rules.toml"
    rules.write_text('[low]\nmetric = "fid"\nmax = 10\n')
    async with TestBus(metrics.worker) as bus:
        (breach,) = await told(bus, report("fid", 15.0))
        assert breach.rule == "low"
        rules.write_text('[low]\nmetric = "fid"\nmax = 12\nmin = 20\n')
        await bus.advance(2)
        with structlog.testing.capture_logs() as logs:
            assert await told(bus, report("fid", 15.0), report("fid", 15.0)) == []
            await bus.advance(2)
            await told(bus, report("fid", 15.0))
        (said,) = [line["why"] for line in logs if "old ones stay" in line["event"]]
        assert said == f"rules_file {rules}: [low]: min = 20 lies above max = 12"
        rules.write_text('[high]\nmetric = "fid"\nmax = 12\nseverity = "info"\n')
        await bus.advance(2)
        gone, new = await told(bus, report("fid", 15.0))
    assert (type(gone), gone.episode_id, gone.rule) == (MetricRecovered, breach.episode_id, "low")
    assert (type(new), new.rule, new.severity) == (MetricThresholdBreached, "high", "info")


async def test_no_rules_at_all_are_told_at_the_start(autojump_clock: MockClock, config: Path) -> None:
    """One warning that says where they would stand; with a rule none."""
    rules = config.parent / "rules.toml"
    rules.write_text("")
    for text, places in (
        (RULES, None),
        ("", "[workers.metrics.rules.NAME]"),
        (f'[workers.metrics]\nrules_file = "{rules}"\n', f"[workers.metrics.rules.NAME] and {rules}"),
    ):
        config.write_text(text)
        with structlog.testing.capture_logs() as logs:
            async with TestBus(metrics.worker):
                pass
        said = [one["event"] for one in logs if one["log_level"] == "warning"]
        assert said == ([] if places is None else [f"no rules in {places}: nothing is judged"])


async def test_wrong_rules_stop_it_from_starting(autojump_clock: MockClock, config: Path) -> None:
    """In canvasbus.toml or in the file that it names."""
    config.write_text('[workers.metrics.rules.r]\nmetric = "m"\n')
    with pytest.raises(LifespanError, match=r"\[workers.metrics.rules.r\]: give min, max or absent_seconds"):
        async with TestBus(metrics.worker):
            pass
    config.write_text('[workers.metrics]\nrules_file = "nowhere.toml"\n')
    with pytest.raises(LifespanError, match=r"rules_file nowhere.toml cannot be read: No such file"):
        async with TestBus(metrics.worker):
            pass


def test_the_doctor_looks_at_rules(config: Path, server_url: str, namespace: str) -> None:
    """Those in canvasbus.toml are counted, and a file of rules that is wrong is told with its name."""

    def doctor() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "canvasbus", "doctor", "--url", server_url, "--namespace", namespace],
            env=os.environ | {"PYTHONPATH": python_path(config.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        return next(line for line in done.stdout.splitlines() if "workers.metrics" in line)

    assert "1 settings in" in doctor() and doctor().endswith("; 2 rules")
    (config.parent / "rules.toml").write_text("[r\n")
    config.write_text(f'[workers.metrics]\nrules_file = "{config.parent}/rules.toml"\n')
    assert doctor().startswith("error") and "rules.toml is not TOML" in doctor()


async def test_two_workers_on_any_server(any_url: str, namespace: str, config: Path, eyes: Eyes) -> None:
    """Two processes' worth of workers share a series: opened once, silent once, recovered once each."""
    config.write_text(RULES.replace("absent_seconds = 120", "absent_seconds = 0.2"))
    async with running(any_url, metrics.worker, namespace=namespace) as bus:
        async with running(any_url, metrics.worker, namespace=namespace):
            for value in (10.0, 40.0, 50.0):
                await bus.publish(report("fid", value))
            await until(lambda: eyes.events("metric.threshold_breached"))
            for value in (26.0, 20.0):
                await bus.publish(report("fid", value))
            await until(lambda: eyes.events("metric.recovered"))
            await bus.publish(report("accuracy", 0.9))
            await until(lambda: len(eyes.events("metric.threshold_breached")) == 2)
            await bus.publish(report("accuracy", 0.9))
            await until(lambda: len(eyes.events("metric.threshold_breached")) == 3)
    assert [event.rule for event in eyes.events("metric.threshold_breached")] == ["fid", "silence", "silence"]
    assert [event.rule for event in eyes.events("metric.recovered")] == ["fid", "silence"]
    assert eyes.dead("metrics") == []


async def test_breaches_of_one_moment_are_episodes_of_their_own(autojump_clock: MockClock, config: Path) -> None:
    """A clock that counts whole seconds puts breach, recovery and the next breach into one moment: whoever has heard that
    an episode is over believes nothing more under its name, so the second breach has another one."""
    at = clock.now()
    async with TestBus(metrics.worker) as bus:
        found = await told(bus, *(report("fid", value, occurred_on=at) for value in (31.0, 20.0, 32.0, 21.0)))
    first, over, second, again = (one.episode_id for one in found)
    assert first == over != second == again


async def test_silences_after_one_report_are_episodes_of_their_own(autojump_clock: MockClock, config: Path) -> None:
    """A report that is late ends a silence and is not the newest one: the next silence has a name of its own."""
    at = clock.now()
    async with TestBus(metrics.worker) as bus:
        await told(bus, report("accuracy", 0.9, occurred_on=at))
        await bus.advance(130)
        await told(bus, report("accuracy", 0.8, occurred_on=at - timedelta(seconds=10)))
        await bus.advance(130)
        breaches = [one.event for one in bus.published(MetricThresholdBreached)]
    assert [one.condition for one in breaches] == ["absent", "absent"]
    assert breaches[0].episode_id != breaches[1].episode_id


async def test_reports_of_one_moment_count_without_any_lateness(autojump_clock: MockClock, config: Path) -> None:
    """late_seconds = 0: what is as old as the newest report is not older."""
    config.write_text(f"{RULES}\n[workers.metrics]\nlate_seconds = 0\n")
    at = clock.now()
    async with TestBus(metrics.worker) as bus:
        found = await told(bus, *(report("fid", value, occurred_on=at) for value in (20.0, 31.0)))
        found += await told(bus, report("fid", 20.0, occurred_on=at - timedelta(seconds=1)))
    assert [type(one) for one in found] == [MetricThresholdBreached]


async def test_a_rule_that_goes_while_nobody_runs(autojump_clock: MockClock, config: Path) -> None:
    """Its breach is ended by the next report all the same, by a worker that has never known the rule; once."""
    async with TestBus(metrics.worker) as bus:
        (breach,) = await told(bus, report("fid", 31.0))
        config.write_text("[workers.metrics]\n")
        await bus.crash("metrics")
        found = await told(bus, report("fid", 31.0), report("fid", 32.0))
    assert [(type(one), one.episode_id) for one in found] == [(MetricRecovered, breach.episode_id)]


async def test_rules_that_are_nested_too_deeply_are_a_complaint(
    autojump_clock: MockClock, config: Path, tmp_path: Path
) -> None:
    """The old rules stay in force, and no report has to be tried again."""
    path = tmp_path / "rules.toml"
    path.write_text('[fid]\nmetric = "fid"\nmax = 30\n')
    config.write_text(f'[workers.metrics]\nrules_file = "{path}"\n')
    async with TestBus(metrics.worker) as bus:
        await told(bus, report("fid", 20.0))
        path.write_text(f"a = {'[' * 5000}{']' * 5000}")
        await bus.advance(2)
        bad = report("fid", 31.0)
        (found,) = await told(bus, bad)
        assert len(bus.attempts(bad)) == 1
    assert isinstance(found, MetricThresholdBreached)


@pytest.mark.long
async def test_ten_thousand_models(
    server_url: str, namespace: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each series is a small state of its own that expires, models that no rule is for leave none at all, what a process
    remembers of these is bounded, and the last thousands of reports take no more work than the first."""
    config.write_text('[workers.metrics.rules.fid]\nmetric = "fid"\nmodel = "ruled*"\nmax = 30.0\n')
    eyes, seconds = Eyes(server_url, namespace), []
    made: list[Rules] = []
    monkeypatch.setattr(handlers, "Rules", lambda read: made.append(Rules(read)) or made[-1])
    async with running(server_url, metrics.worker, namespace=namespace) as bus:
        for at in range(0, 11_000, 1000):
            began = time.process_time()
            models = [f"{kind}{number}" for number in range(at, at + 1000) for kind in ("ruled", "free")]
            await bus.publish_many([report("fid", 10.0, model=model) for model in models])
            await quiet(eyes, "metrics", event_type="metric.reported", timeout=60)
            seconds.append(time.process_time() - began)
        (rules,) = made
        assert len(rules._at_rest) == KEPT_AT_REST
        await bus.publish_many([report("fid", 40.0, model=f"ruled{number}") for number in range(0, 11_000, 1100)])
        await quiet(eyes, "metrics", event_type="metric.reported", timeout=60)
    states = [key for key in eyes.call("KEYS", f"*{namespace}*state*") if b"series/" in key]
    assert len(states) == 11_000
    assert max(eyes.call("STRLEN", key) for key in states[::40]) < 400
    assert min(eyes.call("PTTL", key) for key in states[::40]) > 0
    assert len(eyes.events("metric.threshold_breached")) == 10
    eyes.close()
    print(f"thousands of models: {' '.join(f'{one:.2f}' for one in seconds)} s")
    assert statistics.median(seconds[-4:]) < 3 * statistics.median(seconds[:4])
