"""What a destination does with real servers: every kind of answer, and every way not to get one."""

import gc
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpcore2
import pytest
import trio
import trio.testing
from serving import Server, answering, hang, sending, speaking_first
from trio.testing import MockClock
from workers.alerts.destinations.telling import LOCAL, about, tell

from canvasbus.worker import Reject, RetryLater
from canvasbus_workers.alerts.destinations import Destinations, Undelivered, read
from canvasbus_workers.alerts.notification import Gone
from canvasbus_workers.outside.client import LARGEST_ERROR
from canvasbus_workers.outside.dial import Network

if TYPE_CHECKING:
    import trustme


async def failure(url: str, wanted: type[Exception], **settings: Any) -> str:
    """What the error says with which sending fails."""
    network = settings.pop("network", None)
    with pytest.raises(wanted) as caught:
        await tell({"kind": "webhook", "url": url, **LOCAL, **settings}, network=network)
    return str(caught.value)


async def test_an_answer_of_success_is_all_that_is_needed(nursery: trio.Nursery) -> None:
    """One POST, with the host it was meant for; the statistics count it."""
    server = await Server(answering(204)).start(nursery)
    destinations = await tell({"kind": "webhook", "url": server.url, **LOCAL})
    (request,) = server.requests
    assert (request.method, request.target) == ("POST", "/hook")
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert destinations.statistics()["ops"]["taken"] == 1


async def test_an_address_of_version_6(nursery: trio.Nursery) -> None:
    """With brackets in the header Host, as in the URL."""
    server = await Server(answering(200)).start(nursery)
    settings = {"kind": "webhook", "url": f"http://[::1]:{server.port}/", "plain_http": True}
    network = Network(resolver(["127.0.0.1"]))  # so that no machine needs IPv6 for it
    await tell({**settings, "allow": ["::1", "127.0.0.1"]}, network=network)
    assert server.requests[0].headers["host"] == f"[::1]:{server.port}"


@pytest.mark.parametrize(
    ("status", "wanted", "counted"),
    [
        (404, Reject, "rejected"),
        (410, Gone, "gone"),
        (429, RetryLater, "delayed"),
        (500, Undelivered, "undelivered"),
    ],
)
async def test_a_refusal_is_raised_and_counted(
    nursery: trio.Nursery, status: int, wanted: type[Exception], counted: str
) -> None:
    """With the status and what the answer says, in one line."""
    server = await Server(answering(status, b"no\nsuch channel\x07")).start(nursery)
    async with Destinations(read({"ops": {"kind": "webhook", "url": server.url, **LOCAL}})) as destinations:
        with pytest.raises(wanted, match=rf"^ops answers {status} \(no such channel\)"):
            await destinations["ops"].send(about())
    assert {word: count for word, count in destinations.statistics()["ops"].items() if count} == {counted: 1}


async def test_retry_after_of_a_real_answer(nursery: trio.Nursery) -> None:
    """The header is read, and capped by the settings."""
    server = await Server(answering(429, Retry_After="3600")).start(nursery)
    with pytest.raises(RetryLater) as caught:
        await tell({"kind": "webhook", "url": server.url, "retry_after_seconds": 120, **LOCAL})
    assert caught.value.after == 120


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(nursery: trio.Nursery, status: int) -> None:
    """Nobody is called whom the settings do not name, and what the redirect says is not shown."""
    elsewhere = await Server(answering(200)).start(nursery)
    server = await Server(answering(status, Location=elsewhere.url)).start(nursery)
    said = await failure(server.url, Reject)
    assert "a redirect, and none is followed" in said
    assert str(elsewhere.port) not in said
    assert elsewhere.requests == []


async def client_has_read() -> None:
    """What was sent has arrived: the machine may be busy, so it is not enough that nobody has anything to do."""
    await trio.testing.wait_all_tasks_blocked(cushion=0.05)


async def drip(stream: trio.abc.Stream) -> None:
    """Half a header, and then a byte every second."""
    await stream.send_all(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        await stream.send_all(b"x")
        await trio.sleep(1)


async def remind(stream: trio.abc.Stream) -> None:
    """An answer that is always about to come."""
    while True:
        await stream.send_all(b"HTTP/1.1 102 Processing\r\n\r\n")
        await trio.sleep(1)


@pytest.mark.parametrize("script", [hang, drip, remind])
async def test_a_server_that_does_not_answer_in_time(
    nursery: trio.Nursery, mock_clock: MockClock, script: Callable[[trio.abc.Stream], Any]
) -> None:
    """The deadline is for the whole request: bytes that trickle in do not lengthen it."""
    server = await Server(script).start(nursery)

    async def pass_time() -> None:
        await server.arrived.wait()
        for _ in range(7):
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1)

    nursery.start_soon(pass_time)
    assert await failure(server.url, Undelivered, timeout_seconds=5) == "ops: no answer within 5 s"
    assert trio.current_time() == pytest.approx(5, abs=2)


