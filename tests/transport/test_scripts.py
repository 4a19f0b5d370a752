"""The Lua scripts, each over every server: who may change what, and that a refusal changes nothing."""

from collections.abc import Iterator
from typing import Any

import pytest

from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.owner_scripts import REAP, RELEASE, TAKE
from canvasbus.transport.resp import ReplyError, code
from canvasbus.transport.scripts import Script
from canvasbus.transport.settle_script import SETTLE
from canvasbus.wire.keys import Keys

GROUP = "painters"
FREE, SUSPECT = "~free", "~suspect"


class Bench:
    """A group with two streams on a server, and the scripts as calls on it."""

    def __init__(self, link: BlockingLink, namespace: str) -> None:
        self.link = link
        self.keys = Keys(namespace)
        self.stream = self.keys.stream("picture.made")
        self.other = self.keys.stream("picture.sold")
        self.derived = self.keys.stream("picture.framed")
        for stream in (self.stream, self.other):
            assert link.call("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM") == b"OK"

    def call(self, *args: bytes | str | float) -> Any:
        return self.link.call(*args)

    def give(self, consumer: str, count: int = 1, stream: bytes | None = None) -> list[bytes]:
        """Add entries and have the consumer read them."""
        stream = stream or self.stream
        ids = [self.call("XADD", stream, "*", "e", f"entry {i}") for i in range(count)]
        self.call("XREADGROUP", "GROUP", GROUP, consumer, "STREAMS", stream, ">")
        return ids

    def owners(self, stream: bytes | None = None) -> dict[bytes, tuple[str, int]]:
        rows = self.call("XPENDING", stream or self.stream, GROUP, "-", "+", 1000)
        return {row[0]: (row[1].decode(), row[3]) for row in rows}

    def settle(self, consumer: str, *outcomes: Any, fence: int = 0, look: int = 0, keys: Any = None) -> Any:
        """Outcomes: (stream index, id, verb, n, (index, bytes)...). Keys: 2 stream, 3 other, 4 derived."""
        keys = keys or [self.keys.fence(consumer), self.stream, self.other, self.derived]
        args: list[Any] = [fence, GROUP, consumer, look, "x" * (len(keys) - 1), len(outcomes)]
        for outcome in outcomes:
            args += outcome
        return self.link.run(SETTLE.call(keys, args))

    def reap(self, dead: str, limit: int = 500) -> Any:
        keys = [self.keys.fence(dead), self.keys.beats(GROUP), self.stream, self.other, self.keys.accepts(GROUP)]
        return self.link.run(REAP.call(keys, [GROUP, dead, SUSPECT, limit, 600]))

    def take(
        self, consumer: str, pool: str, limit: int = 100, fence: int = 0, *, lain_ms: int = 0, forget: int = 0
    ) -> Any:
        keys = [self.keys.fence(consumer), self.stream, self.other]
        return self.link.run(TAKE.call(keys, [fence, GROUP, consumer, pool, limit, lain_ms, forget]))

    def release(self, consumer: str, *entries: tuple[int, bytes], leave: int = 0, fence: int = 0) -> Any:
        """Entries: (stream index, id). Keys: 3 stream, 4 other."""
        keys = [self.keys.fence(consumer), self.keys.beats(GROUP), self.stream, self.other, self.keys.accepts(GROUP)]
        args: list[Any] = [fence, GROUP, consumer, FREE, leave, 600]
        for entry in entries:
            args += (*entry, "")
        return self.link.run(RELEASE.call(keys, args))

    def consumers(self) -> set[str]:
        return {row[1].decode() for row in self.call("XINFO", "CONSUMERS", self.stream, GROUP)}

    def everything(self) -> dict[bytes, Any]:
        """All that a script could change, for before and after."""
        found: dict[bytes, Any] = {}
        for stream in (self.stream, self.other, self.derived):
            kind = self.call("TYPE", stream)
            found[stream] = self.call("XRANGE", stream, "-", "+") if kind == b"stream" else kind
            rows = self.call("XPENDING", stream, GROUP, "-", "+", 1000)
            found[stream + b" pending"] = None if isinstance(rows, ReplyError) else [[r[0], r[1], r[3]] for r in rows]
        return found


@pytest.fixture
def bench(any_url: str, namespace: str) -> Iterator[Bench]:
    link = BlockingLink(open_server(any_url))
    yield Bench(link, namespace)
    link.close()


# --- settle -----------------------------------------------------------------------------------------------------------


