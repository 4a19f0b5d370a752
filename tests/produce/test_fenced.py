"""FencedSender by itself: its generator is driven over a memory server, or a script, that loses what the test says.

What the server executes and what the sender is told are two things here: a fault decides, for one packet, whether it is
executed and whether its replies come back.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from produce.driver import BATCH, Driver, Fault, made
from seeds import seeds
from studio import PaintingMade, SculptureMade

from canvasbus import Event, Refused, Unavailable
from canvasbus.produce import fenced, lost
from canvasbus.produce.fenced import FencedSender, declare_partitions
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.resp import Packet, Pause, ReplyError
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import Keys
from canvasbus.wire.outgoing import Outgoing
from canvasbus.wire.retention import Full


@pytest.fixture
def driver(drivers: Callable[[str, str], Driver], any_url: str, namespace: str) -> Driver:
    return drivers(any_url, namespace)


# --- the normal path --------------------------------------------------------------------------------------------------


def test_one_packet_per_batch(driver: Driver) -> None:
    """After the first batch, which looks where the streams end, every batch costs one packet; results are entry ids."""
    assert all(isinstance(result, bytes) for result in driver.send(*made(0)))
    assert driver.packets == 2
    results = driver.send(*made(1, 2))
    assert driver.packets == 3
    rows = driver.eyes.call("XRANGE", driver.eyes.stream(), "-", "+")
    assert [row[0] for row in rows[1:]] == results and driver.numbers() == [0, 1, 2]


def test_a_new_type_is_announced_once(driver: Driver) -> None:
    """The first event of a type enters it into the list of topics."""
    driver.send(*made(0))
    driver.send(SculptureMade(), *made(1))
    assert sorted(driver.eyes.call("SMEMBERS", driver.keys.topics)) == [b"painting.made", b"sculpture.made"]
    assert driver.packets == 4


def test_after_a_flush_the_namespace_is_there_again(driver: Driver) -> None:
    """FLUSHALL between two batches ends no connection: the list of topics and the number of partitions are written
    again all the same, before the next event."""
    driver.sender = FencedSender(driver.keys, partitions=1)
    driver.send(*made(1))
    eyes = driver.eyes
    eyes.call("DEL", *eyes.call("KEYS", f"{driver.keys.stream('').decode().partition(':stream')[0]}:*"))
    assert all(isinstance(result, bytes) for result in driver.send(*made(2)))
    assert driver.numbers() == [2] and eyes.call("SMEMBERS", driver.keys.topics) == [b"painting.made"]
    assert eyes.call("HGET", driver.keys.meta, "partitions") == b"1"


def test_a_namespace_that_somebody_made_otherwise_meanwhile(driver: Driver) -> None:
    """Flushed, and begun anew with another number of partitions: Refused, nothing is stored beside the others'."""
    driver.sender = FencedSender(driver.keys, partitions=1)
    driver.send(*made(1))
    eyes = driver.eyes
    eyes.call("DEL", driver.keys.meta, driver.keys.topics, eyes.stream())
    eyes.call("HSET", driver.keys.meta, "partitions", 4)
    with pytest.raises(Refused, match="has 4 partitions on this server, this process is set to 1"):
        driver.send(*made(2))
    assert driver.numbers() == []


# --- one lost reply: what is true, and what is said -------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize(
    ("fault", "found", "resent"), [("lost request", 0, 1), ("lost reply", 3, 0), ("held request", 0, 1)]
)
def test_a_batch_without_an_answer(driver: Driver, fault: Fault, found: int, resent: int, before: int) -> None:
    """Stored: found, with the true entry ids. Not stored: sent again. Held up: its fence is closed when it arrives."""
    for number in range(before):
        driver.send(*made(-number - 1))
    driver.fault(BATCH, fault)
    results = driver.send(*made(1, 2), SculptureMade())
    driver.release()
    rows = driver.eyes.call("XRANGE", driver.eyes.stream(), "-", "+")
    assert [row[0] for row in rows[before:]] == results[:2]
    assert driver.numbers()[before:] == [1, 2] and driver.eyes.count("sculpture.made") == 1
    now = driver.sender.statistics
    assert (now.found, now.resent, now.unknown, now.lost) == (found, resent, 0, 0)
    assert (now.events, now.batches) == (3 + before, 1 + before)


