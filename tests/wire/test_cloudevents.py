"""CloudEvents 1.0, structured and binary: held against the official Python SDK both ways, and against hostile input."""

import base64
import json
import random
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import msgspec
import pytest
from cloudevents.core.bindings.http import (
    HTTPMessage,
    from_binary_event,
    from_structured_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from seeds import seeds

from canvasbus import AwareDatetime, Event, event
from canvasbus.cloudevents import (
    STRUCTURED_TYPE,
    Envelope,
    from_binary,
    from_http,
    from_structured,
    to_binary,
    to_structured,
)
from canvasbus.errors import DecodeError
from canvasbus.wire.cloudevents import moved
from canvasbus.wire.codec import MAX_EVENT_BYTES, Codec

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ID, CAUSE, STORY = (UUID(int=number) for number in (1, 2, 3))
EMPTY = msgspec.Raw()


@event("cloud.seen", key="name")
class Seen(Event):
    name: str = ""
    height: float = 0.0
    drops: int = 0
    raw: bytes = b""
    on: AwareDatetime = MOMENT
    parts: tuple[str, ...] = ()
    shares: Mapping[str, float] = {}


def in_feet(old: dict[str, Any]) -> dict[str, Any]:
    return {**old, "feet": old["metres"] * 3}


@event("cloud.measured", version=2, upcast={1: in_feet})
class Measured(Event):
    feet: int = 0


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
moments = st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1))
events = st.builds(
    Seen,
    occurred_on=moments,
    correlation_id=st.uuids(),
    name=text,
    height=st.floats(allow_nan=False, allow_infinity=False),
    drops=st.integers(-(2**63), 2**64 - 1),
    raw=st.binary(max_size=30),
    on=moments,
    parts=st.lists(text, max_size=3).map(tuple),
    shares=st.dictionaries(text, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
uris = st.text(st.sampled_from("abcXYZ019-._~:/?#[]@!$&'()*+,;="), min_size=1, max_size=30)
quick = settings(derandomize=True, deadline=None, max_examples=150, database=None)


@st.composite
def enveloped(draw: Any) -> tuple[Envelope, Seen]:
    """An event with everything that its envelope may carry."""
    made = draw(events)
    return (
        Envelope(
            draw(st.uuids()),
            "cloud.seen",
            1,
            draw(uris),
            made.name,
            draw(st.none() | st.uuids()),
            draw(st.none() | st.text("0123456789abcdef-", min_size=1, max_size=55)),
            EMPTY,
            draw(st.none() | moments.map(datetime.timestamp)),
        ),
        made,
    )


def plain(found: tuple[Envelope, Event]) -> tuple[Envelope, Event]:
    """Without the payload's bytes, which differ; expiry to the microsecond, which is what RFC 3339 texts carry here."""
    envelope, made = found
    expires = None if envelope.expires_on is None else round(envelope.expires_on, 5)
    return msgspec.structs.replace(envelope, data=EMPTY, expires_on=expires), made


def structured_by_sdk(found: tuple[Envelope, Event]) -> CloudEvent:
    body = json.dumps(to_structured(*found)).encode()
    return from_structured_event(HTTPMessage({"content-type": STRUCTURED_TYPE}, body))


def binary_by_sdk(found: tuple[Envelope, Event]) -> CloudEvent:
    headers, body = to_binary(*found)
    return from_binary_event(HTTPMessage(headers, body))


@quick
@given(enveloped())
def test_the_sdk_reads_what_we_write_in_both_modes(found: tuple[Envelope, Seen]) -> None:
    """It accepts it as valid, and finds the same attributes and data in either mode, by the names of the standard."""
    envelope, made = found
    for seen in (structured_by_sdk(found), binary_by_sdk(found)):
        assert seen.get_specversion() == "1.0"
        assert (seen.get_id(), seen.get_type()) == (str(envelope.id), "cloud.seen")
        assert seen.get_source() == envelope.source
        assert seen.get_time() == made.occurred_on
        assert seen.get_dataschema() == "urn:canvasbus:cloud.seen/v1"
        assert (seen.get_subject() or "") == (seen.get_extension("partitionkey") or "") == made.name
        assert seen.get_extension("correlationid") == str(made.correlation_id)
        assert seen.get_extension("causationid") == (str(envelope.causation_id) if envelope.causation_id else None)
        assert seen.get_extension("traceparent") == envelope.traceparent
        expires = seen.get_extension("expirytime")
        assert (expires and datetime.fromisoformat(expires)) == (
            envelope.expires_on and datetime.fromtimestamp(envelope.expires_on, UTC)
        )
        data = seen.get_data()
        assert (data["name"], data["drops"]) == (made.name, made.drops)
        assert base64.b64decode(data["raw"]) == made.raw and not {"occurred_on", "correlation_id"} & data.keys()
    assert structured_by_sdk(found).get_data() == binary_by_sdk(found).get_data()


@quick
@given(enveloped())
def test_we_read_what_the_sdk_writes_in_both_modes(found: tuple[Envelope, Seen]) -> None:
    """Through the SDK and back, in each of the four ways, envelope and event are what they were."""
    for seen in (structured_by_sdk(found), binary_by_sdk(found)):
        for message in (to_structured_event(seen), to_binary_event(seen)):
            assert plain(from_http(message.headers, message.body)) == plain(found)


@quick
@given(enveloped())
def test_our_own_way_and_back(found: tuple[Envelope, Seen]) -> None:
    """The same without the SDK; a parsed object is as good as its text."""
    shown = to_structured(*found)
    for again in (
        from_structured(shown),
        from_structured(json.dumps(shown)),
        from_structured(msgspec.json.encode(shown)),
        from_binary(*to_binary(*found)),
    ):
        assert plain(again) == plain(found)


def test_an_event_that_the_sdk_made_itself() -> None:
    """With no more than the standard asks for: its id is a UUID of the SDK's, the key comes from the event's own field."""
    made = CloudEvent({"type": "cloud.seen", "source": "/clouds"}, {"name": "cirrus", "height": 8000})
    for message in (to_structured_event(made), to_binary_event(made)):
        envelope, seen = from_http(message.headers, message.body)
        assert isinstance(seen, Seen) and (seen.name, seen.height) == ("cirrus", 8000)
        assert (str(envelope.id), envelope.source, envelope.version) == (made.get_id(), "/clouds", 1)
        assert (envelope.key, envelope.causation_id, envelope.expires_on) == ("cirrus", None, None)
        assert seen.occurred_on == made.get_time()


def whole(**more: Any) -> dict[str, Any]:
    """A valid object, changed; None takes away."""
    made = {"specversion": "1.0", "id": str(ID), "source": "s", "type": "cloud.seen", "data": {"name": "n"}} | more
    return {name: value for name, value in made.items() if value is not None}


def test_ids_of_other_houses() -> None:
    """CloudEvents ids are any text, and belong to their source: the same text of the same source is the same UUID in every
    process, of another source another. A correlation that is no UUID is one whoever says it."""
    first, seen = from_structured(whole(id="A234-1234-1234", correlationid="order 4711", causationid="A234-1"))
    again, other = from_structured(whole(id="A234-1234-1234")), from_structured(whole(id="A234-1234-1234", source="t"))
    assert first.id == again[0].id == uuid5(UUID("7f0a1c52-93f4-5d0b-8a6e-41b7d2c90e35"), "s\nA234-1234-1234")
    assert first.id != other[0].id
    assert first.causation_id == from_structured(whole(id="A234-1"))[0].id
    other_source = from_structured(whole(source="t", correlationid="order 4711"))[1]
    assert seen.correlation_id == other_source.correlation_id


def test_a_source_that_is_no_uri_is_encoded() -> None:
    """The standard asks for a URI reference; nobody is `canvasbus`, since it asks for somebody."""

    def source(text: str) -> str:
        return str(to_structured(Envelope(ID, "cloud.seen", 1, text, None, None, None, EMPTY), Seen())["source"])

    assert source("trainer-7/train") == "trainer-7/train"
    assert source("https://lab.example/a%2Fb?c=d#e") == "https://lab.example/a%2Fb?c=d#e"
    assert source("Zoë's box 100%") == "Zo%C3%AB's%20box%20100%25"
    assert source(source("Zoë's box 100%")) == source("Zoë's box 100%")
    assert source("") == "canvasbus"


@pytest.mark.parametrize("expires", [1e300, -1e300, 2.0**63, float("inf")])
def test_an_expiry_beyond_the_calendar_is_its_end(expires: float) -> None:
    """Never in practice, or long over."""
    shown = to_structured(Envelope(ID, "cloud.seen", 1, "s", None, None, None, EMPTY, expires), Seen())
    back = from_structured(shown)[0].expires_on
    assert back is not None and (back > 2.5e11 if expires > 0 else back == 0)


def test_an_upcast_event_is_described_as_what_it_became() -> None:
    """A handler has the newest Struct and the envelope as it was published; what goes out is of one version."""
    value = b'{"type": "cloud.measured", "data": {"metres": 4}}'
    envelope, made = Codec().decode(value, stream_type="cloud.measured", entry_id="1-0")
    assert envelope.version == 1
    shown = to_structured(envelope, made)
    assert (shown["dataschema"], shown["data"]) == ("urn:canvasbus:cloud.measured/v2", {"feet": 12})
    assert from_structured(shown)[1] == made


def test_old_versions_from_outside_are_upcast_too() -> None:
    """The version is what `dataschema` names, of ours and of other houses."""
    for schema in ("urn:canvasbus:cloud.measured/v1", "https://lab.example/schemas/measured/v1.json"):
        found = from_structured(whole(type="cloud.measured", data={"metres": 5}, dataschema=schema))
        assert found[1].feet == 15  # type: ignore[attr-defined]
    assert from_structured(whole(type="cloud.measured", data={"metres": 5}))[1].feet == 15  # type: ignore[attr-defined]


def test_binary_data_in_an_object_is_json() -> None:
    """data_base64 is how the SDK writes bytes; what they are is what datacontenttype says, JSON unless it says otherwise."""
    made = CloudEvent({"type": "cloud.seen", "source": "/c", "datacontenttype": "application/json"}, b'{"name": "b"}')
    message = to_structured_event(made)
    assert b"data_base64" in message.body
    assert from_http(message.headers, message.body)[1].name == "b"  # type: ignore[attr-defined]
    encoded = base64.b64encode(b'{"name": "c"}').decode()
    envelope, seen = from_structured(whole(data=None, data_base64=encoded, time="2026-01-02T03:04:05Z"))
    assert (envelope.key, seen.occurred_on) == ("c", MOMENT.replace(microsecond=0))


def test_unknown_attributes_are_ignored() -> None:
    """Extensions of other houses, of whatever JSON type, also those that are called like what we know only on the bus."""
    same = {"time": "2026-01-02T03:04:05Z"}
    more = {"sampledrate": 3, "tracestate": "a=b", "dataref": "https://x", "deep": {"not": ["allowed"]}, "flag": True}
    assert plain(from_structured(whole(**more, **same))) == plain(from_structured(whole(**same)))
    headers, body = to_binary(*from_structured(whole(**same)))
    more = {
        "ce-version": "1.2.3-rc1",
        "ce-data": "x",
        "ce-data_base64": "!",
        "Host": "lab",
        "traceparent": "of the hop",
    }
    assert plain(from_binary(headers | more, body)) == plain(from_binary(headers, body))


def test_headers_are_read_as_the_binding_says() -> None:
    """Names in any case; quotes are taken off first, then the percent-encoding, once (the binding's own example)."""
    headers, body = to_binary(*from_structured(whole(data={"drops": 1})))
    headers.pop("ce-subject", None)
    shouted = {name.upper(): value for name, value in headers.items()}
    for text, meant in (
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        (r'"quoted \"name\" \\ %41"', r'quoted "name" \ A'),
        ('"', '"'),
        ("%2541", "%41"),
    ):
        assert from_binary({**shouted, "Ce-Traceparent": text}, body)[0].traceparent == meant


def test_headers_are_written_as_the_binding_says() -> None:
    """What no header may hold, spaces, quotes and percent signs are encoded; the body is the bare data."""
    strange = 'a b\r\nX-Evil: 1"%€'
    headers, body = to_binary(*from_structured(whole(data={"name": strange})))
    assert headers["ce-subject"] == "a%20b%0D%0AX-Evil:%201%22%25%E2%82%AC"
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["name"] == strange
    assert from_binary(headers, body)[0].key == strange


def test_the_mode_is_what_the_content_type_says() -> None:
    """With parameters and in any case; batches and other formats are refused in so many words."""
    shown = json.dumps(whole()).encode()
    for kind in (STRUCTURED_TYPE, "Application/CloudEvents+JSON; charset=utf-8"):
        assert from_http({"Content-Type": kind}, shown)[0].id == ID
    for kind in ("application/cloudevents-batch+json", "application/cloudevents+avro"):
        with pytest.raises(DecodeError, match="one event a request, as JSON"):
            from_http({"content-type": kind}, shown)
    with pytest.raises(DecodeError, match="binary mode"):
        from_http({"content-type": "application/json", "ce-id": "1"}, shown)
    for bare in ({}, {"Content-Type": "application/json"}):
        with pytest.raises(DecodeError, match=r"no headers ce-\.\.\., .* is not application/cloudevents\+json"):
            from_http(bare, shown)
    for kind in ("application/json", "text/json; charset=utf-8", "application/vnd.lab+json"):
        headers, body = to_binary(*from_structured(whole()))
        assert from_http({**headers, "content-type": kind}, body)[0].id == ID


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"specversion": None}, "undecodable", "it has no specversion"),
    ({"specversion": "0.3"}, "undecodable", r"CloudEvents '0\.3' is not read here"),
    ({"specversion": 1.0}, "undecodable", "specversion"),
    ({"id": None}, "undecodable", "it has no id"),
    ({"id": ""}, "undecodable", "id is empty"),
    ({"id": 7}, "undecodable", r"\$\.id"),
    ({"source": None}, "undecodable", "it has no source"),
    ({"source": ""}, "undecodable", "it has no source"),
    ({"source": ["s"]}, "undecodable", r"\$\.source"),
    ({"type": None}, "undecodable", "type"),
    ({"type": ""}, "undecodable", "it has no type"),
    ({"type": "cloud.nobody"}, "unknown_type", "imported"),
    ({"subject": 3}, "undecodable", r"\$\.subject"),
    ({"partitionkey": True}, "undecodable", r"\$\.partitionkey"),
    ({"time": 5}, "undecodable", r"\$\.time"),
    ({"time": "soon"}, "invalid", r"occurred_on` \(its `time`\)"),
    ({"time": "2026-01-02T03:04:05"}, "invalid", "occurred_on"),
    ({"expirytime": "2026-01-02"}, "undecodable", r"\$\.expirytime"),
    ({"expirytime": "2026-01-02T03:04:05"}, "undecodable", r"\$\.expirytime"),
    ({"correlationid": 5}, "undecodable", r"\$\.correlationid"),
    ({"causationid": {}}, "undecodable", r"\$\.causationid"),
    ({"traceparent": 1}, "undecodable", r"\$\.traceparent"),
    ({"dataschema": 1}, "undecodable", r"\$\.dataschema"),
    ({"dataschema": "urn:canvasbus:cloud.seen/v2"}, "newer_version", "v2 is not known here"),
    ({"dataschema": "urn:canvasbus:cloud.seen/v0"}, "unknown_type", "v0 is not read here"),
    ({"datacontenttype": "application/xml", "data": "<a/>"}, "undecodable", "only JSON"),
    ({"datacontenttype": "application/jsonx"}, "undecodable", "only JSON"),
    ({"data": None}, "undecodable", "it has no data"),
    ({"data": "text"}, "invalid", "Expected `object`"),
    ({"data": [{}]}, "invalid", "Expected `object`"),
    ({"data": {"drops": "many"}}, "invalid", r"\$\.drops"),
    ({"data_base64": "e30="}, "undecodable", "both data and data_base64"),
    ({"data": None, "data_base64": "e3"}, "undecodable", "CloudEvents object"),
    ({"data": None, "data_base64": "e30=!"}, "undecodable", "CloudEvents object"),
    ({"data": None, "data_base64": ""}, "undecodable", "it has no data"),
    ({"data": None, "data_base64": "/w=="}, "undecodable", r"cloud\.seen v1"),
    ({"data": None, "data_base64": 3}, "undecodable", r"\$\.data_base64"),
]


