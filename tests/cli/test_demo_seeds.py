"""canvasbus demo --all-seeds, its table, and how a killed worker is compared with its twin."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from cli.commands import Run

from canvasbus.cli import seeds
from canvasbus.cli.figures import Figures, heading, overall, overall_lines, row
from canvasbus.cli.outcome import Line
from canvasbus.cli.output import Output
from canvasbus.cli.seeds import Played, played
from canvasbus.cli.story import Comparison, Story
from canvasbus.cli.twin import Said, compared

ONE = Figures(
    clean=0.95,
    worst=0.4,
    adapted=0.9,
    again=0.94,
    hands_before=0.86,
    hands_after=0.92,
    first_flag=0,
    breach=5,
    breach_is_older=False,
    hands_drift=None,
    short_flags=0,
    long_flags=0,
    calm_windows=21,
    false_short=0,
    false_long=0,
    false_breaches=0,
    models_corrupted=4,
    models_hands=1,
    equal_events=132,
    different_events=0,
)


def words(*lines: Line) -> str:
    """Without styles."""
    return "\n".join("".join(text for text, _ in line) for line in lines)


def text(found: dict[int, Figures]) -> str:
    """What stands below the seeds, on one line."""
    return " ".join(words(*overall_lines(found)).split())


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_mean_and_range_of_each_figure() -> None:
    """Over the seeds that know the figure; how many those are is told where it is not all of them."""
    two = replace(ONE, clean=0.97, hands_after=None, breach=9, short_flags=1, models_hands=0, false_short=2)
    found = {one.name: one for one in overall({0: ONE, 1: two})}
    clean = found["accuracy: clean"]
    assert (clean.middle, clean.range, clean.rehearsed) == (".960", ".950–.970", ".958 .937–.980")
    assert found["new hands, after it"].range == ".920–.920 (1/2)"
    assert (found["corruption: first flag"].middle, found["corruption: first flag"].range) == ("2/2", "0")
    assert found["new hands: labels tell, median"].range == "7 (5–9)"
    assert found["new hands: input flags, short"].middle == "1/2"
    assert found["false flags in 42, short"].middle == "2"
    assert (found["new models: new hands"].middle, found["new models: new hands"].range) == ("0.5", "0–1")


def test_both_truths_are_told_with_the_numbers_of_these_stories() -> None:
    """That labels were needed, and in how many the input tests alone would have missed the natural shift."""
    seen = replace(ONE, hands_drift=3, short_flags=2)
    silent = replace(ONE, breach=None, hands_after=None)
    said = text({0: ONE, 1: seen, 2: silent})
    assert "they told of the new hands in 2 of 3 stories, 5 windows after they came (median)" in said
    assert "The input tests alone would have missed it in 2 of 3: single windows were flagged in 1" in said
    assert "drift.detected was raised in 1" in said
    nobody = text({0: silent})
    assert "in 0 of 1 stories." in nobody and "median" not in nobody.partition("0 of 1 stories")[2][:20]


def test_a_loss_that_was_there_before_is_no_discovery() -> None:
    """It is marked in the row, and said."""
    older = replace(ONE, breach_is_older=True)
    assert "5*" in words(row(7, older)) and "5*" not in words(row(7, ONE))
    assert "* seed 7: an older loss was not repaired yet" in text({6: ONE, 7: older})
    assert "older loss" not in text({6: ONE})


def test_a_trace_of_the_killing_is_seen_in_the_table() -> None:
    """In the row and in the words; none at all is no success."""
    assert "132/132" in words(row(0, ONE))
    spoilt = replace(ONE, equal_events=130, different_events=2)
    assert "130/132" in words(row(0, spoilt))
    said = text({0: ONE, 1: spoilt, 2: replace(ONE, equal_events=0)})
    assert "in 1 of 3 all that it said" in said and "262 of 264 events" in said


@pytest.mark.parametrize(
    "found",
    [
        ONE,
        Figures(*[None] * 8, False, *[None], *[0] * 10),
        replace(ONE, breach=20, breach_is_older=True, models_corrupted=12, models_hands=11),
    ],
)
def test_it_fits_eighty_columns(found: Figures) -> None:
    """Whatever the figures are, and the columns stand below their titles."""
    lines = [*heading(), row(9, found), *overall_lines({9: found})]
    assert max(len(words(line)) for line in lines) <= 80
    assert len(words(*heading())) == len(words(row(9, found)))


def test_a_story_without_an_end_is_told_and_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """Its last word stands in the table; the others are compared without it."""
    summary = json.dumps({"summary": {"figures": {name: getattr(ONE, name) for name in ONE.__slots__}}})
    assert played(0, f'{{"type": "a.b"}}\n{summary}\n'.encode(), b"") == Played(0, ONE, "no word")
    broken = played(1, b'{"type": "a.b"}\n', b"first\ncanvasbus: demo: the worker drift ended\n")
    assert broken == Played(1, None, "canvasbus: demo: the worker drift ended")
    assert played(2, b"", b"").figures is None
    stdout = io.StringIO()
    seeds._tell(Output(stdout=stdout), 3, broken)
    assert "3  came to no end (1): canvasbus: demo: the worker drift ended" in stdout.getvalue()


def test_bad_usage(run_bare: Run) -> None:
    """One line each, before anything is started."""
    run_bare("demo", "--all-seeds", "--seed", "3").failed(2, "not allowed with argument")
    run_bare("demo", "--all-seeds", "--speed", "0").failed(2, "--speed 0")
    run_bare("demo", "--all-seeds", "--url", "redis://127.0.0.1:1").failed(1, "nobody listens there")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_rows_are_what_each_seed_gives_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows come in the order of the seeds, with exit code 0, and hold what `--seed N` gives by itself."""
    monkeypatch.setattr(seeds, "SEEDS", (1, 3))
    stdout = io.StringIO()
    assert seeds.run(Output(json=True, stdout=stdout), url=None, speed=1000.0) == 0
    first, second, last = map(json.loads, stdout.getvalue().splitlines())
    assert [(one["seed"], one["code"]) for one in (first, second)] == [(1, 0), (3, 0)]
    assert last["overall"][0]["middle"].startswith(".9")
    command = [sys.executable, "-m", "canvasbus", "demo", "--json", "--seed", "3", "--speed", "1000"]
    alone = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(alone.stdout.splitlines()[-1])["summary"]["figures"] == second["figures"]


