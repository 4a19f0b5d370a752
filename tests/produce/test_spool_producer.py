"""A Producer with a spool: outages, what is sent by the next, folders of others, options."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from produce.spooling import die, drained, item, spooled
from servers import ServerProcess
from studio import Eyes, PaintingMade, SculptureMade, numbers

from canvasbus import BufferFull, ConfigError, EncodeError, Producer, Unavailable
from canvasbus.produce import spoolfile, spoolfolder
from canvasbus.transport.memory import MemoryServer

Soon = Callable[..., Any]


def test_an_outage_longer_than_memory(away: MemoryServer, namespace: str, tmp_path: Path) -> None:
    """A server that is away for thousands of events with a buffer for a hundred: nothing is lost, the order is kept."""
    with Producer(away.name, namespace=namespace, spool=tmp_path, buffer_bytes=20_000) as bus:
        for n in range(3000):
            bus.publish(PaintingMade(number=n))
        bus.publish_many(PaintingMade(number=n) for n in range(3000, 5000))
        now = bus.statistics()
        assert now.waiting_events == 5000 and now.waiting_bytes <= 20_000 and now.spool_events == 5000
        assert now.spool_bytes > 500_000 and f"{now.spool_events} in the spool" in repr(bus)
        away.set_connected(True)
        assert bus.flush(timeout=20) is True
        assert numbers(namespace) == list(range(5000))
        now = bus.statistics()
        assert (now.stored, now.dropped, now.spool_events) == (5000, 0, 0) and now.spool_bytes < 1100_000
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_at_close_is_sent_by_the_next(away: MemoryServer, namespace: str, tmp_path: Path) -> None:
    """close returns False and leaves events on disk; nobody is told they were lost; the next Producer sends them before
    its own, without anything being published, and flush waits for them."""
    told: list[Any] = []
    bus = Producer(away.name, namespace=namespace, spool=tmp_path, on_delivery=lambda *args: told.append(args))
    ids = bus.publish_many(PaintingMade(number=n) for n in range(10))
    assert bus.close(timeout=0.05) is False and told == []
    now = bus.statistics()
    assert (now.waiting_events, now.dropped) == (10, 0) and "10 waiting, 10 in the spool, closed" in repr(bus)
    with pytest.raises(BufferFull, match="closed"):
        bus.publish(PaintingMade())
    away.set_connected(True)
    with Producer(away.name, namespace=namespace, spool=tmp_path, on_delivery=lambda *args: told.append(args)) as bus:
        assert bus.flush(timeout=10) is True
        assert numbers(namespace) == list(range(10)) and told == [(event_id, None) for event_id in ids]
        bus.publish(PaintingMade(number=10))
        assert bus.flush(timeout=10) is True
        now = bus.statistics()
        assert (now.published, now.recovered, now.stored) == (1, 10, 11) and "10 recovered" in repr(bus)
    assert numbers(namespace) == list(range(11)) and list(tmp_path.iterdir()) == []


def test_what_no_disk_has_is_told_at_close(
    away: MemoryServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of events that could not be written down, and did not reach the server, on_delivery hears at close that they are lost;
    of those on disk it hears from the next Producer."""
    told: dict[UUID, Any] = {}
    bus = Producer(away.name, namespace=namespace, spool=tmp_path, on_delivery=told.__setitem__)
    on_disk = bus.publish(PaintingMade(number=0))

    def broken(fd: int, data: bytes, size: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(spoolfile, "_raw_write", broken)
    lost = [bus.publish(PaintingMade(number=1)), *bus.publish_many([PaintingMade(number=2), PaintingMade(number=3)])]
    monkeypatch.undo()
    assert bus.close(timeout=0.05) is False
    assert {event_id: type(error) for event_id, error in told.items()} == dict.fromkeys(lost, Unavailable)
    assert bus.statistics().dropped + bus.statistics().unknown == 3
    away.set_connected(True)
    with Producer(away.name, namespace=namespace, spool=tmp_path, on_delivery=told.__setitem__) as bus:
        assert bus.flush(timeout=10) is True
    assert numbers(namespace) == [0] and told[on_disk] is None


def test_the_next_one_while_the_last_still_hangs(
    make_server: Callable[..., ServerProcess], namespace: str, tmp_path: Path, soon: Soon
) -> None:
    """A Producer that is closed while the server does not answer has its files locked until that is given up: the next one
    of the process waits for them, since what is in them comes first."""
    server = make_server()
    first = Producer(server.url, namespace=namespace, spool=tmp_path)
    first.publish(PaintingMade(number=0))
    assert first.flush(timeout=10)
    server.freeze()
    first.publish_many(PaintingMade(number=number) for number in range(1, 1200))
    soon(lambda: sum(first._buffer._in_hand))
    assert first.close(timeout=0) is False
    with Producer(server.url, namespace=namespace, spool=tmp_path) as bus:
        bus.publish(PaintingMade(number=1200))
        assert bus.flush(timeout=0.1) is False
        soon(lambda: "was closed a moment ago" in str(bus.statistics().last_error))
        server.thaw()
        assert bus.flush(timeout=20) is True
        assert bus.statistics().recovered > 0
    eyes = Eyes(server.url, namespace)
    assert [made.number for made in eyes.events("painting.made")] == list(range(1201))
    eyes.close()


def test_types_partitions_and_delays_survive(away: MemoryServer, namespace: str, tmp_path: Path) -> None:
    """What an event is goes through the spool whole: its type, its partition, its delay, its correlation."""
    options: dict[str, Any] = {"namespace": namespace, "spool": tmp_path, "partitions": 3}
    bus = Producer(away.name, **options)
    for n in range(30):
        bus.publish(PaintingMade(title=f"t{n}", number=n))
        bus.publish(SculptureMade(title=str(n)))
    bus.publish(PaintingMade(number=99), delay=3600)
    bus.close(timeout=0)
    away.set_connected(True)
    with Producer(away.name, **options) as bus:
        assert bus.flush(timeout=10) is True and bus.statistics().stored == 61
    counts, inbox = [], 0
    for partition in range(3):
        eyes = Eyes(away, namespace)
        eyes.keys = type(eyes.keys)(namespace, partition)
        found = [made.number for made in eyes.events("painting.made")]
        assert found == sorted(found)
        counts += found
        inbox += eyes.count("~later")
    assert sorted(counts) == list(range(30)) and inbox == 1


@pytest.mark.parametrize("name", ["²²²²²²", "20240101-results", "202401-02", "٣٣٣٣٣٣-x", "1000000-x"])
def test_folders_of_somebody_else(tmp_path: Path, name: str) -> None:
    """A spool may lie in a folder in which there are others: they are neither read nor counted nor removed."""
    (tmp_path / name).mkdir()
    b = spooled(tmp_path)
    b.add(item(), 0)
    assert len(drained(b)) == 1
    assert sorted(path.name[:7] for path in tmp_path.iterdir()) == sorted([name[:7], "000001-"])
    b.leave()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["7-00000001.log", "²-00000001.log", "0-²²².log", "0-1-1.log", "0-99999999999.log"])
