"""Finding a master through its sentinels, and what a person is told who cannot find it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from scripted import Scripted
from servers import SentinelProcess, ServerProcess, binaries, free_port

from canvasbus.errors import Refused, TransportError, Unavailable

Ask = Callable[..., Any]


@pytest.fixture
def sentinel() -> Iterator[Callable[..., SentinelProcess]]:
    made: list[SentinelProcess] = []

    def make(master_port: int, *config: str) -> SentinelProcess:
        made.append(SentinelProcess(next(iter(binaries().values())), "studio", master_port, config))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.remove()


@pytest.fixture
def liars() -> Iterator[Callable[..., Scripted]]:
    """Sentinels and servers that say what a test wants."""
    made: list[Scripted] = []

    def make(*answers: bytes) -> Scripted:
        made.append(Scripted())
        made[-1].answers = list(answers)
        return made[-1]

    yield make
    for one in made:
        one.close()


def place(host: str, port: int | str) -> bytes:
    return b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(host), host.encode(), len(str(port)), str(port).encode())


def url_of(*sentinels: ServerProcess | Scripted | int, rest: str = "/studio", user: str = "") -> str:
    ports = [one if isinstance(one, int) else int(one.url.rpartition(":")[2]) for one in sentinels]
    return f"redis+sentinel://{user}{','.join(f'127.0.0.1:{port}' for port in ports)}{rest}"


MASTER = b"*3\r\n$6\r\nmaster\r\n:1\r\n*0\r\n"
REPLICA = b"*3\r\n$5\r\nslave\r\n:1\r\n*0\r\n"


async def test_the_master_is_found_with_its_password_and_database(
    ask: Ask, sentinel: Callable[..., SentinelProcess], make_server: Callable[..., ServerProcess]
) -> None:
    """Past a sentinel that is away; the sentinel and the server have each a password of their own."""
    server = make_server(config=("--requirepass", "of the server"))
    one = sentinel(server.port, "sentinel auth-pass studio of-the-server", "requirepass of-the-sentinel")
    rest = "/studio/3?sentinel_password=of-the-sentinel"
    url = url_of(free_port(), one, rest=rest, user=":of%20the%20server@")
    assert await ask(url, "SET", "somewhere", "here") == b"OK"
    assert await ask(f"redis://:of%20the%20server@127.0.0.1:{server.port}/3", "GET", "somewhere") == b"here"


WRONG: list[tuple[str, type[TransportError], str]] = [
    ("/other", Refused, "knows no master 'other': it knows studio"),
    ("/studio", Refused, "has a password, but the server has none configured"),
]


@pytest.mark.parametrize(("rest", "kind", "says"), WRONG)
async def test_what_no_waiting_mends_is_refused(
    ask: Ask, sentinel: Callable[..., SentinelProcess], server_url: str, rest: str, kind: type[Exception], says: str
) -> None:
    """A master that no sentinel knows, a password that the server does not have."""
    one = sentinel(int(server_url.rpartition(":")[2]))
    with pytest.raises(kind, match=says):
        await ask(url_of(one, rest=rest, user=":pw@"), "PING")


async def test_a_sentinel_that_wants_a_password_says_which(ask: Ask, sentinel: Callable[..., SentinelProcess]) -> None:
    """The one before the @ is the master's: the message names the option for the sentinel's."""
    one = sentinel(free_port(), "requirepass nobody-knows")
    with pytest.raises(Refused, match=r"given by \?sentinel_username= and \?sentinel_password=") as raised:
        await ask(url_of(one, user=":of-the-master@"), "PING")
    assert "of-the-master" not in str(raised.value)


async def test_no_sentinel_answers(ask: Ask) -> None:
    """Unavailable, since they may come back; each is named with what is wrong with it."""
    first, second = free_port(), free_port()
    with pytest.raises(Unavailable, match="no sentinel answers") as raised:
        await ask(url_of(first, second), "PING")
    assert f"127.0.0.1:{first}: nobody listens" in str(raised.value) and f"127.0.0.1:{second}: n" in str(raised.value)


async def test_a_server_is_no_sentinel(ask: Ask, server_url: str) -> None:
    """The port of a server where a sentinel's should be: Refused, with the likely mistake."""
    with pytest.raises(Refused, match=r"that is no sentinel.*redis:// leads to a server"):
        await ask(url_of(int(server_url.rpartition(":")[2])), "PING")


