"""What came of the demo's story, in lines for people: the figures, and what they mean, the unpleasant part included."""

import textwrap
from collections.abc import Iterable, Iterator

from canvasbus.cli.output import safe, short
from canvasbus.cli.story import AFTER, Shift, Story

Line = list[tuple[str, str]]
"""(text, style) pieces of one line."""

WRAP = 76
"""Sentences of the summary, in characters."""


def summary_lines(story: Story, seconds: float) -> list[Line]:
    """What came of it, also where nothing came of it."""
    corrupted, hands = story.shifts()
    false, clean = story.false_flags()
    rate = story.events / seconds if seconds else 0.0
    lines: list[Line] = [
        [("What came of it", "bold")],
        [(f"{len(story.rows)} windows of 100 images, {story.events} events in {seconds:.0f} s ({rate:.0f}/s)", "dim")],
        [("", "")],
        [(f"{'accuracy':14}{'before':>8}{'during':>8}{'worst':>12}{'after':>8}{'difference':>12}   models", "bold")],
        *(_accuracy_line(shift) for shift in (corrupted, hands)),
        [("", "")],
        [
            (
                f"{'noticed after':14}{'first flag':>12}{'drift.detected':>16}{'accuracy breach':>17}{'new model':>11}",
                "bold",
            )
        ],
        *(_delay_line(shift) for shift in (corrupted, hands)),
        [("", "")],
        [("Accuracy: 50 images a window that no version was trained on. during: until the", "dim")],
        [(f"first new model was in service. after: the last {AFTER} windows of the shift. Delays", "dim")],
        [("count windows from the first shifted one; labels come two windows late.", "dim")],
        [("", "")],
    ]
    lines += wrapped([*findings(corrupted, hands, false, clean), *_bus_findings(story)])
    lines += [[("✖ ", "bold red"), (safe(short(failure, 200)), "red")] for failure in story.failures]
    return lines


def wrapped(sentences: Iterable[tuple[str, str]]) -> Iterator[Line]:
    """(sentence, style) as a list for people."""
    for text, style in sentences:
        first, *more = textwrap.wrap(text, WRAP)
        yield [("- ", "dim"), (first, style)]
        yield from ([("  " + line, style)] for line in more)


def _accuracy_line(shift: Shift) -> Line:
    worst = f"{shift.worst:.2f} (w{shift.worst_window:02d})" if shift.worst is not None else "–"
    difference = "–" if shift.left is None else f"{-shift.left:+.2f}"
    style = "" if shift.left is None else "green" if shift.left <= shift.margin else "yellow"
    return [
        (f"{shift.name:14}{_number(shift.before):>8}{_number(shift.during):>8}{worst:>12}", ""),
        (f"{_number(shift.after):>8}", "bold"),
        (f"{difference:>12}", style),
        (f"   {' '.join(shift.versions) or 'none'}", "cyan"),
    ]


def _delay_line(shift: Shift) -> Line:
    shown = ["never" if n is None else str(n) for n in (shift.first_flag, shift.drift, shift.breach, shift.promoted)]
    return [(f"{shift.name:14}{shown[0]:>12}{shown[1]:>16}{shown[2]:>17}{shown[3]:>11}", "")]


def findings(corrupted: Shift, hands: Shift, false: int, clean: int) -> Iterator[tuple[str, str]]:
    """(sentence, style): what the figures mean, the unpleasant part included."""
    yield f"False alarms: {false} of {clean} clean windows were flagged.", ""
    for shift in (corrupted, hands):
        margin = f"(±{shift.margin * 100:.0f})"
        if shift.left is None:
            yield f"{shift.name}: nothing is known, the story ended before.", "yellow"
        elif not shift.versions:
            yield f"{shift.name}: no new model was made; {_points(shift.left)} {margin}.", "yellow"
        elif shift.left > shift.margin:
            trained = f"{len(shift.versions)} new model{'s' * (len(shift.versions) > 1)} did not repair all"
            yield f"{shift.name}: {trained}; {_points(shift.left)} {margin}.", "yellow"
        else:
            yield f"{shift.name}: accuracy is back where it was; {_points(shift.left)} {margin}.", "green"
    if hands.left is None:
        return
    flagged = f"{hands.flagged} of {hands.tested} windows before there was a new model"
    alone = hands.drift is None or (hands.promoted is not None and hands.drift > hands.promoted)
    if hands.breach is None:
        yield "new hands: not even labels told of them, in 20 windows.", "yellow"
    elif alone:
        yield (
            f"Labels were needed for the natural shift: they told after {hands.breach + 1} windows of new hands.",
            "bold",
        )
    else:
        yield f"Labels told of the natural shift after {hands.breach + 1} windows of new hands.", ""
    if alone:
        yield f"The input tests alone would have missed it: they flagged {flagged}, and raised no drift.", "bold"
    else:
        yield f"The input tests noticed it, too: they flagged {flagged}.", ""


def _bus_findings(story: Story) -> Iterator[tuple[str, str]]:
    """What the workers did about it, and what the death of one changed."""
    alarms, runs, killing = story.alarms, story.runs, story.killing
    if alarms.heard:
        once = "each opened and resolved once" if alarms.once else "not each of them once"
        text = (
            f"alerts: {alarms.heard} alarms became {_many(len(alarms.opened), 'incident')}, {once} "
            f"({len(alarms.resolved)} resolved, {alarms.worse} made critical); {alarms.kept_quiet} more were part of what was known."
        )
        yield text, "" if alarms.once else "bold red"
    if runs.fences:
        fence = f"fences rising from {runs.fences[0]} to {runs.fences[-1]}" if runs.fenced else "fences out of order"
        text = (
            f"retrain: {_many(len(runs.fences), 'run')}, at most {runs.most_in_flight} at a time, {fence}; "
            f"{len(runs.promoted)} promoted, {runs.failed} refused."
        )
        yield text, "" if runs.fenced and runs.most_in_flight == 1 else "bold red"
    if killing is not None and killing.comparison is not None and killing.seconds is not None:
        equal, different = killing.comparison.equal, killing.comparison.different
        same = "the same ids and content" if not different else f"{different} different"
        text = (
            f"kill -9 in the middle of window {killing.window}, {_many(killing.in_hand, 'batch')} in hand, taken over after "
            f"{killing.seconds:.1f} s: {equal} of {equal + different} events of drift beside those of a twin that nobody "
            f"killed, {same}."
        )
        yield text, "bold red" if different else "green"


def _many(number: int, word: str) -> str:
    plural = "es" if word.endswith("ch") else "s"
    return f"{number} {word}{'' if number == 1 else plural}"


def _points(left: float) -> str:
    points = round(left * 100)
    if points == 0:
        return "the same as before"
    return f"{abs(points)} point{'s' * (abs(points) > 1)} {'less' if points > 0 else 'more'} than before"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
