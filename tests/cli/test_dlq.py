"""canvasbus dlq: what groups gave up, and why."""

import signal
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from cli.commands import Run, unread
from faulty import Fault, FaultyServer
from studio import Eyes, PaintingMade

from canvasbus.wire import deadletter
from canvasbus.wire.codec import Codec
from canvasbus.wire.deadletter import DeadLetterRecord

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no\x1b[2J\n'


@pytest.fixture
def event_id(eyes: Eyes) -> str:
    """Dead letters of two groups: one event that both gave up, one that could not be read. Its id."""
    made = Codec("lab").encode(PaintingMade(title="Dusk", number=3))

    def letter(group: str, ident: str, **more: Any) -> None:
        facts: dict[str, Any] = {
            "group": group,
            "event_type": "painting.made",
            "entry_id": "1-0",
            "event_id": str(made.id),
            "handler": "studio.on_painting",
            "reason": "exhausted",
            "error": "ValueError: no\x1b[2J",
            "traceback": TRACEBACK,
            "attempts": 3,
            "first_failure": datetime(2026, 1, 1, tzinfo=UTC),
            "last_failure": datetime(2026, 1, 1, 0, 0, 9, tzinfo=UTC),
            "consumer": "w-1",
            "fields": (b"e", made.data),
        }
        eyes.call("XADD", eyes.keys.dead(group), ident, "e", deadletter.encode(DeadLetterRecord(**(facts | more))))

    letter("framer", "10-0")
    letter("archive", "11-0", reason="rejected")
    more: dict[str, Any] = {"event_id": None, "handler": "", "attempts": 0, "traceback": "", "fields": (b"e", b"\xff")}
    letter("framer", "12-0", reason="undecodable", error="not an envelope", event_type="sculpture.made", **more)
    return str(made.id)


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ((), ["10-0", "11-0", "12-0"]),
        (("--group", "framer"), ["10-0", "12-0"]),
        (("--type", "sculpture.*"), ["12-0"]),
        (("--reason", "rejected"), ["11-0"]),
        (("-n", "1"), ["12-0"]),
        (("--since", "11-0"), ["11-0", "12-0"]),
        (("--until", "12-0", "-n", "1"), ["11-0"]),
        (("--group", "archive", "--type", "sculpture.*"), []),
    ],
)
def test_listing_and_filters(run: Run, event_id: str, argv: tuple[str, ...], shown: list[str]) -> None:
    """The newest last, for people and for programs alike."""
    ran = run("dlq", "list", *argv)
    assert ran.code == 0
    assert [line.split()[0] for line in ran.lines[1:]] == shown
    assert [record["id"] for record in run("dlq", "list", "--json", *argv).records] == shown


def test_the_list_says_why(run: Run, event_id: str) -> None:
    """Group, type, reason, tries and the error on one line, harmless for the terminal; older ones are hinted at."""
    heading, first, *_ = run("dlq", "list").lines
    assert heading.split() == ["ID", "GIVEN", "UP", "GROUP", "TYPE", "REASON", "TRIES", "ERROR"]
    assert "framer" in first and "painting.made" in first and "exhausted" in first
    assert first.endswith("3  ValueError: no\\x1b[2J")
    assert "there are older ones: -n 10" in run("dlq", "list", "-n", "1").err
    assert "older" not in run("dlq", "list", "-n", "3").err


def test_records_have_every_fact(run: Run, event_id: str) -> None:
    """What the group wrote, as JSON."""
    first, _, last = run("dlq", "list", "--json").records
    assert (first["event_id"], first["handler"], first["attempts"]) == (event_id, "studio.on_painting", 3)
    assert (first["first_failure"], first["last_failure"]) == ("2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z")
    assert (last["event_id"], last["reason"], last["consumer"], last["partition"]) == (None, "undecodable", "w-1", 0)


