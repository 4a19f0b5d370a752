"""Undecoded fields mean the same whoever wrote the event, in msgpack or in JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec import Raw, Struct
from studio import Eyes, quiet, running

from canvasbus import Event, event
from canvasbus.cloudevents import from_http, from_structured, to_binary, to_structured
from canvasbus.errors import DecodeError, EncodeError
from canvasbus.operate.entry import Entry, view
from canvasbus.operate.given import from_json
from canvasbus.wire.codec import Codec
from canvasbus.worker import Worker

packed = msgspec.msgpack.encode


class Tile(Struct, frozen=True):
    it: Raw = Raw(packed("default"))


@dataclass(frozen=True)
class Slab:
    it: Raw


class Chip(NamedTuple):
    it: Raw


@event("raw.kept")
class Kept(Event):
    it: Raw
    many: tuple[Raw, ...] = ()
    named: Mapping[str, Raw] = {}
    tile: Tile = Tile()
    slab: Slab | None = None
    chip: Chip | None = None


@event("raw.copied")
class Copied(Event):
    it: Raw


DATA: dict[str, Any] = {
    "it": 5,
    "many": [None, "x"],
    "named": {"a": {"b": [1.5]}},
    "tile": {"it": True},
    "slab": {"it": [5]},
    "chip": [{"c": 5}],
}


def value_of(raw: Raw) -> Any:
    return msgspec.msgpack.decode(raw)


def test_json_is_read_as_what_it_stands_for() -> None:
    """However deep it lies; a default stays what it is. 5 was read as 53 when a handler had handed it on."""
    text = json.dumps({"specversion": "1.0", "id": "1", "source": "s", "type": "raw.kept", "data": DATA})
    for made in (from_structured(text)[1], from_json(text)[0]):
        assert isinstance(made, Kept) and made.slab and made.chip
        assert [value_of(raw) for raw in (made.it, *made.many, made.named["a"])] == [5, None, "x", {"b": [1.5]}]
        assert [value_of(raw) for raw in (made.tile.it, made.slab.it, made.chip.it)] == [True, [5], {"c": 5}]
    least = from_json('{"it": 5}', type_name="raw.kept")[0]
    assert isinstance(least, Kept) and value_of(least.tile.it) == "default"


def test_it_is_shown_as_what_it_stands_for() -> None:
    """By `tail`, and in both modes of CloudEvents; what comes back is the same event."""
    first = Codec("lab").encode(from_json(json.dumps(DATA), type_name="raw.kept")[0])
    entry = Entry("raw.kept", 0, "1-0", (b"e", first.data))
    assert json.loads(json.dumps(view(entry, Codec()).cloudevent["data"])) == DATA
    found = Codec().decode(first.data, stream_type="raw.kept", entry_id="1-0")
    assert json.loads(to_binary(*found)[1]) == DATA
    for _, again in (from_structured(to_structured(*found)), from_http(*to_binary(*found))):
        assert packed(again) == packed(found[1])


@pytest.mark.parametrize("value", [msgspec.msgpack.Ext(5, b"x"), {(1, 2): 2}], ids=["ext", "keys"])
def test_what_json_has_no_word_for(value: Any) -> None:
    """`tail` says so and goes on; whoever asks for an object gets an EncodeError."""
    out = Codec("lab").encode(Copied(it=Raw(packed(value))))
    shown = view(Entry("raw.copied", 0, "1-0", (b"e", out.data)), Codec())
    assert shown.reason == "invalid" and "data_base64" in shown.cloudevent
    with pytest.raises(EncodeError, match="a Copied has no JSON"):
        to_structured(*Codec().decode(out.data, stream_type="raw.copied", entry_id="1-0"))


@pytest.mark.parametrize("data", ['{"it": %s}' % ("[" * 5000 + "]" * 5000), '{"it": 1e999}', '{"it": '], ids=len)
def test_what_cannot_be_read_is_a_bad_entry(data: str) -> None:
    """As in other fields."""
    with pytest.raises(DecodeError):
        Codec().decode(b'{"type": "raw.copied", "data": %s}' % data.encode(), stream_type="raw.copied", entry_id="1-0")


async def test_a_handler_hands_on_what_it_has_not_read(any_url: str, namespace: str, eyes: Eyes) -> None:
    """From JSON and from msgpack alike."""
    worker = Worker("copyists")

    @worker.on(Kept)
    async def copy(event: Kept) -> Copied:
        return Copied(it=event.it)

    async with running(any_url, worker, namespace=namespace):
        eyes.put(json.dumps({"type": "raw.kept", "data": {"it": 5}}).encode(), "raw.kept")
        eyes.put(Codec("lab").encode(Kept(it=Raw(packed(5)))).data, "raw.kept")
        await quiet(eyes, "copyists", event_type="raw.kept")
    assert [value_of(found.it) for found in eyes.events("raw.copied")] == [5, 5]
    assert eyes.dead("copyists") == []
