"""What the tests of states count with, and what of it lies on the server."""

from typing import Any

import msgspec
from studio import Eyes


class Count(msgspec.Struct):
    total: int = 0
    titles: dict[str, int] = {}


def stored(eyes: Eyes, group: str, name: str) -> Any:
    raw = eyes.call("GET", eyes.keys.state(group, name))
    return None if raw is None else msgspec.msgpack.decode(raw[16:])