def test_settle_adds_what_follows_and_acknowledges(bench: Bench) -> None:
    """Derived events and acknowledgements of a batch over two streams happen in one step."""
    a, b = bench.give("me", 2)
    (c,) = bench.give("me", 1, bench.other)
    reply = bench.settle("me", (2, a, "ack", 2, 4, "A1", 4, b"\x00A2"), (3, c, "ack", 0), (2, b, "ack", 1, 4, "B1"))
    assert reply == [1, 1, 1]
    assert [row[1] for row in bench.call("XRANGE", bench.derived, "-", "+")] == [
        [b"e", b"A1"],
        [b"e", b"\x00A2"],
        [b"e", b"B1"],
    ]
    assert bench.owners() == {} and bench.owners(bench.other) == {}


def test_settle_writes_attempts_without_acknowledging(bench: Bench) -> None:
    """The verb "try" sets the delivery count and leaves the entry pending."""
    (a,) = bench.give("me")
    assert bench.settle("me", (2, a, "try", 0, 4)) == [1]
    assert bench.owners() == {a: ("me", 4)}


def test_an_attempt_at_a_trimmed_entry_forgets_nothing(bench: Bench) -> None:
    """XCLAIM would drop the record of an entry that is gone from its stream: it stays pending, to be told as lost."""
    (a,) = bench.give("me")
    bench.call("XTRIM", bench.stream, "MAXLEN", 0)
    assert bench.settle("me", (2, a, "try", 0, 4)) == [1]
    assert bench.owners() == {a: ("me", 1)}


@pytest.mark.parametrize(("fence", "answer"), [("dead", b"FENCED"), ("1", b"STALE")])
def test_a_fenced_worker_settles_nothing(bench: Bench, fence: str, answer: bytes) -> None:
    """Declared dead, or behind its own fence number: the script says which, and has changed nothing."""
    (a,) = bench.give("me")
    bench.call("SET", bench.keys.fence("me"), fence)
    before = bench.everything()
    assert bench.settle("me", (2, a, "ack", 1, 4, "late")) == answer
    assert bench.everything() == before


def test_a_raised_fence_lets_only_the_new_number_through(bench: Bench) -> None:
    """After INCR the copy with the old number is refused and the one with the new number is executed."""
    (a,) = bench.give("me")
    assert bench.call("INCR", bench.keys.fence("me")) == 1
    assert bench.settle("me", (2, a, "ack", 1, 4, "x"), fence=0) == b"STALE"
    assert bench.settle("me", (2, a, "ack", 1, 4, "x"), fence=1) == [1]
    assert bench.call("XLEN", bench.derived) == 1


def test_looking_drops_what_is_no_longer_ours(bench: Bench) -> None:
    """With look-up each entry counts for itself: claimed by another and acknowledged before give 0 and add nothing."""
    a, b, c = bench.give("me", 3)
    bench.call("XCLAIM", bench.stream, GROUP, "you", 0, a, "JUSTID")
    bench.call("XACK", bench.stream, GROUP, b)
    outcomes = [(2, i, "ack", 1, 4, i) for i in (a, b, c)]
    assert bench.settle("me", *outcomes, look=1) == [0, 0, 1]
    assert [row[1][1] for row in bench.call("XRANGE", bench.derived, "-", "+")] == [c]
    assert bench.owners() == {a: ("you", 1)}
    assert bench.settle("me", *outcomes, look=1) == [0, 0, 0], "said twice, done once"
    assert bench.call("XLEN", bench.derived) == 1


def test_looking_keeps_hands_off_the_attempts_of_others(bench: Bench) -> None:
    """An attempt is not written to, and does not steal, an entry that another consumer has."""
    (a,) = bench.give("you")
    assert bench.settle("me", (2, a, "try", 0, 9), look=1) == [0]
    assert bench.owners() == {a: ("you", 1)}


def test_a_key_of_another_type_is_found_before_anything_is_written(bench: Bench) -> None:
    """WRONGTYPE for a derived event's key: the whole batch is untouched, also what stands before it."""
    a, b = bench.give("me", 2)
    wrong = bench.keys.stream("not.a.stream")
    bench.call("SET", wrong, "text")
    before = bench.everything()
    keys = [bench.keys.fence("me"), bench.stream, bench.other, bench.derived, wrong]
    reply = bench.settle("me", (2, a, "ack", 1, 4, "x"), (2, b, "ack", 1, 5, "y"), keys=keys)
    assert isinstance(reply, ReplyError) and code(reply) == "WRONGTYPE" and "string" in str(reply)
    assert bench.everything() == before


