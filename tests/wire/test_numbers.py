"""Scalars of numpy, and so of torch and jax: published as the numbers that they are."""

from typing import Annotated

import msgspec
import numpy
import pytest

from canvasbus import EncodeError, Event, event
from canvasbus.wire.codec import Codec


def test_a_numpy_scalar_is_the_number_that_it_is() -> None:
    """What `scores.mean()` gives is published as a float or an int, within the field's bounds; arrays are refused."""

    @event("codec.numpy_scalar")
    class Scored(Event):
        score: Annotated[float, msgspec.Meta(ge=0)]
        count: int = 0
        rest: tuple[float, ...] = ()

    codec = Codec("s")
    scored = Scored(score=numpy.float32(0.5), count=numpy.int64(7), rest=tuple(numpy.array([1.0, 2.0])))
    for out in (codec.encode(scored), *codec.encode_many([scored, scored])):
        _, back = codec.decode(out.data, stream_type="codec.numpy_scalar", entry_id="1-1")
        assert (back.score, back.count, back.rest) == (0.5, 7, (1.0, 2.0))
        assert {type(back.score), type(back.count), *map(type, back.rest)} == {float, int}
    for wrong in (numpy.float64("nan"), numpy.float64(-1), numpy.float64("inf"), numpy.zeros(1), numpy.zeros((2, 2))):
        with pytest.raises(EncodeError):
            codec.encode(Scored(score=wrong))
        with pytest.raises(EncodeError):
            codec.encode_many([Scored(score=wrong), Scored(score=wrong)])
    with pytest.raises(EncodeError, match=r"numpy\.ndarray cannot be encoded"):
        codec.encode(Scored(score=numpy.zeros(3)))
    with pytest.raises(EncodeError, match=r"numpy\.longdouble cannot be encoded"):
        codec.encode(Scored(score=numpy.longdouble(1)))


def test_nan_is_found_in_a_numpy_scalar() -> None:
    """In the only float of an event, and wherever else it is."""

    @event("codec.numpy_nan")
    class Mean(Event):
        mean: float = 0.0

    @event("codec.numpy_nan_deep")
    class Means(Event):
        mean: float | None = None
        rest: tuple[float, ...] = ()

    codec = Codec("s")
    for nan in (numpy.float32("nan"), numpy.float16("inf"), numpy.array(numpy.nan)):
        for made, path in (Mean(mean=nan), "mean"), (Means(mean=nan), "mean"), (Means(rest=(1.0, nan)), r"rest\[1\]"):
            with pytest.raises(EncodeError, match=rf"NaN or infinity at `\$\.{path}`"):
                codec.encode(made)
            with pytest.raises(EncodeError, match=rf"NaN or infinity at `\$\.{path}`"):
                codec.encode_many([made, made])
