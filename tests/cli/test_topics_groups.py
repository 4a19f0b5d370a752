"""canvasbus topics and groups: what lies on the bus, and how far its readers are."""

import re
import time

import pytest
from cli.commands import Run, runner
from studio import Eyes


@pytest.fixture
def filled(eyes: Eyes) -> Eyes:
    """Two topics, three groups: one that is behind, one whose worker holds entries, one that only waits."""
    now = int(time.time() * 1000)
    for at in range(1, 6):
        eyes.call("XADD", eyes.stream(), f"{now - 200_000 + at}-0", "e", "x" * 100)
    eyes.call("XADD", eyes.stream("sculpture.made"), f"{now - 90_000}-0", "e", "x")
    eyes.call("SADD", eyes.keys.topics, "painting.made", "sculpture.made", "never.used")
    eyes.call("XGROUP", "CREATE", eyes.stream(), "archive", "0")
    eyes.call("XGROUP", "CREATE", eyes.stream(), "framer", "0")
    eyes.call("XREADGROUP", "GROUP", "framer", "w-1", "COUNT", 3, "STREAMS", eyes.stream(), ">")
    eyes.call("XGROUP", "CREATE", eyes.stream("sculpture.made"), "framer", "$")
    eyes.call("HSET", eyes.keys.groups, "newcomer", "{}")
    for _ in range(2):
        eyes.call("XADD", eyes.keys.dead("framer"), "*", "e", "x")
    return eyes


def test_topics_for_programs(run: Run, filled: Eyes) -> None:
    """Counts, ids, times, bytes and readers of each topic; null where there is nothing."""
    ran = run("topics", "--json")
    assert (ran.code, ran.err) == (0, "")
    never, painting, sculpture = ran.records
    assert (never["name"], never["entries"], never["first_id"], never["last_time"]) == ("never.used", 0, None, None)
    assert (painting["entries"], painting["groups"]) == (5, ["archive", "framer"])
    assert painting["bytes"] > 500 and painting["last_id"].endswith("-0")
    assert (sculpture["name"], sculpture["groups"], sculpture["problem"]) == ("sculpture.made", ["framer"], None)


def test_topics_for_people(run: Run, filled: Eyes) -> None:
    """An aligned table with a heading; a glob narrows it; nothing to show is said."""
    ran = run("topics")
    heading, never, painting, _ = ran.lines
    assert heading.split() == ["TOPIC", "ENTRIES", "SIZE", "FIRST", "LAST", "GROUPS"]
    assert never.split() == ["never.used", "0", "–", "–", "–", "–"]
    assert painting.startswith("painting.made") and re.search(r"  3m (19|[2-5]\d)s ago  archive, framer$", painting)
    assert [line.split()[0] for line in run("topics", "sculpture.*").lines] == ["TOPIC", "sculpture.made"]
    ran = run("topics", "zzz*")
    assert (ran.code, ran.out) == (0, "") and "no topics match 'zzz*'" in ran.err


def test_a_key_that_is_no_stream_is_found_wrong(run: Run, filled: Eyes) -> None:
    """Exit code 1, a line on stderr, "?" for its count; the others are listed."""
    filled.call("SET", filled.stream("bad.bad"), "text")
    for argv in ((), ("--json",)):
        ran = run("topics", *argv)
        assert ran.code == 1
        assert ran.err == "canvasbus: topic bad.bad: the key holds something that is not a stream\n"
        assert len([line for line in ran.lines if ".made" in line]) == 2
    assert run("topics").lines[1].split()[:2] == ["bad.bad", "?"]


