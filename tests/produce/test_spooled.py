"""The buffer with a spool: order, bounds, what the dead left, disks that are full, broken files."""

import errno
import os
import random
import threading
from pathlib import Path

import pytest
from produce.spooling import die, drained, item, spooled
from seeds import seeds

from canvasbus import BufferFull, ids
from canvasbus.produce import spoolfile, spoolfolder
from canvasbus.wire.outgoing import Outgoing


def test_more_than_memory_holds(tmp_path: Path) -> None:
    """Ten times what fits into memory: memory stays bounded, all of it is read back in order, and the disk is empty
    again."""
    b = spooled(tmp_path)
    items = [item(100) for _ in range(400)]
    for each in items:
        b.add(each, 0)
        assert b.bytes <= 4000
    assert b.waiting == 400 and b.spool_statistics()["spool_events"] == 400
    assert drained(b) == items
    assert (b.waiting, b.stored, b.bytes, b.spool_statistics()["spool_events"]) == (0, 400, 0, 0)
    b.leave()
    assert list(tmp_path.iterdir()) == []


def test_many_at_once_are_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """add_many writes a chunk with one call, and what it wrote is what it was given."""
    b, items, sizes = spooled(tmp_path), [item() for _ in range(100)], []
    b.add(items[0], 0)
    real = spoolfile._raw_write
    monkeypatch.setattr(spoolfile, "_raw_write", lambda fd, data, n: sizes.append(n) or real(fd, data, n))
    b.add_many(items[1:], 0)
    assert len(sizes) == 1
    die(b)
    assert drained(spooled(tmp_path)) == items


def test_what_a_dead_process_left_comes_first(tmp_path: Path) -> None:
    """Three lives after one another, none of which sent all: the next sends the oldest first, then its own."""
    items = [item() for _ in range(60)]
    first = spooled(tmp_path)
    first.add_many(items[:30], 0)
    die(first)
    second = spooled(tmp_path, limit=1200)
    batch = second.take()
    assert batch is not None and batch[1] == items[: len(batch[1])]
    second.settle(*batch, stored=len(batch[1]))
    second.add_many(items[30:50], 0)
    die(second)
    third = spooled(tmp_path)
    third.add_many(items[50:], 0)
    assert drained(third) == items[len(batch[1]) :]
    assert (third.recovered, third.published) == (50 - len(batch[1]), 10)
    third.leave()
    assert list(tmp_path.iterdir()) == []


def test_the_living_are_left_alone(tmp_path: Path) -> None:
    """Nobody takes what belongs to a process that lives, not even a second Producer of the same process."""
    first, second = spooled(tmp_path), spooled(tmp_path)
    first.add(item(), 0)
    second.add(item(), 0)
    assert len(drained(second)) == 1 and len(drained(first)) == 1
    third = spooled(tmp_path)
    assert third.take() is None and third.recovered == 0


def test_another_namespace_is_left_alone(tmp_path: Path) -> None:
    """Two buses may share a folder: each adopts its own."""
    other = spooled(tmp_path)
    other._whose = other._whose._replace(namespace="elsewhere")
    other.add(item(), 0)
    die(other)
    assert spooled(tmp_path).take() is None
    assert len(spoolfolder.folders(tmp_path)) == 1


