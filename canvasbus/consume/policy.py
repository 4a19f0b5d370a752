"""What an outcome means. Pure: no I/O, no clock; the only randomness comes in as an argument.

    returned                       → Ack
    raised RetryLater(after)       → Retry; the handler's own word, not a failure, so it does not count
    raised Reject                  → DeadLetter "rejected"
    could not be read at all       → DeadLetter with the decoder's reason
    is of a newer version          → Park: newer workers know it; DeadLetter when none has come for long
    raised while a circuit is open → Retry when it is closed again; it does not count (see `breaker`)
    raised anything else           → Retry after a backoff while failures < attempts, then DeadLetter "exhausted"

Which backoff that is may hang on the class of the exception (`RetryRules`). An event has one count of failures,
whatever they were: it is what the server keeps, and so what survives the worker.

What counts as a failure is what a handler raised, or a worker that died while it ran the event alone in the
quarantine lane. Being read, reclaimed or handed back never counts.

Whoever takes over from the dead gives up what has as many failures as a worker may die of an event, since the last of them
was a death. Where some exceptions have more attempts than that, so many may have been raised, and killed nobody: on the
server such a number looks different (`count_for`), and the event has its run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from msgspec import Struct

from canvasbus.checks import check_number
from canvasbus.errors import CanvasbusError, ContractError, DecodeError
from canvasbus.wire.later import LONGEST


class Reject(Exception):
    """Raised by a handler: this event can never be handled. It goes to the dead letters at once."""


LEAST_SECONDS = 0.1
"""What counts no attempt has no other bound: again at once, it would keep a processor busy for ever."""


class RetryLater(Exception):
    """Raised by a handler: not now. The event is handled again after `after` seconds, a tenth of one at least; no attempt
    is counted."""

    def __init__(self, after: float, reason: str = "") -> None:
        try:
            self.after = float(after)
        except (TypeError, ValueError):  # a timedelta, say: told here, in the handler's own traceback
            self.after = math.nan
        if not abs(self.after) <= LONGEST:  # a NaN is not
            raise ValueError(f"RetryLater(after={after!r}): seconds are wanted, up to a hundred years") from None
        super().__init__(reason or f"again in {self.after:g} s")


class BatchFailure(Exception):
    """Raised by a batch handler: the events at these positions failed, the others are done."""

    def __init__(self, failures: dict[int, Exception], events: object = None) -> None:
        if not isinstance(failures, dict) or not all(
            isinstance(position, int) and isinstance(error, BaseException) for position, error in failures.items()
        ):
            raise TypeError("BatchFailure takes a dict of positions in the batch and exceptions")
        super().__init__(f"{len(failures)} of the batch failed")
        self.failures = failures
        self.events = events
        """Derived events of the others, as a batch handler returns them: an iterable of (position, event)."""


class HandlerTimeout(CanvasbusError, TimeoutError):
    """A handler ran longer than its timeout and was cancelled."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter: the n-th wait is drawn evenly from 0 to min(cap, base · 2^(n-1)) seconds.

    Full jitter after Brooker, "Exponential Backoff And Jitter" (AWS, 2015): of the variants compared there it loads a
    recovering dependency least.
    """

    attempts: int = 5
    """How often the handler is started in all before the event goes to the dead letters; 1: never again."""
    base: float = 0.5
    """Seconds; the bound of the first wait."""
    cap: float = 60.0
    """Seconds; no wait is longer."""

    def __post_init__(self) -> None:
        check_number("Backoff: attempts", self.attempts, whole=True, error=ContractError)
        check_number("Backoff: base", self.base, error=ContractError)
        check_number("Backoff: cap", self.cap, error=ContractError)
        if not (self.attempts >= 1 and self.base >= 0 and self.cap >= 0):  # a NaN is none of these
            raise ContractError(f"{self!r}: attempts start at 1, base and cap at 0")

    def delay(self, failures: int, random: Random) -> float:
        """Seconds to wait after the `failures`-th failure."""
        bound = min(self.cap, self.base * 2 ** min(failures - 1, 63))
        return random.uniform(0.0, bound)

    @property
    def most(self) -> int:
        """How often an event may run in all, whatever it raises."""
        return self.attempts

    def for_error(self, error: BaseException) -> "Backoff":
        """The backoff after this exception: for every one the same."""
        return self


NEVER: Final = Backoff(attempts=1)
"""The first failure is the last: what fails like this would fail again."""


class RetryRules:
    """A backoff for each class of exceptions. The most specific class decides, in the order in which Python looks for
    attributes; what no rule names has the default Backoff. A worker that dies raises nothing: its events have the rule
    for Exception."""

    def __init__(self, rules: Mapping[type[BaseException], Backoff]) -> None:
        self._rules = dict(rules)
        if not self._rules:
            raise ContractError("retry={}: name at least one exception class, or give one Backoff")
        for kind, backoff in self._rules.items():
            if not isinstance(kind, type) or not issubclass(kind, BaseException):
                raise ContractError(f"retry: {kind!r} is no exception class")
            if not isinstance(backoff, Backoff):
                raise ContractError(f"retry: {kind.__name__} must have a Backoff (or NEVER), not {backoff!r}")
            if issubclass(kind, Reject | RetryLater | DecodeError):
                raise ContractError(
                    f"retry: {kind.__name__} says itself what becomes of the event; no rule applies to it"
                )
        self._default = self._rules.get(Exception) or self._rules.get(BaseException) or Backoff()

    @property
    def attempts(self) -> int:
        """How often a worker may die of an event."""
        return self._default.attempts

    @property
    def most(self) -> int:
        """How often an event may run in all, whatever it raises."""
        return max(self._default.attempts, *(backoff.attempts for backoff in self._rules.values()))

    def for_error(self, error: BaseException) -> Backoff:
        """The backoff after this exception; a group of one counts as what is in it."""
        for kind in type(opened(error)).__mro__:
            backoff = self._rules.get(kind)
            if backoff is not None:
                return backoff
        return self._default

    def __repr__(self) -> str:
        return f"RetryRules({', '.join(f'{kind.__name__}: {backoff!r}' for kind, backoff in self._rules.items())})"


_RAISED = 1_000_000
"""Added to a server's count where an event has failed as often as workers may die of it, by a rule that allows more: these
failures are no deaths, and whoever gets it next runs it."""


def count_for(failures: int, retry: Backoff | RetryRules) -> int:
    """What a server's count of deliveries says of so many failures of which the last was no death."""
    return failures + 1 + (_RAISED if failures >= retry.attempts else 0)


