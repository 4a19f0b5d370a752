"""Patterns of type names, compared with trying all texts."""

import pytest

from canvasbus.contract.globs import glob_matches, globs_overlap


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("drift.*", "drift.detected", True),
        ("drift.*", "drift.", True),
        ("drift.*", "driftxdetected", False),
        ("*", "anything.at_all", True),
        ("*.made", "painting.made", True),
        ("*.made", "painting.made.twice", False),
        ("a*c", "abc", True),
        ("a*c", "ac", True),
        ("a*b*c", "a.c.b", False),
        ("painting.made", "painting.made", True),
    ],
)
def test_a_star_stands_for_any_characters(pattern: str, text: str, expected: bool) -> None:
    """The star is the only sign with a meaning; a dot is a dot; the whole text must match."""
    assert glob_matches(pattern, text) is expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("drift.*", "drift.*", True),
        ("drift.*", "*.detected", True),
        ("drift.*", "retrain.*", False),
        ("a*", "*b", True),
        ("*a", "*b", False),
        ("a*c", "abc", True),
        ("a*c", "abd", False),
        ("*", "x", True),
        ("a*b*c", "ab*bc", True),
    ],
)
def test_overlapping_globs_are_found(a: str, b: str, expected: bool) -> None:
    """Two patterns overlap when some text matches both; the order does not matter."""
    assert globs_overlap(a, b) is expected and globs_overlap(b, a) is expected


def test_long_patterns_have_an_answer() -> None:
    """A pattern that somebody wrote with thousands of stars is answered like any other."""
    assert globs_overlap("*a" * 600, "a" * 600)
    assert not globs_overlap("*a" * 600, "a" * 599)


def test_every_text_in_two_globs_makes_them_overlap() -> None:
    """Compared with trying all short texts over a small alphabet."""
    from itertools import product

    patterns = ["".join(p) for n in (1, 2, 3) for p in product("ab*", repeat=n)]
    texts = ["".join(t) for n in range(6) for t in product("ab", repeat=n)]
    for a in patterns:
        for b in patterns:
            naive = any(glob_matches(a, t) and glob_matches(b, t) for t in texts)
            assert globs_overlap(a, b) == naive, (a, b)