def test_somebody_who_dies_later_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that goes on for days looks once a minute for what others have left."""
    from canvasbus import clock

    living, child = spooled(tmp_path), spooled(tmp_path)
    child.add(item(), 0)
    die(child)
    assert living.take() is None
    later = clock.monotonic() + 61
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    assert len(drained(living)) == 1


def test_two_who_adopt_at_once(tmp_path: Path) -> None:
    """Ten folders of dead processes and four that start together: every event is adopted by one of them, once."""
    items = [item() for _ in range(200)]
    for at in range(10):
        dead = spooled(tmp_path)
        dead.add_many(items[at * 20 : at * 20 + 20], 0)
        die(dead)
    buffers = [spooled(tmp_path) for _ in range(4)]
    got: list[list[Outgoing]] = [[] for _ in buffers]
    start = threading.Barrier(4)

    def adopt(at: int) -> None:
        start.wait()
        got[at] += drained(buffers[at])

    threads = [threading.Thread(target=adopt, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.raw_id for part in got for each in part) == sorted(each.raw_id for each in items)
    assert sum(b.recovered for b in buffers) == 200 and spoolfolder.folders(tmp_path) == []


def test_folders_come_and_go(tmp_path: Path) -> None:
    """Processes that begin and end while others look for orphans: nobody loses his folder under his hands."""
    stop, failures = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            b = spooled(tmp_path)
            drained(b)
            b.leave()

    def live() -> None:
        try:
            for _ in range(150):
                b, each = spooled(tmp_path), item()
                b.add(each, 0)
                assert not b.spool_errors and drained(b)[-1:] == [each]
                b.leave()
        except BaseException as error:
            failures.append(error)

    lookers, livers = [threading.Thread(target=look) for _ in range(2)], [threading.Thread(target=live)]
    for thread in (*lookers, *livers):
        thread.start()
    livers[0].join()
    stop.set()
    for thread in lookers:
        thread.join()
    assert failures == [] and list(tmp_path.iterdir()) == []


def test_a_folder_that_was_only_just_made(tmp_path: Path) -> None:
    """A process that was killed between making its folder and locking it leaves nothing behind for ever."""
    (tmp_path / f"000004-{0:032x}").mkdir()
    b = spooled(tmp_path)
    assert b.take() is None and list(tmp_path.iterdir()) == []
    b.add(item(), 0)
    assert [path.name[:6] for path in tmp_path.iterdir()] == ["000001"]


# --- the spool is full, or cannot be written --------------------------------------------------------------------------


def test_a_full_spool_drops_what_is_new(tmp_path: Path) -> None:
    """Over `spool_bytes` what is published then is dropped and counted; what was accepted before is all there, and when
    it is gone there is room again."""
    b, laments = spooled(tmp_path, spool_bytes=20_000), []
    b._lament = laments.append
    b.keep_drops = True
    items = [item(100) for _ in range(300)]
    for each in items:
        b.add(each, 0)
        assert b.spool_bytes_used <= 20_000
    kept = 300 - b.dropped
    assert 80 < kept < 150 and b.waiting == kept and b.published == 300
    assert b.take_drops() == [each.raw_id for each in items[kept:]]
    assert "the limit is 20,000: what is published now is dropped" in laments[0]
    assert drained(b) == items[:kept]
    b.add(items[-1], 0)
    assert drained(b) == items[-1:]


@pytest.mark.parametrize(("lanes", "spool_bytes"), [(1, 6000), (2, 6000), (16, 100_000), (16, 8 << 20)])
def test_what_is_settled_never_fills_a_spool(tmp_path: Path, lanes: int, spool_bytes: int) -> None:
    """However many partitions share it: each event finds room when all before it are settled."""
    b = spooled(tmp_path, limit=1 << 20, spool_bytes=spool_bytes, when_full="raise", lanes=lanes)
    size = min(1000, spool_bytes // (8 * lanes))
    many = max(1, spool_bytes // lanes // size)
    for lane in range(lanes):
        for _ in range(2 * many if lanes * many < 10_000 else 0):
            b.add(item(size), lane)
            batch = b.take()
            assert batch is not None
            b.settle(*batch, stored=1)
        for _ in range(3):
            b.add_many([item(size)] * (many // 4), lane)
            while (batch := b.take()) is not None:
                b.settle(*batch, stored=len(batch[1]))
    assert b.spool_statistics()["spool_bytes"] <= spool_bytes // 2


def test_a_full_spool_raises_or_blocks_when_asked_to(tmp_path: Path) -> None:
    """when_full="raise" and "block" speak of the spool."""
    b = spooled(tmp_path / "raise", spool_bytes=5000, when_full="raise")
    with pytest.raises(BufferFull, match=r"in the spool .* limit is 5,000"):
        for _ in range(100):
            b.add(item(100), 0)
    b = spooled(tmp_path / "block", spool_bytes=5000, when_full="block")
    with pytest.raises(BufferFull, match="no room came within max_block=0 s"):
        b.add_many([item(100) for _ in range(100)], 0)
    assert b.waiting == b.spool_statistics()["spool_events"] > 10 and b.dropped == 0


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be written events wait in memory, up to its bound; when there is room again they are written
    down; the order holds, and everything is counted and told."""
    from canvasbus import clock

    b, laments, offset = spooled(tmp_path, limit=2000), [], 0.0
    b._lament = laments.append
    real_clock, real = clock.monotonic, spoolfile._raw_write
    monkeypatch.setattr(clock, "monotonic", lambda: real_clock() + offset)
    items = [item(100) for _ in range(60)]
    for each in items[:30]:
        b.add(each, 0)  # the last of them are on disk alone

    def full(fd: int, data: bytes, size: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spoolfile, "_raw_write", full)
    for each in items[30:50]:
        b.add(each, 0)
    assert b.spool_errors == 1 and b.dropped == 20 and "No space left on device" in laments[0]
    first = b.take()
    assert first is not None and first[1] == items[: len(first[1])]
    b.settle(*first, stored=len(first[1]))
    for each in items[50:55]:
        b.add(each, 0)
    in_memory = 25 - b.dropped
    assert in_memory > 0
    monkeypatch.setattr(spoolfile, "_raw_write", real)
    offset = 1.1
    for each in items[55:]:
        b.add(each, 0)
    rest = drained(b)
    assert rest == items[len(first[1]) : 30] + items[50 : 50 + in_memory] + items[55:]
    assert b.waiting == 0 == b.spool_statistics()["spool_events"]


