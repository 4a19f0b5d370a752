"""What follows from decisions about a model, as events and timers. No I/O."""

from collections.abc import Sequence

from canvasbus import Event
from canvasbus.events import (
    DriftResolved,
    MetricRecovered,
    MetricThresholdBreached,
    ModelPromoted,
    RetrainFailed,
    RetrainProposed,
    RetrainRejected,
    RetrainStarted,
    RetrainSucceeded,
)
from canvasbus.worker import Later
from canvasbus_workers.naming import name_of
from canvasbus_workers.retrain.book import Propose, Rest, Run, Wait, Wish, named
from canvasbus_workers.retrain.events import RetrainDue, RunOverdue


def follows(
    name: str, step: Run | Propose | Wait | Rest, wish: Wish | None, labels: int, timeout: float, now: float
) -> Sequence[Event | Later]:
    """What follows from the next step of a model, which had this wish and so many new labels before it."""
    match step:
        case Run() as run:
            return _started(name, run), patience(name, run.run_id, timeout)
        case Propose(proposal_id=proposal_id):
            assert wish is not None, "what is proposed is wanted"
            return (_proposed(name, proposal_id, wish, labels),)
        case Wait(until=until):
            return (Later(RetrainDue(model_name=name), after=until - now, timer=name_of("due", name)),)
        case Rest():
            return ()


def _started(name: str, run: Run) -> RetrainStarted:
    return RetrainStarted(
        model_name=name,
        run_id=run.run_id,
        model_version=run.version,
        reason=run.reason,
        episode_id=named(run.episodes),
        fence=run.fence,
        windows=run.windows,
    )


def _proposed(name: str, proposal_id: str, wish: Wish, labels: int) -> RetrainProposed:
    return RetrainProposed(
        model_name=name,
        reason=wish.reason,
        episode_id=named(wish.episodes),
        labelled_items=labels,
        proposal_id=proposal_id,
    )


def lost(event: MetricThresholdBreached) -> str:
    """What is lost of a metric, for a person."""
    match event:
        case MetricThresholdBreached(change=float(change), change_bound=float(bound)):
            return f"changed by {change:.3f}, expected {bound:.3f}"
        case MetricThresholdBreached(relative_change=float(change), relative_bound=float(bound)):
            return f"changed by {change:.1%}, expected {bound:.1%}"
        case MetricThresholdBreached(bound=float(bound)):
            return f"{event.value:.3f}, expected {bound:.3f}"
    return f"{event.value:.3f}"


def withdrawn(event: MetricRecovered | DriftResolved, proposal_id: str, by: str) -> RetrainRejected:
    """Nobody needs to answer a proposal any more."""
    return RetrainRejected(
        model_name=event.model_name,
        proposal_id=proposal_id,
        episode_id=event.episode_id,
        rejected_by=by,
        reason="what it was for is over",
    )


def patience(name: str, run_id: str, seconds: float, *, last: bool = False) -> Later:
    """So long a run may take from now on."""
    overdue = RunOverdue(model_name=name, run_id=run_id, last=last)
    return Later(overdue, after=seconds, timer=name_of("overdue", run_id))


def overdue(name: str, run: Run, seconds: float) -> RetrainFailed:
    """Nobody has told what became of a run."""
    return RetrainFailed(
        model_name=name,
        run_id=run.run_id,
        model_version=run.version,
        error=f"no answer in {seconds:.0f} s",
        duration=seconds,
        fence=run.fence,
    )


def promoted(event: RetrainSucceeded, run: Run, version: str, previous: str) -> ModelPromoted:
    """The run's model is in service from now on."""
    return ModelPromoted(
        model_name=event.model_name,
        model_version=version,
        model=event.model,
        previous_version=previous,
        run_id=run.run_id,
        fence=run.fence,
    )
