"""What is promised about clean and about shifted data, on fixed seeds: false alarms near the nominal rate, and power."""

import numpy as np
import pytest
from monitoring.conftest import Rows

from canvasbus_workers.monitoring import Monitor, Policy, Reference, compare, count, nulls

LEVEL = 0.01


@pytest.mark.parametrize("n", [50, 100, 200, 500, 1000, 5000])
def test_clean_windows_are_seldom_significant(n: int) -> None:
    """At every window size, over several references of 5000 rows: the share of clean windows with an adjusted p ≤ .01 is
    at most twice that (two standard errors allowed), and so is the share of each statistic above its threshold. With
    constant thresholds PSI > .1 flags 78 % of the windows of 50 rows and none of those of 500."""
    random = np.random.default_rng(n)

    def rows(k: int) -> dict[str, np.ndarray]:
        styles = random.choice(6, k, p=[0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
        return {"f": random.standard_normal((k, 9)).astype(np.float32), "style": styles}

    windows, significant, flagged, above, measured = 0, 0, 0, dict[str, int](), dict[str, int]()
    for _ in range(4):
        reference = Reference(rows(5000))
        for _ in range(60 if n == 5000 else 100):
            found = compare(reference, count(reference, rows(n)), Policy(level=LEVEL))
            windows += 1
            significant += found.p_value <= LEVEL
            flagged += bool(found.flagged)
            for report in found.reports:
                for name, measure in report.measures.items():
                    measured[name] = measured.get(name, 0) + 1
                    above[name] = above.get(name, 0) + (measure.value > measure.threshold)
    assert significant <= windows * 2 * LEVEL + 2 * np.sqrt(windows * 2 * LEVEL)
    assert flagged <= significant
    for name, times in above.items():
        assert times / measured[name] <= 2 * LEVEL, name
    assert above["ks"] / measured["ks"] >= LEVEL / 4  # nor is it that nothing is ever significant


@pytest.mark.parametrize(("n", "d"), [(50, 16), (200, 64), (500, 128)])
def test_clean_embeddings_are_seldom_significant(n: int, d: int) -> None:
    """MMD of clean windows: at most twice the nominal rate. Resampling the reference that defines the mean gives 56 %."""
    random = np.random.default_rng([n, d])
    p_values, frechet = [], []
    for _ in range(6):
        reference = Reference({"embedding": random.standard_normal((1000, d)).astype(np.float32)})
        for _ in range(50):
            window = {"embedding": random.standard_normal((n, d)).astype(np.float32)}
            (report,) = compare(reference, count(reference, window), Policy()).reports
            p_values.append(report.p_value)
            frechet.append(report.measures["frechet"].value > report.measures["frechet"].threshold)
    assert np.mean(np.array(p_values) <= LEVEL) <= 2 * LEVEL + 2 * np.sqrt(2 * LEVEL / len(p_values))
    assert 0.3 < np.mean(np.array(p_values) <= 0.5) < 0.7
    assert np.mean(frechet) <= 4 * LEVEL + 2 * np.sqrt(4 * LEVEL / len(frechet))


@pytest.mark.parametrize(
    ("n", "shift", "scale", "least"),
    [(1000, 0.2, 1.0, 1.0), (200, 0.5, 1.0, 1.0), (100, 0.5, 1.0, 0.5), (500, 0.0, 1.6, 1.0)],
)
def test_a_shifted_column_among_twenty_is_found(n: int, shift: float, scale: float, least: float) -> None:
    """One of twenty columns moves or widens: it is named, with its direction, in nearly every window."""
    random = np.random.default_rng([n, 1])
    reference = Reference({"f": random.standard_normal((5000, 20)).astype(np.float32)})
    named = 0
    for _ in range(20):
        window = random.standard_normal((n, 20)).astype(np.float32)
        window[:, 7] = window[:, 7] * scale + shift
        found = compare(reference, count(reference, {"f": window}), Policy())
        flagged = {report.feature: report for report in found.flagged}
        named += "f[7]" in flagged
        if "f[7]" in flagged:
            assert flagged["f[7]"].direction == ("up" if shift else "mixed")
    assert named >= least * 20


def test_shifted_embeddings_are_found() -> None:
    """A shift of a tenth of a standard deviation in each of 128 dimensions, by 200 rows, every time."""
    random = np.random.default_rng(5)
    reference = Reference({"embedding": random.standard_normal((2000, 128)).astype(np.float32)})
    for _ in range(20):
        window = {"embedding": (random.standard_normal((200, 128)) + 0.1).astype(np.float32)}
        assert compare(reference, count(reference, window), Policy()).p_value <= LEVEL


def test_enough_data_make_nothing_important() -> None:
    """A shift of .03 standard deviations in a hundred thousand rows is significant and not flagged: its effect is small."""
    random = np.random.default_rng(6)
    reference = Reference({"x": random.standard_normal(100_000)})
    found = compare(reference, count(reference, {"x": random.standard_normal(100_000) + 0.03}), Policy())
    assert found.p_value < 1e-4
    assert found.flagged == ()
    assert 0.01 < found.effect < 0.05
    assert found.calm(0.05)


def test_episodes_on_clean_data_are_rare(rows: Rows) -> None:
    """Three hundred clean windows of a hundred mixed rows open no episode."""
    monitor = Monitor(Reference(rows(2000)))
    for _ in range(300):
        monitor.judge(rows(100))
    assert monitor.course.episode.opened == 0
    assert monitor.number == 300


def test_p_values_fall_as_the_statistic_rises(random: np.random.Generator) -> None:
    """From draws into the tail without a step back, and a threshold has the p-value that it is for."""
    for quadratic in (True, False):
        null = nulls.Null(random.chisquare(4, 4000) ** (1.0 if quadratic else 0.5), quadratic=quadratic)
        values = np.linspace(0, 40 if quadratic else 6, 400)
        p = np.array([null.p_value(value) for value in values])
        assert (np.diff(p) <= 1e-3).all()
        assert p[0] == 1.0 and p[-1] < 1e-5
        for level in (0.2, 0.01, 1e-4):
            assert null.p_value(null.threshold(level, 0.5), 0.5) == pytest.approx(level, rel=0.05)


@pytest.mark.parametrize("n", [1, 17, 64, 65, 100, 999, 1000, 5000, 123_456])
def test_few_sizes_stand_for_all(n: int) -> None:
    """The size whose null is taken is never larger, and at most 3.2 % smaller."""
    assert n * 0.968 <= nulls.near(n) <= n
    assert nulls.near(nulls.near(n)) == nulls.near(n)
