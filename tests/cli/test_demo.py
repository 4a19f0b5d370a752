"""canvasbus demo, played three times at once: twice in one process, once with a process for each worker."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np
import pytest
from cli.commands import Run
from once import once
from rich.cells import cell_len
from servers import binaries, python_path

from canvasbus.cli import demo
from canvasbus.cli.board import PlainLines, board_lines, chart_lines
from canvasbus.cli.outcome import summary_lines
from canvasbus.cli.output import Output
from canvasbus.cli.story import Story, order
from canvasbus.cli.world import ONSET_CORRUPTED, ONSET_NEW_HANDS, WINDOWS, World, phase_of
from canvasbus.ids import derived
from canvasbus.operate import plugins
from canvasbus.operate.given import from_json
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

SEED = 0
WORKERS = {"drift", "alerts", "retrain", "trainer", "tagger"}

# Imported by every Python that starts with it on its path. In a worker it hides the demo and leaves a note of that.
BLOCKER = """
import os, sys

if "canvasbus.cli.worker" in sys.orig_argv:
    hidden = {"canvasbus.cli." + name for name in ("demo", "cast", "world", "board", "story", "outcome", "twin")}

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name in hidden:
                raise ImportError(name + " is hidden from workers")

    sys.meta_path.insert(0, Blocker())
    try:
        import canvasbus.cli.world
    except ImportError:
        name = sys.orig_argv[sys.orig_argv.index("canvasbus.cli.worker") + 1]
        open(os.path.join(os.environ["BLOCKED_NOTES"], name), "w").close()
    for name in [name for name in sys.modules if name.startswith("canvasbus")]:
        del sys.modules[name]
"""


@dataclass
class Told:
    """One playing."""

    folder: Path
    code: int = -1
    seconds: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    manifests: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Version → what it was trained on, read while the file was there."""
    errors: str = ""

    def of(self, event_type: str) -> list[dict[str, Any]]:
        """The data of all events of a type, in order."""
        return [event["data"] for event in self.events if event["type"] == event_type]


