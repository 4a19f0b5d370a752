"""canvasbus retention: what is on record, changed and forgotten; trimming once by hand."""

import json

import pytest
from cli.commands import Run
from studio import Eyes

from canvasbus.cli.retention import count
from canvasbus.cli.times import seconds_of
from canvasbus.errors import ConfigError


def test_the_defaults_are_shown(run: Run, eyes: Eyes) -> None:
    """Nothing on record: what holds for all types."""
    ran = run("retention", "list", "--json")
    assert (ran.code, ran.records) == (
        0,
        [
            {
                "type": "*",
                "max_age": 604800.0,
                "max_length": 1_000_000,
                "max_bytes": None,
                "cap": None,
                "when_full": "block",
                "full": {},
            }
        ],
    )
    assert "7d" in run("retention", "list").out or "1w" in run("retention", "list").out


def test_settings_add_up(run: Run, eyes: Eyes) -> None:
    """A second `set` changes what it names and keeps the rest; `clear` forgets all of it."""
    assert run("retention", "set", "painting.*", "--max-age", "36h", "--max-length", "5M").code == 0
    ran = run("retention", "set", "painting.*", "--cap", "10M", "--when-full", "reject", "--max-length", "any")
    assert ran.code == 0
    assert "on record for painting.*: age 36h, entries any, bytes any, cap 10,000,000, when full reject" in ran.err
    (record,) = [r for r in run("retention", "list", "--json").records if r["type"] == "painting.*"]
    assert (record["max_age"], record["max_length"], record["cap"], record["when_full"]) == (
        129600.0,
        None,
        10_000_000,
        "reject",
    )
    assert run("retention", "clear", "painting.*").code == 0
    run("retention", "clear", "painting.*").failed(1, "no retention of 'painting.*'")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("set", "painting.made"), "say what to change"),
        (
            ("set", "painting.made", "--max-age", "soon"),
            "--max-age soon: give a length of time of up to ten years, like 90s",
        ),
        (("set", "painting.made", "--cap", "0"), "'0' is no number"),
        (
            ("set", "painting.made", "--cap", "999999999999G"),
            "--cap 999999999999G: at most 9,007,199,254,740,991, or any",
        ),
        (("set", "painting.made", "--max-length", "9" * 30), "at most 9,007,199,254,740,991"),
        (("set", "painting.made", "--max-bytes", "9007199254740992"), "--max-bytes 9007199254740992: at most"),
        (("set", "Not A Type", "--cap", "5"), "neither a type nor a glob"),
    ],
)
def test_mistakes_are_told(run: Run, eyes: Eyes, argv: tuple[str, ...], said: str) -> None:
    """One line that says what would be right; nothing is changed."""
    run("retention", *argv).failed(2, said)
    assert eyes.call("HLEN", eyes.keys.retention) == 0


def test_a_cap_that_drops_entries_asks_first(run: Run, eyes: Eyes) -> None:
    """A slip (10 for 10M) would destroy what nobody has read. Where the cap is above what is there nothing is asked."""
    for _ in range(30):
        eyes.put(b"x")
    eyes.put(b"x", "sculpture.made")
    eyes.call("SADD", eyes.keys.topics, "painting.made", "sculpture.made")
    drops = ("retention", "set", "painting.*", "--when-full", "drop_with_loss_event")
    assert run(*drops, "--cap", "31").code == 0
    ran = run("retention", "set", "painting.*", "--cap", "10", "--dry-run")
    assert ran.code == 0 and "21 entries would go, handled or not; nothing was changed" in ran.err
    run("retention", "set", "painting.*", "--cap", "10").failed(2, "21 entries will go, handled or not")
    (record,) = [r for r in run("retention", "list", "--json").records if r["type"] == "painting.*"]
    assert record["cap"] == 31
    assert run("retention", "set", "painting.*", "--cap", "10", "--yes").code == 0
    assert run(*drops, "--cap", "10", "--max-age", "36h").code == 0  # on record already: a script may say it again
    assert run("retention", "set", "painting.*", "--cap", "5", "--when-full", "block").code == 0


def test_what_is_full_is_told(run: Run, eyes: Eyes) -> None:
    """`topics` and `retention list` name the group to look at, and end with 1."""
    eyes.put(b"x")
    eyes.call("SET", eyes.keys.full, '{"painting.made": {"when_full": "block", "group": "slow", "length": 12345}}')
    topics = run("topics")
    assert topics.code == 1 and "group 'slow' has not handled the oldest" in topics.err and "12,345" in topics.err
    listed = run("retention", "list", "--json")
    assert listed.code == 1 and listed.records[0]["full"]["painting.made"]["group"] == "slow"


def test_trimming_once(run: Run, eyes: Eyes) -> None:
    """Where only Producers run nobody trims; the command does, and keeps what a declared group has not handled."""
    for _ in range(30):
        eyes.put(b"x")
    eyes.call("SADD", eyes.keys.topics, "painting.made")
    eyes.call("XGROUP", "CREATE", eyes.stream(), "framers", "0")
    eyes.call("HSET", eyes.keys.groups, "framers", json.dumps({"types": ["painting.made"], "globs": []}))
    run("retention", "set", "*", "--max-length", "10")
    assert run("retention", "trim").err == "0 entries removed from 1 stream\n" and eyes.count("painting.made") == 30
    eyes.call("XREADGROUP", "GROUP", "framers", "me", "NOACK", "COUNT", 25, "STREAMS", eyes.stream(), ">")
    assert "20 entries removed" in run("retention", "trim").err
    assert eyes.count("painting.made") == 10


def test_lengths_and_numbers() -> None:
    """Units as people write them."""
    assert [seconds_of(t, "--max-age") for t in ("90s", "1.5h", "7d", "2W")] == [90, 5400, 604800, 1209600]
    assert [count(t, "--cap") for t in ("10", "5k", "1_000", "512Mi", "2GB")] == [10, 5000, 1000, 2**29, 2 * 10**9]
    for wrong in ("", "x", "-1", "1y", "0"):
        with pytest.raises(ConfigError):
            seconds_of(wrong, "--max-age")
        with pytest.raises(ConfigError):
            count(wrong, "--cap")
