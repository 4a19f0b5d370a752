"""What `publish` gives back, what it refuses, and what then lies on the server."""

import math
import os
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from seeds import seeds
from studio import Eyes, PaintingMade, SculptureMade

from canvasbus import BufferFull, ConfigError, EncodeError, Event, Producer, event
from canvasbus.transport.memory import MemoryServer
from canvasbus.wire.keys import partition_of


@event("painting.measured")
class PaintingMeasured(Event):
    score: float


@pytest.fixture
def bus(any_url: str, namespace: str) -> Any:
    with Producer(any_url, namespace=namespace, source="atelier-1") as bus:
        yield bus


def test_publish_returns_the_id_of_the_stored_event(bus: Producer, eyes: Eyes) -> None:
    """The UUID that publish returns is the id in the stored envelope; type, key, source and event are there too."""
    made = PaintingMade(title="Nocturne", number=7)
    event_id = bus.publish(made)
    assert isinstance(event_id, UUID) and event_id.version == 7
    assert bus.flush(timeout=10) is True
    ((envelope, stored),) = eyes.entries("painting.made")
    assert stored == made
    assert (envelope.id, envelope.type, envelope.key, envelope.source) == (
        event_id,
        "painting.made",
        "Nocturne",
        "atelier-1",
    )


def test_order_is_kept(bus: Producer, eyes: Eyes) -> None:
    """Events of one thread lie in the stream in the order they were published in, across many batches."""
    ids = [bus.publish(PaintingMade(number=n)) for n in range(700)]
    ids += bus.publish_many(PaintingMade(number=n) for n in range(700, 1700))
    ids += [bus.publish(PaintingMade(number=1700))]
    assert bus.flush(timeout=20)
    entries = eyes.entries("painting.made")
    assert [made.number for _, made in entries] == list(range(1701))
    assert [envelope.id for envelope, _ in entries] == ids


def test_types_have_streams_of_their_own(bus: Producer, eyes: Eyes) -> None:
    """Events of several types in one batch each reach the stream of their type, in order, and the list of topics."""
    for n in range(50):
        bus.publish(PaintingMade(number=n))
        bus.publish(SculptureMade(title=str(n)))
    assert bus.flush(timeout=10)
    assert [made.number for made in eyes.events("painting.made")] == list(range(50))
    assert [made.title for made in eyes.events("sculpture.made")] == [str(n) for n in range(50)]
    assert set(eyes.call("SMEMBERS", eyes.keys.topics)) >= {b"painting.made", b"sculpture.made"}


def test_a_key_decides_the_partition(any_url: str, namespace: str) -> None:
    """With several partitions an event lies in the partition of its key, one without key in partition 0, in order."""
    titles = [f"work-{n % 17}" for n in range(300)]
    with Producer(any_url, namespace=namespace, partitions=3) as bus:
        bus.publish_many(PaintingMade(title=title, number=n) for n, title in enumerate(titles))
        bus.publish(SculptureMade(title="unkeyed"))
        assert bus.flush(timeout=10)
        assert bus.statistics().stored == 301
    eyes = Eyes(any_url, namespace)
    from canvasbus.wire.keys import Keys

    for partition in range(3):
        eyes.keys = Keys(namespace, partition)
        expected = [n for n, title in enumerate(titles) if partition_of(title, 3) == partition]
        assert expected and [made.number for made in eyes.events("painting.made")] == expected
        assert eyes.count("sculpture.made") == (1 if partition == 0 else 0)
    eyes.close()


def test_expires_in_reaches_the_envelope(bus: Producer, eyes: Eyes) -> None:
    """`expires_in` seconds become a moment of wall time in the envelope, for publish and for publish_many."""
    before = datetime.now(UTC).timestamp()
    bus.publish(PaintingMade(), expires_in=60)
    bus.publish_many([PaintingMade(), PaintingMade()], expires_in=60)
    bus.publish(PaintingMade())
    assert bus.flush(timeout=10)
    expiries = [envelope.expires_on for envelope, _ in eyes.entries("painting.made")]
    assert expiries[3] is None
    for moment in expiries[:3]:
        assert moment is not None and 59 < moment - before < 70


