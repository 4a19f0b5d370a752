"""One life of one simulated process: its cable, its switch and what has happened to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio
from simulation.lockstep import Killed

if TYPE_CHECKING:
    from simulation.network import SimConnection

CALM_SECONDS = 8.0
"""So long after its last trouble a worker is known to be well by everybody."""


class Site:
    """One life of one process."""

    def __init__(self, name: str, kind: str, number: int) -> None:
        self.name = name
        self.kind = kind
        self.number = number
        self.dead = False
        self.unreachable = ""
        """How the network keeps it from the server: "" (not), "refuse" or "hole"."""
        self.scope = trio.CancelScope()
        self.leave = trio.Event()
        self.leaving_since = 0.0
        self.awake = trio.Event()
        self.awake.set()
        self._pauses = 0
        self.falls_at: tuple[int, str] | None = None
        """It dies with the n-th packet from now that changes or brings something: "before" or "after" the server
        has executed it."""
        self.next_fate = ""
        """What happens to the next packet that changes something ("late", "late and killed"), commits, hands back, raises a
        fence or takes ("commit late" and so on), brings something ("mute") or does either ("lose")."""
        self.connections: list[SimConnection] = []
        self.troubles: list[float] = []
        """When its packets met a fault."""
        self.delayed = -1.0
        """When a packet of it was last delayed: by as much as may be all that a worker has for leaving."""
        self.beats_lost: list[float] = []
        """The same of heartbeats."""
        self.calm_from = 0.0
        """As Network.calm_from."""
        self.incarnations: dict[bytes, list[bytes]] = {}
        """The names under which it has beaten, by group."""
        self.on_death: Callable[[], None] = lambda: None

    def kill(self) -> None:
        """Cut the cable for good, then stop what runs."""
        self.dead = True
        self.awake.set()
        self.scope.cancel()
        self.on_death()

    async def die(self) -> None:
        """The same, for what runs in it."""
        self.kill()
        raise Killed(self.name)

    def falls(self, when: str) -> bool:
        """Whether it dies now, "before" or "after" a packet that matters."""
        if self.falls_at is None or self.falls_at[1] != when:
            return False
        self.falls_at = self.falls_at[0] - 1, when
        return self.falls_at[0] <= 0

    def troubled(self, now: float) -> int:
        """How many heartbeats of it were lost of late; many, if it was out of reach as a whole."""
        if self.unreachable or not self.awake.is_set() or now < self.calm_from:
            return 1000
        return sum(time > now - CALM_SECONDS for time in self.beats_lost)

    def well_since(self, then: float) -> bool:
        """Whether nothing has happened to it or to its packets from a moment on."""
        return not self.dead and self.was_well_since(then)

    def was_well_since(self, then: float) -> bool:
        """The same; that it is dead by now does not count."""
        ill = self.unreachable or not self.awake.is_set() or self.calm_from > then
        return not ill and not any(time >= then for time in self.troubles)

    def check(self) -> None:
        if self.dead:
            raise Killed(self.name)

    def pause(self) -> None:
        """Stop the process, as SIGSTOP does. Of pauses that overlap, the last to end wakes it."""
        self._pauses += 1
        if self.awake.is_set():  # else somebody waits for this very event
            self.awake = trio.Event()

    def go_on(self) -> None:
        """End a pause."""
        self._pauses -= 1
        if self._pauses == 0:
            self.awake.set()

    async def come_through(self) -> None:
        """Wait out a pause."""
        if not self.awake.is_set():
            await self.awake.wait()
        self.check()

    def __repr__(self) -> str:
        return f"<Site {self.name}{' dead' if self.dead else ''}>"
