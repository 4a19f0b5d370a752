"""Run by `.ci/run wheel` in an environment that has the wheel and no extra: imports, and publishes to a real server."""

import subprocess
import sys

from servers import ServerProcess, binaries

CHECK = """
import sys
from canvasbus import *
loaded = {"trio", "structlog", "redis", "asyncio"} & set(sys.modules)
assert not loaded, loaded
from canvasbus.errors import ConfigError
from canvasbus.transport.connect import open_server
try:
    open_server("memory://x")
except ConfigError as error:
    assert "canvasbus[memory]" in str(error), error
else:
    raise AssertionError("fakeredis is installed: this environment is not bare")
from canvasbus import Event, Producer, event

@event("bare.checked")
class Checked(Event):
    number: int

with Producer(sys.argv[1], source="bare") as bus:
    bus.publish(Checked(number=1))
    assert bus.flush(timeout=10)
"""

server = ServerProcess(next(iter(binaries().values()))).start()
try:
    subprocess.run([sys.executable, "-c", CHECK, server.url], check=True, timeout=60)
finally:
    server.remove()
print("bare install: imports and publishes")
