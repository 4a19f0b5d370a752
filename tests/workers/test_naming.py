"""Names made of users' words: readable where they can be, and never shared."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from canvasbus.checks import is_label
from canvasbus_workers.naming import LONGEST, name_of

# Few characters, so that parts often join to the same; names of names; and whatever text there is.
words = st.text("ab/~,:_ \n", max_size=4) | st.builds(name_of, st.text("ab/~", max_size=3)) | st.text(max_size=300)
tuples = st.lists(words, min_size=1, max_size=4).map(tuple)


@given(tuples, tuples, st.sampled_from("/,:"))
@settings(max_examples=2000, deadline=None)
@example(("a/b", "c"), ("a", "b/c"), "/")
@example(("a", "", "b"), ("a", "b"), "/")
@example(("a\x00",), ("a\x01",), "/")
@example(("x" * 600 + "1",), ("x" * 600 + "2",), "/")
@example(("a/b",), (name_of("a/b"),), "/")
@example((name_of("a/b"), "c"), ("a_b", "c"), "/")
@example(("\ud800",), ("\\ud800",), "/")
def test_two_tuples_never_have_the_same_name(one: tuple[str, ...], other: tuple[str, ...], by: str) -> None:
    """Whatever is in them; and each name is one that the bus takes for a key and a timer."""
    names = {name_of(*one, by=by), name_of(*other, by=by)}
    assert len(names) == len({one, other})
    assert all(len(name) <= LONGEST and (is_label(name) or not name) for name in names)
    assert name_of(*one, by=by) == name_of(*one, by=by)


@pytest.mark.parametrize(
    ("parts", "by", "name"),
    [
        (("StyleGAN-Canvas-v3", "drift", "1"), "/", "StyleGAN-Canvas-v3/drift/1"),
        (("llama3:8b", "Zürich, 夜"), "/", "llama3:8b/Zürich, 夜"),
        (("window", "m", "", ""), "/", "window/m//"),
        (("model_name=m", "segment=eu/1"), ",", "model_name=m,segment=eu/1"),
    ],
)
def test_a_name_is_as_it_is_written_where_it_can_be(parts: tuple[str, ...], by: str, name: str) -> None:
    """Whoever reads a log finds the model that it is about."""
    assert name_of(*parts, by=by) == name


def test_what_cannot_be_split_again_gets_a_digest() -> None:
    """The name still begins with what it is about, and always ends in the same digest: it names what is stored."""
    assert name_of("org/style", "drift", "1") == "org_style/drift/1~d45eb4370c3320ed5ef5a632"
    assert name_of("x" * 600, "v1").startswith("x" * 150)
