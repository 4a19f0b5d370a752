"""How the demo is told: a live board on a terminal, plain lines elsewhere, JSON for machines.

The board is laid out by hand, line by line, so that it fits 80×24 to the cell: two charts with one column a window, a
row for alerts and one for models between them, and below what people are told beside the newest chain of events. rich
draws it on the alternate screen and overwrites what was there, so nothing flickers or scrolls.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from math import log10
from typing import Any, Protocol

from canvasbus import clock
from canvasbus.cli.cast import WORKERS
from canvasbus.cli.figures import figures_of
from canvasbus.cli.outcome import Line, summary_lines
from canvasbus.cli.output import Output, safe, short
from canvasbus.cli.story import LEVEL, STRONGEST, Level, Node, Note, Row, Story, phase_starts
from canvasbus.cli.world import LABELS_LATE, WINDOWS, phase_of
from canvasbus.operate.entry import Entry, view
from canvasbus.wire.codec import Codec

LEAST_WIDTH, LEAST_HEIGHT = 80, 24
_AXIS = 6
_FLOOR, _CEILING = 0.2, 1.0
"""Range of the accuracy chart."""
_BELOW, _ABOVE = 2, 2
"""Rows of the drift chart below and above the threshold."""
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_PHASE_STYLES = {"clean": "green", "corrupted": "red", "clean again": "green", "new hands": "magenta"}
_LEVELS: dict[Level, tuple[str, str]] = {
    "critical": ("✖", "bold red"),
    "warning": ("▲", "yellow"),
    "good": ("✔", "green"),
    "info": ("·", "cyan"),
}


class Show(Protocol):
    """How the story is told."""

    def event(self, entry: Entry, note: Note | None) -> None:
        """An event came; the note says what it means, where it means something."""

    def note(self, note: Note) -> None:
        """Something happened that is no event."""

    def window(self, number: int) -> None:
        """All that this window caused has happened."""

    def tick(self) -> None:
        """Time to draw."""

    def end(self, seconds: float) -> None:
        """The story is over. Tell what came of it."""


@contextmanager
def show_for(out: Output, story: Story, *, where: str, processes: bool, seed: int) -> Iterator[Show]:
    """The form that fits the output."""
    if out.json:
        yield JsonLines(out, story)
        return
    title = f"{where}, {f'{len(WORKERS)} worker processes' if processes else 'one process'}, seed {seed}"
    encoding = (getattr(out.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    if not out.terminal or encoding != "utf8":
        yield PlainLines(out, story, title)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=out.stdout, highlight=False)
    if console.is_dumb_terminal:
        yield PlainLines(out, story, title)
        return
    if console.width < LEAST_WIDTH or console.height < LEAST_HEIGHT:
        out.note(f"canvasbus: the live board needs a terminal of {LEAST_WIDTH}×{LEAST_HEIGHT}; telling it in lines")
        yield PlainLines(out, story, title)
        return
    with Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        board = LiveBoard(out, story, title, console, live)
        yield board
    board.after()


class JsonLines:
    """Every event as `canvasbus tail --json` has it, then one object `{"summary": …}`."""

    def __init__(self, out: Output, story: Story) -> None:
        self._out = out
        self._story = story
        self._codec = Codec()

    def event(self, entry: Entry, note: Note | None) -> None:
        self._out.record(view(entry, self._codec).cloudevent)
        self._out.flush()

    def note(self, note: Note) -> None:
        pass  # it is in the summary

    def window(self, number: int) -> None:
        pass

    def tick(self) -> None:
        pass

    def end(self, seconds: float) -> None:
        self._out.record({"summary": {**self._story.summary(seconds), "figures": asdict(figures_of(self._story))}})


class PlainLines:
    """One line for a window and one for everything that a person wants to know."""

    def __init__(self, out: Output, story: Story, title: str) -> None:
        self._out = out
        self._story = story
        out.line(f"canvasbus demo on {title}")

    def event(self, entry: Entry, note: Note | None) -> None:
        if note is not None:
            self.note(note)

    def note(self, note: Note) -> None:
        sign, _ = _LEVELS[note.level]
        sign = {"✖": "!!", "▲": "!", "✔": "ok"}.get(sign, "")
        self._out.line(f"{note.seconds:7.2f} s  {sign:2}  {note.type:25}  {safe(note.text)}")
        self._out.flush()

    def window(self, number: int) -> None:
        row = self._story.rows[number]
        labelled = self._story.rows.get(number - LABELS_LATE)
        accuracy = (
            f"accuracy of w{labelled.number:02d} {labelled.accuracy:.2f}"
            if labelled and labelled.accuracy is not None
            else ""
        )
        tests = f"p {row.p_value:.0e} {row.test} {row.score:.2f}" if row.p_value is not None else "no reference yet"
        flag = "FLAGGED" if row.flagged else ""
        text = f"window {number:2}  {phase_of(number):11}  {row.version:3}  {tests:30}  {flag:7}  {accuracy}"
        self._out.line(f"{self._story.seconds:7.2f} s  {text}".rstrip())
        self._out.flush()

    def tick(self) -> None:
        pass

    def end(self, seconds: float) -> None:
        self._out.line()
        for line in summary_lines(self._story, seconds):
            self._out.line("".join(text for text, _ in line).rstrip())


class LiveBoard:
    """The board on the alternate screen; the charts and the summary stay on the normal one when it is over."""

    def __init__(self, out: Output, story: Story, title: str, console: Any, live: Any) -> None:
        self._out = out
        self._story = story
        self._title = title
        self._console = console
        self._live = live
        self._rate = Rate()
        self._ended: float | None = None

    def event(self, entry: Entry, note: Note | None) -> None:
        self._rate.add()

    def note(self, note: Note) -> None:
        self.tick()

    def window(self, number: int) -> None:
        self.tick()

    def tick(self) -> None:
        width, height = self._console.size
        lines = board_lines(self._story, width, height, self._title, self._rate.per_second())
        self._live.update(self._text(lines, width), refresh=True)

    def end(self, seconds: float) -> None:
        self._ended = seconds

    def after(self) -> None:
        """What stays, when the terminal shows its old content again."""
        if self._ended is None:
            return
        width = self._console.width
        lines = [*chart_lines(self._story, 8), [("", "")], *summary_lines(self._story, self._ended)]
        self._console.print(self._text(lines, width))

    def _text(self, lines: list[Line], width: int) -> Any:
        from rich.text import Text

        text = Text(no_wrap=True, overflow="crop", end="")
        for number, line in enumerate(lines):
            if number:
                text.append("\n")
            for piece, style in cut(line, width):
                text.append(piece, style)
        return text


class Rate:
    """Events per second over the last three seconds."""

    SPAN = 3.0

    def __init__(self, now: Callable[[], float] = clock.monotonic) -> None:
        self._now = now
        self._times: deque[float] = deque()
        self._began: float | None = None

    def add(self) -> None:
        """One came."""
        now = self._now()
        self._began = now if self._began is None else self._began
        self._times.append(now)

    def per_second(self) -> float:
        """0.0 before the first one."""
        now = self._now()
        while self._times and self._times[0] < now - self.SPAN:
            self._times.popleft()
        return 0.0 if self._began is None else len(self._times) / max(0.5, min(self.SPAN, now - self._began))


# --- lines ----------------------------------------------------------------------------------------------------------------


def cut(line: Line, width: int) -> Line:
    """The line, not wider than `width` cells. Every character used here is one cell wide."""
    result: Line = []
    for text, style in line:
        result.append((text[:width], style))
        width -= len(text)
        if width <= 0:
            break
    return result


def padded(line: Line, width: int) -> Line:
    """The line, exactly `width` cells wide."""
    result = cut(line, width)
    return [*result, (" " * (width - sum(len(text) for text, _ in result)), "")]


def board_lines(story: Story, width: int, height: int, title: str, rate: float) -> list[Line]:
    """The whole board: at most `height` lines of at most `width` cells."""
    spare = height - LEAST_HEIGHT
    tall = 6 + max(0, min(4, spare // 3))
    lines = [*_head(story, width, title, rate), *chart_lines(story, tall)]
    room = height - len(lines) - 1
    left = max(35, min(46, width * 9 // 20))
    right = width - left - 1
    lines.append(
        [*_heading("alerts", left - 1), ("  ", ""), *_heading("what followed from what", right - 1)],
    )
    told, chain = _alerts(story, left - 1, room), _chain(story, right - 1, room)
    for row in range(room):
        one = told[row] if row < len(told) else []
        two = chain[row] if row < len(chain) else []
        lines.append([*padded(one, left + 1), *two])
    return lines[:height]


def _head(story: Story, width: int, title: str, rate: float) -> list[Line]:
    now = max(0, story.now)
    first: Line = [(" canvasbus demo ", "bold reverse"), (f" {title}", "dim")]
    right = f"{story.events} events  {rate:3.0f}/s  {int(story.seconds) // 60}:{int(story.seconds) % 60:02d} "
    lines = [[*padded(cut(first, width - len(right) - 1), width - len(right)), (right, "bold")]]
    phase = phase_of(now)
    second: Line = [
        (f" window {now + 1:2}/{WINDOWS}  ", ""),
        (f"{phase:11}", f"bold {_PHASE_STYLES[phase]}"),
        ("  model ", "dim"),
        (f"{story.version or '–':4}", "bold"),
        ("incident ", "dim"),
        (
            f"{story.incident or 'none':9}",
            {"critical": "bold red", "warning": "bold yellow"}.get(story.incident, "green"),
        ),
    ]
    if story.training:
        second.append((" training ", "bold reverse cyan"))
    return [*lines, second]


def chart_lines(story: Story, tall: int) -> list[Line]:
    """Accuracy, what was detected, which model served, drift, and the phases: 61 columns and what they are now."""
    rows = [story.rows.get(number) for number in range(WINDOWS)]
    return [*_accuracy(rows, tall), _alert_row(story), _model_row(story), *_drift(rows, story), _phases(story)]


def _accuracy(rows: list[Row | None], tall: int) -> list[Line]:
    judged = [row for row in rows if row is not None and row.accuracy is not None]
    beside = [("accuracy", "bold")]
    if judged:
        worst = min(judged, key=lambda row: row.accuracy or 0.0)
        beside += [
            (f"now   {judged[-1].accuracy:.2f}", "bold"),
            (f"worst {worst.accuracy:.2f}", "red"),
            (f"   in w{worst.number:02d}", "dim"),
        ]
    lines: list[Line] = []
    for line in range(tall):
        top = tall - 1 - line
        label = _CEILING - (_CEILING - _FLOOR) * line / tall
        pieces: Line = [(f"{label:4.2f} ┤", "dim")]
        for row in rows:
            if row is None:
                pieces.append((" ", ""))
            elif row.accuracy is None:
                pieces.append(("·" if top == 0 else " ", "dim"))
            else:
                share = (row.accuracy - _FLOOR) / (_CEILING - _FLOOR)
                pieces.append((_cell(share * tall, top), _accuracy_style(row.accuracy)))
        lines.append([*pieces, ("  ", ""), *(beside[line : line + 1])])
    return lines


def _accuracy_style(accuracy: float) -> str:
    if accuracy >= 0.86:
        return "green"
    return "yellow" if accuracy >= 0.7 else "red"


def _cell(height: float, row: int) -> str:
    """What a bar of `height` rows shows in the row counted from the bottom; a bar shows at least its foot."""
    eighths = round((height - row) * 8)
    if row == 0:
        eighths = max(1, eighths)
    return _EIGHTHS[max(0, min(8, eighths))]


def _alert_row(story: Story) -> Line:
    cells: Line = [(" ", "")] * WINDOWS
    for window, mark in story.marks:
        if mark == "drift":
            cells[window] = ("▲", "yellow")
        elif mark == "breach":
            cells[window] = ("✖", "bold red")
        elif mark == "resolved":
            cells[window] = ("✔", "green")
    return [("alert ", "dim"), *cells]


def _model_row(story: Story) -> Line:
    text = [" "] * WINDOWS
    for window, version in story.promotions:
        for at, char in enumerate(version):
            if max(0, window) + at < WINDOWS:
                text[max(0, window) + at] = char
    return [("model ", "dim"), ("".join(text), "bold cyan")]


def _drift(rows: list[Row | None], story: Story) -> list[Line]:
    now = story.rows.get(story.now)
    beside: Line = [("drift", "bold")]
    if now is not None and now.p_value is not None:
        beside += [
            (f"p {now.p_value:.0e}", "bold red" if now.flagged else "bold"),
            (short(now.test.partition(":")[2], 11), "dim"),
            (f"{now.test.partition(':')[0]} {now.score:.2f}", "dim"),
        ]
    lines: list[Line] = []
    threshold = -log10(LEVEL)
    for line in range(_ABOVE + 1 + _BELOW):
        middle = line == _ABOVE
        label = {0: f"1e-{STRONGEST:.0f}", _ABOVE: f"{LEVEL:g}", _ABOVE + _BELOW: "1"}.get(line, "")
        pieces: Line = [(f"{label:>{_AXIS - 1}}┤", "yellow" if middle else "dim")]
        for row in rows:
            evidence = row.evidence if row else None
            style = "red" if row and row.flagged else "green"
            if middle:
                # A small p-value alone is no flag: the effect may be below its floor.
                pieces.append(("█", "red") if row and row.flagged else ("┄", "yellow"))
            elif evidence is None:
                pieces.append((" ", ""))
            elif line > _ABOVE:
                height = min(1.0, evidence / threshold) * _BELOW
                pieces.append((_cell(height, _ABOVE + _BELOW - line), style))
            elif evidence > threshold:
                height = (evidence - threshold) / (STRONGEST - threshold) * _ABOVE
                shown = _EIGHTHS[max(0, min(8, round((height - (_ABOVE - 1 - line)) * 8)))]
                pieces.append((shown, style))
            else:
                pieces.append((" ", ""))
        lines.append([*pieces, ("  ", ""), *beside[line : line + 1]])
    return lines


def _phases(story: Story) -> Line:
    pieces: Line = [("     └", "dim")]
    starts = [*phase_starts(), (WINDOWS, None)]
    for (start, phase), (end, _) in pairwise(starts):
        assert phase is not None
        name = {"clean again": "again"}.get(phase, phase)
        style = _PHASE_STYLES[phase] if story.now >= start else "dim"
        pieces.append((f"{name:─<{end - start - 1}}┴", style))
    return pieces


def _heading(text: str, width: int) -> Line:
    return [(text, "bold"), (" " + "─" * (width - len(text) - 1), "dim")]


def _alerts(story: Story, width: int, room: int) -> list[Line]:
    lines: list[Line] = []
    for note in story.notes[-room:]:
        sign, style = _LEVELS[note.level]
        text = short(safe(note.text), width - 12)
        lines.append([(f"{note.seconds:5.1f} w{note.window:02d} ", "dim"), (f"{sign} {text}", style)])
    return lines


def _chain(story: Story, width: int, room: int) -> list[Line]:
    """The newest chains; without what the world published where that makes them fit."""
    chains = story.chains()
    whole = [_tree(chain, width) for chain in chains]
    if sum(map(len, whole)) > room:
        whole = [_tree(chain, width, hidden=_PUBLISHED) for chain in chains]
    return [line for tree in whole for line in tree][:room]


_PUBLISHED = frozenset({"images.submitted", "labels.recorded", "observations.recorded"})
_CHAIN_STYLES = {"model.promoted": "bold green", "retrain.started": "cyan", "incident.opened": "yellow"}


def _tree(chain: list[tuple[int, Node]], width: int, hidden: frozenset[str] = frozenset()) -> list[Line]:
    began = chain[0][1].seconds
    lifted = 0
    shown: list[tuple[int, Node]] = []
    for depth, node in chain:
        if node.type in hidden:
            lifted = max(lifted, depth + 1)
        else:
            shown.append((max(0, depth - lifted), node))
    lines: list[Line] = []
    for at, (depth, node) in enumerate(shown):
        following = next((d for d, _ in shown[at + 1 :] if d <= depth), -1)
        branch = "" if depth == 0 else "  " * (depth - 1) + ("├ " if following == depth else "└ ")
        after = f"+{(node.seconds - began) * 1000:.0f}ms" if node is not chain[0][1] else f"{node.seconds:.1f} s"
        room = width - len(branch) - len(node.type) - len(after) - 2
        about = short(safe(node.text), room) if room > 3 else ""
        line: Line = [(branch, "dim"), (node.type, _CHAIN_STYLES.get(node.type, "")), (f" {about}", "dim")]
        lines.append([*padded(line, width - len(after)), (after, "dim")])
    return lines
