"""Event ↔ bytes: held against msgspec's own encoding, round trips, refusals, and bytes that mean harm."""

import dataclasses
import enum
import random
import tracemalloc
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, NamedTuple
from uuid import UUID, uuid4, uuid5

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seeds import seeds
from waiting import TurnedClock

from canvasbus import ALLOW_NON_FINITE, AwareDatetime, Event, clock, event
from canvasbus.contract.registry import registry
from canvasbus.errors import ContractError, DecodeError, EncodeError
from canvasbus.operate.given import from_json
from canvasbus.wire import deadletter
from canvasbus.wire.cloudevents import to_structured
from canvasbus.wire.codec import Codec, decode_envelope, expiry
from canvasbus.wire.envelope import Envelope

NAN, INF = float("nan"), float("inf")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Part(msgspec.Struct, frozen=True):
    size: float = 0.0
    labels: tuple[str, ...] = ()


class Point(NamedTuple):
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Box:
    width: float = 1.0


class Node(msgspec.Struct, frozen=True):
    children: tuple["Node", ...] = ()


@event("codec.everything", version=3, since=3, key="name")
class Everything(Event):
    name: str
    whole: int = 0
    number: float = 0.0
    maybe: float | None = None
    yes: bool = False
    raw: bytes = b""
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    moment: AwareDatetime | None = None
    day: date = date(2026, 1, 1)
    ident: UUID = UUID(int=1)
    money: Decimal = Decimal(0)
    span: timedelta = timedelta()
    parts: tuple[Part, ...] = ()
    words: frozenset[str] = frozenset()
    scores: Mapping[str, float] = {}
    pair: tuple[int, str] = (0, "")
    point: Point = Point(0.0, 0.0)
    box: Box | None = None


@event("codec.counted", key="number")
class Counted(Event):
    number: int


@event("codec.coloured", key="colour")
class Coloured(Event):
    colour: Colour


@event("codec.identified", key="ident")
class Identified(Event):
    ident: UUID


@event("codec.plain")
class Plain(Event):
    text: str = ""
    score: float = 0.0


@event("codec.tree")
class Tree(Event):
    root: Node = Node()


@event("codec.numbers")
class Numbers(Event):
    values: tuple[int, ...] = ()


@event("codec.renamed", key="model_name")
class Renamed(Event, rename="camel"):
    model_name: str
    drift_score: float = 0.0


class Undeclared(Event):
    pass


finite = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1))
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
int64 = st.integers(-(2**63), 2**64 - 1)
everything = st.builds(
    Everything,
    occurred_on=moments,
    correlation_id=st.uuids(),
    name=text,
    whole=int64,
    number=finite,
    maybe=st.none() | finite,
    yes=st.booleans(),
    raw=st.binary(max_size=40),
    colour=st.sampled_from(Colour),
    level=st.sampled_from(Level),
    moment=st.none() | moments,
    day=st.dates(),
    ident=st.uuids(),
    money=st.decimals(allow_nan=False, allow_infinity=False),
    span=st.timedeltas(timedelta(days=-999), timedelta(days=999)),
    parts=st.lists(st.builds(Part, size=finite, labels=st.lists(text, max_size=2).map(tuple)), max_size=3).map(tuple),
    words=st.frozensets(text, max_size=3),
    scores=st.dictionaries(text, finite, max_size=3),
    pair=st.tuples(int64, text),
    point=st.builds(Point, x=finite, y=finite),
    box=st.none() | st.builds(Box, width=finite),
)
quick = settings(derandomize=True, deadline=None, max_examples=150, database=None)


def decoded(data: bytes, stream_type: str = "codec.everything", entry_id: str = "1-0") -> tuple[Envelope, Any]:
    return Codec().decode(data, stream_type=stream_type, entry_id=entry_id)


def by_msgspec(codec: Codec, made: Event, event_id: UUID, key: str | None, **more: Any) -> bytes:
    """The same entry as msgspec writes it: the oracle of the hand-written envelope."""
    encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
    declared = registry.of(type(made))
    payload = msgspec.Raw(encoder.encode(made))
    fields = {"causation_id": None, "traceparent": None, "expires_on": None} | more
    return encoder.encode(
        Envelope(event_id, declared.name, declared.version, codec.source, key, data=payload, **fields)
    )


