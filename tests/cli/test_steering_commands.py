"""canvasbus groups pause | resume | reset | forget"""

import io
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cli.commands import Run, unread
from faulty import Fault, FaultyServer
from studio import Eyes

from canvasbus.cli.output import moment


@pytest.fixture
def filled(eyes: Eyes) -> Eyes:
    """A group that has read three of five paintings and acknowledged them, and a sculpture that waits."""
    now = int(time.time() * 1000)
    for at in range(1, 6):
        eyes.call("XADD", eyes.stream(), f"{now - 600_000 + at * 60_000}-0", "e", "x")
    eyes.call("XADD", eyes.stream("sculpture.made"), "5-0", "e", "x")
    eyes.call("SADD", eyes.keys.topics, "painting.made", "sculpture.made")
    eyes.call("HSET", eyes.keys.groups, "framers", "{}")
    for topic in ("painting.made", "sculpture.made"):
        eyes.call("XGROUP", "CREATE", eyes.stream(topic), "framers", "0")
    rows = eyes.call("XREADGROUP", "GROUP", "framers", "w", "COUNT", 3, "STREAMS", eyes.stream(), ">")
    eyes.call("XACK", eyes.stream(), "framers", *[entry[0] for entry in rows[0][1]])
    eyes.call("XGROUP", "DELCONSUMER", eyes.stream(), "framers", "w")
    return eyes


def cursor(eyes: Eyes, topic: str = "painting.made") -> str:
    (row,) = eyes.call("XINFO", "GROUPS", eyes.stream(topic))
    return dict(zip(row[::2], row[1::2], strict=True))[b"last-delivered-id"].decode()


def hold(eyes: Eyes) -> None:
    eyes.call("XREADGROUP", "GROUP", "framers", "~free", "COUNT", 1, "STREAMS", eyes.stream(), ">")


# --- pause and resume -------------------------------------------------------------------------------------------------


def test_pausing_and_resuming(run: Run, filled: Eyes) -> None:
    """The pause is shown with who made it; both can be done twice."""
    ran = run("groups", "pause", "framers")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "framers is paused until `canvasbus groups resume framers`; no worker of it runs\n"
    assert run("groups", "pause", "framers").code == 0
    shown = run("groups", "framers")
    assert " paused by " in shown.lines[1] and "@" in shown.lines[1]
    paused = run("groups", "framers", "--json").records[0]["paused"]
    assert "@" in paused["by"] and paused["seconds_left"] is None
    assert run("groups", "resume", "framers").out == "framers goes on\n"
    assert run("groups", "resume", "framers").out == "framers was not paused\n"
    assert run("groups", "--json").records[0]["paused"] is None


def test_a_pause_for_a_while(run: Run, filled: Eyes) -> None:
    """--for takes 90s, 30m, 2h or 1d; what is left is shown."""
    ran = run("groups", "pause", "framers", "--for", "30m")
    assert ran.out.startswith("framers is paused for 30m; ")
    left = run("groups", "--json").records[0]["paused"]["seconds_left"]
    assert 1790 < left <= 1800
    assert "paused for another 29m" in run("groups", "framers").lines[1]
    for wrong in ("30", "0s", "m", "-5m", "999999d"):
        run("groups", "pause", "framers", f"--for={wrong}").failed(2, "--for", "like 90s, 30m, 2h, 1d or 2w")


def test_an_unknown_group_is_not_paused(run: Run, filled: Eyes) -> None:
    """A mistyped name would pause nothing and look as if it did."""
    run("groups", "pause", "framer").failed(1, "no group 'framer'", "did you mean framers?")
    run("groups", "resume", "framer").failed(1, "did you mean framers?")


def test_for_programs(run: Run, filled: Eyes) -> None:
    """One JSON object each."""
    assert run("groups", "pause", "framers", "--for", "90s", "--json").records == [
        {"group": "framers", "paused": True, "seconds": 90}
    ]
    assert run("groups", "resume", "framers", "--json").records == [
        {"group": "framers", "paused": False, "was_paused": True}
    ]


# --- reset ------------------------------------------------------------------------------------------------------------


