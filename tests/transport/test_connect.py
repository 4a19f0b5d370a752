"""From a URL to a connection: what each part of it does, and what a person is told about each wrong one."""

import gc
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from servers import ServerProcess, free_port
from tls import make_certificates, tls_config

from canvasbus.config import redacted
from canvasbus.errors import ConfigError, Refused, TransportError, Unavailable
from canvasbus.transport import remote
from canvasbus.transport.address import parse
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.link import Link
from canvasbus.transport.resp import command

SECRET = "s3cret-0f-the-studio"
MakeServer = Callable[..., ServerProcess]
Ask = Callable[..., Any]

redis_py_leaves_its_socket = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""When a TLS handshake fails, redis-py's connection leaves the socket to the garbage collector."""


# --- reading URLs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", {"scheme": "redis", "host": "localhost", "port": 6379, "db": 0, "tls": False}),
        ("redis://", {"host": "localhost", "port": 6379}),
        ("redis://h:7000/3", {"host": "h", "port": 7000, "db": 3}),
        ("redis://h?db=4", {"db": 4}),
        ("redis://redis.svc.", {"host": "redis.svc."}),
        ("redis://[::1]:7000", {"host": "::1", "port": 7000}),
        ("redis://:p%40ss%2F@h", {"username": None, "password": "p@ss/"}),
        ("redis://me:pw@h", {"username": "me", "password": "pw"}),
        ("redis://h?username=me&password=pw", {"username": "me", "password": "pw"}),
        ("rediss://h", {"tls": True, "verify": True}),
        ("rediss://h?ssl_cert_reqs=none", {"verify": False}),
        ("rediss://h?ssl_ca_certs=/a&ssl_certfile=/b&ssl_keyfile=/c", {"ca_file": "/a", "cert_file": "/b", "key_file": "/c"}),
        ("unix:///run/redis.sock", {"path": "/run/redis.sock", "db": 0}),
        ("unix://me:pw@/run/redis.sock?db=2", {"path": "/run/redis.sock", "db": 2, "username": "me", "password": "pw"}),
        ("redis+sentinel://a,b:7000/m", {"sentinels": (("a", 26379), ("b", 7000)), "master": "m", "db": 0, "tls": False}),
        ("redis+sentinel://me:p%2Cw@[::1]:7000,b/m%20x/3", {"sentinels": (("::1", 7000), ("b", 26379)), "master": "m x",
         "db": 3, "username": "me", "password": "p,w", "sentinel_password": None}),
        ("rediss+sentinel://a/m?sentinel_username=s&sentinel_password=t&ssl_ca_certs=/a",
         {"tls": True, "ca_file": "/a", "sentinel_username": "s", "sentinel_password": "t", "password": None}),
        ("memory://", {"scheme": "memory", "name": ""}),
        ("memory://studio", {"scheme": "memory", "name": "studio"}),
        (" memory://studio\n", {"scheme": "memory", "name": "studio"}),
        ("off://", {"scheme": "off"}),
    ],
)  # fmt: skip
def test_each_part_of_a_url_means_something(url: str, expected: dict[str, object]) -> None:
    """Host, port, database, user, password, TLS files, socket path: from where they stand in the URL."""
    address = parse(url)
    assert {name: getattr(address, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "no scheme"),
        ("localhost:6379", "no scheme"),
        ("reddis://h", r"did you mean redis://\?"),
        ("http://h", "must begin with one of"),
        ("redis://h:seventy", "cannot be read"),
        ("redis://h:99999", "cannot be read"),
        ("redis://[::1", "cannot be read"),
        ("redis://h/one", "must be a number, not 'one'"),
        ("redis://h?db=-1", "must be a number"),
        ("redis://redis..svc:6379", "names no host: between two dots of a name are 1 to 63 characters"),
        (f"redis://{'a' * 64}", "names no host"),
        ("redis+sentinel://a..b/m", "a sentinel whose address cannot be read"),
        ("unix:///a%00b", "has a NUL"),
        ("redis://h?sll_ca_certs=/a", r"unknown option 'sll_ca_certs'; did you mean ssl_ca_certs\?"),
        ("redis://h?ssl_ca_certs=/a", "needs rediss://"),
        ("rediss://h?ssl_cert_reqs=maybe", "use required or none"),
        ("unix://", "names no socket"),
        ("unix:///s?nonsense=1", "unknown option"),
        ("redis+sentinel://a,b", r"names no master: write redis\+sentinel://HOST:26379,HOST:26379/MASTER"),
        ("redis+sentinel:///m", "a sentinel whose address cannot be read"),
        ("redis+sentinel://a,,b/m", "a sentinel whose address cannot be read"),
        ("redis+sentinel://a:b/m", "a sentinel whose address cannot be read"),
        ("redis+sentinel://a/m/one", "must be a number, not 'one'"),
        ("redis+sentinel://a/m?ssl_ca_certs=/a", r"needs rediss\+sentinel://"),
        ("redis://h?sentinel_password=x", r"needs redis\+sentinel://"),
        ("off://", "switches the bus off"),
    ],
)
def test_a_url_that_cannot_work_is_refused_at_once(url: str, says: str) -> None:
    """ConfigError when the URL is given, with the remedy, before anything is connected."""
    with pytest.raises(ConfigError, match=says):
        open_server(url)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@h/one",
        f"redis://me:{SECRET}@h:seventy",
        f"reddis://me:{SECRET}@h",
        f"redis://h?pasword={SECRET}",
        f"redis://h?password={SECRET}&db=x",
        f"redis://me:{SECRET}@[::1",
        f"redis://me:{SECRET}\u2100@h",
        f"redis+sentinel://me:{SECRET}@a:b/m",
        f"redis+sentinel://me:{SECRET}/x@a/m",
        f"redis+sentinel://me:{SECRET}@a",
        f"redis+sentinel://a/m?sentinel_pasword={SECRET}",
    ],
)
def test_no_error_repeats_a_password(url: str) -> None:
    """Whatever is wrong with a URL, its password is not in the message."""
    with pytest.raises(ConfigError) as raised:
        open_server(url)
    assert SECRET not in str(raised.value) + repr(raised.value)


