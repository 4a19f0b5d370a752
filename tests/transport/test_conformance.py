"""One suite for every transport: fakeredis in this process, Redis 7.0 and Valkey.

What the machinery relies on is written down here once and holds everywhere; what a back end cannot do is declared by
the seam (`Server.blocks`), and then the other way of doing it is tested in its place.
"""

import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from waiting import until

from canvasbus.errors import Refused, Unavailable
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.link import Link
from canvasbus.transport.resp import (
    Packet,
    ReplyError,
    XaddHeads,
    code,
    command,
    commands,
    is_no_group,
    pack,
    translate,
)
from canvasbus.transport.server import Server

GROUP = b"readers"


class Desk:
    """A link, and keys that no other test uses."""

    def __init__(self, link: Link, namespace: str) -> None:
        self.link = link
        self._namespace = namespace
        self.stream = self.key("things")

    def key(self, name: str) -> bytes:
        return f"{{{self._namespace}:0}}:{name}".encode()

    async def call(self, *args: bytes | str | float) -> Any:
        return (await self.link.request(command(*args)))[0]

    async def many(self, *parts: tuple[bytes | str | int | float, ...]) -> list[Any]:
        return await self.link.request(commands(*parts))

    async def add(self, value: bytes = b"x") -> bytes:
        entry_id = await self.call("XADD", self.stream, "*", "e", value)
        assert isinstance(entry_id, bytes)
        return entry_id

    async def make_group(self) -> None:
        assert await self.call("XGROUP", "CREATE", self.stream, GROUP, "0", "MKSTREAM") == b"OK"

    async def read(self, consumer: str = "me", count: int = 10, group: bytes | str = GROUP) -> list[bytes]:
        reply = await self.call("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", self.stream, ">")
        return [entry[0] for entry in reply[0][1]] if reply else []

    async def pending(self, *consumer: str) -> list[tuple[bytes, bytes, int]]:
        rows = await self.call("XPENDING", self.stream, GROUP, "-", "+", 100, *consumer)
        return [(row[0], row[1], row[3]) for row in rows]


@pytest.fixture
def server(any_url: str) -> Server:
    return open_server(any_url)


@pytest.fixture
async def desk(server: Server, namespace: str) -> AsyncIterator[Desk]:
    link = Link(server)
    yield Desk(link, namespace)
    await link.aclose()


# --- bytes ------------------------------------------------------------------------------------------------------------


async def test_bytes_come_back_as_they_were_sent(desk: Desk) -> None:
    """Values are binary safe: every byte, the empty value, and what looks like the protocol itself."""
    for value in (b"", bytes(range(256)), b"$3\r\nfoo\r\n", b"\r\n" * 100):
        entry_id = await desk.add(value)
        assert await desk.call("XRANGE", desk.stream, entry_id, entry_id) == [[entry_id, [b"e", value]]]


async def test_a_value_of_five_megabytes_passes(desk: Desk) -> None:
    """A value far larger than any socket buffer goes there and back."""
    value = bytes(5 * 1024 * 1024)
    entry_id = await desk.add(value)
    rows = await desk.call("XRANGE", desk.stream, entry_id, entry_id)
    assert rows == [[entry_id, [b"e", value]]]


async def test_prebuilt_xadd_bytes_are_an_xadd(desk: Desk) -> None:
    """A prebuilt head, the value and CRLF do what the packed command does, whatever the length and the name."""
    stream = desk.key("stream:100%")
    heads = XaddHeads(stream)
    for value in (b"", b"v" * 1000, b"%b%d", b"w" * 1000):
        head = heads[len(value)].removeprefix(b"\r\n")  # which ends the command before; there is none
        (entry_id,) = await desk.link.request(Packet(head + value + b"\r\n", 1))
        assert await desk.call("XRANGE", stream, entry_id, entry_id) == [[entry_id, [b"e", value]]]


async def test_a_batch_of_five_hundred_has_five_hundred_ordered_replies(desk: Desk) -> None:
    """Replies come in the order of the commands, entry ids only rise."""
    replies = await desk.link.request(
        Packet(b"".join(pack("XADD", desk.stream, "*", "e", str(i)) for i in range(500)), 500)
    )
    rows = await desk.call("XRANGE", desk.stream, "-", "+")
    assert [row[0] for row in rows] == replies
    assert [row[1][1] for row in rows] == [str(i).encode() for i in range(500)]