@quick
@given(
    made=everything,
    source=text,
    event_id=st.none() | st.uuids(),
    cause=st.none() | st.uuids(),
    trace=st.none() | text,
    expires=st.none() | finite,
)
def test_the_hand_written_envelope_is_msgspecs(
    made: Everything, source: str, event_id: UUID | None, cause: UUID | None, trace: str | None, expires: float | None
) -> None:
    """Byte for byte what msgspec writes for the Envelope, whatever is in it; and it decodes to what was encoded."""
    codec = Codec(source)
    out = codec.encode(made, event_id=event_id, causation_id=cause, traceparent=trace, expires_on=expires)
    assert event_id in (None, out.id)
    assert out.data == by_msgspec(
        codec, made, out.id, made.name, causation_id=cause, traceparent=trace, expires_on=expires
    )
    envelope, back = decoded(out.data)
    assert back == made and type(back) is Everything
    assert (envelope.id, envelope.type, envelope.version) == (out.id, out.type, 3)
    assert (envelope.source, envelope.key) == (source, made.name) and out.key == made.name
    assert (envelope.causation_id, envelope.traceparent, envelope.expires_on) == (cause, trace, expires)


@quick
@given(made=everything)
def test_json_carries_every_field_both_ways(made: Everything) -> None:
    """An event shown as CloudEvents JSON and published again from it is the same event with the same id."""
    envelope, back = decoded(Codec("lab").encode(made).data)
    text = msgspec.json.encode(to_structured(envelope, back))
    again, around = from_json(text)
    assert again == made
    assert around.event_id == envelope.id
    outside, foreign = decoded(text)
    assert foreign == made
    assert (outside.id, outside.type, outside.version, outside.source) == (envelope.id, envelope.type, 3, "lab")
    assert outside.key == made.name