def test_no_repr_shows_a_password() -> None:
    """Address, server and links show the URL with *** in place of the password."""
    url = f"redis://me:{SECRET}@h:7000/2"
    server = open_server(url)
    shown = "".join(map(repr, (parse(url), server, Link(server), BlockingLink(server)))) + server.name
    assert SECRET not in shown and "redis://me:***@h:7000/2" in shown
    url = f"redis+sentinel://me:{SECRET}@a,[::1]:7000/m/2?sentinel_password={SECRET}"
    server = open_server(url)
    shown = "".join(map(repr, (parse(url), server, Link(server), BlockingLink(server)))) + server.name + redacted(url)
    assert SECRET not in shown and server.name == "redis+sentinel://me:***@a:26379,[::1]:7000/m/2"


# --- what works -------------------------------------------------------------------------------------------------------


async def test_a_unix_socket_is_reached(ask: Ask, make_server: MakeServer) -> None:
    """unix:///path connects, with database number."""
    url = make_server().unix_url
    assert await ask(f"{url}?db=2", "SET", "k", "v") == b"OK"
    assert await ask(f"{url}?db=2", "GET", "k") == b"v"
    assert await ask(url, "GET", "k") is None


async def test_the_database_number_selects(ask: Ask, make_server: MakeServer) -> None:
    """/3 in the URL is another key space than /0."""
    url = make_server().url
    await ask(f"{url}/3", "SET", "k", "v")
    assert await ask(f"{url}/3", "GET", "k") == b"v"
    assert await ask(url, "GET", "k") is None


