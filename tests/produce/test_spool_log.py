"""What the bytes of a spool mean: framing, damage at every byte, and what a log says of itself, all without a process."""

import errno
import os
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seeds import seeds

from canvasbus import ids
from canvasbus.produce import spool, spoolfile, spoolfolder
from canvasbus.produce.spool import (
    EVENT,
    HEADER,
    SPARE_BYTES,
    Header,
    Ledger,
    Record,
    Segment,
    Sending,
    encode_event,
    frame,
    frame_header,
    frame_sending,
    frame_settled,
    frame_spare,
    look,
    read_record,
    records,
    whole,
)
from canvasbus.produce.spoolfile import Damaged, Log, Whose
from canvasbus.produce.spoolfolder import read_folder, set_damaged_aside
from canvasbus.wire.outgoing import Outgoing

WHOSE = Whose("studio", 1, "redis://somewhere", 4096, 1 << 20)


def item(size: int = 20, key: str | None = "k") -> Outgoing:
    return Outgoing(ids.uuid7_bytes(), "painting.made", key, b"x" * size)


def header(settled: int = 0, sending: Sending | None = None) -> bytes:
    return frame_header(
        Header(
            namespace="studio", partition=0, partitions=1, server="redis://somewhere", pid=7, host="atelier",
            created=1.5, settled=settled, sending=sending,
        ),
        settled,
    )  # fmt: skip


def event(number: int, what: Outgoing) -> bytes:
    return frame(EVENT, number, encode_event(what))


# --- framing ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read() -> None:
    """All four kinds of records come back as they were, with the place where each ends."""
    sent, sending = item(), Sending(3, 8, "p-me", {"painting.made": b"5-0"})
    parts = [header(3, sending), event(3, sent), frame_sending(sending), frame_settled(8)]
    found = list(records(b"".join(parts)))
    said = [read_record(record) for record in found]
    assert isinstance(said[0], Header) and (said[0].settled, said[0].sending) == (3, sending)
    assert said[1:] == [sent, sending, 8]
    assert [record.end for record in found] == [sum(map(len, parts[: n + 1])) for n in range(4)]


@settings(deadline=None, database=None)
@given(st.binary(max_size=300))
def test_foreign_bytes_say_nothing(data: bytes) -> None:
    """Bytes that nobody framed are no record, or one whose checksum fits by itself; nothing is raised."""
    assert whole(data) == 0 and look(data) is None


@settings(deadline=None, database=None)
@given(st.binary(max_size=60), st.integers(0, 255), st.integers(0, 2**64 - 1))
def test_a_right_checksum_around_nonsense(payload: bytes, kind: int, number: int) -> None:
    """A record that is whole and yet says nothing that is known ends what is believed of a segment."""
    data = header() + event(0, item())
    record = Record(kind, number, payload, 0)
    if read_record(record) is None or kind == HEADER:
        assert whole(data + frame(kind, number, payload) + event(1, item())) == len(data)


def sample() -> tuple[bytes, list[tuple[int, Outgoing]]]:
    """A segment of six events, of which two are settled, and where each of them ends."""
    data, ends = header(), []
    for number in range(6):
        each = item(number * 3)
        data += event(number, each)
        ends.append((len(data), each))
        if number == 2:
            data += frame_sending(Sending(0, 2, "p-me", {"painting.made": b"0-0"})) + frame_settled(2)
    return data, ends


def test_cut_at_every_byte() -> None:
    """However much is missing from the end, every event before the cut is there."""
    data, ends = sample()
    for cut in range(len(data)):
        found = look(data[:cut])
        kept = sum(end <= cut for end, _ in ends)
        if found is None:
            assert kept == 0 and cut < len(header())
            continue
        assert found.size <= cut and found.last == kept - 1
        assert [read_record(r) for r in records(data[: found.size]) if r.kind == EVENT] == [e for _, e in ends[:kept]]


def test_flipped_at_every_byte() -> None:
    """Whichever byte is another one, every event before its record is there, and none behind it is believed."""
    data, ends = sample()
    starts = [0, *(record.end for record in records(data))]
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 + at % 255
        found = look(bytes(broken))
        hit = max(start for start in starts if start <= at)
        assert (found.size if found else 0) == hit
        assert (found.last if found else -1) == sum(end <= hit for end, _ in ends) - 1