def test_a_reset_shows_its_plan_and_does_it(run: Run, filled: Eyes) -> None:
    """Every topic of the group, from where to where, and how many entries that means."""
    when = moment(datetime.fromtimestamp(int(cursor(filled).partition("-")[0]) / 1000, UTC))
    ran = run("groups", "reset", "framers", "--to", "earliest", "--yes")
    assert ran.code == 0
    assert [line.split() for line in ran.lines] == [
        ["TOPIC", "FROM", "TO", "AGAIN", "SKIPPED"],
        ["painting.made", when, "start", "3", "0"],
        ["sculpture.made", "start", "start", "0", "0"],
    ]
    assert "framers has been moved" in ran.err
    assert cursor(filled) == "0-0"


@pytest.mark.parametrize(
    ("to", "again", "skipped"), [("latest", 0, 2), ("7m30s", 0, 0), ("450s", 1, 0), ("570s", 3, 0)]
)
def test_places_to_reset_to(run: Run, filled: Eyes, to: str, again: int, skipped: int) -> None:
    """The end, a time or how long ago; --type keeps other topics where they are."""
    if to == "7m30s":
        run("groups", "reset", "framers", "--to", to, "--yes").failed(2, "--to 7m30s", "how long ago (10m)")
        return
    ran = run("groups", "reset", "framers", "--to", to, "--type", "painting.*", "--yes", "--json")
    (record,) = ran.records
    assert (record["again"], record["skipped"], record["exact"], record["done"]) == (again, skipped, True, True)
    assert (cursor(filled), cursor(filled, "sculpture.made")) == (record["to"], "0-0")


def test_a_dry_run_changes_nothing(run: Run, filled: Eyes) -> None:
    """It shows the same and says so, also while the group is in use."""
    before = cursor(filled)
    hold(filled)
    held = cursor(filled)
    ran = run("groups", "reset", "framers", "--to", "earliest", "--dry-run", "--json")
    assert ran.code == 0 and ran.records[0]["done"] is False and "nothing was changed" in ran.err
    assert cursor(filled) == held != before


def test_a_group_in_use_is_moved_only_when_paused(run: Run, filled: Eyes) -> None:
    """Entries that are pending, or workers that run, are a reason to pause it first; then it is moved and stays paused."""
    hold(filled)
    run("groups", "reset", "framers", "--to", "earliest", "--yes").failed(
        1, "cannot be moved while 1 entry of it is pending", "`canvasbus groups pause framers` first"
    )
    filled.call("XREADGROUP", "GROUP", "framers", "w", "COUNT", 1, "STREAMS", filled.stream(), ">")
    run("groups", "reset", "framers", "--to", "earliest", "--yes").failed(1, "while 1 worker of it runs")
    assert run("groups", "pause", "framers").code == 0
    ran = run("groups", "reset", "framers", "--to", "earliest", "--yes")
    assert ran.code == 0 and "it is still paused" in ran.err
    assert cursor(filled) == "0-0"


def test_programs_read_of_what_is_done(run: Run, filled: Eyes) -> None:
    """`"done":true` is said of a stream when the group has been moved there, and not of one that is yet to be asked about."""
    ran = run("groups", "reset", "framers", "--to", "earliest", "--json")
    assert (ran.code, ran.records) == (2, []) and "add --yes" in ran.err
    records = run("groups", "reset", "framers", "--to", "earliest", "--json", "--yes").records
    assert [(record["topic"], record["done"]) for record in records] == [
        ("painting.made", True),
        ("sculpture.made", True),
    ]


def lost(eyes: Eyes, monkeypatch: pytest.MonkeyPatch, *words: bytes) -> None:
    """The server goes away when a command asks it for this."""
    server = FaultyServer(eyes.server)
    server.faults.append(Fault("lose_request", b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)))
    monkeypatch.setattr("canvasbus.cli.context.open_server", lambda url: server)


