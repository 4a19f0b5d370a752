"""Data quality and the estimate of quality without labels."""

from typing import Any

import numpy as np
import pytest
from monitoring.conftest import Rows

from canvasbus_workers.monitoring import Calibration, Policy, Reference, compare, count
from canvasbus_workers.monitoring.estimate import isotonic


def nan_in(window: dict[str, Any]) -> None:
    window["features"][:30, 1] = np.nan


def far_in(window: dict[str, Any]) -> None:
    window["features"][:10, 1] = 1e6


def infinite_in(window: dict[str, Any]) -> None:
    window["features"][:10, 1] = -np.inf


def constant(window: dict[str, Any]) -> None:
    window["features"][:, 1] = 0.25


def unseen(window: dict[str, Any]) -> None:
    window["style"][:10] = 17


def unseen_text(window: dict[str, Any]) -> None:
    window["palette"] = np.where(np.arange(len(window["palette"])) < 10, "pixel", window["palette"])


def text_for_numbers(window: dict[str, Any]) -> None:
    window["style"] = window["style"].astype(str)


def missing_array(window: dict[str, Any]) -> None:
    del window["style"]


def narrow(window: dict[str, Any]) -> None:
    window["embedding"] = window["embedding"][:, :5]


def narrow_columns(window: dict[str, Any]) -> None:
    window["probabilities"] = window["probabilities"][:, :2]


def broken_vectors(window: dict[str, Any]) -> None:
    window["embedding"][:20, 3] = np.nan


@pytest.mark.parametrize(
    ("spoil", "check", "feature", "observed"),
    [
        (nan_in, "missing", "features[1]", 0.15),
        (far_in, "range", "features[1]", 0.05),
        (infinite_in, "range", "features[1]", 0.05),
        (constant, "constant", "features[1]", 1.0),
        (unseen, "category", "style", 0.05),
        (unseen_text, "category", "palette", 0.05),
        (text_for_numbers, "type", "style", 1.0),
        (missing_array, "schema", "style", 1.0),
        (narrow, "schema", "embedding", 1.0),
        (narrow_columns, "type", "probabilities[0]", 1.0),
        (broken_vectors, "missing", "embedding", 0.1),
    ],
)
def test_what_is_broken_is_told_and_not_tested(
    rows: Rows, spoil: Any, check: str, feature: str, observed: float
) -> None:
    """Each check names its column and the share of rows; the column is left out of the drift tests, others are not."""
    reference, window = Reference(rows(1000)), rows(200)
    spoil(window)
    found = compare(reference, count(reference, window), Policy())
    broken = {violation.feature: violation for violation in found.violations}
    assert (broken[feature].check, broken[feature].items) == (check, 200)
    assert broken[feature].observed == pytest.approx(observed)
    tested = {report.feature for report in found.reports}
    assert feature not in tested and "features[0]" in tested
    assert found.flagged == ()


def test_clean_windows_break_nothing(rows: Rows) -> None:
    """Two hundred of them, with missing values at the reference's own rate."""
    arrays = rows(2000)
    arrays["features"][::10, 0] = np.nan
    reference = Reference(arrays)
    for _ in range(200):
        window = rows(60)
        window["features"][:6, 0] = np.nan
        assert compare(reference, count(reference, window), Policy()).violations == ()


def test_probabilities_are_in_range_from_0_to_1() -> None:
    """However small those of the reference were; what lies beyond is broken."""
    random = np.random.default_rng(3)
    low = random.random((500, 2)).astype(np.float32) * 0.01
    reference = Reference({"probabilities": np.concatenate([low, 1 - low.sum(axis=1, keepdims=True)], axis=1)})
    high = random.dirichlet(np.ones(3), 100).astype(np.float32)
    assert compare(reference, count(reference, {"probabilities": high}), Policy()).violations == ()
    broken = compare(reference, count(reference, {"probabilities": high * 6}), Policy()).violations
    assert {v.feature for v in broken if v.check == "range"} >= {f"probabilities[{at}]" for at in range(3)}