async def test_a_password_and_a_user_are_used(ask: Ask, make_server: MakeServer) -> None:
    """requirepass, an ACL user with a password, and an ACL user without one."""
    server = make_server(
        config=(
            "--requirepass",
            SECRET,
            "--user",
            "artist",
            "on",
            ">brush",
            "~*",
            "+@all",
            "--user",
            "guest",
            "on",
            "nopass",
            "~*",
            "+@all",
        )
    )
    at = server.url.removeprefix("redis://")
    assert await ask(f"redis://:{SECRET}@{at}", "ACL", "WHOAMI") == b"default"
    assert await ask(f"redis://artist:brush@{at}", "ACL", "WHOAMI") == b"artist"
    assert await ask(f"redis://{at}?username=artist&password=brush", "ACL", "WHOAMI") == b"artist"
    assert await ask(f"redis://guest@{at}", "ACL", "WHOAMI") == b"guest"


async def test_a_user_who_may_not_use_client_commands_gets_in(ask: Ask, make_server: MakeServer) -> None:
    """An ACL that forbids CLIENT costs the connection its name and nothing else."""
    server = make_server(config=("--user", "plain", "on", ">pw", "~*", "+ping", "+xadd", "+select"))
    at = server.url.removeprefix("redis://")
    assert isinstance(await ask(f"redis://plain:pw@{at}", "XADD", "s", "*", "e", "x"), bytes)


# --- what does not ----------------------------------------------------------------------------------------------------


async def test_nobody_listens(ask: Ask) -> None:
    """Connection refused: Unavailable, since the server may come up any moment."""
    port = free_port()
    with pytest.raises(Unavailable, match=rf"redis://127.0.0.1:{port}: nobody listens there; is the server running"):
        await ask(f"redis://127.0.0.1:{port}", "PING")


@pytest.fixture
def no_descriptors() -> Iterator[Callable[[], None]]:
    """Leave this process none from when it is called, until the test ends or calls it again."""
    before, taken = resource.getrlimit(resource.RLIMIT_NOFILE), False

    def switch() -> None:
        nonlocal taken
        taken = not taken
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]) if taken else before)

    yield switch
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_process_without_free_descriptors(
    ask: Ask, make_server: MakeServer, no_descriptors: Callable[[], None]
) -> None:
    """Unavailable, and so tried again: some will be free again."""
    server = make_server()
    assert await ask(server.url, "PING") == b"PONG"  # with what is imported for it
    no_descriptors()
    with pytest.raises(Unavailable, match="Too many open files"):
        await ask(server.url, "PING")
    no_descriptors()
    assert await ask(server.url, "PING") == b"PONG"


async def test_a_host_that_does_not_exist(ask: Ask) -> None:
    """A name that does not resolve is named, with the reason."""
    with pytest.raises(Unavailable, match=r"redis://no-such-host\.invalid:6379"):
        await ask("redis://no-such-host.invalid", "PING")


async def test_a_socket_that_does_not_exist(ask: Ask, tmp_path: Path) -> None:
    """unix:// to a missing file says so."""
    with pytest.raises(Unavailable, match=r"none.sock: there is no such socket"):
        await ask(f"unix://{tmp_path}/none.sock", "PING")


async def test_a_socket_file_that_nobody_serves(ask: Ask, tmp_path: Path) -> None:
    """A stale socket file of a dead server is a server that is not running."""
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(f"{tmp_path}/stale.sock")
    stale.close()
    with pytest.raises(Unavailable, match="nobody listens there"):
        await ask(f"unix://{tmp_path}/stale.sock", "PING")


async def test_a_password_is_missing(ask: Ask, make_server: MakeServer) -> None:
    """NOAUTH: Refused, and the message says where a password goes."""
    server = make_server(config=("--requirepass", SECRET))
    with pytest.raises(Refused, match="wants a password: put it into the URL"):
        await ask(server.url, "PING")