@pytest.mark.parametrize("look", [0, 1])
def test_a_missing_group_does_not_stop_the_others(bench: Bench, look: int) -> None:
    """One stream's group is gone in the middle of a batch: what is still ours is committed whole, nothing by halves."""
    (a,) = bench.give("me")
    (b,) = bench.give("me", 1, bench.other)
    (c,) = bench.give("me")
    bench.call("XGROUP", "DESTROY", bench.other, GROUP)
    reply = bench.settle(
        "me",
        (2, a, "ack", 1, 4, "A"),
        (3, b, "try", 0, 2),
        (3, b, "ack", 0),
        (2, c, "ack", 1, 4, "C"),
        look=look,
    )
    assert not isinstance(reply, ReplyError), reply
    assert [reply[0], reply[3]] == [1, 1]
    assert [row[1][1] for row in bench.call("XRANGE", bench.derived, "-", "+")] == [b"A", b"C"]
    assert bench.owners() == {}


def test_five_hundred_outcomes_pass_at_once(bench: Bench) -> None:
    """A full commit is one call."""
    ids = bench.give("me", 500)
    assert bench.settle("me", *((2, i, "ack", 1, 4, "x" * 200) for i in ids), look=1) == [1] * 500
    assert bench.call("XLEN", bench.derived) == 500 and bench.owners() == {}


# --- reap -------------------------------------------------------------------------------------------------------------


def test_reaping_fences_and_moves_to_the_suspects(bench: Bench) -> None:
    """The dead one's entries go to the pool with their counts as they were; its fence says dead; others keep theirs."""
    ids = bench.give("dead", 3)
    (mine,) = bench.give("me")
    bench.call("XCLAIM", bench.stream, GROUP, "dead", 0, ids[0], "RETRYCOUNT", 3, "JUSTID")
    assert bench.reap("dead") == [3]
    assert bench.owners() == {
        ids[0]: (SUSPECT, 3),
        ids[1]: (SUSPECT, 1),
        ids[2]: (SUSPECT, 1),
        mine: ("me", 1),
    }
    assert bench.call("GET", bench.keys.fence("dead")) == b"dead"
    assert "dead" not in bench.consumers()


def test_a_reaped_consumer_changes_nothing_more(bench: Bench) -> None:
    """Paused and woken up again: its settle, its take and its hand-back are all refused."""
    (a,) = bench.give("dead")
    bench.reap("dead")
    before = bench.everything()
    assert bench.settle("dead", (2, a, "ack", 1, 4, "late")) == b"FENCED"
    assert bench.take("dead", SUSPECT) == b"FENCED"
    assert bench.release("dead", (3, a), leave=1) == b"FENCED"
    assert bench.everything() == before


def test_reaping_goes_on_in_bounded_steps(bench: Bench) -> None:
    """No more than the limit is moved at a time; the consumer is removed, and its heartbeat forgotten with what it
    accepted, at the end."""
    bench.give("dead", 5)
    bench.give("dead", 2, bench.other)
    bench.call("HSET", bench.keys.beats(GROUP), "dead", 17)
    bench.call("HSET", bench.keys.accepts(GROUP), "dead", "{}", "other", "{}")
    assert bench.reap("dead", 3) == [3]
    assert "dead" in bench.consumers()
    assert bench.reap("dead", 3) == [3]
    assert bench.reap("dead", 3) == [1]
    assert "dead" not in bench.consumers()
    assert bench.call("HLEN", bench.keys.accepts(GROUP)) == 2
    assert bench.reap("dead", 3) == [-1]
    assert bench.call("HGET", bench.keys.beats(GROUP), "dead") is None
    assert bench.call("HKEYS", bench.keys.accepts(GROUP)) == [b"other"]
    owners = [owner for owner, _ in (*bench.owners().values(), *bench.owners(bench.other).values())]
    assert owners == [SUSPECT] * 7


def test_reaping_a_group_without_its_streams_is_no_error(bench: Bench) -> None:
    """After FLUSHALL or DEL there is nothing to move."""
    bench.call("DEL", bench.stream, bench.other)
    assert bench.reap("dead") == [-1]


