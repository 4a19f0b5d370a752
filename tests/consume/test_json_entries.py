"""Entries that another language wrote: JSON objects in the field `e`, handled like any other."""

import json
from typing import Any
from uuid import UUID

import pytest
from studio import Eyes, PaintingFramed, PaintingMade, quiet, running
from waiting import until

from canvasbus import ids
from canvasbus.operate.deadletter import Filter, dead_letters
from canvasbus.operate.redrive import portions, redrive
from canvasbus.wire.codec import MAX_EVENT_BYTES
from canvasbus.wire.envelope import Envelope
from canvasbus.worker import Backoff, Context, Worker

ID, CAUSE, STORY = (UUID(int=number) for number in (1, 2, 3))
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def entry(data: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"type": "painting.made", "data": data, **more}).encode()


async def test_a_handler_sees_what_the_object_says(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Each attribute in its place; what the handler returns belongs to it, by correlation, cause and id."""
    worker = Worker("framers")
    seen: list[Envelope] = []

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade, ctx: Context) -> PaintingFramed:
        seen.append(ctx.envelope)
        return PaintingFramed(title=event.title)

    more = {"id": str(ID), "source": "js", "correlationid": str(STORY), "causationid": str(CAUSE), "traceparent": TRACE}
    async with running(any_url, worker, namespace=namespace):
        eyes.put(entry({"title": "nude"}, specversion="1.0", **more))
        await until(lambda: eyes.count("painting.framed"))
    (found,) = seen
    assert (found.id, found.source, found.key, found.version) == (ID, "js", "nude", 1)
    assert (found.causation_id, found.traceparent) == (CAUSE, TRACE)
    ((envelope, framed),) = eyes.entries("painting.framed")
    assert (envelope.causation_id, framed.correlation_id, framed.title) == (ID, STORY, "nude")


async def test_what_two_groups_see_is_the_same_event(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Of an entry that says nothing but type and data, id, time and correlation are those of its place on the stream."""
    seen: list[tuple[UUID, PaintingMade]] = []

    def listening(name: str) -> Worker:
        worker = Worker(name)

        @worker.on(PaintingMade)
        async def see(event: PaintingMade, ctx: Context) -> None:
            seen.append((ctx.envelope.id, event))

        return worker

    entry_id = eyes.put(entry({"title": "nude"}))
    async with running(any_url, listening("one"), listening("other"), namespace=namespace):
        await until(lambda: len(seen) == 2)
    (event_id, event), again = seen
    assert (event_id, event) == again
    assert event_id == event.correlation_id == ids.foreign("painting.made", entry_id)
    assert int(event.occurred_on.timestamp() * 1000) == int(entry_id.partition("-")[0])


async def test_expirytime_is_kept(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What is stale is skipped and counted, what is not is handled."""
    worker, seen = Worker("framers"), []
    worker.on(PaintingMade)(lambda event: seen.append(event.number))
    eyes.put(entry({"number": 1}, expirytime="2020-01-01T00:00:00Z"))
    eyes.put(entry({"number": 2}, expirytime="2120-01-01T00:00:00Z"))
    async with running(any_url, worker, namespace=namespace) as bus:
        await quiet(eyes)
        assert bus.statistics()[0].expired == 1
    assert seen == [2] and eyes.dead("framers") == []


async def test_one_bad_attribute_is_one_dead_letter(any_url: str, namespace: str, eyes: Eyes) -> None:
    """With its bytes; the entries around it are handled."""
    worker, seen = Worker("framers"), []
    worker.on(PaintingMade)(lambda event: seen.append(event.number))
    bad = [entry({"number": 9}, **{name: 7}) for name in ("id", "source", "subject", "time", "traceparent")]
    bad += [entry({"number": 9}, specversion="0.3"), entry({"number": 9}, datacontenttype="text/xml")]
    for value in (entry({"number": 1}), *bad, entry({"number": 2})):
        eyes.put(value)
    async with running(any_url, worker, namespace=namespace):
        await quiet(eyes)
        await until(lambda: len(eyes.dead("framers")) == len(bad))
    assert sorted(seen) == [1, 2]
    assert [record.fields for record in eyes.dead("framers")] == [(b"e", value) for value in bad]
    assert {record.reason for record in eyes.dead("framers")} == {"undecodable"}


@pytest.mark.parametrize("size", [100, MAX_EVENT_BYTES])
async def test_a_letter_without_an_id_is_redriven_as_the_same_event(
    any_url: str, namespace: str, eyes: Eyes, size: int
) -> None:
    """It has its id by where it first lay; what comes of it the second time is what would have come of the first. Taking
    the id along makes it no larger than an entry may be."""
    worker = Worker("framers")
    seen: list[tuple[UUID, PaintingMade]] = []

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def frame(event: PaintingMade, ctx: Context) -> PaintingFramed:
        seen.append((ctx.envelope.id, event))
        if len(seen) == 1:
            raise ValueError("no frames")
        return PaintingFramed(title=event.title[:9])

    async with running(any_url, worker, namespace=namespace):
        eyes.put(entry({"title": "n" * (size - len(entry({"title": ""})))}))
        await until(lambda: eyes.dead("framers"))
        found = eyes.run(dead_letters([eyes.keys], Filter(group="framers"), limit=10)).letters
        assert sum(eyes.run(redrive([eyes.keys], portion)) for portion in portions(found)) == 1
        await until(lambda: eyes.count("painting.framed"))
    assert seen[0] == seen[1]
    ((envelope, _),) = eyes.entries("painting.framed")
    assert envelope.causation_id == seen[0][0]