@pytest.mark.parametrize(
    "events",
    [
        [],
        [Plain(text="a")],
        [Plain(text=str(n), score=n / 3) for n in range(50)],
        [Counted(number=n % 3) for n in range(9)],
        [Coloured(colour=colour) for colour in Colour],
        [Identified(ident=UUID(int=n)) for n in range(3)],
        [Everything(name=f"k{n % 3}", scores={"a": n}) for n in range(20)],
        [Everything(name="same") for _ in range(5)],
        [Plain(), Counted(number=1), Plain(), Everything(name="x")],
        [Numbers(values=(n,)) for n in range(4)],
    ],
    ids=len,
)
@pytest.mark.parametrize("trace", [None, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"], ids=["", "traced"])
def test_a_batch_is_encoded_like_its_events(events: list[Event], trace: str | None) -> None:
    """encode_many gives, ids apart, what encode gives for each: bytes, type and key; ids are all different."""
    codec = Codec("lab")
    many = list(codec.encode_many(events, trace))
    assert len({out.raw_id for out in many}) == len(events)
    assert many == [
        codec.encode(made, event_id=out.id, traceparent=trace) for made, out in zip(events, many, strict=True)
    ]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Plain(text=3), EncodeError),  # type: ignore[arg-type]
        (Plain(score=NAN), EncodeError),
        (Plain(text="\ud800"), EncodeError),
        (Plain(text="x" * 5000), EncodeError),
        (Undeclared(), ContractError),
        ("no event", EncodeError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_one_bad_event_fails_its_batch_as_it_fails_alone(bad: Any, error: type[Exception]) -> None:
    """The message is the same as for the event alone, wherever in the batch it stands, in mixed batches too."""
    codec = Codec(limit=2000)
    with pytest.raises(error) as alone:
        codec.encode(bad)
    for batch in ([bad, Plain()], [Plain(), Plain(), bad], [Counted(number=1), bad]):
        with pytest.raises(error) as caught:
            codec.encode_many(batch)
        assert str(caught.value).split(" is ")[0] == str(alone.value).split(" is ")[0]


@pytest.mark.parametrize(
    ("made", "key"),
    [
        (Counted(number=-7), "-7"),
        (Coloured(colour=Colour.BLUE), "blue"),
        (Identified(ident=UUID(int=5)), str(UUID(int=5))),
    ],
)
def test_keys_have_one_spelling(made: Event, key: str) -> None:
    """A number, an enum or a UUID partitions by its text; the envelope says the same as msgspec would."""
    codec = Codec()
    out = codec.encode(made)
    assert out.key == key
    assert out.data == by_msgspec(codec, made, out.id, key)


@pytest.mark.parametrize(
    "made",
    [
        Plain(text=None),  # type: ignore[arg-type]
        Plain(score="1"),  # type: ignore[arg-type]
        Plain(text="\ud800"),
        Plain(occurred_on=datetime(2026, 1, 1)),
        Plain(correlation_id="x"),  # type: ignore[arg-type]
        Counted(number=2**64),
        Counted(number=1.5),  # type: ignore[arg-type]
        Counted(number=None),  # type: ignore[arg-type]
        Everything(name="x", parts=(object(),)),  # type: ignore[arg-type]
        Everything(name="x", scores={1: 1.0}),  # type: ignore[dict-item]
        Everything(name="x", raw=3),  # type: ignore[arg-type]
    ],
    ids=lambda made: type(made).__name__,
)
def test_what_no_reader_could_decode_is_not_published(made: Event) -> None:
    """msgspec builds a Struct of anything; publishing checks the types and names the event type."""
    with pytest.raises(EncodeError, match=r"codec\.\w+ v\d cannot be published"):
        Codec().encode(made)


class Loose(msgspec.Struct, frozen=True):
    """Allows it in one of two fields."""

    strict: float = 0.0
    free: Annotated[float, ALLOW_NON_FINITE] = 0.0


@event("codec.measured")
class Measured(Event):
    score: float = 0.0
    maybe: float | None = None
    values: tuple[float, ...] = ()
    table: Mapping[str, tuple[float, ...]] = {}
    by_number: Mapping[float, str] = {}
    part: Part = Part()
    parts: tuple[Part, ...] | None = None
    fixed: tuple[int, float] = (0, 0.0)
    point: Point = Point(0.0, 0.0)
    box: Box | None = None
    loose: Loose = Loose()
    words: frozenset[float] = frozenset()
    free: Annotated[float, ALLOW_NON_FINITE] = 0.0
    free_maybe: Annotated[float, ALLOW_NON_FINITE] | None = None
    free_values: tuple[Annotated[float, ALLOW_NON_FINITE], ...] | None = None
    free_all: Annotated[tuple[float, ...], ALLOW_NON_FINITE] = ()
    free_table: Mapping[str, Annotated[float, ALLOW_NON_FINITE]] | None = None
    free_fixed: tuple[int, Annotated[float, ALLOW_NON_FINITE]] = (0, 0.0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (lambda x: {"score": x}, "$.score"),
        (lambda x: {"maybe": x}, "$.maybe"),
        (lambda x: {"values": (1.0, x)}, "$.values[1]"),
        (lambda x: {"table": {"a": (0.0,), "b": (x,)}}, "$.table['b'][0]"),
        (lambda x: {"by_number": {x: "a"}}, "$.by_number[key "),
        (lambda x: {"part": Part(size=x)}, "$.part.size"),
        (lambda x: {"parts": (Part(), Part(size=x))}, "$.parts[1].size"),
        (lambda x: {"fixed": (1, x)}, "$.fixed[1]"),
        (lambda x: {"point": Point(0.0, x)}, "$.point.y"),
        (lambda x: {"box": Box(width=x)}, "$.box.width"),
        (lambda x: {"loose": Loose(strict=x)}, "$.loose.strict"),
        (lambda x: {"words": frozenset([x])}, "$.words[0]"),
        (lambda x: {"free": x, "score": x}, "$.score"),
    ],
)
def test_nan_and_infinity_are_refused_wherever_they_hide(fields: Any, path: str, bad: float) -> None:
    """In lists, tables, structs, named tuples and dataclasses alike; the message has the path."""
    with pytest.raises(EncodeError, match="NaN or infinity") as caught:
        Codec().encode(Measured(**fields(bad)))
    assert f"`{path}" in str(caught.value)
    with pytest.raises(EncodeError, match="NaN or infinity"):
        Codec().encode_many([Measured(), Measured(**fields(bad))])


@pytest.mark.parametrize(
    "fields",
    [
        {"free": NAN},
        {"free_maybe": INF},
        {"free_values": (1.0, -INF)},
        {"free_all": (NAN,)},
        {"free_table": {"a": NAN}},
        {"free_fixed": (1, NAN)},
        {"loose": Loose(free=NAN)},
    ],
    ids=str,
)
def test_a_field_may_allow_them(fields: dict[str, Any]) -> None:
    """Annotated with ALLOW_NON_FINITE, also inside containers that may be None, they pass and come back."""
    out = Codec().encode_many([Measured(**fields)])[0]
    _, back = decoded(out.data, "codec.measured")
    assert repr(back) == repr(Measured(**fields, occurred_on=back.occurred_on, correlation_id=back.correlation_id))


def test_bytes_that_only_look_like_nan_pass() -> None:
    """0xcb7ff8… inside text or bytes is no float."""
    looks = b"\xcb\x7f\xf8\0\0\0\0\0\0"
    assert decoded(Codec().encode(Everything(name="x", raw=looks)).data)[1].raw == looks


def test_renamed_fields_travel_under_their_new_names() -> None:
    """In msgpack, in CloudEvents and back; misspelt ones are still refused; NaN is still found."""
    codec = Codec()
    out = codec.encode(Renamed(model_name="m", drift_score=0.5))
    envelope, back = codec.decode(out.data, stream_type="codec.renamed", entry_id="1-0")
    shown = to_structured(envelope, back)
    assert (out.key, shown["data"]) == ("m", {"modelName": "m", "driftScore": 0.5})
    assert from_json(msgspec.json.encode(shown))[0] == back
    with pytest.raises(EncodeError, match=r"no field 'drift_score'; its fields are .*driftScore"):
        from_json('{"modelName": "m", "drift_score": 1}', type_name="codec.renamed")
    with pytest.raises(EncodeError, match="drift_score"):
        codec.encode(Renamed(model_name="m", drift_score=NAN))


def test_the_size_limit_counts_the_whole_entry() -> None:
    """An entry of exactly the limit passes both ways, one byte more is refused when written and, unread, when read."""
    data = Codec().encode(Plain(text="x" * 500)).data
    assert Codec(limit=len(data)).encode(Plain(text="x" * 500))
    assert Codec(limit=len(data)).encode_many([Plain(text="x" * 500)])
    for write in (
        lambda codec: codec.encode(Plain(text="x" * 501)),
        lambda codec: codec.encode_many([Plain(text="x" * 501)]),
    ):
        with pytest.raises(EncodeError, match=r"over the limit of .*URI and sha256"):
            write(Codec(limit=len(data)))
    with pytest.raises(DecodeError) as caught:
        Codec(limit=len(data) - 1).decode(data, stream_type="codec.plain", entry_id="1-0")
    assert caught.value.reason == "oversize"


# --- reading ----------------------------------------------------------------------------------------------------------


def wrapped(payload: Any, type_name: str = "codec.plain", version: int = 1) -> bytes:
    data = msgspec.Raw(msgspec.msgpack.encode(payload))
    return msgspec.msgpack.Encoder(uuid_format="bytes").encode(
        Envelope(UUID(int=9), type_name, version, "", None, None, None, data)
    )


def test_unknown_fields_are_ignored_and_missing_ones_filled() -> None:
    """A reader of today reads what a newer or older publisher of the same version wrote; surplus envelope elements too."""
    _, back = decoded(wrapped({"text": "a", "added_later": [1, {"x": 2}]}), "codec.plain")
    assert (back.text, back.score) == ("a", 0.0)
    elements = msgspec.msgpack.decode(wrapped({"text": "b"}))
    for changed in ([*elements, "from the future", 3], elements[:8]):
        raw = msgspec.msgpack.encode([*changed[:7], msgspec.Raw(msgspec.msgpack.encode({"text": "b"})), *changed[8:]])
        assert decoded(raw, "codec.plain")[1].text == "b"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (wrapped({"text": 3}), "invalid"),
        (wrapped({"score": "high"}), "invalid"),
        (wrapped({"occurred_on": "yesterday"}), "invalid"),
        (wrapped([]), "invalid"),
        (wrapped({}, version=2), "newer_version"),
        (wrapped({}, version=0), "unknown_type"),
        (wrapped({}, version=-1), "unknown_type"),
        (wrapped({}, "codec.nobody_knows"), "foreign"),
        (b"", "undecodable"),
        (b"\x00", "undecodable"),
        (b"hello", "undecodable"),
        (b"\x99", "undecodable"),
        (b"{", "undecodable"),
        (b"{}", "undecodable"),
        (b'{"type": "codec.plain"}', "undecodable"),
        (b'{"type": "codec.plain", "data": {}, "id": 3}', "undecodable"),
        (b'{"type": "codec.other", "data": {}}', "foreign"),
        (b'{"type": "codec.plain", "data": {"text": 3}}', "invalid"),
        (b'{"type": "codec.plain", "data": [1]}', "invalid"),
        (b'{"type": "codec.plain", "data": [1], "time": "2026-01-01T00:00:00Z"}', "invalid"),
        (b'{"type": "codec.plain", "data": {}, "time": "soon"}', "invalid"),
        (b'{"type": "codec.plain", "data": {}, "version": 9}', "newer_version"),
        (b'{"type": "codec.plain", "data": {}, "dataschema": "urn:x/v9.json"}', "newer_version"),
        (b'{"type": "codec.plain", "data": {"text": "\xff"}}', "undecodable"),
        (b'{"type": "codec.plain", "data": {"score": 1e999}}', "invalid"),
    ],
)
def test_what_is_wrong_with_an_entry_is_one_word(value: bytes, reason: str) -> None:
    """Each kind of bad entry has its reason, which is what dead letters are sorted by."""
    with pytest.raises(DecodeError) as caught:
        decoded(value, "codec.plain")
    assert caught.value.reason == reason
    if value in (b"hello", b""):
        assert str(caught.value) == "not an envelope: neither a JSON object, which begins with {, nor a msgpack array"


