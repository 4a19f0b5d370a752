"""The table of outcomes and verdicts, and the waits between attempts."""

import math
from random import Random
from typing import Any

import pytest
from studio import PaintingMade

from canvasbus.consume.policy import (
    NEVER,
    Ack,
    Backoff,
    BatchFailure,
    DeadLetter,
    HandlerTimeout,
    Outcome,
    Park,
    Raised,
    Reject,
    Retry,
    RetryLater,
    RetryRules,
    Returned,
    Verdict,
    count_for,
    decide,
    failures_in,
    next_window,
)
from canvasbus.errors import ContractError, DecodeError
from canvasbus.worker import Worker


class Loaded(Random):
    """A random source that always draws the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.mark.parametrize(
    ("outcome", "failures", "expected"),
    [
        (Returned(), 0, Ack()),
        (Returned(), 4, Ack()),
        (Raised(ValueError("x")), 0, Retry(0.5, 1)),
        (Raised(ValueError("x")), 1, Retry(1.0, 2)),
        (Raised(ValueError("x")), 3, Retry(4.0, 4)),
        (Raised(ValueError("x")), 4, DeadLetter("exhausted")),
        (Raised(ValueError("x")), 9, DeadLetter("exhausted")),
        (Raised(HandlerTimeout("slow")), 0, Retry(0.5, 1)),
        (Raised(BatchFailure({})), 0, Retry(0.5, 1)),
        (Raised(SystemExit(1)), 0, Retry(0.5, 1)),
        (Raised(RetryLater(30)), 0, Retry(30, 0)),
        (Raised(RetryLater(0.5)), 4, Retry(0.5, 4)),
        (Raised(RetryLater(-1)), 2, Retry(0.1, 2)),
        (Raised(Reject("no")), 0, DeadLetter("rejected")),
        (Raised(Reject("no")), 3, DeadLetter("rejected")),
        *(
            (Raised(DecodeError("x", reason=reason)), 0, DeadLetter(reason))
            for reason in ("foreign", "undecodable", "invalid", "unknown_type", "oversize", "upcast_failed")
        ),
        (Raised(DecodeError("x", reason="newer_version")), 0, Park()),
        (Raised(DecodeError("x", reason="newer_version")), 9, Park()),
    ],
)
def test_each_outcome_has_one_verdict(outcome: Outcome, failures: int, expected: Verdict) -> None:
    """With Backoff(attempts=5, base=0.5): what happened, how often it had failed before, what is to be done."""
    assert decide(outcome, failures, Backoff(attempts=5, base=0.5, cap=60), Loaded()) == expected


def test_what_was_parked_for_long_enough_is_given_up() -> None:
    """Overdue: no newer worker came."""
    newer = Raised(DecodeError("x", reason="newer_version"))
    assert decide(newer, 0, Backoff(), Loaded(), overdue=True) == DeadLetter("newer_version")


def test_one_attempt_means_never_again() -> None:
    """attempts=1: the first failure is the last."""
    assert decide(Raised(ValueError()), 0, Backoff(attempts=1), Random()) == DeadLetter("exhausted")


@pytest.mark.parametrize(
    ("failures", "bound"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 32.0), (8, 60.0), (100, 60.0), (10**6, 60.0)]
)
def test_waits_double_up_to_the_cap(failures: int, bound: float) -> None:
    """The bound of the n-th wait is min(cap, base · 2^(n-1)), also where 2^n no longer fits a float."""
    backoff = Backoff(base=0.5, cap=60)
    assert backoff.delay(failures, Loaded()) == bound
    random = Random(7)
    drawn = [backoff.delay(failures, random) for _ in range(300)]
    assert 0 <= min(drawn) < bound / 10 and bound * 0.9 < max(drawn) <= bound, "full jitter: evenly from 0 to the bound"


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1e20, 10**400, "soon", None])
def test_a_moment_that_never_comes_is_refused(wrong: Any) -> None:
    """In the handler's own traceback: the event would wait for ever, and nothing would show it."""
    with pytest.raises((ValueError, OverflowError)):
        RetryLater(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": "5"},
        {"attempts": 1.5},
        {"base": -1},
        {"base": None},
        {"cap": -0.1},
        {"cap": math.nan},
    ],
)
def test_a_backoff_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    """At the line that declares it, which names what is wrong."""
    with pytest.raises(ContractError, match=next(iter(wrong))):
        Backoff(**wrong)  # type: ignore[arg-type]


