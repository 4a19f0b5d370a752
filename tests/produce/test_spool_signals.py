"""A buffer with a spool that is interrupted, or published into, in the midst of its own work."""

import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from produce.spooling import die, drained, item, spooled
from studio import Eyes, PaintingMade

from canvasbus import BufferFull, Producer
from canvasbus.produce import spoolfile
from canvasbus.produce.spool import Ledger
from canvasbus.produce.spoolfile import Log
from canvasbus.transport.memory import MemoryServer


def test_publishing_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler that publishes while its own thread is writing: its event comes after, and both are on disk."""
    b, outer, inner, last = spooled(tmp_path), item(), item(), item()
    real = spoolfile._raw_write

    def interrupted(fd: int, data: bytes, size: int) -> int:
        monkeypatch.setattr(spoolfile, "_raw_write", real)
        b.add(inner, 0)
        return real(fd, data, size)

    monkeypatch.setattr(spoolfile, "_raw_write", interrupted)
    b.add(outer, 0)
    b.add(last, 0)
    die(b)
    assert drained(spooled(tmp_path)) == [outer, inner, last]


def test_publishing_from_inside_after_the_end(any_url: str, namespace: str, tmp_path: Path) -> None:
    """A signal handler that publishes while its own thread is in a Producer that is closed hears so at once; when the
    program ends its event is counted as dropped. It was given an id before, and dropped later."""
    bus = Producer(any_url, namespace=namespace, spool=tmp_path)
    assert bus.close() is True
    with bus._buffer.lock, pytest.raises(BufferFull, match="is closed"):
        bus.publish(PaintingMade())
    assert bus.statistics().published == 0
    b = spooled(tmp_path)
    b.close("muted")
    with b.lock:
        b.add(item(), 0)
    assert b.dropped == 1 and b.take() is None


def test_publishing_from_inside_while_it_leaves(
    memory: MemoryServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that publishes while the program ends, as the spool's files are closed: it was given an id, and
    on_delivery is told that the event was dropped."""
    memory.set_connected(False)
    told: dict[UUID, Any] = {}
    bus = Producer(memory.name, namespace=namespace, spool=tmp_path, on_delivery=told.__setitem__)
    on_disk = bus.publish(PaintingMade())
    inside: list[UUID | None] = []
    close = Log.close

    def interrupted(log: Log) -> None:
        inside.append(bus.publish(PaintingMade()))
        close(log)

    monkeypatch.setattr(Log, "close", interrupted)
    sender = bus._sender
    assert sender is not None and sender._thread is not None
    sender.at_exit(0.0)
    sender._thread.join(10)
    assert [type(told.get(event_id)) for event_id in inside] == [BufferFull] and on_disk not in told