def test_a_type_that_is_not_imported_is_unknown() -> None:
    """The stream's own type, which no class here has."""
    with pytest.raises(DecodeError, match="imported") as caught:
        decoded(wrapped({}, "codec.nobody_knows"), "codec.nobody_knows")
    assert caught.value.reason == "unknown_type"


def test_json_needs_a_type_and_data_only() -> None:
    """What is missing gets a default; the id is the same on every reading: uuid5 of stream and entry."""
    value = b'{"type": "codec.plain", "data": {"text": "hi"}}'
    envelope, back = decoded(value, "codec.plain", "17-3")
    assert back.text == "hi"
    namespace_url = UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
    assert envelope.id == uuid5(namespace_url, "codec.plain\n17-3")
    assert decoded(value, "codec.plain", "17-4")[0].id != envelope.id
    assert (envelope.version, envelope.source, envelope.key, envelope.causation_id) == (1, "", None, None)


def test_the_outer_object_fills_time_and_correlation_and_data_wins() -> None:
    """`time` and `correlationid` of a CloudEvents object are the event's, unless the data itself has them."""
    story, own = uuid4(), uuid4()
    outer = {"type": "codec.plain", "time": "2026-01-02T03:04:05Z", "correlationid": str(story)}
    back = decoded(msgspec.json.encode({**outer, "data": {}}), "codec.plain")[1]
    assert (back.occurred_on, back.correlation_id) == (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), story)
    data = {"correlation_id": str(own), "occurred_on": "2020-01-01T00:00:00+02:00"}
    back = decoded(msgspec.json.encode({**outer, "data": data}), "codec.plain")[1]
    assert (back.correlation_id, back.occurred_on) == (own, datetime(2019, 12, 31, 22, tzinfo=UTC))


