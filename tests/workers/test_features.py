"""The features worker: whatever comes in whatever order and however often, the same rows remain, online and offline."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from struct import pack
from typing import Any

import pytest
from seeds import seeds
from studio import Eyes, running
from trio.testing import MockClock
from waiting import until

from canvasbus import clock
from canvasbus.errors import ConfigError, LifespanError, Unavailable
from canvasbus.events import FeaturesComputed, FloatArray, WindowEvaluated
from canvasbus.store import TrioStore
from canvasbus.testing import TestBus
from canvasbus.transport import memory
from canvasbus_workers import features
from canvasbus_workers.features import FeatureReader, OfflineLog
from canvasbus_workers.features.online import OnlineKeys
from canvasbus_workers.features.rows import MAX_FEATURES, BadRow, FeatureRow, check, row_of
from canvasbus_workers.features.settings import RedisSettings
from canvasbus_workers.features.sinks import RowsRefused
from canvasbus_workers.features.sinks.redis import RedisSink

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HEX = "0123456789abcdef"


def vector(*numbers: float, shape: tuple[int, ...] | None = None) -> FloatArray:
    return FloatArray(shape=(len(numbers),) if shape is None else shape, data=pack(f"<{len(numbers)}f", *numbers))


def row(entity: str = "e", seconds: float = 0, event_id: str = "0" * 32, **options: Any) -> FeatureRow:
    return FeatureRow(
        view=options.pop("view", "a"),
        entity=entity,
        event_time=clock.now() + timedelta(seconds=seconds),
        event_id=event_id,
        **options,
    )


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write a canvasbus.toml and put it in force."""

    def write(text: str) -> None:
        (tmp_path / "canvasbus.toml").write_text(text)
        monkeypatch.setenv("CANVASBUS_CONFIG", str(tmp_path / "canvasbus.toml"))

    return write


@pytest.fixture
def online(any_url: str, namespace: str) -> Iterator[FeatureReader]:
    with FeatureReader(any_url, namespace) as reader:
        yield reader


@pytest.fixture
def write(any_url: str, namespace: str) -> Callable[..., Any]:
    """Write rows as the worker does."""

    async def rows(*some: FeatureRow, **settings: Any) -> None:
        async with TrioStore(any_url) as store:
            await RedisSink("online", RedisSettings(**settings), store, namespace).write(some)

    return rows


def history_of(eyes: Eyes, namespace: str, view: str) -> list[str]:
    rows = eyes.call("XRANGE", OnlineKeys(namespace, view).history, "-", "+")
    return [dict(zip(fields[::2], fields[1::2], strict=True))[b"event_id"].decode() for _, fields in rows]


# --- the online store --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(3, "feature rows"))
async def test_order_and_repetition_change_nothing(
    any_url: str, namespace: str, online: FeatureReader, eyes: Eyes, tmp_path: Path, seed: int
) -> None:
    """Shuffled, repeated and cut into batches anyhow: for each entity the whole row of the latest moment remains, of equal
    moments that of the greatest event id; the history and the log have each event once."""
    print(f"seed {seed}")
    random = Random(seed)
    made = [
        row(
            f"e{random.randrange(4)}",
            -random.randrange(4),
            "".join(random.choices(HEX, k=32)),
            view=random.choice(["a", "b {x}"]),
            values={f"n{random.randrange(3)}": random.random() for _ in range(random.randrange(3))},
            vectors={"v": vector(*(float(random.randrange(9)) for _ in range(3)))} if random.random() < 0.5 else {},
        )
        for _ in range(60)
    ]
    whole = datetime.fromtimestamp(int(clock.time()), UTC)  # equal moments do meet
    made = [
        FeatureRow(
            **{f: getattr(one, f) for f in one.__struct_fields__} | {"event_time": whole + timedelta(seconds=at % 3)}
        )
        for at, one in enumerate(made)
    ]
    sent = [*made, *random.choices(made, k=60)]
    random.shuffle(sent)
    path = tmp_path / "features.db"
    with OfflineLog(path, create=True) as log:
        async with TrioStore(any_url) as store:
            sink = RedisSink("online", RedisSettings(), store, namespace)
            while sent:
                batch = [sent.pop() for _ in range(min(len(sent), random.randrange(1, 20)))]
                await sink.write(batch)
                log.add(batch)
        for view in ("a", "b {x}"):
            for entity in ("e0", "e1", "e2", "e3", "nobody"):
                (found,) = online.get(view, [entity])
                expected = naive(made, view, entity)
                assert (found is None) == (expected is None)
                if found is not None and expected is not None:
                    assert (found.event_time, found.event_id) == (expected.event_time, expected.event_id)
                    assert found.values == expected.values
                    assert {n: bytes(v) for n, v in found.vectors.items()} == {
                        n: v.data for n, v in expected.vectors.items()
                    }
                for moment in (whole + timedelta(seconds=at / 2) for at in range(-1, 6)):
                    assert log.as_of(view, [entity], moment) == [naive(made, view, entity, moment)]
            assert sorted(history_of(eyes, namespace, view)) == sorted(one.event_id for one in made if one.view == view)
        assert len(log) == len(made)