def test_one_letter_is_shown_whole(run: Run, event_id: str) -> None:
    """Facts, traceback with its line ends, and the event as CloudEvents; escape sequences are text."""
    ran = run("dlq", "show", "10-0")
    assert ran.code == 0 and "\x1b" not in ran.out
    for part in (
        "10-0 of group framer",
        event_id,
        "exhausted, after 3 tries",
        "studio.on_painting",
        "2026-01-01T00:00:09.000Z last, 2026-01-01T00:00:00.000Z first under this worker",
        '  File "x.py", line 1\nValueError: no\\x1b[2J\n',
        '"title": "Dusk"',
    ):
        assert part in ran.out, part
    (record,) = run("dlq", "show", "10-0", "--json").records
    assert record["traceback"] == TRACEBACK and record["event"]["data"] == {"title": "Dusk", "number": 3}


def test_an_event_that_only_this_command_does_not_know(run: Run, eyes: Eyes, event_id: str) -> None:
    """Its handler failed, that is the reason; that its class is not imported here is told as this command's affair."""
    (row,) = eyes.call("XRANGE", eyes.keys.dead("framer"), "10-0", "10-0")
    record = deadletter.decode(row[1][1])
    strange = msgspec.structs.replace(
        record, event_type="never.declare", fields=(b"e", record.fields[1].replace(b"painting.made", b"never.declare"))
    )
    eyes.call("XADD", eyes.keys.dead("framer"), "14-0", "e", deadletter.encode(strange))
    (shown,) = run("dlq", "show", "14-0", "--json").records
    assert shown["reason"] == "exhausted" and not {"reason", "problem"} & set(shown["event"])
    assert "--module" in shown["event"]["this_command_cannot_read_it"]
    assert "unknown_type" in shown["event"]["this_command_cannot_read_it"]


def test_an_unreadable_event_is_shown_as_bytes(run: Run, event_id: str) -> None:
    """What never reached a handler says so, and its bytes are there."""
    ran = run("dlq", "show", "12-0")
    assert "it never reached one" in ran.out and "without a readable id" in ran.out
    assert '"data_base64": "/w=="' in ran.out


def test_an_event_that_several_gave_up_needs_the_group(run: Run, event_id: str) -> None:
    """By the event's id: the groups are named, --group decides."""
    run("dlq", "show", event_id).failed(2, "archive, framer", "--group")
    ran = run("dlq", "show", event_id, "--group", "archive")
    assert ran.code == 0 and "rejected" in ran.out


def test_no_such_letter(run: Run, event_id: str) -> None:
    """Exit code 1; the error says where to look."""
    run("dlq", "show", "99-0").failed(1, "no dead letter 99-0", "canvasbus dlq list")
    run("dlq", "show", "10-0", "--group", "archive").failed(1, "of group archive")
    for doing in ("redrive", "purge"):
        run("dlq", doing, "99-0", "--yes").failed(1, "no dead letter 99-0", "canvasbus dlq list")
    run("dlq", "list", "-n", "0").failed(2, "at least 1")
    run("dlq", "show").failed(2, "ID")


def test_strangers_among_the_letters(run: Run, eyes: Eyes, event_id: str) -> None:
    """Entries that the bus did not write are listed and shown as foreign."""
    eyes.call("XADD", eyes.keys.dead("framer"), "13-0", "a", "b")
    assert "foreign" in run("dlq", "list").lines[-1]
    assert "not written by the bus" in run("dlq", "show", "13-0").out
    assert run("dlq", "show", "13-0", "--json").records[0]["reason"] == "foreign"


def test_no_letters_is_good_news(run: Run) -> None:
    """A note, exit code 0."""
    ran = run("dlq", "list")
    assert (ran.code, ran.out) == (0, "") and "no dead letters in" in ran.err
    assert "no dead letters match in" in run("dlq", "list", "--type", "x").err