def start(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
    """`canvasbus demo` as a process, with a temporary folder of its own."""
    (folder / "tmp").mkdir(parents=True)
    environ = {name: value for name, value in os.environ.items() if name != "ARTIFACT_ROOT"}
    environ |= {"TMPDIR": str(folder / "tmp"), "BLOCKED_NOTES": str(folder), "PYTHONPATH": python_path(folder)}
    command = [sys.executable, "-m", "canvasbus", "demo", "--seed", str(SEED), *arguments]
    return subprocess.Popen(command, cwd=folder, env=environ, **options)


def play(folder: Path, *arguments: str) -> Told:
    """Play it as fast as it goes and read what it prints."""
    told = Told(folder)
    began = time.monotonic()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with start(folder, "--json", "--speed", "1000", *arguments, **pipes) as process:
        for line in process.stdout:
            record = json.loads(line)
            if "summary" in record:
                told.summary = record["summary"]
                continue
            told.events.append(record)
            if record["type"] == "retrain.succeeded":
                data = record["data"]
                with np.load(urlsplit(data["manifest"]["uri"]).path) as archive:
                    told.manifests[data["model_version"]] = {name: set(archive[name].tolist()) for name in archive}
        told.errors = process.stderr.read()
        told.code = process.wait(30)
    told.seconds = time.monotonic() - began
    return told


@pytest.fixture(scope="module")
def redis_url(_servers: Callable[[str], str]) -> str:
    """A real server."""
    return _servers("given" if os.environ.get("CANVASBUS_TEST_REDIS_URL") else next(iter(binaries())))


@pytest.fixture(scope="module")
def playings(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> dict[str, Told]:
    """The story, three times."""
    return once(tmp_path_factory, "demo", lambda: play_thrice(tmp_path_factory, redis_url))


def play_thrice(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> dict[str, Told]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("memory", "again", "processes")}
    (folders["processes"] / "sitecustomize.py").write_text(BLOCKER)
    told: dict[str, Told] = {}

    def run(name: str) -> None:
        told[name] = play(folders[name], "--url", redis_url if name == "processes" else "memory://")

    threads = [threading.Thread(target=run, args=(name,)) for name in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(told) == set(folders)
    return told


@pytest.fixture(scope="module")
def told(playings: dict[str, Told]) -> Told:
    """One of them."""
    return playings["memory"]


# --- the story --------------------------------------------------------------------------------------------------------


def test_it_ends_well(playings: dict[str, Told]) -> None:
    """Every playing ends with 0, in time, without a word on stderr, and leaves nothing in the temporary folder."""
    for name, told in playings.items():
        assert (told.code, told.errors) == (0, ""), name
        assert told.seconds < 400, name  # 25 on an idle machine, 6 of them until a dead worker is found out
        assert list((told.folder / "tmp").iterdir()) == [], name
        assert told.summary["complete"], name


def test_the_figures_are_honest_and_good(told: Told) -> None:
    """Accurate before, bad under corruption, good after a retraining that came by itself; few false alarms."""
    corrupted, hands = told.summary["shifts"]
    assert corrupted["before"] >= 0.92
    assert corrupted["worst"] <= 0.60
    assert corrupted["after"] >= 0.85
    assert (corrupted["first_flag"], corrupted["drift"]) in ((0, 1), (1, 2))
    assert corrupted["promoted"] <= 5
    assert hands["during"] <= hands["before"] - 0.02
    assert told.summary["clean_windows_tested"] == ONSET_CORRUPTED
    assert told.summary["clean_windows_flagged"] <= 2
    assert told.summary["failures"] == []


def test_accuracy_is_recomputed_from_the_events(told: Told) -> None:
    """The summary's accuracy of each window is the share of the judged half that was answered rightly, by a naive join
    of observations and labels; means and delays follow from those and from the events."""
    answers = {
        i: p for e in told.of("observations.recorded") for i, p in zip(e["item_ids"], e["predictions"], strict=True)
    }
    versions = {int(e["batch_id"][1:4]): e["model_version"] for e in told.of("observations.recorded")}
    accuracy = {}
    for event in told.of("labels.recorded"):
        if event["split"] == "test":
            right = [answers[item] == label for item, label in zip(event["item_ids"], event["labels"], strict=True)]
            accuracy[int(event["batch_id"][1:4])] = sum(right) / len(right)
    assert len(accuracy) == WINDOWS
    assert {int(n): value for n, value in told.summary["accuracy"].items()} == pytest.approx(accuracy)
    for shift, onset, end, calm in (
        (told.summary["shifts"][0], 15, 35, range(15)),
        (told.summary["shifts"][1], 41, 61, range(35, 41)),
    ):
        during = [accuracy[n] for n in range(onset, end) if versions[n] == versions[onset]]
        assert shift["before"] == pytest.approx(np.mean([accuracy[n] for n in calm]))
        assert shift["worst"] == min(accuracy[n] for n in range(onset, end))
        assert shift["during"] == pytest.approx(np.mean(during))
        assert shift["after"] == pytest.approx(np.mean([accuracy[n] for n in range(end - 5, end)]))
        changed = next((n for n in range(onset, end) if versions[n] != versions[onset]), None)
        assert shift["promoted"] == (None if changed is None else changed - onset - 1)
    opened = [e["window_number"] for e in told.of("drift.detected") if e["state"] == "opened"]
    assert told.summary["shifts"][0]["drift"] == next(n for n in opened if n >= ONSET_CORRUPTED) - ONSET_CORRUPTED


def test_what_is_trained_on_is_never_scored(told: Told) -> None:
    """No original of a scored image is in any version's training or validation images, by the manifests; what each item
    was made from is as the world has it."""
    scored = {g for e in told.of("labels.recorded") if e["split"] == "test" for g in e["groups"]}
    assert len(scored) > 300
    assert set(told.manifests) == {e["model_version"] for e in told.of("model.promoted")}
    assert len(told.manifests) >= 2
    for version, manifest in told.manifests.items():
        assert len(manifest["train_groups"]) >= 400, version
        assert not scored & (manifest["train_groups"] | manifest["validation_groups"]), version
        assert not manifest["train_groups"] & manifest["validation_groups"], version
    world = World(SEED)
    world.first_training()  # what is drawn depends on what was drawn before
    world.first_validation()
    groups = {e["batch_id"]: tuple(e["groups"]) for e in told.of("labels.recorded")}
    for number in range(WINDOWS):
        window = world.window(number)
        assert groups[f"w{number:03d}/test"] == window.test.originals
        assert groups[f"w{number:03d}/train"] == window.train.originals


def test_the_judged_half_comes_without_images(told: Told) -> None:
    """Nobody could learn from it: labels of the test split name no artifact."""
    assert {e["split"]: e.get("images") is not None for e in told.of("labels.recorded")} == {
        "train": True,
        "validation": True,
        "test": False,
    }


def test_events_are_cloudevents_with_causes(told: Told) -> None:
    """Every line is a CloudEvents object; every cause is an event that was printed and shares the correlation."""
    known = {event["id"]: event for event in told.events}
    assert len(known) == len(told.events) == told.summary["events"]
    assert Counter(event["type"] for event in told.events) == told.summary["event_types"]
    for event in told.events:
        assert {"specversion", "id", "source", "type", "time", "data", "correlationid"} <= set(event)
        if "causationid" in event:
            assert known[event["causationid"]]["correlationid"] == event["correlationid"]
    kinds = {(known[e["causationid"]]["type"], e["type"]) for e in told.events if "causationid" in e}
    assert kinds >= {
        ("images.submitted", "observations.recorded"),
        ("observations.recorded", "drift.detected"),
        ("drift.detected", "incident.opened"),
        ("labels.recorded", "metric.threshold_breached"),
        ("metric.threshold_breached", "retrain.started"),
        ("retrain.started", "retrain.succeeded"),
        ("retrain.succeeded", "model.promoted"),
    }


def essence(told: Told) -> dict[str, list[str]]:
    """Type → its events in order, without what is different each time: ids, times, folders, and which of two signals of
    one moment made an incident worse."""
    changing = {"duration", "incident_id", "correlation_id", "uri", "window_start", "window_end", "since", "at"}
    changing |= {"signals", "summary", "title"}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items() if name not in changing}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    found: dict[str, list[str]] = {}
    for event in told.events:
        found.setdefault(event["type"], []).append(json.dumps(plain(event["data"]), sort_keys=True))
    found["reference.registered"].sort()  # several at once
    return found


@pytest.mark.parametrize("other", ["again", "processes"])
def test_equal_seeds_tell_equal_stories(playings: dict[str, Told], other: str) -> None:
    """Every event of every type has the same content, down to the digests of images and weights: in another process,
    and with each worker in a process of its own on a real server."""
    first, second = essence(playings["memory"]), essence(playings[other])
    assert {name: len(events) for name, events in first.items()} == {name: len(e) for name, e in second.items()}
    for name, events in first.items():
        for at, (one, two) in enumerate(zip(events, second[name], strict=True)):
            assert one == two, f"{name} number {at}"


@pytest.mark.parametrize("name", ["memory", "again", "processes"])
def test_a_worker_that_is_killed_in_mid_window_leaves_no_trace(playings: dict[str, Told], name: str) -> None:
    """With half of a window counted and the other half in its hands, the drift worker is killed: every window is evaluated
    once, with all its rows; every event that drift published, before and after, is what its twin published that nobody
    killed, and has the id that follows from its parent."""
    told = playings[name]
    killed = told.summary["killed"]
    published = [event for event in told.events if event["source"] == "drift"]
    assert killed["window"] == demo.KILLED_IN
    # A process that is stopped just between two reads is given nothing; it dies with half a window all the same.
    assert killed["in_hand"] in ((0, 1) if name == "processes" else (1,))
    assert killed["seconds"] > 1  # nobody was told that it is dead
    assert killed["comparison"] == {"equal": len(published), "different": 0}
    windows = told.of("window.evaluated")
    assert [(window["number"], window["items"], window["batches"]) for window in windows] == [
        (number, 100, 2) for number in range(WINDOWS)
    ]
    handlers = {handler.name for handler in plugins.load("drift").handlers}
    for event in published:
        parent = UUID(event["causationid"])
        assert UUID(event["id"]) in {derived(parent, "drift", h, at) for h in handlers for at in range(8)}
    assert len({event["id"] for event in told.events}) == len(told.events)


def test_incidents_and_runs_are_counted_from_the_bus(told: Told) -> None:
    """The summary's counts are those of a naive look at the events; each incident is opened and resolved once, however
    many alarms there are; runs come one after the other, with growing fences."""
    alarms, runs = told.summary["alarms"], told.summary["runs"]
    opened = [event for event in told.of("incident.opened") if not event["escalated"]]
    assert alarms["incidents_opened"] == len(opened) == len({event["incident_id"] for event in opened}) >= 2
    resolved = {event["incident_id"] for event in told.of("incident.resolved")}
    assert alarms["incidents_resolved"] == len(told.of("incident.resolved")) == len(resolved)
    assert alarms["each_once"] is True
    kinds = ("drift.detected", "metric.threshold_breached", "retrain.failed", "data_quality.violated", "handler.failed")
    assert alarms["heard"] == sum(len(told.of(kind)) for kind in kinds) > alarms["incidents_opened"]
    worse = len(told.of("incident.opened")) - len(opened)
    assert alarms["nothing_new"] == alarms["heard"] - len(opened) - worse
    assert runs["fences"] == [event["fence"] for event in told.of("retrain.started")]
    assert runs["fences"] == list(range(1, len(runs["fences"]) + 1))
    assert runs["promoted"] == [event["fence"] for event in told.of("model.promoted")]
    assert runs["most_at_a_time"] == 1
    assert len(runs["promoted"]) + runs["failed"] == len(runs["fences"])


def test_figures_are_recomputed_from_the_events(told: Told) -> None:
    """What the table of ten shows of a story, by a naive look at its events."""
    figures = told.summary["figures"]
    accuracy = {int(number): value for number, value in told.summary["accuracy"].items()}
    windows = told.of("window.evaluated")
    first = [n for n in range(ONSET_NEW_HANDS, WINDOWS) if windows[n]["model_version"] == windows[41]["model_version"]]
    later = [accuracy[n] for n in range(ONSET_NEW_HANDS, WINDOWS) if n not in first]
    assert figures["clean"] == pytest.approx(np.mean([accuracy[n] for n in range(15)]))
    assert figures["worst"] == min(accuracy[n] for n in range(15, 35))
    assert figures["adapted"] == pytest.approx(np.mean([accuracy[n] for n in range(30, 35)]))
    assert figures["again"] == pytest.approx(np.mean([accuracy[n] for n in range(35, 41)]))
    assert figures["hands_before"] == pytest.approx(np.mean([accuracy[n] for n in first]))
    assert figures["hands_after"] == pytest.approx(np.mean(later))
    breached = [event["window_number"] for event in told.of("metric.threshold_breached")]
    # labels come when the window after the next one has been answered
    assert figures["breach"] == next(n for n in breached if n >= ONSET_NEW_HANDS) - ONSET_NEW_HANDS + 2
    flagged = [windows[n]["span"] for n in first if windows[n]["status"] == "flagged"]
    assert (figures["short_flags"], figures["long_flags"]) == (flagged.count(1), len(flagged) - flagged.count(1))
    calm = [windows[n]["span"] for n in (*range(15), *range(35, 41)) if windows[n]["status"] == "flagged"]
    assert (figures["false_short"], figures["false_long"]) == (calm.count(1), len(calm) - calm.count(1))
    assert figures["calm_windows"] == 21
    assert figures["models_corrupted"] == len(told.summary["shifts"][0]["versions"])
    assert figures["models_hands"] == len(told.summary["shifts"][1]["versions"])
    assert figures["equal_events"] == sum(event["source"] == "drift" for event in told.events)


def test_workers_cannot_know_the_demo(playings: dict[str, Told], redis_url: str) -> None:
    """In all five worker processes the demo's modules could not be imported, and detection, incident, promotion and
    recovery came all the same; nothing of it is left on the server."""
    told = playings["processes"]
    assert {path.name for path in told.folder.iterdir()} >= WORKERS
    corrupted = told.summary["shifts"][0]
    assert corrupted["drift"] <= 2
    assert told.of("incident.opened")
    assert told.of("incident.resolved")
    assert corrupted["versions"]
    assert corrupted["after"] >= corrupted["worst"] + 0.25
    assert told.of("metric.recovered")
    assert {event["source"] for event in told.events} == WORKERS | {"demo"}
    link = BlockingLink(open_server(redis_url))
    assert link.call("KEYS", "{demo-*") == []
    link.close()


# --- the world --------------------------------------------------------------------------------------------------------


def test_the_worlds_pools_are_apart() -> None:
    """Over all windows: judged originals are never in a half that may be learnt from, nor in the first training; within
    a window no original comes twice; new hands come when they should."""
    world = World(3)
    learn = {*world.first_training().originals, *world.first_validation().originals}
    judged: set[str] = set()
    for number in range(WINDOWS):
        window = world.window(number)
        both = (*window.train.originals, *window.test.originals)
        assert len(set(both)) == len(both) == 100
        assert {int(name[7:]) >= 1397 for name in both} == {phase_of(number) == "new hands"}
        assert window.train.images.min() >= 0
        assert window.train.images.max() <= 1
        learn.update(window.train.originals)
        judged.update(window.test.originals)
    assert not learn & judged
    assert ONSET_NEW_HANDS == 41


# --- how it is told ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(told: Told) -> Callable[[], Iterator[Story]]:
    """The story as it stands after each event, told anew from what was printed."""
    for name in WORKERS:
        plugins.load(name)

    def told_again() -> Iterator[Story]:
        story = Story()
        began = datetime.fromisoformat(told.events[0]["time"])
        for printed in told.events:
            event, around = from_json(json.dumps(printed))
            envelope = around.whole()
            story.take(event, envelope, (event.occurred_on - began).total_seconds())
            yield story

    return told_again


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (133, 43), (200, 60)])
def test_the_board_fits(scenes: Callable[[], Iterator[Story]], width: int, height: int) -> None:
    """At every moment of the story: no line wider and no more lines than the terminal has."""
    for number, story in enumerate(scenes()):
        if number % 7:
            continue
        lines = board_lines(
            story, width, height, "redis://a-host-with-quite-a-long-name:6379, 4 workers, seed 0", 1234.0
        )
        assert len(lines) == height
        for line in lines:
            text = "".join(piece for piece, _ in line)
            assert cell_len(text) <= width, f"after event {number}: {text}"


