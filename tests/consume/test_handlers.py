"""Declaring handlers: what a worker listens to, and each declaration that is refused at import."""

import functools
import math
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from studio import PaintingFramed, PaintingMade, SculptureMade

from canvasbus import Event
from canvasbus.bus import EventBus
from canvasbus.consume.handlers import start_id
from canvasbus.errors import ContractError
from canvasbus.worker import Context, Worker


async def handle(event: Event) -> None: ...


def test_an_exact_type_beats_a_glob() -> None:
    """One handler serves a type: by name where there is one, else by pattern."""
    worker = Worker("w")
    worker.on("painting.*")(handle)

    @worker.on(PaintingMade)
    async def exact(event: PaintingMade) -> None: ...

    made = worker.handler_for("painting.made")
    framed = worker.handler_for("painting.framed")
    assert made is not None and made.function is exact
    assert framed is not None and framed.function is handle
    assert worker.handler_for("sculpture.made") is None


def test_a_star_does_not_match_the_buss_own_events() -> None:
    """handler.failed and bus.loss go only to those who name them."""
    worker = Worker("w")
    worker.on("*")(handle)
    assert worker.handler_for("handler.failed") is None and worker.handler_for("bus.loss") is None
    worker.on("handler.failed")(handle)
    assert worker.handler_for("handler.failed") is not None


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ((PaintingMade,), (PaintingMade,), "painting.made"),
        ((PaintingMade,), ("painting.made",), "painting.made"),
        ((SculptureMade, PaintingMade), (PaintingFramed, PaintingMade), "painting.made"),
        (("painting.*",), ("*.made",), "types that match both"),
        (("*",), ("sculpture.*",), "types that match both"),
    ],
)
def test_two_handlers_for_one_type_are_refused(first: Any, second: Any, clash: str) -> None:
    """At import, naming both handlers and what they would both get."""
    worker = Worker("framers")
    worker.on(*first)(handle)

    async def another(event: Event) -> None: ...

    with pytest.raises(ContractError, match=clash) as raised:
        worker.on(*second)(another)
    assert "handle" in str(raised.value) and "another" in str(raised.value) and "two workers" in str(raised.value)


@pytest.mark.parametrize("what", [(), (int,), ("Painting.Made",), ("painting made",), ("",), (None,), ("drift.[ab]",)])
def test_what_is_no_event_is_refused(what: Any) -> None:
    """Neither a class of events, nor a type name, nor a glob."""
    with pytest.raises(ContractError):
        Worker("w").on(*what)(handle)


def test_an_event_class_without_a_name_is_refused() -> None:
    """It was never declared with @event, so nothing of it can be on the bus."""

    class Nameless(Event):
        x: int

    with pytest.raises(ContractError, match=r"@event\("):
        Worker("w").on(Nameless)


@pytest.mark.parametrize("name", ["", "two words", "~free", "a{b}", "x" * 101, "a/b", "å"])
def test_a_worker_needs_a_usable_name(name: str) -> None:
    """The name becomes a consumer group and part of keys."""
    with pytest.raises(ContractError, match="worker name"):
        Worker(name)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": 2.5},
        {"concurrency": "4"},
        {"timeout": 0},
        {"timeout": math.nan},
        {"timeout": "30"},
        {"timeout": -1},
        {"start": "yesterday"},
        {"start": "12-"},
        {"start": 5},
        {"start": datetime(2026, 1, 1)},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """At the line that gives them, and with the option's name."""
    with pytest.raises(ContractError, match=f"{next(iter(options))}="):
        Worker("w").on(PaintingMade, **options)


@pytest.mark.parametrize("options", [{"max_size": 0}, {"max_size": 2.5}, {"max_wait": -1}, {"max_wait": math.nan}])
def test_batch_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """A batch has at least one event and waits no negative time."""
    with pytest.raises(ContractError):
        Worker("w").on_batch(PaintingMade, **options)


class Callables:
    """Ways to write a handler, and whether it gets the context."""

    async def method(self, event: Event) -> None: ...

    async def method_with_context(self, event: Event, ctx: Context) -> None: ...

    async def __call__(self, event: Event) -> None: ...


async def with_context(event: Event, ctx: Context) -> None: ...
async def with_extra(event: Event, database: object = None) -> None: ...
async def with_two(database: object, event: Event) -> None: ...
async def with_keyword(event: Event, *, verbose: bool = False) -> None: ...
def plain(event: Event) -> None: ...
def plain_generator(event: Event) -> Iterator[Event]:
    yield PaintingFramed()


