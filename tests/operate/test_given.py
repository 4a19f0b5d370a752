"""What a person gives to be published: JSON, bare or as an envelope, refused in their words."""

from uuid import uuid4

import pytest

from canvasbus import Event, event
from canvasbus.errors import EncodeError
from canvasbus.operate.given import from_json


@event("given.plain")
class Plain(Event):
    text: str = ""


@event("given.tree")
class Tree(Event):
    root: str = ""


@event("given.everything", version=3, since=3)
class Everything(Event):
    name: str


@event("given.numbers")
class Numbers(Event):
    values: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("value", "type_name", "says"),
    [
        ("", None, "not JSON"),
        ("[1]", None, "JSON object"),
        ("{}", None, "names no event type"),
        ('{"text": "a"}', None, "names no event type"),
        ('{"text": "a"}', "given.plian", r"did you mean 'given\.plain'"),
        ("{}", "zzz", "is the module that declares it imported"),
        ('{"txt": "a"}', "given.plain", "no field 'txt'; its fields are .*text"),
        ('{"text": 1}', "given.plain", r"Expected `str`.*\$\.text"),
        ("{}", "given.everything", r"given\.everything v3: .*`name`"),
        ('{"type": "given.plain", "data": {}, "specversion": "1.0"}', "given.tree", "the object says"),
        ('{"type": "given.plain", "data": {}, "version": 7}', None, "given.plain v7 is not known here, only v1 is"),
        ('{"type": "given.everything", "data": {}, "version": 2}', None, "v2 is not known here, only v3 is"),
        ('{"type": "given.plain", "data": 3}', None, "Expected `object`"),
        ('{"type": 3, "data": {}}', None, "not a CloudEvents object"),
        ('{"text": "\\ud800"}', "given.plain", "given.plain v1"),
        ('{"values": [' + "9" * 5000 + "]}", "given.numbers", "not JSON"),
    ],
)
def test_what_a_person_gives_is_refused_in_their_words(value: str, type_name: str | None, says: str) -> None:
    """from_json: the giver's mistakes are EncodeErrors that name what is wrong."""
    with pytest.raises(EncodeError, match=says):
        from_json(value, type_name=type_name)


def test_bare_data_and_whole_objects_are_both_taken() -> None:
    """With the type named the object is the data; with `type` and `data` in it, it is an envelope and may carry an id."""
    assert from_json('{"text": "a"}', type_name="given.plain")[0].text == "a"  # type: ignore[attr-defined]
    ident = uuid4()
    made, around = from_json(f'{{"type": "given.plain", "id": "{ident}", "data": {{"text": "b"}}}}')
    assert (made.text, around.event_id) == ("b", ident)  # type: ignore[attr-defined]