def test_the_charts_show_the_figures(scenes: Callable[[], Iterator[Story]], told: Told) -> None:
    """At the end: a column for every window, higher for the more accurate; the threshold row is filled exactly where a
    window was flagged; versions stand where they were promoted."""
    *_, story = scenes()
    text = ["".join(piece for piece, _ in line) for line in chart_lines(story, 6)]
    columns = [line[6 : 6 + WINDOWS] for line in text]
    heights = [sum(columns[row][n] not in " ·" for row in range(6)) for n in range(WINDOWS)]
    accuracy = [told.summary["accuracy"][str(n)] for n in range(WINDOWS)]
    for one in range(WINDOWS):
        for two in range(WINDOWS):
            if accuracy[one] > accuracy[two]:
                assert heights[one] >= heights[two]
    threshold = next(line for line in text if line.strip().startswith("0.01"))[6 : 6 + WINDOWS]
    flagged = [e["status"] == "flagged" for e in told.of("window.evaluated")]
    assert [cell == "█" for cell in threshold] == flagged
    model = next(line for line in text if line.startswith("model"))
    for version in story.shifts()[0].versions:
        assert version in model


def test_plain_lines(scenes: Callable[[], Iterator[Story]]) -> None:
    """Without a terminal: a line for every alert and every window, and the summary; no escape sequence."""
    import io

    stdout = io.StringIO()
    *_, story = scenes()
    lines = PlainLines(Output(stdout=stdout), story, "memory://")
    for number in range(WINDOWS):
        lines.window(number)
    for note in story.notes:
        lines.event(None, note)  # type: ignore[arg-type]
    lines.end(12.0)
    printed = stdout.getvalue()
    assert printed.count("window ") >= WINDOWS
    assert "\x1b" not in printed
    assert "drift.detected" in printed
    assert "What came of it" in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_the_summary_says_what_did_not_work(scenes: Callable[[], Iterator[Story]]) -> None:
    """A story that stops in the middle has no result, one without a new model says so, and neither invents a figure."""
    for story in scenes():
        if story.now == 20:
            break
    assert "corrupted: nothing is known" in told_in(story)
    assert "corrupted: nothing is known" in told_in(Story())
    *_, story = scenes()
    story._promotions.clear()
    text = told_in(story)
    assert "corrupted: no new model was made" in text
    assert "new hands: no new model was made" in text


