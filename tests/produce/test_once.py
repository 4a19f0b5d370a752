"""Events that are stored once: the sender by itself, over servers that lose what the test says (see `driver`)."""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from produce.driver import Driver, Fault, made
from seeds import seeds
from servers import ServerProcess, binaries
from studio import PaintingMade, SculptureMade
from waiting import TurnedClock

from canvasbus import ContractError, Refused, StreamFull, Unavailable, clock
from canvasbus.produce import fenced, lost
from canvasbus.produce.fenced import Result
from canvasbus.produce.once import Dedupe, PartitionSender
from canvasbus.transport.resp import Packet, Pause, ReplyError
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import Keys
from canvasbus.wire.outgoing import Outgoing
from canvasbus.wire.retention import Full

SCRIPT = b"EVAL"
"""What only the packet of a marked run contains."""
DAY_MS = 24 * 3600 * 1000


Marking = Callable[..., Driver]
"""marking(url, namespace, options of PartitionSender)"""


@pytest.fixture
def marking(drivers: Callable[[str, str], Driver]) -> Marking:
    """One more Driver, whose sender leaves marks."""

    def make(url: str, namespace: str, **options: Any) -> Driver:
        driver = drivers(url, namespace)
        driver.sender = PartitionSender(driver.keys, **options)
        return driver

    return make


@pytest.fixture
def driver(marking: Marking, any_url: str, namespace: str) -> Driver:
    return marking(any_url, namespace)


def keyed(driver: Driver, *numbers: int, delay: float | None = None) -> list[Outgoing]:
    """Paintings whose number is their key."""
    return [driver.codec.encode_for(PaintingMade(number=n), None, delay, dedupe_key=str(n)) for n in numbers]


def rows(driver: Driver, event_type: str = "painting.made") -> list[bytes]:
    return [row[0] for row in driver.eyes.call("XRANGE", driver.eyes.stream(event_type), "-", "+")]


def mark(driver: Driver, item: Outgoing) -> Any:
    return driver.eyes.call("GET", driver.keys.once(item.raw_id.hex()))


# --- what it does -----------------------------------------------------------------------------------------------------


def test_what_a_dead_process_stored_is_not_refused(marking: Marking, any_url: str, namespace: str) -> None:
    """It was killed before it heard that its run is stored, and by now the stream takes no more: whoever adopts the run
    asks for its marks, and tells that it is there."""
    options: dict[str, Any] = {"dedupe": Dedupe(always=True)}
    dead, heir = marking(any_url, namespace, **options), marking(any_url, namespace, **options)
    run = dead.encoded(*made(1, 2))
    stored = dead.drive(run)
    full = {"painting.made": Full(when_full="reject", group="framers", length=2)}
    heir.eyes.call("SET", heir.keys.full, msgspec.json.encode(full))
    assert isinstance(heir.send(SculptureMade(title="other"))[0], bytes)  # now it has heard of it
    assert isinstance(heir.send(*made(3))[0], StreamFull)
    heir.sender.suspect(run, {"painting.made": b"0-0"}, by_marks=True)
    assert heir.drive(run) == stored and heir.sender.statistics.found == 2


def test_a_key_is_stored_once(driver: Driver) -> None:
    """The second time nothing is stored, also inside one batch; all get the entry id of the first, which its mark
    holds. A batch costs one packet, the first one two more: where the stream ends, and to load the script."""
    driver.eyes.call("SCRIPT", "FLUSH")  # other tests use this server, too
    first = driver.drive(keyed(driver, 1, 2))
    assert driver.packets == 3 and driver.numbers() == [1, 2] and rows(driver) == first
    assert driver.drive(keyed(driver, 3, 2, 3, 1)) == [rows(driver)[2], first[1], rows(driver)[2], first[0]]
    assert driver.packets == 4 and driver.numbers() == [1, 2, 3]
    assert [mark(driver, item) for item in keyed(driver, 1, 2)] == first
    now = driver.sender.statistics
    assert (now.events, now.duplicates, now.batches, now.found) == (6, 3, 2, 0)
    assert driver.eyes.call("SMEMBERS", driver.keys.topics) == [b"painting.made"]


