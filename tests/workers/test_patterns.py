"""The patterns of settings and silences."""

import time

import pytest

from canvasbus_workers.alerts.matching import SEVERITIES, SIGNALS
from canvasbus_workers.patterns import fits, fits_nothing


@pytest.mark.parametrize(
    ("pattern", "text", "fitting"),
    [
        ("*", "", True),
        ("a|b", "b", True),
        ("a|b", "ab", False),
        ("a*|b", "abc", True),
        ("", "a", False),
        ("", "", True),
        ("A", "a", False),
        ("a|", "", True),
        ("loss[0]", "loss[0]", True),
        ("v?", "v1", False),
    ],
)
def test_a_pattern(pattern: str, text: str, fitting: bool) -> None:
    """A star and a bar have a meaning, nothing else has; capitals count, and the whole text must match."""
    assert fits(pattern, text) is fitting


def test_a_pattern_of_many_stars_costs_no_time() -> None:
    """Anybody may publish a silence."""
    began = time.process_time()
    assert not fits("*a" * 30 + "b", "a" * 1000)
    assert time.process_time() - began < 1


def test_what_can_match_nothing_is_found() -> None:
    """A word that nobody knows is a mistake, in settings and in a command; some names are anybody's."""
    assert fits_nothing("drift|metric:acc*|*loss", SIGNALS) is None
    assert fits_nothing("drift|accuracy", SIGNALS) == "accuracy"
    assert fits_nothing("warning|fatal", SEVERITIES) == "fatal"
