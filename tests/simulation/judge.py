"""The oracle: what must be so after a run, said without looking at how the bus works.

For every group and every entry of its topic: one effect or one dead letter, or one `bus.loss` if a hand had trimmed it.
Which of them, the event's behaviour tells (`ends`), but for workers that died under it. Where a hand destroyed the
group, what was pending may be lost and what was done may be done again; what came later may not.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from uuid import uuid5
from zlib import crc32

import msgspec
from simulation.handlers import STUCK_RUNS
from simulation.history import History, Run
from simulation.plan import GROUPS, Plan, timer_of
from simulation.weather import CALM
from studio import Eyes

from canvasbus.consume.state import TOKEN
from canvasbus.contract.registry import registry
from canvasbus.errors import CanvasbusError
from canvasbus.ids import id_order
from canvasbus.wire.codec import Codec
from canvasbus.wire.envelope import Envelope

_FAILS = {"fails once": 1, "fails twice": 2, "hangs": 1, "stuck": 1, "poison": 1 << 30, "kills": 1 << 30}


def ends(plan: Plan, n: int) -> tuple[int, int]:
    """The model: how many effects and dead letters an event makes that nothing happens to."""
    behaviour = plan.behaviours[n]
    return (0, 1) if behaviour == "rejected" or _FAILS.get(behaviour, 0) >= plan.attempts else (1, 0)


def judge(plan: Plan, history: History, partitions: list[Eyes]) -> list[str]:
    """Everything that is wrong after a run, one line each."""
    return [
        *history.wrong,
        *_published(plan, history, partitions),
        *_told(plan, history),
        *_in_order(plan, history, partitions),
        *(line for eyes in partitions for group in plan.groups for line in _handled(plan, history, eyes, group)),
        *(line for eyes in partitions for group in plan.groups for line in _derived(plan, history, eyes, group)),
        *(line for eyes in partitions for group in plan.groups for line in _counted(plan, history, eyes, group)),
        *(line for eyes in partitions for line in _rung(plan, history, eyes)),
        *_seen(plan, history, partitions),
        *_attempted(plan, history),
    ]


def _published(plan: Plan, history: History, partitions: list[Eyes]) -> Iterator[str]:
    """Accepted: there once, under the id that was returned. Refused: not there. Else: once or not at all."""
    where: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for number, eyes in enumerate(partitions):
        for entry_id, n in _entries(eyes, history, "sim.placed").items():
            if n is not None:
                where[n].append((number, entry_id))
    forgotten = history.cut.milliseconds if history.cut else range(0)
    produced = _times(history)
    for n, fate in sorted(history.fate.items()):
        found = where.pop(n, [])
        entry_id = history.entry.get(n, "")
        if fate == "accepted" and n in produced:
            began, told = produced[n]
            if len(found) != 1 and not (forgotten and began < forgotten.stop and told >= forgotten.start):
                yield f"a Producer told that it has stored {n}, found {found}"
        elif fate == "accepted" and _ms(entry_id.lstrip("~")) not in forgotten:
            if n not in history.due and [found_id for _, found_id in found] != [entry_id]:
                yield f"published {n} as {entry_id}, found {found}"
            elif len(found) != 1:
                yield f"published {n} for later as {entry_id}, found {found}"
        if plan.partitions > 1 and {partition for partition, _ in found} - {crc32(str(n).encode()) % plan.partitions}:
            yield f"published {n} in another partition than its key's: {found}"
        if len(found) > (fate != "refused"):
            yield f"published {n}: {fate}, found {found}"
        if (
            n in history.due
            and not plan.happens("clock")
            and any(_ms(one) < int(history.due[n]) - 1 for _, one in found)
        ):
            yield f"published {n} for {history.due[n]:.0f} or later, found {found}"
    if where:
        yield f"nobody published {dict(where)}"


def _times(history: History) -> dict[int, tuple[int, int]]:
    """For what Producers told to be stored: from when to when that may have happened, in ms of the server's clock."""
    times: dict[int, tuple[int, int]] = {}
    for attempt in history.attempts:
        began, until = times.get(attempt.n, (attempt.began, 0))
        times[attempt.n] = began, max([until, *(told.at for told in attempt.told if told.fate == "accepted")])
    return times