def test_a_server_that_goes_away_amid_a_reset(run: Run, filled: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far it came is told, to programs too, and the same command again does the rest."""
    lost(filled, monkeypatch, b"SETID", filled.stream("sculpture.made"))
    ran = run("groups", "reset", "framers", "--to", "latest", "--json", "--yes")
    assert ran.code == 1 and [record["topic"] for record in ran.records] == ["painting.made"]
    assert "framers has been moved on 1 of 2 streams at least; the same command again does the rest" in ran.err
    assert (cursor(filled, "sculpture.made"), cursor(filled) == "0-0") == ("0-0", False)
    assert run("groups", "reset", "framers", "--to", "latest", "--yes").code == 0
    assert cursor(filled, "sculpture.made") == "5-0"


def test_a_topic_that_it_does_not_read_is_an_error(run: Run, filled: Eyes) -> None:
    """With those that it reads."""
    run("groups", "reset", "framers", "--to", "latest", "--type", "poem.*", "--yes").failed(
        1, "reads no such topic; it reads painting.made, sculpture.made"
    )
    assert run("groups", "reset", "framers").err.startswith("canvasbus groups reset: the following arguments")


# --- forget -----------------------------------------------------------------------------------------------------------


def test_forgetting_says_what_is_lost(run: Run, filled: Eyes) -> None:
    """Entries that nobody has read, pending ones, dead letters; then the group is gone and the events are not."""
    hold(filled)
    for _ in range(2):
        filled.call("XADD", filled.keys.dead("framers"), "*", "e", "x")
    ran = run("groups", "forget", "framers", "--dry-run")
    assert ran.out == (
        "framers on painting.made, sculpture.made: 2 entries not read, 1 pending, 2 dead letters, and what its handlers "
        "keep in ctx.state\n"
    )
    assert run("groups", "framers").code == 0
    (record,) = run("groups", "forget", "framers", "--yes", "--json").records
    assert record == {"group": "framers", "topics": 2, "unread": 2, "pending": 1, "dead_letters": 2}
    assert run("groups").err.startswith("no groups")
    assert filled.count("painting.made") == 5
    run("groups", "forget", "framers", "--yes").failed(1, "no group 'framers'")


def test_a_group_that_is_run_is_not_forgotten(run: Run, filled: Eyes) -> None:
    """Nor does a dry run pretend that it could be."""
    filled.call("XREADGROUP", "GROUP", "framers", "w", "COUNT", 1, "STREAMS", filled.stream(), ">")
    for option in ("--yes", "--dry-run"):
        run("groups", "forget", "framers", option).failed(1, "group 'framers' is in use: 1 worker of it runs")


def test_a_server_that_goes_away_while_a_group_is_forgotten(
    run: Run, filled: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of it may be gone, which is told; the same command again finds it, and does the rest."""
    lost(filled, monkeypatch, b"SCAN", b"0", b"MATCH", filled.keys.state("framers", "*"))
    ran = run("groups", "forget", "framers", "--yes")
    assert ran.code == 1 and "framers may be forgotten in part; the same command again does the rest" in ran.err
    assert run("groups", "forget", "framers", "--yes").code == 0
    run("groups", "forget", "framers", "--yes").failed(1, "no group 'framers'")


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("reset", "framers", "--to", "latest"), ("forget", "framers")])
def test_nothing_is_done_unasked(run: Run, filled: Eyes, command: tuple[str, ...]) -> None:
    """Without a terminal and without --yes it is bad usage, and nothing has changed."""
    before = cursor(filled)
    ran = run("groups", *command, stdin=b"y\n")
    assert ran.code == 2 and "add --yes, or look with --dry-run" in ran.err
    assert cursor(filled) == before


@pytest.mark.parametrize("to", ["2345-11-27T12:00:00Z", "17957879404650-0", f"{2**64 - 1}-{2**64 - 1}"])
def test_a_place_in_the_future_is_a_slip(run: Run, filled: Eyes, to: str) -> None:
    """Moved there, the group would be given nothing of what is yet to come, and no number would show it."""
    run("groups", "reset", "framers", "--to", to, "--yes").failed(2, f"--to {to}", "in the future", "--to latest")


def test_nobody_is_moved_ahead_of_a_stream(run: Run, filled: Eyes) -> None:
    """Where the newest entry is older than the moment, the group passes over all that is there, and no further."""
    last = filled.call("XINFO", "STREAM", filled.stream())
    newest = dict(zip(last[::2], last[1::2], strict=True))[b"last-generated-id"]
    run("groups", "reset", "framers", "--to", "0s", "--type", "painting.made", "--yes")
    (group,) = filled.call("XINFO", "GROUPS", filled.stream())
    assert dict(zip(group[::2], group[1::2], strict=True))[b"last-delivered-id"] == newest