@pytest.mark.parametrize(("changes", "reason", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_with_an_object(changes: dict[str, Any], reason: str, says: str) -> None:
    """A DecodeError that names it, with the reason by which dead letters are sorted."""
    with pytest.raises(DecodeError, match=says) as caught:
        from_structured(whole(**changes))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("changes", "body", "says"),
    [
        ({"ce-specversion": None}, b"{}", "it has no specversion"),
        ({"ce-id": None}, b"{}", "it has no id"),
        ({"ce-type": None}, b"{}", "type"),
        ({"ce-subject": "%ff"}, b"{}", "binary mode"),
        *(
            ({f"ce-{name}": "\udcff"}, b"{}", "binary mode")
            for name in ("id", "source", "time", "causationid", "traceparent")
        ),
        ({"ce-expirytime": "soon"}, b"{}", "expirytime"),
        ({"content-type": "text/plain"}, b"{}", "only JSON"),
        ({}, b"", "it has no data"),
        ({}, b"\xff", r"cloud\.seen v1"),
        ({}, b"{", r"cloud\.seen v1"),
        ({"ce-id": 3}, b"{}", "binary mode"),
        ({3: "x"}, b"{}", "binary mode"),
        ({"ce-type": "cloud.seen"}, None, "binary mode"),
    ],
)
def test_what_is_wrong_with_a_request(changes: dict[Any, Any], body: Any, says: str) -> None:
    """The same for headers and body."""
    headers, _ = to_binary(*from_structured(whole()))
    with pytest.raises(DecodeError, match=says):
        from_binary({name: value for name, value in {**headers, **changes}.items() if value is not None}, body)


@pytest.mark.parametrize("headers", [{"content-type": b"x"}, {"content-type": None}, {3: "x"}, {b"content-type": b"x"}])
def test_headers_that_are_no_texts(headers: Any) -> None:
    """As some servers hand them on."""
    with pytest.raises(DecodeError):
        from_http(headers, b"{}")


@pytest.mark.parametrize("value", [b"", b"[]", b"3", b"null", b'"x"', b"\xff", "\ud800", {3: object()}, {"type": b""}])
def test_what_is_no_object_at_all(value: Any) -> None:
    """Neither bytes, nor texts, nor what somebody parsed."""
    with pytest.raises(DecodeError):
        from_structured(value)


def test_what_is_too_large_is_not_read() -> None:
    """The bus's own limit, in both modes."""
    large = "x" * MAX_EVENT_BYTES
    headers, _ = to_binary(*from_structured(whole()))
    for read in (
        lambda: from_structured(whole(data={"name": large})),
        lambda: from_binary(headers, json.dumps({"name": large}).encode()),
    ):
        with pytest.raises(DecodeError) as caught:
            read()
        assert caught.value.reason == "oversize"


def test_nesting_without_end_is_a_decode_error() -> None:
    """In the data, in an extension, and in what somebody parsed."""
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    texts = '{"a":' * 100_000 + "{}" + "}" * 100_000
    headers, _ = to_binary(*from_structured(whole()))
    start = json.dumps(whole(data=None))[:-1]
    for read in (
        lambda: from_structured(whole(extension=deep)),
        lambda: from_structured(f'{start}, "data": {texts}}}'),
        lambda: from_structured(f'{start}, "data": {{}}, "extension": {texts}}}'),
        lambda: from_binary(headers, texts.encode()),
    ):
        with pytest.raises(DecodeError):
            read()
    while deep:  # taken apart by hand: freeing it in one go would nest as deep
        deep = deep["a"]


def test_random_and_damaged_input_raises_decode_errors_only() -> None:
    """Cut, flipped and inserted bytes, in the object, in each header and in the body: an event, or a DecodeError."""
    (seed,) = seeds(1, "cloudevents")
    draw = random.Random(seed)
    made = Seen(name="ä", height=0.5, raw=b"\0\xff", parts=("a", "b"), shares={"x": 1.0})
    envelope = Envelope(ID, "cloud.seen", 1, "s", "ä", CAUSE, "00-1-2-01", EMPTY, 1e9)
    shown = json.dumps(to_structured(envelope, made)).encode()
    headers, body = to_binary(envelope, made)
    read = 0

    def damaged(value: bytes) -> bytes:
        changed = bytearray(value)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(changed) + 1)
            changed[at : at + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 3))
        return bytes(changed)

    def attempt(reader: Callable[..., Any], *args: Any) -> int:
        try:
            reader(*args)
        except DecodeError as error:
            assert error.reason in {"undecodable", "invalid", "unknown_type", "newer_version", "oversize"}
            return 0
        return 1

    for cut in range(len(shown)):
        attempt(from_structured, shown[:cut])
    for _ in range(4000):
        read += attempt(from_structured, damaged(shown))
        name = draw.choice(list(headers))
        changed = damaged(headers[name].encode()).decode("latin-1")
        read += attempt(from_http, {**headers, name: changed}, body)
        read += attempt(from_http, headers, damaged(body))
    assert 0 < read < 12_000, seed
    for _ in range(2000):
        attempt(from_http, {draw.choice(list(headers)): "x"}, draw.randbytes(draw.randint(0, 60)))


