"""What a field may be: errors of msgspec that say so."""

from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from canvasbus.choices import with_choices


class Tone(Enum):
    WARM = "warm"
    COLD = "cold"


class Spot(msgspec.Struct):
    tone: Tone = Tone.WARM
    size: Literal[1, 2] = 1


class Picture(msgspec.Struct, rename="camel"):
    style_of: Literal["oil", "ink"] | None = None
    spots: dict[str, list[Spot]] = {}
    pair: tuple[int, Literal["a", "b"]] = (1, "a")
    framed: Annotated[Literal["yes", "no"], msgspec.Meta(description="by hand")] = "no"
    count: int = 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"styleOf": "chalk"}, "Invalid enum value 'chalk' - at `$.styleOf`: use ink, oil"),
        ({"spots": {"a": [{}, {"tone": "x"}]}}, "Invalid enum value 'x' - at `$.spots[...][1].tone`: use warm, cold"),
        ({"spots": {"a": [{"size": 3}]}}, "Invalid enum value 3 - at `$.spots[...][0].size`: use 1, 2"),
        ({"framed": "maybe"}, "Invalid enum value 'maybe' - at `$.framed`: use no, yes"),
        ({"framed": "yess"}, "Invalid enum value 'yess' - at `$.framed`: use no, yes; did you mean yes?"),
        ({"count": "x"}, "Expected `int`, got `str` - at `$.count`"),
    ],
)
def test_an_error_lists_the_choices(given: Any, says: str) -> None:
    """In a field, in what lies in it, and under another name; other errors are as they are."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(given, Picture)
    assert with_choices(caught.value, Picture) == says


def test_of_a_place_in_a_tuple_there_are_all_choices() -> None:
    """Whose place it is msgspec does not say in all versions; what it may be is there."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"pair": [1, "c"]}, Picture)
    assert with_choices(caught.value, Picture).endswith(": use a, b")
