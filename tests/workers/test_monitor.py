"""One model under watch: windows and labels in, findings out."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from canvasbus import Event
from canvasbus.events import (
    DriftDetected,
    DriftResolved,
    MetricRecovered,
    MetricReported,
    MetricThresholdBreached,
    WindowEvaluated,
)
from canvasbus_workers.drift.monitor import KEPT_WINDOWS, Monitor
from canvasbus_workers.drift.references import Reference

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ITEMS = 50


class Watched:
    """A monitor and what it is shown."""

    def __init__(self, *regimes: float, seed: int = 3) -> None:
        self.random = np.random.default_rng(seed)
        self.monitor = Monitor("m")
        self.numbers = 0
        for shift in regimes or (0.0,):
            self.register("v1", shift)

    def register(self, version: str, shift: float, correct: int = 290) -> None:
        arrays = {"sharpness": self.values(shift, 300)}
        reference = Reference(f"{version}/{shift}", f"regime {shift}", arrays, items=300, correct=correct)
        self.monitor.register(version, reference)

    def values(self, shift: float, n: int = ITEMS) -> np.ndarray:
        """Evenly spread quantiles with a little noise: windows without accidents."""
        spread = (np.arange(n) + 0.5) / n * 4 - 2
        return (spread + 0.02 * self.random.standard_normal(n) + shift).astype(np.float32)

    def window(self, shift: float = 0.0, version: str = "v1") -> list[Event]:
        name = f"w{self.numbers}"
        self.numbers += 1
        answers = {f"{name}/{n}": 1 for n in range(ITEMS)}
        return list(self.monitor.observe(name, version, answers, {"sharpness": self.values(shift)}, NOW))

    def labels(self, number: int, correct: int) -> list[Event]:
        labels = {f"w{number}/{n}": int(n < correct) for n in range(ITEMS)}
        return list(self.monitor.label(f"labels {number}", labels))


def of(events: Sequence[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_every_window_is_reported() -> None:
    """Clean, flagged and untested windows each give one window.evaluated, counted from 0."""
    watched = Watched()
    found = [watched.window(), watched.window(3.0), watched.window(version="v2")]
    evaluated = [of(events, WindowEvaluated)[0] for events in found]
    assert [(e.number, e.status) for e in evaluated] == [(0, "ok"), (1, "flagged"), (2, "warmup")]
    assert evaluated[1].drift_type == "ks:sharpness"
    assert evaluated[1].p_value < 1e-6 < evaluated[0].p_value


def test_two_flagged_windows_are_a_drift_and_three_clean_ones_end_it() -> None:
    """drift.detected comes once, with its first window and a statistic; drift.resolved under the same episode."""
    watched = Watched()
    shifts = [0, 3, 0, 3, 3, 3, 0, 0, 0, 0]
    found = [watched.window(shift) for shift in shifts]
    detected = [of(events, DriftDetected) for events in found]
    assert [len(events) for events in detected] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    (drift,) = detected[4]
    assert (drift.first_window, drift.window_number, drift.severity, drift.state) == (3, 4, "warning", "opened")
    assert 0.5 < drift.drift_score <= 1
    (resolved,) = of(found[8], DriftResolved)
    assert (resolved.episode_id, resolved.windows) == (drift.episode_id, 6)


def test_a_return_to_any_known_regime_is_no_drift() -> None:
    """Windows that match one of several references are clean, whichever it is."""
    watched = Watched(0.0, 3.0)
    found = [of(watched.window(shift), WindowEvaluated)[0] for shift in (0, 3, 0, 3)]
    assert [(e.status, e.regime) for e in found] == [("ok", "regime 0.0"), ("ok", "regime 3.0")] * 2


def test_a_slow_drift_is_seen_in_four_windows_together() -> None:
    """A shift that no single window shows at .01 is found when the last four are looked at as one."""
    watched = Watched()
    found = [of(watched.window(0.8), WindowEvaluated)[0] for _ in range(5)]
    assert [e.status for e in found[:3]] == ["ok"] * 3
    assert found[3].status == "flagged"
    assert found[3].p_value <= 0.0025


def test_labels_report_breach_and_recovery() -> None:
    """Every labelled window is reported; a loss is a breach at once and a reminder after; calm windows end it
    once the bad ones are out of the longest look."""
    watched = Watched()
    for _ in range(14):
        watched.window()
    found = [watched.labels(number, correct) for number, correct in enumerate([49, 30, 30] + [50] * 11)]
    assert [of(events, MetricReported)[0].value for events in found[:2]] == [0.98, 0.6]
    breaches = [of(events, MetricThresholdBreached) for events in found]
    assert [len(events) for events in breaches[:3]] == [0, 1, 1]
    assert [breach.reminder for events in breaches[:3] for breach in events] == [False, True]
    assert breaches[1][0].bound == pytest.approx(291 / 302)
    recovered = [event for events in found for event in of(events, MetricRecovered)]
    assert [event.episode_id for event in recovered] == [breaches[1][0].episode_id]


def test_a_drift_that_hurts_becomes_critical_once() -> None:
    """When labels show a loss during a drift, the same episode is escalated, once."""
    watched = Watched()
    found = [event for shift in (3, 3, 3) for event in watched.window(shift)]
    found += [event for number in range(3) for event in watched.labels(number, 20)]
    states = [(event.state, event.severity) for event in of(found, DriftDetected)]
    assert states == [("opened", "warning"), ("escalated", "critical")]
    assert len({event.episode_id for event in of(found, DriftDetected)}) == 1


def test_late_labels_do_not_condemn_what_came_after() -> None:
    """Bad labels of a drifted window that come when the data are clean again are reported and nothing more; the same
    holds for a version that has been replaced."""
    watched = Watched()
    watched.register("v2", 0.0)
    for shift in (3, 3, 0, 0):
        watched.window(shift)
    assert [type(event) for event in watched.labels(0, 10)] == [MetricReported]
    watched.window(version="v2")
    assert [type(event) for event in watched.labels(2, 10)] == [MetricReported]


def test_a_poor_reference_does_not_lower_the_bar() -> None:
    """The bar is at most five points below the best reference's accuracy."""
    watched = Watched()
    watched.register("v1", 3.0, correct=200)
    for _ in range(2):
        watched.window(3.0)
    (breach,) = of(watched.labels(0, 30), MetricThresholdBreached)
    assert breach.bound == pytest.approx(291 / 302 - 0.05)


def test_what_comes_again_is_answered_as_before() -> None:
    """A redelivered window or label batch gets the events of the first time and moves nothing."""
    watched = Watched()
    for _ in range(3):
        watched.window(3.0)
    first = watched.labels(0, 10)
    assert watched.labels(0, 10) == first
    again = watched.monitor.observe("w1", "v1", {}, {}, NOW)
    assert [type(event) for event in again] == [WindowEvaluated, DriftDetected]
    assert of(watched.window(3.0), WindowEvaluated)[0].number == 3


def test_memory_is_bounded() -> None:
    """Labels of windows that are long gone are dropped and counted, and nothing grows without end."""
    watched = Watched()
    for _ in range(KEPT_WINDOWS + 5):
        watched.window()
    assert watched.labels(0, 50) == []
    assert watched.monitor.dropped_labels == ITEMS
    assert len(watched.monitor._by_item) == KEPT_WINDOWS * ITEMS
    assert len(watched.monitor._answered) <= KEPT_WINDOWS