def test_a_mistyped_group(run: Run, eyes: Eyes, event_id: str) -> None:
    """A group that is not there has no good news: exit code 1, and the one that may have been meant. Of a group that is there
    it is good news that nothing matches."""
    eyes.call("HSET", eyes.keys.groups, "framer", "{}")
    for verb in ("list", "redrive", "purge"):
        run("dlq", verb, "--group", "framr").failed(1, "no group 'framr'", "did you mean framer?")
        assert run("dlq", verb, "--group", "framer", "--reason", "rejected").code == 0


def test_redriving_by_hand(run: Run, event_id: str, eyes: Eyes) -> None:
    """A dry run shows and changes nothing; nobody is asked without a terminal; then the letters are in the retry stream
    of their group, and a filter that matches nothing is no error."""
    ran = run("dlq", "redrive", "--group", "framer", "--dry-run")
    assert ran.code == 0 and "2 dead letters would go back" in ran.err and "10-0" in ran.out
    run("dlq", "redrive", "--group", "framer", "--json").failed(2, "add --yes")
    assert eyes.call("XLEN", eyes.keys.dead("framer")) == 2
    ran = run("dlq", "redrive", "--group", "framer", "--type", "painting.*", "--yes", "--json", "--rate", "1000")
    assert (ran.code, ran.records) == (0, [{"redriven": 1, "gone": 0, "foreign": 0}])
    assert eyes.call("XLEN", eyes.keys.retry("framer", "painting.made")) == 1
    assert eyes.call("XLEN", eyes.keys.dead("framer")) == 1 and eyes.call("XLEN", eyes.keys.dead("archive")) == 1
    ran = run("dlq", "redrive", "--group", "framer", "--type", "painting.*", "--yes")
    assert ran.code == 0 and "no dead letters match" in ran.err


def test_an_event_that_two_gave_up_needs_a_group(run: Run, event_id: str, eyes: Eyes) -> None:
    """Nothing is redriven by mistake."""
    run("dlq", "redrive", "--id", event_id, "--yes").failed(2, "archive, framer", "--group")
    run("dlq", "redrive", "--rate", "0", "--yes").failed(2, "--rate 0")
    run("dlq", "purge", "-n", "0", "--yes").failed(2, "argument -n")
    assert run("dlq", "redrive", "--id", event_id, "--group", "archive", "--yes").code == 0
    assert eyes.call("XLEN", eyes.keys.dead("archive")) == 0 and eyes.call("XLEN", eyes.keys.dead("framer")) == 2


def test_one_letter_is_named_as_show_names_it(run: Run, event_id: str, eyes: Eyes) -> None:
    """The bare id, before the options or after them, or --id; two names at a time are refused."""
    run("dlq", "redrive", event_id, "--yes").failed(2, f"{event_id} was given up by archive, framer", "--group")
    run("dlq", "purge", "10-0", "--id", "12-0", "--yes").failed(2, "10-0 and --id 12-0: name one letter")
    for argv in (("10-0", "--group", "framer"), ("--group", "framer", "10-0"), ("--id", "10-0")):
        ran = run("dlq", "redrive", *argv, "--dry-run")
        assert ran.code == 0 and "1 dead letter would go back to work" in ran.err and "10-0" in ran.out, argv
    assert run("dlq", "redrive", "10-0", "--yes", "--json").records == [{"redriven": 1, "gone": 0, "foreign": 0}]
    assert run("dlq", "purge", "12-0", "--yes", "--json").records == [{"purged": 1, "gone": 0, "foreign": 0}]


def test_purging_by_hand(run: Run, event_id: str, eyes: Eyes) -> None:
    """By age and number; foreign entries too."""
    eyes.call("XADD", eyes.keys.dead("framer"), "*", "hello", "there")
    ran = run("dlq", "purge", "--until", "2020-01-01T00:00:00Z", "-n", "2", "--yes", "--json")
    assert ran.records == [{"purged": 2, "gone": 0, "foreign": 0}]
    assert run("dlq", "list", "--json").records[0]["id"] == "12-0"
    assert run("dlq", "purge", "--yes").code == 0
    assert run("dlq", "list", "--json").records == []


