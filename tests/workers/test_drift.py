"""The drift worker on a test bus: windows that many share, what follows from them, and that no death costs anything."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from trio.testing import MockClock
from workers.model_server import Studio
from workers.telling import events, told

from canvasbus.events import (
    ArtifactRef,
    DataQualityViolated,
    DriftDetected,
    DriftResolved,
    FloatArray,
    LabelsRecorded,
    MetricReported,
    MetricThresholdBreached,
    ObservationsRecorded,
    ReferenceRegistered,
    WindowEvaluated,
)
from canvasbus.testing import TestBus
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus_workers import drift
from canvasbus_workers.artifacts import ArtifactStore, pack
from canvasbus_workers.drift import book, record, seen
from canvasbus_workers.drift.book import Scope, episode_id

START = datetime(2026, 1, 1, tzinfo=UTC)
MISSING = ArtifactRef(uri="file:///nowhere/x.npz", sha256="0" * 64)


@pytest.fixture
def bus() -> TestBus:
    return TestBus(drift.worker)


# --- windows -----------------------------------------------------------------------------------------------------------


async def test_a_window_goes_from_observations_to_drift(
    autojump_clock: MockClock, bus: TestBus, studio: Studio
) -> None:
    """Two windows far from the reference: drift.detected with all of its evidence, caused by the batch that closed it."""
    first, second = studio.batch(shift=2.0), studio.batch(shift=2.0)
    async with bus:
        await told(bus, studio.reference(), first, second)
    one, two = events(bus, WindowEvaluated)
    assert [(e.number, e.status, e.window_id, e.items, e.tested) for e in (one, two)] == [
        (0, "flagged", "b0", 100, 2),
        (1, "flagged", "b1", 100, 2),
    ]
    (found,) = bus.published(DriftDetected)
    event = found.event
    assert found.cause.event == second
    assert event.correlation_id == second.correlation_id
    assert (event.state, event.severity, event.scope, event.drifted) == ("opened", "warning", "data", 2)
    assert (event.items, event.reference_items, event.first_window, event.window_number) == (100, 1000, 0, 1)
    assert event.window_start == event.window_end == second.occurred_on
    assert len(event.reference_hash) == 64 and event.reference_id.startswith(f"{studio.model}/v1/shift 0.0/")
    assert {f.feature: (f.test, f.direction) for f in event.features} == {
        "sharpness": ("ks", "up"),
        "embedding": ("mmd", "mixed"),
    }
    assert event.drift_type == f"{event.features[0].test}:{event.features[0].feature}"
    assert event.drift_score == event.features[0].score > event.threshold > 0
    assert event.p_value <= event.level == 0.01
    assert all(f.effect > 0.5 for f in event.features)


async def test_an_event_is_small(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """With two hundred drifted features the event names ten of them and stays below 4 kB."""
    from canvasbus.wire.codec import Codec

    def wide(n: int, shift: float) -> dict[str, Any]:
        return {f"features_of_a_long_name_{at}": studio.random.standard_normal((n, 50)) + shift for at in range(4)}

    batches = [
        record.observations(studio.model, ids=range(100), version="v1", batch_id=f"b{at}", **wide(100, 3.0))
        for at in (0, 1)
    ]
    async with bus:
        await told(bus, record.reference(studio.model, "v1", **wide(500, 0.0)), *batches)
    (event,) = events(bus, DriftDetected)
    assert (event.drifted, event.tested, len(event.features)) == (200, 200, 10)
    assert len(Codec("test").encode(event).data) <= 4096
    assert all(len(Codec("test").encode(e).data) <= 4096 for e in events(bus, WindowEvaluated))


async def test_small_batches_fill_a_window_together(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """Ten batches of ten rows are one window with the id of the first; what is over goes into the next one."""
    async with bus:
        await told(bus, studio.reference())
        for at in range(25):
            await told(bus, replace(studio.batch(10), occurred_on=START - timedelta(seconds=at)))
    found = events(bus, WindowEvaluated)
    assert [(e.number, e.items, e.batches, e.window_id) for e in found] == [(0, 100, 10, "b0"), (1, 100, 10, "b10")]
    assert [(e.window_start, e.window_end) for e in found] == [
        (START - timedelta(seconds=first + 9), START - timedelta(seconds=first)) for first in (0, 10)
    ]


async def test_many_tiny_batches_are_folded(autojump_clock: MockClock, studio: Studio, drift_settings: Any) -> None:
    """A window of three hundred single rows has few parts at any time, and the verdict of one batch with all of them."""
    drift_settings(window_items=300)
    whole = studio.batch(300, shift=0.3)
    singles = [
        record.observations(
            studio.model,
            ids=[whole.item_ids[at]],
            version="v1",
            batch_id=f"single {at}",
            predictions=[1],
            **{name: array[at : at + 1] for name, array in _arrays(whole).items()},
        )
        for at in range(300)
    ]
    found = []
    reference = studio.reference()
    for given in ([whole], singles):
        async with TestBus(drift.worker) as bus:
            await told(bus, reference)
            for event in given:
                await bus.publish(event)
            await bus.settle(horizon=0)
        (event,) = events(bus, WindowEvaluated)
        found.append((event.items, event.drift_type, event.p_value, event.scores, event.effect))
    assert found[0] == found[1]


def _arrays(event: ObservationsRecorded) -> dict[str, np.ndarray]:
    from canvasbus_workers.artifacts import unpack

    return {name: unpack(packed) for name, packed in event.arrays.items()}


async def test_idle_windows_close_by_timer(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """A window that does not fill is closed when its time is up; with too few rows it waits for more and is closed with
    the batch that brings them."""
    async with bus:
        await told(bus, studio.reference(), studio.batch(60))
        await bus.advance(250)
        assert events(bus, WindowEvaluated) == []
        await bus.advance(60)
        (first,) = events(bus, WindowEvaluated)
        assert (first.items, first.status) == (60, "ok")
        await told(bus, studio.batch(30))
        await bus.advance(400)
        assert len(events(bus, WindowEvaluated)) == 1
        await told(bus, studio.batch(25))
        second = events(bus, WindowEvaluated)[1]
        assert (second.items, second.number, second.window_id) == (55, 1, "b1")
        await bus.advance(1000)
    assert len(events(bus, WindowEvaluated)) == 2


async def test_versions_and_segments_have_windows_of_their_own(
    autojump_clock: MockClock, bus: TestBus, studio: Studio
) -> None:
    """Batches of two versions and two segments that come mixed are never mixed; a segment's own reference is its measure;
    a version without one is in warmup."""
    own = studio.reference(3.0, segment="eu")
    async with bus:
        await told(bus, studio.reference(), own)
        for _ in range(2):
            for options in ({}, {"version": "v2"}, {"segment": "eu", "shift": 3.0}, {"segment": "us", "shift": 3.0}):
                await bus.publish(studio.batch(50, **options))
        await bus.settle(horizon=0)
    found = {(e.model_version, e.segment): (e.items, e.status, e.regime) for e in events(bus, WindowEvaluated)}
    assert found == {
        ("v1", ""): (100, "ok", "shift 0.0"),
        ("v2", ""): (100, "warmup", ""),
        ("v1", "eu"): (100, "ok", "shift 3.0"),
        ("v1", "us"): (100, "flagged", "shift 0.0"),
    }
    assert sorted(e.number for e in events(bus, WindowEvaluated)) == [0, 1, 2, 3]


def test_scopes_have_names_of_their_own() -> None:
    """Slashes in names, and names too long for a key, never make two scopes one; nor two episodes, references."""
    long = "x" * 600
    scopes = [("a/b", "c", ""), ("a", "b/c", ""), ("a", "b", "c"), (long, "1", ""), (long, "2", ""), (long, "1", "s")]
    names = {Scope(*scope).key("window") for scope in scopes}
    assert len(names) == len(scopes) and max(map(len, names)) <= 300
    assert episode_id("a/b", "", "drift", 1) != episode_id("a", "b", "drift", 1)
    assert episode_id("", "a", "drift", 1) != episode_id("a", "", "drift", 1)
    assert episode_id("a", "b", "drift", 1) == "a/b/drift/1"
    known = {"regime": "a/b"}, {"segment": "b", "regime": "a"}, {"segment": "a/b", "regime": ""}
    assert len({record.reference("m", "v", x=[1, 2], **one).reference_id for one in known}) == 3


async def test_a_reference_may_have_any_name(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """Called `unmatched`, it still is one that windows match: what they lose is not counted with those that match none. And
    without a name it has that of its rows."""
    named = replace(studio.reference(), reference_id="unmatched")
    batches = [studio.batch(shift=shift) for shift in (0.0, 2.0, 0.0)]
    few = [
        studio.labels(batch, right, ids=batch.item_ids[:10]) for batch, right in zip(batches, (10, 0, 10), strict=True)
    ]
    async with bus:
        await told(bus, named, *batches, *few)
    (reported,) = events(bus, MetricReported)
    assert (reported.value, reported.items) == (1.0, 20)
    async with TestBus(drift.worker) as other:
        await told(other, replace(named, reference_id=""), studio.batch())
    assert [e.reference_id for e in events(other, WindowEvaluated)] == [named.sample.sha256[:12]]


async def test_a_new_version_resolves_what_its_forerunner_opened(
    autojump_clock: MockClock, bus: TestBus, studio: Studio
) -> None:
    """The episode goes on over the change of versions, and ends when the data match a reference of the new one."""
    shifted = [studio.batch(shift=2.0) for _ in range(2)]
    adapted = [studio.batch(shift=2.0, version="v2") for _ in range(3)]
    async with bus:
        await told(bus, studio.reference(), *shifted, studio.reference(2.0, "v2"), *adapted)
    (opened,), (resolved,) = events(bus, DriftDetected), events(bus, DriftResolved)
    assert (resolved.episode_id, resolved.regime, resolved.windows) == (opened.episode_id, "shift 2.0", 5)
    assert resolved.model_version == "v2"


# --- trouble -----------------------------------------------------------------------------------------------------------


def told_by(bus: TestBus) -> list[tuple[Any, ...]]:
    """All that was said, without what is different each time."""
    return [
        (
            type(one.event).__name__,
            str(one.envelope.id),
            {n: getattr(one.event, n) for n in one.event.__struct_fields__ if n != "occurred_on"},
        )
        for kind in (WindowEvaluated, DriftDetected, DriftResolved, MetricReported, MetricThresholdBreached)
        for one in bus.published(kind)
    ]


@pytest.mark.parametrize(
    "trouble", [("commit", "crash"), ("commit", "lost_reply"), ("commit", "lost_request"), ("read", "crash")]
)
async def test_a_worker_that_dies_in_mid_window_changes_nothing(
    autojump_clock: MockClock, studio: Studio, trouble: tuple[Any, Any]
) -> None:
    """The same observations with and without deaths and lost packets: the same windows, numbers, episodes, event ids."""
    given = [studio.reference(), *(studio.batch(25, shift=2.0 * (at > 8)) for at in range(24))]
    said = []
    for times in (0, 3):
        async with TestBus(drift.worker) as bus:
            for at, event in enumerate(given):
                if times and at in (3, 11, 16):
                    bus.fail_next(*trouble, group="drift")
                await bus.publish(event, dedupe_key=f"{studio.model}/{at}")  # the key makes the event's id
                await bus.settle(horizon=0)
        assert bus.dead_letters("drift") == []
        said.append(told_by(bus))
    assert said[0] == said[1]
    assert [name for name, *_ in said[0]] == ["WindowEvaluated"] * 6 + ["DriftDetected"]


async def test_two_workers_share_a_model(autojump_clock: MockClock, studio: Studio) -> None:
    """Batches handled by two processes of one group, all at once, and one of them is killed: every row is in a window, and
    in one only."""
    from canvasbus.bus import EventBus

    name = f"memory://shared-{studio.model}"
    async with TestBus(drift.worker, url=name) as bus:
        await told(bus, studio.reference())
        async with EventBus(name, source="second") as second:
            second.add(drift.worker)
            await second.wait_ready()
            for _ in range(3):
                await bus.publish_many([studio.batch(20) for _ in range(20)])
                await bus.crash("drift")
            await bus.settle(horizon=0)
            assert second.statistics()[0].handled > 0
    found = events(bus, WindowEvaluated)
    assert [e.number for e in found] == list(range(12))
    assert [(e.items, e.batches) for e in found] == [(100, 5)] * 12
    assert bus.dead_letters("drift") == []


async def test_repetitions_count_once(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """The same batch again is nothing; its rows under another id are told and not counted; small equal batches are."""
    batch = studio.batch(60)
    copy = record.observations(
        studio.model,
        ids=[f"copy {n}" for n in range(60)],
        version="v1",
        batch_id="copy",
        predictions=[1] * 60,
        **_arrays(batch),
    )
    ones = [record.observations(studio.model, ids=[at], version="v1", sharpness=[0.5]) for at in range(3)]
    async with bus:
        await told(bus, studio.reference(), batch, batch, copy, *ones, studio.batch(40))
    (window,) = events(bus, WindowEvaluated)
    (violated,) = [e for e in events(bus, DataQualityViolated) if e.check == "duplicate"]
    assert (window.items, window.batches) == (103, 5)
    assert (violated.check, violated.batch_id, violated.severity, violated.items) == ("duplicate", "copy", "info", 60)


async def test_a_batch_that_is_published_again_much_later_is_known(
    autojump_clock: MockClock, bus: TestBus, studio: Studio
) -> None:
    """After two hundred others and many windows, under its id or with its rows under another one."""
    batch = studio.batch(60)
    async with bus:
        await told(bus, studio.reference(), batch)
        await bus.publish_many([studio.batch(2) for _ in range(200)])
        await bus.settle(horizon=0)
        before = [e.items for e in events(bus, WindowEvaluated)]
        await told(bus, batch, replace(batch, batch_id="copy"), studio.batch(40))
    assert before == [100] * 4
    assert [e.items for e in events(bus, WindowEvaluated)] == [*before, 100]
    assert [e.batch_id for e in events(bus, DataQualityViolated) if e.check == "duplicate"] == ["copy"]


async def test_segments_may_count_their_batches_alike(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """Batches of one id and few different rows in two segments: each is judged by its own."""
    batches = [
        record.observations(
            studio.model, ids=range(100), version="v1", segment=segment, batch_id="1", sharpness=[low, low + 0.1] * 50
        )
        for segment, low in (("eu", 0.0), ("us", 2.0))
    ]
    async with bus:
        await told(bus, studio.reference(), *batches)
    eu, us = (e.scores["ks:sharpness"] for e in events(bus, WindowEvaluated))
    assert eu < 0.6 < 0.9 < us


def test_of_batches_the_last_ones_are_known() -> None:
    """Forty thousand of them, by their ids and their rows; what is kept of them stays below its bound."""
    shards: dict[int, bytes] = {}
    marks = [seen.mark(f"{what} {at}") for at in range(60_000) for what in ("id", "rows")]
    for shard, bits in marks:
        shards[shard] = seen.added(shards.get(shard, b""), bits)
    assert max(map(len, shards.values())) == seen.SLOTS * seen.WIDE and len(shards) == seen.SHARDS
    assert all(seen.is_in(shards[shard], bits) for shard, bits in marks[-80_000::101])
    assert not all(seen.is_in(shards[shard], bits) for shard, bits in marks[:100])
    others = [seen.mark(f"other {at}") for at in range(500)]
    assert not any(seen.is_in(shards[shard], bits) for shard, bits in others)


async def test_equal_answers_are_no_repetition(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """A model that mostly says the same sends batches that are equal: each counts, and nobody is told that one came twice."""
    batches = [
        record.observations(studio.model, ids=[f"{at}/{n}" for n in range(50)], version="v1", predictions=[1] * 50)
        for at in range(4)
    ]
    async with bus:
        await told(bus, *batches)
    assert [(e.items, e.batches) for e in events(bus, WindowEvaluated)] == [(100, 2)] * 2
    assert events(bus, DataQualityViolated) == []


async def test_an_answer_beyond_all_classes_is_refused(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """At once, with its reason: trying again makes it no smaller."""
    batch = replace(studio.batch(4), predictions=(2**63,) * 4)
    async with bus:
        await told(bus, batch)
        assert len(bus.attempts(batch)) == 1
    (letter,) = bus.dead_letters("drift")
    assert letter.reason == "rejected" and "64 bits" in letter.error


async def test_what_is_broken_is_told_once(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """A column of missing values: data_quality.violated with the first window that breaks it, and again only after a sound
    one; the column is not tested, so there is no drift."""

    def holes(broken: bool) -> ObservationsRecorded:
        event = studio.batch()
        values = _arrays(event)["sharpness"].copy()
        values[: 60 * broken] = np.nan
        return replace(event, arrays={**event.arrays, "sharpness": pack(values)})

    async with bus:
        await told(bus, studio.reference(), *(holes(broken) for broken in (False, True, True, False, True)))
    found = events(bus, DataQualityViolated)
    assert [(e.check, e.feature, e.features, e.severity, e.batch_id) for e in found] == [
        ("missing", "sharpness", ("sharpness",), "critical", f"b{at}") for at in (1, 4)
    ]
    assert found[0].observed == pytest.approx(0.6) and found[0].allowed == 0.0
    assert [e.excluded for e in events(bus, WindowEvaluated)] == [
        (),
        ("sharpness",),
        ("sharpness",),
        (),
        ("sharpness",),
    ]
    assert events(bus, DriftDetected) == []


async def test_drift_refuses_what_does_not_fit(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """References without a sample, arrays without a row for each item, predictions or labels of another length."""
    model = studio.model
    packed, broken = pack(np.zeros(3, np.float32)), FloatArray(shape=(2,), data=b"123")
    uneven = ArtifactStore().put({"a": np.zeros(3), "b": np.zeros(4)})
    even, flat = ({name: np.arange(3.0)} for name in ("a", "probabilities"))
    even, flat = ArtifactStore().put(even), ArtifactStore().put(flat)
    bad = [
        ReferenceRegistered(model_name=model, reference_id="r"),
        ReferenceRegistered(model_name=model, reference_id="r", sample=MISSING),
        ReferenceRegistered(model_name=model, reference_id="r", sample=uneven),
        ObservationsRecorded(model_name=model, item_ids=("a",), arrays={"sharpness": packed}),
        ObservationsRecorded(model_name=model, item_ids=("a",), arrays={"sharpness": broken}),
        ObservationsRecorded(model_name=model, item_ids=("a",), predictions=(1, 2)),
        LabelsRecorded(model_name=model, split="test", item_ids=("a",), labels=(1, 2)),
        ReferenceRegistered(model_name=model, reference_id="r", sample=even, categorical=("typo",)),
        ReferenceRegistered(model_name=model, reference_id="r", sample=even, columns={"a": ("x", "y")}),
        ReferenceRegistered(model_name=model, reference_id="r", sample=flat),
        ObservationsRecorded(model_name=model, item_ids=("a", "b", "a"), arrays={"sharpness": packed}),
        ObservationsRecorded(model_name=model, item_ids=("a", "b", "c"), arrays={"probabilities": packed}),
    ]
    async with bus:
        await bus.publish_many(bad)
        await bus.settle()
    said = {letter.error for letter in bus.dead_letters("drift")}
    for words in (
        "'typo'; there are a",
        "names of 2 columns of a",
        "use (rows, classes)",
        "id 'a' is there twice",
        "(3, classes)",
    ):
        assert any(words in error for error in said), (words, said)
    assert [letter.reason for letter in bus.dead_letters("drift")] == ["rejected"] * len(bad)
    assert bus.published("window.evaluated") == []


async def test_references_never_change(autojump_clock: MockClock, bus: TestBus, studio: Studio) -> None:
    """The same one again is nothing; another one under its name is refused, and the first one stays the measure."""
    first = studio.reference()
    other = replace(studio.reference(3.0), reference_id=first.reference_id)
    async with bus:
        await told(bus, first, first, other, studio.batch())
    (letter,) = bus.dead_letters("drift")
    assert letter.reason == "rejected" and "other rows: references never change" in letter.error
    (window,) = events(bus, WindowEvaluated)
    assert (window.status, window.regime) == ("ok", "shift 0.0")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"categorical": ("sharpness",)}, "with other `categorical`: references"),
        ({"sample": "moved"}, "with the same rows in another place: references"),
    ],
)
async def test_what_differs_in_a_reference_is_named(
    autojump_clock: MockClock, bus: TestBus, studio: Studio, change: dict[str, Any], said: str
) -> None:
    """Rows that are the same are not called others."""
    first = studio.reference()
    if change == {"sample": "moved"}:
        change = {"sample": replace(first.sample, uri="file:///elsewhere.npz")}
    async with bus:
        await told(bus, first, replace(first, **change))
    (letter,) = bus.dead_letters("drift")
    assert letter.reason == "rejected" and said in letter.error, letter.error


# --- many of everything ------------------------------------------------------------------------------------------------


def largest_state(bus: TestBus) -> int:
    """Bytes."""
    link = BlockingLink(open_server(bus.url))
    return max(link.call("STRLEN", key) for key in link.call("KEYS", "*:state:drift:*"))


async def test_segments_are_no_weight(
    autojump_clock: MockClock, studio: Studio, drift_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has windows, labels and promises of its own, and what a commit writes does not grow with their number."""
    drift_settings(window_items=10, min_items=10, label_items=10)
    monkeypatch.setattr(book, "KEPT_WINDOWS", 20)
    sizes = []
    async with TestBus(drift.worker) as bus:
        await told(bus, studio.reference())
        for first in range(0, 100, 20):
            batches = [studio.batch(10, segment=f"client-{at}") for at in range(first, first + 20)]
            await bus.publish_many(batches)
            await bus.settle(horizon=0)
            ids = [name for batch in batches for name in batch.item_ids]
            await told(bus, record.labels(studio.model, ids=ids, truth=[1] * 200))
            sizes.append(largest_state(bus))
        await told(bus, *(batch := studio.batch(10, segment="client-0"), studio.labels(batch, 0)))
        assert bus.dead_letters("drift") == []
    assert max(sizes) - sizes[0] < 50
    assert len(events(bus, WindowEvaluated)) == 101
    reported = [e.labels["segment"] for e in events(bus, MetricReported)]
    assert sorted(reported) == sorted([*(f"client-{at}" for at in range(100)), "client-0"])
    assert [(e.segment, e.value, e.items) for e in events(bus, MetricThresholdBreached)] == [("client-0", 0.0, 10)]