@pytest.mark.long
def test_ctrl_c_ends_all_stories(tmp_path: Path) -> None:
    """It says so, ends with 130, and no story goes on."""
    command = [sys.executable, "-m", "canvasbus", "demo", "--all-seeds"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert "seeds 0 to 9" in process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (stories := children.read_text().split()):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "canvasbus: demo interrupted\n"
    assert not any(Path(f"/proc/{story}").exists() for story in stories)


# --- the twin ---------------------------------------------------------------------------------------------------------


def test_equal_events_are_counted() -> None:
    """Type by type, in order."""
    said: Said = {"window.evaluated": [(uuid4(), b"1"), (uuid4(), b"2")], "drift.detected": [(uuid4(), b"3")]}
    assert compared(said, {name: list(events) for name, events in said.items()}) == Comparison(3, 0)
    assert compared({}, {}) == Comparison(0, 0)


A, B = UUID(int=1), UUID(int=2)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda events: events.pop(),
        lambda events: events.append((UUID(int=3), b"c")),
        lambda events: events.append(events[-1]),
        lambda events: events.__setitem__(1, (UUID(int=3), b"b")),
        lambda events: events.__setitem__(1, (B, b"other")),
        lambda events: events.reverse(),
        lambda events: events.clear(),
    ],
    ids=["one less", "one more", "twice", "other id", "other content", "other order", "none"],
)
@pytest.mark.parametrize("who", ["killed", "twin"])
def test_every_trace_is_seen(spoil: Callable[[list[tuple[UUID, bytes]]], object], who: str) -> None:
    """Missing, additional, doubled, other ids, contents or order, on either side: it is a difference, and the story is no
    success."""
    killed: Said = {"drift.detected": [(A, b"a"), (B, b"b")]}
    twin: Said = {"drift.detected": [(A, b"a"), (B, b"b")]}
    spoil((killed if who == "killed" else twin)["drift.detected"])
    found = compared(killed, twin)
    assert found.different >= 1
    story = Story()
    story.killed(16, 1)
    story.taken_over(5.0, found)
    assert not story.is_good
    assert "differ from a run without it" in story.notes[-1].text
