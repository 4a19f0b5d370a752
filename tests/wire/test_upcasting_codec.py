"""Entries of older versions, in msgpack and in JSON, are decoded as the newest version."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from canvasbus import AwareDatetime, Event
from canvasbus.contract.registry import Registry
from canvasbus.errors import DecodeError, EncodeError
from canvasbus.operate.entry import Entry, view
from canvasbus.operate.given import from_json
from canvasbus.wire.codec import Codec

STORY, PICTURE = UUID(int=7), UUID(int=8)
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 600000, tzinfo=UTC)


class Hung1(Event):
    room: str
    picture: UUID
    hung_on: AwareDatetime
    thumbnail: bytes = b""
    tags: Mapping[str, float] = {}


class Hung3(Event):
    wall: str
    picture: UUID
    hung_on: AwareDatetime
    thumbnail: bytes = b""
    tags: Mapping[str, float] = {}
    lights: int = 0


def room_to_wall(old: dict[str, Any]) -> dict[str, Any]:
    return {**old, "wall": f"{old['room']}/north"}  # "room" stays, and is ignored


def add_lights(old: dict[str, Any]) -> dict[str, Any]:
    if old["wall"].startswith("dark"):
        raise ValueError("no lights in the dark room")
    return {**old, "lights": "many" if old["wall"].startswith("bright") else 2}


@pytest.fixture
def before() -> Registry:
    """What a process of last year knows."""
    known = Registry()
    Hung1.__event_type__ = known.register(Hung1, "picture.hung", 1, "room")  # type: ignore[attr-defined]
    yield known
    del Hung1.__event_type__  # type: ignore[attr-defined]


@pytest.fixture
def now() -> Registry:
    """What a process of today knows: no Struct of the older versions."""
    known = Registry()
    known.register(Hung3, "picture.hung", 3, "wall", upcast={1: room_to_wall, 2: add_lights})
    return known


def old_event(room: str = "hall") -> Hung1:
    return Hung1(
        room=room,
        picture=PICTURE,
        hung_on=MOMENT,
        thumbnail=b"\x00\xff",
        tags={"red": 0.5},
        occurred_on=MOMENT,
        correlation_id=STORY,
    )


def as_json(event: Hung1, version: int = 1) -> bytes:
    return msgspec.json.encode({"type": "picture.hung", "version": version, "data": event})


def decode(known: Registry, value: bytes) -> Any:
    return Codec(registry=known).decode(value, stream_type="picture.hung", entry_id="1-0")


@pytest.mark.parametrize("form", ["msgpack", "json"])
def test_an_old_entry_is_read_as_the_newest_version(before: Registry, now: Registry, form: str) -> None:
    """UUIDs, times and bytes survive in both forms; the envelope says what was on the wire."""
    old = old_event()
    value = Codec("lab", registry=before).encode(old).data if form == "msgpack" else as_json(old)
    envelope, event = decode(now, value)
    assert event == Hung3(
        wall="hall/north",
        picture=PICTURE,
        hung_on=MOMENT,
        thumbnail=b"\x00\xff",
        tags={"red": 0.5},
        lights=2,
        occurred_on=MOMENT,
        correlation_id=STORY,
    )
    assert envelope.version == 1


def test_a_process_that_knows_both_structs_reads_the_newest(now: Registry, before: Registry) -> None:
    """There is one Struct for handlers, whatever else is declared."""
    value = Codec("lab", registry=before).encode(old_event()).data
    now.register(type("Hung1Again", (Hung1,), {}), "picture.hung", 1, "room")
    assert type(decode(now, value)[1]) is Hung3


@pytest.mark.parametrize(
    ("room", "says"),
    [
        ("dark", r"v2 → v3: .*add_lights raised ValueError: no lights in the dark room"),
        ("bright", r"v1, upcast by .*room_to_wall, .*add_lights, is no v3: .*lights"),
    ],
)
@pytest.mark.parametrize("form", ["msgpack", "json"])
def test_a_failed_upcast_has_its_own_reason(before: Registry, now: Registry, form: str, room: str, says: str) -> None:
    """A step that raises and one whose result does not decode both name the functions to look at."""
    old = old_event(room)
    value = Codec("lab", registry=before).encode(old).data if form == "msgpack" else as_json(old)
    with pytest.raises(DecodeError, match=says) as caught:
        decode(now, value)
    assert caught.value.reason == "upcast_failed"


@pytest.mark.parametrize(("version", "reason"), [(4, "newer_version"), (1, "unknown_type"), (0, "unknown_type")])
def test_versions_outside_the_chain_are_told(version: int, reason: str) -> None:
    """Newer ones are parked; those before `since` are nobody's."""
    known = Registry()
    known.register(Hung3, "picture.hung", 3, None, since=2, upcast={2: add_lights})
    with pytest.raises(DecodeError) as caught:
        decode(known, b'{"type": "picture.hung", "data": {}, "dataschema": "urn:x/v%d"}' % version)
    assert (caught.value.reason, version) == ("unknown_type" if version == 0 else reason, version)


def test_old_entries_that_are_no_objects_are_invalid(now: Registry) -> None:
    """No step ever sees what is not a dict with text for keys."""
    for data in (b"[1]", b"3", b"null"):
        with pytest.raises(DecodeError) as caught:
            decode(now, b'{"type": "picture.hung", "version": 1, "data": ' + data + b"}")
        assert caught.value.reason == "invalid"


def test_old_entries_are_shown_as_they_were_published(before: Registry, now: Registry) -> None:
    """`tail` and `dlq show` tell what lies there, with the version that it is; whether it can be read is said too."""

    def shown(room: str, known: Registry) -> Any:
        value = Codec("lab", registry=before).encode(old_event(room)).data
        return view(Entry("picture.hung", 0, "1-0", (b"e", value)), Codec(registry=known))

    fine = shown("hall", now)
    assert fine.reason is None and "reason" not in fine.cloudevent
    assert fine.cloudevent["dataschema"] == "urn:canvasbus:picture.hung/v1"
    assert fine.cloudevent["data"]["room"] == "hall" and "wall" not in fine.cloudevent["data"]
    assert fine.cloudevent["correlationid"] == str(STORY)
    assert shown("dark", now).cloudevent["reason"] == "upcast_failed"
    now.register(type("Hung1Again", (Hung1,), {}), "picture.hung", 1, "room")
    assert shown("hall", now).cloudevent["data"]["picture"] == str(PICTURE)


def test_old_objects_may_be_published_again(now: Registry) -> None:
    """`canvasbus publish` takes what an older `tail` wrote, as the newest version; what cannot be upcast is refused."""
    event, _ = from_json(as_json(old_event()), known=now)
    assert isinstance(event, Hung3) and event.wall == "hall/north" and event.occurred_on == MOMENT
    with pytest.raises(EncodeError, match="add_lights raised ValueError"):
        from_json(as_json(old_event("dark")), known=now)
    with pytest.raises(EncodeError, match=r"picture\.hung v4 is not known here, v1 to v3 are"):
        from_json(as_json(old_event(), 4), known=now)
