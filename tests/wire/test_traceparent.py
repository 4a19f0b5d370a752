"""W3C trace context: what is one, and for how long it is in force."""

from contextvars import copy_context
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from canvasbus import ContractError, traceparent
from canvasbus.wire.traceparent import current, sound

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


def hexes(length: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=length, max_size=length)


nearly = st.builds(
    "-".join,
    st.tuples(
        st.sampled_from(["00", "01", "fe", "ff", "0", "0g"]) | hexes(2),
        st.sampled_from([TRACE, TRACE.upper(), "0" * 32, TRACE[1:]]) | hexes(32),
        st.sampled_from([SPAN, "0" * 16, SPAN + "0"]) | hexes(16),
        st.sampled_from(["00", "01", "03", "1", "01-", "01-more-of-it", "01x"]) | hexes(2),
    ),
)


@settings(deadline=None, max_examples=500)
@given(nearly | st.text(max_size=80))
def test_it_is_what_opentelemetry_takes_for_one(text: str) -> None:
    """The same texts are refused, and the others name the same span and say alike whether it is sampled."""
    text = text.strip()
    theirs = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": text})).get_span_context()
    ours = sound(text)
    assert (ours is not None) == theirs.is_valid
    if ours is not None:
        version, trace, span, flags = ours.split("-")
        assert (version, int(trace, 16), int(span, 16)) == ("00", theirs.trace_id, theirs.span_id)
        assert int(flags, 16) & 1 == theirs.trace_flags & 1


@pytest.mark.parametrize(
    ("text", "carried"),
    [
        (GOOD, GOOD),
        (f"00-{TRACE}-{SPAN}-03", f"00-{TRACE}-{SPAN}-03"),
        (f"7b-{TRACE}-{SPAN}-0b-and more", f"00-{TRACE}-{SPAN}-01"),
        (f"{GOOD}\n", None),
        (f"{GOOD}-more", None),
        ("", None),
        (None, None),
    ],
)
def test_what_is_carried_of_it(text: str | None, carried: str | None) -> None:
    """Version 00 as it is; of a later version what 00 knows; of what is none nothing."""
    with traceparent(text) as yielded:
        assert yielded == current() == carried
    assert current() is None


def test_blocks_within_blocks() -> None:
    """The innermost counts, also if it says None, and the outer one is in force again after it, whatever ended it."""
    with traceparent(GOOD):
        with pytest.raises(KeyError):
            with traceparent(None):
                assert current() is None
                raise KeyError
        assert current() == GOOD
        assert copy_context().run(current) == GOOD


@pytest.mark.parametrize("wrong", [GOOD.encode(), 7])
def test_what_is_no_text_is_a_fault(wrong: Any) -> None:
    """The bytes of a raw header are not taken for a header that a stranger wrote badly."""
    with pytest.raises(ContractError, match="a text is wanted"):
        with traceparent(wrong):
            pass