async def test_an_address_that_leads_nowhere_is_explained(ask: Ask, sentinel: Callable[..., SentinelProcess]) -> None:
    """What the sentinels announce cannot be reached: the address is named, and how to announce another."""
    nobody = free_port()
    with pytest.raises(Unavailable, match=rf"master at 127\.0\.0\.1:{nobody}: nobody listens.*replica-announce-ip"):
        await ask(url_of(sentinel(nobody)), "PING")


async def test_only_a_master_is_used(ask: Ask, liars: Callable[..., Scripted]) -> None:
    """Of two sentinels the first is behind the times: what it takes for the master is asked, and left."""
    demoted, master = liars(REPLICA, REPLICA), liars(MASTER, b"$4\r\nhere\r\n")
    old, new = (liars(place("127.0.0.1", one.url.rpartition(":")[2])) for one in (demoted, master))
    assert await ask(url_of(old, new), "GET", "x") == b"here"
    assert (demoted.heard, master.heard) == ([b"ROLE"], [b"ROLE", b"GET"])
    old.answers = [place("127.0.0.1", demoted.url.rpartition(":")[2])]
    with pytest.raises(Unavailable, match="it is a slave, and no other is agreed on yet"):
        await ask(url_of(old), "GET", "x")


async def test_who_may_not_ask_for_the_role_goes_on(ask: Ask, liars: Callable[..., Scripted]) -> None:
    """An ACL without ROLE: the server is used, and the first write tells if it is a replica."""
    master = liars(b"-NOPERM this user has no permissions to run the 'role' command\r\n", b"$4\r\nhere\r\n")
    assert await ask(url_of(liars(place("127.0.0.1", master.url.rpartition(":")[2]))), "GET", "x") == b"here"


async def test_a_sentinel_that_says_nothing_is_passed_over(
    ask: Ask, sentinel: Callable[..., SentinelProcess], server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen: the next one is asked after SENTINEL_TIMEOUT."""
    monkeypatch.setattr("canvasbus.transport.sentinel.SENTINEL_TIMEOUT", 0.1)
    frozen, awake = sentinel(free_port()), sentinel(int(server_url.rpartition(":")[2]))
    frozen.freeze()
    with trio.fail_after(4):
        assert await ask(url_of(frozen, awake), "PING") == b"PONG"


async def test_the_master_counts_for_more_than_the_sentinel_asked_last(
    ask: Ask, liars: Callable[..., Scripted], sentinel: Callable[..., SentinelProcess]
) -> None:
    """The machine that is lost had the master and a sentinel: what is told is that the master is away. Nor is it Refused
    because the next sentinel wants a password: the master may come back, or another one."""
    dead, away = free_port(), free_port()
    master = rf"master at 127\.0\.0\.1:{dead}: nobody listens"
    for other in (away, sentinel(dead, "requirepass nobody-knows")):
        knows = liars(place("127.0.0.1", dead))
        with pytest.raises(Unavailable, match=master):
            await ask(url_of(knows, other), "PING")


async def test_a_wrong_password_of_the_master_stays_refused(ask: Ask, liars: Callable[..., Scripted]) -> None:
    """Whatever the other sentinels say, or that they say nothing: no waiting mends it."""
    master = liars()
    master.pong = b"-NOAUTH Authentication required.\r\n"
    knows = liars(place("127.0.0.1", master.url.rpartition(":")[2]))
    with pytest.raises(Refused, match="Authentication required"):
        await ask(url_of(knows, free_port()), "PING")


async def test_a_sentinel_that_forbids_the_question_says_which_user(
    ask: Ask, sentinel: Callable[..., SentinelProcess]
) -> None:
    """Its own ACL is in the way: it is a sentinel all the same, and a user for it can be named."""
    one = sentinel(free_port(), "user default on nopass ~* &* +@all -sentinel")
    with pytest.raises(Refused, match=r"given by \?sentinel_username= and \?sentinel_password=") as raised:
        await ask(url_of(one), "PING")
    assert "that is no sentinel" not in str(raised.value)