async def test_the_deadline_covers_the_looking_up(mock_clock: MockClock, nursery: trio.Nursery) -> None:
    """A resolver that hangs is cut off, too."""

    async def never(host: str, port: int) -> list[str]:
        mock_clock.jump(6)
        await trio.sleep_forever()
        raise AssertionError

    said = await failure("https://hooks.example/x", Undelivered, timeout_seconds=5, network=Network(never))
    assert said == "ops: no answer within 5 s"


@pytest.mark.parametrize(("status", "wanted"), [(200, None), (400, Reject), (500, Undelivered)])
async def test_the_status_decides_although_the_body_never_ends(
    nursery: trio.Nursery, mock_clock: MockClock, status: int, wanted: type[Exception] | None
) -> None:
    """What was taken was taken; the text of an error is not waited for beyond the deadline."""

    async def script(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 %d Word\r\nContent-Length: 99\r\n\r\nbecause" % status)
        await client_has_read()
        mock_clock.jump(6)
        await trio.sleep_forever()

    server = await Server(script).start(nursery)
    if wanted is None:
        await tell({"kind": "webhook", "url": server.url, "timeout_seconds": 5, **LOCAL})
    else:
        assert await failure(server.url, wanted, timeout_seconds=5) == f"ops answers {status} (because)"


async def test_a_huge_body_is_left_where_it_is(nursery: trio.Nursery) -> None:
    """A few kilobytes are read, 200 characters shown, and the connection is closed."""
    sent = 0

    async def script(stream: trio.abc.Stream) -> None:
        nonlocal sent
        await stream.send_all(b"HTTP/1.1 400 No\r\nContent-Length: 999999999999\r\n\r\n")
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"x" * 65536)
                sent += 65536

    server = await Server(script).start(nursery)
    said = await failure(server.url, Reject)
    assert said == f"ops answers 400 ({'x' * 199}…)"
    assert LARGEST_ERROR < 65536
    assert sent < 64 * 1024 * 1024  # what fits into the buffers between the two


async def test_endless_headers_are_refused(nursery: trio.Nursery) -> None:
    """Memory is bounded before the body, too."""

    async def script(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")
        while True:
            await stream.send_all(b"X-More: " + b"x" * 65536 + b"\r\n")

    server = await Server(script).start(nursery)
    assert await failure(server.url, Undelivered) == "ops: its answer is not HTTP"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((), "the connection was closed before an answer"),
        ((b"HTTP/1.1 200",), "the connection was closed before an answer"),
        ((b"220 mail.example ESMTP hook\r\n",), "the connection was closed before an answer"),
        ((b"\x15\x03\x01\x00\x02\x02\x46",), "its answer is not HTTP"),
    ],
)
async def test_what_is_no_answer(nursery: trio.Nursery, parts: tuple[bytes, ...], said: str) -> None:
    """It may pass: the next attempt finds the server whole."""
    server = await Server(sending(*parts)).start(nursery)
    assert await failure(server.url, Undelivered) == f"ops: {said}"


def reset(after: bytes) -> Callable[[trio.abc.Stream], Any]:
    """A script: the connection is reset in the middle of the answer."""

    async def script(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SocketStream)
        await stream.send_all(after)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        stream.socket.close()

    return script


async def test_a_connection_reset_in_the_middle_of_the_headers(nursery: trio.Nursery) -> None:
    """Nobody knows whether it was taken: again."""
    server = await Server(reset(b"HTTP/1.1 200 OK\r\nContent")).start(nursery)
    said = await failure(server.url, Undelivered)
    assert said in ("ops: Connection reset by peer", "ops: the connection was closed before an answer")