async def test_names_of_any_length_are_no_weight(
    autojump_clock: MockClock, studio: Studio, drift_settings: Any
) -> None:
    """Of segments, versions and batches: a hundred windows later all goes on, and events have the names as they are."""
    drift_settings(window_items=10, min_items=10, label_items=10, sequential="off")
    long = "a name/of much ~ length" * 180
    batches = [studio.batch(10, segment=long, version=long, batch_id=f"{at}{long}") for at in range(100)]
    batches = [replace(batch, item_ids=tuple(f"{at}/{n}" for n in range(10))) for at, batch in enumerate(batches)]
    async with TestBus(drift.worker) as bus:
        await told(bus, studio.reference(version=long), *batches)  # in this order: others are other windows' verdicts
        for batch in batches[:20]:
            await told(bus, replace(studio.labels(batch, 0), batch_id=""))
        assert bus.dead_letters("drift") == []
        assert largest_state(bus) < 50_000
    assert len(events(bus, WindowEvaluated)) == 100
    breach = events(bus, MetricThresholdBreached)[-1]
    told_of = {(e.segment, e.model_version, e.window_id) for e in events(bus, MetricThresholdBreached)}
    assert told_of == {(long, long, batch.batch_id) for batch in batches[:20]} and breach.items == 160


# --- settings and helpers ------------------------------------------------------------------------------------------------