@pytest.mark.parametrize("who", [":wrong", "artist:wrong", "nobody:wrong", "artist"])
async def test_a_password_is_wrong(ask: Ask, make_server: MakeServer, who: str) -> None:
    """WRONGPASS, for the default user, a known one, an unknown one, and one who gives none: Refused, without repeating it."""
    server = make_server(config=("--requirepass", SECRET, "--user", "artist", "on", ">brush", "~*", "+@all"))
    with pytest.raises(Refused, match="refuses this user or password") as raised:
        await ask(f"redis://{who}@{server.url.removeprefix('redis://')}", "PING")
    assert "wrong" not in str(raised.value)


async def test_a_password_for_a_server_without_one(ask: Ask, make_server: MakeServer) -> None:
    """The server has none configured: Refused, and the message says which side is off."""
    at = make_server().url.removeprefix("redis://")
    with pytest.raises(Refused, match="the URL has a password, but the server has none") as raised:
        await ask(f"redis://:{SECRET}@{at}", "PING")
    assert SECRET not in str(raised.value)


async def test_a_database_that_does_not_exist(ask: Ask, make_server: MakeServer) -> None:
    """SELECT out of range names the number."""
    url = make_server().url
    with pytest.raises(Refused, match="has no database number 99"):
        await ask(f"{url}/99", "PING")