@pytest.mark.parametrize("fault", ["lost request", "lost reply"])
@pytest.mark.parametrize("step", [b"SADD", b"INCR", b"XRANGE", b"WATCH"])
def test_losing_the_question_too(driver: Driver, step: bytes, fault: Fault) -> None:
    """The batch's reply is lost, and then any of the packets that look after it, or its reply: stored once."""
    driver.send(*made(0))
    driver.fault(BATCH, "lost reply")
    if step in (b"INCR", b"XRANGE"):
        driver.fault(step, fault)
    driver.send(*made(1))
    driver.plan = [(step, fault)]
    driver.send(*made(2))
    assert driver.numbers() == [0, 1, 2] and driver.sender.statistics.lost == 0


@pytest.mark.parametrize("fault", ["lost request", "lost reply"])
@pytest.mark.parametrize(
    ("disaster", "before"),
    [("trimmed", 1), ("replaced", 1), ("deleted", 1), ("trimmed", 0)],
    ids=["trimmed", "replaced", "deleted", "trimmed, and it was new"],
)
def test_what_cannot_be_known(driver: Driver, fault: Fault, disaster: str, before: int) -> None:
    """No answer came and the place where the batch would be is gone: every event is unknown, counted, never sent
    twice. (On a stream that was new, nothing trimmed means that nothing was there.)"""
    driver.send(*made(*range(before)) or [SculptureMade()])
    eyes = driver.eyes

    def ruin() -> None:
        if disaster == "trimmed":
            eyes.call("XTRIM", eyes.stream(), "MAXLEN", 0)
        else:
            eyes.call("DEL", eyes.stream())
        if disaster == "replaced":
            eyes.call("XADD", eyes.stream(), "9999999999999-0", "e", b"foreign")

    driver.fault(BATCH, fault)
    driver.fault(b"INCR", ruin)
    results = driver.send(*made(1, 2))
    now = driver.sender.statistics
    if before == 0 and fault == "lost request":
        assert driver.numbers() == [1, 2] and (now.unknown, now.resent) == (0, 1)
        return
    assert all(isinstance(result, Unavailable) and result.ambiguous for result in results)
    assert (now.unknown, now.resent, now.found, now.lost) == (2, 0, 0, 2)
    driver.send(*made(3))  # and it goes on
    assert b"painting.made" in eyes.call("SMEMBERS", driver.keys.topics)


@pytest.mark.parametrize("fault", ["lost request", "lost reply"])
def test_a_stream_whose_end_was_lost(driver: Driver, fault: Fault) -> None:
    """After a failover the stream ends before the last entry that is known: what came after it is not there either, so
    the batch is sent again."""
    driver.send(*made(1))
    eyes = driver.eyes

    def lose_the_end() -> None:
        eyes.call("DEL", eyes.stream())
        eyes.call("XADD", eyes.stream(), "1-1", "e", driver.encoded(*made(0))[0].data)

    driver.fault(BATCH, fault)
    driver.fault(b"INCR", lose_the_end)
    assert all(isinstance(result, bytes) for result in driver.send(*made(2, 3)))
    now = driver.sender.statistics
    assert driver.numbers() == [0, 2, 3] and (now.unknown, now.resent) == (0, 1)