@pytest.mark.parametrize("schema", ["urn:x/v²", "urn:x/v" + "9" * 5000, "v1", "", "urn:x/v", "urn:x/v-1", "/v1.0"])
def test_a_dataschema_of_another_house_is_no_version(schema: str) -> None:
    """Whatever another producer writes there, the version is then 1, and nothing crashes."""
    value = msgspec.json.encode({"type": "codec.plain", "data": {}, "dataschema": schema})
    assert decoded(value, "codec.plain")[0].version == 1
    assert isinstance(from_json(value)[0], Plain)


def test_large_numbers_in_json_survive_the_detour() -> None:
    """Putting time into the data changes no digit of the other fields."""
    value = b'{"type": "codec.numbers", "time": "2026-01-01T00:00:00Z", "data": {"values": [18446744073709551615]}}'
    assert decoded(value, "codec.numbers")[1].values == (2**64 - 1,)


def test_random_and_damaged_bytes_raise_decode_errors_only() -> None:
    """Noise, cut-off entries, flipped and inserted bytes: an event or a DecodeError, nothing else, from either format."""
    (seed,) = seeds(1, "codec")
    print(f"seed {seed}")
    draw = random.Random(seed)
    codec = Codec()
    made = Everything(name="x", parts=(Part(size=1.5, labels=("ä", "b")),), scores={"a": 1.0}, moment=clock.now())
    binary = codec.encode(made, causation_id=uuid4(), traceparent="t", expires_on=1.0).data
    shown = msgspec.json.encode(to_structured(*decoded(binary)))

    def read(value: bytes) -> None:
        for step in (codec.decode, codec.open_envelope):
            try:
                step(value, stream_type="codec.everything", entry_id="1-0")
            except DecodeError as error:
                assert error.reason in {"undecodable", "invalid", "unknown_type", "newer_version", "foreign"}, value
        try:
            from_json(value)
        except (EncodeError, DecodeError):
            pass

    for whole in (binary, shown):
        for cut in range(len(whole)):
            read(whole[:cut])
        for _ in range(4000):
            damaged = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                at = draw.randrange(len(damaged))
                damaged[at : at + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 3))
            read(bytes(damaged))
    for _ in range(4000):
        read(draw.choice((b"", b"{", b"\x99", b"\x99\xc4\x10")) + draw.randbytes(draw.randint(0, 60)))


