"""The figures by which one story is compared with others, over ten seeds, and with the rehearsal. No I/O.

Before the bus was written, the story was rehearsed with other code (its detectors: Kolmogorov-Smirnov and a permutation
MMD, its labels: an exact binomial test at .001) on the same digits with the same schedule. What came of that stands beside
what came of this, and where they differ the table shows it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from canvasbus.cli.outcome import Line, wrapped
from canvasbus.cli.story import Row, Story
from canvasbus.cli.world import ONSET_CLEAN_AGAIN, ONSET_CORRUPTED, ONSET_NEW_HANDS, WINDOWS

CALM = (*range(ONSET_CORRUPTED), *range(ONSET_CLEAN_AGAIN, ONSET_NEW_HANDS))
"""Windows in which nothing is different."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one story. Accuracies as shares, means over windows unless it says otherwise. None: it did not happen, or nobody
    knows."""

    clean: float | None
    worst: float | None
    """Of the corrupted windows."""
    adapted: float | None
    """The last corrupted windows, answered by retrained models."""
    again: float | None
    hands_before: float | None
    """New hands, until there was a model for them."""
    hands_after: float | None
    first_flag: int | None
    """Corrupted windows before the first one that was flagged."""
    breach: int | None
    """Windows of new hands that had come when labels, two windows late, showed what they cost."""
    breach_is_older: bool
    """A loss was known before they came, and had not been repaired."""
    hands_drift: int | None
    """Windows of new hands that had come when the input tests raised drift.detected; None: not before there was a model
    for them."""
    short_flags: int
    """New hands' windows that the input tests flagged by themselves, until then."""
    long_flags: int
    """… with the windows before them."""
    calm_windows: int
    false_short: int
    """Flagged ones of the calm windows."""
    false_long: int
    false_breaches: int
    """Losses that labels showed of calm windows alone."""
    models_corrupted: int
    models_hands: int
    equal_events: int
    """Said by the killed worker and by its twin alike."""
    different_events: int


def figures_of(story: Story) -> Figures:
    """From what came over the bus."""
    corrupted, hands = story.shifts()
    calm = [story.rows[n] for n in CALM if n in story.rows]
    new = [story.rows[n] for n in range(ONSET_NEW_HANDS, WINDOWS) if n in story.rows]
    first = [row for row in new if row.version == new[0].version]
    compared = story.killing.comparison if story.killing else None
    in_time = hands.drift is not None and (hands.promoted is None or hands.drift <= hands.promoted)
    return Figures(
        clean=_accuracy([row for row in calm if row.number < ONSET_CORRUPTED]),
        worst=corrupted.worst,
        adapted=corrupted.after if corrupted.versions else None,
        again=_accuracy([row for row in calm if row.number >= ONSET_CLEAN_AGAIN]),
        hands_before=hands.during,
        hands_after=hands.learnt,
        first_flag=corrupted.first_flag,
        breach=None if hands.breach is None else hands.breach + 1,
        breach_is_older=hands.breach_is_older,
        hands_drift=hands.drift + 1 if hands.drift is not None and in_time else None,
        short_flags=sum(row.flagged and row.span == 1 for row in first),
        long_flags=sum(row.flagged and row.span > 1 for row in first),
        calm_windows=len(calm),
        false_short=sum(row.flagged and row.span == 1 for row in calm),
        false_long=sum(row.flagged and row.span > 1 for row in calm),
        false_breaches=sum({event.first_window, event.window_number} <= set(CALM) for _, event in story.breaches),
        models_corrupted=len(corrupted.versions),
        models_hands=len(hands.versions),
        equal_events=compared.equal if compared else 0,
        different_events=compared.different if compared else 0,
    )


def _accuracy(rows: Sequence[Row]) -> float | None:
    known = [row.accuracy for row in rows if row.accuracy is not None]
    return mean(known) if known else None


# --- the table of ten -----------------------------------------------------------------------------------------------------

_TITLES = (
    *("seed", "clean", "worst", "after", "again", "hands", "learnt"),
    *("flag", "breach", "flags", "false", "new", "same"),
)
_WIDTHS = (4, 5, 5, 5, 5, 5, 6, 5, 6, 5, 5, 5, 7)


MEANINGS = """
Accuracy: clean, worst (of the corrupted), after (the last 5 corrupted), again (clean again), hands (new ones, before there
was a model for them), learnt (after it). flag: corrupted windows before one was flagged. breach: windows of new hands
that had come when labels, two windows late, told of them.
flags: of the new hands' windows, false: of the calm ones. new: models, for the corruption + for the new hands. same: what
the killed worker and its twin said alike.
"""


def heading() -> list[Line]:
    """Above the seeds."""
    return [[(_fitted(_TITLES), "bold")]]


def row(seed: int, found: Figures) -> Line:
    """One seed."""
    cells = (
        str(seed),
        *map(share, (found.clean, found.worst, found.adapted, found.again, found.hands_before, found.hands_after)),
        _count(found.first_flag),
        _count(found.breach) + "*" * found.breach_is_older,
        str(found.short_flags + found.long_flags),
        str(found.false_short + found.false_long),
        f"{found.models_corrupted}+{found.models_hands}",
    )
    same = f"{found.equal_events}/{found.equal_events + found.different_events}"
    good = found.equal_events and not found.different_events
    return [(_fitted(cells), ""), (f" {same:>{_WIDTHS[-1]}}", "green" if good else "bold red")]


def _fitted(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=False))


