"""What a launcher is given, what it says, and how it fails. No I/O."""

from collections.abc import Mapping
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta, Struct

from canvasbus.events import ArtifactRef, RetrainStarted
from canvasbus.worker import Context

LATE = "it could not be started in time"


class Order(Struct, frozen=True, kw_only=True):
    """One run, as whoever trains gets it."""

    key: str
    """The idempotency key: the id of retrain.started. The same order has the same one, however often it is given."""
    run_id: str
    model_name: str
    model_version: str
    """The version to make."""
    fence: int
    episode_id: str
    reason: str
    windows: int
    correlation_id: str
    traceparent: str
    ordered: float
    """When it was decided on, seconds since 1970."""


class Result(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run says of the model that it made; the fields of retrain.succeeded."""

    model_version: str = ""
    model: ArtifactRef | None = None
    manifest: ArtifactRef | None = None
    train_items: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    metrics: Mapping[str, float] = msgspec.field(default_factory=dict)
    error: str = ""
    """Why there is no model after all; empty: there is one."""


class Launched(Struct, frozen=True, kw_only=True):
    """It is under way; what becomes of it is told on the bus, or by `status`."""

    external_id: str = ""
    """What the other side calls it; empty: it cannot be asked about."""
    duplicate: bool = False
    """It was under way already."""
    began: float = 0.0
    """When it was sent, seconds since 1970; 0: now."""


class Running(Struct, frozen=True):
    """It has not ended."""


class Ended(Struct, frozen=True, kw_only=True):
    """It has ended."""

    error: str = ""
    """Why it failed, in one line; empty: it succeeded."""
    result: Result = Result()
    duration: float = 0.0
    """Seconds; 0: not known."""


class Launcher(Protocol):
    """Starts runs somewhere."""

    async def launch(self, order: Order, *, late: bool = False) -> Launched | Ended:
        """Start the run, or find it started. Given again, the same order starts nothing again. `late`: the time in which it
        may be started is over, so it is found or has failed.

        Raises Rejected, Busy, Unreachable, and Ambiguous where giving the order again is no harm.
        """

    async def status(self, external_id: str) -> Running | Ended:
        """Where a run stands that `launch` gave an external id for. Raises Rejected, Busy, Unreachable."""


class LaunchError(Exception):
    """A run could not be started; one line for a person."""


class Rejected(LaunchError):
    """And it will not be, however often it is asked for."""


class Busy(LaunchError):
    """Not now, but in `after` seconds."""

    def __init__(self, said: str, after: float) -> None:
        super().__init__(said)
        self.after = after


class Unreachable(LaunchError):
    """Nobody was there; nothing has been started."""


class Ambiguous(LaunchError):
    """It was sent and not answered, and may be sent again: the other side knows the key."""


class OnTheBus:
    """Whoever reads retrain.started trains, and answers with retrain.succeeded or retrain.failed."""

    async def launch(self, order: Order, *, late: bool = False) -> Launched | Ended:
        """The order has been published already, and may be under way."""
        return Launched()

    async def status(self, external_id: str) -> Running | Ended:
        """Unknown: the answer is an event."""
        return Running()


def order_of(event: RetrainStarted, ctx: Context) -> Order:
    """What retrain.started orders."""
    return Order(
        key=str(ctx.envelope.id),
        run_id=event.run_id,
        model_name=event.model_name,
        model_version=event.model_version,
        fence=event.fence,
        episode_id=event.episode_id,
        reason=event.reason,
        windows=event.windows,
        correlation_id=str(event.correlation_id),
        traceparent=ctx.traceparent or "",
        ordered=event.occurred_on.timestamp(),
    )