async def test_replies_have_the_types_of_the_wire(desk: Desk) -> None:
    """Nothing but bytes, int, None, lists and ReplyError comes out, whatever the back end uses inside."""
    await desk.add()
    await desk.make_group()
    await desk.read()
    replies = await desk.link.request(
        commands(
            ("PING",),
            ("SET", desk.key("k"), "v"),
            ("GET", desk.key("nothing")),
            ("HINCRBY", desk.key("h"), "f", 1),
            ("HGETALL", desk.key("h")),
            ("EXISTS", desk.key("k")),
            ("TYPE", desk.stream),
            ("SMEMBERS", desk.key("none")),
            ("XINFO", "STREAM", desk.stream),
            ("XINFO", "GROUPS", desk.stream),
            ("XINFO", "CONSUMERS", desk.stream, GROUP),
            ("XPENDING", desk.stream, GROUP),
            ("SCAN", 0, "COUNT", 10),
            ("TIME",),
            ("NONSENSE",),
        )
    )

    def check(reply: object) -> None:
        assert type(reply) in (bytes, int, type(None), list, ReplyError), repr(reply)
        for item in reply if isinstance(reply, list) else ():
            check(item)

    for reply in replies:
        check(reply)
    assert replies[:5] == [b"PONG", b"OK", None, 1, [b"f", b"1"]]


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_an_error_is_a_value_in_its_place(desk: Desk) -> None:
    """An error reply does not disturb its neighbours and keeps its first word."""
    replies = await desk.link.request(
        commands(
            ("SET", desk.key("text"), "v"),
            ("XADD", desk.key("text"), "*", "e", "x"),
            ("GET", desk.key("text")),
            ("EVALSHA", "0" * 40, 0),
        )
    )
    assert replies[0] == b"OK" and replies[2] == b"v"
    assert isinstance(replies[1], ReplyError) and code(replies[1]) == "WRONGTYPE"
    assert isinstance(replies[3], ReplyError) and code(replies[3]) == "NOSCRIPT"


async def test_a_group_is_made_once(desk: Desk) -> None:
    """XGROUP CREATE of a group that exists answers BUSYGROUP; MKSTREAM makes the stream."""
    await desk.make_group()
    again = await desk.call("XGROUP", "CREATE", desk.stream, GROUP, "0", "MKSTREAM")
    assert isinstance(again, ReplyError) and code(again) == "BUSYGROUP"
    wrong = await desk.many(
        ("SET", desk.key("text"), "v"), ("XGROUP", "CREATE", desk.key("text"), GROUP, "0", "MKSTREAM")
    )
    assert isinstance(wrong[1], ReplyError) and code(wrong[1]) == "WRONGTYPE"


@pytest.mark.parametrize("stream_exists", [True, False])
async def test_a_missing_group_is_recognised(desk: Desk, stream_exists: bool) -> None:
    """Reading, listing and asking for a group that is gone give errors that `is_no_group` knows; XACK gives 0."""
    if stream_exists:
        await desk.add()
    replies = await desk.link.request(
        commands(
            ("XREADGROUP", "GROUP", GROUP, "me", "COUNT", 1, "STREAMS", desk.stream, ">"),
            ("XPENDING", desk.stream, GROUP, "-", "+", 10),
            ("XPENDING", desk.stream, GROUP, "-", "+", 10, "me"),
            ("XACK", desk.stream, GROUP, "1-1"),
        )
    )
    assert all(isinstance(reply, ReplyError) and is_no_group(reply) for reply in replies[:3]), replies
    assert replies[3] == 0


# --- streams and groups -----------------------------------------------------------------------------------------------


async def test_each_entry_goes_to_one_consumer(desk: Desk) -> None:
    """Entries are delivered once per group, in order, COUNT at a time; nothing new is an empty answer."""
    await desk.make_group()
    ids = [await desk.add() for _ in range(5)]
    assert await desk.read("a", 2) == ids[:2]
    assert await desk.read("b", 10) == ids[2:]
    assert await desk.read("a") == []
    assert await desk.pending() == [(i, b"a", 1) for i in ids[:2]] + [(i, b"b", 1) for i in ids[2:]]
    assert await desk.pending("b") == [(i, b"b", 1) for i in ids[2:]]


