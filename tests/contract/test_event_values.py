"""Events as values: immutable, timed, correlated."""

import threading
from datetime import UTC, timedelta
from uuid import UUID, uuid4

import pytest
import trio
from waiting import TurnedClock

from canvasbus import Event, clock, correlation, event


@event("contract.noted")
class Noted(Event):
    text: str = ""


def test_events_do_not_change() -> None:
    """Setting, adding or deleting a field raises; equal fields make equal events; arguments go by keyword."""
    noted = Noted(text="a")
    with pytest.raises(AttributeError):
        noted.text = "b"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        noted.other = 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        del noted.text
    assert noted == Noted(text="a", occurred_on=noted.occurred_on, correlation_id=noted.correlation_id)
    assert hash(noted) == hash(Noted(text="a", occurred_on=noted.occurred_on, correlation_id=noted.correlation_id))
    with pytest.raises(TypeError):
        Noted("a")  # type: ignore[misc]


def test_occurred_on_is_now_in_utc() -> None:
    """The default moment is the clock's, aware, UTC, to the microsecond."""
    with clock.using(TurnedClock(1_700_000_000.5)) as turned:
        first = Noted().occurred_on
        turned.turn(2.0)  # type: ignore[attr-defined]
        second = Noted().occurred_on
    assert first.tzinfo is UTC
    assert first.timestamp() == 1_700_000_000.5
    assert second - first == timedelta(seconds=2)


def test_events_have_correlations_of_their_own() -> None:
    """Outside of any context each event begins a story of its own."""
    assert len({Noted().correlation_id for _ in range(100)}) == 100


def test_correlations_nest_and_end() -> None:
    """The innermost block counts, an explicit id wins, and the outer one is back after the block, also after an error."""
    outer, inner, explicit = uuid4(), uuid4(), uuid4()
    with correlation(outer) as given:
        assert given == outer
        with pytest.raises(KeyError), correlation(inner):
            assert Noted().correlation_id == inner
            assert Noted(correlation_id=explicit).correlation_id == explicit
            raise KeyError
        assert Noted().correlation_id == outer
    assert Noted().correlation_id not in (outer, inner)


def test_a_new_thread_has_no_correlation() -> None:
    """Threads start without a context: what they publish is not silently part of another story."""
    seen: list[UUID] = []
    with correlation(uuid4()) as outer:
        thread = threading.Thread(target=lambda: seen.append(Noted().correlation_id))
        thread.start()
        thread.join()
        assert Noted().correlation_id == outer
    assert seen and seen[0] != outer


async def test_tasks_inherit_and_do_not_disturb_each_other() -> None:
    """A task starts with its parent's correlation; what it sets afterwards stays its own."""
    results: dict[str, tuple[UUID, UUID]] = {}
    ready = {name: trio.Event() for name in "ab"}

    async def task(name: str, other: str) -> None:
        inherited = Noted().correlation_id
        with correlation(uuid4()) as own:
            ready[name].set()
            await ready[other].wait()  # both are inside their blocks now
            assert Noted().correlation_id == own
            results[name] = (inherited, own)

    with correlation(uuid4()) as parent:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task, "a", "b")
            nursery.start_soon(task, "b", "a")
        assert Noted().correlation_id == parent
    assert {inherited for inherited, _ in results.values()} == {parent}
    assert results["a"][1] != results["b"][1]


async def test_worker_threads_of_trio_carry_the_correlation() -> None:
    """A plain function that runs in trio's worker thread publishes into the story of its task."""
    with correlation(uuid4()) as outer:
        assert await trio.to_thread.run_sync(lambda: Noted().correlation_id) == outer
