"""RESP: whatever pieces the network cuts it into, the same replies come out; and what is not RESP is said to be so."""

from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from canvasbus.errors import Refused, TransportError
from canvasbus.transport.link import Link
from canvasbus.transport.remote_trio import RemoteConnection
from canvasbus.transport.resp import Packet, Reply, ReplyError, XaddHeads, commands, pack

quick = settings(deadline=None, max_examples=60)
line = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
scalars = st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=60) | line.map(ReplyError)
replies = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
cuts = st.lists(st.integers(1, 40), max_size=30)


def written(reply: Reply) -> bytes:
    """A reply as a server writes it: the protocol, by hand."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, ReplyError):
        return b"-%b\r\n" % str(reply).encode()
    return b"*%d\r\n%b" % (len(reply), b"".join(map(written, reply)))


def plain(reply: Reply) -> Any:
    """Something that can be compared: errors are not equal to each other."""
    if isinstance(reply, ReplyError):
        return "error", str(reply)
    return [plain(item) for item in reply] if isinstance(reply, list) else reply


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """The bytes, cut; what is left over comes last."""
    found = []
    for size in sizes:
        found.append(data[:size])
        data = data[size:]
    return [piece for piece in [*found, data] if piece]


class Cut(trio.abc.Stream):
    """A stream that gives one piece at a time, and then the end."""

    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts
        self.sent = b""

    async def send_all(self, data: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += data

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.parts.pop(0) if self.parts else b""

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class OneConnection:
    """A server that is there once."""

    name, blocks, shared = "once://", True, True

    def __init__(self, stream: Cut) -> None:
        self.stream = stream

    async def connect(self) -> RemoteConnection:
        await trio.lowlevel.checkpoint()
        return RemoteConnection(self.stream, self.name)

    def connect_blocking(self) -> Any:
        raise NotImplementedError


async def all_of(connection: RemoteConnection, count: int) -> list[Reply]:
    found: list[Reply] = []
    while len(found) < count:
        found += await connection.receive()
    return found


@quick
@given(sent=st.lists(replies, min_size=1, max_size=8), sizes=cuts)
def test_any_cut_gives_the_same_replies(sent: list[Reply], sizes: list[int]) -> None:
    """Inside a length, between CR and LF, in the middle of a value: it makes no difference where a piece ends."""
    stream = Cut(pieces(b"".join(map(written, sent)), sizes))
    found = trio.run(all_of, RemoteConnection(stream, "cut"), len(sent))
    assert list(map(plain, found)) == list(map(plain, sent))


@quick
@given(answers=st.lists(st.lists(replies, min_size=1, max_size=4), min_size=1, max_size=6), sizes=cuts, data=st.data())
def test_each_request_of_a_link_gets_its_own_replies(
    answers: list[list[Reply]], sizes: list[int], data: st.DataObject
) -> None:
    """Requests one after the other, some of which nobody waits for: each other one gets what it asked for."""
    cancelled = [data.draw(st.booleans()) for _ in answers]

    async def main() -> None:
        stream = Cut([])
        link = Link(OneConnection(stream))
        for answer, give_up in zip(answers, cancelled, strict=True):
            stream.parts += pieces(b"".join(map(written, answer)), sizes)
            await link.send(Packet(b"", len(answer)))
            if not give_up:
                assert list(map(plain, await link.receive(len(answer)))) == list(map(plain, answer))

    trio.run(main)


@quick
@given(noise=st.binary(min_size=1, max_size=200), sizes=cuts)
def test_noise_is_no_reply_and_hangs_nobody(noise: bytes, sizes: list[int]) -> None:
    """Bytes of anything: replies, or an error of the transport when the protocol is broken or the stream ends."""

    async def main() -> None:
        connection = RemoteConnection(Cut(pieces(noise, sizes)), "noise")
        with pytest.raises(TransportError):
            while True:
                await connection.receive()

    trio.run(main)


@pytest.mark.parametrize(
    "head", [b"*4294967295\r\n", b"$536870911\r\n", b"*-7\r\n", b"$-7\r\n", b"*1\r\n" * 50, b"?\r\n", b":1x\r\n"]
)
def test_heads_that_promise_too_much_end_in_an_error(head: bytes) -> None:
    """Lengths that never come, negative ones, arrays in arrays in arrays: an error, and no memory for it."""

    async def main() -> None:
        with pytest.raises(TransportError):
            await RemoteConnection(Cut([head]), "liar").receive()

    trio.run(main)


def test_what_speaks_another_protocol_is_named() -> None:
    """A web server, for example."""

    async def main() -> None:
        with pytest.raises(Refused, match="does not speak the Redis protocol"):
            await RemoteConnection(Cut([b"HTTP/1.1 400 Bad Request\r\n"]), "web").receive()

    trio.run(main)


words = st.lists(
    st.binary(max_size=40) | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20), min_size=1, max_size=6
)


def as_bytes(word: bytes | int | str) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


@quick
@given(sent=st.lists(words, min_size=1, max_size=5))
def test_commands_are_written_as_arrays_of_values(sent: list[list[bytes | int | str]]) -> None:
    """Byte for byte, whatever is in the words: CR, LF and NUL among them."""
    wanted = b"".join(written([as_bytes(word) for word in one]) for one in sent)
    packet = commands(*map(tuple, sent))
    assert (packet.data, packet.replies) == (wanted, len(sent))


@quick
@given(values=st.lists(st.binary(max_size=60), min_size=1, max_size=6), stream=st.binary(min_size=1, max_size=20))
def test_an_xadd_in_pieces_is_the_command(values: list[bytes], stream: bytes) -> None:
    """What is put together from prepared heads is what `pack` writes."""
    heads = XaddHeads(stream)
    made = b"".join(heads[len(value)] + value for value in values) + b"\r\n"
    assert made == b"\r\n" + b"".join(pack("XADD", stream, "*", "e", value) for value in values)
