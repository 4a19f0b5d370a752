"""The circuit breaker's rules, and random lives of it against a naive model that keeps the whole history."""

from random import Random

import pytest
from seeds import seeds

from canvasbus.consume.breaker import Breaker, Circuit
from canvasbus.consume.policy import HandlerTimeout, Reject, RetryLater
from canvasbus.errors import ContractError


class Loaded(Random):
    """A random source that always draws the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


def circuit(**options: float) -> Circuit:
    return Circuit(Breaker(**options), Loaded())  # type: ignore[arg-type]


def test_so_many_failures_in_so_many_seconds_open_it() -> None:
    """The fifth failure within 30 seconds; one that is 31 seconds old no longer counts."""
    tried = circuit()
    assert [tried.failed(t, 0) for t in (0, 10, 20, 30, 31)] == [False] * 5
    assert tried.failed(40, 0) and tried.state == "open" and tried.until == 45
    assert not tried.failed(41, 0), "runs that had begun before say nothing new"
    assert tried.openings == 1


def test_among_many_that_go_well_a_few_failures_are_no_outage() -> None:
    """Half of the runs since the first of them must have failed: five of ten open it, five of eleven do not."""
    for well, opens in ((5, True), (6, False)):
        tried = circuit()
        assert not any(tried.failed(t, 100) for t in range(4))
        assert tried.failed(4, 100 + well) is opens
    alone = circuit(share=0.0)
    assert [alone.failed(t, t * 1000) for t in range(5)][-1], "share=0: any"


def test_one_probe_at_a_time_and_not_before_its_time() -> None:
    """open → half open when the pause is over; the second who asks gets none."""
    tried = circuit(failures=1)
    assert not tried.probe(0)
    tried.failed(0, 0)
    assert [tried.probe(t) for t in (4.9, 5.0, 6.0)] == [False, True, False]
    tried.lapse()
    assert tried.probe(5.0), "of the first one nothing became"


def test_pauses_double_up_to_the_cap_and_half_of_each_is_drawn() -> None:
    """5, 10, 20, 40, 60, 60 seconds at most, and never less than half of that."""
    for random, factor in ((Loaded(), 1.0), (Lowest(), 0.5)):
        tried, now, pauses = Circuit(Breaker(failures=1), random), 0.0, []
        tried.failed(now, 0)
        for _ in range(6):
            pauses.append((tried.until - now) / factor)
            now = tried.until
            assert tried.probe(now)
            tried.judge(now, failed=True)
        assert pauses == [5, 10, 20, 40, 60, 60] and tried.probes == 6


class Lowest(Random):
    """A random source that always draws the lower bound."""

    def uniform(self, a: float, b: float) -> float:
        return a


def test_a_probe_that_does_not_fail_closes_it_and_all_is_forgotten() -> None:
    """After that it takes as many failures as at first, and the first pause is the short one."""
    tried = circuit(failures=2)
    for now in (0.0, 1.0):
        tried.failed(now, 0)
    tried.probe(tried.until)
    tried.judge(6.0, failed=True)
    tried.probe(tried.until)
    tried.judge(16.0, failed=False)
    assert tried.state == "closed" and not tried.failed(16.0, 0)
    assert tried.failed(17.0, 0) and tried.until == 22.0 and (tried.openings, tried.probes) == (2, 0)


class Offline(ConnectionError):
    pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), True),
        (Offline(), True),
        (TimeoutError(), True),
        (HandlerTimeout("slow"), True),
        (OSError(), False),
        (ValueError(), False),
        (ExceptionGroup("", [Offline()]), True),
        (ExceptionGroup("", [Offline(), ExceptionGroup("", [TimeoutError()])]), True),
        (ExceptionGroup("", [Offline(), ValueError()]), False),
        (Reject("no"), False),
    ],
    ids=repr,
)
def test_which_exceptions_concern_it(error: BaseException, expected: bool) -> None:
    """By class; a group counts when all in it do; what is said of one event never does."""
    assert Breaker().concerns(error) is expected
    assert Breaker(on=(Exception,)).concerns(error) is not isinstance(error, Reject)


@pytest.mark.parametrize(
    "wrong",
    [
        {"failures": 0},
        {"within": 0},
        {"pause": 0},
        {"pause": 61},
        {"share": 1.1},
        {"share": -0.1},
        {"on": ()},
        {"on": (int,)},
        {"on": "ConnectionError"},
        {"on": (RetryLater,)},
        {"within": float("nan")},
    ],
    ids=str,
)
def test_a_breaker_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    """At the line that declares it."""
    with pytest.raises(ContractError):
        Breaker(**wrong)  # type: ignore[arg-type]


def test_one_class_may_stand_for_itself() -> None:
    """on=ConnectionError is on=(ConnectionError,)."""
    assert Breaker(on=ConnectionError).on == (ConnectionError,)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", seeds(20, "circuits"))
def test_random_lives_against_a_naive_model(seed: int) -> None:
    """The model keeps all that ever happened and looks through it anew for each question."""
    dice = Random(seed)
    breaker = Breaker(
        failures=dice.randint(1, 6),
        within=dice.choice([1.0, 10.0, 100.0]),
        pause=dice.choice([0.5, 5.0]),
        cap=dice.choice([5.0, 60.0]),
        share=dice.choice([0.0, 0.3, 0.5, 1.0]),
    )
    tried = Circuit(breaker, Loaded())
    now, done, probing, failed_probes = 0.0, 0, False, 0
    history: list[tuple[float, bool]] = []  # runs that ended while it was closed, since it was closed last
    open_since: float | None = None
    well = dice.random()
    openings = 0
    for _ in range(600):
        now += dice.choice([0.0, 0.1, 1.0, 7.0])
        if dice.random() < 0.02:
            well = dice.random()  # the dependency falls ill or recovers
        is_open = open_since is not None
        if is_open and not probing and dice.random() < 0.5:
            due = open_since + min(breaker.cap, breaker.pause * 2**failed_probes)
            probing = now >= due
            assert tried.probe(now) is probing
        elif probing and dice.random() < 0.5:
            failed = dice.random() > well
            tried.judge(now, failed=failed)
            probing = False
            open_since = now if failed else None
            failed_probes = failed_probes + 1 if failed else 0
            if not failed:
                history.clear()
        elif dice.random() < well:
            done += 1
            if not is_open:
                history.append((now, True))
        else:
            opens = False
            if not is_open:
                history.append((now, False))
                last = [index for index, (_, ok) in enumerate(history) if not ok][-breaker.failures :]
                runs = history[last[0] :]
                opens = (
                    len(last) == breaker.failures
                    and now - runs[0][0] <= breaker.within
                    and len(last) >= breaker.share * len(runs)
                )
            assert tried.failed(now, done) is opens
            if opens:
                open_since, failed_probes = now, 0
                openings += 1
        assert tried.state == ("half open" if probing else "closed" if open_since is None else "open")
    assert tried.openings == openings