def test_files_that_somebody_renamed(tmp_path: Path, name: str) -> None:
    """What cannot be said to which partition it belongs is not sent anywhere and not lost; the rest is sent."""
    first, second = spooled(tmp_path), spooled(tmp_path)
    first.add(item(), 0)
    second.add(last := item(), 0)
    die(first)
    die(second)
    (log,) = next(path for path in sorted(tmp_path.iterdir())).glob("*.log")
    data = log.rename(log.with_name(name)).read_bytes()
    b = spooled(tmp_path)
    assert drained(b) == [last]
    b.leave()
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]
    assert kept == [data]


def test_a_program_that_changes_its_folder(
    away: MemoryServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spool that is named from the working directory stays where it was when the program goes elsewhere."""
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"namespace": namespace, "spool": "spool", "buffer_bytes": 20_000, "spool_bytes": 1 << 20}
    with Producer(away.name, **options) as bus:
        bus.publish(PaintingMade(number=0))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        bus.publish_many(PaintingMade(number=n) for n in range(1, 3000))
        away.set_connected(True)
        assert bus.flush(timeout=20) is True and bus.statistics().spool_errors == 0
    assert numbers(namespace) == list(range(3000))
    assert [list(path.iterdir()) for path in (tmp_path / "spool", tmp_path / "elsewhere")] == [[], []]


def test_numbers_from_eight_digits_on(tmp_path: Path) -> None:
    """The order of folders is that of their numbers, however many have been made."""
    items = [item(), item()]
    for number, each in zip((999_999, 1_000_000), items, strict=True):
        (tmp_path / f"{number - 1:06}-{0:032x}").mkdir(exist_ok=True)
        b = spooled(tmp_path)
        b.add(each, 0)
        die(b)
    assert drained(spooled(tmp_path)) == items


def test_other_partitions_wait_for_their_own(memory: MemoryServer, namespace: str, tmp_path: Path) -> None:
    """A spool that was written for another number of partitions is not sent to wrong ones; it says so."""
    memory.set_connected(False)
    bus = Producer(memory.name, namespace=namespace, spool=tmp_path, partitions=2)
    bus.publish(PaintingMade())
    bus.close(timeout=0)
    memory.set_connected(True)
    with Producer(memory.name, namespace=namespace, spool=tmp_path) as bus:
        assert bus.flush(timeout=10) is True
        assert bus.statistics().recovered == 0 and "partitions=2" in str(bus.statistics().last_error)
    assert len(spoolfolder.folders(tmp_path)) == 1


def test_a_process_without_free_descriptors(
    away: MemoryServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk cannot be read for a while, for want of descriptors: nothing is given up, it is read later."""
    real, failed = spoolfile._pread, threading.Event()

    def exhausted(path: Path, offset: int, size: int) -> bytes:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, offset, size)

    monkeypatch.setattr(spoolfile, "_pread", exhausted)
    with Producer(away.name, namespace=namespace, spool=tmp_path, buffer_bytes=20_000) as bus:
        for n in range(500):
            bus.publish(PaintingMade(number=n))
        away.set_connected(True)
        assert bus.flush(timeout=10) is True
        now = bus.statistics()
        assert failed.is_set() and now.spool_errors == 1 and "Too many open files" in str(now.last_error)
    assert numbers(namespace) == list(range(500))