def test_the_key_makes_the_id(driver: Driver) -> None:
    """The same type and key is the same id in every process; another type with the key is another event."""
    (one,), (again,) = keyed(driver, 1), keyed(driver, 1)
    other = driver.codec.encode_for(SculptureMade(), None, dedupe_key="1")
    assert one.id == again.id != other.id and one.id.version == 5
    assert str(one.id) == "fc53c775-5077-545f-957f-97197e5a1165"
    results = driver.drive([one, other])
    assert [*rows(driver), *rows(driver, "sculpture.made")] == results


@pytest.mark.parametrize("key", ["", None, 7, b"x"])
def test_what_is_no_key(driver: Driver, key: Any) -> None:
    """A key is a text with something in it. (None: there is none.)"""
    if key is None:
        assert not driver.codec.encode_for(PaintingMade(), None, dedupe_key=key).once
        return
    with pytest.raises(ContractError, match=r"publish painting.made: dedupe_key=.*'run-7:epoch-3'"):
        driver.codec.encode_for(PaintingMade(), None, dedupe_key=key)


@pytest.mark.parametrize("key", ["é\n{x}:*", "\ud800", "k" * 100_000])
def test_any_text_is_a_key(driver: Driver, key: str) -> None:
    """Whatever stands in it: the key itself does not go to the server."""
    for _ in range(2):
        driver.drive([driver.codec.encode_for(PaintingMade(), None, dedupe_key=key)])
    assert len(rows(driver)) == 1


def test_runs(driver: Driver) -> None:
    """A batch of both kinds is stored in the order of publishing; what bears no mark goes by MULTI as ever."""
    batch = [*driver.encoded(*made(1, 2)), *keyed(driver, 3, 4), *driver.encoded(*made(5)), *keyed(driver, 3)]
    assert isinstance(driver.sender, PartitionSender)
    runs = driver.sender.runs(batch)
    assert [len(run) for run in runs] == [2, 2, 1, 1]
    results = [result for run in runs for result in driver.drive(run)]
    assert driver.numbers() == [1, 2, 3, 4, 5] and results == [*rows(driver), rows(driver)[2]]
    plain = driver.encoded(*made(6, 7))
    assert driver.sender.runs(plain) == [plain] and driver.sender.runs(plain)[0] is plain
    everything = PartitionSender(driver.keys, dedupe=Dedupe(always=True))
    assert everything.runs(batch) == [batch]


def test_every_event_by_its_id(driver: Driver) -> None:
    """dedupe=True: whatever has an id that was stored within the window is not stored again."""
    driver.sender = PartitionSender(driver.keys, dedupe=Dedupe(always=True))
    batch = driver.encoded(*made(1, 2))
    first = driver.drive(batch)
    assert driver.drive([*driver.encoded(*made(3)), *batch])[1:] == first and driver.numbers() == [1, 2, 3]


def test_for_later(driver: Driver) -> None:
    """A delayed event is stored once in the inbox; published again, delayed or not, it is what it was."""
    (later,) = driver.drive(keyed(driver, 1, delay=60))
    (inbox,) = driver.eyes.call("XRANGE", driver.keys.stream("~later"), "-", "+")
    assert later == b"~" + inbox[0]
    assert driver.drive(keyed(driver, 1, delay=5)) == [later] == driver.drive(keyed(driver, 1))
    assert driver.eyes.call("EXISTS", driver.eyes.stream()) == 0 == driver.eyes.call("EXISTS", driver.keys.topics)
    assert len(driver.eyes.call("XRANGE", driver.keys.stream("~later"), "-", "+")) == 1


