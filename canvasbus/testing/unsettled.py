"""What an error says when not everything could be settled: who has not done what, and how far it came."""

from collections import Counter

import trio

from canvasbus import clock
from canvasbus.contract.event import Event
from canvasbus.testing.observed import Notebook, Run
from canvasbus.testing.seen import Eyes, Unfinished

SHOWN = 20
"""Entries that are listed."""

MANY = 200
"""Events that came while settling, after which it is asked whether they cause each other."""


class NotSettled(AssertionError):
    """Something was still to be done when `TestBus.settle` gave up; the message lists it."""


def entries(unfinished: list[Unfinished], eyes: Eyes, notebook: Notebook) -> list[str]:
    """One line for each of the first entries."""
    running = {(run.group, *entry): run for run in notebook.running for entry in run.entries}
    lines = []
    for one in unfinished[:SHOWN]:
        state = _state(one, running.get((one.group.partition("@")[0], one.event_type, one.entry_id)), notebook)
        lines.append(f"  {one.group}: {_short(eyes.event(one), one)} {state}")
    if len(unfinished) > SHOWN:
        lines.append(f"  and {len(unfinished) - SHOWN} more")
    return lines


def timers(due: list[tuple[float, str]]) -> list[str]:
    """One line for each of the first timers."""
    lines = [f"  a timer with {name} is due in {max(0.0, at - clock.time()):g} s" for at, name in due[:SHOWN]]
    return lines + ([f"  and {len(due) - SHOWN} more"] if len(due) > SHOWN else [])


def _state(one: Unfinished, run: Run | None, notebook: Notebook) -> str:
    if run is not None:
        return f"runs in {run.handler} for {trio.current_time() - run.started:g} s"
    worker = one.group.partition("@")[0]  # an instance's group is its worker's name, @, and more
    attempts = [a for a in notebook.attempts if a.group == worker and a.entry_id == one.entry_id]
    if not attempts:
        return "has not been read" if one.owner is None else f"is in the hands of {one.owner}, not begun"
    last = attempts[-1].error
    said = "returned" if last is None else f"raised {type(last).__name__}: {last}"
    return f"waits; it has run {'once' if len(attempts) == 1 else f'{len(attempts)} times'}, and at last {said}"


def _short(event: Event | None, one: Unfinished) -> str:
    """The event's own fields, cut to a line."""
    if event is None:
        return f"{one.event_type} {one.entry_id}"
    names = [name for name in event.__struct_fields__ if name not in Event.__struct_fields__]
    text = ", ".join(f"{name}={getattr(event, name)!r}" for name in names)
    return f"{type(event).__name__}({text if len(text) <= 100 else text[:97] + '...'}) {one.entry_id}"


def counts(eyes: Eyes) -> Counter[str]:
    """Events on the bus, by type."""
    return Counter(one.envelope.type for one in eyes.published())


def circle(before: Counter[str], eyes: Eyes) -> list[str]:
    """A hint where events may cause each other."""
    new = counts(eyes) - before
    if new.total() < MANY:
        return []
    most = ", ".join(f"{count} × {name}" for name, count in new.most_common(5))
    return [f"  meanwhile came {most}: do they cause each other?"]