def test_a_full_spool_is_told_once_a_minute(
    away: MemoryServer, namespace: str, tmp_path: Path, soon: Soon, warnings: Callable[[], list[str]]
) -> None:
    """Thousands of events over the limit: one warning, and their number at the end; on_delivery told, flush False."""
    told: list[Any] = []
    bus = Producer(
        away.name, namespace=namespace, spool=tmp_path, spool_bytes=20_000,
        on_delivery=lambda _, error: told.append(error),
    )  # fmt: skip
    for _ in range(2000):
        bus.publish(PaintingMade())
    now = bus.statistics()
    assert now.dropped > 1800 and now.dropped + now.waiting_events == 2000
    away.set_connected(True)
    assert bus.flush(timeout=10) is False
    assert bus.flush(timeout=10) is True
    assert len(warnings()) == 1
    bus.close()
    assert f"{now.dropped:,} dropped in all" in warnings()[1]
    errors = [error for error in told if error is not None]
    assert len(errors) == now.dropped and "in the spool" in str(errors[0])


def test_what_no_empty_spool_would_take_is_refused(tmp_path: Path) -> None:
    """An event over `spool_bytes` is told to whoever publishes it, instead of dropped later."""
    with Producer("redis://127.0.0.1:1", spool=tmp_path, spool_bytes=2048, flush_timeout=0) as bus:
        with pytest.raises(EncodeError, match=r"over the limit of 2,048 \(spool_bytes\)"):
            bus.publish(PaintingMade(title="x" * 1000))


def test_the_smallest_spool_of_many_partitions(memory: MemoryServer, namespace: str, tmp_path: Path) -> None:
    """What each of them keeps there when all is settled leaves room for events."""
    with Producer(memory.name, namespace=namespace, partitions=64, spool=tmp_path, spool_bytes=64 * 2048) as bus:
        for number in range(300):
            bus.publish(PaintingMade(title=str(number)))
            assert number % 20 or bus.flush(timeout=10)
        assert bus.flush(timeout=10) and bus.statistics().dropped == 0


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"when_full": "spool"}, "without spool=FOLDER use"),
        ({"spool": "folder", "when_full": "drop_oldest"}, "with a spool"),
        ({"spool": "folder", "spool_bytes": 0}, "spool_bytes=0: use a number from 1"),
        ({"spool": "folder", "spool_bytes": 2047}, "use 2,048 at least"),
        ({"spool": "folder", "spool_bytes": 40_000, "partitions": 64}, "use 131,072 at least, for each partition"),
        ({"spool": "file"}, "is no folder"),
        ({"spool": "file/below"}, "is no folder"),
        ({"spool": "a\0b"}, "is no path"),
        ({"spool": ""}, "the path of a folder is wanted"),
    ],
)
def test_options_that_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, part: str) -> None:
    """They are a ConfigError where the Producer is made."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=part):
        Producer("redis://127.0.0.1:1", **options)


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool that this user may not write to is a ConfigError that names it."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match=f"{tmp_path}.* cannot be written to by this user"):
        Producer("redis://127.0.0.1:1", spool=tmp_path)


def test_switched_off_there_is_no_spool(tmp_path: Path) -> None:
    """off:// makes no folder."""
    with Producer("off://", spool=tmp_path / "spool") as bus:
        bus.publish(PaintingMade())
    assert not (tmp_path / "spool").exists()


def test_no_secret_is_written(tmp_path: Path) -> None:
    """The URL's password is in no file of the spool, and files are for their user alone."""
    bus = Producer("redis://ada:s3cret@127.0.0.1:1", spool=tmp_path / "spool")
    bus.publish(PaintingMade())
    bus.close(timeout=0)
    files = [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    assert files and not any(b"s3cret" in path.read_bytes() for path in files)
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "spool", *(tmp_path / "spool").rglob("*"))} == {0}