@pytest.mark.parametrize("m", [2, 3, 63, 64])
@pytest.mark.parametrize("d", [1, 5])
def test_small_and_constant_references_have_verdicts(m: int, d: int) -> None:
    """A few rows, one dimension, nothing that varies: no error and no drift where nothing has changed; a constant that
    changes is drift."""
    random = np.random.default_rng([m, d])
    for spread in (1.0, 0.0):
        vectors = (random.standard_normal((m, d)) * spread).astype(np.float32)
        reference = Reference({"embedding": vectors, "x": random.standard_normal(m) * spread})
        window = {
            "embedding": np.tile(vectors, (100 // m + 1, 1))[:100],
            "x": np.resize(random.standard_normal(m), 100) * spread,
        }
        found = compare(reference, count(reference, window), Policy())
        assert np.isfinite([report.p_value for report in found.reports]).all()
        assert not any(report.flagged for report in found.reports if report.kind == "embedding")
    moved = {"embedding": vectors[[0] * 100] + 1, "x": np.zeros(100)}
    assert "embedding" in {report.feature for report in compare(reference, count(reference, moved), Policy()).flagged}


def test_a_few_odd_rows_break_nothing(rows: Rows) -> None:
    """One unseen category and one value out of range among five hundred rows."""
    reference, window = Reference(rows(1000)), rows(500)
    window["style"][0], window["features"][0, 0] = 9, 1e9
    found = compare(reference, count(reference, window), Policy())
    assert found.violations == () and found.flagged == ()


def test_pooling_adjacent_violators() -> None:
    """The nearest ascending sequence, by hand and against scipy's."""
    from scipy.optimize import isotonic_regression

    assert isotonic(np.array([1.0, 3.0, 2.0]), np.ones(3)).tolist() == [1.0, 2.5, 2.5]
    random = np.random.default_rng(2)
    for _ in range(20):
        values, weights = random.random(12), random.random(12) + 0.1
        assert isotonic(values, weights) == pytest.approx(isotonic_regression(values, weights=weights).x)


def answers(random: np.random.Generator, n: int, sure: float, known: bool = True) -> dict[str, np.ndarray]:
    """Probabilities that are right as often as they say, `sure` of the rows being easy ones."""
    top = np.where(random.random(n) < sure, 0.97, 0.6)
    right = random.random(n) < top * 0.9  # overconfident by a tenth
    found: dict[str, np.ndarray] = {"probabilities": np.stack([top, 1 - top], axis=1).astype(np.float32)}
    return {**found, "correct": right.astype(np.float32)} if known else found


def test_the_estimate_is_right_without_labels() -> None:
    """Calibrated on a reference, it gives the accuracy of windows with another mix of easy and hard rows to two points,
    though the model is overconfident; uncalibrated confidence is off by up to ten."""
    random = np.random.default_rng(4)
    reference = Reference(answers(random, 5000, 0.7))
    assert reference.calibration is not None and reference.calibration.calibrated
    for sure in (0.9, 0.5, 0.1):
        window = answers(random, 5000, sure)
        true = float(window.pop("correct").mean())
        found = compare(reference, count(reference, window), Policy())
        assert found.estimate == pytest.approx(true, abs=0.02)


def test_without_right_answers_confidence_is_scaled() -> None:
    """A reference that tells only how many were right: its own estimate is just that share; none at all: no estimate."""
    random = np.random.default_rng(4)
    arrays = answers(random, 2000, 0.7, known=False)
    scaled = Calibration.fit(arrays, 0.8)
    assert scaled is not None and not scaled.calibrated
    assert scaled.expected == pytest.approx(0.8, abs=1e-6)
    assert Calibration.fit({"x": np.zeros(3)}) is None
    assert scaled.estimate(np.zeros(scaled.bins, int)) is None
