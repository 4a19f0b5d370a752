"""Outcomes that the server refuses: whose fault that is, and what waits until somebody has mended it.

Theory of operation. An outcome that is refused alone has one of three ends:

* It is no fault of its own: a key of the bus holds something else, this user has lost a right, the group is away. It is
  set aside, while the rest goes on, and tried again now and then. So is what the server does not even refuse: it ends each
  connection over which it is sent that (a dead letter larger than its `proto-max-bulk-len`).
* It is: the key of a derived event is no stream, say. Then the run has failed. But there is nowhere to put a dead letter
  instead, so that one waits, too.
* The worker leaves. Nobody will mend it before its grace time is over: the entry is still held, and handed back.
"""

import math

import trio

from canvasbus.consume.commit import Commit
from canvasbus.consume.complaints import Complaints
from canvasbus.errors import TransportError
from canvasbus.log import get_logger
from canvasbus.transport.resp import ReplyError, code, is_forbidden

ASIDE_SECONDS = 5.0
"""Between two attempts at what waits."""

LACKS_RIGHT = "a right that this worker's user lacks"

log = get_logger("canvasbus.worker")


class Aside:
    """What one settler has set aside."""

    def __init__(self, group: str) -> None:
        self.leaves = False
        """The worker leaves: nothing waits any more."""
        self._group = group
        self._complaints = Complaints(group)
        self._commits: list[Commit] = []
        self._until = 0.0

    def refused(self, commit: Commit, failure: TransportError, *, waits_for: str) -> None:
        """The server refuses this commit. `waits_for`: what must be mended; empty: it is its own fault."""
        if waits_for and not self.leaves:
            self._complaints.tell(f"an outcome waits for {waits_for}", failure)
        if waits_for or (self.leaves and commit.burial):
            self.put(commit, failure)
        else:
            self._blame(commit, failure)

    def put(self, commit: Commit, failure: TransportError) -> None:
        """Keep it until it is tried again, or give it up."""
        if self.leaves:
            self._give_up(commit, failure)
        else:
            self._commits.append(commit)
            self._until = trio.current_time() + ASIDE_SECONDS

    def hurry(self) -> None:
        """What was waited for may have come."""
        self._until = -math.inf

    def due(self) -> list[Commit]:
        """What is to be tried again now."""
        found: list[Commit] = []
        if trio.current_time() >= self._until:
            found, self._commits = self._commits, found
        return found

    def _blame(self, commit: Commit, failure: TransportError) -> None:
        log.error(
            "the server refuses an outcome",
            group=self._group,
            event_type=commit.delivery.topic.event_type,
            entry_id=commit.delivery.entry_id.decode(),
            error=str(failure),
        )
        if commit.done is not None:
            commit.done.set()
        if commit.burial:
            # Nowhere to put it: it stays pending and in our hands until the dead-letter stream takes it. What it
            # announces can be missed, it cannot.
            del commit.payloads[1:]
            self.put(commit, failure)
        elif commit.count is None:
            if commit.changes:
                commit.changes.settled(applied=False)
            commit.delivery.topic.lane.refused(commit.delivery, failure)

    def _give_up(self, commit: Commit, failure: TransportError) -> None:
        self._complaints.tell("leaving: what the server refuses is not waited for, its events go back", failure)
        if commit.done is not None:
            commit.done.set()
        if commit.changes:
            commit.changes.settled(applied=False)
        if commit.count is None:
            commit.delivery.topic.lane.settled(1)

    def __len__(self) -> int:
        return len(self._commits)

    def __repr__(self) -> str:
        return f"<Aside of {self._group}, {len(self)} wait>"


def awaited(refusal: ReplyError) -> str:
    """What must be mended before an outcome is taken, where that is no fault of the outcome; empty: it is."""
    if code(refusal) == "OVERWRITTEN":
        return "a key of the bus that holds something else"
    return LACKS_RIGHT if is_forbidden(refusal) else ""