async def test_one_read_serves_several_streams(desk: Desk) -> None:
    """COUNT is per stream, and each stream's entries come under its name."""
    streams = [desk.key(f"stream:{i}") for i in range(3)]
    for stream in streams:
        await desk.call("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
        await desk.many(*(("XADD", stream, "*", "e", i) for i in range(3)))
    reply = await desk.call("XREADGROUP", "GROUP", GROUP, "me", "COUNT", 2, "STREAMS", *streams, ">", ">", ">")
    assert [(stream, len(entries)) for stream, entries in reply] == [(s, 2) for s in streams]


async def test_start_positions_of_a_group(desk: Desk) -> None:
    """An earliest group ("0") reads everything, "$" what comes, an id what lies after it; (ms-maximum) what lies after a millisecond."""
    ids = [await desk.add() for _ in range(3)]
    for group, start, expected in (("g0", "0", ids), ("g$", "$", []), ("gi", ids[0].decode(), ids[1:])):
        assert await desk.call("XGROUP", "CREATE", desk.stream, group, start, "MKSTREAM") == b"OK"
        assert await desk.read(group=group) == expected
    later = int(ids[-1].partition(b"-")[0])
    for group, start, expected in (
        ("before", f"{later - 100_000}-{2**64 - 1}", ids),
        ("after", f"{later}-{2**64 - 1}", []),
    ):
        await desk.call("XGROUP", "CREATE", desk.stream, group, start)
        assert await desk.read(group=group) == expected


async def test_acknowledging_counts_what_was_pending(desk: Desk) -> None:
    """XACK answers how many entries it removed; a second time it is 0 and harms nothing."""
    await desk.make_group()
    ids = [await desk.add() for _ in range(3)]
    await desk.read()
    assert await desk.call("XACK", desk.stream, GROUP, *ids) == 3
    assert await desk.call("XACK", desk.stream, GROUP, *ids) == 0
    assert await desk.pending() == []


async def test_claiming_with_justid_moves_and_counts_nothing(desk: Desk) -> None:
    """XCLAIM JUSTID changes the owner and leaves the delivery count alone; RETRYCOUNT writes it."""
    await desk.make_group()
    entry = await desk.add()
    await desk.read("a")
    assert await desk.call("XCLAIM", desk.stream, GROUP, "b", 0, entry, "JUSTID") == [entry]
    assert await desk.pending() == [(entry, b"b", 1)]
    await desk.call("XCLAIM", desk.stream, GROUP, "b", 0, entry, "RETRYCOUNT", 7, "JUSTID")
    assert await desk.pending() == [(entry, b"b", 7)]
    await desk.call("XACK", desk.stream, GROUP, entry)
    assert await desk.call("XCLAIM", desk.stream, GROUP, "c", 0, entry, "JUSTID") == []
    assert await desk.pending() == [], "claiming what is not pending makes nothing pending"


async def test_pending_entries_are_paged_from_an_exclusive_start(desk: Desk) -> None:
    """XPENDING takes "(id" as a start, so that pages neither overlap nor miss."""
    await desk.make_group()
    ids = [await desk.add() for _ in range(5)]
    await desk.read("me")
    rows = await desk.call("XPENDING", desk.stream, GROUP, b"(" + ids[1], "+", 2, "me")
    assert [row[0] for row in rows] == ids[2:4]


async def test_the_groups_of_a_stream_tell_their_position(desk: Desk) -> None:
    """XINFO has what recovery needs: the group's last delivered id, the stream's last id, the consumers' names."""
    await desk.make_group()
    ids = [await desk.add() for _ in range(3)]
    await desk.read("me", 2)
    (group,) = await desk.call("XINFO", "GROUPS", desk.stream)
    assert dict(zip(group[::2], group[1::2], strict=True))[b"last-delivered-id"] == ids[1]
    stream = await desk.call("XINFO", "STREAM", desk.stream)
    assert dict(zip(stream[::2], stream[1::2], strict=True))[b"last-generated-id"] == ids[2]
    (consumer,) = await desk.call("XINFO", "CONSUMERS", desk.stream, GROUP)
    assert consumer[0] == b"name" and consumer[1] == b"me"


async def test_a_deleted_consumer_takes_its_pending_entries_along(desk: Desk) -> None:
    """XGROUP DELCONSUMER drops what it owns: which is why only a consumer that owns nothing is ever removed."""
    await desk.make_group()
    await desk.add()
    await desk.read("me")
    assert await desk.call("XGROUP", "DELCONSUMER", desk.stream, GROUP, "me") == 1
    assert await desk.pending() == []


# --- transactions -----------------------------------------------------------------------------------------------------


async def test_a_transaction_is_executed_as_one(desk: Desk) -> None:
    """MULTI, commands, EXEC and a WATCH for the next one, in one packet."""
    replies = await desk.link.request(
        commands(
            ("WATCH", desk.key("fence")), ("MULTI",), ("XADD", desk.stream, "*", "e", 1), ("XADD", desk.stream, "*", "e", 2), ("EXEC",),
            ("WATCH", desk.key("fence")),
        )
    )  # fmt: skip
    assert replies[1:4] == [b"OK", b"QUEUED", b"QUEUED"] and len(replies[4]) == 2 and replies[5] == b"OK"


async def test_a_watched_key_that_changed_aborts_the_transaction(desk: Desk, server: Server) -> None:
    """After the fence was raised by somebody else EXEC answers nil and nothing is stored."""
    await desk.link.request(command("WATCH", desk.key("fence")))
    other = BlockingLink(server)
    assert other.call("INCR", desk.key("fence")) == 1
    other.close()
    replies = await desk.many(("MULTI",), ("XADD", desk.stream, "*", "e", 1), ("EXEC",))
    assert replies[-1] is None
    assert await desk.call("EXISTS", desk.stream) == 0


async def test_errors_inside_a_transaction_are_values_inside_its_reply(desk: Desk) -> None:
    """A command that fails at run time does not stop the others; its error stands in its place in EXEC's list."""
    replies = await desk.link.request(
        commands(
            ("SET", desk.key("text"), "v"),
            ("MULTI",),
            ("XADD", desk.key("text"), "*", "e", 1),
            ("XADD", desk.stream, "*", "e", 1),
            ("EXEC",),
        )
    )
    first, second = replies[-1]
    assert isinstance(first, ReplyError) and code(first) == "WRONGTYPE"
    assert isinstance(second, bytes)


async def test_a_command_that_cannot_be_queued_aborts_the_transaction(desk: Desk) -> None:
    """EXEC then answers EXECABORT."""
    replies = await desk.many(("MULTI",), ("NONSENSE", desk.stream), ("EXEC",))
    assert isinstance(replies[1], ReplyError)
    assert isinstance(replies[2], ReplyError) and code(replies[2]) == "EXECABORT"


async def test_threads_see_the_same_replies(desk: Desk, server: Server) -> None:
    """The blocking pipe gives what the trio pipe gives, errors inside EXEC included."""
    link = BlockingLink(server)
    packet = commands(
        ("SET", desk.key("text"), "v"),
        ("XADD", desk.key("text"), "*", "e", "x"),
        ("GET", desk.key("nothing")),
        ("MULTI",),
        ("XADD", desk.key("text"), "*", "e", 1),
        ("INCR", desk.key("n")),
        ("EXEC",),
        ("XREADGROUP", "GROUP", GROUP, "me", "STREAMS", desk.stream, ">"),
        ("EVALSHA", "0" * 40, 0),
        ("HGETALL", desk.key("none")),
    )
    from_thread = link.request(packet)
    link.call("DEL", desk.key("n"))
    other = Link(server)
    from_trio = await other.request(packet)
    await other.aclose()
    link.close()
    assert repr(from_thread) == repr(from_trio)


# --- waiting for entries ----------------------------------------------------------------------------------------------


async def test_a_waiting_reader_hears_of_an_entry_from_another_thread(desk: Desk, server: Server) -> None:
    """Whoever waits for an entry is woken by it at once, by BLOCK or by the change callback, not by its timeout."""
    await desk.make_group()
    found: list[bytes] = []
    waiting = trio.Event()

    async def reader() -> None:
        if server.blocks:
            waiting.set()
            packet = command(
                "XREADGROUP", "GROUP", GROUP, "me", "COUNT", 10, "BLOCK", 30_000, "STREAMS", desk.stream, ">"
            )
            reply = (await desk.link.request(packet, timeout=40))[0]
            found.extend(entry[0] for entry in reply[0][1])
        else:
            while not found:
                found.extend(await desk.read())
                waiting.set()
                if not found:
                    await desk.link.wait_change(30)

    added: list[object] = []

    def write() -> None:
        other = BlockingLink(server)
        added.append(other.call("XADD", desk.stream, "*", "e", "x"))
        other.close()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await waiting.wait()
            for _ in range(3):
                await trio.testing.wait_all_tasks_blocked(0.01)
            thread = threading.Thread(target=write)
            thread.start()
        thread.join()
    assert found == added


async def test_a_blocked_read_can_be_ended(desk: Desk, server: Server) -> None:
    """CLIENT UNBLOCK ends a blocked read with an empty answer, and the connection stays usable."""
    if not server.blocks:
        return  # declared by the seam: readers wait in `wait_change`, which any task may cancel
    await desk.make_group()
    replies: list[object] = []

    async def reader() -> None:
        packet = command("XREADGROUP", "GROUP", GROUP, "me", "BLOCK", 30_000, "STREAMS", desk.stream, ">")
        replies.extend(await desk.link.request(packet, timeout=40))

    other = Link(server)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            while not replies:
                assert desk.link.client_id is None or isinstance(desk.link.client_id, int)
                if desk.link.client_id is not None:
                    await Desk(other, "").call("CLIENT", "UNBLOCK", desk.link.client_id)
                await trio.lowlevel.checkpoint()
    await other.aclose()
    assert replies == [None]
    assert await desk.call("PING") == b"PONG"


# --- time -------------------------------------------------------------------------------------------------------------


async def test_a_key_with_a_lifetime_ends(desk: Desk, server: Server) -> None:
    """SET PX and PEXPIRE end a key; a value set NX is refused while it lives."""
    assert await desk.call("SET", desk.key("lease"), "me", "NX", "PX", 60_000) == b"OK"
    assert await desk.call("SET", desk.key("lease"), "you", "NX", "PX", 60_000) is None
    assert await desk.call("PEXPIRE", desk.key("lease"), 30) == 1
    other = BlockingLink(server)
    await until(lambda: other.call("EXISTS", desk.key("lease")) == 0)
    assert await desk.call("SET", desk.key("lease"), "you", "NX", "PX", 60_000) == b"OK"
    other.close()


# --- scripts ----------------------------------------------------------------------------------------------------------


async def test_a_script_may_do_all_that_ours_do(desk: Desk) -> None:
    """Streams, groups, types and lists behave inside Lua as they do outside."""
    script = """
    redis.call('XADD', KEYS[1], '*', 'e', ARGV[1])
    redis.call('XGROUP', 'CREATE', KEYS[1], 'g', '0')
    redis.call('XREADGROUP', 'GROUP', 'g', 'me', 'STREAMS', KEYS[1], '>')
    local rows = redis.call('XPENDING', KEYS[1], 'g', '-', '+', 10, 'me')
    local kind = redis.call('TYPE', KEYS[1])
    local failed = redis.pcall('XPENDING', KEYS[1], 'none', '-', '+', 10)
    local body = redis.call('XRANGE', KEYS[1], rows[1][1], rows[1][1])
    local none = redis.call('XRANGE', KEYS[1], '1-1', '1-1')
    local gone = redis.call('GET', 'nothing')
    return {#rows, rows[1][4], kind.ok or kind, failed.err and 1 or 0, body[1][2], none, gone and 1 or 0}
    """
    reply = await desk.call("EVAL", script, 1, desk.stream, b"\x00\xff")
    assert reply == [1, 1, b"stream", 1, [b"e", b"\x00\xff"], [], 0]


async def test_a_script_answers_status_and_errors(desk: Desk) -> None:
    """A script's status reply comes as bytes, its error reply as a ReplyError with the script's first word."""
    assert await desk.call("EVAL", "return redis.status_reply('FENCED')", 0) == b"FENCED"
    wrong = await desk.call("EVAL", "return redis.error_reply('WRONGTYPE k holds a string')", 0)
    assert isinstance(wrong, ReplyError) and code(wrong) == "WRONGTYPE"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", Unavailable),
        (
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            Unavailable,
        ),
        ("NOREPLICAS Not enough good replicas to write.", Unavailable),
        ("NOPERM this user has no permissions to run the 'xadd' command", Refused),
    ],
)
def test_a_transaction_that_is_refused_as_a_whole_means_what_its_reason_means(text: str, kind: type) -> None:
    """A server that came into trouble between queueing and EXEC says why behind EXECABORT: then waiting helps or not, as
    it does for the single command."""
    alone = translate(ReplyError(text), "publish")
    whole = translate(ReplyError(f"EXECABORT Transaction discarded because of: {text}"), "publish")
    assert type(whole) is type(alone) is kind and str(whole) == str(alone)
    assert isinstance(
        translate(ReplyError("EXECABORT Transaction discarded because of previous errors."), "x"), Refused
    )
