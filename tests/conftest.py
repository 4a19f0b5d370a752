"""Fixtures that every folder of the suite shares."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    # Before anything loads numpy, as fakeredis does: BLAS threads wait for each other, at twice to five times the price.
    os.environ.setdefault(_name, "1")

import gc
import itertools
import signal
import uuid
from collections.abc import Callable, Generator, Iterator

import pytest
import structlog
import trio.testing
from seeds import RUN_SEED
from servers import ServerProcess, binaries
from studio import Eyes
from waiting import TrioClock

from canvasbus import clock
from canvasbus.consume.liveness import Heart
from canvasbus.transport.memory import MemoryServer

for _name in list(os.environ):  # a developer's own settings must not steer the tests
    if _name.startswith("CANVASBUS_") and not _name.startswith(("CANVASBUS_TEST_", "CANVASBUS_REQUIRE_")):
        del os.environ[_name]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what a shell starts in the background would never hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

GIVEN = os.environ.get("CANVASBUS_TEST_REDIS_URL")
KINDS = ("given",) if GIVEN else tuple(binaries())

_numbers = itertools.count()


def pytest_report_header() -> str:
    return f"CANVASBUS_TEST_SEED={RUN_SEED}"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What collecting makes stays to the end: to look through it for garbage, then and in every test, took a third of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A program that a test ran in this process has set logging up, on a stderr that ends with the test."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def _servers() -> Iterator[Callable[[str], str]]:
    running: dict[str, ServerProcess] = {}

    def url(kind: str) -> str:
        if kind == "given":
            assert GIVEN is not None
            return GIVEN
        if kind not in running:
            running[kind] = ServerProcess(binaries()[kind]).start()
        return running[kind].url

    yield url
    for server in running.values():
        server.remove()


@pytest.fixture
def server_url(_servers: Callable[[str], str]) -> str:
    """A real server, shared by the session: keep to a namespace of your own."""
    return _servers(KINDS[0])


@pytest.fixture(
    params=("memory", *KINDS[:1], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[1:])),
)
def any_url(request: pytest.FixtureRequest, _servers: Callable[[str], str]) -> str:
    """memory://NAME (new each time) and every kind of real server, one after the other. (Those behind the first are for
    whoever has the time: a quarter of the suite's.)"""
    if request.param == "memory":
        return f"memory://test-{next(_numbers)}-{uuid.uuid4().hex[:6]}"
    return _servers(request.param)


@pytest.fixture
def namespace() -> str:
    """A namespace that nobody else uses."""
    return f"t{next(_numbers)}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def make_server() -> Iterator[Callable[..., ServerProcess]]:
    """Start servers of one's own, to be killed, restarted or configured: make_server(persistent=True, config=(...))."""
    made: list[ServerProcess] = []

    def make(kind: str | None = None, **options: object) -> ServerProcess:
        found = binaries()
        server = ServerProcess(found[kind or next(iter(found))], **options)  # type: ignore[arg-type]
        made.append(server)
        return server.start()

    yield make
    for server in made:
        server.remove()


@pytest.fixture
def eyes(any_url: str, namespace: str) -> Iterator[Eyes]:
    """What lies on the server behind `any_url`, and a way to put things there."""
    eyes = Eyes(any_url, namespace)
    yield eyes
    eyes.close()


@pytest.fixture
def quick_hearts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers' hearts beat ten times a second, so that whoever waits for a beat need not wait for long."""
    monkeypatch.setitem(Heart.__init__.__kwdefaults__, "every", 0.1)


@pytest.fixture
def virtual(autojump_clock: trio.testing.MockClock) -> Iterator[trio.testing.MockClock]:
    """Time that passes only when every task waits, for trio, for canvasbus and for memory servers alike. A test names it
    itself, also where it needs a memory server only: trio gives its clock to no other."""
    with clock.using(TrioClock(autojump_clock)):
        yield autojump_clock


@pytest.fixture
def memory(virtual: trio.testing.MockClock) -> MemoryServer:
    """A memory server in virtual time."""
    return MemoryServer()
