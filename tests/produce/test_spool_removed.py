"""A spool that somebody removes under a living process: an admin, a cleaner of temporary files."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from produce.programs import Program
from produce.spooling import die, drained, item, spooled
from seeds import seeds
from studio import PaintingMade, numbers

from canvasbus import Producer
from canvasbus.produce import spoolfile, spoolfolder
from canvasbus.produce.spooled import SpooledBuffer
from canvasbus.transport.memory import MemoryServer

Soon = Callable[..., Any]


def remade(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def lockless(root: Path) -> None:
    for path in root.rglob("lock"):
        path.unlink()


def logless(root: Path) -> None:
    for path in root.rglob("*.log"):
        path.unlink()


def emptied(root: Path) -> None:
    for path in root.rglob("*.log"):
        path.write_bytes(b"")


def folderless(root: Path) -> None:
    for path in root.iterdir():
        shutil.rmtree(path)


def moved(root: Path) -> None:
    root.rename(root.with_name(f"elsewhere-{len(list(root.parent.iterdir()))}"))


def oldest(root: Path) -> None:
    min(root.rglob("*.log")).unlink()


WAYS = [shutil.rmtree, remade, folderless, lockless, logless, oldest, emptied, moved]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def told_by(b: SpooledBuffer) -> list[str]:
    told: list[str] = []
    b._lament = lambda why, at_once=False: told.append(why)
    return told


@pytest.mark.parametrize("way", WAYS)
def test_what_is_in_memory_is_written_down_again(root: Path, way: Callable[[Path], None]) -> None:
    """Whatever is removed, and whatever was published since: a process that is killed afterwards leaves all its events to
    the next, the batch on its way as one that was on its way, in order."""
    b, items = spooled(root, limit=1 << 20, spool_bytes=100_000, lanes=2), [item(100) for _ in range(400)]
    told = told_by(b)
    b.add_many(items[:200], 0)
    b.add_many(other := [item() for _ in range(5)], 1)
    for each in items[200:300]:
        b.add(each, 0)
    lane, batch = b.take() or (1, [])
    assert lane == 0 and batch == items[: len(batch)] and b.note is not None
    b.note(batch[:50], "me", {"painting.made": b"5-0"})
    b.settle(0, batch[:50], stored=50)
    b.note(batch[50:60], "me", {"painting.made": b"6-0"})
    way(root)
    b.add_many(items[300:350], 0)
    for each in items[350:]:
        b.add(each, 0)
    b._next_tend = 0.0
    b.tend()
    assert b.dropped == 0 and b.waiting == 355
    assert way is lockless or (b.spool_errors > 0 and "no event is lost" in told[-1])
    b._measure()  # what a note before a batch has added
    now = b.spool_statistics()
    assert now["spool_events"] == 355
    assert now["spool_bytes"] == sum(path.stat().st_size for path in root.rglob("*.log"))
    die(b)
    b = spooled(root, limit=1 << 20, lanes=2)
    assert b.take() == (0, items[50:60]) and b.doubt is not None
    assert (b.doubt.fence, b.doubt.cursors) == ("me", {"painting.made": b"6-0"})
    b.settle(0, items[50:60], stored=10)
    got: list[list[Any]] = [[], []]
    while (taken := b.take()) is not None:
        got[taken[0]] += taken[1]
        b.settle(*taken, stored=len(taken[1]))
    assert got == [items[60:], other] and b.recovered == 355 and b.quarantined == 0
    b.leave()
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("seed", seeds(6, "removed spools"))
def test_removed_again_and_again(root: Path, seed: int) -> None:
    """Files go at any moment, in any way, while events are published and sent and the sender looks now and then: whoever dies
    after a look leaves exactly what is not settled, in order; the counts are those of a list, and no event is lost."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    lanes = rng.choice([1, 3])
    b = spooled(root, limit=1 << 20, spool_bytes=200_000, lanes=lanes)
    left: list[list[bytes]] = [[] for _ in range(lanes)]

    def remove() -> None:
        if any(root.rglob("*.log")):
            rng.choice(WAYS)(root)

    for step in range(300):
        action = rng.choices(["one", "many", "send", "remove", "look"], [6, 2, 4, 1, 2])[0]
        lane = rng.randrange(lanes)
        if action in ("one", "many"):
            items = [item(rng.randrange(300)) for _ in range(1 if action == "one" else rng.randrange(1, 30))]
            left[lane] += [each.raw_id for each in items]
            b._failing_until = 0.0  # a second later
            b.add(items[0], lane) if action == "one" else b.add_many(items, lane)
        elif action == "send" and (taken := b.take()) is not None:
            lane, items = taken
            assert b.note is not None and [each.raw_id for each in items] == left[lane][: len(items)]
            while items:
                part = items[: rng.randrange(1, 60)]
                b.note(part, "me", {"painting.made": b"5-0"})
                if rng.random() < 0.1:
                    remove()
                    b._restore_all()
                b.settle(lane, part, stored=len(part))
                del left[lane][: len(part)]
                items = items[len(part) :]
        elif action == "remove":
            remove()
        elif action == "look":
            b._next_tend = 0.0
            b.tend()
        assert (b.dropped, b.waiting) == (0, sum(map(len, left))), step
    b._restore_all()
    assert b.spool_statistics()["spool_events"] == b.waiting - len(b._unlogged)
    unlogged = {item.raw_id for lane, cache in enumerate(b._cache) for n, item in cache if (lane, n) in b._unlogged}
    die(b)
    b = spooled(root, limit=1 << 20, lanes=lanes)
    got: list[list[bytes]] = [[] for _ in range(lanes)]
    while (taken := b.take()) is not None:
        got[taken[0]] += [each.raw_id for each in taken[1]]
        b.settle(*taken, stored=len(taken[1]))
    assert got == [[each for each in ids if each not in unlogged] for ids in left] and b.quarantined == 0
    b.leave()
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("way", [shutil.rmtree, logless, emptied])
def test_what_was_on_disk_alone_is_lost_and_counted(root: Path, way: Callable[[Path], None]) -> None:
    """Of more than memory holds, what memory has not is dropped: counted at once, told with its number; flush says so, the
    room of the spool is there again, and the rest is sent."""
    b, items = spooled(root, limit=2000, spool_bytes=25_000), [item(100) for _ in range(100)]
    told = told_by(b)
    for each in items:
        b.add(each, 0)
    in_memory = b.bytes // 100
    way(root)
    b.tend()
    assert b.dropped == 100 - in_memory > 0 and b.waiting == in_memory
    assert f"{b.dropped} events that were on disk alone are lost" in told[0]
    now = b.spool_statistics()
    assert now["spool_events"] == in_memory
    assert now["spool_bytes"] == sum(path.stat().st_size for path in root.rglob("*.log")) < 5000
    b.add(last := item(), 0)
    assert drained(b) == [*items[:in_memory], last] and b.wait_settled(0) is False
    assert (b.published, b.stored, b.waiting) == (101, in_memory + 1, 0)