def test_a_batch_that_no_replica_confirms(
    drivers: Callable[[str, str], Driver], server_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on the server once, is asked for again and again over new connections, and is unknown in the end."""
    monkeypatch.setattr(fenced, "WAIT_MS", 10)
    driver = drivers(server_url, namespace)
    driver.sender = FencedSender(driver.keys, replicated=True)
    (result,) = driver.send(*made(1), patience=0.3)
    assert isinstance(result, Unavailable) and result.ambiguous and "no replica within 0.01 s" in str(result)
    now = driver.sender.statistics
    assert driver.numbers() == [1] and (now.unconfirmed, now.given_up, now.resent) == (4, 1, 0)


def test_a_batch_that_is_trimmed_in_part(driver: Driver) -> None:
    """What is left of a batch proves that all of it was stored: found, with its id; the trimmed rest is unknown, and
    nothing is sent again."""
    driver.send(*made(0))
    eyes = driver.eyes
    driver.fault(BATCH, "lost reply")
    driver.fault(b"INCR", lambda: eyes.call("XTRIM", eyes.stream(), "MAXLEN", 1))
    results = driver.send(*made(1, 2, 3))
    assert driver.numbers() == [3]
    assert [type(result) for result in results] == [Unavailable, Unavailable, bytes]
    now = driver.sender.statistics
    assert (now.found, now.unknown, now.resent, now.events) == (1, 2, 0, 2)


def test_one_type_proves_for_all(driver: Driver) -> None:
    """A batch of two types of which one's stream was trimmed: the other still tells that the batch was, or was not,
    stored."""
    for fault, resent in (("lost reply", 0), ("lost request", 1)):
        driver.send(*made(0), SculptureMade())
        driver.fault(BATCH, fault)  # type: ignore[arg-type]
        driver.fault(b"INCR", lambda: driver.eyes.call("XTRIM", driver.eyes.stream(), "MAXLEN", 0))
        results = driver.send(*made(1), SculptureMade())
        assert isinstance(results[1], bytes) and driver.sender.statistics.resent == resent
    assert driver.eyes.count("sculpture.made") == 4


def test_among_many_others(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is found behind more than a page of other publishers' entries, foreign ones among them."""
    monkeypatch.setattr(lost, "SCAN_PAGE", 3)
    driver.send(*made(0))

    def crowd() -> None:
        for _ in range(4):
            driver.eyes.put(b"foreign")
            driver.eyes.call("XADD", driver.eyes.stream(), "*", "other", b"field")

    driver.fault(BATCH, crowd)
    driver.fault(BATCH, "lost reply")
    driver.send(*made(1))
    results = driver.send(*made(2, 3))
    assert all(isinstance(result, bytes) for result in results) and driver.sender.statistics.found == 2
    assert driver.sender.statistics.resent == 0


def test_too_many_others(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond SCAN_LIMIT entries nobody looks on: unknown."""
    monkeypatch.setattr(lost, "SCAN_PAGE", 3)
    monkeypatch.setattr(driver.sender, "_scan_limit", 6)
    driver.send(*made(0))
    driver.fault(BATCH, "lost request")
    driver.fault(b"INCR", lambda: [driver.eyes.put(b"foreign") for _ in range(10)] and None)
    (result,) = driver.send(*made(1))
    assert isinstance(result, Unavailable) and result.ambiguous and driver.sender.statistics.unknown == 1


# --- refused and told to wait -----------------------------------------------------------------------------------------


def test_a_key_of_another_type(driver: Driver) -> None:
    """Its events are refused one by one, the others of the batch are stored; the same with the reply lost."""
    driver.eyes.call("SET", driver.keys.stream("sculpture.made"), "x")
    results = driver.send(*made(0), SculptureMade(), *made(1))
    assert [type(result) for result in results] == [bytes, Refused, bytes]
    driver.fault(BATCH, "lost reply")
    results = driver.send(*made(2), SculptureMade())
    assert isinstance(results[0], bytes) and isinstance(results[1], Unavailable)
    assert driver.numbers() == [0, 1, 2]


def test_patience(driver: Driver) -> None:
    """With patience a batch is given up as Unavailable once so many seconds were slept, doubling from 50 ms to 2 s;
    ambiguous says whether it may have been stored."""
    driver.plan = [(b"", "lost request") for _ in range(50)]
    (result,) = driver.send(*made(0), patience=10)
    assert isinstance(result, Unavailable) and not result.ambiguous
    assert driver.pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0]
    assert driver.sender.statistics.given_up == 1
    driver.plan = [(BATCH, "lost reply"), *[(b"", "lost request")] * 50]  # type: ignore[list-item]
    (result,) = driver.send(*made(1), patience=1)
    assert isinstance(result, Unavailable) and result.ambiguous


@pytest.mark.parametrize("fault", ["lost request", "lost reply"])
def test_refused_while_it_asks(driver: Driver, fault: Fault) -> None:
    """A server that refuses us while we look for a lost batch: the same batch, sent again later, is looked for first."""
    batch = driver.encoded(*made(1, 2))
    driver.send(*made(0))

    def refuse() -> None:
        raise Refused("wrong password")

    driver.fault(BATCH, fault)
    driver.fault(b"INCR", refuse)
    with pytest.raises(Refused, match="wrong password"):
        driver.drive(batch)
    assert driver.sender.unsure_of(batch) and not driver.sender.unsure_of(driver.encoded(*made(3)))
    assert all(isinstance(result, bytes) for result in driver.drive(batch))
    assert driver.numbers() == [0, 1, 2] and not driver.sender.unsure_of(batch)


# --- a scripted server: what no server here says on demand ------------------------------------------------------------

AFTER_PREPARE: list[Any] = [b"OK", [], 1, [], b"OK"]


def script(answers: list[list[Any]], batch: Sequence[Outgoing]) -> tuple[FencedSender, Any, list[bytes]]:
    """Send a batch to a server that gives these answers; returns the sender, what it said, and what it sent."""
    sender = FencedSender(Keys("scripted"), incarnation="me")
    operation = sender.send(batch)
    sent: list[bytes] = []
    try:
        wish = next(operation)
        while True:
            if isinstance(wish, Pause):
                wish = operation.send([])
                continue
            sent.append(wish.data)
            replies = answers.pop(0)
            assert len(replies) == wish.replies, (wish, replies)
            wish = operation.send(replies)
    except StopIteration as stop:
        return sender, stop.value, sent
    except Refused as error:
        return sender, error, sent


@pytest.mark.parametrize(
    "word", ["OOM", "LOADING", "READONLY", "MISCONF", "NOREPLICAS", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"]
)
def test_told_to_wait(word: str) -> None:
    """A transaction that the server cannot take now is discarded as a whole and sent again, watched anew."""
    batch = [Codec().encode(PaintingMade())]
    refusal = [b"OK", ReplyError(f"{word} later"), ReplyError("EXECABORT discarded"), b"OK", None]
    sender, results, sent = script(
        [AFTER_PREPARE, refusal, AFTER_PREPARE, [b"OK", b"QUEUED", [b"1-1"], b"OK", None]], list(batch)
    )
    assert results == [b"1-1"] and sent[0] == sent[2] and sent[1] == sent[3]
    assert (sender.statistics.failures, sender.statistics.lost) == (1, 0)
    assert word in str(sender.statistics.last_failure)


@pytest.mark.parametrize("word", ["NOPERM", "NOAUTH", "MOVED", "ERR"])
def test_a_transaction_that_is_refused(word: str) -> None:
    """A transaction that is refused for good raises Refused: nothing of it is stored, and it can be sent again."""
    batch = [Codec().encode(PaintingMade())]
    refusal = [b"OK", ReplyError(f"{word} no"), ReplyError("EXECABORT discarded"), b"OK", None]
    sender, error, _ = script([AFTER_PREPARE, refusal], batch)
    assert isinstance(error, Refused) and f"{word} no" in str(error)
    assert not sender.unsure_of(batch) and sender.statistics.refused == 0


def test_a_stale_fence() -> None:
    """EXEC answers nil when the fence or the list of topics was touched: nothing is stored, and the batch goes out again
    at once, after a look at both."""
    batch = [Codec().encode(PaintingMade())]
    done = [b"OK", b"QUEUED", [b"1-1"], b"OK", None]
    _, results, sent = script([AFTER_PREPARE, [b"OK", b"QUEUED", None, b"OK", None], AFTER_PREPARE, done], batch)
    assert results == [b"1-1"] and sent[1] == sent[3] and sent[0] == sent[2]


def test_multi_is_forbidden() -> None:
    """MULTI forbidden from the start: nothing is sent. Forbidden since: what was done one by one is taken as it is."""
    batch = [Codec().encode(PaintingMade()), Codec().encode(PaintingMade())]
    no = ReplyError("NOPERM no permissions to run the 'multi' command")
    _, error, sent = script([[no, ReplyError("ERR EXEC without MULTI"), 1, [], b"OK"]], batch)
    assert isinstance(error, Refused) and len(sent) == 1
    late = [no, b"1-1", ReplyError("WRONGTYPE x"), ReplyError("ERR EXEC without MULTI"), b"OK", None]
    sender, results, _ = script([AFTER_PREPARE, late], batch)
    assert results[0] == b"1-1" and isinstance(results[1], Refused)
    assert (sender.statistics.events, sender.statistics.refused) == (1, 1)


# --- at random --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(4, "fenced"))
def test_at_random(drivers: Callable[[str, str], Driver], namespace: str, seed: int) -> None:
    """Batches of two types under random faults, several in a row, with held packets arriving at any time: everything is
    stored exactly once, in order, and the results are the true entry ids."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    driver = drivers(f"memory://{namespace}", namespace)
    expected: list[int] = []
    results: dict[str, list[Any]] = {"painting.made": [], "sculpture.made": []}
    request = driver._request

    def unreliable(packet: Packet) -> list[Any]:
        if rng.random() < 0.1:
            driver.release()
        if rng.random() < 0.3:
            driver.plan = [(b"", rng.choice(["lost request", "lost reply", "held request"]))]  # type: ignore[list-item]
        return request(packet)

    driver._request = unreliable  # type: ignore[method-assign]
    for n in range(120):
        events: list[Event] = [PaintingMade(number=n * 10 + i) for i in range(rng.randrange(4))]
        expected += [event.number for event in events]  # type: ignore[attr-defined]
        events += [SculptureMade(title=str(n))] * (rng.randrange(2) or not events)
        for event, result in zip(events, driver.send(*events), strict=True):
            results["painting.made" if isinstance(event, PaintingMade) else "sculpture.made"].append(result)
    driver.release()
    assert driver.numbers() == expected
    for event_type, ids in results.items():
        rows = driver.eyes.call("XRANGE", driver.eyes.stream(event_type), "-", "+")
        assert [row[0] for row in rows] == ids
    now = driver.sender.statistics
    assert now.found and now.resent and now.lost == 0


def test_declaring_partitions(driver: Driver, namespace: str) -> None:
    """The first declaration counts; the same again is fine; another is Refused and names both numbers."""
    link = BlockingLink(driver.server)
    for _ in range(2):
        link.run(declare_partitions(namespace, 4))
    with pytest.raises(Refused, match="has 4 partitions on this server, this process is set to 5"):
        link.run(declare_partitions(namespace, 5))
    link.close()


@pytest.mark.parametrize("nonsense", ["many", "", "0", "-1", "2.0", "4097", "9" * 5000, b"\xff"])
def test_a_number_of_partitions_that_is_none(driver: Driver, namespace: str, nonsense: str | bytes) -> None:
    """What is on record may be anybody's: Refused, in one short line that names the key and what stands there."""
    link = BlockingLink(driver.server)
    meta = driver.keys.meta
    link.call("HSET", meta, "partitions", nonsense)
    with pytest.raises(Refused, match="number of partitions") as caught:
        link.run(declare_partitions(namespace, 4))
    shown = nonsense[:40] if isinstance(nonsense, str) else "\ufffd"
    assert meta.decode() in str(caught.value) and f"{shown!r}" in str(caught.value) and len(str(caught.value)) < 250
    assert link.call("HGET", meta, "partitions") == (nonsense.encode() if isinstance(nonsense, str) else nonsense)
    link.close()


def test_too_many_partitions_are_not_declared(driver: Driver, namespace: str) -> None:
    """Refused before it is on record, where it would stop everybody else."""
    link = BlockingLink(driver.server)
    with pytest.raises(Refused, match="partitions=4097: a namespace has 4096 at most"):
        link.run(declare_partitions(namespace, 4097))
    assert link.call("EXISTS", driver.keys.meta) == 0
    link.close()


@pytest.mark.parametrize("first", ["without room", "with room"])
def test_refused_while_it_is_unsure_of_those_that_had_room(driver: Driver, first: str) -> None:
    """Some events of a batch find no room, the reply of the others is lost, and before anybody can look the server refuses
    this publisher. It may be stored, and is said to be; when there is room again, all are stored once."""
    driver.send(*made(0), SculptureMade())
    driver.eyes.call("SET", driver.keys.full, msgspec.json.encode({"painting.made": Full("reject", "painters", 1)}))
    driver.send(*made(1))

    def refuse() -> None:
        raise Refused("a new password")

    driver.fault(BATCH, "lost reply")
    driver.fault(b"INCR", refuse)
    batch = driver.encoded(*made(2), SculptureMade())
    if first == "with room":
        batch.reverse()
    with pytest.raises(Refused, match="a new password"):
        driver.drive(batch)
    said = driver.sender.unsure_of(batch)
    driver.eyes.call("DEL", driver.keys.full)
    driver.fault(BATCH, refuse)  # now that the lost one is known, the other
    with pytest.raises(Refused, match="a new password"):
        driver.drive(batch)
    assert driver.sender.unsure_of(batch)
    results = driver.drive(batch)
    assert not driver.sender.unsure_of(batch) and driver.sender.statistics.found == 1
    assert driver.eyes.count("sculpture.made") == 2 and driver.numbers() == [0, 1, 2]
    assert said and all(isinstance(result, bytes) for result in results)
