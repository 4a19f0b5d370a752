"""Windows against references."""

import numpy as np
import pytest

from canvasbus_workers.drift.references import Reference, best_match, joined

SEED = 7


def arrays(random: np.random.Generator, n: int, shift: float = 0.0) -> dict[str, np.ndarray]:
    """What a model server measures on n items."""
    scores = random.standard_normal((n, 4))
    scores[:, 0] += shift
    powers = np.exp(scores)
    return {
        "probabilities": (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32),
        "embedding": (random.standard_normal((n, 6)) + shift).astype(np.float32),
        "sharpness": (random.standard_normal(n) + shift).astype(np.float32),
    }


def test_clean_windows_match_and_shifted_ones_do_not() -> None:
    """Of 100 clean windows at most five are below .01; every window shifted by one sd is."""
    random = np.random.default_rng(SEED)
    reference = Reference("r", "baseline", arrays(random, 400))
    clean = [reference.compare(arrays(random, 100)).p_value <= 0.01 for _ in range(100)]
    shifted = [reference.compare(arrays(random, 100, 1.0)).p_value <= 0.01 for _ in range(10)]
    assert sum(clean) <= 5
    assert all(shifted)


def test_the_test_that_speaks_is_named() -> None:
    """A shift of one array is told by its own test, with the statistic of every test beside it."""
    random = np.random.default_rng(SEED)
    reference = Reference("r", "baseline", arrays(random, 400))
    for name, test in (("sharpness", "ks:sharpness"), ("embedding", "mmd:embedding")):
        window = arrays(random, 100)
        window[name] = window[name] + 2.0
        match = reference.compare(window)
        assert match.test == test
        assert set(match.scores) == {"ks:sharpness", "ks:probabilities", "mmd:embedding"}


@pytest.mark.parametrize("missing", [("sharpness",), ("sharpness", "embedding"), ("probabilities",)])
def test_what_one_side_lacks_is_left_out(missing: tuple[str, ...]) -> None:
    """Tests without their array are not made; with nothing in common nothing is claimed."""
    random = np.random.default_rng(SEED)
    whole, window = arrays(random, 200), arrays(random, 50, 2.0)
    for name in missing:
        del window[name]
    match = Reference("r", "baseline", whole).compare(window)
    assert match.p_value < 0.01
    assert not {name.partition(":")[2] for name in match.scores} & set(missing)
    assert Reference("r", "baseline", {}).compare(window).p_value == 1.0


def test_the_best_of_several_references_judges() -> None:
    """Data that have a reference of their own match it; without references there is no match."""
    random = np.random.default_rng(SEED)
    references = [Reference("a", "day", arrays(random, 300)), Reference("b", "night", arrays(random, 300, 1.5))]
    for shift, regime in ((0.0, "day"), (1.5, "night")):
        match = best_match(references, arrays(random, 100, shift))
        assert match is not None
        assert match.regime == regime
    assert best_match([], arrays(random, 10)) is None


def test_accuracy_is_cautious() -> None:
    """A reference's accuracy counts one success and one failure more than were seen."""
    assert Reference("r", "x", {}, items=10, correct=10).accuracy == pytest.approx(11 / 12)
    assert Reference("r", "x", {}, items=0, correct=0).accuracy == 0.5


def test_joining_keeps_what_all_have() -> None:
    """Windows are put one after the other; an array that one of them lacks is dropped."""
    random = np.random.default_rng(SEED)
    one, two = arrays(random, 3), arrays(random, 4)
    del two["sharpness"]
    both = joined([one, two])
    assert set(both) == {"probabilities", "embedding"}
    assert both["embedding"].shape == (7, 6)
    assert joined([]) == {}
