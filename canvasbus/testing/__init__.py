"""The test kit for those who write handlers: workers on a server in memory, in virtual time.

    TestBus             publish, settle, look at what came of it; lost replies, outages and crashes on order
    in_virtual_time     the clock it needs, for tests without pytest-trio
    NotSettled          what `settle` raises
    ServerProcess       a real Redis or Valkey, for what memory cannot show

TestBus needs the extra `memory` (or `testing`, which brings pytest too). As fixtures: `canvasbus.pytest_plugin`.
"""

from canvasbus.testing.bus import TestBus
from canvasbus.testing.observed import Attempt
from canvasbus.testing.seen import DeadLetter, Published
from canvasbus.testing.server import ServerProcess, installed_servers
from canvasbus.testing.unsettled import NotSettled
from canvasbus.testing.virtual import in_virtual_time

__all__ = [
    "Attempt",
    "DeadLetter",
    "NotSettled",
    "Published",
    "ServerProcess",
    "TestBus",
    "in_virtual_time",
    "installed_servers",
]