def _told(plan: Plan, history: History) -> Iterator[str]:
    """Producers tell of everything what became of it, once it is in the spool or the program lives long enough, and have
    a reason for all that is not stored."""
    how = plan.producing
    tries = Counter(attempt.n for attempt in history.attempts)
    gaps = history.cut or any([*history.trimmed.values(), *history.retained.values()])
    for attempt in history.attempts:
        what = f"the Producer of {attempt.life} published {attempt.n} ({attempt.how})"
        lasts = attempt.kept or attempt.life in history.ended_well
        if attempt.returned and lasts and not attempt.told and tries[attempt.n] == 1:
            yield f"{what} and never told what became of it"
        for told in attempt.told:
            if told.fate == "unknown" and not (gaps or told.leaving):
                yield f"{what} and told in {told.life} that it cannot know: {told.why}"
            if told.fate == "refused" and not (told.leaving or how.drops or plan.capped):
                yield f"{what} and told in {told.life} that it is not there: {told.why}"
        if attempt.returned and tries[attempt.n] == 1 and {*attempt.own} - {told.fate for told in attempt.told}:
            yield f"{what} and told its own callback {attempt.own}, the other {attempt.told}"
        full = attempt.raised == "BufferFull" and (how.drops or attempt.leaving)
        if attempt.raised and not full and (attempt.how, attempt.raised) != ("bad", "EncodeError"):
            yield f"{what}, which raised {attempt.raised}"


def _in_order(plan: Plan, history: History, partitions: list[Eyes]) -> Iterator[str]:
    """What one thread of a program published is there in its order; over a spool what a dead program left comes first."""
    tries = Counter(attempt.n for attempt in history.attempts)
    place = {}
    lives: dict[str, int] = {}
    for at, attempt in enumerate(history.attempts):
        lives.setdefault(attempt.life, len(lives))
        if tries[attempt.n] == 1 and attempt.how != "delayed":
            place[attempt.n] = at, attempt
    for eyes in partitions:
        entries = sorted(_entries(eyes, history, "sim.placed").items(), key=lambda item: id_order(item[0]))
        numbers = [n for _, n in entries if n in place]
        last: dict[tuple[str, int], int] = defaultdict(int)
        newest = 0
        for n in numbers:
            at, attempt = place[n]
            whose = attempt.life, attempt.thread
            if at < last[whose]:
                yield f"{whose} published {n} earlier than what stands before it: {numbers}"
            last[whose] = at
            if plan.producing.spool and lives[attempt.life] < newest:
                yield f"{n} of {attempt.life} stands behind what a later program published: {numbers}"
            newest = max(newest, lives[attempt.life])


