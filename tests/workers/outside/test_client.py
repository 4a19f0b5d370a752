"""The one client: what a reply says, what is known when there is none, and the guard, which only those have who ask for it.

What it does with every kind of bad server is tested where it matters most: alerts/destinations/test_http.py.
"""

from base64 import b64encode

import pytest
import trio
import trio.testing
from serving import Server, answering, sending
from trio.testing import MockClock

from canvasbus_workers.outside.client import LARGEST_ERROR, Blocked, Client, NoAnswer, NotSent, Reply
from canvasbus_workers.outside.dial import Network
from canvasbus_workers.outside.guard import Allow
from canvasbus_workers.outside.secret import Secret


async def asked(url: str | Secret, *, seconds: float = 5.0, most: int = 100, key: Secret | None = None) -> Reply:
    """The reply to a POST."""
    async with Client("tests") as client:
        return await client.request("POST", url, seconds=seconds, body=b"{}", authorization=key, most=most)


async def test_a_reply(nursery: trio.Nursery) -> None:
    """Status, Retry-After and body; the request has its header, and says that its body is JSON."""
    server = await Server(answering(201, b'{"id": 1}', Retry_After="3")).start(nursery)
    reply = await asked(server.url, key=Secret("Bearer x"))
    assert reply == Reply(201, "3", b'{"id": 1}', whole=True, said='{"id": 1}')
    (request,) = server.requests
    assert (request.headers["authorization"], request.headers["content-type"]) == ("Bearer x", "application/json")
    assert (request.headers["user-agent"], request.body) == ("tests", b"{}")


@pytest.mark.parametrize(
    ("status", "body", "most", "kept", "whole"),
    [
        (200, b"x" * 99, 100, 99, True),
        (200, b"x" * 101, 100, 100, False),
        (200, b"x" * 9, 0, 0, False),
        (400, b"x" * 9, 0, 9, True),
        (400, b"x" * 9000, 10_000, LARGEST_ERROR, False),
    ],
)
async def test_so_much_of_a_body_is_read(
    nursery: trio.Nursery, status: int, body: bytes, most: int, kept: int, whole: bool
) -> None:
    """As much as is wanted; of an error enough to tell people. Whether that is all is said."""
    server = await Server(answering(status, body)).start(nursery)
    reply = await asked(server.url, most=most)
    assert (reply.status, len(reply.body), reply.whole) == (status, kept, whole)


async def test_a_body_that_breaks_off(nursery: trio.Nursery) -> None:
    """The status has come; that something is missing is seen."""
    server = await Server(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")).start(nursery)
    reply = await asked(server.url)
    assert (reply.status, reply.body, reply.whole) == (200, b"{", False)


async def test_what_an_answer_repeats(nursery: trio.Nursery) -> None:
    """The path of a URL is shown unless the URL is a secret; a token never is, with its scheme or without."""
    server = await Server(answering(404, b"no /hook/sesame")).start(nursery)
    url, hidden = f"{server.url}/sesame", "its text repeats a secret and is not shown"
    assert (await asked(url)).said == "no /hook/sesame"
    async with Client("tests") as client:
        assert (await client.request("GET", url, seconds=5, query="a=1")).status == 404
    assert server.requests[-1].target == "/hook/sesame?a=1"
    reply = await asked(Secret(url))
    assert reply.said == hidden and "sesame" not in repr(reply)
    server.script = answering(401, b"what is t0ken?")
    assert (await asked(url, key=Secret("Bearer t0ken"))).said == hidden
    assert (await asked(url, key=Secret("t0ken"))).said == hidden


@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        ("ops:s3same", "unknown user ops:s3same"),
        ("ops:s3same", "wrong password: s3same"),
        ("ops:open:s3same", "wrong password: open:s3same"),
        ("ops:käse", "wrong password: käse"),
        ("ops:open s3same", "wrong password: open%20s3same"),
    ],
)
async def test_a_password_is_not_shown(nursery: trio.Nursery, credentials: str, said: str) -> None:
    """Whoever checks a Basic authorization has its password in plain text, and may repeat that."""
    server = await Server(answering(401, said.encode())).start(nursery)
    packed = b64encode(credentials.encode()).decode()
    for scheme in ("Basic", "basic"):
        reply = await asked(server.url, key=Secret(f"{scheme} {packed}"))
        assert reply.said == "its text repeats a secret and is not shown"
    server.script = answering(401, b"who are you?")
    for key in (f"Basic {packed}", "Basic it is no base64", "Basic"):
        assert (await asked(server.url, key=Secret(key))).said == "who are you?"


async def test_before_it_is_sent_nothing_has_happened(mock_clock: MockClock) -> None:
    """A time that runs out while a name is looked up: whoever must not ask twice may ask again."""

    async def never(host: str, port: int) -> list[str]:
        mock_clock.jump(6)
        await trio.sleep_forever()
        raise AssertionError

    async with Client("tests", network=Network(never)) as client:
        with pytest.raises(NotSent, match=r"^no answer within 5 s$"):
            await client.request("POST", "http://trainer/", seconds=5)


async def test_after_it_is_sent_nobody_knows(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """The time runs out, or the connection is closed."""

    async def hang(stream: trio.abc.Stream) -> None:
        mock_clock.jump(6)
        await trio.sleep_forever()

    server = await Server(hang).start(nursery)
    with pytest.raises(NoAnswer, match=r"^no answer within 5 s$"):
        await asked(server.url)
    server.script = sending()
    with pytest.raises(NoAnswer, match=r"^the connection was closed before an answer$"):
        await asked(server.url)


async def test_the_time_may_have_begun_before(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """Two requests within one time."""
    server = await Server(answering(200)).start(nursery)
    mock_clock.jump(10)
    async with Client("tests") as client:
        assert (await client.request("GET", server.url, seconds=5, since=6.0)).status == 200
        with pytest.raises(NotSent, match=r"^no answer within 5 s$"):
            await client.request("GET", server.url, seconds=5, since=4.0)
    assert len(server.requests) == 1


async def test_a_guard_for_those_who_ask_for_it(nursery: trio.Nursery) -> None:
    """An address inside is the operator's own, and called; with a guard only when that allows it."""
    server = await Server(answering(200)).start(nursery)
    for guard in (None, Allow.of(["127.0.0.1"])):
        async with Client("tests", guard=guard) as client:
            assert (await client.request("GET", server.url, seconds=5)).status == 200
    async with Client("tests", guard=Allow()) as client:
        with pytest.raises(Blocked, match=r"^127.0.0.1 resolves to 127.0.0.1, a loopback address: "):
            await client.request("GET", server.url, seconds=5)
    assert len(server.requests) == 2