class Offline(ConnectionError):
    """The dependency of the tests is away."""


BY_KIND = RetryRules(
    {
        OSError: Backoff(attempts=2, base=2),
        ConnectionError: Backoff(attempts=9, base=9),
        ValueError: NEVER,
        Exception: Backoff(attempts=4, base=1),
    }
)


@pytest.mark.parametrize(
    ("error", "failures", "expected"),
    [
        (Offline(), 0, Retry(9.0, 1)),
        (Offline(), 8, DeadLetter("exhausted")),
        (FileNotFoundError(), 0, Retry(2.0, 1)),
        (HandlerTimeout("slow"), 0, Retry(2.0, 1)),
        (UnicodeDecodeError("utf-8", b"", 0, 0, ""), 0, DeadLetter("exhausted")),
        (KeyError(), 0, Retry(1.0, 1)),
        (KeyError(), 3, DeadLetter("exhausted")),
        (SystemExit(), 0, Retry(1.0, 1)),
        (ExceptionGroup("", [ExceptionGroup("", [Offline()])]), 0, Retry(9.0, 1)),
        (ExceptionGroup("", [Offline(), Offline()]), 0, Retry(1.0, 1)),
        (ExceptionGroup("", [ValueError()]), 0, DeadLetter("exhausted")),
        (ExceptionGroup("", [RetryLater(2), ExceptionGroup("", [RetryLater(5)])]), 3, Retry(5.0, 3)),
        (ExceptionGroup("", [RetryLater(2), Offline()]), 0, Retry(1.0, 1)),
        (Offline(), 1, Retry(18.0, 2)),
        (FileNotFoundError(), 1, DeadLetter("exhausted")),
        (RetryLater(3), 1, Retry(3.0, 1)),
        (Reject("no"), 1, DeadLetter("rejected")),
    ],
    ids=repr,
)
def test_each_class_of_exceptions_may_have_its_own_backoff(
    error: BaseException, failures: int, expected: Verdict
) -> None:
    """The most specific class decides, in a group of one that of what is inside; a timeout of the handler is a
    TimeoutError, so an OSError; all failures of an event add up, whatever they were."""
    assert decide(Raised(error), failures, BY_KIND, Loaded()) == expected


def test_what_no_rule_names_has_the_default_backoff() -> None:
    """Rules without Exception leave everything else as it is; also how often a worker may die of an event."""
    some = RetryRules({ValueError: NEVER})
    assert decide(Raised(KeyError()), 0, some, Loaded()) == Retry(0.5, 1)
    assert some.attempts == Backoff().attempts and BY_KIND.attempts == 4
    assert some.most == Backoff().attempts and BY_KIND.most == 9


def test_a_count_of_deliveries_tells_deaths_from_what_was_raised() -> None:
    """Only where both could be: as often as a worker may die of an event nothing is raised under one backoff for all."""
    assert [failures_in(count_for(n, BY_KIND)) for n in range(9)] == [(n, n < 4) for n in range(9)]
    assert [failures_in(n + 1) for n in range(9)] == [(n, True) for n in range(9)]
    assert failures_in(0) == (0, True)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({}, "at least one"),
        ({"ValueError": NEVER}, "no exception class"),
        ({int: NEVER}, "no exception class"),
        ({ValueError: None}, "must have a Backoff"),
        ({Reject: NEVER}, "says itself"),
        ({RetryLater: Backoff()}, "says itself"),
    ],
)
def test_rules_that_cannot_be_are_refused(rules: dict[type[BaseException], Backoff], said: str) -> None:
    """At the line that declares them, with the name of the worker."""
    with pytest.raises(ContractError, match=f"worker 'w'.*{said}"):
        Worker("w").on(PaintingMade, retry=rules)
    with pytest.raises(ContractError, match="neither a Backoff nor a mapping"):
        Worker("w").on_batch(PaintingMade, retry=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("window", "seconds", "expected"),
    [
        (16, 0.01, 32),
        (600, 0.01, 1000),
        (1000, 0.01, 1000),
        (64, 0.1, 64),
        (64, 0.3, 32),
        (20, 0.3, 16),
        (16, 100.0, 16),
    ],
)
def test_a_lane_holds_what_it_works_off_soon(window: int, seconds: float, expected: int) -> None:
    """concurrency 16, limit 1,000: doubled when done in 50 ms, halved above 250, never below the concurrency."""
    assert next_window(window, 16, 1000, seconds) == expected