def test_a_length_beyond_the_file_is_no_record() -> None:
    """A damaged length does not make anybody read, or reserve, four gigabytes."""
    good = event(0, item())
    head = spool._head(2**32 - 1, EVENT, 0)
    assert list(records(spool._crc(zlib.crc32(head)) + head + good)) == []


def test_a_later_version_is_left_alone() -> None:
    """A segment whose header says another version is not read as if it were ours."""
    data = frame_header(
        Header(
            version=2, namespace="studio", partition=0, partitions=1, server="", pid=1, host="", created=0.0, settled=0
        ),
        0,
    )
    assert look(data) is None


# --- what a log says of itself ----------------------------------------------------------------------------------------


def test_the_newest_segment_knows_best() -> None:
    """What is settled stands in the newest segment; an older one is counted by it."""
    old = look(header() + b"".join(event(n, item()) for n in range(5)))
    assert old is not None and (old.unsettled, old.settled, old.last) == (5, 0, 4)
    counted = look(header() + b"".join(event(n, item()) for n in range(5)), settled=3)
    assert counted is not None and counted.unsettled == 2


def test_a_batch_that_is_settled_is_on_its_way_no_more() -> None:
    """Only the last note before a batch counts, and only until the batch is settled."""
    first, second = (Sending(n, n + 1, "p-me", {}) for n in (0, 1))
    data = header() + event(0, item()) + event(1, item()) + frame_sending(first)
    assert look(data).sending == first  # type: ignore[union-attr]
    assert look(data + frame_settled(1)).sending is None  # type: ignore[union-attr]
    assert look(data + frame_settled(1) + frame_sending(second)).sending == second  # type: ignore[union-attr]


def test_notes_in_the_spare_room() -> None:
    """They lie before older ones, and count; what is added behind them later counts, too. Their size is always the same."""
    first, second, third = (Sending(n, n + 1, "p-me", {"painting.made": b"5-0"}) for n in (0, 1, 2))
    events = b"".join(event(n, item()) for n in range(3))

    def found(settled: int, sending: Sending | None, more: bytes = b"") -> tuple[int, Sending | None]:
        spare = frame_spare(settled, sending)
        assert len(spare) == SPARE_BYTES
        seen = look(header() + spare + events + frame_sending(first) + more)
        assert seen is not None and seen.spare == len(header())
        return seen.settled, seen.sending

    assert found(0, None) == (0, first)
    assert found(1, None) == (1, None)
    assert found(1, second) == (1, second) == found(1, second, frame_settled(1))
    assert found(1, second, frame_settled(2)) == (2, None)
    assert found(1, second, frame_settled(2) + frame_sending(third)) == (2, third)
    long = Sending(1, 2, "p-me", {"painting.made" * 100: b"5-0"})
    assert found(1, long) == (1, None)
    assert look(header() + events).spare == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", seeds(20, "spool ledger"))
