"""What the features worker listens to: rows, and windows that are rows. A batch of them is one round trip for each sink.

Nothing is held in the process. An event that is delivered again is written again, which changes nothing, and so it may
be while one of several sinks is away: the others have its row already.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from canvasbus import clock
from canvasbus.events import FeaturesComputed, WindowEvaluated
from canvasbus.worker import Backoff, BatchFailure, Context, Reject, RetryLater, Worker, section
from canvasbus_workers.features.edge import opened
from canvasbus_workers.features.rows import BadRow, FeatureRow, check, row_of
from canvasbus_workers.features.settings import Settings
from canvasbus_workers.features.sinks import Away, FeatureSink, RowsRefused

worker = Worker("features")

AWAY_SECONDS = 1.0
"""After which rows come again that a sink could not take."""


class NotStored(Exception):
    """A sink has failed with this row, and may do better another time."""


@dataclass(frozen=True)
class Resources:
    """What one process has."""

    settings: Settings
    sinks: Sequence[FeatureSink]


@worker.lifespan
async def open_resources() -> AsyncIterator[Resources]:
    """Settings that make no sense end it before it has begun."""
    settings = section("features", Settings)
    async with opened(settings.sinks) as sinks:
        yield Resources(settings, sinks)


@worker.on_batch(
    FeaturesComputed, WindowEvaluated, max_size=500, max_wait=0.05, retry=Backoff(attempts=12, base=1, cap=300)
)
async def store(events: Sequence[FeaturesComputed | WindowEvaluated], ctxs: Sequence[Context]) -> None:
    """Write the rows of a batch to every sink."""
    resources: Resources = ctxs[0].resources
    rows: list[FeatureRow] = []
    positions: list[int] = []
    failures: dict[int, Exception] = {}
    now = clock.now()
    for position, (event, ctx) in enumerate(zip(events, ctxs, strict=True)):
        row = row_of(event, ctx.envelope.id.hex)
        if row is None:
            continue
        try:
            check(row, now, resources.settings.ahead_seconds)
        except BadRow as error:
            failures[position] = Reject(f"the row of {row.entity!r} in {row.view!r}: {error}")
        else:
            rows.append(row)
            positions.append(position)
    if rows:
        failures |= {positions[at]: error for at, error in (await _write(resources.sinks, rows)).items()}
    if failures:
        raise BatchFailure(failures)


async def _write(sinks: Sequence[FeatureSink], rows: Sequence[FeatureRow]) -> dict[int, Exception]:
    """Write to all of them, since one that is away costs the others nothing; rows that are not stored everywhere, and why."""
    refused: dict[int, Exception] = {}
    failed: dict[int, Exception] = {}
    later: dict[int, Exception] = {}
    for sink in sinks:
        try:
            await sink.write(rows)
        except RowsRefused as error:
            refused |= {at: Reject(why) for at, why in error.refused.items()}
            failed |= {at: NotStored(why) for at, why in error.failed.items()}
        except Away as error:
            later = dict.fromkeys(range(len(rows)), RetryLater(AWAY_SECONDS, str(error)))
    return failed | later | refused
