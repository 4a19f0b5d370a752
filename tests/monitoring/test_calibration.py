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


def clean_embeddings(n: int, m: int, d: int, references: int, windows: int) -> tuple[float, float, float]:
    """Shares of clean windows of n rows (m, d) that are significant by MMD, that are above the median, and that are above
    the threshold of Fréchet. Dimensions of unlike width, several windows for each of many references."""
    random = np.random.default_rng([n, m, d])
    widths = np.linspace(1, 0.2, d)

    def rows(k: int) -> dict[str, np.ndarray]:
        return {"embedding": (random.standard_normal((k, d)) * widths).astype(np.float32)}

    p_values, frechet = [], []
    for _ in range(references):
        reference = Reference(rows(m))
        for _ in range(windows):
            (report,) = compare(reference, count(reference, rows(n)), Policy()).reports
            p_values.append(report.p_value)
            frechet.append(report.measures["frechet"].value > report.measures["frechet"].threshold)
    p = np.array(p_values)
    return float((p <= LEVEL).mean()), float((p <= 0.5).mean()), float(np.mean(frechet))


@pytest.mark.parametrize(("n", "m", "d"), [(50, 500, 16), (100, 500, 32)])
def test_clean_embeddings_are_seldom_significant(n: int, m: int, d: int) -> None:
    """Of 400 clean windows MMD and Fréchet flag at most twice the nominal rate (one standard error allowed). Resampling the
    reference that defines the mean gives 56 %; windows drawn from one fixed half, at a fifth of the reference, 4 %."""
    significant, below, frechet = clean_embeddings(n, m, d, references=10, windows=40)
    allowed = 2 * LEVEL + np.sqrt(2 * LEVEL / 400)
    assert significant <= allowed and frechet <= allowed
    assert 0.4 < below < 0.6


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("n", "m"), [(50, 500), (200, 500), (1000, 500), (5000, 500), (50, 2000), (400, 2000), (1000, 2000), (5000, 2000)]
)
def test_clean_embeddings_of_all_sizes_are_seldom_significant(n: int, m: int) -> None:
    """The same for 50 to 5000 rows, whether the reference is larger or smaller than the window. Where it is smaller, all
    windows of one reference are judged alike, so there are many references."""
    significant, below, frechet = clean_embeddings(n, m, 32, references=60, windows=5)
    allowed = 2 * LEVEL + np.sqrt(2 * LEVEL / (300 if n <= m else 60))
    assert significant <= allowed and frechet <= allowed
    assert 0.4 < below < 0.6


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