async def test_a_server_that_is_no_redis(ask: Ask, nursery: trio.Nursery) -> None:
    """Something else listens on the port, here an HTTP server: Refused, since waiting does not help."""

    async def http(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        await stream.aclose()

    listeners = await nursery.start(
        lambda task_status: trio.serve_tcp(http, 0, host="127.0.0.1", task_status=task_status)
    )
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(Refused, match="does not speak the Redis protocol"):
        await ask(f"redis://127.0.0.1:{port}", "PING")
    nursery.cancel_scope.cancel()


async def test_an_answer_for_which_there_is_no_memory(server_url: str) -> None:
    """It is said so, by either kind of connection: the server is not to blame, and is not said to speak another protocol."""

    class Full:
        def has_data(self) -> bool:
            return False

        def feed(self, data: bytes) -> None:
            raise MemoryError

    server = open_server(server_url)
    link = Link(server)
    await link.connect()
    link._connection._reader = Full()  # type: ignore[union-attr]
    with pytest.raises(Unavailable, match="this process has no memory for the server's answer"):
        await link.request(command("PING"))
    await link.aclose()
    blocking = BlockingLink(server)
    blocking.call("PING")
    blocking._connection._reader = Full()  # type: ignore[union-attr]
    with pytest.raises(Unavailable, match="this process has no memory for the server's answer"):
        blocking.call("PING")
    assert blocking.call("PING") == b"PONG"
    blocking.close()


async def test_a_server_that_hangs_up(ask: Ask, nursery: trio.Nursery) -> None:
    """Accepts and closes, like a proxy whose server is away: Unavailable."""

    async def closing(stream: trio.SocketStream) -> None:
        await stream.aclose()

    listeners = await nursery.start(
        lambda task_status: trio.serve_tcp(closing, 0, host="127.0.0.1", task_status=task_status)
    )
    with pytest.raises(Unavailable, match=r"redis://127.0.0.1"):
        await ask(f"redis://127.0.0.1:{listeners[0].socket.getsockname()[1]}", "PING")
    nursery.cancel_scope.cancel()


async def test_a_server_that_says_nothing(ask: Ask, make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepts and is frozen: Unavailable after the connect timeout."""
    monkeypatch.setattr(remote, "CONNECT_TIMEOUT", 0.2)
    server = make_server()
    server.freeze()
    with pytest.raises(Unavailable, match=server.url):
        await ask(server.url, "PING")


async def test_a_server_with_no_room_for_clients(ask: Ask, make_server: MakeServer) -> None:
    """maxclients reached: Unavailable, it will pass."""
    server = make_server(config=("--maxclients", "1"))
    first = BlockingLink(open_server(server.url))
    first.call("PING")
    with pytest.raises(Unavailable, match=r"too many clients|max number of clients"):
        await ask(server.url, "PING")
    first.close()


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that is its own authority, and one of a stranger."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def tls_server(certificates: Path) -> Any:
    from servers import binaries

    found = binaries()
    config = tls_config(certificates)
    server = ServerProcess(found.get("redis") or next(iter(found.values())), tls=True, config=config).start()
    yield server
    server.remove()


async def test_tls_with_a_known_authority(ask: Ask, tls_server: ServerProcess, certificates: Path) -> None:
    """rediss:// verifies the certificate against the authority that the URL names."""
    assert await ask(f"{tls_server.url}?ssl_ca_certs={certificates}/own.pem", "PING") == b"PONG"
    assert await ask(f"rediss://localhost:{tls_server.port}?ssl_ca_certs={certificates}/own.pem", "PING") == b"PONG"


async def test_tls_without_verification_must_be_asked_for(ask: Ask, tls_server: ServerProcess) -> None:
    """ssl_cert_reqs=none is the only way to skip verification."""
    assert await ask(f"{tls_server.url}?ssl_cert_reqs=none", "PING") == b"PONG"


@redis_py_leaves_its_socket
@pytest.mark.parametrize("authority", ["", "?ssl_ca_certs={}/stranger.pem"])
async def test_tls_with_an_unknown_authority(
    ask: Ask, tls_server: ServerProcess, certificates: Path, authority: str
) -> None:
    """A certificate signed by nobody we trust: Refused, and how to name the authority."""
    with pytest.raises(Refused, match=r"certificate is not trusted.*ssl_ca_certs=FILE"):
        await ask(tls_server.url + authority.format(certificates), "PING")
    gc.collect()


@redis_py_leaves_its_socket
async def test_tls_for_a_server_without_it(ask: Ask, server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """rediss:// to a plain server, which waits for the rest of a command: after the timeout the likely cause is told."""
    monkeypatch.setattr(remote, "CONNECT_TIMEOUT", 0.3)
    port = server_url.rpartition(":")[2].partition("/")[0]
    with pytest.raises(TransportError, match=r"redis:// rather than rediss://|does the server speak TLS"):
        await ask(f"rediss://127.0.0.1:{port}", "PING")
    gc.collect()


async def test_a_handshake_that_fails_leaves_no_connection(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without TLS sees the end of the connection at once, not when the collector comes."""
    monkeypatch.setattr(remote, "CONNECT_TIMEOUT", 0.1)
    ended = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        async for _ in stream:
            pass
        ended.set()

    listeners = await nursery.start(
        lambda task_status: trio.serve_tcp(silent, 0, host="127.0.0.1", task_status=task_status)
    )
    link = Link(open_server(f"rediss://127.0.0.1:{listeners[0].socket.getsockname()[1]}"))
    with pytest.raises(Unavailable):
        await link.connect()
    with trio.fail_after(10):
        await ended.wait()
    nursery.cancel_scope.cancel()


@redis_py_leaves_its_socket
async def test_no_tls_for_a_server_with_it(ask: Ask, tls_server: ServerProcess) -> None:
    """redis:// to a TLS port: an error that names the URL, and no hanging."""
    with pytest.raises(TransportError, match=f"redis://127.0.0.1:{tls_server.port}"):
        with trio.fail_after(10):
            await ask(f"redis://127.0.0.1:{tls_server.port}", "PING")


@redis_py_leaves_its_socket
async def test_tls_files_that_are_missing(ask: Ask, tls_server: ServerProcess) -> None:
    """A path in the URL that cannot be read is named."""
    with pytest.raises((Refused, ConfigError), match="cannot read the TLS files"):
        await ask(f"{tls_server.url}?ssl_ca_certs=/no/such/file.pem", "PING")
    gc.collect()