def asked_to_reset(url: str, namespace: str, answer: str, meanwhile: Callable[[], object] = str) -> tuple[int, str]:
    """The exit code of a reset that asks on a terminal and is answered, and what it says there."""
    mine, its = pty.openpty()
    program = [sys.executable, "-m", "canvasbus", "groups", "reset", "framers", "--to", "latest"]
    where = ["--url", url, "--namespace", namespace]
    process = subprocess.Popen([*program, *where], stdin=its, stderr=its, stdout=subprocess.DEVNULL)
    os.close(its)
    said = b""
    try:
        while b"[y/N]" not in said:
            said += os.read(mine, 4096)
        meanwhile()
        os.write(mine, answer.encode())
        code = process.wait(20)
        while True:
            try:
                said += os.read(mine, 4096)
            except OSError:  # the other side is closed
                return code, said.decode()
    finally:
        process.kill()
        process.wait()
        os.close(mine)


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("\n", 1), ("n\n", 1)])
def test_a_person_is_asked(server_url: str, namespace: str, filled: Eyes, answer: str, code: int) -> None:
    """On a terminal; anything but yes changes nothing."""
    before = cursor(filled)
    ended, said = asked_to_reset(server_url, namespace, answer)
    assert ended == code and "framers will handle 0 entries again and skip 3." in said
    assert (cursor(filled) == before) == bool(code)


def test_a_connection_that_ends_while_a_person_thinks(server_url: str, namespace: str, filled: Eyes) -> None:
    """Servers close what is idle: the answer counts all the same."""

    def connections() -> set[str]:
        return set(re.findall(r"(?:^|\n)id=(\d+)", filled.call("CLIENT", "LIST").decode()))

    there = connections()

    def close_it() -> None:
        for number in connections() - there:
            filled.call("CLIENT", "KILL", "ID", number)

    before = cursor(filled)
    assert asked_to_reset(server_url, namespace, "y\n", close_it)[0] == 0
    assert cursor(filled) != before


def test_a_worker_that_starts_while_a_person_thinks(server_url: str, namespace: str, filled: Eyes) -> None:
    """The group is in use now, and is not moved under it."""
    before = cursor(filled)
    code, said = asked_to_reset(server_url, namespace, "y\n", lambda: hold(filled))
    after = cursor(filled)
    assert code == 1 and "cannot be moved while 1 entry of it is pending" in said
    rows = filled.call("XRANGE", filled.stream(), f"({before}", "+")
    assert after == rows[0][0].decode()  # where the reading has brought it


# --- the command itself -----------------------------------------------------------------------------------------------


def test_groups_alone_means_list(run: Run, filled: Eyes) -> None:
    """With and without a group, with options before or after; a mistyped verb is told as such."""
    same = run("groups", "list", "framers").out
    assert run("groups", "framers").out == same
    assert [record["group"] for record in run("--json", "groups").records] == ["framers"]
    run("groups", "puase", "framers").failed(2, "there is no 'puase'; did you mean pause?")
    filled.call("HSET", filled.keys.groups, "pause", "{}")
    assert run("groups", "list", "pause").code == 0


def test_the_help_says_what_doubles(run_bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that is set back handles events again; the ids of what follows are the same."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    text = " ".join(run_bare("groups", "reset", "--help").out.split())
    assert "handles events again, on purpose" in text and "under the same ids as the first time" in text


@pytest.mark.parametrize("as_what", [(), ("--json",)], ids=["table", "json"])
def test_what_is_done_though_nobody_reads_the_plan(
    server_url: str, namespace: str, filled: Eyes, as_what: tuple[str, ...]
) -> None:
    """`| true`: exit code 0 says that the group was moved, or forgotten."""
    reset = ("groups", "reset", "framers", "--to", "earliest", "--yes", *as_what)
    assert unread(server_url, namespace, *reset) == (0, "canvasbus: framers has been moved\n")
    assert cursor(filled) == "0-0"
    forget = ("groups", "forget", "framers", "--yes", *as_what)
    assert unread(server_url, namespace, *forget) == (0, "canvasbus: framers is forgotten\n")
    assert filled.call("XINFO", "GROUPS", filled.stream()) == []