async def test_settings_are_the_workers_own(autojump_clock: MockClock, studio: Studio, drift_settings: Any) -> None:
    """The table [workers.drift]: larger windows, and a level at which nothing is flagged."""
    drift_settings(window_items=200, level=1e-12, floor=0.5, embedding_floor=9.0)
    async with TestBus(drift.worker) as bus:
        await told(bus, studio.reference(), *(studio.batch(shift=0.3) for _ in range(4)))
    assert [(e.items, e.status, e.level) for e in events(bus, WindowEvaluated)] == [(200, "ok", 1e-12)] * 2


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"window_itms": 200}, "unknown key 'window_itms'; did you mean window_items"),
        ({"window_items": 3}, "window_items: expected"),
        ({"sequential": "adwim"}, "sequential: invalid enum value 'adwim'; use adwin, hddm_a, off"),
        ({"enter": 4}, "enter = 4 is more than within = 3: nothing would ever be drift"),
    ],
)
async def test_wrong_settings_stop_it_before_it_begins(
    autojump_clock: MockClock, drift_settings: Any, setting: dict[str, Any], said: str
) -> None:
    """An unknown key or a value out of bounds: the worker does not start, and the error names file and key."""
    drift_settings(**setting)
    with pytest.raises(Exception, match="lifespan failed on starting") as caught:
        async with TestBus(drift.worker):
            pass
    assert said in str(caught.value) and "canvasbus.toml: [workers.drift]" in str(caught.value)