def test_what_is_trimmed_is_never_dropped_silently(bench: Bench) -> None:
    """Reaping names entries without a body and leaves them; handing back leaves them too; losing them takes whoever
    they are pending under, once, and adds what tells of it in the same step."""
    ids = bench.give("dead", 3)
    mine = bench.give("me", 2)
    bench.call("XDEL", bench.stream, ids[1], mine[0])
    assert bench.reap("dead") == [2, 3, ids[1]]
    assert bench.release("me", (3, mine[0]), (3, mine[1]), leave=1) == 1
    assert {i: owner for i, (owner, _) in bench.owners().items()} == {
        ids[0]: SUSPECT,
        ids[1]: "dead",
        ids[2]: SUSPECT,
        mine[0]: "me",
        mine[1]: FREE,
    }
    assert {"dead", "me"} <= bench.consumers()
    lose = (2, ids[1], "lose", 1, 4, "lost"), (2, mine[0], "lose", 1, 4, "lost")
    assert bench.settle("third", *lose, look=1) == [1, 1]
    assert bench.settle("fourth", *lose, look=1) == [0, 0]
    assert bench.call("XLEN", bench.derived) == 2
    assert not {ids[1], mine[0]} & bench.owners().keys()
    assert bench.reap("dead") == [-1]


# --- take -------------------------------------------------------------------------------------------------------------


def test_taking_gives_bodies_and_counts(bench: Bench) -> None:
    """What lay in the pool is ours now, with stream, id, delivery count and fields; at most as many as were asked."""
    ids = bench.give(SUSPECT, 2)
    (other,) = bench.give(SUSPECT, 1, bench.other)
    bench.call("XCLAIM", bench.stream, GROUP, SUSPECT, 0, ids[1], "RETRYCOUNT", 4, "JUSTID")
    assert bench.take("me", SUSPECT, 2) == [2, ids[0], 1, [b"e", b"entry 0"], 2, ids[1], 4, [b"e", b"entry 1"]]
    assert bench.take("me", SUSPECT, 2) == [3, other, 1, [b"e", b"entry 0"]]
    assert bench.take("me", SUSPECT, 2) == []
    assert bench.owners() == {ids[0]: ("me", 1), ids[1]: ("me", 4)}


def test_two_takers_never_get_the_same_entry(bench: Bench) -> None:
    """An entry is in one pair of hands."""
    ids = bench.give(FREE, 10)
    one = bench.take("one", FREE, 6)[1::4]
    two = bench.take("two", FREE, 6)[1::4]
    assert one + two == ids


def test_taking_a_trimmed_entry_says_so(bench: Bench) -> None:
    """A pending entry without a body comes with no fields, so that it can be counted as lost."""
    (a,) = bench.give(FREE)
    bench.call("XDEL", bench.stream, a)
    assert bench.take("me", FREE) == [2, a, 1, []]


def test_taking_from_a_missing_group_gives_nothing(bench: Bench) -> None:
    """A stream whose group is gone does not stop the others."""
    (b,) = bench.give(FREE, 1, bench.other)
    bench.call("XGROUP", "DESTROY", bench.stream, GROUP)
    assert bench.take("me", FREE)[:2] == [3, b]


# --- release ----------------------------------------------------------------------------------------------------------


def test_handing_back_puts_entries_into_the_pool(bench: Bench) -> None:
    """Only what is still ours moves; no delivery is counted."""
    a, b, c = bench.give("me", 3)
    bench.call("XCLAIM", bench.stream, GROUP, "you", 0, c, "JUSTID")
    assert bench.release("me", (3, a), (3, c)) == 1
    assert bench.owners() == {a: (FREE, 1), b: ("me", 1), c: ("you", 1)}


def test_leaving_removes_the_consumer_only_when_it_owns_nothing(bench: Bench) -> None:
    """XGROUP DELCONSUMER drops what is pending, so a consumer that still owns an entry stays to be found."""
    a, b = bench.give("me", 2)
    bench.call("HSET", bench.keys.beats(GROUP), "me", 5)
    bench.call("HSET", bench.keys.accepts(GROUP), "me", "{}", "other", "{}")
    bench.release("me", (3, a), leave=1)
    assert "me" in bench.consumers() and bench.owners() == {a: (FREE, 1), b: ("me", 1)}
    assert bench.call("HGET", bench.keys.beats(GROUP), "me") == b"5"
    assert bench.call("HLEN", bench.keys.accepts(GROUP)) == 2
    bench.release("me", (3, b), leave=1)
    assert "me" not in bench.consumers() and bench.owners() == {a: (FREE, 1), b: (FREE, 1)}
    assert bench.call("HGET", bench.keys.beats(GROUP), "me") is None
    assert bench.call("HKEYS", bench.keys.accepts(GROUP)) == [b"other"]


