"""Late labels: what counts as a loss of accuracy."""

import msgspec
import numpy as np
import pytest
import scipy

from canvasbus_workers.monitoring import Adwin, HddmA, Policy
from canvasbus_workers.monitoring.quality import LEVEL, TOLERATED, Labelled, Quality, bar


def window(number: int, correct: int, *, version: str = "v1", regime: str = "baseline", bar: float = 0.95) -> Labelled:
    return Labelled(number, version, regime, 50, correct, bar)


@pytest.mark.parametrize(
    ("counts", "breached_at"),
    [
        ([48, 47, 48, 49, 46, 48, 47, 48], None),
        ([48, 47, 30], 2),
        ([44, 44, 44, 44, 44, 44, 44, 44], 3),
        ([45, 45, 45, 45, 45, 45, 45, 45, 45, 45], 7),
    ],
)
def test_a_collapse_is_seen_at_once_and_a_small_loss_later(counts: list[int], breached_at: int | None) -> None:
    """A collapse takes one window, seven points four, five points eight; noise around the bar nothing."""
    quality = Quality()
    verdicts = [quality.judge(window(n, count)) for n, count in enumerate(counts)]
    assert next((n for n, verdict in enumerate(verdicts) if verdict.breached), None) == breached_at


def test_the_verdict_is_the_best_look() -> None:
    """The p-value is five times the smallest of the looks at the last 1, 2, 4, 8 and 16 windows, computed one by one."""
    random = np.random.default_rng(5)
    quality, past = Quality(), []
    for number in range(40):
        past.append(int(random.binomial(50, 0.93)))
        verdict = quality.judge(window(number, past[-1]))
        looks = {n: scipy.stats.binom.cdf(sum(past[-n:]), 50 * n, 0.95) for n in (1, 2, 4, 8, 16) if n <= len(past)}
        assert verdict.p_value == pytest.approx(min(1.0, 5 * min(looks.values())))
        assert verdict.items == 50 * (number - verdict.first + 1)
        assert verdict.calm == (looks[1] > 0.05)


@pytest.mark.parametrize("change", [{"version": "v2"}, {"regime": "retrain-1"}])
def test_another_version_or_regime_starts_anew(change: dict[str, str]) -> None:
    """Windows that another version answered, or that matched other data, say nothing about the present ones."""
    quality = Quality()
    for number in range(3):
        quality.judge(window(number, 25))
    verdict = quality.judge(window(3, 48, **change))  # type: ignore[arg-type]
    assert not verdict.breached
    assert (verdict.items, verdict.first) == (50, 3)


def test_another_regime_in_between_interrupts_nothing() -> None:
    """A window that matched other data neither counts nor wipes out what is known of this regime."""
    quality = Quality()
    for number in range(3):
        quality.judge(window(number, 44))
    assert not quality.judge(window(3, 10, regime="unmatched", bar=0.2)).breached
    verdict = quality.judge(window(4, 44))
    assert verdict.breached
    assert (verdict.items, verdict.correct, verdict.first) == (200, 176, 0)


def test_false_alarms_are_as_rare_as_promised() -> None:
    """A model that is exactly as good as its bar is called broken in at most LEVEL of its windows (3,000, one seed)."""
    random = np.random.default_rng(11)
    quality = Quality()
    counts = random.binomial(50, 0.95, size=3_000)
    breached = sum(quality.judge(window(n, int(count))).breached for n, count in enumerate(counts))
    assert breached / len(counts) <= LEVEL


def test_the_looks_are_bounded_and_survive_storing() -> None:
    """Many windows of many regimes take a few kilobytes, and go on after they were stored."""
    quality = Quality()
    for number in range(2000):
        quality.judge(window(number, 47, regime=f"r{number % 50}"))
        quality.advance("v1", [False] * 47 + [True] * 3, Policy())
    data = msgspec.msgpack.encode(quality)
    assert len(data) < 20_000
    again = msgspec.msgpack.decode(data, type=Quality)
    assert again.judge(window(9999, 40, regime="r49")) == quality.judge(window(9999, 40, regime="r49"))


@pytest.mark.parametrize(("sequential", "detector"), [("hddm_a", HddmA()), ("adwin", Adwin()), ("off", None)])
def test_errors_are_watched_one_by_one(sequential: str, detector: HddmA | Adwin | None) -> None:
    """The detector of the policy sees every answer in order, over the ends of windows; a new version begins anew."""
    random = np.random.default_rng(8)
    wrong = [*(random.random(1000) < 0.05), *(random.random(500) < 0.4)]
    quality, policy = Quality(), Policy(sequential=sequential)  # type: ignore[arg-type]
    told = [quality.advance("v1", wrong[at : at + 50], policy) for at in range(0, 1500, 50)]
    fired = [detector.update(float(one)) for one in wrong] if detector else [False] * 1500
    assert told == [any(fired[at : at + 50]) for at in range(0, 1500, 50)]
    assert any(told) == (sequential != "off")
    quality.advance("v2", [True] * 40, policy)
    assert quality.hddm.all.n in (0, 40)


@pytest.mark.parametrize(
    ("matched", "others", "expected"),
    [(0.9, [0.9, 0.92], 0.9), (0.7, [0.7, 0.92], 0.92 - TOLERATED), (None, [0.7, 0.92], 0.92), (None, [], None)],
)
def test_a_poor_reference_does_not_lower_the_bar(
    matched: float | None, others: list[float], expected: float | None
) -> None:
    """At most five points below the best reference's accuracy; what matches nothing is measured against the best."""
    assert bar(matched, others) == expected
