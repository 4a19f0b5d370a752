"""The oracle: what must be so after a run, said without looking at how the bus works.

For every group and every entry of its topic: one effect or one dead letter, or one `bus.loss` if a hand had trimmed it.
Which of them, the event's behaviour tells (`ends`), but for workers that died under it. Where a hand destroyed the
group, what was pending may be lost and what was done may be done again; what came later may not.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from simulation.plan import GROUPS, Plan
from simulation.world import History, Run
from studio import Eyes

from canvasbus.contract.registry import registry
from canvasbus.errors import CanvasbusError
from canvasbus.wire.codec import Codec

_FAILS = {"fails once": 1, "fails twice": 2, "hangs": 1, "poison": 1 << 30, "kills": 1 << 30}


def ends(plan: Plan, n: int) -> tuple[int, int]:
    """The model: how many effects and dead letters an event makes that nothing happens to."""
    behaviour = plan.behaviours[n]
    return (0, 1) if behaviour == "rejected" or _FAILS.get(behaviour, 0) >= plan.attempts else (1, 0)


def judge(plan: Plan, history: History, eyes: Eyes) -> list[str]:
    """Everything that is wrong after a run, one line each."""
    return [
        *history.wrong,
        *_published(history, _entries(eyes, history, "sim.placed")),
        *(line for group in plan.groups for line in _handled(plan, history, eyes, group)),
        *_attempted(plan, history),
    ]


def _published(history: History, entries: dict[str, int | None]) -> Iterator[str]:
    """Accepted: there once, under the id that was returned. Refused: not there. Else: once or not at all."""
    where: dict[int, list[str]] = defaultdict(list)
    for entry_id, n in entries.items():
        if n is not None:
            where[n].append(entry_id)
    for n, fate in sorted(history.fate.items()):
        found = where.pop(n, [])
        if fate == "accepted" and found != [history.entry[n]]:
            yield f"published {n} as {history.entry[n]}, found {found}"
        if len(found) > (fate != "refused"):
            yield f"published {n}: {fate}, found {found}"
    if where:
        yield f"nobody published {dict(where)}"


def _handled(plan: Plan, history: History, eyes: Eyes, group: str) -> Iterator[str]:
    takes, gives = (registry.of(cls).name for cls in GROUPS[group])
    entries = _entries(eyes, history, takes)
    codec = Codec()
    done = Counter(event.n for event in eyes.events(gives))
    letters = [letter for letter in eyes.dead(group) if letter.event_type == takes]
    dead = Counter(letter.entry_id for letter in letters)
    lost = Counter(
        _entry_id(event.detail)
        for event in eyes.events("bus.loss")
        if (event.group, event.topic, event.reason) == (group, takes, "entry_trimmed")
    )
    trimmed = {entry_id for entry_id, _ in history.trimmed[takes]}
    loose = history.lost_pending.get(group, set()), history.lost_done.get(group, set())
    failed = Counter(
        event.entry_id for event in eyes.events("handler.failed") if (event.group, event.event_type) == (group, takes)
    )
    bounds: dict[int | str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for entry_id, n in entries.items():  # a topic may have an event twice when the group before it was lost
        least, most = (0, 2) if entry_id in loose[0] else (1, 2) if entry_id in loose[1] else (1, 1)
        bound = bounds[entry_id if n is None else n]
        bound[0] += 0 if n in history.stale else least
        bound[1] += most
        bound[2] += dead[entry_id] + lost[entry_id]
        if failed[entry_id] != dead[entry_id]:
            yield f"{group}: {failed[entry_id]} handler.failed for {dead[entry_id]} dead letters of {n}"
        if lost[entry_id] and entry_id not in trimmed:
            yield f"{group}: {takes} {entry_id} was told lost, and is there"
    times = Counter(entries.values())
    touched = {n for entry_id, n in entries.items() if entry_id in loose[0] | loose[1] | trimmed or times[n] > 1}
    unsure = _unsure(plan, history, group, touched)
    for name, (least, most, given_up) in bounds.items():
        effects = done[name] if isinstance(name, int) else 0
        if not least <= effects + given_up <= most:
            behaviour = plan.behaviours[name] if isinstance(name, int) else "a stranger's"
            yield f"{group}: {takes} {name} ({behaviour}): {effects} effects, {given_up} dead letters and losses"
        elif isinstance(name, int) and name not in unsure and (effects, given_up) != ends(plan, name):
            yield f"{group}: {takes} {name} ({plan.behaviours[name]}): {effects} effects, {given_up} dead letters"
    known = set(entries.values())
    if stray := {n for n in done if n not in known}:
        yield f"{group}: effects of what was not there: {sorted(stray)}"
    if stray_letters := set(dead) - set(entries):
        yield f"{group}: dead letters of what was not there: {sorted(stray_letters)}"
    for letter in letters:
        yield from _deserved(plan, history, codec, group, entries.get(letter.entry_id), letter)


def _unsure(plan: Plan, history: History, group: str, lost: set[int | None]) -> set[int | None]:
    """Events to which something happened: more than one worker ran them, so that attempts may have been forgotten or
    counted for a worker's death; a batch ran them, which counts nothing; they were lost, or may have expired."""
    lives = defaultdict(set)
    for run in history.runs:
        if run.group == group:
            lives[run.n].add(run.consumer)
    moved = {n for n, consumers in lives.items() if len(consumers) > 1 or plan.batch}
    return {*lost, *moved, *history.stale}