def naive(rows: Sequence[FeatureRow], view: str, entity: str, moment: datetime | None = None) -> FeatureRow | None:
    """Look at all of them."""
    fitting = [
        one for one in rows if (one.view, one.entity) == (view, entity) and (moment is None or one.event_time <= moment)
    ]
    return max(fitting, key=lambda one: (one.event_time, one.event_id), default=None)


async def test_what_is_read(write: Any, online: FeatureReader) -> None:
    """Some features or all, entities in the order asked for, shapes, any name; what a row lacks is missing in it."""
    deep = vector(*range(6), shape=(2, 3))
    await write(
        row("ø {7}", values={"a:b": 0.1, "n": -1e300}, vectors={"deep": deep, "one": vector(1.5), "none": vector()}),
        row("other", values={"n": 2.0}),
    )
    nobody, first, other = online.get("a", ["nobody", "ø {7}", "other"])
    assert nobody is None and first is not None and other is not None
    assert first.values == {"a:b": 0.1, "n": -1e300} and other.values == {"n": 2.0}
    assert first.vectors["deep"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first.vectors["one"].tolist() == [1.5] and first.vectors["none"].tolist() == []
    some, other = online.get("a", ["ø {7}", "other"], ["deep", "a:b"])
    assert some is not None and other is not None
    assert (set(some.values), set(some.vectors)) == ({"a:b"}, {"deep"})
    assert some.vectors["deep"].shape == (2, 3) and some.event_time == first.event_time
    assert (other.values, other.vectors) == ({}, {})
    assert online.get("a", []) == []
    with pytest.raises(TypeError, match="a list of names"):
        online.get("a", "other")


async def test_a_row_is_as_old_as_its_event_time(write: Any, online: FeatureReader) -> None:
    """`max_age` counts from the event time."""
    await write(row("old", -100), row("new", -10))
    assert [one is None for one in online.get("a", ["old", "new"], max_age=50)] == [True, False]


async def test_rows_expire_after_their_event_time(
    write: Any, online: FeatureReader, eyes: Eyes, namespace: str
) -> None:
    """A row lives `ttl` seconds from its event time on: one that was over before it came is history only, and takes no
    place of one that has expired. Without a ttl it stays."""
    await write(row("late", -100, values={"n": 1.0}), ttl_seconds=50)
    await write(row("soon", -40, values={"n": 1.0}), ttl_seconds=50)
    await write(row("ever", -100, "1" * 32), ttl_seconds=0)
    late, soon, ever = online.get("a", ["late", "soon", "ever"])
    assert late is None and soon is not None and ever is not None
    keys = OnlineKeys(namespace, "a")
    assert 0 < eyes.call("PTTL", keys.row("soon")) <= 10_000
    assert eyes.call("PTTL", keys.row("ever")) == -1


async def test_the_history_is_bounded_and_so_is_what_it_is_known_by(
    write: Any, eyes: Eyes, namespace: str, online: FeatureReader
) -> None:
    """The history keeps about as many rows as it is told to, the newest, and marks of no others; 0 keeps none."""
    keys = OnlineKeys(namespace, "a")
    for batch in range(5):
        await write(*(row(str(at), event_id=f"{batch * 100 + at:032x}") for at in range(100)), history=10)
    length = eyes.call("XLEN", keys.history)
    assert 10 <= length < 300
    assert history_of(eyes, namespace, "a")[-1] == f"{499:032x}"
    assert length <= eyes.call("ZCARD", keys.seen) < 400
    await write(row("x", view="none"), history=0)
    assert eyes.call("EXISTS", OnlineKeys(namespace, "none").history) == 0
    assert online.get("none", ["x"]) != [None]


async def test_one_bad_key_costs_its_row_only(write: Any, eyes: Eyes, namespace: str, online: FeatureReader) -> None:
    """A key that somebody else uses is refused by name; the rows beside it are stored."""
    eyes.call("SET", OnlineKeys(namespace, "a").row("bad"), "x")
    with pytest.raises(RowsRefused) as caught:
        await write(row("good"), row("bad"), row("better"))
    assert list(caught.value.refused) == [1] and "not of the feature store" in caught.value.refused[1]
    assert None not in online.get("a", ["good", "better"])


@pytest.mark.parametrize("key", ["history", "seen"])
async def test_a_row_that_is_refused_is_not_stored(
    write: Any, eyes: Eyes, namespace: str, online: FeatureReader, key: str
) -> None:
    """Somebody else's key in the place of the view's history, or of what is known of it: the row that ends in the dead
    letters is neither read nor in the history, and the one that was there before stays."""
    keys = OnlineKeys(namespace, "a")
    await write(row("old", event_id=HEX[1] * 32))
    before = online.get("a", ["old"])
    eyes.call("DEL", getattr(keys, key))
    eyes.call("SET", getattr(keys, key), "x")
    with pytest.raises(RowsRefused) as caught:
        await write(row("new", event_id=HEX[2] * 32), row("old", 5, event_id=HEX[3] * 32))
    assert list(caught.value.refused) == [0, 1]
    assert eyes.call("EXISTS", keys.row("new")) == 0 and online.get("a", ["old"]) == before
    assert key == "history" or history_of(eyes, namespace, "a") == [HEX[1] * 32]
    await write(row("new"), history=0)
    assert online.get("a", ["new"]) != [None]


async def test_a_server_that_has_forgotten_the_script_learns_it(write: Any, eyes: Eyes, online: FeatureReader) -> None:
    """SCRIPT FLUSH costs a second packet, no row."""
    await write(row("one"))
    eyes.call("SCRIPT", "FLUSH")
    await write(row("two"), row("three"))
    assert None not in online.get("a", ["one", "two", "three"])


def test_a_reader_survives_the_end_of_its_server(make_server: Any) -> None:
    """A restart costs no error once the server is there again; while it is away, one line says so."""
    server = make_server()
    with FeatureReader(server.url) as reader:
        assert reader.get("a", ["e"]) == [None]
        server.restart()
        assert reader.get("a", ["e"]) == [None]
        server.kill()
        with pytest.raises(Unavailable, match="nobody listens"):
            reader.get("a", ["e"])


# --- rows --------------------------------------------------------------------------------------------------------------


def test_what_makes_a_row() -> None:
    """Rows as they are; a window gives its scores to the model, or to a segment of it; one that was compared with nothing
    gives none."""
    given = FeaturesComputed(entity="e", feature_set="a", values={"n": 1.0}, occurred_on=NOW)
    assert row_of(given, "1") == FeatureRow(view="a", entity="e", event_time=NOW, event_id="1", values={"n": 1.0})
    end = NOW - timedelta(hours=1)
    window = WindowEvaluated(
        model_name="m",
        window_end=end,
        status="flagged",
        scores={"ks:sharpness": 0.4},
        number=7,
        items=100,
        occurred_on=NOW,
    )
    made = row_of(window, "2")
    assert made is not None and (made.view, made.entity, made.event_time) == ("drift", "m", end)
    assert made.values["ks:sharpness"] == 0.4 and made.values["flagged"] == 1.0 and made.values["window"] == 7.0
    assert "estimated_accuracy" not in made.values
    segment = row_of(WindowEvaluated(model_name="m", segment="eu", estimated_accuracy=0.5), "3")
    assert segment is not None and (segment.entity, segment.values["estimated_accuracy"]) == ("m/eu", 0.5)
    assert row_of(WindowEvaluated(model_name="m", status="warmup"), "4") is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"event_time": NOW + timedelta(seconds=61)}, "61 s ahead of the clock here, and 60 s are allowed"),
        ({"entity": ""}, "no entity"),
        ({"values": {str(at): 0.0 for at in range(MAX_FEATURES + 1)}}, "make a vector"),
        ({"values": {"x": 0.0}, "vectors": {"x": vector(1)}}, "a value and a vector"),
        ({"vectors": {"x": vector(1, 2, shape=(3,))}}, "no float32 of shape"),
    ],
)
def test_what_is_no_row(options: dict[str, Any], why: str) -> None:
    """Each with its reason; the bounds themselves pass."""
    plain = {"view": "a", "entity": "e", "event_time": NOW + timedelta(seconds=60), "event_id": "0"}
    check(FeatureRow(**plain, values={str(at): 0.0 for at in range(MAX_FEATURES)}), NOW, 60)
    with pytest.raises(BadRow, match=why):
        check(FeatureRow(**plain | options), NOW, 60)