def test_groups_for_programs(run: Run, filled: Eyes) -> None:
    """Lag with how sure it is, pending, ages, workers and dead letters."""
    archive, framer, newcomer = run("groups", "--json").records
    assert (archive["group"], archive["consumers"], archive["dead_letters"]) == ("archive", 0, 0)
    (topic,) = archive["topics"]
    assert (topic["lag"], topic["lag_is"], topic["pending"]) == (5, "exact", 0)
    assert 199 < topic["oldest_seconds"] < 230
    assert (framer["consumers_alive"], framer["consumers"], framer["dead_letters"]) == (1, 1, 2)
    painting, sculpture = framer["topics"]
    assert (painting["lag"], painting["pending"]) == (2, 3)
    assert (sculpture["lag"], sculpture["pending"], sculpture["oldest_seconds"]) == (0, 0, None)
    assert (newcomer["group"], newcomer["topics"]) == ("newcomer", [])


def test_groups_for_people(run: Run, filled: Eyes) -> None:
    """One block a group; the column of notes appears only when there are some."""
    ran = run("groups")
    heading, *rows, newcomer = ran.lines
    assert heading.split() == [
        "GROUP",
        "/",
        "TOPIC",
        "WORKERS",
        "DEAD",
        "LETTERS",
        "LAG",
        "PENDING",
        "OLDEST",
        "NOTES",
    ]
    assert [row.split()[:3] for row in rows] == [
        ["archive", "0", "0"],
        ["painting.made", "5", "0"],
        ["framer", "1", "2"],
        ["painting.made", "2", "3"],
        ["sculpture.made", "0", "0"],
    ]
    assert [row.startswith("  ") for row in rows] == [False, True, False, True, True]
    assert newcomer.split()[0] == "newcomer" and newcomer.endswith("no topic yet")
    assert not run("groups", "framer").lines[0].endswith("NOTES")
    filled.call("XCLAIM", filled.stream(), "framer", "~free", 0, filled.pending("framer")[0][0], "JUSTID")
    ran = run("groups", "framer")
    assert ran.lines[0].endswith("NOTES") and ran.lines[2].endswith("1 handed back")
    assert len(ran.lines) == 4


def test_instances_are_told_apart(run: Run, filled: Eyes) -> None:
    """A group of one process only is marked, for people and for programs."""
    filled.call("HSET", filled.keys.groups, "archive", '{"instance": true}')
    assert run("groups", "archive").lines[1].endswith("one process's own")
    assert [record["instance"] for record in run("groups", "--json").records] == [True, False, False]


def test_an_unknown_group_is_an_error(run: Run, filled: Eyes) -> None:
    """Exit code 1, with the nearest name."""
    run("groups", "framre").failed(1, "no group 'framre'", "did you mean framer?")
    run("groups", "zzz").failed(1, "there are archive, framer, newcomer")


def test_unknown_numbers_are_not_zero(run: Run, filled: Eyes) -> None:
    """Dead letters that cannot be counted are "unknown" and null."""
    filled.call("SET", filled.keys.dead("archive"), "text")
    assert run("groups", "archive").lines[1].split()[2] == "unknown"
    assert run("groups", "archive", "--json").records[0]["dead_letters"] is None


def test_an_empty_bus_says_so(run: Run, namespace: str) -> None:
    """Notes on stderr, nothing on stdout, exit code 0."""
    for command, says in (("topics", "no topics"), ("groups", "no groups")):
        ran = run(command)
        assert (ran.code, ran.out) == (0, "") and says in ran.err and namespace in ran.err
        assert run(command, "--json").out == run(command, "--json").err == ""


@pytest.mark.parametrize("right", ["xinfo|groups", "xinfo|consumers", "xinfo|stream", "xpending", "xrange"])
@pytest.mark.parametrize("command", ["groups", "groups reset framer --to earliest --dry-run", "groups pause framer"])
def test_a_user_who_may_not_ask_is_told_that(
    server_url: str, namespace: str, filled: Eyes, capsys: pytest.CaptureFixture[str], right: str, command: str
) -> None:
    """Not that there is no topic, no worker and nothing pending."""
    filled.call("ACL", "SETUSER", namespace, "on", ">pw", "~*", "&*", "+@all", f"-{right}")
    run = runner(server_url.replace("redis://", f"redis://{namespace}:pw@"), namespace, capsys)
    run(*command.split()).failed(1, f"run the '{right}' command")
    filled.call("ACL", "DELUSER", namespace)
