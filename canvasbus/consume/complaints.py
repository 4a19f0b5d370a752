"""Telling what a server refuses, without filling the log."""

import math

import trio

from canvasbus.errors import Refused, TransportError
from canvasbus.log import get_logger

log = get_logger("canvasbus.worker")


class Complaints:
    """Tells what a server refuses, each thing once a minute."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._again: dict[str, float] = {}

    def tell(self, what: str, error: TransportError) -> None:
        """A server that is away is told by those who read and settle; one that refuses this may refuse only this."""
        if isinstance(error, Refused) and trio.current_time() >= self._again.get(what, -math.inf):
            self._again[what] = trio.current_time() + 60
            log.error(what, group=self._group, error=str(error))