async def test_the_largest_row_fits_into_a_script(write: Any, online: FeatureReader) -> None:
    """As many features as a row may have, those with a shape the longest."""
    await write(row(vectors={str(at): vector(1, 2, shape=(1, 2)) for at in range(MAX_FEATURES)}))
    (found,) = online.get("a", ["e"])
    assert found is not None and len(found.vectors) == MAX_FEATURES


# --- the worker --------------------------------------------------------------------------------------------------------


async def test_events_become_rows_in_every_sink(
    any_url: str, namespace: str, online: FeatureReader, eyes: Eyes, configure: Any, tmp_path: Path
) -> None:
    """On the server of its own bus and in a file; what comes again under the same id is known; what is no row goes to the
    dead letters and costs its neighbours nothing."""
    path = tmp_path / "features.db"
    configure(
        '[workers.features.sinks.online]\nkind = "redis"\n'
        f'[workers.features.sinks.log]\nkind = "sqlite"\npath = "{path}"\n'
    )
    again = (
        b'{"type": "features.computed", "id": "%s", "data": {"entity": "e", "feature_set": "a", "values": {"n": 3}}}'
    )
    async with running(any_url, features.worker, namespace=namespace) as bus:
        for _ in range(3):
            eyes.put(again % b"00000000-0000-4000-8000-000000000001", "features.computed")
        await bus.publish(FeaturesComputed(entity="", feature_set="a"))
        await bus.publish(FeaturesComputed(entity="f", feature_set="a", vectors={"v": vector(1, 2)}))
        await bus.publish(WindowEvaluated(model_name="m", scores={"ks:x": 0.25}))
        await until(lambda: eyes.dead("features"))
        await until(lambda: None not in online.get("drift", ["m"]) + online.get("a", ["e", "f"]))
        with OfflineLog(path) as log:
            await until(lambda: len(log) == 3)
    assert len(history_of(eyes, namespace, "a")) == 2
    (drift,) = online.get("drift", ["m"], ["ks:x"])
    assert drift is not None and drift.values == {"ks:x": 0.25}
    (letter,) = eyes.dead("features")
    assert "it has no entity" in letter.error


