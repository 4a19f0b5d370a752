"""canvasbus tail: what is there and what comes, filtered, for people and for programs."""

import io
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from cli.commands import Run
from seeds import seeds
from servers import ServerProcess
from studio import Eyes, PaintingMade, SculptureMade

from canvasbus.cli import tail
from canvasbus.cli.output import Output
from canvasbus.cli.tail import condition, show
from canvasbus.cli.times import start_of
from canvasbus.errors import ConfigError
from canvasbus.operate.entry import Entry, view
from canvasbus.operate.given import from_json
from canvasbus.transport.blocking import BlockingLink
from canvasbus.wire.cloudevents import to_structured
from canvasbus.wire.codec import Codec

SECOND = 1_700_000_000


@pytest.fixture
def filled(eyes: Eyes) -> Iterator[Eyes]:
    """Five events of two types, a second apart."""
    codec = Codec("lab")
    for at in range(5):
        made = PaintingMade(title=f"t{at}", number=at) if at % 2 == 0 else SculptureMade(title=f"t{at}")
        out = codec.encode(made)
        eyes.call("XADD", eyes.stream(out.type), f"{(SECOND + at) * 1000}-0", "e", out.data)
    yield eyes


def titles(run: Run, *argv: str) -> list[str]:
    ran = run("tail", "--json", *argv)
    assert ran.code == 0, ran
    return [record["data"]["title"] for record in ran.records]


def test_everything_from_the_beginning(run: Run, filled: Eyes) -> None:
    """--from 0 shows all, in order of time over all topics, and ends."""
    assert titles(run, "--from", "0") == ["t0", "t1", "t2", "t3", "t4"]


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (("--type", "painting.*"), "024"),
        (("--type", "*.made"), "01234"),
        (("--type", "sculpture.made", "--type", "painting.made"), "01234"),
        (("--type", "sculpture"), ""),
        (("-n", "2"), "01"),
        (("--where", "title=t3"), "3"),
        (("--where", "number=2"), "2"),
        (("--where", "number=2.0"), "2"),
        (("--where", "number=2", "--where", "title=t3"), ""),
        (("--where", "type=sculpture.made"), "13"),
        (("--where", "subject=t4"), "4"),
        (("--where", "source=lab", "-n", "1"), "0"),
        (("--where", "title=T3"), ""),
    ],
)
def test_filters(run: Run, filled: Eyes, argv: tuple[str, ...], shown: str) -> None:
    """Type globs are joined by or, conditions by and; fields of the data first, then attributes of the event."""
    assert titles(run, "--from", "0", *argv) == [f"t{digit}" for digit in shown]


@pytest.mark.parametrize(
    "start",
    [
        f"{(SECOND + 3) * 1000}-0",
        f"{(SECOND + 3) * 1000}",
        f"{(SECOND + 2) * 1000}-1",
        "2023-11-14T22:13:23Z",
        "2023-11-14T23:13:23.000+01:00",
        "2023-11-14T22:13:22.001Z",
    ],
)
def test_from_an_entry_or_a_moment(run: Run, filled: Eyes, start: str) -> None:
    """Inclusive; an id, its milliseconds, or a time with its zone."""
    assert titles(run, "--from", start) == ["t3", "t4"]


def test_the_last_ones(run: Run, filled: Eyes) -> None:
    """-n alone shows the last N, oldest first, conditions applied before counting."""
    assert titles(run, "-n", "2") == ["t3", "t4"]
    assert titles(run, "-n", "2", "--type", "painting.*") == ["t2", "t4"]
    assert titles(run, "-n", "1", "--where", "number=0") == ["t0"]
    assert titles(run, "-n", "50") == ["t0", "t1", "t2", "t3", "t4"]