# --- the window -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1.0, 24 * 3600.0])
def test_the_window_ends(marking: Marking, namespace: str, window: float) -> None:
    """A moment before its end a key is known, and being published again lengthens nothing; after it the event is stored
    anew, and known again."""
    with clock.using(TurnedClock()) as time:
        driver = marking(f"memory://{namespace}", namespace, dedupe=Dedupe(window=window))
        for turn, count in ((0, 1), (window / 2, 1), (window / 2 - 0.01, 1), (0.02, 2), (window - 0.01, 2), (0.02, 3)):
            time.turn(turn)  # type: ignore[attr-defined]
            driver.drive(keyed(driver, 1))
            assert len(rows(driver)) == count


def test_the_mark_has_the_window_as_its_time_to_live(driver: Driver) -> None:
    """On every server; a double does not touch it."""
    (item,) = keyed(driver, 1)
    name = driver.keys.once(item.raw_id.hex())
    driver.drive([item])
    assert DAY_MS - 60_000 < driver.eyes.call("PTTL", name) <= DAY_MS
    driver.eyes.call("PEXPIRE", name, 5_000_000)
    driver.drive([item])
    assert driver.eyes.call("PTTL", name) <= 5_000_000


def forget(driver: Driver, *items: Outgoing) -> None:
    """Their marks have expired."""
    for item in items:
        assert driver.eyes.call("DEL", driver.keys.once(item.raw_id.hex())) == 1


@pytest.mark.parametrize("delay", [None, 60.0])
def test_a_lost_answer_and_an_outage_longer_than_the_window(driver: Driver, delay: float | None) -> None:
    """What was stored before it is found by its place, bears its mark again, and is stored once; what was not is now."""
    with clock.using(TurnedClock()) as time:
        driver.drive(keyed(driver, 0, delay=delay))
        batch = keyed(driver, 1, 2, delay=delay)

        def still_away(*expired: Outgoing) -> None:
            forget(driver, *expired)
            time.turn(0.6 * DAY_MS / 1000)  # type: ignore[attr-defined]
            raise Unavailable("still away")

        driver.fault(SCRIPT, "lost reply")
        driver.fault(SCRIPT, lambda: still_away(*batch))
        driver.fault(b"", "lost reply")
        results = [*driver.drive(batch)]
        lost = keyed(driver, 3, delay=delay)
        driver.fault(SCRIPT, "lost request")
        driver.fault(SCRIPT, still_away)
        results += driver.drive(lost)
        stream = "~later" if delay else "painting.made"
        there = [row[0] for row in driver.eyes.call("XRANGE", driver.keys.stream(stream), "-", "+")]
        assert results == [b"~" * bool(delay) + entry_id for entry_id in there[1:]]
        assert [mark(driver, item) for item in [*batch, *lost]] == results
    assert (driver.sender.statistics.found, driver.sender.statistics.lost) == (2, 0)


