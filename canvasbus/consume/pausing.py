"""Pausing a group: its workers stop reading and taking, finish what they hold, and stay.

The pause is a key on the server, so it survives restarts of workers and holds for those that start meanwhile; a pause
for a while is a key that expires, which needs nobody to remember it. Workers look once a second, and once before they
read for the first time. While the server is away they keep to what they saw last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import trio

from canvasbus.consume.subscription import Subscription
from canvasbus.errors import TransportError
from canvasbus.log import get_logger
from canvasbus.transport.link import SharedLink
from canvasbus.transport.resp import Packet, Reply, check, commands
from canvasbus.wire.keys import Keys

LOOK_SECONDS = 1.0

log = get_logger("canvasbus.worker")


@dataclass(frozen=True, slots=True)
class Pause:
    """A group is paused."""

    by: str
    """Who paused it, as user@host; empty: unknown."""
    seconds_left: float | None
    """When it goes on by itself; None: when somebody resumes it."""


def question(keys: Keys, group: str) -> Packet:
    """Asks whether a group is paused; `keys` are those of the first partition."""
    return commands(("GET", keys.paused(group)), ("PTTL", keys.paused(group)))


def answer(replies: Sequence[Reply]) -> Pause | None:
    """The replies to `question`."""
    value, left = (check(reply, "ask whether the group is paused") for reply in replies)
    if value is None:
        return None
    try:
        by = str(msgspec.json.decode(value).get("by", ""))
    except (msgspec.MsgspecError, ValueError, RecursionError, AttributeError):
        by = ""  # somebody's SET by hand
    return Pause(by, left / 1000 if left >= 0 else None)


class Pausing:
    """Lets one incarnation follow the pauses of its group."""

    def __init__(
        self,
        group: str,
        subscriptions: Sequence[Subscription],
        shared: SharedLink,
        on_change: Callable[[Pause | None], None],
    ) -> None:
        self.pause: Pause | None = None
        self._group = group
        self._subscriptions = subscriptions
        self._question = question(subscriptions[0].keys, group)
        self._shared = shared
        self._on_change = on_change

    async def look(self) -> None:
        """Find out, and act on it. Raises TransportError."""
        before, self.pause = self.pause, answer(await self._shared.request(self._question))
        if (before is None) == (self.pause is None):
            return
        for subscription in self._subscriptions:
            subscription.pause(self.pause is not None)
        if self.pause is not None:
            left = self.pause.seconds_left
            log.warning(
                "the group is paused: nothing new is read until `canvasbus groups resume`",
                group=self._group,
                by=self.pause.by,
                seconds=None if left is None else round(left),
            )
        else:
            log.warning("the group is paused no more", group=self._group)
        self._on_change(self.pause)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except TransportError:
                pass  # told by those who read and settle
