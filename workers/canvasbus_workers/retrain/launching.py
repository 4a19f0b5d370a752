"""From an order to what is told about it: how launchers fail, and which event their answers are."""

from collections.abc import Sequence
from pathlib import Path

from canvasbus import Event, clock
from canvasbus.events import RetrainFailed, RetrainStarted, RetrainSucceeded
from canvasbus.worker import Later, RetryLater
from canvasbus_workers.naming import name_of
from canvasbus_workers.retrain import telling
from canvasbus_workers.retrain.events import RunCheck
from canvasbus_workers.retrain.launchers import folders
from canvasbus_workers.retrain.launchers.protocol import (
    Ambiguous,
    Busy,
    Ended,
    Launched,
    Launcher,
    Order,
    Rejected,
    Running,
    Unreachable,
)
from canvasbus_workers.retrain.settings import Policy

AGAIN = 5.0
"""Seconds after which an order is given again that nobody took, or whose answer was lost."""
LONGEST_ERROR = 500
"""Characters of an error in an event."""
OVERTIME = 60.0
"""Seconds beyond its timeout in which whoever trains should have said that a run has failed."""


async def launch(launcher: Launcher, order: Order, policy: Policy) -> Launched | Ended:
    """Give the order; when its time is over, find what it has begun. Raises RetryLater where it is to be given again; that
    costs no attempt, and ends with the time in which the run should have ended, counted from when it began."""
    try:
        return await launcher.launch(order, late=clock.time() > order.ordered + policy.timeout_seconds)
    except Rejected as error:
        return Ended(error=str(error))
    except (Busy, Unreachable, Ambiguous) as error:
        after = error.after if isinstance(error, Busy) else AGAIN
        since = folders.began(Path(policy.folder) / order.key) or order.ordered
        if clock.time() + after > since + policy.timeout_seconds:
            return Ended(error=f"{error}; its time is over")
        raise RetryLater(after, str(error)) from error


def answer(event: RetrainStarted, said: Launched | Ended, policy: Policy) -> Sequence[Event | Later]:
    """What follows from a launch. Elsewhere it may have had to wait, and its time counts from when it was sent."""
    if isinstance(said, Launched):
        if policy.remote is None:
            return ()
        now = clock.time()
        launched = said.began or now
        seconds = max(still(launched, policy, now), policy.poll_seconds + OVERTIME)
        patience = telling.patience(event.model_name, event.run_id, seconds, last=True)
        if not said.external_id:
            return (patience,)
        check = RunCheck(
            model_name=event.model_name,
            run_id=event.run_id,
            model_version=event.model_version,
            fence=event.fence,
            external_id=said.external_id,
            launched=launched,
        )
        return patience, _later(check, policy)
    ended = _ended(event, said, said.duration, policy)
    return () if ended is None else (ended,)


def still(began: float, policy: Policy, now: float) -> float:
    """Seconds in which a run that began then may go on, or whoever trains may say that it has failed."""
    grace = policy.subprocess.grace_seconds if policy.launcher == "subprocess" else 0.0
    return began + policy.timeout_seconds + grace + OVERTIME - now


def checked(event: RunCheck, said: Running | Ended, policy: Policy, now: float) -> Event | Later | None:
    """What follows from a look at a run."""
    if isinstance(said, Running):
        return _later(event, policy) if still(event.launched, policy, now) >= 0 else None  # else it is overdue
    return _ended(event, said, said.duration or max(0.0, now - event.launched), policy)


def failed(event: RetrainStarted | RunCheck, error: str, duration: float = 0.0) -> RetrainFailed:
    """The run has come to nothing."""
    return RetrainFailed(
        model_name=event.model_name,
        run_id=event.run_id,
        model_version=event.model_version,
        error=" ".join(error.split())[:LONGEST_ERROR],
        duration=duration,
        fence=event.fence,
    )


def _later(check: RunCheck, policy: Policy) -> Later:
    return Later(check, after=policy.poll_seconds, timer=name_of("check", check.run_id))


def _ended(event: RetrainStarted | RunCheck, said: Ended, duration: float, policy: Policy) -> Event | None:
    error = said.error or said.result.error
    if error:
        return failed(event, error, duration)
    if policy.says == "bus":
        return None  # the run tells of its success itself; should it not, it is overdue one day
    return RetrainSucceeded(
        model_name=event.model_name,
        run_id=event.run_id,
        model_version=said.result.model_version or event.model_version,
        model=said.result.model,
        manifest=said.result.manifest,
        train_items=said.result.train_items,
        duration=duration,
        metrics=said.result.metrics,
        fence=event.fence,
    )
