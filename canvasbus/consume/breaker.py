"""When to stop trying: a circuit breaker for what a handler calls outside. Pure: time and chance come in as arguments.

    closed      runs as usual. It opens when the last `failures` failures of the kinds named in `on` came within `within`
                seconds and at least `share` of the runs since the first of them failed like that.
    open        nothing is run for `pause` seconds, twice as long after each probe that fails, never longer than `cap`;
                of that, half is for sure and half is drawn, so that many workers do not come back in step.
    half open   one run, the probe. If it fails in the same way the circuit is open again; whatever else becomes of it
                (an exception of another kind, too) came from something that answers, and closes the circuit. Only
                RetryLater says nothing: another one is the probe.

What the share is for: of a thousand runs a second five may time out within half a minute although all is well. Runs that
went well are not recorded one by one, which would be paid for by every event: a failure remembers how many there had
been, and the difference tells. Failures are judged only while the circuit is closed: those of runs that had begun
before it opened say nothing new.
"""

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Literal

from canvasbus.consume.policy import Reject, RetryLater, opened
from canvasbus.errors import ContractError, DecodeError


@dataclass(frozen=True, slots=True)
class Breaker:
    """`@worker.on(..., breaker=Breaker(on=(ConnectionError,)))`: while what the handler calls is down, its lane rests
    instead of using up the attempts of its events. Each handler has a circuit of its own in each process."""

    failures: int = 5
    """So many failures open it."""
    within: float = 30.0
    """Seconds in which they must have come."""
    pause: float = 5.0
    """Seconds until the first probe."""
    cap: float = 60.0
    """Seconds; no pause between probes is longer."""
    on: tuple[type[BaseException], ...] = (ConnectionError, TimeoutError)
    """Exceptions that mean that something outside is down. A handler's own timeout is a TimeoutError."""
    share: float = 0.5
    """The part of the runs that must have failed like that, from 0 (any) to 1 (all)."""

    def __post_init__(self) -> None:
        if self.failures < 1 or not self.within > 0 or not 0 < self.pause <= self.cap or not 0 <= self.share <= 1:
            raise ContractError(f"{self!r}: failures start at 1, 0 < within, 0 < pause <= cap, 0 <= share <= 1")
        kinds = self.on if isinstance(self.on, tuple) else (self.on,)
        object.__setattr__(self, "on", kinds)
        if not kinds or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise ContractError(f"{self!r}: `on` is a tuple of exception classes")
        own = next((kind for kind in kinds if issubclass(kind, Reject | RetryLater | DecodeError)), None)
        if own is not None:
            raise ContractError(f"Breaker: {own.__name__} is said of one event and tells nothing of the outside")

    def concerns(self, error: BaseException) -> bool:
        """True when the exception is of a kind named in `on`; of a group, when all in it are."""
        inner = opened(error)
        if isinstance(inner, Reject | RetryLater | DecodeError):  # also where `on` names a base of theirs
            return False
        if isinstance(inner, BaseExceptionGroup):
            try:
                return inner.split(self.on)[1] is None
            except RecursionError:  # groups in groups in groups
                return False
        return isinstance(inner, self.on)


class Circuit:
    """The state of one breaker in one process."""

    def __init__(self, breaker: Breaker, random: Random) -> None:
        self.state: Literal["closed", "open", "half open"] = "closed"
        self.until = 0.0
        """When the next probe may run, while it is open."""
        self.since = 0.0
        """When it opened last."""
        self.probes = 0
        """Probes that have failed since then."""
        self.openings = 0
        self._breaker = breaker
        self._random = random
        self._failures: deque[tuple[float, int]] = deque(maxlen=breaker.failures)

    def failed(self, now: float, done: int) -> bool:
        """A run failed in a way that concerns the breaker; `done`: how many went well so far. True: that opened it."""
        if self.state != "closed":
            return False
        failures, breaker = self._failures, self._breaker
        failures.append((now, done))
        first, done_then = failures[0]
        if len(failures) < breaker.failures or now - first > breaker.within:
            return False
        if len(failures) < breaker.share * (len(failures) + done - done_then):
            return False
        self.openings += 1
        self.since, self.probes = now, 0
        self._open(now)
        return True

    def probe(self, now: float) -> bool:
        """Take the one probe. False: it is not time, or somebody has it."""
        if self.state != "open" or now < self.until:
            return False
        self.state = "half open"
        return True

    def judge(self, now: float, *, failed: bool) -> None:
        """What became of the probe."""
        assert self.state == "half open"
        if failed:
            self.probes += 1
            self._open(now)
        else:
            self.state = "closed"
            self._failures.clear()

    def lapse(self) -> None:
        """Nothing became of the probe: another one may be taken at once."""
        assert self.state == "half open"
        self.state = "open"

    def _open(self, now: float) -> None:
        breaker = self._breaker
        bound = min(breaker.cap, breaker.pause * 2 ** min(self.probes, 63))
        self.state = "open"
        self.until = now + self._random.uniform(bound / 2, bound)

    def __repr__(self) -> str:
        return f"<Circuit {self.state}, opened {self.openings} times, {self.probes} probes failed>"