def test_ctrl_c_amid_a_redrive(server_url: str, namespace: str, eyes: Eyes, run: Run, event_id: str) -> None:
    """Some are back at work and the others are where they were; how many is told in a line, and the same command again
    moves the rest: each is put back once."""
    (row,) = eyes.call("XRANGE", eyes.keys.dead("framer"), "10-0", "10-0")
    for number in range(60):
        eyes.call("XADD", eyes.keys.dead("framer"), f"{20 + number}-0", *row[1])
    argv = [
        "dlq",
        "redrive",
        "--group",
        "framer",
        "--rate",
        "50",
        "--yes",
        "--url",
        server_url,
        "--namespace",
        namespace,
    ]
    program = subprocess.Popen([sys.executable, "-m", "canvasbus", *argv], stderr=subprocess.PIPE, text=True)
    stream = eyes.keys.retry("framer", "painting.made")
    while eyes.call("XLEN", stream) < 5:
        assert program.poll() is None
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=20)
    moved = eyes.call("XLEN", stream)
    assert program.returncode == 130 and "Traceback" not in err
    assert 5 <= moved < 61 and moved + eyes.call("XLEN", eyes.keys.dead("framer")) >= 61
    assert "redriven" in err.splitlines()[-1] and "again" in err.splitlines()[-1]
    assert run("dlq", "redrive", "--group", "framer", "--yes").code == 0
    assert eyes.call("XLEN", eyes.keys.dead("framer")) == 0 and eyes.call("XLEN", stream) == 61


@pytest.mark.parametrize("number", [None, 550])
def test_a_server_that_goes_away_amid_a_purge(
    eyes: Eyes, run: Run, event_id: str, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """How many are gone is told, and how to remove the rest: after `-n`, those that were meant and no others."""
    eyes.call("DEL", eyes.keys.dead("framer"), eyes.keys.dead("archive"))
    for at in range(1, 601):
        eyes.call("XADD", eyes.keys.dead("framer"), f"{at}-0", "hello", "there")
    server = FaultyServer(eyes.server)
    server.faults.append(Fault("lose_request", b"$5\r\n501-0\r\n"))
    monkeypatch.setattr("canvasbus.cli.context.open_server", lambda url: server)
    meant = () if number is None else ("-n", str(number))
    ran = run("dlq", "purge", *meant, "--yes")
    again = "" if number is None else ", with --until 550-1 instead of -n,"
    assert ran.code == 1 and f"500 dead letters purged at least; the same command again{again} does the rest" in ran.err
    assert run("dlq", "purge", *(("--until", "550-1") if number else ()), "--yes").code == 0
    assert eyes.call("XLEN", eyes.keys.dead("framer")) == (50 if number else 0)


@pytest.mark.parametrize("as_what", [(), ("--json",)], ids=["table", "json"])
def test_what_is_done_though_nobody_reads_what_is_meant(
    server_url: str, namespace: str, eyes: Eyes, event_id: str, as_what: tuple[str, ...]
) -> None:
    """`| true`: exit code 0 says that the letters were put back, or removed."""
    code, err = unread(server_url, namespace, "dlq", "redrive", "--id", "10-0", "--yes", *as_what)
    assert code == 0 and "Traceback" not in err
    assert eyes.call("XLEN", eyes.keys.retry("framer", "painting.made")) == 1
    assert unread(server_url, namespace, "dlq", "purge", "--group", "framer", "--yes", *as_what)[0] == 0
    assert eyes.call("XLEN", eyes.keys.dead("framer")) == 0
    code, err = unread(server_url, namespace, "dlq", "purge", "--yes", "--dry-run", *as_what)
    assert (code, eyes.call("XLEN", eyes.keys.dead("archive"))) == (0, 1)