async def test_a_connection_reset_in_the_middle_of_the_body(nursery: trio.Nursery) -> None:
    """The status had come: it counts."""

    async def script(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 422 No\r\nContent-Length: 99\r\n\r\n")
        await client_has_read()
        await reset(b"")(stream)

    server = await Server(script).start(nursery)
    assert await failure(server.url, Reject) == "ops answers 422"


async def test_nobody_listens() -> None:
    """A refused connection may pass."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        said = await failure(f"http://127.0.0.1:{port}/hook", Undelivered)
    assert said == f"ops: 127.0.0.1:{port} cannot be connected to: Connection refused"


async def test_a_name_that_nobody_knows() -> None:
    """It may pass: resolvers have bad days."""

    async def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    said = await failure("https://hooks.example/x", Undelivered, network=Network(unknown))
    assert said == "ops: hooks.example cannot be looked up: Name or service not known"


async def test_a_name_without_addresses() -> None:
    """Neither is there anything to refuse."""
    said = await failure("https://hooks.example/x", Undelivered, network=Network(resolver([])))
    assert said == "ops: hooks.example:443 cannot be connected to: it has no address"


class Dialled(httpcore2.AsyncNetworkBackend):
    """Connects to nobody, and remembers to whom."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    async def connect_tcp(self, host: str, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        self.addresses.append(host)
        raise httpcore2.ConnectError("not today")


def resolver(*answers: list[str]) -> Callable[[str, int], Any]:
    """Answers the first question with the first of them, and so on."""
    left = list(answers)

    async def look_up(host: str, port: int) -> list[str]:
        return left.pop(0)

    return look_up


async def test_a_name_that_is_bound_again_between_looking_and_connecting() -> None:
    """There is no second question that could have another answer: the address that was judged is connected to. The next
    request asks again, and is judged again."""
    dialled = Dialled()
    network = Network(resolver(["93.184.216.34"], ["127.0.0.1"]), dialled)
    settings = read({"ops": {"kind": "webhook", "url": "https://rebind.example/x"}})
    async with Destinations(settings, network=network) as destinations:
        with pytest.raises(Undelivered):
            await destinations["ops"].send(about())
        with pytest.raises(Reject, match=r"^ops: rebind.example resolves to 127.0.0.1, a loopback address: if that is"):
            await destinations["ops"].send(about())
    assert dialled.addresses == ["93.184.216.34"]


async def test_every_request_has_a_connection_of_its_own(nursery: trio.Nursery) -> None:
    """A kept one would go on to an address that the name has no more; so also between a question and what follows."""

    async def keep(stream: trio.abc.Stream) -> None:
        await answering(200, b"[]")(stream)
        await trio.sleep_forever()

    first, second = [await Server(keep).start(nursery) for _ in range(2)]
    asked: list[int] = []

    class Elsewhere(httpcore2.TrioBackend):
        async def connect_tcp(self, host: str, port: int, *args: Any) -> httpcore2.AsyncNetworkStream:
            asked.append(port)
            return await super().connect_tcp(host, (first, second)[len(asked) - 1].port, *args)

    network = Network(resolver(["127.0.0.1"], ["127.0.0.1"]), Elsewhere())
    settings = {"kind": "alertmanager", "url": "http://ops.example/", "timeout_seconds": 5, **LOCAL}
    await tell(settings, about(kind="resolved"), network=network)
    assert ([one.method for one in first.requests], [one.method for one in second.requests]) == (["GET"], ["POST"])


async def test_of_several_addresses_only_the_allowed_are_tried() -> None:
    """In their order."""
    dialled = Dialled()
    network = Network(resolver(["10.0.0.1", "93.184.216.34", "::ffff:127.0.0.1", "2606:4700::1"]), dialled)
    await failure("https://mixed.example/x", Undelivered, network=network, allow=[])
    assert dialled.addresses == ["93.184.216.34", "2606:4700::1"]


async def test_other_spellings_of_loopback_are_seen_through(nursery: trio.Nursery) -> None:
    """By the real resolver: `127.1` and a number are names of loopback, and so is localhost."""
    server = await Server(answering(200)).start(nursery)
    for host in ("127.1", "2130706433", "0x7f000001", "localhost"):
        said = await failure(f"http://{host}:{server.port}/hook", Reject, allow=[])
        assert "a loopback address" in said
    assert server.requests == []


@pytest.fixture(scope="module")
def authority() -> "trustme.CA":
    """One that nobody trusts by default."""
    import trustme  # which few tests need and takes long

    return trustme.CA()


def tls(authority: "trustme.CA", name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("certified", "trusted", "said"),
    [
        ("ops.example", True, None),
        ("other.example", True, "Hostname mismatch"),
        ("127.0.0.1", True, "Hostname mismatch"),  # of the address that is connected to, but not of the name
        ("ops.example", False, "unable to get local issuer certificate"),
    ],
)
async def test_the_certificate_is_that_of_the_name(
    nursery: trio.Nursery, authority: "trustme.CA", tmp_path: Path, certified: str, trusted: bool, said: str | None
) -> None:
    """Although the connection goes to an address."""
    server = await Server(answering(200), tls(authority, certified)).start(nursery)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    url = f"https://ops.example:{server.port}/hook"
    settings = {"ca_file": str(tmp_path / "ca.pem")} if trusted else {}
    network = Network(resolver(["127.0.0.1"]))
    if said is None:
        await tell({"kind": "webhook", "url": url, **LOCAL, **settings}, network=network)
        assert len(server.requests) == 1
    else:
        found = await failure(url, Undelivered, network=network, **settings)
        assert found.startswith("ops: its certificate is not accepted: ")
        assert said in found
        assert server.requests == []


async def test_a_server_without_tls(nursery: trio.Nursery) -> None:
    """https to a port that speaks http."""

    said = await failure(f"https://127.0.0.1:{await speaking_first(nursery)}/", Undelivered)
    assert said == "ops: TLS fails: WRONG_VERSION_NUMBER"


async def test_a_handshake_that_hangs_leaves_no_socket_behind(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """The deadline cuts it off, and the server sees the end of the connection."""
    ended = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        assert await stream.receive_some()  # the client's hello
        mock_clock.jump(6)
        while await stream.receive_some():
            pass
        ended.set()

    listeners = await nursery.start(partial(trio.serve_tcp, listen, 0, host="127.0.0.1"))
    gc.disable()
    try:
        port = listeners[0].socket.getsockname()[1]
        assert (
            await failure(f"https://127.0.0.1:{port}/", Undelivered, timeout_seconds=5) == "ops: no answer within 5 s"
        )
        await ended.wait()
    finally:
        gc.enable()


async def test_the_proxies_of_the_environment_are_ignored(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that somebody set for another program sends no alert elsewhere."""
    proxy = await Server(answering(500)).start(nursery)
    server = await Server(answering(200)).start(nursery)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    await tell({"kind": "webhook", "url": server.url, **LOCAL})
    assert len(server.requests) == 1
    assert proxy.requests == []


async def test_a_proxy_of_the_settings_is_used(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be public, gets the name to look up, and its password."""
    proxy = await Server(answering(200)).start(nursery)
    monkeypatch.setenv("PROXY", f"http://mia:hidden@127.0.0.1:{proxy.port}")
    await tell({"kind": "webhook", "url": "http://ops.example/x", "proxy_env": "PROXY", "plain_http": True})
    (request,) = proxy.requests
    assert request.target == "http://ops.example/x"
    assert request.headers["proxy-authorization"] == "Basic bWlhOmhpZGRlbg=="


async def test_a_tunnel_through_a_proxy(nursery: trio.Nursery, authority: "trustme.CA", tmp_path: Path) -> None:
    """https goes through it unread: the certificate is that of the destination. And what a proxy refuses may pass."""
    server = await Server(answering(200), tls(authority, "ops.example")).start(nursery)

    async def pump(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some():
                await target.send_all(data)
            await trio.aclose_forcefully(target)

    async def connect(stream: trio.abc.Stream) -> None:
        behind = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")
        async with behind, trio.open_nursery() as pumps:
            pumps.start_soon(pump, stream, behind)
            pumps.start_soon(pump, behind, stream)

    proxy = await Server(connect).start(nursery)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    settings = {
        "kind": "webhook", "url": "https://ops.example/x", "proxy": f"http://127.0.0.1:{proxy.port}",
        "ca_file": str(tmp_path / "ca.pem"),
    }  # fmt: skip
    await tell(settings)
    assert (proxy.requests[0].method, proxy.requests[0].target) == ("CONNECT", "ops.example:443")
    assert len(server.requests) == 1
    proxy.script = answering(403, b"forbidden")
    with pytest.raises(Undelivered, match=r"^ops: the proxy refuses$"):
        await tell(settings)


async def test_many_at_once(nursery: trio.Nursery) -> None:
    """More than there may be connections wait for each other."""
    server = await Server(answering(200)).start(nursery)
    async with Destinations(read({"ops": {"kind": "webhook", "url": server.url, **LOCAL}})) as destinations:
        async with trio.open_nursery() as senders:
            for number in range(40):
                senders.start_soon(destinations["ops"].send, about(idempotency_key=f"k-{number}"))
    assert {request.headers["webhook-id"] for request in server.requests} == {f"k-{n}" for n in range(40)}


async def test_a_cancelled_request_leaves_nothing_behind(nursery: trio.Nursery) -> None:
    """The worker's own timeout, or its end, may come first; the next request is served."""
    server = await Server(hang).start(nursery)
    async with Destinations(read({"ops": {"kind": "webhook", "url": server.url, **LOCAL}})) as destinations:
        async with trio.open_nursery() as senders:
            senders.start_soon(destinations["ops"].send, about())
            await server.arrived.wait()
            senders.cancel_scope.cancel()
        server.script = answering(200)
        await destinations["ops"].send(about())
    assert destinations.statistics()["ops"] == {
        "taken": 1, "rejected": 0, "delayed": 0, "gone": 0, "undelivered": 0
    }  # fmt: skip