def _deserved(plan: Plan, history: History, codec: Codec, group: str, n: int | None, letter: object) -> Iterator[str]:
    """Each dead letter has its reason."""
    reason, attempts, entry_id = letter.reason, letter.attempts, letter.entry_id  # type: ignore[attr-defined]
    if n is None:
        if reason not in ("foreign", "undecodable", "invalid"):
            yield f"{group}: a stranger's entry {entry_id} was given up as {reason}"
        return
    deaths = history.deaths.total()
    behaviour = plan.behaviours[n]
    if reason in ("exhausted", "lost_workers"):
        fails = _FAILS.get(behaviour, 0) + deaths
        if attempts != plan.attempts or fails < plan.attempts or (reason == "lost_workers" and not deaths):
            yield f"{group}: {n} ({behaviour}) was given up as {reason} after {attempts} of {plan.attempts} attempts"
    elif (reason, behaviour) != ("rejected", "rejected"):
        yield f"{group}: {n} ({behaviour}) was given up as {reason}"


def _attempted(plan: Plan, history: History) -> Iterator[str]:
    """Attempts are bounded. Those that a worker could not write down before it went are not known to the next one."""
    ran: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in history.runs:
        ran[run.group, run.entry_id].append(run)
        if run.attempt > plan.attempts:
            yield f"{run.group}: attempt {run.attempt} of {plan.attempts} at {run.n}"
    for (group, entry_id), runs in ran.items():
        if entry_id in history.lost_pending.get(group, ()) or entry_id in history.lost_done.get(group, ()):
            continue
        ends_in = Counter(run.end for run in runs)
        lives = len({run.consumer for run in runs})
        if ends_in["kills"] > plan.attempts + 1:
            yield f"{group}: {runs[0].n} killed {ends_in['kills']} workers, {plan.attempts} attempts are allowed"
        if not plan.batch and ends_in["raised"] > plan.attempts + (plan.attempts - 1) * (lives - 1):
            yield f"{group}: {runs[0].n} failed {ends_in['raised']} times in {lives} lives of {plan.attempts} attempts"


def _entries(eyes: Eyes, history: History, event_type: str) -> dict[str, int | None]:
    """Every entry that was ever added to the topic: its id and the number of its event; None: it is a stranger's."""
    codec = Codec()
    rows = [(row[0].decode(), row[1]) for row in eyes.call("XRANGE", eyes.stream(event_type), "-", "+")]
    found: dict[str, int | None] = {}
    for entry_id, fields in [*history.trimmed[event_type], *rows]:
        try:
            found[entry_id] = codec.decode(fields[1], stream_type=event_type, entry_id=entry_id)[1].n  # type: ignore[attr-defined]
        except CanvasbusError:
            found[entry_id] = None
    return found


def _entry_id(detail: str) -> str:
    match = re.search(r"\d+-\d+", detail)
    return match[0] if match else detail