@pytest.mark.parametrize(
    ("function", "is_async", "wants_context"),
    [
        (handle, True, False),
        (with_context, True, True),
        (with_extra, True, False),
        (with_keyword, True, False),
        (plain, False, False),
        (plain_generator, False, False),
        (lambda event: None, False, False),
        (lambda event, ctx: None, False, True),
        (Callables().method, True, False),
        (Callables().method_with_context, True, True),
        (Callables(), True, False),
        (functools.partial(with_two, object()), True, False),
    ],
)
def test_a_handler_may_be_written_in_many_ways(function: Any, is_async: bool, wants_context: bool) -> None:
    """Functions, methods, partials, callables, with or without the context."""
    worker = Worker("w")
    assert worker.on(PaintingMade)(function) is function
    (handler,) = worker.handlers
    assert (handler.is_async, handler.wants_context) == (is_async, wants_context)


async def no_arguments() -> None: ...
async def three(event: Event, ctx: Context, more: int) -> None: ...
async def keyword_only(event: Event, *, database: object) -> None: ...
async def generator(event: Event) -> AsyncIterator[Event]:
    yield PaintingFramed()


@pytest.mark.parametrize("function", [no_arguments, three, keyword_only])
def test_a_signature_that_cannot_be_called_is_refused(function: Callable[..., Any]) -> None:
    """(event) or (event, ctx): anything else would fail at the first event."""
    with pytest.raises(ContractError, match=r"must take \(event\) or \(event, ctx\)"):
        Worker("w").on(PaintingMade)(function)


def test_what_nobody_can_call_is_refused() -> None:
    """At the line that gives it, as a handler and as what a bus subscribes."""
    with pytest.raises(ContractError, match="worker 'w': handler=5: a function is wanted"):
        Worker("w").on(PaintingMade)(5)  # type: ignore[type-var]
    with pytest.raises(ContractError, match="handler='frame': a function is wanted"):
        EventBus("memory://").subscribe(PaintingMade, "frame", group="w")  # type: ignore[arg-type]


def test_a_method_without_its_object_is_refused() -> None:
    """Decorated in its class it would get the event as self; the bound one is a handler like any other."""
    worker = Worker("w")

    class Framer:
        def frame(self, event: PaintingMade) -> None: ...

    with pytest.raises(ContractError, match="frame is a method of a class, and nobody has its object"):
        worker.on(PaintingMade)(Framer.frame)
    worker.on(PaintingMade)(Framer().frame)


def test_an_async_generator_is_refused() -> None:
    """Its events could not be committed together; the error says to return a list."""
    with pytest.raises(ContractError, match="return a list of events instead of yielding"):
        Worker("w").on(PaintingMade)(generator)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("earliest", "0"),
        ("latest", "$"),
        ("1700000000000-5", "1700000000000-5"),
        ("1700000000000", "1700000000000"),
        (datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), f"1699999999999-{2**64 - 1}"),
        (datetime(1960, 1, 1, tzinfo=UTC), f"0-{2**64 - 1}"),
    ],
)
def test_a_start_becomes_the_id_before_the_first_entry(start: Any, expected: str) -> None:
    """A moment becomes the last possible id of the millisecond before it, so that its own entries are read."""
    assert start_id(start) == expected


def test_a_worker_without_handlers_is_refused() -> None:
    """Nothing would ever happen."""
    with pytest.raises(ContractError, match="has no handlers"):
        EventBus("memory://").add(Worker("idle"))


def test_a_bus_has_one_worker_of_a_name() -> None:
    """Two workers of one name in one process are a mistake; scale by concurrency or by processes."""
    worker = Worker("w")
    worker.on(PaintingMade)(handle)
    bus = EventBus("memory://")
    bus.add(worker)
    with pytest.raises(ContractError, match="already on this bus"):
        bus.add(worker)


def test_repr_lists_what_a_worker_listens_to() -> None:
    """Types and globs, for logs and the list of workers."""
    worker = Worker("w")
    assert repr(worker) == "<Worker w: no handlers>"
    worker.on(PaintingMade, "sculpture.*")(handle)
    assert repr(worker) == "<Worker w: painting.made, sculpture.*>"