def told_in(story: Story) -> str:
    """The summary as text."""
    return "\n".join("".join(piece for piece, _ in line) for line in summary_lines(story, 5.0))


def test_ties_are_told_in_the_order_of_cause_and_effect() -> None:
    """Entries of one millisecond: the breach before the retraining, the training before the promotion."""
    types = ["model.promoted", "retrain.succeeded", "retrain.started", "metric.threshold_breached", "something.else"]
    assert sorted(types, key=lambda name: order("5-0", name)) == [*types[3::-1], types[4]]
    assert order("4-9", "model.promoted") < order("5-0", "labels.recorded")


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_a_server_that_is_away_is_one_line(run_bare: Run) -> None:
    """As for every other command."""
    run_bare("demo", "--url", "redis://127.0.0.1:1").failed(1, "nobody listens there")
    run_bare("demo", "--url", "off://").failed(2, "off://")
    run_bare("demo", "--url", "reds://localhost").failed(2, "did you mean redis://?")
    run_bare("demo", "--seed", "-1").failed(2, "--seed")
    run_bare("demo", "--seed=-1").failed(2, "use a whole number from 0")


def test_missing_extras_are_named(run_bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install."""
    find = demo.importlib.util.find_spec
    monkeypatch.setattr(
        demo.importlib.util, "find_spec", lambda name: None if name in ("sklearn", "rich") else find(name)
    )
    run_bare("demo").failed(2, "demo needs scikit-learn, rich: pip install 'canvasbus[demo]'")


def test_ctrl_c_gives_the_terminal_back(tmp_path: Path) -> None:
    """On a terminal the board is on the alternate screen; Ctrl-C leaves it, shows the cursor, says so, ends with 130."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = start(tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"window  2/61" not in seen:
        seen += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    try:
        while data := os.read(ours, 65536):
            seen += data
    except OSError:
        pass  # Linux says so when the other end is closed
    os.close(ours)
    assert process.wait(20) == 130
    assert seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == 1
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
    assert b"demo interrupted" in seen.partition(b"\x1b[?1049l")[2]
    assert b"Traceback" not in seen
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_worker_that_dies_ends_the_demo(tmp_path: Path, redis_url: str) -> None:
    """One line names it; the other processes end, and nothing is left on the server or in the temporary folder."""
    process = start(tmp_path, "--url", redis_url, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "window  1" in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 5
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.startswith("canvasbus: demo: the worker drift ended with -9")
    assert errors.count("\n") == 1
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert list((tmp_path / "tmp").iterdir()) == []
    link = BlockingLink(open_server(redis_url))
    assert link.call("KEYS", "{demo-*") == []
    link.close()
