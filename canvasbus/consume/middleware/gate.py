"""A check in front of the handler, one event at a time, also where the handler gets batches.

Of a batch the handler gets the events that pass. The others are settled by what the check said of each, and the
positions that the handler uses are those of the list that it was given.
"""

from collections.abc import Callable, Iterator
from typing import Any

from canvasbus.checks import check_function
from canvasbus.consume.context import Context
from canvasbus.consume.middleware import Handle, Middleware
from canvasbus.consume.policy import BatchFailure, word_of

Check = Callable[[Any, Context], bool]
"""True: go on. False: skip the event; it counts as handled. Raises: that is the event's outcome."""


def gate(check: Check) -> Middleware:
    """Middleware that asks `check` before each run. Raises ContractError for what nobody can ask."""
    check_function("gate: check", check)

    def middleware(handle: Handle) -> Handle:
        async def run(event: Any, ctx: Any) -> Any:
            if isinstance(event, list):
                return await _run_batch(handle, event, ctx, check)
            return await handle(event, ctx) if check(event, ctx) else None

        return run

    return middleware


async def _run_batch(handle: Handle, events: list[Any], ctxs: list[Context], check: Check) -> Any:
    failures: dict[int, Exception] = {}
    passed: list[int] = []
    for position, (event, ctx) in enumerate(zip(events, ctxs, strict=True)):
        try:
            if check(event, ctx):
                passed.append(position)
        except Exception as error:
            failures[position] = error
    if len(passed) == len(events):
        return await handle(events, ctxs)
    result: Any = None
    if passed:
        try:
            result = await handle([events[i] for i in passed], [ctxs[i] for i in passed])
        except Exception as error:
            word = word_of(error)
            if not isinstance(word, BatchFailure):
                raise
            failures |= dict(_placed(word.failures.items(), passed))
            result = word.events
    derived = list(_placed(result or (), passed))
    if failures:
        raise BatchFailure(failures, derived)
    return derived


def _placed(pairs: Any, passed: list[int]) -> Iterator[tuple[int, Any]]:
    """(position, …) in the handler's list → the same at its position in the batch."""
    for position, value in pairs:
        if not 0 <= position < len(passed):
            raise ValueError(f"position {position} of a batch of {len(passed)}")
        yield passed[position], value
