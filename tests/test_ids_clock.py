"""Ids and time: unique, of their version, and replaceable as a whole."""

import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from waiting import TurnedClock

from canvasbus import clock, ids


@pytest.fixture(autouse=True)
def own_ids() -> Iterator[None]:
    """Each test begins and ends with fresh ids: a prefix from another test's clock would stay in use until caught up."""
    ids.reseed()
    yield
    ids.reseed()


def many(count: int) -> list[bytes]:
    """New ids, drawn together."""
    prefix, rests = ids.uuid7_parts(count)
    return [prefix + rest for (rest,) in rests]


def milliseconds(raw: bytes) -> int:
    return int.from_bytes(raw[:6], "big")


def test_uuid7_is_of_rfc_9562() -> None:
    """Version 7, RFC variant, and the first 48 bits are the clock's milliseconds."""
    with clock.using(TurnedClock(1_700_000_000.123)):
        for made in (ids.uuid7(), ids.from_bytes(many(3)[2])):
            assert made.version == 7
            assert made.variant == uuid.RFC_4122
            assert milliseconds(made.bytes) == 1_700_000_000_123
            assert uuid.UUID(str(made)) == made and hash(uuid.UUID(bytes=made.bytes)) == hash(made)


def test_the_time_part_never_goes_back() -> None:
    """When the wall clock jumps back the old prefix stays in use until it has caught up; ids stay unique meanwhile."""
    with clock.using(TurnedClock(1000.0)) as turned:
        seen: list[bytes] = []
        for step in (0.001, 0.0, -0.5, 0.2, 0.3, 0.001, 1.0):
            turned.turn(step)  # type: ignore[attr-defined]
            seen += [*many(50), ids.uuid7_bytes()]
    assert [milliseconds(raw) for raw in seen] == sorted(milliseconds(raw) for raw in seen)
    assert milliseconds(seen[-1]) == 1_001_002
    assert len(set(seen)) == len(seen)


def test_ids_are_unique_across_threads() -> None:
    """Four threads that draw at the same time, one by one and in batches, never meet."""
    found: list[list[bytes]] = [[] for _ in range(4)]
    barrier = threading.Barrier(4)
    interval = sys.getswitchinterval()

    def draw(mine: list[bytes]) -> None:
        barrier.wait()
        for _ in range(200):
            mine += many(10)
            mine += [ids.uuid7_bytes() for _ in range(10)]

    threads = [threading.Thread(target=draw, args=(mine,)) for mine in found]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    everything = [raw for mine in found for raw in mine]
    assert len(everything) == 16_000 == len(set(everything))
    assert {len(raw) for raw in everything} == {16}


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_draws_from_a_new_seed() -> None:
    """Parent and child, which begin with the same state, give no id twice, within the same millisecond too."""
    with clock.using(TurnedClock(2_000_000_000.0)):
        ids.uuid7_bytes()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, b"".join(many(100)))
                os._exit(0)
            finally:
                os._exit(1)
        os.close(write)
        mine = many(100)
        data = b""
        while len(data) < 1600 and (more := os.read(read, 4096)):
            data += more
        os.close(read)
        assert os.waitpid(child, 0)[1] == 0
    assert len(data) == 1600
    theirs = {data[at : at + 16] for at in range(0, 1600, 16)}
    assert not theirs & set(mine)


def test_a_seed_replays_ids() -> None:
    """Simulations get the same ids from the same seed and clock."""
    runs = []
    for seed in (7, 7, 8):
        with clock.using(TurnedClock(1000.0)):
            ids.reseed(seed)
            runs.append([ids.uuid7_bytes(), *many(5)])
    assert runs[0] == runs[1] != runs[2]


def test_derived_ids_are_uuid5() -> None:
    """The hand-made uuid5 is the standard library's, and each of its four parts matters."""
    parent = uuid.UUID("01a208bd-551c-77ec-ac2c-a3770ee88add")
    for group, handler, index in (("g", "h", 0), ("auto-retrain", "on_drift", 12), ("ä", "", 10**6)):
        assert ids.derived(parent, group, handler, index) == uuid.uuid5(parent, f"{group}\n{handler}\n{index}")
    base = (parent, "g", "h", 0)
    changed = [(uuid.UUID(int=1), "g", "h", 0), (parent, "x", "h", 0), (parent, "g", "x", 0), (parent, "g", "h", 1)]
    assert len({ids.derived(*each) for each in (base, *changed)}) == 5


def test_time_has_one_source() -> None:
    """time, monotonic and now all follow a clock that is put in force, and the system's again afterwards."""
    with clock.using(TurnedClock(1_700_000_000.5)) as turned:
        assert clock.current() is turned
        assert (clock.time(), clock.monotonic()) == (1_700_000_000.5, 1_700_000_000.5)
        assert clock.now() == datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC)
        with pytest.raises(KeyError), clock.using(TurnedClock(5.0)):
            assert clock.time() == 5.0
            raise KeyError
        assert clock.current() is turned
    assert abs(clock.time() - time.time()) < 5
    assert clock.monotonic() <= clock.monotonic()
