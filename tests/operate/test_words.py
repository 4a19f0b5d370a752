"""How numbers and names are told to people."""

import pytest

from canvasbus.operate.words import count, size, some, span


@pytest.mark.parametrize(
    ("number", "thing", "said"),
    [
        (0, "dead letter", "0 dead letters"),
        (1, "dead letter", "1 dead letter"),
        (2, "dead letter", "2 dead letters"),
        (1, "foreign entry", "1 foreign entry"),
        (1234, "foreign entry", "1,234 foreign entries"),
        (2, "key", "2 keys"),
    ],
)
def test_one_is_one(number: int, thing: str, said: str) -> None:
    """Nobody is told of 1 dead letters, or of 2 entrys."""
    assert count(number, thing) == said


def test_units_are_the_largest_that_fit() -> None:
    """Bytes from one of a unit on, lengths of time from two."""
    assert [size(1023), size(1024), size(5 << 40)] == ["1023 B", "1.0 KiB", "5.0 TiB"]
    assert [span(119), span(120), span(7199), span(7200), span(2 * 86400)] == [
        *("119 s", "2 minutes", "120 minutes", "2 hours", "2 days"),
    ]


def test_long_lists_are_cut() -> None:
    """The first five, and how many more there are."""
    assert some("abcde") == "a, b, c, d, e"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"
