"""The drift worker and late labels: what answers were worth is told once, however the labels come."""

from typing import Any

import pytest
from msgspec.structs import replace
from trio.testing import MockClock
from workers.model_server import Studio
from workers.telling import events, told

from canvasbus.events import (
    DriftDetected,
    DriftResolved,
    LabelsRecorded,
    MetricRecovered,
    MetricReported,
    MetricThresholdBreached,
    ObservationsRecorded,
)
from canvasbus.testing import TestBus
from canvasbus_workers import drift
from canvasbus_workers.drift import labels, record


@pytest.fixture
def bus() -> TestBus:
    return TestBus(drift.worker)


@pytest.mark.parametrize("segment", ["", "eu"])
async def test_late_labels_report_breach_and_recovery(
    autojump_clock: MockClock, bus: TestBus, studio: Studio, segment: str
) -> None:
    """Labels of closed windows are joined by id and judged against what the matching reference reached; a collapse is a
    breach at once, and the errors' own detector fires; calm windows end both. All of it names the segment."""
    batches = [studio.batch(segment=segment) for _ in range(30)]
    async with bus:
        await told(bus, studio.reference(), *batches)
        await told(
            bus, *(studio.labels(batch, right) for batch, right in zip(batches, [97, 97, 50, *[97] * 27], strict=True))
        )
    reported = events(bus, MetricReported)
    assert [e.value for e in reported[:3]] == [0.97, 0.97, 0.5]
    breaches = events(bus, MetricThresholdBreached)
    assert (breaches[0].window_id, breaches[0].reminder, breaches[0].items) == ("b2", False, 100)
    assert breaches[0].bound == pytest.approx(961 / 1002)
    (recovered,) = events(bus, MetricRecovered)
    assert recovered.episode_id == breaches[0].episode_id
    (errors,) = [e for e in events(bus, DriftDetected) if e.scope == "errors"]
    assert (errors.drift_type, errors.window_id) == ("hddm_a:errors", "b2")
    (over,) = [e for e in events(bus, DriftResolved) if e.scope == "errors"]
    assert over.episode_id == errors.episode_id
    assert {e.segment for e in (*breaches, recovered, errors, over)} == {segment}


async def test_a_drift_that_hurts_becomes_critical_once(
    autojump_clock: MockClock, bus: TestBus, studio: Studio
) -> None:
    """When labels show a loss during a drift, the same episode is escalated, once, with the evidence that opened it."""
    batches = [studio.batch(shift=2.0) for _ in range(4)]
    async with bus:
        await told(bus, studio.reference(), *batches, *(studio.labels(batch, 40) for batch in batches))
    found = [e for e in events(bus, DriftDetected) if e.scope == "data"]
    assert [(e.state, e.severity) for e in found] == [("opened", "warning"), ("escalated", "critical")]
    assert found[0].episode_id == found[1].episode_id
    assert (found[1].drift_type, found[1].window_id) == (found[0].drift_type, "b3")