def _handled(plan: Plan, history: History, eyes: Eyes, group: str) -> Iterator[str]:
    """One effect or one dead letter for each entry, and which of them."""
    takes, gives = (registry.of(cls).name for cls in GROUPS[group])
    partition = eyes.keys.partition
    entries = _entries(eyes, history, takes)
    codec = Codec()
    done = Counter(_entries(eyes, history, gives).values())
    names: dict[str | None, int] = {str(envelope.id): n for envelope, n in _decoded(eyes, history, takes)}
    letters = [letter for letter in eyes.dead(group) if letter.event_type == takes]
    dead = Counter(names.get(letter.event_id, letter.entry_id) for letter in letters)
    redriven = Counter({names[i]: times for i, times in history.redriven[group].items() if i in names})
    lost = Counter(
        _entry_id(event.detail)
        for event in eyes.events("bus.loss")
        if (event.group, event.topic, event.reason) == (group, takes, "entry_trimmed")
    )
    trimmed = {entry_id for entry_id, _ in history.trimmed[eyes.stream(takes)]}
    loose = (
        (set(), set()) if partition else (history.lost_pending.get(group, set()), history.lost_done.get(group, set()))
    )
    failed = Counter(
        names.get(str(event.event_id), event.entry_id)
        for event in eyes.events("handler.failed")
        if (event.group, event.event_type) == (group, takes)
    )
    bounds: dict[int | str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for entry_id, n in entries.items():  # a topic may have an event twice when the group before it was lost
        least, most = (0, 2) if entry_id in loose[0] else (1, 2) if entry_id in loose[1] else (1, 1)
        if not partition and entry_id not in trimmed and _kept(history, group, entry_id):
            least = 1
        bound = bounds[entry_id if n is None else n]
        bound[0] += 0 if n in history.stale else least
        bound[1] += most
        bound[2] += lost[entry_id]
        if lost[entry_id] and entry_id not in trimmed:
            yield f"{group}: {takes} {entry_id} was told lost, and is there"
    times = Counter(entries.values())
    touched = {n for entry_id, n in entries.items() if entry_id in loose[0] | loose[1] | trimmed or times[n] > 1}
    unsure = _unsure(plan, history, group, {*touched, *redriven})
    for name, (least, most, given_up) in bounds.items():
        given_up += dead[name]
        if failed[name] != dead[name] + redriven[name]:
            yield f"{group}: {failed[name]} handler.failed for {dead[name]} dead letters of {name}"
        effects = done[name] if isinstance(name, int) else 0
        if not least <= effects + given_up <= most:
            behaviour = plan.behaviours[name] if isinstance(name, int) else "a stranger's"
            yield f"{group}: {takes} {name} ({behaviour}): {effects} effects, {given_up} dead letters and losses"
        elif isinstance(name, int) and name not in unsure and (effects, given_up) != ends(plan, name):
            yield f"{group}: {takes} {name} ({plan.behaviours[name]}): {effects} effects, {given_up} dead letters"
    known = set(entries.values())
    if stray := {n for n in done if n not in known}:
        yield f"{group}: effects of what was not there: {sorted(stray)}"
    if stray_letters := set(dead) - set(bounds):
        yield f"{group}: dead letters of what was not there: {sorted(stray_letters)}"
    for letter in letters:
        yield from _deserved(plan, history, codec, group, names.get(letter.event_id), letter)


def _kept(history: History, group: str, entry_id: str) -> bool:
    """Whether it was in the hands of a worker when its group was lost, and nothing has happened to that one, nor to its
    packets: making a group anew takes most of the time for leaving."""
    run = history.lost_held.get(group, {}).get(entry_id)
    if run is None or run.died or history.cut:
        return False
    return run.site.well_since(run.began) and run.site.delayed < run.began


def _derived(plan: Plan, history: History, eyes: Eyes, group: str) -> Iterator[str]:
    """What follows from an event has an id that follows from the event's (DESIGN 4: uuid5 of parent, group, handler and
    index), so that whoever runs it again gives it the same."""
    takes, gives = (registry.of(cls).name for cls in GROUPS[group])
    handler = f"Handlers.worker.<locals>.{'handle_batch' if plan.batch else 'handle'}"
    parents = defaultdict(set)
    for envelope, n in _decoded(eyes, history, takes):
        parents[n].add(envelope.id)
    for envelope, n in _decoded(eyes, history, gives):
        if n in parents and envelope.id not in {uuid5(one, f"{group}\n{handler}\n0") for one in parents[n]}:
            yield f"{group}: the effect of {n} has the id {envelope.id}"


def _counted(plan: Plan, history: History, eyes: Eyes, group: str) -> Iterator[str]:
    """What handlers counted in `ctx.state`, and the parts they wrote, are what their effects say."""
    if "state" not in plan.parts:
        return
    effects = _entries(eyes, history, registry.of(GROUPS[group][1]).name).values()
    wanted = Counter(n % 5 for n in effects if n is not None)
    for number in range(5):
        value = eyes.call("GET", eyes.keys.state(group, f"count {number}"))
        counted = msgspec.msgpack.decode(value[TOKEN:]) if value else 0
        if counted != wanted[number]:
            yield f"{group}: state {number} has counted {counted} of {wanted[number]} effects"
    flat = eyes.call("HGETALL", eyes.keys.parts(group, "all"))
    parts = {int(name): msgspec.msgpack.decode(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
    if parts != {n: n for n in effects}:
        yield f"{group}: parts {sorted(parts)} of effects {sorted(map(str, effects))}"


def _rung(plan: Plan, history: History, eyes: Eyes) -> Iterator[str]:
    """Timers as a person would keep them: what handlers asked for, in the order of their commits, on a sheet of paper."""
    if "timers" not in plan.parts:
        return
    commits = _entries(eyes, history, "sim.framed")
    rung: dict[int, list[int]] = defaultdict(list)
    for entry_id, n in _entries(eyes, history, "sim.rung").items():
        rung[n or 0].append(_ms(entry_id))
    asked = Counter(commits.values())
    for n, times in rung.items():
        timer = timer_of(n)
        if timer is None or timer.after is None or len(times) > asked[n]:
            yield f"the timer of {n} ({timer}) came {len(times)} times for {asked[n]} commits"
    if plan.happens("clock"):
        return
    standing: dict[str, tuple[int, int, int]] = {}  # by timer: whose it is, when it was set, when it is due
    ordered = sorted(commits.items(), key=lambda item: id_order(item[0]))
    for entry_id, n in ordered:
        timer = timer_of(n or 0)
        if timer is None:
            continue
        now, name = _ms(entry_id), timer.name or f"of {n}"
        due = now + round((timer.after or 0) * 1000)
        owner = standing.pop(name, None)
        if owner and any(time > now for time in rung[owner[0]]) and asked[owner[0]] == 1 and owner[0] != n:
            yield f"timer {name} of {owner[0]} came at {rung[owner[0]]}, and {n} had set or removed it at {now}"
        if timer.after is not None:
            standing[name] = n or 0, now, due
            if asked[n] == 1 and any(time < due - 1 for time in rung[n or 0]):
                yield f"timer {name} of {n} came at {rung[n or 0]}, before {due}"
    for name, (n, now, due) in standing.items():
        if not any(time >= due - 1 for time in rung[n]):
            yield f"timer {name} of {n}, set at {now} for {due}, never came: {rung[n]}"


def _seen(plan: Plan, history: History, partitions: list[Eyes]) -> Iterator[str]:
    """A process with a group of its own handles once what comes while it is there."""
    seen = Counter((event.who, event.n) for eyes in partitions for event in eyes.events("sim.seen"))
    for (who, n), times in seen.items():
        if times > 1:
            yield f"{who} saw {n} {times} times"
    for who, instance in history.instances.items():
        for eyes in partitions:
            for entry_id, n in _entries(eyes, history, "sim.placed").items():
                due = n is not None and n not in history.stale and _ms(entry_id) > instance.since
                if instance.stayed and due and not seen[who, n]:
                    yield f"{who} never saw {n} ({entry_id}), and was there since {instance.since}"


def _unsure(plan: Plan, history: History, group: str, lost: set[int | None]) -> set[int | None]:
    """Events to which something happened: more than one worker ran them, or one that died, so that attempts may have been
    forgotten or counted for a worker's death, also for one that came after an attempt was written down and before it began;
    their time was over; a batch ran them, which counts nothing; they were lost, or may have expired."""
    lives = defaultdict(set)
    cut_short = set()
    raised: Counter[int] = Counter()
    for run in history.runs:
        if run.group == group:
            lives[run.n].add(run.consumer)
            charged = run.suspect and (run.site.dead or run.attempt > raised[run.n] + 1)
            if run.died or charged or _too_slow(plan, run):
                cut_short.add(run.n)
            raised[run.n] += run.end == "raised"
    moved = {n for n, consumers in lives.items() if len(consumers) > 1 or plan.batch or history.cut}
    return {*lost, *moved, *cut_short, *history.stale}


def _too_slow(plan: Plan, run: Run) -> bool:
    """Each asks for a state: when the server is away then, its timeout comes first."""
    return run.end == "cancelled" and plan.behaviours[run.n] not in ("hangs", "stuck") and "state" in plan.parts


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
        downs = sum(run.end == "down" for run in history.runs if (run.group, run.n) == (group, n))
        late = sum(_too_slow(plan, run) for run in history.runs if (run.group, run.n) == (group, n))
        own = STUCK_RUNS if behaviour == "stuck" else _FAILS.get(behaviour, 0)
        fails = own + deaths + downs + late
        if attempts != plan.attempts or fails < plan.attempts or (reason == "lost_workers" and not deaths):
            yield f"{group}: {n} ({behaviour}) was given up as {reason} after {attempts} of {plan.attempts} attempts"
    elif (reason, behaviour) != ("rejected", "rejected"):
        yield f"{group}: {n} ({behaviour}) was given up as {reason}"


def _attempted(plan: Plan, history: History) -> Iterator[str]:
    """Attempts are bounded. Those that a worker could not write down before it went are not known to the next one."""
    ran: dict[tuple[str, int, str], list[Run]] = defaultdict(list)
    for run in history.runs:
        ran[run.group, run.partition, run.entry_id].append(run)
        if run.attempt > plan.attempts:
            yield f"{run.group}: attempt {run.attempt} of {plan.attempts} at {run.n}"
    for (group, _, entry_id), runs in ran.items():
        if (
            history.cut
            or entry_id in history.lost_pending.get(group, ())
            or entry_id in history.lost_done.get(group, ())
        ):
            continue
        yield from _numbered(plan, runs)
        ends_in = Counter(run.end for run in runs)
        lives = len({run.consumer for run in runs})
        if ends_in["kills"] > plan.attempts + 2:  # in the crowd, among others, and each attempt alone
            yield f"{group}: {runs[0].n} killed {ends_in['kills']} workers, {plan.attempts} attempts are allowed"
        unwritten = plan.attempts - (not _silent(plan))  # so often it may fail before anybody hears of it
        if not plan.batch and ends_in["raised"] > plan.attempts + unwritten * (lives - 1):
            yield f"{group}: {runs[0].n} failed {ends_in['raised']} times in {lives} lives of {plan.attempts} attempts"


def _numbered(plan: Plan, runs: list[Run]) -> Iterator[str]:
    """The runs of one entry, in order, have the right numbers: each failure counts, nothing else does."""
    for before, run in pairwise(runs):
        if run.consumer == before.consumer and not plan.batch:
            counted = run.attempt - before.attempt
            wanted = {"raised": (1,), "returned": (0,), "later": (0,), "down": (0, 1)}.get(before.end, (0, 1))
            if counted not in wanted:
                yield f"{run.group}: attempt {run.attempt} at {run.n} after attempt {before.attempt} {before.end}"
    failed = 0
    for run, after in zip(runs, [*runs[1:], None], strict=True):
        if run.attempt > 1 + failed:
            yield f"{run.group}: attempt {run.attempt} at {run.n}, which had failed {failed} times"
        lost = run.suspect and after is not None and after.consumer != run.consumer  # it died before it was committed
        failed += lost or (run.end not in ("returned", "later", "rejected") and (not run.died or run.suspect))


def _silent(plan: Plan) -> bool:
    """Whether a worker may be out of reach of the server for longer than its attempts take."""
    return plan.weather != CALM or any(map(plan.happens, ("pause", "cut off", "outage", "mood", "restart")))


def _rows(eyes: Eyes, history: History, event_type: str) -> dict[str, list[bytes]]:
    """Every entry that was ever added to the topic: its id and its fields."""
    stream = eyes.stream(event_type)
    rows = [(row[0].decode(), row[1]) for row in eyes.call("XRANGE", stream, "-", "+")]
    return dict([*history.trimmed[stream], *history.retained[stream], *rows])


def _entries(eyes: Eyes, history: History, event_type: str) -> dict[str, int | None]:
    """The same: its id and the number of its event; None: it is a stranger's."""
    codec = Codec()
    found: dict[str, int | None] = {}
    for entry_id, fields in _rows(eyes, history, event_type).items():
        try:
            found[entry_id] = codec.decode(fields[1], stream_type=event_type, entry_id=entry_id)[1].n  # type: ignore[attr-defined]
        except CanvasbusError:
            found[entry_id] = None
    return found


def _decoded(eyes: Eyes, history: History, event_type: str) -> Iterator[tuple[Envelope, int]]:
    """The envelopes of those that are no stranger's, and the numbers of their events."""
    codec = Codec()
    for entry_id, fields in _rows(eyes, history, event_type).items():
        try:
            envelope, event = codec.decode(fields[1], stream_type=event_type, entry_id=entry_id)
        except CanvasbusError:
            continue
        yield envelope, event.n  # type: ignore[attr-defined]


def _ms(entry_id: str) -> int:
    return id_order(entry_id)[0]


def _entry_id(detail: str) -> str:
    match = re.search(r"\d+-\d+", detail)
    return match[0] if match else detail
