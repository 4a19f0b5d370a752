"""What is known of a model's trainings, and what to do next. No I/O.

    signals, requests ─► wish ─(debounce, cooldown, budget, labels)─► [proposal ─► approval] ─► run ─► ended ─► promoted?

One wish collects everything that is wanted while it waits. A run takes the wish along; what is wanted while a run is in
flight becomes the next wish, however much of it there is: one trailing rerun. The episodes that a run is for are not
wanted again while it is in flight.

The fence grows with each run. A result counts only for the run in flight, so neither a run that was given up for lost,
nor a result that is delivered again, nor one from before a model was promoted by hand can promote.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from canvasbus_workers.naming import name_of
from canvasbus_workers.retrain.settings import Policy

DAY = 86400.0
UNNAMED = "~"
"""What stands before the correlation id of a signal without an episode."""
MOST_EPISODES = 50
"""Episodes of a wish, and rejected ones, that are remembered."""


class Wish(Struct):
    """A new version is wanted."""

    since: float
    """The first signal, seconds since 1970."""
    reason: str
    """The newest one, for a person."""
    episodes: list[str] = msgspec.field(default_factory=list)
    windows: int = 0
    asked: bool = False
    """Somebody has asked; else it follows from signals alone, and ends with them."""


class Run(Struct, frozen=True):
    """A training in flight."""

    run_id: str
    version: str
    fence: int
    started: float
    episodes: tuple[str, ...]
    reason: str
    windows: int


def named(episodes: Sequence[str]) -> str:
    """The first of them that has an id of its own; empty: none has."""
    return next((episode for episode in episodes if not episode.startswith(UNNAMED)), "")


class Propose(Struct, frozen=True):
    """Ask a person."""

    proposal_id: str


class Wait(Struct, frozen=True):
    """Look again then."""

    until: float
    why: str


class Rest(Struct, frozen=True):
    """Nothing is to be done."""

    why: str


class Model(Struct):
    """One model. Changes in place."""

    fence: int = 0
    """Of the newest run."""
    run: Run | None = None
    superseded: bool = False
    """Somebody has promoted a model by hand since the run began."""
    wish: Wish | None = None
    proposal_id: str = ""
    """Of the wish; empty: it has not been proposed."""
    approved: bool = False
    proposals: int = 0
    rejected: list[str] = msgspec.field(default_factory=list)
    """Episodes that nobody is asked about again until they have ended."""
    starts: list[float] = msgspec.field(default_factory=list)
    """Of the last day."""
    ended: float = 0.0
    """When the last run did."""
    labels: int = 0
    """Labelled items for training since the last run began."""
    serving: str = ""
    """The version promoted last."""
    serving_fence: int = 0
    """Of the run that made it."""

    # --- what happens --------------------------------------------------------------------------------------------

    def want(self, now: float, reason: str, episode: str, windows: int = 0, *, asked: bool = False) -> str:
        """A signal, or (asked) somebody's request. Returns what is made of it, for the log."""
        if self.run is not None and episode in self.run.episodes:
            return f"{self.run.run_id} is in flight for it"
        if not asked and episode in self.rejected:
            return "it was rejected"
        if self.wish is None:
            self.wish = Wish(now, reason)
        if episode not in self.wish.episodes:
            self.wish.episodes = [*self.wish.episodes, episode][-MOST_EPISODES:]
        self.wish.reason = reason
        self.wish.windows = max(self.wish.windows, windows)
        self.wish.asked |= asked
        return "wanted"

    def is_over(self, episode: str) -> str:
        """An episode has ended. Returns the proposal that nobody needs to answer any more; empty: none."""
        self.rejected = [other for other in self.rejected if other != episode]
        if self.wish is None or episode not in self.wish.episodes:
            return ""
        self.wish.episodes.remove(episode)
        return "" if self.wish.episodes or self.wish.asked or self.approved else self._drop()

    def approve(self, proposal_id: str) -> bool:
        """A person says yes. False: there is no such proposal any more."""
        if self.wish is None or not proposal_id or proposal_id != self.proposal_id:
            return False
        self.approved = True
        return True

    def reject(self, proposal_id: str) -> bool:
        """A person says no. False: there is no such proposal any more."""
        if self.wish is None or not proposal_id or proposal_id != self.proposal_id or self.approved:
            return False
        self.rejected = [*self.rejected, *self.wish.episodes][-MOST_EPISODES:]
        self._drop()
        return True

    def end(self, run_id: str, fence: int, now: float) -> Run | None:
        """A run has ended. None: it is not the one in flight, and what it says does not count. `fence` 0: not told."""
        run = self.run
        if run is None or run.run_id != run_id or fence not in (0, run.fence):
            return None
        self.run, self.ended = None, now
        return run

    def promoted(self, version: str, run_id: str, fence: int) -> None:
        """A model is in service now, by whomever."""
        if run_id and 0 < fence < self.serving_fence:
            return  # told late: a newer one is in service
        self.serving, self.serving_fence = version, fence or self.serving_fence
        if self.run is not None and (not run_id or fence > self.run.fence):
            self.superseded = True

    # --- what follows --------------------------------------------------------------------------------------------

    def next(self, name: str, policy: Policy, now: float) -> Run | Propose | Wait | Rest:
        """What to do now; a Run is in flight from here on."""
        wish = self.wish
        if wish is None:
            return Rest("nothing is wanted")
        if self.run is not None:
            return Rest(f"{self.run.run_id} is in flight")
        if self.labels < policy.min_new_labels and not self.proposal_id:
            self._drop()
            return Rest(f"{self.labels} of {policy.min_new_labels} new labels: it has to be asked again")
        # A clock that went ahead for a while must not make the model wait for it: what lies in the future was now at most.
        wish.since, self.ended = min(wish.since, now), min(self.ended, now)
        self.starts = [min(start, now) for start in self.starts if now - start < DAY]
        waits = [
            (0.0 if wish.asked else wish.since + policy.debounce_seconds, "other signals may follow"),
            (self.ended + policy.cooldown_seconds if self.ended else 0.0, "cooldown"),
        ]
        if len(self.starts) >= policy.daily_runs:
            waits.append((self.starts[-policy.daily_runs] + DAY, f"{policy.daily_runs} runs in a day"))
        until, why = max(waits)
        if until > now:
            return Wait(until, why)
        if policy.approval and not self.approved:
            if self.proposal_id:
                return Rest(f"{self.proposal_id} waits for an answer")
            self.proposals += 1
            self.proposal_id = name_of(name, f"p{self.proposals}")
            return Propose(self.proposal_id)
        return self._start(name, wish, now)

    def _start(self, name: str, wish: Wish, now: float) -> Run:
        self.fence += 1
        version = f"v{self.fence}"
        self.run = Run(
            name_of(name, version), version, self.fence, now, tuple(wish.episodes), wish.reason, wish.windows
        )
        self.starts.append(now)
        self.labels, self.superseded = 0, False
        self._drop()
        return self.run

    def _drop(self) -> str:
        dropped, self.wish, self.proposal_id, self.approved = self.proposal_id, None, "", False
        return dropped