def share(value: float | None) -> str:
    """An accuracy in five characters."""
    return "–" if value is None else f"{value:.3f}".removeprefix("0")


def _count(value: int | None) -> str:
    return "never" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure over all seeds, and in the rehearsal."""

    name: str
    middle: str
    range: str
    rehearsed: str


def overall(found: Mapping[int, Figures]) -> list[Compared]:
    """Mean and range of each figure over the seeds that were played, and what the ten of the rehearsal had."""
    all_ = list(found.values())
    runs = len(all_)
    flags = [one.first_flag for one in all_ if one.first_flag is not None]
    breaches = [one.breach for one in all_ if one.breach is not None]
    calm = sum(one.calm_windows for one in all_)
    short, long = sum(one.false_short for one in all_), sum(one.false_long for one in all_)
    wrong = sum(one.false_breaches for one in all_)
    return [
        _means("accuracy: clean", [one.clean for one in all_], ".958 .937–.980"),
        _means("worst corrupted window", [one.worst for one in all_], ".36 .22–.48"),
        _means("corrupted, after retraining", [one.adapted for one in all_], ".905 .875–.920 (9/10)"),
        _means("clean again", [one.again for one in all_], ".940 .910–.990"),
        _means("new hands, before a new model", [one.hands_before for one in all_], ".877 .847–.897"),
        _means("new hands, after it", [one.hands_after for one in all_], ".923 .880–.951"),
        Compared("corruption: first flag", f"{len(flags)}/{runs}", _range(flags), "10/10 0"),
        Compared("new hands: labels tell, median", f"{len(breaches)}/{runs}", _median(breaches), "10/10 5 (2–8)"),
        Compared("new hands: input flags, short", f"{sum(one.short_flags > 0 for one in all_)}/{runs}", "", "3/10"),
        Compared("new hands: input flags, long", f"{sum(one.long_flags > 0 for one in all_)}/{runs}", "", "1/10"),
        Compared("new hands: drift.detected", f"{sum(one.hands_drift is not None for one in all_)}/{runs}", "", "–"),
        Compared(f"false flags in {calm}, short", str(short), "", "6 in 210"),
        Compared(f"false flags in {calm}, long", str(long), "", "3 in 150"),
        Compared("false breaches by labels", str(wrong), "", "1"),
        Compared(
            "new models: corrupted",
            _mean([one.models_corrupted for one in all_]),
            _range([one.models_corrupted for one in all_]),
            "2–5",
        ),
        Compared(
            "new models: new hands",
            _mean([one.models_hands for one in all_]),
            _range([one.models_hands for one in all_]),
            "1–3",
        ),
    ]


def _means(name: str, values: Sequence[float | None], rehearsed: str) -> Compared:
    known = [value for value in values if value is not None]
    if not known:
        return Compared(name, "–", "", rehearsed)
    of = f" ({len(known)}/{len(values)})" if len(known) < len(values) else ""
    return Compared(name, share(mean(known)), f"{share(min(known))}–{share(max(known))}{of}", rehearsed)


def _range(values: Sequence[int]) -> str:
    if not values:
        return ""
    return str(min(values)) if min(values) == max(values) else f"{min(values)}–{max(values)}"


def _median(values: Sequence[int]) -> str:
    return f"{median(values):g} ({_range(values)})" if values else ""


def _mean(values: Sequence[int]) -> str:
    return f"{mean(values):.1f}" if values else "–"


def overall_lines(found: Mapping[int, Figures]) -> Iterator[Line]:
    """Below the seeds: the table against the rehearsal, and what it says in words."""
    yield [("", "")]
    yield [(f"{'':30}{'mean':>7}  {'range':18}  rehearsed", "bold")]
    for one in overall(found):
        yield [
            (f"{one.name:30}", ""),
            (f"{one.middle:>7}", "bold"),
            (f"  {one.range:18}", ""),
            (f"  {one.rehearsed}".rstrip(), "dim"),
        ]
    yield [("", "")]
    yield from wrapped([(MEANINGS.strip(), "dim"), *_sayings(found)])


def _sayings(found: Mapping[int, Figures]) -> Iterator[tuple[str, str]]:
    """(sentence, style)"""
    all_ = list(found.values())
    runs = len(all_)
    breaches = [one.breach for one in all_ if one.breach is not None]
    missed = sum(one.hands_drift is None for one in all_)
    flagged = sum(one.short_flags + one.long_flags > 0 for one in all_)
    middle = f", {median(breaches):g} windows after they came (median)" if breaches else ""
    yield (
        f"Labels were needed for the natural shift: they told of the new hands in {len(breaches)} of {runs} stories{middle}.",
        "bold",
    )
    text = (
        f"The input tests alone would have missed it in {missed} of {runs}: single windows were flagged in {flagged}, "
        f"and drift.detected was raised in {runs - missed}."
    )
    yield text, "bold"
    older = [str(seed) for seed, one in found.items() if one.breach_is_older]
    if older:
        yield (
            f"* seed {', '.join(older)}: an older loss was not repaired yet when the new hands came.",
            "",
        )
    equal, different = sum(one.equal_events for one in all_), sum(one.different_events for one in all_)
    survived = sum(bool(one.equal_events) and not one.different_events for one in all_)
    text = (
        f"A drift worker was killed in mid-window in each: in {survived} of {runs} all that it said is what its twin said, "
        f"which nobody killed ({equal} of {equal + different} events, by id and content)."
    )
    yield text, "green" if survived == runs else "bold red"