def test_what_was_never_written_is_not_taken_for_what_is_lost(root: Path) -> None:
    """Events that a full disk refused a moment before the files were removed are written down with the others, and those that
    were on disk alone are counted, no more and no less."""
    b, items = spooled(root, limit=2000, spool_bytes=1 << 20), [item(100) for _ in range(100)]
    for each in items:
        b.add(each, 0)
    taken = b.take()
    assert taken is not None
    b.settle(*taken, stored=len(taken[1]))
    in_memory = b.bytes // 100
    b._failing_until = float("inf")
    b.add(refused := item(100), 0)
    shutil.rmtree(root)
    b._next_tend = 0.0
    b.tend()
    assert (b.dropped, b.waiting) == (100 - len(taken[1]) - in_memory, in_memory + 1)
    assert b.spool_statistics()["spool_events"] == in_memory + 1
    die(b)
    first = len(taken[1])
    assert drained(spooled(root)) == [*items[first : first + in_memory], refused]


def test_what_is_gone_is_met_where_it_is_read(root: Path) -> None:
    """Files that vanish between two looks, of one's own and of a dead process: those who would be read are counted as
    dropped, and no more than they."""
    dead, items = spooled(root, spool_bytes=40_000), [item(100) for _ in range(150)]
    for each in items:
        dead.add(each, 0)
    die(dead)
    b = spooled(root, limit=2000, spool_bytes=40_000)
    taken = b.take()
    assert taken is not None and taken[1] == items[: len(taken[1])]
    own = [item(100) for _ in range(60)]
    for each in own:
        b.add(each, 0)
    shutil.rmtree(root)
    b.settle(*taken, stored=len(taken[1]))
    got = drained(b)
    assert got == own[: len(got)] and 0 < len(got) < 60
    assert b.dropped == 150 - len(taken[1]) + 60 - len(got) and b.waiting == 0 and b.quarantined == 0
    assert (b.recovered, b.published) == (150, 60)
    b.leave()
    assert list(root.iterdir()) == []


def test_a_spool_that_cannot_be_made_again(root: Path) -> None:
    """A file stands where the spool was: events are kept in memory, that is told, and what is there at close is lost and
    told as such; as soon as there is a folder again it is used."""
    b, items = spooled(root), [item() for _ in range(8)]
    b.add_many(items[:4], 0)
    taken = b.take()
    assert taken == (0, items[:4])
    b.settle(0, items[:2], stored=2)
    b.add_many(items[4:6], 0)
    shutil.rmtree(root)
    root.touch()
    b._next_tend = 0.0
    b.tend()
    assert (b.dropped, b.waiting, b.spool_statistics()["spool_events"]) == (0, 4, 0) and b.spool_errors > 0
    root.unlink()
    b._next_tend = b._failing_until = 0.0
    b.tend()
    b.add_many(items[6:], 0)
    assert (b.waiting, b.spool_statistics()["spool_events"]) == (6, 2)
    assert b.leave() == ([each.raw_id for each in items[4:6]], [each.raw_id for each in items[2:4]])
    assert (b.dropped, b.unknown) == (2, 2)
    assert drained(spooled(root)) == items[6:]