def test_a_slip_in_the_path_of_a_log_is_no_empty_log(tmp_path: Path) -> None:
    """Who reads a log that is not there is told so, and no file is left behind; who wants a new one says so."""
    path = tmp_path / "nope.db"
    with pytest.raises(FileNotFoundError, match=r"no offline log .*nope\.db: mend the path"):
        OfflineLog(path)
    assert not path.exists()
    with OfflineLog(path, create=True) as log:
        log.add([row(values={"n": 1.0})])
    with OfflineLog(path) as log:
        assert len(log) == 1


def test_readers_say_what_is_wanted(tmp_path: Path) -> None:
    """Lists of names, and times with their zone: told at the call, before anything is asked."""
    naive = datetime(2026, 1, 1)
    reader = FeatureReader("redis://127.0.0.1:1")
    for entities, fields, says in (
        ("e", None, "entities: a list of names is wanted, not 'e'"),
        ([7], None, r"entities: a list of names is wanted, not \[7\]"),
        (["e"], "clip", "fields: a list of names is wanted, not 'clip'"),
        (["e"], [b"clip"], "fields: a list of names is wanted"),
    ):
        with pytest.raises(TypeError, match=says):
            reader.get("v", entities, fields)  # type: ignore[arg-type]
    with OfflineLog(tmp_path / "x.db", create=True) as log:
        with pytest.raises(TypeError, match="entities: a list of names is wanted, not 'e'"):
            log.as_of("v", "e", NOW)
        with pytest.raises(ValueError, match=r"2026-01-01T00:00:00 has no zone: use datetime\.now"):
            log.as_of("v", ["e", "f"], [NOW, naive])
        with pytest.raises(ValueError, match="1 times for 2 entities"):
            log.as_of("v", ["e", "f"], [NOW])


async def test_a_store_that_is_away_costs_no_row_and_no_attempt(configure: Any, virtual: MockClock) -> None:
    """Rows that a sink cannot take come again until it does; the others have theirs meanwhile."""
    configure(
        '[workers.features.sinks.other]\nkind = "redis"\nurl = "memory://features-away"\nnamespace = "x"\n'
        '[workers.features.sinks.online]\nkind = "redis"\n'
    )
    other = memory.named("features-away")
    other.set_connected(False)
    async with TestBus(features.worker) as bus:
        await bus.publish(FeaturesComputed(entity="e", feature_set="a", values={"n": 1.0}))
        await bus.advance(60)
        (here,) = FeatureReader(bus.url).get("a", ["e"])
        assert here is not None and here.values == {"n": 1.0}
        assert all(attempt.number == 1 for attempt in bus.attempts(group="features"))
        other.set_connected(True)
        assert FeatureReader("memory://features-away", "x").get("a", ["e"]) == [None]
        await bus.settle()
        assert not bus.dead_letters()
    assert FeatureReader("memory://features-away", "x").get("a", ["e"]) == [here]