def test_ctrl_c_in_the_middle_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KeyboardInterrupt before or after the record is written: the event is there once or not at all, its neighbours
    are, and nobody waits for it for ever; the numbers are true, and nothing stays on disk."""
    for when in ("before", "after"):
        root = tmp_path / when
        b, items = spooled(root), [item() for _ in range(3)]
        b.add(items[0], 0)
        real = spoolfile._raw_write

        def interrupted(fd: int, data: bytes, size: int, when: str = when, real: Any = real) -> int:
            if when == "after":
                real(fd, data, size)
            raise KeyboardInterrupt

        monkeypatch.setattr(spoolfile, "_raw_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            b.add(items[1], 0)
        monkeypatch.setattr(spoolfile, "_raw_write", real)
        b.add(items[2], 0)
        expected = [items[0], *items[1:2] * (when == "after"), items[2]]
        assert drained(b) == expected
        assert b.waiting == 0 and b.wait_settled(0) and b.published == len(expected)
        assert b.spool_statistics()["spool_events"] == 0
        b.leave()
        assert list(root.iterdir()) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_while_another_event_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """What a signal handler had published waits for the lock, and KeyboardInterrupt comes while the next publish writes
    it down: it is accepted, and there once."""
    b, first, inner = spooled(tmp_path), item(), item()
    b.add(first, 0)
    with b.lock:
        b.add(inner, 0)
    real = spoolfile._raw_write

    def interrupted(fd: int, data: bytes, size: int) -> int:
        if when == "after":
            real(fd, data, size)
        raise KeyboardInterrupt

    monkeypatch.setattr(spoolfile, "_raw_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        b.add(item(), 0)
    monkeypatch.setattr(spoolfile, "_raw_write", real)
    assert drained(b) == [first, inner] and b.wait_settled(0)


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "memory"])
def test_ctrl_c_at_the_end_of_publish(any_url: str, namespace: str, tmp_path: Path, spool: bool) -> None:
    """KeyboardInterrupt after the event is accepted, before the sender is roused, and nothing is published any more: a
    flush sends it."""
    with Producer(any_url, namespace=namespace, spool=tmp_path if spool else None) as bus:
        rouse = bus._buffer._rouse

        def interrupted() -> bool:
            bus._buffer._rouse = rouse
            raise KeyboardInterrupt

        bus._buffer._rouse = interrupted
        with pytest.raises(KeyboardInterrupt):
            bus.publish(PaintingMade(number=1))
        assert bus.flush(10) is True and bus.statistics().stored == 1
    assert [made.number for made in Eyes(any_url, namespace).events("painting.made")] == [1]


@pytest.mark.parametrize("begun", [True, False], ids=["next segment", "first segment"])
@pytest.mark.parametrize("step", ["header", "written", "before", "after"])
def test_ctrl_c_while_a_segment_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, begun: bool) -> None:
    """KeyboardInterrupt at any step of beginning a file, in a notebook that goes on: the event that was being published
    is not there, those before and after it are, also for the next process, and publishing goes on as if nothing had
    been."""
    b, items = spooled(tmp_path, spool_bytes=40_000), [item(1000) for _ in range(9)]
    if begun:  # the segment is full
        for each in items[:5]:
            b.add(each, 0)
    owner, name = (Ledger, "began") if step in ("before", "after") else (spoolfile, "_raw_write")
    real: Any = getattr(owner, name)

    def interrupted(*args: Any) -> None:
        if step in ("written", "after"):
            real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        b.add(items[5], 0)
    monkeypatch.setattr(owner, name, real)
    for each in items[6:]:
        b.add(each, 0)
    expected = items[: 5 * begun] + items[6:]
    die(b)
    again = spooled(tmp_path)
    assert drained(again) == expected
    assert again.quarantined == 0
    again.leave()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["flush", "close"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_flushing_from_inside(
    any_url: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, end: str
) -> None:
    """A signal handler publishes and flushes, or closes, while its own thread is writing: it is told at once that not all
    is there. Each event is stored once and in order, by this Producer or the next, and the numbers are true."""
    bus = Producer(any_url, namespace=namespace, spool=tmp_path)
    bus.publish(PaintingMade(number=0))
    assert bus.flush(10) is True
    real, main, said = spoolfile._raw_write, threading.get_ident(), []

    def interrupted(fd: int, data: bytes, size: int) -> int:
        if threading.get_ident() != main or said:
            return real(fd, data, size)
        said.append(True)
        written = real(fd, data, size) if when == "after" else None
        bus.publish(PaintingMade(number=2))
        said.append(bus.flush(10) if end == "flush" else bus.close(10))
        return real(fd, data, size) if written is None else written

    monkeypatch.setattr(spoolfile, "_raw_write", interrupted)
    bus.publish(PaintingMade(number=1))
    assert said == [True, False]
    if end == "flush":
        assert bus.flush(10) is True
        now = bus.statistics()
        assert (now.published, now.stored, now.dropped, now.waiting_events, now.spool_events) == (3, 3, 0, 0, 0)
        assert bus.close() is True
    else:
        sender = bus._sender
        assert sender is not None and sender._thread is not None
        sender._thread.join(10)
        assert bus.statistics().dropped == 0
        with Producer(any_url, namespace=namespace, spool=tmp_path) as after:
            assert after.flush(10) is True
    assert [made.number for made in Eyes(any_url, namespace).events("painting.made")] == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


def test_closed_before_what_came_from_inside_is_written(tmp_path: Path) -> None:
    """What a signal handler had published is accepted: the Producer is closed next, and it is written down all the same."""
    b, inner = spooled(tmp_path), item()
    with b.lock:
        b.add(inner, 0)
    b.close("closed")
    assert drained(b) == [inner] and b.dropped == 0
    with pytest.raises(BufferFull, match="is closed"):
        b.add(item(), 0)


@pytest.mark.parametrize("killed", [False, True])
def test_ctrl_c_as_a_segment_begins_and_a_note_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """KeyboardInterrupt as a segment begins, and the next that is written is a note of the sender: what lies on disk alone,
    in the segment before, is found."""
    b, items = spooled(tmp_path, limit=3000, spool_bytes=40_000), [item(1000) for _ in range(9)]
    for each in items[:5]:
        b.add(each, 0)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "began", interrupted)
        with pytest.raises(KeyboardInterrupt):
            b.add(items[5], 0)
    batch = b.take()
    assert batch is not None
    b.settle(*batch, stored=len(batch[1]))
    for each in items[6:]:
        b.add(each, 0)
    if killed:
        die(b)
        b = spooled(tmp_path)
    assert batch[1] + drained(b) == items[:5] + items[6:] and b.dropped == 0