def test_the_ledger_against_a_list(seed: int) -> None:
    """Segments come and go: the ledger knows which may go, what is open and where a number stands, as a list does."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    ledger = Ledger()
    disk: list[list[int]] = []  # the numbers of the events in each segment
    serials: list[int] = []
    number = settled = 0
    for _ in range(300):
        action = rng.choice(["begin", "write", "write", "skip", "settle"])
        if action == "begin" or not disk:
            disk.append([])
            serials.append(serials[-1] + 1 if serials else 1)
            ledger.began(Segment(serials[-1], number, 100))
        elif action == "write":
            disk[-1].append(number)
            ledger.segments[-1].last = number
            ledger.wrote(10, 1)
            number += 1
        elif action == "skip":
            number += 1
        elif settled < number:
            reached = rng.randint(settled + 1, number)
            fate = sum(settled <= n < reached for numbers in disk for n in numbers)
            gone = ledger.settle(reached, fate)
            settled = reached
            keep = [at for at, numbers in enumerate(disk) if at == len(disk) - 1 or any(n >= settled for n in numbers)]
            assert {s.serial for s in gone} == {serials[at] for at in range(len(disk)) if at not in keep}
            disk, serials = [disk[at] for at in keep], [serials[at] for at in keep]
        open_ones = [n for numbers in disk for n in numbers if n >= settled]
        assert ledger.events == len(open_ones) and ledger.done() is not bool(open_ones)
        assert ledger.bytes == sum(100 + 10 * len(numbers) for numbers in disk)
        for wanted in range(settled, number + 1):
            holder = next((at for at, numbers in enumerate(disk) if any(n >= wanted for n in numbers)), None)
            found = ledger.where(wanted)
            assert (found.serial if found else None) == (serials[holder] if holder is not None else None)


# --- a log in files ---------------------------------------------------------------------------------------------------


class Written:
    """A log in a folder and what was put into it."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "000001-aa"
        self.folder.mkdir(parents=True)
        self.log = Log(self.folder, 0, WHOSE)
        self.items: list[Outgoing] = []

    def put(self, count: int, size: int = 20) -> None:
        for _ in range(count):
            number = len(self.items)
            self.items.append(item(size))
            self.log.append(event(number, self.items[-1]), number, number, 1)

    def settle(self, number: int) -> None:
        for path in self.log.settle(number, number - self.log.ledger.settled):
            path.unlink()

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())


def left(folder: Path) -> list[Outgoing]:
    """What somebody who finds the folder has still to send."""
    (found,) = read_folder(folder)
    log = Log(folder, 0, WHOSE, found.ledger)
    got: list[Outgoing] = []
    while log.taken < found.ledger.next:
        items, numbers = log.read(log.taken, found.ledger.next, 7, 1 << 20)
        log.taken = numbers[-1] + 1 if numbers else found.ledger.next
        got += items
    return got


def test_segments_go_when_they_are_settled(tmp_path: Path) -> None:
    """A log of many segments: what is found is what is not settled, and of what is settled hardly a file is left."""
    written = Written(tmp_path)
    written.put(300)
    assert len(written.files()) > 5 and left(written.folder) == written.items
    for settled in (1, 100, 299):
        written.settle(settled)
        assert left(written.folder) == written.items[settled:]
    written.settle(300)
    (found,) = read_folder(written.folder)
    assert found.ledger.done() and len(written.files()) == 1


def test_a_settled_log_begins_anew(tmp_path: Path) -> None:
    """With everything settled, a log that has grown is replaced by an empty segment that knows how far it had got."""
    whose = WHOSE._replace(segment_bytes=8 << 20)
    log = Log(tmp_path, 0, whose)
    for number in range(200):
        log.append(event(number, item(10_000)), number, number, 1)
    assert log.ledger.bytes > 2_000_000
    for path in log.settle(200, 200):
        path.unlink()
    assert log.ledger.bytes < 1000 and len(list(tmp_path.iterdir())) == 1
    (found,) = read_folder(tmp_path)
    assert (found.ledger.settled, found.ledger.next, found.ledger.events) == (200, 200, 0)


def test_reading_beside_writing(tmp_path: Path) -> None:
    """What is read in pieces, from the middle and while more is written, is what was written, each once."""
    written = Written(tmp_path)
    written.put(100)
    got, at = written.log.read(40, 100, 13, 1 << 20)
    assert got == written.items[40:53] and at == list(range(40, 53))
    written.put(50, 3000)
    while at[-1] < 149:
        items, at = written.log.read(at[-1] + 1, 150, 20, 4000)
        got += items
    assert got == written.items[40:]