@pytest.mark.parametrize("depth", [2_000, 100_000])
def test_deep_nesting_is_a_bad_entry(depth: int) -> None:
    """A recursive type, unknown fields and JSON: nested deeper than Python may go is a DecodeError, not a crash."""
    codec = Codec(limit=10**7)
    inner = b"\x81\xa8children\x91" * depth + b"\x80"
    body = b"\x81\xa4root" + inner
    head = wrapped({}, "codec.tree")[:-2]  # without the payload {} and the nil after it
    ended = head + body + b"\xc0"
    arrays = head + b"\x81\xa7unknown" + b"\x91" * depth + b"\xc0" + b"\xc0"
    texts = [
        b'{"type":"codec.tree","data":{"root":' + b'{"children":[' * depth + b"]}" * depth + b"}}",
        b'{"type":"codec.tree","time":"2026-01-01T00:00:00Z","data":{"x":' + b"[" * depth + b"]" * depth + b"}}",
    ]
    for value in (ended, arrays, *texts):
        with pytest.raises(DecodeError):
            codec.decode(value, stream_type="codec.tree", entry_id="1-0")
    for value in texts:
        with pytest.raises((EncodeError, DecodeError)):
            from_json(value)


@pytest.mark.parametrize(
    "head", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_a_promise_of_billions_of_elements_costs_nothing(head: bytes) -> None:
    """Headers that announce 4 billion items, pairs or bytes and bring none fail without taking memory for them."""
    start = wrapped({}, "codec.numbers")[:-2]
    tracemalloc.start()
    try:
        for value in (start + b"\x81\xa6values" + head, start + head, start[:20] + head, head):
            with pytest.raises(DecodeError):
                decoded(value, "codec.numbers")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024


def test_expiry_is_wall_time() -> None:
    """Seconds from now, or never."""
    with clock.using(TurnedClock(1000.0)):
        assert expiry(2.5) == 1002.5
        assert expiry(None) is None


def test_a_dead_letter_comes_back_whole() -> None:
    """Every field, and the entry's bytes exactly, survive the dead-letter stream."""
    record = deadletter.DeadLetterRecord(
        group="g",
        event_type="codec.plain",
        entry_id="1-0",
        event_id=None,
        handler="h",
        reason="exhausted",
        error="ValueError: ä",
        traceback="…",
        attempts=3,
        first_failure=datetime(2026, 1, 1, tzinfo=UTC),
        last_failure=datetime(2026, 1, 1, 0, 0, 5, 123456, tzinfo=UTC),
        consumer="c",
        fields=(b"e", bytes(range(256))),
    )
    assert deadletter.decode(deadletter.encode(record)) == record


def test_routing_needs_no_payload() -> None:
    """The envelope of an entry whose payload is nonsense can be read."""
    data = wrapped({})[:-2] + b"\xc1\xc0"
    value = wrapped({"text": 3})
    assert Codec().open_envelope(value, stream_type="codec.plain", entry_id="1-0").id == UUID(int=9)
    assert decode_envelope(value).type == "codec.plain"
    with pytest.raises(DecodeError):
        decoded(data, "codec.plain")