async def test_labels_that_come_early_wait(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """Labels before their window is closed, or before their observations: judged with the window's close."""
    batch, later = studio.batch(60), studio.batch(60)
    async with bus:
        await told(bus, studio.reference(), batch, studio.labels(batch, 58), studio.labels(later, 59))
        assert events(bus, MetricReported) == []
        await told(bus, later)
    assert [(e.value, e.items, e.window_id) for e in events(bus, MetricReported)] == [
        (pytest.approx(58 / 60), 60, "b0"),
        (pytest.approx(59 / 60), 60, "b0"),
    ]


async def test_few_labels_are_put_together(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """Fewer than `label_items` of one kind are not judged, but go on into the next ones."""
    batches = [studio.batch() for _ in range(3)]
    async with bus:
        await told(bus, studio.reference(), *batches)
        for batch in batches:
            await told(bus, studio.labels(batch, 8, ids=batch.item_ids[:8]))
    (reported,) = events(bus, MetricReported)
    assert (reported.items, reported.window_id) == (24, "b2")


async def test_an_answer_that_is_labelled_often_is_one(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """A wrong answer that stands in a batch of labels a hundred times is not a hundred wrong answers; its last label counts."""
    batch = studio.batch()
    first, *others = batch.item_ids
    labels = [*((first, 0) for _ in range(99)), *((name, 1) for name in others), (first, 1)]
    event = record.labels(studio.model, ids=[name for name, _ in labels], truth=[one for _, one in labels])
    beyond = LabelsRecorded(model_name=studio.model, item_ids=(first,), labels=(2**63,), split="test")
    async with bus:
        await told(bus, studio.reference(), batch, event, beyond)
        assert len(bus.attempts(beyond)) == 1
    (reported,) = events(bus, MetricReported)
    assert (reported.value, reported.items) == (1.0, 100)
    assert events(bus, MetricThresholdBreached) == []
    (letter,) = bus.dead_letters("drift")
    assert letter.reason == "rejected" and "64 bits" in letter.error


async def test_an_answer_counts_once_in_all_batches_of_labels(
    autojump_clock: MockClock, bus: TestBus, studio: Studio
) -> None:
    """Ten workers label the same hundred answers, some of them before the window is closed: a hundred are judged, by their
    first labels; the errors of ten opinions about one answer would look like a loss."""
    first, second = studio.batch(50), studio.batch(50)

    def opinion(who: int, batch: ObservationsRecorded, right: int) -> LabelsRecorded:
        return replace(studio.labels(batch, right), batch_id=f"{who} of {batch.batch_id}")

    early = [opinion(who, first, 48 if who == 0 else 0) for who in range(3)]
    late = [opinion(who, second, 47 if who == 0 else 0) for who in range(10)]
    mixed = record.labels(studio.model, ids=[*second.item_ids, "unheard of"], truth=[0] * 51, batch_id="mixed")
    async with bus:
        await told(bus, studio.reference(), first, *early, second, *late, mixed, mixed)
    assert [(e.value, e.items) for e in events(bus, MetricReported)] == [(0.96, 50), (0.94, 50)]
    assert events(bus, MetricThresholdBreached) == []


async def test_labels_that_come_again_much_later_count_once(
    autojump_clock: MockClock, bus: TestBus, studio: Studio
) -> None:
    """After three hundred other batches of labels."""
    batch = studio.batch()
    truth = studio.labels(batch, 90)
    others = [record.labels(studio.model, ids=["unheard of"], truth=[1]) for _ in range(300)]
    async with bus:
        await told(bus, studio.reference(), batch, truth)
        await bus.publish_many(others)
        await bus.settle(horizon=0)
        await told(bus, truth)
    assert [(e.value, e.items) for e in events(bus, MetricReported)] == [(0.9, 100)]


async def test_labels_that_come_again_count_once(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """Also when their worker dies in between; labels of the other splits judge nothing."""
    batch = studio.batch()
    truth = studio.labels(batch, 90)
    async with bus:
        await told(bus, studio.reference(), batch)
        bus.fail_next("commit", "crash", group="drift")
        await told(bus, truth, truth, replace(truth, split="train", batch_id="other"))
    assert [(e.value, e.items) for e in events(bus, MetricReported)] == [(0.9, 100)]


async def test_labels_that_come_too_late_are_nothing(
    autojump_clock: MockClock, studio: Studio, drift_settings: Any
) -> None:
    """After `label_seconds` it is not known any more which answers were judged: no label of them counts."""
    drift_settings(label_seconds=60)
    batch = studio.batch()
    truth = studio.labels(batch, 90)
    async with TestBus(drift.worker) as bus:
        await told(bus, studio.reference(), batch, truth)
        await bus.advance(100)
        await told(bus, replace(truth, batch_id="much later"))
        assert bus.dead_letters("drift") == []
    assert [(e.value, e.items) for e in events(bus, MetricReported)] == [(0.9, 100)]


async def test_late_labels_do_not_condemn_what_came_after(
    autojump_clock: MockClock, bus: TestBus, studio: Studio
) -> None:
    """Bad labels of a drifted window that come when the data are clean again are reported and nothing more."""
    batches = [studio.batch(shift=shift) for shift in (2.0, 2.0, 0.0, 0.0)]
    async with bus:
        await told(bus, studio.reference(), *batches, studio.labels(batches[0], 10))
    assert len(events(bus, MetricReported)) == 1
    assert events(bus, MetricThresholdBreached) == []


async def test_labels_that_are_too_few_do_not_wait_for_ever(
    autojump_clock: MockClock, bus: TestBus, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the versions that were labelled last wait for more; of the others they are dropped."""
    monkeypatch.setattr(labels, "KEPT_TALLIES", 2)
    batches = [studio.batch(version=f"v{at}") for at in range(3)]
    async with bus:
        await told(bus, *batches)
        for part in (slice(12), slice(12, 24)):
            for batch in batches if part.start is None else (batches[0], batches[2]):
                await told(bus, replace(studio.labels(batch, 12, ids=batch.item_ids[part]), batch_id=""))
    assert [(e.model_version, e.items) for e in events(bus, MetricReported)] == [("v2", 24)]