def test_the_helper_makes_events_of_arrays(model: str) -> None:
    """Lists and arrays become packed float32; ids of any kind become text; what does not fit is refused by name."""
    event = record.observations(
        model, ids=range(3), version="v1", predictions=np.array([1, 0, 2]), sharpness=[1, 2, 3.5]
    )
    assert (event.item_ids, event.predictions) == (("0", "1", "2"), (1, 0, 2))
    assert _arrays(event)["sharpness"].tolist() == [1.0, 2.0, 3.5]
    assert event.batch_id != record.observations(model, ids=()).batch_id
    for bad in (
        {"sharpness": [1, 2]},
        {"embedding": np.zeros((3, 2, 2))},
        {"predictions": [1]},
        {"style": ["a", "b", "a"]},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            record.observations(model, ids=range(3), **bad)
    with pytest.raises(ValueError, match="ids: '1' is there twice"):
        record.observations(model, ids=[1, 2, "1"], sharpness=[1, 2, 3])
    for shape in ((3,), (3, 1)):
        with pytest.raises(ValueError, match=r"probabilities has the shape .*: use \(3, classes\)"):
            record.observations(model, ids=range(3), probabilities=np.full(shape, 0.5))
    with pytest.raises(ValueError, match=r"no column is called 'typo'; there are sharpness, pose\[0\], pose\[1\]"):
        record.reference(model, categorical=["sharpness", "typo"], sharpness=[1, 2], pose=[[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=r"names of 1 columns of pose, which has the shape \(2, 2\)"):
        record.reference(model, columns={"pose": ["x"]}, pose=[[1, 2], [3, 4]])
    for wrong, says in (
        ({"categorical": "pose"}, "categorical: a list"),
        ({"columns": {"pose": "xy"}}, "columns.*: a list"),
    ):
        with pytest.raises(TypeError, match=says):
            record.reference(model, pose=[[1, 2], [3, 4]], **wrong)  # type: ignore[arg-type]
    named = record.reference(model, columns={"pose": ["x", "y"]}, categorical=["y"], pose=[[1, 2], [3, 4]])
    assert (named.columns, named.categorical) == ({"pose": ("x", "y")}, ("y",))
    with pytest.raises(ValueError, match="truth"):
        record.labels(model, ids=["a"], truth=[1, 2])
    with pytest.raises(ValueError, match="rows"):
        record.reference(model, a=[1, 2], b=[1])
    registered = record.reference(model, "v1", correct=[1, 0, 1], sharpness=[1, 2, 3])
    assert (registered.items, registered.correct) == (3, 2)
    assert ArtifactStore().load(registered.sample)["correct"].tolist() == [1.0, 0.0, 1.0]
