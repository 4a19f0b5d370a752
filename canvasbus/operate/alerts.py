"""What the alerts worker knows about incidents, silences and destinations, as it lies on the server.

It is state of the group `alerts`, and the worker's own affair: what it is made of is declared there, and found by the
worker's entry point. There is a desk in each partition that had signals; silences lie in all of them.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from canvasbus.consume.state import TOKEN
from canvasbus.errors import CanvasbusError
from canvasbus.operate.plugins import beside
from canvasbus.transport.resp import Operation, check, command
from canvasbus.wire.keys import Keys

GROUP = "alerts"


def desk(partitions: Sequence[Keys]) -> Operation[Any]:
    """What lies in all partitions, as one `canvasbus_workers.alerts.desk.Desk`. Raises ConfigError where the worker is not
    installed, and CanvasbusError for what another release has written."""
    type_ = beside(GROUP, "desk").Desk
    whole = type_()
    for keys in partitions:
        raw = check((yield command("GET", keys.state(GROUP, "desk")))[0], "look at the alerts worker's state")
        if raw:
            whole.join(_decoded(raw[TOKEN:], type_))
    return whole


def _decoded(data: bytes, type_: Any) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=type_)
    except msgspec.MsgspecError as error:
        raise CanvasbusError(f"the alerts worker's state is of another release than this command: {error}") from None