ON_THE_BUS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"version": 1, "source": "", "key": "n", "causation_id": None, "traceparent": None, "expires_on": None}),
    ({"id": str(ID)}, {"id": ID}),
    ({"id": "A1", "source": "s"}, {"id": from_structured(whole(id="A1", source="s"))[0].id}),
    ({"source": None}, {"source": ""}),
    ({"source": "js"}, {"source": "js"}),
    ({"subject": "else"}, {"key": "n"}),
    ({"traceparent": "00-1-2-01"}, {"traceparent": "00-1-2-01"}),
    ({"causationid": str(CAUSE)}, {"causation_id": CAUSE}),
    ({"expirytime": "2026-01-02T03:04:05.5+01:00"}, {"expires_on": MOMENT.timestamp() - 3600 - 0.178901}),
    ({"version": 1}, {"version": 1}),
    ({"specversion": "1.0", "dataschema": "urn:canvasbus:cloud.seen/v1"}, {"version": 1}),
    ({"datacontenttype": "application/json"}, {"version": 1}),
]


@pytest.mark.parametrize(("more", "expected"), ON_THE_BUS, ids=lambda value: str(value)[:40])
def test_each_attribute_of_an_entry_on_the_bus(more: dict[str, Any], expected: dict[str, Any]) -> None:
    """`type` and `data` are enough; each other attribute, alone, is what it says in the envelope."""
    value = json.dumps({"type": "cloud.seen", "data": {"name": "n"}, **more}).encode()
    envelope, made = Codec().decode(value, stream_type="cloud.seen", entry_id="1-0")
    assert isinstance(made, Seen) and made.name == "n"
    for field, wanted in expected.items():
        if field == "expires_on" and wanted is not None:
            assert envelope.expires_on == pytest.approx(wanted)
        else:
            assert getattr(envelope, field) == wanted