async def test_a_row_that_a_sink_fails_over_ends_in_the_dead_letters(
    virtual: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried for a while, counted, and its neighbours are stored and done."""
    write = RedisSink.write

    async def failing(self: RedisSink, rows: Sequence[FeatureRow]) -> None:
        await write(self, rows)
        if bad := {at: "500" for at, one in enumerate(rows) if one.entity == "bad"}:
            raise RowsRefused({}, bad)

    monkeypatch.setattr(RedisSink, "write", failing)
    async with TestBus(features.worker) as bus:
        await bus.publish_many(FeaturesComputed(entity=name, feature_set="a") for name in ("good", "bad", "better"))
        await bus.settle(horizon=86400, limit=86400)
        (letter,) = bus.dead_letters()
        assert letter.attempts == 12 and "NotStored: 500" in letter.error
        assert len([one for one in bus.attempts() if one.event.entity != "bad"]) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ahead_secnds = 3", "unknown key 'ahead_secnds'; did you mean ahead_seconds"),
        (
            'sinks.x = {kind = "redsi"}',
            r"\]: sinks.x.kind: invalid value 'redsi'; use redis, sqlite, feast; did you mean redis\?",
        ),
        ('sinks.x = {path = "x.db"}', r"\]: sinks.x: object missing required field kind; use redis, sqlite, feast"),
        (
            'sinks.a = {kind = "redis"}\nsinks.x = {kind = "redis", tll_seconds = 3}',
            r"\]: sinks.x: object contains unknown field tll_seconds; did you mean ttl_seconds\?",
        ),
        (
            'sinks.a = {kind = "redis"}\nsinks.log = {kind = "sqlite", path = 3}',
            r"\]: sinks.log.path: expected str, got int",
        ),
        ('sinks.x = {kind = "sqlite"}', r"\]: sinks.x: object missing required field path"),
        (
            'sinks.f = {kind = "feast", url = "http://f", views.a = {push_source = "a"}, views.b = {pushsource = "b"}}',
            r"sinks.f.views.b: object contains unknown field pushsource; did you mean push_source\?",
        ),
        ("ttl_seconds = 3", r"unknown key 'ttl_seconds'; it belongs into \[workers.features.sinks.NAME\]"),
        ('sinks.x = {kind = "redis", url = "http://x"}', r"\[workers.features.sinks.x\]: .*http"),
        ('sinks.x = {kind = "redis", url = "redis://:secret@x"}', "password in it: give it by url_file or url_env"),
        ('sinks.x = {kind = "redis", url_file = "/nowhere"}', "url_file names /nowhere, which cannot be read"),
        ('sinks.x = {kind = "redis", url_file = "a", url_env = "B"}', "url_file and url_env are both set: keep one"),
        ('sinks.x = {kind = "redis", url_env = "NOT_SET"}', "environment variable NOT_SET, which is not set"),
        ('sinks.x = {kind = "sqlite", path = "/nowhere/x.db"}', "/nowhere/x.db cannot be opened"),
        ('sinks.x = {kind = "feast", url = "ftp://x"}', "the url must begin with https://HOST or http://HOST"),
        ('sinks.x = {kind = "feast", url = "https://u:p@x"}', "authorization_file"),
        ('sinks.x = {kind = "feast", url = "http://x", authorization_file = "/nowhere"}', "which cannot be read"),
        ("sinks = {}", "sinks"),
    ],
)
async def test_settings_that_make_no_sense_end_it_before_it_has_begun(
    configure: Any, virtual: MockClock, text: str, why: str
) -> None:
    """One line with the key, whoever of them finds it."""
    configure(f"[workers.features]\n{text}")
    with pytest.raises((ConfigError, LifespanError), match=why):
        async with TestBus(features.worker):
            pass


def test_the_reader_is_light() -> None:
    """A model server that reads features pays for no trio, no numpy and no HTTP."""
    code = (
        "import sys; from canvasbus_workers.features import FeatureReader, OfflineLog; import canvasbus_workers.features.settings\n"
        "try: FeatureReader('redis://127.0.0.1:1').get('a', ['e'])\n"
        "except Exception as error: print(type(error).__name__, {'trio', 'structlog', 'numpy', 'httpx2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Unavailable set()"