def test_an_outage_longer_than_the_window_among_many_others(
    marking: Marking, any_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others publish meanwhile, more than is looked through after a lost answer alone, hides nothing."""
    monkeypatch.setattr(lost, "SCAN_PAGE", 3)
    monkeypatch.setattr(fenced, "SCAN_LIMIT", 6)
    driver = marking(any_url, namespace)
    with clock.using(TurnedClock()) as time:
        driver.drive(keyed(driver, 0))
        batch = keyed(driver, 1)
        for _ in range(10):
            driver.eyes.put(b"foreign")

        def still_away() -> None:
            forget(driver, *batch)
            time.turn(2 * DAY_MS / 1000)  # type: ignore[attr-defined]
            raise Unavailable("still away")

        driver.fault(SCRIPT, "lost reply")
        driver.fault(SCRIPT, still_away)
        (entry_id,) = driver.drive(batch)
    assert rows(driver)[-1] == entry_id and len(rows(driver)) == 12


def test_what_somebody_else_stored_a_window_ago_is_not_ours(driver: Driver) -> None:
    """It lies behind the last that the sender knows of a stream in which it has published nothing for long, but before what
    it sends now: after an outage that is not taken for its own."""
    with clock.using(TurnedClock()) as time:
        driver.drive(keyed(driver, 0))
        time.turn(1.5 * DAY_MS / 1000)  # type: ignore[attr-defined]
        (theirs,) = keyed(driver, 1)
        driver.eyes.put(theirs.data)
        time.turn(1.5 * DAY_MS / 1000)  # type: ignore[attr-defined]

        def still_away() -> None:
            time.turn(0.6 * DAY_MS / 1000)  # type: ignore[attr-defined]
            raise Unavailable("still away")

        driver.fault(SCRIPT, "lost request")
        driver.fault(SCRIPT, still_away)
        assert driver.drive(keyed(driver, 1)) == [rows(driver)[2]]
    assert driver.numbers() == [0, 1, 1]


def test_a_dead_process_whose_marks_have_expired(marking: Marking, any_url: str, namespace: str) -> None:
    """Whoever adopts its run looks behind the entries that it has noted: what is there is not stored again, what is not
    is. Of a stream that was trimmed past the place only the marks would know."""
    notes: list[dict[str, bytes]] = []
    options: dict[str, Any] = {"dedupe": Dedupe(always=True)}
    dead = marking(any_url, namespace, **options, note=lambda run, fence, cursors: notes.append(dict(cursors)))
    dead.send(*made(0))
    run = dead.encoded(*made(1), SculptureMade(), *made(2))
    eyes = dead.eyes
    eyes.call("SET", eyes.stream("sculpture.made"), "none")
    first, refused, last = dead.drive(run)
    assert isinstance(refused, Refused) and eyes.call("DEL", eyes.stream("sculpture.made"))
    forget(dead, run[0], run[2])
    assert notes[-1] == {"painting.made": rows(dead)[0], "sculpture.made": b"0-0"}
    heir = marking(any_url, namespace, **options)
    heir.sender.suspect(run, notes[-1], by_marks=True)
    assert heir.drive(run) == [first, *rows(heir, "sculpture.made"), last] and heir.numbers() == [0, 1, 2]
    assert heir.sender.statistics.found == 2
    forget(dead, run[0], run[2])
    eyes.call("XTRIM", eyes.stream(), "MAXLEN", 1)
    heir.sender.suspect(run, notes[-1], by_marks=True)
    assert heir.drive(run)[2] == last and heir.numbers() == [2, 1]


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("fault", ["lost request", "lost reply", "held request"])
def test_a_run_without_an_answer(driver: Driver, fault: Fault, before: int) -> None:
    """It is sent again, and stored once, whatever became of the first copy and whenever that arrives."""
    for number in range(before):
        driver.drive(keyed(driver, -number - 1))
    if not before:
        driver.eyes.call("SCRIPT", "FLUSH")
    driver.fault(b"EVALSHA" if before else b"EVAL\r", fault)
    results = driver.drive(keyed(driver, 1, 2))
    driver.release()
    driver.drive(keyed(driver, 3))
    assert driver.numbers()[before:] == [1, 2, 3] and rows(driver)[before : before + 2] == results
    now = driver.sender.statistics
    assert (now.resent, now.unknown, now.lost, now.duplicates) == (1, 0, 0, 0)
    assert now.found == (2 if fault == "lost reply" else 0)


@pytest.mark.parametrize("fault", ["lost request", "lost reply"])
def test_a_lost_answer_while_the_stream_is_trimmed(driver: Driver, fault: Fault) -> None:
    """What is unknown of a fenced batch is known here: the marks tell."""
    driver.drive(keyed(driver, 0))
    driver.fault(b"EVALSHA", fault)
    driver.fault(b"EVALSHA", lambda: driver.eyes.call("XTRIM", driver.eyes.stream(), "MAXLEN", 0))
    results = driver.drive(keyed(driver, 1, 2))
    assert all(isinstance(result, bytes) for result in results)
    assert driver.numbers() == ([] if fault == "lost reply" else [1, 2])


def test_a_fenced_batch_after_a_marked_run_that_reconnected(driver: Driver) -> None:
    """The new connection watches the fence before anything is sent on it."""
    driver.send(*made(1))
    driver.fault(SCRIPT, "lost reply")
    driver.drive(keyed(driver, 2))
    driver.fault(b"XADD", "held request")
    driver.send(*made(3))
    driver.release()
    assert driver.numbers() == [1, 2, 3]


def test_refused_while_it_is_unsure(driver: Driver) -> None:
    """A run whose answer was lost, and then the server refuses us: it may be there, and sent again it is there once."""

    def refuse() -> None:
        raise Refused("wrong password")

    batch = keyed(driver, 1)
    driver.drive(keyed(driver, 0))
    driver.fault(b"EVALSHA", "lost reply")
    driver.fault(b"EVALSHA", refuse)
    with pytest.raises(Refused, match="wrong password"):
        driver.drive(batch)
    assert driver.sender.unsure_of(batch) and not driver.sender.unsure_of(keyed(driver, 2))
    assert driver.drive(batch) == rows(driver)[1:] and driver.numbers() == [0, 1]
    assert not driver.sender.unsure_of(batch)


def test_patience(driver: Driver) -> None:
    """Given up as Unavailable; ambiguous says whether it may be there."""
    driver.drive(keyed(driver, 0))
    for fault in ("lost request", "lost reply"):
        driver.plan = [(b"", fault)] * 50  # type: ignore[list-item]
        (result,) = driver.drive(keyed(driver, 1), patience=1)
        assert isinstance(result, Unavailable) and result.ambiguous
    driver.plan = []
    (result,) = driver.drive(keyed(driver, 1))
    assert rows(driver)[1:] == [result] and driver.sender.statistics.given_up == 2


def test_a_batch_that_no_replica_confirms(
    marking: Marking, server_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on the server once, is asked for again over new connections, and is unknown in the end."""
    monkeypatch.setattr(fenced, "WAIT_MS", 10)
    driver = marking(server_url, namespace, replicated=True)
    (result,) = driver.drive(keyed(driver, 1), patience=0.3)
    assert isinstance(result, Unavailable) and result.ambiguous and "no replica within 0.01 s" in str(result)
    assert driver.numbers() == [1] and driver.sender.statistics.unconfirmed == 4


def test_scripts_are_flushed(driver: Driver) -> None:
    """The script is loaded again, whenever it is gone."""
    driver.drive(keyed(driver, 1))
    driver.eyes.call("SCRIPT", "FLUSH")
    packets = driver.packets
    driver.drive(keyed(driver, 1, 2))
    driver.drive(keyed(driver, 3))
    assert driver.numbers() == [1, 2, 3] and driver.packets == packets + 3


def test_everything_is_flushed(driver: Driver) -> None:
    """FLUSHALL ends no connection and takes the marks: the events are stored anew, and what the namespace needs besides
    is written before them."""
    driver.sender = PartitionSender(driver.keys, partitions=1)
    driver.drive(keyed(driver, 1))
    eyes = driver.eyes
    for _ in range(2):
        eyes.call("DEL", *eyes.call("KEYS", f"{driver.keys.stream('').decode().partition(':stream')[0]}:*"))
        driver.drive(keyed(driver, 1))
        assert driver.numbers() == [1] and eyes.call("SMEMBERS", driver.keys.topics) == [b"painting.made"]
        assert eyes.call("HGET", driver.keys.meta, "partitions") == b"1"


def test_a_namespace_that_somebody_made_otherwise_meanwhile(driver: Driver) -> None:
    """Begun anew with another number of partitions: Refused, and nothing is stored beside the others'."""
    driver.sender = PartitionSender(driver.keys, partitions=1)
    driver.drive(keyed(driver, 1))
    driver.eyes.call("DEL", driver.eyes.stream(), driver.keys.once(keyed(driver, 1)[0].raw_id.hex()))
    driver.eyes.call("HSET", driver.keys.meta, "partitions", 4)
    with pytest.raises(Refused, match="has 4 partitions on this server, this process is set to 1"):
        driver.drive(keyed(driver, 1))
    assert driver.numbers() == [] and mark(driver, keyed(driver, 1)[0]) is None


# --- refused and told to wait -----------------------------------------------------------------------------------------


def test_keys_of_another_type(driver: Driver) -> None:
    """A stream that is none: its events are refused, leave no mark, and go through once it is one; so it is with a mark.
    The others of the batch are stored. A list of topics that is none: nothing is."""
    eyes = driver.eyes
    sculpture = driver.codec.encode_for(SculptureMade(), None, dedupe_key="s")
    painting = keyed(driver, 1)[0]
    eyes.call("SET", eyes.stream("sculpture.made"), "x")
    eyes.call("HSET", driver.keys.once(painting.raw_id.hex()), "x", "x")
    batch = [*keyed(driver, 0), sculpture, painting, *keyed(driver, 2)]
    results = driver.drive(batch)
    assert [type(result) for result in results] == [bytes, Refused, Refused, bytes]
    assert "holds something that is not a stream" in str(results[1]) and mark(driver, sculpture) is None
    assert driver.numbers() == [0, 2] and driver.sender.statistics.refused == 2
    eyes.call("DEL", eyes.stream("sculpture.made"), driver.keys.once(painting.raw_id.hex()))
    again = driver.drive(batch)
    assert all(isinstance(result, bytes) for result in again) and again[::3] == results[::3]
    assert driver.numbers() == [0, 2, 1] and eyes.count("sculpture.made") == 1
    eyes.call("DEL", driver.keys.topics)
    eyes.call("SET", driver.keys.topics, "x")
    with pytest.raises(Refused, match="topics holds a string"):
        driver.drive(keyed(driver, 3))
    assert driver.numbers() == [0, 2, 1]


@pytest.mark.parametrize("kind", ["redis", "valkey"])
@pytest.mark.parametrize("delay", [None, 60.0])
def test_a_server_without_memory(
    marking: Marking, make_server: Callable[..., ServerProcess], kind: str, namespace: str, delay: float | None
) -> None:
    """All or nothing: no event and no mark while it has none, each once when it has. What is there already is answered."""
    driver = marking(make_server(kind).url, namespace)
    eyes, stream = driver.eyes, driver.keys.stream("~later") if delay else driver.eyes.stream()
    known = driver.drive(keyed(driver, 0, delay=delay))
    eyes.call("CONFIG", "SET", "maxmemory", "1")
    batch = keyed(driver, 1, 2, delay=delay)
    results = driver.drive(batch, patience=0.1)
    assert {type(result) for result in results} == {Unavailable} and "OOM" in str(results[0])
    assert not any(isinstance(result, Unavailable) and result.ambiguous for result in results)
    assert eyes.call("XLEN", stream) == 1 and mark(driver, batch[0]) is None
    assert driver.drive(keyed(driver, 0, delay=delay), patience=0) == known
    eyes.call("CONFIG", "SET", "maxmemory", "0")
    driver.drive(batch)
    driver.drive(batch)
    assert eyes.call("XLEN", stream) == 3


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_stream_that_has_used_up_its_ids(
    marking: Marking, make_server: Callable[..., ServerProcess], kind: str, namespace: str
) -> None:
    """Its events are refused one by one and leave no mark; the others are stored."""
    driver = marking(make_server(kind).url, namespace)
    driver.eyes.call("XADD", driver.eyes.stream(), f"{2**64 - 1}-{2**64 - 1}", "e", "x")
    (painting,) = keyed(driver, 1)
    sculpture = driver.codec.encode_for(SculptureMade(), None, dedupe_key="s")
    results = driver.drive([painting, sculpture])
    assert [type(result) for result in results] == [Refused, bytes] and mark(driver, painting) is None


@pytest.mark.parametrize("kind", list(binaries()))
@pytest.mark.parametrize("denied", ["set", "sadd", "xadd", "get", "type", "evalsha"])
def test_a_right_that_is_missing(
    marking: Marking, make_server: Callable[..., ServerProcess], kind: str, namespace: str, denied: str
) -> None:
    """Nothing is stored half: no event without its mark, no mark without its event."""
    server = make_server(kind)
    eyes = marking(server.url, namespace).eyes
    eyes.call("ACL", "SETUSER", "u", "on", ">p", "~*", "+@all", f"-{denied}")
    driver = marking(server.url.replace("redis://", "redis://u:p@"), namespace)
    with pytest.raises(Refused, match=denied):
        driver.drive(keyed(driver, 1))
    assert eyes.call("DBSIZE") == 0


def test_full_streams(driver: Driver) -> None:
    """At a cap that rejects, events of that type get StreamFull, the others are stored; at one that blocks all wait."""
    full = {"painting.made": Full("reject", "g", 9)}
    sculpture = driver.codec.encode_for(SculptureMade(), None, dedupe_key="s")
    driver.drive(keyed(driver, 0))
    driver.eyes.call("SET", driver.keys.full, msgspec.json.encode(full))
    driver.drive(keyed(driver, 0))  # soft by one batch
    results = driver.drive([*keyed(driver, 1), sculpture])
    assert [type(result) for result in results] == [StreamFull, bytes] and driver.numbers() == [0]
    full["painting.made"] = Full("block", "g", 9)
    driver.eyes.call("SET", driver.keys.full, msgspec.json.encode(full))
    (result,) = driver.drive(keyed(driver, 1), patience=1)
    assert isinstance(result, Unavailable) and not result.ambiguous and "its cap" in str(result)
    driver.eyes.call("DEL", driver.keys.full)
    driver.drive(keyed(driver, 1))
    assert driver.numbers() == [0, 1]


def test_full_since_the_answer_was_lost(driver: Driver) -> None:
    """What may be stored already is not called refused for want of room."""
    driver.drive(keyed(driver, 0))

    def fill() -> None:
        driver.eyes.call("SCRIPT", "FLUSH")
        driver.eyes.call("SET", driver.keys.full, msgspec.json.encode({"painting.made": Full("reject", "g", 9)}))

    driver.fault(b"EVALSHA", "lost reply")
    driver.fault(b"EVALSHA", fill)
    assert driver.drive(keyed(driver, 1)) == rows(driver)[1:] and driver.numbers() == [0, 1]


def said(answers: list[list[Any]]) -> tuple[PartitionSender, Any]:
    """Send one marked event to a server that gives these answers, after it has said where the stream ends."""
    answers.insert(0, [[]])
    sender = PartitionSender(Keys("scripted"))
    operation = sender.send([Codec().encode_for(PaintingMade(), None, dedupe_key="1")])
    try:
        wish = next(operation)
        while True:
            wish = operation.send([] if isinstance(wish, Pause) else answers.pop(0))
    except StopIteration as stop:
        return sender, stop.value
    except Refused as error:
        return sender, error


@pytest.mark.parametrize("word", ["OOM", "LOADING", "READONLY", "MISCONF", "NOREPLICAS", "BUSY", "MASTERDOWN"])
def test_told_to_wait(word: str) -> None:
    """A script that the server cannot run now is sent again."""
    sender, results = said([[ReplyError(f"{word} later"), None], [[b"+1-1"], None]])
    assert results == [b"1-1"] and (sender.statistics.failures, sender.statistics.lost) == (1, 0)


@pytest.mark.parametrize("word", ["NOPERM", "NOAUTH", "MOVED", "ERR"])
def test_told_to_go_away(word: str) -> None:
    """A script that is refused for good is Refused."""
    sender, error = said([[ReplyError(f"{word} no"), None]])
    assert isinstance(error, Refused) and f"{word} no" in str(error) and sender.statistics.refused == 0


# --- several publishers -----------------------------------------------------------------------------------------------


def test_a_publisher_that_starts_again(marking: Marking, any_url: str, namespace: str) -> None:
    """Another process, another incarnation, the same key: nothing is stored, and the answer is the same."""
    first, second = marking(any_url, namespace), marking(any_url, namespace)
    stored = first.drive(keyed(first, 1, 2))
    assert second.drive(keyed(second, 2, 3, 1))[::2] == stored[::-1] and first.numbers() == [1, 2, 3]


class Naive:
    """The oracle: what lies on the stream, and since when each key is known."""

    def __init__(self, window: float) -> None:
        self.window = window
        self.numbers: list[int] = []
        self.since: dict[int, tuple[float, int]] = {}

    def publish(self, number: int, now: float, once: bool) -> int:
        """Returns the place of the entry that answers for it."""
        at, place = self.since.get(number, (-1e9, -1))
        if once and now - at < self.window:
            return place
        self.numbers.append(number)
        if once:
            self.since[number] = (now, len(self.numbers) - 1)
        return len(self.numbers) - 1


@pytest.mark.parametrize("seed", seeds(6, "once"))
def test_at_random(marking: Marking, namespace: str, seed: int) -> None:
    """Three publishers with few keys, batches of both kinds, faults, flushed scripts and time that passes, against a
    naive model: what lies on the stream is what the model has, and every result is the entry that it names."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    model = Naive(window=100.0)
    expected: list[tuple[Result, int]] = []
    with clock.using(TurnedClock()) as time:
        drivers = [marking(f"memory://{namespace}", namespace, dedupe=Dedupe(window=100.0)) for _ in range(3)]

        def request(driver: Driver, plain: Callable[[Packet], list[Any]]) -> Callable[[Packet], list[Any]]:
            def unreliable(packet: Packet) -> list[Any]:
                if rng.random() < 0.1:
                    driver.release()
                if rng.random() < 0.3:
                    driver.plan = [(b"", rng.choice(["lost request", "lost reply", "held request"]))]  # type: ignore[list-item]
                return plain(packet)

            return unreliable

        for driver in drivers:
            driver._request = request(driver, driver._request)  # type: ignore[method-assign]
        for _ in range(150):
            driver = rng.choice(drivers)
            if rng.random() < 0.1:
                driver.eyes.call("SCRIPT", "FLUSH")
            if rng.random() < 0.2:
                for each in drivers:  # nothing is late by a whole window
                    each.release()
                time.turn(rng.choice([1.3, 40.7, 100.9]))  # type: ignore[attr-defined]
            batch: list[Outgoing] = []
            places: list[int] = []
            for _ in range(rng.randrange(1, 6)):
                once, number = rng.random() < 0.6, rng.randrange(12)
                batch += keyed(driver, number) if once else driver.encoded(*made(number))
                places.append(model.publish(number, time.monotonic(), once))
            assert isinstance(driver.sender, PartitionSender)
            results = [result for run in driver.sender.runs(batch) for result in driver.drive(run)]
            expected += zip(results, places, strict=True)
        for driver in drivers:
            driver.release()
        assert drivers[0].numbers() == model.numbers
        there = rows(drivers[0])
    assert [result for result, _ in expected] == [there[place] for _, place in expected]
    assert sum(driver.sender.statistics.lost for driver in drivers) == 0
    assert sum(driver.sender.statistics.duplicates for driver in drivers) > 20