@pytest.mark.parametrize(
    ("more", "reason"),
    [(changes, reason) for changes, reason, _ in WRONG if "type" not in changes]
    + [({"version": "1"}, "undecodable"), ({"version": 0}, "unknown_type"), ({"version": True}, "undecodable")],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_with_an_entry_on_the_bus(more: dict[str, Any], reason: str) -> None:
    """What from outside would be wrong is wrong there, but for what may be left out."""
    value = json.dumps(whole(**more)).encode()
    if more in ({"specversion": None}, {"id": None}, {"source": None}, {"source": ""}):
        assert Codec().decode(value, stream_type="cloud.seen", entry_id="1-0")
        return
    with pytest.raises(DecodeError) as caught:
        Codec().decode(value, stream_type="cloud.seen", entry_id="1-0")
    assert caught.value.reason == reason


def test_the_mapping_is_one() -> None:
    """An entry in msgpack, shown, and put on the bus again as it is shown, is the same entry to a reader."""
    made = Seen(name="n", occurred_on=MOMENT, correlation_id=STORY)
    out = Codec("lab").encode(made, causation_id=CAUSE, traceparent="00-1-2-01", expires_on=MOMENT.timestamp())
    first = Codec().decode(out.data, stream_type="cloud.seen", entry_id="1-0")
    shown = msgspec.json.encode(to_structured(*first))
    assert plain(Codec().decode(shown, stream_type="cloud.seen", entry_id="2-0")) == plain(first)
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in json.loads(shown))