@pytest.mark.parametrize("more", [0, 5])
def test_what_was_sent_while_the_disk_was_full_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    """That it is settled could not be written down, and the process is killed: then, or when there is room again and it
    has gone on."""
    from canvasbus import clock

    b, items, offset = spooled(tmp_path), [item() for _ in range(10 + more)], 0.0
    real_clock, real = clock.monotonic, spoolfile._raw_write
    monkeypatch.setattr(clock, "monotonic", lambda: real_clock() + offset)
    for each in items[:10]:
        b.add(each, 0)

    def full(fd: int, data: bytes, size: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spoolfile, "_raw_write", full)
    assert drained(b) == items[:10] and b.spool_errors == 1
    monkeypatch.setattr(spoolfile, "_raw_write", real)
    offset = 1.1
    for each in items[10:]:
        b.add(each, 0)
    die(b)
    assert drained(spooled(tmp_path)) == items[10:]


@pytest.mark.parametrize("heirs", [0, 1])
def test_what_was_sent_of_a_log_while_the_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heirs: int
) -> None:
    """Killed between two batches, or with one on its way: the next one knows what is settled and what is to be looked for;
    so it is when that one has a full disk and is killed, too."""
    items = [item(100) for _ in range(60)]
    b, real = spooled(tmp_path), spoolfile._raw_write
    b.add_many(items, 0)

    def full(fd: int, data: bytes, size: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    left = items
    for heir in range(heirs + 1):
        b._batch_bytes = 1000
        monkeypatch.setattr(spoolfile, "_raw_write", full if heir == heirs else real)
        for number in range(3):
            batch = b.take()
            assert batch == (0, left[:10]) and b.note is not None
            assert (b.doubt is None) == (number > 0 or heir == 0)
            b.note(batch[1], "me", {"painting.made": f"{number}-0".encode()})
            if number < 2:
                b.settle(*batch, stored=10)
                left = left[10:]
        assert b.spool_errors == (5 if heir == heirs else 0)
        die(b)
        b = spooled(tmp_path)
    monkeypatch.setattr(spoolfile, "_raw_write", real)
    assert b.take() == (0, left[:10]) and b.doubt is not None
    assert (b.doubt.fence, b.doubt.cursors) == ("me", {"painting.made": b"2-0"})
    b.settle(0, left[:10], stored=10)
    assert drained(b) == left[10:]


def test_a_batch_that_is_on_disk_in_parts(tmp_path: Path) -> None:
    """One event of a batch could not be written down: after a crash all the others are doubted together, and when they
    were sent in parts, from the first part on whose fate nobody knew."""
    b, items = spooled(tmp_path), [item() for _ in range(6)]
    for at, each in enumerate(items):
        b._failing_until = float("inf") if at == 2 else 0.0  # not tried again yet
        b.add(each, 0)
    batch = b.take()
    assert batch == (0, items) and b.note is not None
    b.note(items, "me", {"painting.made": b"5-0"})
    die(b)
    b = spooled(tmp_path)
    assert b.take() == (0, items[:2] + items[3:])
    assert b.doubt is not None and (b.doubt.fence, b.doubt.cursors) == ("me", {"painting.made": b"5-0"})
    assert b.note is not None
    b.note(items[:1], "me", {})
    b.settle(0, items[:1], stored=1)
    b.note(items[1:2], "me", {})
    b.settle(0, items[1:2], refused=1)
    b.note(items[3:5], "me", {"painting.made": b"7-0"})
    die(b)
    b = spooled(tmp_path)
    assert b.take() == (0, items[3:5]) and b.doubt is not None and b.doubt.cursors == {"painting.made": b"7-0"}
    b.settle(0, items[3:5], stored=2)
    assert b.take() == (0, items[5:]) and b.doubt is None
    b.settle(0, items[5:], stored=1)
    assert b.take() is None and b.waiting == 0


def test_what_is_refused_before_the_rest_is_sent(tmp_path: Path) -> None:
    """The stream of some events is full, so that only the others of the batch are sent. Who dies then has told nobody of
    the refused ones: the next one has them all."""
    b, items = spooled(tmp_path), [item() for _ in range(5)]
    b.add_many(items, 0)
    b.take()
    assert b.note is not None
    b.note(items[2:4], "me", {"painting.made": b"5-0"})
    die(b)
    c = spooled(tmp_path)
    assert c.take() == (0, items[:4]) and c.doubt is not None and c.doubt.fence == "me"
    c.settle(0, items[:4], stored=2, refused=2)
    assert c.take() == (0, items[4:]) and c.doubt is None


def test_a_batch_with_one_event_twice(tmp_path: Path) -> None:
    """What was published twice under one key has one id: the note before a batch names all of it nevertheless, so that
    whoever finds it sends all of it in the way in which it was sent."""
    b, again = spooled(tmp_path), ids.uuid7_bytes()
    items = [Outgoing(raw_id, "painting.made", None, b"x") for raw_id in (again, ids.uuid7_bytes(), again, again)]
    b.add_many([*items, item()], 0)
    b.take()
    assert b.note is not None
    b.note(items, "me", {})
    die(b)
    c = spooled(tmp_path)
    assert c.take() == (0, items) and c.doubt is not None and c.doubt.fence == "me"


def test_the_parts_of_a_batch_that_was_adopted(tmp_path: Path) -> None:
    """A batch that is sent in parts (events with and without a key) stays on disk until the last of them is settled: who
    dies between two of them leaves the rest to the next, and nothing is written off."""
    items = [item() for _ in range(5)]
    first = spooled(tmp_path)
    first.add_many(items, 0)
    die(first)
    second = spooled(tmp_path)
    assert second.take() == (0, items)
    second.settle(0, items[:2], stored=2)
    assert (second.dropped, second.waiting, second.spool_statistics()["spool_events"]) == (0, 3, 3)
    die(second)
    third = spooled(tmp_path)
    assert third.take() == (0, items[2:])
    third.settle(0, items[2:3], stored=1)
    third.settle(0, items[3:], stored=2)
    assert (third.stored, third.dropped, third.waiting, third.bytes) == (3, 0, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_sender_that_ends_by_a_fault(tmp_path: Path) -> None:
    """The next one takes up what it had in hand and what waited, from disk; the counts, the memory and flush are right."""
    b, items = spooled(tmp_path), [item() for _ in range(60)]
    b.add_many(items, 0)
    batch = b.take()
    assert batch is not None and len(batch[1]) < len(items)
    b.settle(0, batch[1][:5], stored=5)
    b.leave()
    b.add(last := item(), 0)
    assert drained(b) == [*items[5:], last]
    assert (b.stored, b.published, b.dropped, b.waiting, b.bytes) == (61, 61, 0, 0, 0)
    assert b.spool_statistics()["recovered"] == 0 and b.wait_settled(0) is True


def test_a_batch_on_its_way_while_much_is_published(tmp_path: Path) -> None:
    """The segment with the note before the batch is long full when the process dies: the batch is doubted all the same."""
    b = spooled(tmp_path, spool_bytes=100_000)
    items = [item(100) for _ in range(300)]
    b.add_many(items[:3], 0)
    assert b.take() == (0, items[:3]) and b.note is not None
    b.note(items[:3], "me", {"painting.made": b"5-0"})
    for each in items[3:]:
        b.add(each, 0)
    die(b)
    b = spooled(tmp_path)
    assert b.take() == (0, items[:3]) and b.doubt is not None and b.doubt.fence == "me"
    b.settle(0, items[:3], stored=3)
    assert drained(b) == items[3:]


def test_memory_alone_is_lost_at_the_end_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could never be written down is dropped when the Producer closes, and counted; what is on disk is left."""
    b, real = spooled(tmp_path), spoolfile._raw_write
    kept = item()
    b.add(kept, 0)

    def broken(fd: int, data: bytes, size: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(spoolfile, "_raw_write", broken)
    b.add(item(), 0)
    monkeypatch.setattr(spoolfile, "_raw_write", real)
    b.close("closed")
    b.leave()
    assert (b.dropped, b.waiting) == (1, 1)
    assert drained(spooled(tmp_path)) == [kept]


def test_files_that_somebody_deletes(tmp_path: Path) -> None:
    """A folder that is cleared under a living process: what was on disk alone is dropped and counted, the rest goes on."""
    b = spooled(tmp_path, limit=2000)
    items = [item(100) for _ in range(60)]
    for each in items:
        b.add(each, 0)
    for path in tmp_path.rglob("*.log"):
        path.unlink()
    got = drained(b)
    assert got == items[: len(got)] and len(got) + b.dropped == 60 and b.waiting == 0 and b.spool_errors > 0
    assert b.spool_statistics()["spool_events"] == 0


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is tried, no folder stays there; events are in memory, and as soon as a lock can be had on disk."""

    def unsupported(fd: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    b, items = spooled(tmp_path), [item() for _ in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", unsupported)
        for each in items[:3]:
            b._failing_until = 0.0  # a second later
            b.add(each, 0)
    assert (b.spool_errors, b.waiting, list(tmp_path.iterdir())) == (3, 3, [])
    b._failing_until = 0.0
    b.add(items[3], 0)
    assert b.spool_statistics()["spool_events"] == 1 and drained(b) == items
    b.leave()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_somebody_deletes(tmp_path: Path) -> None:
    """Nobody knows whether the process lives: what is there stays, and that is told, until somebody says so."""
    b, left = spooled(tmp_path), item()
    b.add(left, 0)
    die(b)
    (folder,) = tmp_path.iterdir()
    (folder / "lock").unlink()
    b, told = spooled(tmp_path), []
    b._lament = told.append
    assert drained(b) == [] and b.spool_errors == 1 and "its file `lock` is gone" in told[-1]
    b.leave()
    (folder / "lock").touch()
    b = spooled(tmp_path)
    assert drained(b) == [left] and b.spool_errors == 0


def test_a_damaged_spool_is_taken_as_far_as_it_goes(tmp_path: Path) -> None:
    """Bytes that cannot be read are set aside, counted and told; what is before them is sent."""
    dead, items = spooled(tmp_path), [item() for _ in range(20)]
    dead.add_many(items, 0)
    die(dead)
    (file,) = tmp_path.rglob("*.log")
    data = bytearray(file.read_bytes())
    data[-30] ^= 1
    file.write_bytes(data)
    b, laments = spooled(tmp_path), []
    b._lament = laments.append
    assert drained(b) == items[:-1]
    assert (b.recovered, b.quarantined) == (19, 1) and "is damaged" in laments[0]
    b.leave()
    (aside,) = tmp_path.iterdir()
    assert aside == spoolfolder.aside(tmp_path)[0] and data.endswith(aside.read_bytes())
    assert spooled(tmp_path).take() is None


@pytest.mark.parametrize("cut", [0, 10, 40])
def test_a_spool_without_a_header(tmp_path: Path, cut: int) -> None:
    """A file that is cut before anything is known of it is set aside whole, or, if it is empty, goes."""
    dead = spooled(tmp_path)
    dead.add(item(), 0)
    die(dead)
    (file,) = tmp_path.rglob("*.log")
    os.truncate(file, cut)
    b = spooled(tmp_path)
    assert b.take() is None
    assert [path.stat().st_size for path in tmp_path.iterdir()] == ([cut] if cut else [])


def test_damaged_again(tmp_path: Path) -> None:
    """A disk that breaks further while the first piece that could not be read still lies beside: both are kept."""
    b, items = spooled(tmp_path), [item() for _ in range(20)]
    b.add_many(items, 0)
    pieces = []
    for at in (1400, 1000):
        die(b)
        (file,) = tmp_path.rglob("*.log")
        data = bytearray(file.read_bytes())
        data[at] ^= 1
        file.write_bytes(data)
        b = spooled(tmp_path)
        assert b.take() is not None and b.quarantined == 1
        pieces.append(bytes(data[file.stat().st_size :]))
    assert sorted(path.read_bytes() for path in spoolfolder.aside(tmp_path)) == sorted(pieces)


# --- a naive model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(12, "spool model"))
def test_lives_and_deaths_against_a_list(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes publish, send, and die at any moment, a server executes a batch or does not before they know: in the
    end the server's lists are the lists of what was published, each event once, in order; nothing else was doubted
    than what was on its way; memory and disk keep their bounds."""
    print(f"seed {seed}")
    monkeypatch.setattr("canvasbus.produce.spooled.RESTING_BYTES", 3000)
    rng = random.Random(seed)
    lanes, limit, disk = rng.choice([1, 1, 3]), rng.choice([600, 5000, 1 << 20]), 200_000
    published: list[list[bytes]] = [[] for _ in range(lanes)]
    server: list[list[bytes]] = [[] for _ in range(lanes)]
    unsure: dict[str, bool] = {}  # fence → whether its batch was executed
    b = spooled(tmp_path, limit=limit, spool_bytes=disk, lanes=lanes)
    sent = 0

    def send(end: bool = False) -> None:
        nonlocal sent
        batch = b.take()
        if batch is None:
            return
        lane, items = batch
        executed = False
        if b.doubt is not None:
            executed = unsure.pop(b.doubt.fence)
            assert not executed or [each.raw_id for each in items] == server[lane][-len(items) :]
        if not executed:
            sent += 1
            assert b.note is not None
            b.note(items, f"fence-{sent}", {"painting.made": b"1-0"})
            died = not end and rng.random() < 0.3
            executed = not died or rng.random() < 0.5
            if executed:
                server[lane] += [each.raw_id for each in items]
            if died:
                unsure[f"fence-{sent}"] = executed
                restart()
                return
        b.settle(lane, items, stored=len(items))

    def restart() -> None:
        nonlocal b
        die(b)
        b = spooled(tmp_path, limit=limit, spool_bytes=disk, lanes=lanes)

    for _ in range(250):
        action = rng.choices(["one", "many", "send", "die", "leave"], [5, 2, 5, 1, 1])[0]
        lane = rng.randrange(lanes)
        if action == "one":
            each = item(rng.randrange(300))
            b.add(each, lane)
            published[lane].append(each.raw_id)
        elif action == "many":
            items = [item(rng.randrange(100)) for _ in range(rng.randrange(1, 40))]
            b.add_many(items, lane)
            published[lane] += [each.raw_id for each in items]
        elif action == "send":
            send()
        else:
            if action == "leave":
                b.leave()
            restart()
        assert b.bytes <= limit + 300 and b.spool_bytes_used <= disk + 1000 and b.dropped == 0
    while b.waiting or not b._looked:
        send(end=True)
    assert server == published and unsure == {}
    b.leave()
    assert list(tmp_path.iterdir()) == []