def test_correlation(bus: Producer, eyes: Eyes) -> None:
    """Events made inside `bus.correlation` carry it, others do not."""
    wanted = uuid4()
    with bus.correlation(wanted):
        bus.publish(PaintingMade(title="in"))
    bus.publish(PaintingMade(title="out"))
    assert bus.flush(timeout=10)
    inside, outside = eyes.events("painting.made")
    assert inside.correlation_id == wanted != outside.correlation_id


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda: PaintingMeasured(score=float("nan")), "score"),
        (lambda: PaintingMeasured(score=float("-inf")), "score"),
        (lambda: PaintingMade(occurred_on=datetime(2026, 1, 1)), "painting.made"),
        (lambda: PaintingMade(number="seven"), "number"),  # type: ignore[arg-type]
        (lambda: PaintingMade(title="x" * 5000), r"over the limit of 4,096 \(max_event_bytes\)"),
        (lambda: "no event at all", "takes an Event"),
    ],
    ids=["nan", "infinity", "naive datetime", "wrong type", "too large", "no event"],
)
def test_a_bad_event_is_refused_at_once(namespace: str, bad: Callable[[], Any], says: str) -> None:
    """What cannot be published raises EncodeError where it is published, and nothing was queued."""
    with Producer(f"memory://{namespace}", namespace=namespace, max_event_bytes=4096) as bus:
        with pytest.raises(EncodeError, match=says):
            bus.publish(bad())
        with pytest.raises(EncodeError, match=says):
            bus.publish_many([bad()])
        assert (bus.statistics().published, bus.statistics().waiting_events) == (0, 0)
        assert bus.flush(timeout=5) is True


@pytest.mark.parametrize("options", [{}, {"partitions": 3}], ids=["in chunks", "one by one"])
@pytest.mark.parametrize("at", [0, 250, 777])
def test_events_that_fail_to_come(any_url: str, namespace: str, at: int, options: Any) -> None:
    """A generator that raises: what it had yielded before is queued, all of it, and what it raised is raised."""

    def paintings() -> Iterator[SculptureMade]:
        for number in range(at):
            yield SculptureMade(title=str(number))
        raise LookupError("the file of sculptures ends")

    told: list[Any] = []
    with Producer(any_url, namespace=namespace, on_delivery=lambda *args: told.append(args), **options) as bus:
        with pytest.raises(LookupError, match="the file of sculptures ends"):
            bus.publish_many(paintings())
        assert bus.flush(timeout=10) and bus.statistics().stored == at == len(told)


def test_publish_many_queues_what_comes_before_the_bad_one(namespace: str) -> None:
    """publish_many raises at the first bad event; those before it go out, those after it do not."""
    with Producer(f"memory://{namespace}", namespace=namespace) as bus:
        events = [PaintingMeasured(score=n) for n in range(300)]
        events[270] = PaintingMeasured(score=float("nan"))
        with pytest.raises(EncodeError):
            bus.publish_many(events)
        assert bus.flush(timeout=5)
        assert [made.score for made in Eyes(f"memory://{namespace}", namespace).events("painting.measured")] == list(
            range(270)
        )


def test_statistics_and_repr_tell_what_happened(memory: MemoryServer, namespace: str, soon: Callable[..., Any]) -> None:
    """Published, stored and waiting add up, also while the server is away; the repr says the same in words."""
    with Producer(memory.name, namespace=namespace, source="atelier-1") as bus:
        assert repr(bus) == f"<Producer {memory.name} 'atelier-1': 0 stored, 0 waiting>"
        bus.publish(PaintingMade())
        assert bus.flush(timeout=5)
        memory.set_connected(False)
        bus.publish_many([PaintingMade(), PaintingMade()])
        now = bus.statistics()
        assert (now.published, now.stored, now.waiting_events) == (3, 1, 2) and 100 < now.waiting_bytes < 1000
        soon(lambda: bus.statistics().last_error)
        memory.set_connected(True)
        assert bus.flush(timeout=5)
        now = bus.statistics()
        assert (now.published, now.stored, now.waiting_events, now.waiting_bytes) == (3, 3, 0, 0)
        assert now.last_error is not None and "switched off" in now.last_error
    assert repr(bus) == f"<Producer {memory.name} 'atelier-1': 3 stored, 0 waiting, closed>"