def failures_in(count: int) -> tuple[int, bool]:
    """What a count of deliveries says: how many failures, and whether a death may be among them."""
    return (count - 1 - _RAISED, False) if count > _RAISED else (max(0, count - 1), True)


class Returned(Struct, frozen=True):
    """The handler returned, and what it returned can be committed."""


class Raised(Struct, frozen=True):
    """The handler raised, or the entry could not be read."""

    error: BaseException


Outcome = Returned | Raised


class Ack(Struct, frozen=True):
    """Done: acknowledge, and commit what follows from it."""


class Retry(Struct, frozen=True):
    """Run it again after `after` seconds; `failures` have been counted by then."""

    after: float
    failures: int


class DeadLetter(Struct, frozen=True):
    """Give it up. `reason` is one word for machines."""

    reason: str


class Park(Struct, frozen=True):
    """Leave it to workers that know this version of its type."""


Verdict = Ack | Retry | DeadLetter | Park


def opened(error: BaseException) -> BaseException:
    """What is in a group of one: a nursery wraps what is raised inside of it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def word_of(error: BaseException) -> BaseException:
    """What a handler meant, if it said a word of ours; else the exception as it came."""
    inner = opened(error)
    if isinstance(inner, BaseExceptionGroup):  # several tasks that all say "later", say when the server is away
        said = [each for each in map(opened, inner.exceptions) if isinstance(each, RetryLater)]
        if len(said) == len(inner.exceptions):
            return max(said, key=lambda each: each.after)
    return inner if isinstance(inner, Reject | RetryLater | BatchFailure) else error


def decide(
    outcome: Outcome,
    failures: int,
    retry: Backoff | RetryRules,
    random: Random,
    *,
    overdue: bool = False,
    spared: bool = False,
) -> Verdict:
    """The verdict on one delivery that had failed `failures` times before this outcome. `overdue`: it has been parked
    for long enough. `spared`: something outside is down, which costs no attempt."""
    if isinstance(outcome, Returned):
        return Ack()
    error = word_of(outcome.error)
    if isinstance(error, DecodeError):
        return Park() if error.reason == "newer_version" and not overdue else DeadLetter(error.reason)
    if isinstance(error, Reject):
        return DeadLetter("rejected")
    if isinstance(error, RetryLater):
        return Retry(max(LEAST_SECONDS, error.after), failures)
    if spared:
        return Retry(0.0, failures)
    failures += 1
    backoff = retry.for_error(error)
    if failures >= backoff.attempts:
        return DeadLetter("exhausted")
    return Retry(backoff.delay(failures, random), failures)


def next_window(window: int, concurrency: int, limit: int, seconds: float) -> int:
    """How many deliveries a lane may hold, after a full window took `seconds` from read to settled.

    Small for slow handlers, so that one process does not sit on work that another could do; large for fast ones, where
    entries per read decide the throughput (COUNT 1: 7–14 k/s, 500: 335–402 k/s measured). Doubles while a window is
    done within 50 ms, halves when it takes more than 250.
    """
    if seconds < 0.05:
        return min(limit, window * 2)
    if seconds > 0.25:
        return max(concurrency, window // 2)
    return window