@pytest.mark.parametrize("leaves", [True, False])
def test_another_kind_of_key_where_acceptances_belong_keeps_nobody(bench: Bench, leaves: bool) -> None:
    """A stranger's value there is left alone; who leaves or is dead goes all the same."""
    bench.give("me")
    bench.call("XACK", bench.stream, GROUP, *bench.owners())
    bench.call("HSET", bench.keys.beats(GROUP), "me", 5)
    bench.call("SET", bench.keys.accepts(GROUP), "what")
    assert (bench.release("me", leave=1) == 0) if leaves else (bench.reap("me") == [-1])
    assert "me" not in bench.consumers() and bench.call("EXISTS", bench.keys.beats(GROUP)) == 0
    assert bench.call("GET", bench.keys.accepts(GROUP)) == b"what"


def test_a_late_copy_of_a_settle_finds_its_fence_closed_after_leaving(bench: Bench) -> None:
    """A worker raised its fence after a lost reply and left: the first copy, should it still come, changes nothing."""
    (a,) = bench.give("me")
    bench.call("INCR", bench.keys.fence("me"))
    assert bench.settle("me", (2, a, "ack", 1, 4, "x"), fence=1, look=1) == [1]
    bench.release("me", leave=1, fence=1)
    assert bench.settle("me", (2, a, "ack", 1, 4, "x"), fence=0) == b"FENCED"
    assert bench.call("XLEN", bench.derived) == 1


def test_an_ordinary_leave_leaves_no_key_behind(bench: Bench) -> None:
    """Who never had to raise its fence has none; workers come and go without traces."""
    bench.give("me")
    bench.call("XACK", bench.stream, GROUP, *bench.owners())
    bench.release("me", leave=1)
    assert bench.call("EXISTS", bench.keys.fence("me")) == 0


# --- parking ----------------------------------------------------------------------------------------------------------

POOL = "~v:picture.made:2"


def test_parking_moves_an_entry_to_its_pool_and_counts_nothing(bench: Bench) -> None:
    """Only what is ours moves; a foreign entry, and one whose body is gone, stay where they are."""
    a, gone = bench.give("me", 2)
    (theirs,) = bench.give("you")
    bench.call("XDEL", bench.stream, gone)
    outcomes = [(2, entry, "park", 0, POOL) for entry in (a, gone, theirs)]
    assert bench.settle("me", *outcomes, (2, a, "ack", 0)) == [1, 1, 0, 1]
    assert bench.owners() == {gone: ("me", 1), theirs: ("you", 1)}, "and an acknowledgement does not ask whose it is"
    (b,) = bench.give("me")
    assert bench.settle("me", (2, b, "park", 0, POOL), (2, b, "try", 0, 9)) == [1, 0]
    assert bench.owners()[b] == (POOL, 1)


def test_only_what_has_lain_long_enough_is_taken(bench: Bench) -> None:
    """By the server's clock; the pool is forgotten with its last entry, when that is asked for, and not before."""
    for entry in bench.give("me", 2):
        bench.settle("me", (2, entry, "park", 0, POOL))
    first, second = sorted(bench.owners())
    bench.call("XCLAIM", bench.stream, GROUP, POOL, 0, first, "IDLE", 5000, "JUSTID")
    assert bench.take("me", POOL, lain_ms=4000, forget=1) == [2, first, 1, [b"e", b"entry 0"]]
    assert bench.take("me", POOL, lain_ms=4000, forget=1) == [] and POOL in bench.consumers()
    assert bench.take("me", POOL, forget=1)[1] == second
    assert POOL not in bench.consumers()
    assert bench.owners() == {first: ("me", 1), second: ("me", 1)}


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [SETTLE, REAP, TAKE, RELEASE], ids=lambda s: s.name)
def test_a_script_is_loaded_when_the_server_forgot_it(bench: Bench, script: Script) -> None:
    """NOSCRIPT is answered with the source; after SCRIPT FLUSH the same call works, and the hash is known again."""
    bench.call("SCRIPT", "FLUSH")
    calls = {
        "settle": lambda: bench.settle("me"),
        "reap": lambda: bench.reap("nobody"),
        "take": lambda: bench.take("me", FREE),
        "release": lambda: bench.release("me"),
    }
    assert not isinstance(calls[script.name](), ReplyError)
    assert bench.call("SCRIPT", "EXISTS", script.sha) == [1]