# --- URLs and options -------------------------------------------------------------------------------------------------


def test_switched_off() -> None:
    """off:// publishes nothing, returns None, counts, flushes True, closes True, and starts no thread."""
    threads = threading.active_count()
    told: list[Any] = []
    with Producer("off://", on_delivery=lambda *args: told.append(args)) as bus:
        assert bus.publish(PaintingMade()) is None
        assert bus.publish_many([PaintingMade()] * 600) == []
        assert bus.flush() is True
        assert (bus.statistics().skipped, bus.statistics().published) == (601, 0)
        assert repr(bus) == "<Producer off:// switched off>"
    assert bus.close() is True and told == [] and threading.active_count() == threads


def test_the_url_comes_from_the_environment(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a URL CANVASBUS_URL counts."""
    monkeypatch.setenv("CANVASBUS_URL", f"memory://{namespace}")
    with Producer() as bus:
        assert bus.name == f"memory://{namespace}"


def test_the_url_comes_from_a_file(namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A URL with a password may lie in a file, as for the programs; both at once is an error."""
    (tmp_path / "bus").write_text(f"memory://{namespace}\n")
    monkeypatch.setenv("CANVASBUS_URL_FILE", str(tmp_path / "bus"))
    with Producer() as bus:
        assert bus.name == f"memory://{namespace}"
    monkeypatch.setenv("CANVASBUS_URL", "memory://other")
    with pytest.raises(ConfigError, match="both set"):
        Producer()


def test_the_namespace_comes_from_the_environment(
    any_url: str, namespace: str, eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the workers and commands beside it take it: also where the URL is given; what is given goes before. What of the
    environment is not needed is not looked at."""
    monkeypatch.setenv("CANVASBUS_URL", any_url)
    monkeypatch.setenv("CANVASBUS_NAMESPACE", namespace)
    for number, url in enumerate((None, any_url)):
        with Producer(url) as bus:
            bus.publish(PaintingMade(number=number))
    assert [made.number for _, made in eyes.entries("painting.made")] == [0, 1]

    monkeypatch.setenv("CANVASBUS_URL_FILE", "/nowhere")
    with Producer(any_url, namespace=f"{namespace}-2") as bus:
        bus.publish(PaintingMade(number=2))
    assert eyes.count("painting.made") == 2


def test_the_partitions_come_from_the_environment(
    any_url: str, namespace: str, eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what cannot be meant is told with where it came from."""
    monkeypatch.setenv("CANVASBUS_PARTITIONS", "3")
    titles = [f"Nocturne {number}" for number in range(30)]
    with Producer(any_url, namespace=namespace) as bus:
        bus.publish_many(PaintingMade(title=title) for title in titles)
    of_the_first = [title for title in titles if partition_of(title, 3) == 0]
    assert [made.title for _, made in eyes.entries("painting.made")] == of_the_first

    monkeypatch.setenv("CANVASBUS_PARTITIONS", "many")
    with pytest.raises(ConfigError, match="partitions='many' from CANVASBUS_PARTITIONS"):
        Producer(any_url)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_without_a_url(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No URL anywhere, or an empty one, is an error that names every way to give one."""
    monkeypatch.delenv("CANVASBUS_URL", raising=False)
    if value is not None:
        monkeypatch.setenv("CANVASBUS_URL", value)
    with pytest.raises(ConfigError) as caught:
        Producer()
    for way in ("Producer('redis://", "CANVASBUS_URL", "off://"):
        assert way in str(caught.value)


async def awaited(event_id: UUID, error: Exception | None) -> None:
    """No callback."""


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("reddis://localhost", {}, "reddis"),
        ("redis://localhost?ssl_ca_cert=x", {}, "ssl_ca_certs"),
        ("localhost:6379", {}, "redis://"),
        ("memory://", {}, "private"),
        ("memory://x", {"namespace": "a{b}"}, "namespace"),
        ("memory://x", {"partitions": 0}, "partitions=0"),
        ("memory://x", {"partitions": "4"}, "partitions='4': a whole number is wanted, not a str"),
        ("memory://x", {"partitions": 2.5}, "partitions=2.5: a whole number is wanted, not a float"),
        ("memory://x", {"buffer_bytes": "64MiB"}, "buffer_bytes='64MiB': a number is wanted, not a str"),
        ("memory://x", {"flush_timeout": None}, "flush_timeout=None: a number is wanted"),
        ("memory://x", {"spool": 3}, "spool=3: the path of a folder is wanted, not a int"),
        ("memory://x", {"when_full": "drop"}, "'drop_oldest', 'block' or 'raise'"),
        ("memory://x", {"buffer_bytes": 0}, "buffer_bytes=0"),
        ("memory://x", {"max_event_bytes": 0}, "max_event_bytes=0"),
        ("memory://x", {"max_block": -1}, "max_block=-1"),
        ("memory://x", {"flush_timeout": -1}, "flush_timeout=-1"),
        ("memory://x", {"flush_timeout": math.nan}, "flush_timeout=nan: a number is wanted"),
        ("memory://x", {"source": None}, "source=None: a text is wanted"),
        ("memory://x", {"source": "atelier-\udcff"}, "it has a lone surrogate"),
        ("memory://x", {"source": "a" * 1001}, "is 1,001 characters: every event carries it, use at most 1,000"),
        ("memory://x", {"partitions": 4097}, "partitions=4097: a namespace has 1 to 4096"),
        ("memory://x", {"on_delivery": 5}, "on_delivery=5: a function is wanted"),
        ("memory://x", {"on_delivery": awaited}, "a plain function is wanted, nobody would await it"),
        ("memory://x", {"namespace": 5}, "namespace 5"),
        (5, {}, "the bus URL must be a text, not a int"),
        ("redis://redis..svc", {}, "names no host"),
    ],
)
def test_what_cannot_work_is_a_config_error(url: Any, options: dict[str, Any], says: str) -> None:
    """A URL or an option that cannot work raises ConfigError where the Producer is made, and says what is wrong."""
    with pytest.raises(ConfigError) as caught:
        Producer(url, **options)
    assert says in str(caught.value)


@pytest.mark.parametrize("url", ["memory://calls", "off://"])
def test_calls_with_the_wrong_type_say_what_is_wanted(url: str) -> None:
    """At the call, also while the bus is switched off; the Producer goes on afterwards."""
    bus = Producer(url)
    for call in (bus.flush, bus.close):
        with pytest.raises(TypeError, match="timeout='5': a number is wanted, not a str"):
            call("5")  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"correlation\('not-a-uuid'\): a uuid\.UUID is wanted"):
        bus.correlation("not-a-uuid")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="on_delivery=5: a function is wanted"):
        bus.publish(PaintingMade(), on_delivery=5)  # type: ignore[arg-type]
    bus.publish(PaintingMade())
    assert bus.close() is True and bus.statistics().published + bus.statistics().skipped == 1


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "memory"])
def test_whoever_waits_for_ever(memory: MemoryServer, namespace: str, tmp_path: Path, spool: bool) -> None:
    """math.inf is a time for flush, close and the end of the program, and for a full buffer."""
    options: dict[str, Any] = {"spool": tmp_path, "spool_bytes": 3000} if spool else {"buffer_bytes": 1000}
    options |= {"flush_timeout": math.inf, "when_full": "block", "max_block": math.inf}
    memory.set_connected(False)
    with Producer(memory.name, namespace=namespace, **options) as bus:
        back = threading.Timer(0.1, memory.set_connected, [True])
        back.start()
        for number in range(100):
            bus.publish(PaintingMade(number=number))
        assert bus.flush(math.inf) is True
        memory.set_connected(False)
        back = threading.Timer(0.1, memory.set_connected, [True])
        bus.publish(PaintingMade())
        back.start()
    assert bus.statistics().stored == 101


def test_the_password_is_nowhere(soon: Callable[..., Any]) -> None:
    """Neither name, repr nor last_error show the password of the URL."""
    bus = Producer("redis://ada:s3cret@127.0.0.1:1")
    bus.publish(PaintingMade())
    soon(lambda: bus.statistics().last_error)
    assert bus.close(timeout=0) is False
    assert "s3cret" not in f"{bus!r}{bus.name}{bus.statistics()}" and "ada" in bus.name


# --- many threads, and life -------------------------------------------------------------------------------------------


def test_many_threads(bus: Producer, eyes: Eyes) -> None:
    """Eight threads publish at once: everything arrives once, and each thread's own order is kept."""
    per_thread = 400
    ids: dict[int, list[Any]] = {}

    def publish(painter: int) -> None:
        ids[painter] = [bus.publish(PaintingMade(title=f"p{painter}", number=n)) for n in range(per_thread)]

    threads = [threading.Thread(target=publish, args=(painter,)) for painter in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bus.flush(timeout=20)
    entries = eyes.entries("painting.made")
    for painter in range(8):
        assert [e.id for e, made in entries if made.title == f"p{painter}"] == ids[painter]
    assert len(entries) == 8 * per_thread == len({envelope.id for envelope, _ in entries})


def test_leaving_the_block_flushes_and_ends_the_thread(any_url: str, namespace: str) -> None:
    """After the `with` block everything is on the server and the sender's thread is gone."""
    before = set(threading.enumerate())
    with Producer(any_url, namespace=namespace) as bus:
        bus.publish_many([PaintingMade()] * 1200)
    assert bus.statistics().stored == 1200
    assert [thread.name for thread in set(threading.enumerate()) - before] == []


def test_an_exception_in_the_block_flushes_too(namespace: str) -> None:
    """An exception leaves the `with` block unchanged, and what was published before it is stored."""
    bus = Producer(f"memory://{namespace}", namespace=namespace)
    with pytest.raises(ZeroDivisionError), bus:
        bus.publish(PaintingMade())
        raise ZeroDivisionError
    assert bus.statistics().stored == 1


def test_publish_after_close(namespace: str) -> None:
    """Publishing on a closed Producer raises BufferFull and says that it is closed; nothing is counted."""
    bus = Producer(f"memory://{namespace}", namespace=namespace)
    bus.publish(PaintingMade())
    assert bus.close() is True
    with pytest.raises(BufferFull, match="closed"):
        bus.publish(PaintingMade())
    with pytest.raises(BufferFull, match="closed"):
        bus.publish_many([PaintingMade()])
    assert bus.statistics().published == 1


@pytest.mark.parametrize("reachable", [True, False])
def test_closing_twice(memory: MemoryServer, namespace: str, reachable: bool) -> None:
    """Closing again does nothing and returns what the first close returned, with and without a server."""
    bus = Producer(memory.name, namespace=namespace)
    memory.set_connected(reachable)
    bus.publish(PaintingMade())
    for _ in range(3):
        assert bus.close(timeout=5 if reachable else 0.01) is reachable
    now = bus.statistics()
    assert (now.stored, now.dropped, now.waiting_events) == ((1, 0, 0) if reachable else (0, 1, 0))


def test_closing_without_having_published() -> None:
    """A Producer that never published closes at once, also when its server has never been there."""
    assert Producer("redis://127.0.0.1:1").close() is True


@pytest.mark.parametrize("seed", seeds(1, "times"))
def test_times_pass_unchanged(bus: Producer, eyes: Eyes, seed: int) -> None:
    """occurred_on comes back to the microsecond, whatever its time zone."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    moments = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=rng.randrange(10**13)) for _ in range(50)]
    bus.publish_many(PaintingMade(occurred_on=moment) for moment in moments)
    assert bus.flush(timeout=10)
    assert [made.occurred_on for made in eyes.events("painting.made")] == moments


def test_the_environment_is_not_read_when_a_url_is_given(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL in the code wins over CANVASBUS_URL, even over one that is nonsense."""
    monkeypatch.setitem(os.environ, "CANVASBUS_URL", "nonsense")
    Producer(f"memory://{namespace}").close()