def test_a_full_disk_below_a_removed_spool(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written down again waits in memory, and is sent."""
    b, items, real = spooled(root), [item() for _ in range(10)], spoolfile._raw_write
    b.add_many(items, 0)
    shutil.rmtree(root)

    def full(fd: int, data: bytes, size: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spoolfile, "_raw_write", full)
    b.tend()
    assert (b.dropped, b.waiting, b.spool_statistics()["spool_events"]) == (0, 10, 0)
    monkeypatch.setattr(spoolfile, "_raw_write", real)
    assert drained(b) == items and b.stored == 10


def test_nothing_is_made_where_nothing_waits(root: Path) -> None:
    """A folder that is removed after its work is done (of a test, say) is not made again."""
    b = spooled(root)
    b.add(item(), 0)
    drained(b)
    shutil.rmtree(root)
    b._next_tend = 0.0
    assert b.take() is None
    b.leave()
    assert not root.exists()


def test_a_file_that_is_looked_at_while_it_grows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published while the sender looks is not taken for gone, nor is what is not to be looked at just now."""
    b = spooled(root, spool_bytes=20_000)
    b.add(first := item(), 0)
    real, more = spoolfolder.Folder.keep, [item(1000) for _ in range(5)]

    def keep(folder: spoolfolder.Folder) -> None:
        real(folder)
        b.add_many(more, 0)  # into new segments
        (folder.path / "0-00000001.log").parent.chmod(0o700)

    monkeypatch.setattr(spoolfolder.Folder, "keep", keep)
    b.tend()
    assert b.spool_errors == 0 and b.dropped == 0
    assert drained(b)[:1] == [first] and b.stored == 6


def test_a_producer_whose_spool_is_removed(
    away: MemoryServer, namespace: str, root: Path, soon: Soon, warnings: Callable[[], list[str]]
) -> None:
    """While the server is away the sender notices within seconds, says so at once although it has just said that the server
    is away, and close leaves the events in a spool that is there."""
    bus = Producer(away.name, namespace=namespace, spool=root)
    bus.publish(PaintingMade(number=0))
    soon(lambda: warnings())
    shutil.rmtree(root)
    bus.publish(PaintingMade(number=1))
    soon(lambda: bus.statistics().spool_errors)
    soon(lambda: "somebody removed files of the spool" in warnings()[-1])
    shutil.rmtree(root)
    bus.publish(PaintingMade(number=2))
    assert bus.close(timeout=0.01) is False and bus.statistics().dropped == 0
    assert "next Producer" in warnings()[-1] and "and lost" not in warnings()[-1]
    away.set_connected(True)
    with Producer(away.name, namespace=namespace, spool=root) as bus:
        assert bus.flush(timeout=10) is True
    assert numbers(namespace) == [0, 1, 2] and list(root.iterdir()) == []


def unlinked(root: Path) -> None:
    root.parent.symlink_to(root.parent.with_name("nowhere"))


@pytest.mark.parametrize("instead", [lambda root: root.parent.touch(), unlinked])
def test_a_producer_whose_spool_cannot_be_made_again(
    away: MemoryServer,
    namespace: str,
    tmp_path: Path,
    soon: Soon,
    warnings: Callable[[], list[str]],
    instead: Callable[[Path], None],
) -> None:
    """Something else stands where its parent was: that the events are in memory only is told with the reason, and at close
    that they are lost; nothing is promised of a next Producer."""
    root = tmp_path / "volume" / "t7"
    bus = Producer(away.name, namespace=namespace, spool=root)
    bus.publish_many(PaintingMade(number=n) for n in range(3))
    soon(lambda: warnings())
    shutil.rmtree(root.parent)
    instead(root)
    soon(lambda: "somebody removed" in warnings()[-1])
    assert "3 events are in memory only now, and lost when" in warnings()[-1] and "cannot be used (" in warnings()[-1]
    assert bus.close(timeout=0.01) is False
    assert f"3 of them are not in {root}, and lost" in warnings()[-1] and "next Producer" not in warnings()[-1]


def test_killed_after_its_spool_was_removed(program: Program) -> None:
    """A program whose spool is removed while no server answers, and that is killed with SIGKILL after the next look: the
    next program sends everything."""
    program.run(
        """
        import shutil
        bus = Producer("redis://127.0.0.1:1", namespace=NAMESPACE, spool=SPOOL)
        bus.publish_many(PaintingMade(number=n) for n in range(1000))
        shutil.rmtree(SPOOL)
        bus.publish_many(PaintingMade(number=n) for n in range(1000, 1500))
        deadline = time.monotonic() + 20
        while not bus.statistics().spool_errors and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        code=-9,
    )
    program.run(
        """
        with producer(spool=SPOOL) as bus:
            assert bus.flush(timeout=20)
            assert bus.statistics().recovered == 1500
        """
    )
    assert program.stored() == list(range(1500))