def test_what_an_entry_does_not_say_is_the_same_on_every_reading() -> None:
    """Its id and time are those of its place, and its correlation begins with it: in every group, however often it runs.
    Elsewhere it has them with it."""
    value = b'{"type": "cloud.seen", "data": {"name": "n"}}'
    first, again = (Codec().decode(value, stream_type="cloud.seen", entry_id="1767323045678-3") for _ in range(2))
    assert plain(first) == plain(again)
    envelope, made = first
    assert made.correlation_id == envelope.id
    assert made.occurred_on == MOMENT.replace(microsecond=678000)
    elsewhere = moved(value, str(envelope.id), "1767323045678-3")
    assert plain(Codec().decode(elsewhere, stream_type="cloud.seen", entry_id="1-0")) == plain(first)
    said = json.dumps(whole(time="2026-01-02T03:04:05Z", correlationid=str(STORY))).encode()
    assert json.loads(moved(said, str(CAUSE), "1-0")) == json.loads(said)
    wire = Codec().encode(Seen()).data
    assert moved(wire, str(CAUSE), "1-0") == wire


def test_what_lay_within_the_limit_may_be_moved() -> None:
    """The id and the time that it takes along make an entry of exactly the limit no larger than it may be; without them
    the limit is the limit."""
    value = b'{"type":"cloud.seen","data":{"name":"n"}}'
    codec = Codec(limit=len(value))
    first = codec.decode(value, stream_type="cloud.seen", entry_id="1-0")
    elsewhere = moved(value, str(first[0].id), "1-0")
    assert len(elsewhere) > codec.limit
    assert plain(codec.decode(elsewhere, stream_type="cloud.seen", entry_id="2-0")) == plain(first)
    for larger in (value + b" ", elsewhere + b" " * 128, Codec().encode(Seen(name="n" * 100)).data):
        with pytest.raises(DecodeError, match="over the limit") as caught:
            codec.decode(larger, stream_type="cloud.seen", entry_id="1-0")
        assert caught.value.reason == "oversize"


def test_a_correlation_without_a_text_is_none() -> None:
    """Events of strangers who say nothing by it do not belong together."""
    for entry_id in ("1-0", "2-0"):
        value = b'{"type": "cloud.seen", "correlationid": "", "data": {}}'
        envelope, made = Codec().decode(value, stream_type="cloud.seen", entry_id=entry_id)
        assert made.correlation_id == envelope.id
