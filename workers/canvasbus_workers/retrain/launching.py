"""From an order to what is told about it: how launchers fail, and which event their answers are."""

from canvasbus import Event, clock
from canvasbus.events import RetrainFailed, RetrainStarted, RetrainSucceeded
from canvasbus.worker import Later, RetryLater
from canvasbus_workers.naming import name_of
from canvasbus_workers.retrain.events import RunCheck
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


async def launch(launcher: Launcher, order: Order, policy: Policy) -> Launched | Ended:
    """Give the order. Raises RetryLater where it is to be given again; that costs no attempt, and ends with the time in
    which the run should have ended."""
    try:
        return await launcher.launch(order)
    except Rejected as error:
        return Ended(error=str(error))
    except (Busy, Unreachable, Ambiguous) as error:
        after = error.after if isinstance(error, Busy) else AGAIN
        if clock.time() + after > order.ordered + policy.timeout_seconds:
            return Ended(error=f"{error}; its time is over")
        raise RetryLater(after, str(error)) from error


def answer(event: RetrainStarted, said: Launched | Ended, policy: Policy) -> Event | Later | None:
    """What follows from a launch."""
    now = clock.time()
    if isinstance(said, Launched):
        if not said.external_id:
            return None
        check = RunCheck(
            model_name=event.model_name,
            run_id=event.run_id,
            model_version=event.model_version,
            fence=event.fence,
            external_id=said.external_id,
            launched=now,
        )
        return _later(check, policy)
    return _ended(event, said, said.duration, policy)


def checked(event: RunCheck, said: Running | Ended, policy: Policy, now: float) -> Event | Later | None:
    """What follows from a look at a run."""
    if isinstance(said, Running):
        return _later(event, policy)
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
