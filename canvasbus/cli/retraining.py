"""Where trainings stand, by what lies on the bus: a fold over the events of retraining. No I/O."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from canvasbus import Event
from canvasbus.events import (
    ModelPromoted,
    RetrainFailed,
    RetrainProposed,
    RetrainRejected,
    RetrainRequested,
    RetrainStarted,
    RetrainSucceeded,
)
from canvasbus.wire.envelope import Envelope

READS = (
    RetrainRequested,
    RetrainProposed,
    RetrainRejected,
    RetrainStarted,
    RetrainSucceeded,
    RetrainFailed,
    ModelPromoted,
)
Status = Literal["waiting", "approved", "rejected", "running", "succeeded", "failed", "promoted"]
OPEN: frozenset[Status] = frozenset({"waiting", "running"})


@dataclass(slots=True)
class Training:
    """A proposal or a run."""

    kind: Literal["proposal", "run"]
    id: str
    model_name: str
    status: Status
    since: datetime
    """When it got that status."""
    about: str
    """For a person: why, or what came of it."""
    episode_id: str
    event_id: UUID
    correlation_id: UUID


def trainings(entries: Iterable[tuple[Envelope, Event]]) -> dict[str, Training]:
    """Id → proposal or run, the oldest first. `entries` in the order of time; causes may lie a little behind what they
    caused, as they are on different streams."""
    found: dict[str, Training] = {}
    answers: list[Event] = []
    for envelope, event in entries:
        match event:
            case RetrainProposed(proposal_id=id_) if id_:
                found[id_] = Training(
                    "proposal", id_, event.model_name, "waiting", event.occurred_on, event.reason,
                    event.episode_id, envelope.id, event.correlation_id,
                )  # fmt: skip
            case RetrainStarted(run_id=id_) if id_:
                found[id_] = Training(
                    "run", id_, event.model_name, "running", event.occurred_on, event.reason,
                    event.episode_id, envelope.id, event.correlation_id,
                )  # fmt: skip
            case _:
                answers.append(event)
    for event in answers:
        match event:
            case RetrainRequested():
                _answer(found, event.proposal_id, "approved", event, event.requested_by)
            case RetrainRejected():
                _answer(found, event.proposal_id, "rejected", event, event.reason or event.rejected_by)
            case RetrainSucceeded():
                _answer(found, event.run_id, "succeeded", event, event.model_version)
            case RetrainFailed():
                _answer(found, event.run_id, "failed", event, event.error)
    for event in answers:
        if isinstance(event, ModelPromoted) and (run := found.get(event.run_id)):
            run.status, run.since, run.about = "promoted", event.occurred_on, event.model_version
    return found


def _answer(found: dict[str, Training], id_: str, status: Status, event: Event, about: str) -> None:
    one = found.get(id_)
    if one is not None and one.status in OPEN:  # the first answer counts
        one.status, one.since, one.about = status, event.occurred_on, about or one.about