def test_json_is_valid_cloudevents(run: Run, filled: Eyes) -> None:
    """Required attributes, names in lower case and digits, RFC 3339 time; and publish takes it back."""
    for record in run("tail", "--json", "--from", "0").records:
        assert record["specversion"] == "1.0"
        assert all(record[name] and isinstance(record[name], str) for name in ("id", "source", "type"))
        assert all(name.isascii() and name.isalnum() and name.islower() for name in record), record
        assert datetime.fromisoformat(record["time"]).tzinfo is not None
        made, around = from_json(json.dumps(record))
        assert str(around.event_id) == record["id"] and made.correlation_id.hex == record["correlationid"].replace(
            "-", ""
        )


def test_people_see_one_line_an_event(run: Run, filled: Eyes) -> None:
    """Time, type, key and the fields that say something; empty ones and the key twice only make it long."""
    ran = run("tail", "--from", "0", "-n", "2")
    first, second = ran.lines
    assert first.startswith("2023-11-14T22:13:20.000Z  painting.made  t0  number=0  ~")
    assert second.startswith("2023-11-14T22:13:21.000Z  sculpture.made  title=t1  ~")


def test_following_goes_on_with_what_comes(run: Run, filled: Eyes) -> None:
    """--from with --follow: what is there, then new events and new topics as they come, until -n are seen."""

    def publish_when_tail_waits() -> None:
        link = BlockingLink(filled.server)
        deadline = time.monotonic() + 20
        while b"cmd=xread" not in link.call("CLIENT", "LIST") and time.monotonic() < deadline:
            pass
        for title in ("new", "newer"):
            link.call("XADD", filled.stream(), "*", "e", Codec().encode(PaintingMade(title=title)).data)
        link.close()

    thread = threading.Thread(target=publish_when_tail_waits)
    thread.start()
    shown = titles(run, "--from", "0", "--follow", "-n", "7")
    thread.join()
    assert shown == ["t0", "t1", "t2", "t3", "t4", "new", "newer"]