def test_an_event_longer_than_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large event is read whole."""
    monkeypatch.setattr(spoolfile, "READ_BYTES", 100)
    written = Written(tmp_path)
    written.put(3, 5000)
    assert left(written.folder) == written.items


def test_numbers_without_a_record(tmp_path: Path) -> None:
    """Events that could not be written down leave gaps, at the end as well; reading steps over them."""
    log, items = Log(tmp_path, 0, WHOSE), [item() for _ in range(3)]
    for number, each in zip((0, 5, 6), items, strict=True):
        log.append(event(number, each), number, number, 1)
    log.ledger.segments[-1].last = 9  # a write that failed
    for start, until, expected in ((0, 10, [0, 5, 6]), (0, 6, [0, 5]), (7, 10, []), (1, 5, [])):
        again = Log(tmp_path, 0, WHOSE, log.ledger)
        assert again.read(start, until, 100, 1 << 20)[1] == expected
    assert log.read(0, 10, 100, 1 << 20)[0] == items


@pytest.mark.parametrize("seed", seeds(4, "spool damage"))
@pytest.mark.parametrize("damage", ["cut", "flipped", "zeroed"])
def test_a_damaged_segment_costs_its_rest_alone(tmp_path: Path, damage: str, seed: int) -> None:
    """One segment in the middle is cut or flipped somewhere, or a page of it is zeroed: what is before it, its intact beginning and all later
    segments are found; the rest is set aside, byte for byte, and the folder is sound again."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    written = Written(tmp_path)
    written.put(200)
    victim = rng.choice(written.files()[:-1])
    data = victim.read_bytes()
    at = rng.randrange(len(data))
    if damage == "zeroed":
        at -= at % 256
        broken = data[:at] + bytes(len(data[at : at + 256])) + data[at + 256 :]
    else:
        broken = data[:at] if damage == "cut" else data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
    victim.write_bytes(broken)
    intact = whole(broken)
    numbers = {r.number for r in records(data) if r.kind == EVENT and r.end > intact}
    expected = [each for number, each in enumerate(written.items) if number not in numbers]
    (found,) = read_folder(written.folder)
    assert found.damaged == ([(victim, intact, len(broken))] if intact < len(broken) else [])
    assert set_damaged_aside(found) == len(broken) - intact
    assert left(written.folder) == expected
    assert read_folder(written.folder)[0].damaged == []
    aside = [path.read_bytes() for path in spoolfolder.aside(tmp_path)]
    assert aside == ([broken[intact:]] if intact < len(broken) else [])


def test_damage_that_is_met_while_reading(tmp_path: Path) -> None:
    """A segment that breaks under a living process: what is before is read, the rest set aside, and later segments and
    new events go on."""
    written = Written(tmp_path)
    written.put(60)
    log = written.log
    first = written.files()[0]
    data = first.read_bytes()
    first.write_bytes(data[:-1])
    got, at = log.read(0, 60, 100, 1 << 20)
    with pytest.raises(Damaged) as met:
        log.read(at[-1] + 1, 60, 100, 1 << 20)
    log.begin_anew(met.value)
    lost = max(r.number for r in records(data) if r.kind == EVENT)
    while at[-1] < 59:
        items, at = log.read(at[-1] + 1, 60, 100, 1 << 20)
        got += items
    assert got == written.items[:lost] + written.items[lost + 1 :]
    last = written.files()[-1]
    last.write_bytes(last.read_bytes()[:-3])
    written.put(1)
    with pytest.raises(Damaged) as met:
        log.read(59, 61, 100, 1 << 20)
    log.begin_anew(met.value)
    written.put(1)
    assert log.read(60, 62, 100, 1 << 20)[0] == [written.items[61]]
    assert len(spoolfolder.aside(tmp_path)) == 2


def test_half_a_record_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk takes only half a record, the half is cut off again and the next record stands where it should."""
    written = Written(tmp_path)
    written.put(2)
    with monkeypatch.context() as patch:
        patch.setattr(spoolfile, "_raw_write", lambda fd, data, size: real(fd, data[: size // 2]))
        real = os.write
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            written.log.append(event(2, item()), 2, 2, 1)
    written.put(2)
    assert left(written.folder) == written.items


def full(fd: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_write_that_is_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When only half a record is taken at first, the rest follows."""
    written = Written(tmp_path)
    monkeypatch.setattr(spoolfile, "_raw_write", lambda fd, data, size: os.write(fd, data[: size // 2]))
    written.put(3)
    assert left(written.folder) == written.items


def test_an_error_of_the_disk_says_what_it_is(tmp_path: Path) -> None:
    """The way around Python's own write tells errors as Python does."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        log = Log(tmp_path, 0, WHOSE)
        log.append(event(0, item()), 0, 0, 1)
        os.close(log._fd)
        log.append(event(1, item()), 1, 1, 1)