def test_following_survives_the_server(
    run_bare: Run, make_server: Callable[..., ServerProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that goes away and comes back costs two notes, and nothing that was published afterwards."""
    server = make_server(persistent=True)
    eyes = Eyes(server.url, "canvasbus")
    eyes.put(Codec().encode(PaintingMade(title="before")).data)

    def crash_while_tail_waits() -> None:
        link = BlockingLink(eyes.server)
        deadline = time.monotonic() + 20
        while b"cmd=xread" not in link.call("CLIENT", "LIST") and time.monotonic() < deadline:
            pass
        link.close()
        server.kill()
        server.start()
        link.call("XADD", eyes.stream(), "*", "e", Codec().encode(PaintingMade(title="after")).data)
        link.close()

    thread = threading.Thread(target=crash_while_tail_waits)
    thread.start()
    ran = run_bare("tail", "--json", "--from", "0", "--follow", "-n", "2", "--url", server.url)
    thread.join()
    eyes.close()
    assert ran.code == 0
    assert [record["data"]["title"] for record in ran.records] == ["before", "after"]
    away, back = ran.err.splitlines()
    assert away.endswith("; waiting for it") and back == "canvasbus: the server is back"


def test_strange_entries_are_shown_and_end_nothing(run: Run, filled: Eyes) -> None:
    """Foreign fields, damaged bytes, unknown types: each a line with its reason, control characters harmless."""
    late = (SECOND + 10) * 1000
    filled.call("XADD", filled.stream(), f"{late}-0", "field", "\x1b[31mred")
    filled.call("XADD", filled.stream(), f"{late}-1", "e", b"\xff\x00")
    filled.call("XADD", filled.stream("zzz.zzz"), f"{late}-2", "e", '{"type":"zzz.zzz","data":{"a":"\x7f\u202e"}}')
    ran = run("tail", "--from", f"{late}")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.isascii() or "\x1b" not in ran.out
    foreign, damaged, unknown = ran.lines
    assert "foreign: " in foreign and "\\x1b[31mred" in foreign
    assert "undecodable: " in damaged
    assert "(type not imported)" in unknown and "a=\\x7f\\u202e" in unknown
    records = run("tail", "--from", f"{late}", "--json").records
    assert [record["reason"] for record in records] == ["foreign", "undecodable", "unknown_type"]
    assert all("\u202e" not in line and "\x7f" not in line for line in run("tail", "--from", "0", "--json").lines)


def test_any_bytes_are_one_line() -> None:
    """Damaged entries of both formats, of known and unknown types: one printable line for people, one JSON object else."""
    (seed,) = seeds(1, "tail")
    print(f"seed {seed}")
    draw = random.Random(seed)
    codec = Codec("lab")
    binary = codec.encode(PaintingMade(title="Dusk", number=3)).data
    text = msgspec.json.encode(to_structured(*codec.decode(binary, stream_type="painting.made", entry_id="1-0")))
    for _ in range(3000):
        value = bytearray(draw.choice((binary, text)))
        for _ in range(draw.randrange(5)):
            at = draw.randrange(len(value))
            value[at : at + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 3))
        topic = draw.choice(("painting.made", "zzz"))
        if topic == "zzz":
            value = value.replace(b"\xadpainting.made", b"\xa3zzz").replace(b"painting.made", b"zzz")
        entry = Entry(topic, 0, draw.choice(("5-0", f"{SECOND * 1000}-0", f"{2**64 - 1}-0")), (b"e", bytes(value)))
        for as_json in (True, False):
            stream = io.StringIO()
            show(Output(json=as_json, stdout=stream), entry, view(entry, codec))
            line = stream.getvalue().removesuffix("\n")
            assert line and "\n" not in line, value
            assert json.loads(line)["specversion"] == "1.0" if as_json else line.isprintable(), value


def test_a_topic_that_is_no_stream_is_noted(run: Run, filled: Eyes) -> None:
    """One line on stderr, and an exit code, since what is printed is not all; the others are shown."""
    filled.call("SET", filled.stream("bad.bad"), "text")
    ran = run("tail", "--from", "0", "--json")
    assert (len(ran.records), ran.code) == (5, 1)
    assert "topic bad.bad cannot be read" in ran.err and ran.err.count("\n") == 1


def test_asking_for_a_topic_that_is_no_stream_suggests_nothing(run: Run, filled: Eyes) -> None:
    """The one line says what is wrong with it; that nothing matches, or means the same name, is not said."""
    filled.call("SET", filled.stream("bad.bad"), "text")
    ran = run("tail", "--from", "0", "--type", "bad.bad")
    assert "topic bad.bad cannot be read" in ran.err and ran.err.count("\n") == 1


def test_nothing_there_is_said(run: Run, filled: Eyes, namespace: str) -> None:
    """No topics at all, and none that match: a note, exit code 0."""
    ran = run("tail", "--from", "0", "--type", "zzz.*")
    assert (ran.code, ran.out, ran.err) == (0, "", "canvasbus: no topic matches zzz.*\n")
    assert "did you mean painting.made" in run("tail", "--from", "0", "--type", "paintng.made").err
    filled.call("DEL", filled.stream(), filled.stream("sculpture.made"))
    ran = run("tail", "--from", "0")
    assert (ran.code, ran.out) == (0, "") and f"no topics in namespace '{namespace}'" in ran.err


def test_a_topic_that_is_not_there_yet_is_told_before_it_is_waited_for(
    run: Run, filled: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip in a name says at once what it may have meant, by the topics and by the declared types; a type that is
    declared and was never published is waited for without a guess."""
    monkeypatch.setattr(tail, "_follow", lambda *_: None)
    for name, says in (
        ("paintng.made", "no topic matches paintng.made yet; did you mean painting.made? (waiting for it)"),
        ("drift.detectd", "no topic matches drift.detectd yet; did you mean drift.detected? (waiting for it)"),
        ("drift.detected", "no topic matches drift.detected yet (waiting for it)"),
    ):
        for more in ((), ("--type", "sculpture.made")):
            ran = run("tail", "--type", name, *more)
            assert (ran.code, ran.out, ran.err) == (0, "", f"canvasbus: {says}\n")
    assert run("tail", "--type", "sculpture.*").err == ""
    filled.call("DEL", filled.stream(), filled.stream("sculpture.made"))
    assert "yet: waiting for the first" in run("tail").err


def test_a_misspelt_field_is_hinted_at(run: Run, filled: Eyes) -> None:
    """A condition on a field that no known type has is a note, not silence."""
    assert "did you mean title?" in run("tail", "--from", "0", "--type", "painting.*", "--where", "titel=x").err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--from", "yesterday"), "give 0, an entry id"),
        (("--from", "2026-01-01"), "a time needs its zone"),
        (("--from", "2026-01-01T00:00:00"), "2026-01-01T00:00:00Z"),
        (("--from", "1-2-3"), "give 0"),
        (("--from", "-1"), "give 0"),
        (("--from", "18446744073709551616"), "below 2^64"),
        (("--from", "1-" + "9" * 5000), "below 2^64"),
        (("--from", "0", "-n", "0"), "at least 1"),
        (("-n", "x"), "use a number"),
        (("--where", "title", "-n", "1"), "write field=value"),
        (("--where", "=x", "-n", "1"), "write field=value"),
        (("--tpye", "x"), "did you mean --type?"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, argv: tuple[str, ...], says: str) -> None:
    """Exit code 2, and what to write instead."""
    run("tail", *argv).failed(2, says)


def test_how_long_ago() -> None:
    """10m and the like count back from now; longer than the world is old is the beginning."""
    now = datetime.now(UTC).timestamp()
    for text, seconds in (("30s", 30), ("10m", 600), ("1.5h", 5400), ("2d", 172_800)):
        assert abs(int(start_of(text)) / 1000 - (now - seconds)) < 5
    assert start_of("9" * 400 + "d") == start_of("99999d") == "0"
    with pytest.raises(ConfigError):
        start_of("٣")


@pytest.mark.parametrize(
    ("pair", "event", "holds"),
    [
        ("a=1", {"data": {"a": 1}}, True),
        ("a=1", {"data": {"a": "1"}}, True),
        ("a=1", {"data": {"a": True}}, False),
        ("a=true", {"data": {"a": True}}, True),
        ("a=null", {"data": {"a": None}}, True),
        ("a=x", {"data": {"a": ["y", "x"]}}, True),
        ("a.b=x", {"data": {"a": {"b": "x"}}}, True),
        ("a.b=x", {"data": {"a": "x"}}, False),
        ("a=b=c", {"data": {"a": "b=c"}}, True),
        ("a=", {"data": {"a": ""}}, True),
        ("type=t", {"type": "t", "data": {}}, True),
        ("type=t", {"type": "x", "data": {"type": "t"}}, True),
        ("a=x", {"data_base64": "eA=="}, False),
    ],
)
def test_a_condition_compares_as_people_write(pair: str, event: dict[str, object], holds: bool) -> None:
    """Numbers by value, true/false/null as JSON spells them, lists by membership, nested fields by path."""
    assert condition([pair])(event) is holds


def test_modules_make_types_known(run: Run, eyes: Eyes, empty_folder: Path) -> None:
    """An event of a type that --module declares is no stranger."""
    (empty_folder / "cli_studio.py").write_text(
        "from canvasbus import Event, event\n@event('cli_studio.seen')\nclass Seen(Event):\n    what: str\n"
    )
    eyes.call("XADD", eyes.stream("cli_studio.seen"), "5-0", "e", '{"type":"cli_studio.seen","data":{"what":"x"}}')
    assert "(type not imported)" in run("tail", "--from", "0").out
    assert "(type not imported)" not in run("tail", "--from", "0", "--module", "cli_studio").out
