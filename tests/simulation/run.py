"""Run seeds of the simulation: real workers and publishers on a server in memory, in virtual time, with faults.

What takes part and what happens: plan.py. The processes: world.py, what their handlers do: handlers.py, programs with a
Producer: producers.py. What happens to them (site.py) and to the server: faults.py, on the road to it: network.py, and to
one packet: weather.py. What is written down of it: history.py. What must be so in the end, said without looking at how the bus works: judge.py. Bugs
that are planted to see that it finds them: mutants.py.

python tests/simulation/run.py --seeds 1000 [--jobs 2] [--from N]      many seeds, figures at the end
nice python tests/simulation/run.py --seeds 20000 --from N             a night's worth; says every 500 seeds how far it is
python tests/simulation/run.py --seed N --trace                        one, with everything that happens
python tests/simulation/run.py --mutants [NAME...] [--jobs 2]          planted bugs, and in how many of 40 seeds each is found
python tests/simulation/run.py --seed N --trace --mutants NAME         one seed with a bug
"""

import argparse
import functools
import gc
import hashlib
import os
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import structlog
import trio
from simulation.judge import judge
from simulation.mutants import BY_NAME, Mutant
from simulation.plan import Plan, draw
from simulation.repeatable import repeatable
from simulation.world import World

from canvasbus.produce import publisher
from canvasbus.produce.buffer import BATCH_EVENTS

SECONDS = 30
"""What one seed may take of a processor; then something in it turns without end."""
WAITING_SECONDS = 600
"""The same in real time, for what waits without end; the machine may have other things to do."""


@dataclass
class Result:
    """What came out of one seed."""

    seed: int
    wrong: list[str]
    log: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    virtual: float = 0.0
    commands: int = 0


SOMETIMES = (
    *(
        "retry",
        "reap",
        "take",
        "audit",
        "fence raised",
        "raised late",
        "fenced",
        "rejoin",
        "hand back",
        "script loaded again",
    ),
    *(
        "batch begun early",
        "publish verified",
        "late transaction aborted",
        "dead letter: rejected",
        "dead letter: exhausted",
    ),
    *("dead letter: lost_workers", "loss: entry_trimmed", "loss: group_recreated"),
    *("trimmed by retention", "timer fired", "seen by an instance", "run down", "fault: restart", "fault: clock"),
    *("fault: group paused", "group set back", "redriven"),
    *("producer: flushed", "producer: told refused", "producer: killed at the disk", "producer: Ctrl-C"),
    *("producer: killed with a late packet", "producer: published by a signal"),
)
"""The ways of recovery: each must be taken in some run, or the runs prove nothing about it."""


def never(seen: Counter[str]) -> list[str]:
    """What of that did not happen."""
    return [what for what in SOMETIMES if not seen[what]]


SHOWN = 10
"""Failed seeds that are named, at most."""


CRASHED = "the run itself crashed"


_TIMERS = (signal.SIGPROF, signal.SIGALRM)


class Endless(BaseException):
    """The seed does not end in real time."""


def simulate(seed: int, *, trace: bool = False, mutant: Mutant | None = None) -> Result:
    """Run one seed and judge it, with a bug planted if there is one: then the first complaint ends it, as a rule."""
    if mutant is None:
        return _simulate(draw(seed), trace=trace, impatient=False)
    with mutant.planted():
        return _simulate(draw(seed, wanted=mutant.wants), trace=trace, impatient=not mutant.patient)


def _simulate(plan: Plan, *, trace: bool, impatient: bool) -> Result:
    seed = plan.seed
    if trace:
        print(plan)
    world = World(plan, trace=trace, impatient=impatient)

    def say(_: object, method: str, facts: dict[str, object]) -> str:
        world.note("log", f"{method}: {facts.pop('event')} {facts}")
        raise structlog.DropEvent

    def give_up(*_: object) -> None:
        raise Endless

    structlog.configure(processors=[say], wrapper_class=structlog.BoundLogger)
    if not trace:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    before = [signal.signal(number, give_up) for number in _TIMERS]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING_SECONDS)
    try:
        # Many events go out in one batch, or in several that are begun early: no plan is another for that.
        with repeatable(seed) as clock, patch.object(publisher, "BATCH_EVENTS", (BATCH_EVENTS, 2, 1)[seed % 3]):
            trio.run(world.run, clock=clock)
            virtual = clock.current_time()
        wrong = (
            world.history.wrong if impatient and world.history.wrong else judge(plan, world.history, world.partitions)
        )
    except Exception:  # whatever it is, the other seeds go on, and this one counts as failed
        return Result(seed, [f"{CRASHED}: {traceback.format_exc()}"], world.log)
    except (Endless, BaseExceptionGroup) as error:
        if not isinstance(error, Endless) and error.subgroup(Endless) is None:
            raise
        return Result(seed, [f"no end within {SECONDS} s of a processor's time"], world.log)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in zip(_TIMERS, before, strict=True):
            signal.signal(number, handler)
        structlog.reset_defaults()
    return Result(seed, wrong, world.log, world.seen(), virtual, world.network.commands.total())


def replay(seed: int) -> str:
    """The command that runs a seed again."""
    return f"python tests/simulation/run.py --seed {seed} --trace"


MUTANT_SEEDS = range(40)


@dataclass
class Hunt:
    """What became of a planted bug."""

    caught: int
    tried: int
    complaints: Counter[str]


def hunt(name: str, seeds: Iterable[int] = MUTANT_SEEDS, *, enough: int | None = None, give_up: int = 1 << 30) -> Hunt:
    """Run seeds with a bug; end when it was found in `enough` of them, or was not in `give_up`. A run that crashes has
    not found it, nor has one that is wrong without the bug, too: what a plant wants may be more than any judge can tell."""
    found = Hunt(0, 0, Counter())
    for seed in seeds:
        wrong = simulate(seed, mutant=BY_NAME[name]).wrong
        found.tried += 1
        crashed = bool(wrong) and (CRASHED in wrong[0] or "NameError" in wrong[0])
        if wrong and (crashed or not _sound(seed, BY_NAME[name].wants)):
            found.complaints["!" + wrong[0][-200:]] += 1
        elif wrong:
            found.caught += 1
            found.complaints[re.sub(r"[\d.-]+", "…", wrong[0])[:90]] += 1
        if found.caught == enough or found.tried - found.caught == give_up:
            break
    return found


@functools.cache
def _sound(seed: int, wants: frozenset[str]) -> bool:
    return not _simulate(draw(seed, wanted=wants), trace=False, impatient=False).wrong


def tune_collector() -> None:
    """A run makes no garbage but what dies by itself, and what is found late costs memory only."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def hunt_all(names: list[str], jobs: int) -> int:
    """Plant bugs one after the other, and print a table."""
    names = names or list(BY_NAME)
    missed = 0
    print(f"{'promise':8} {'planted':44} caught  the usual complaint")
    with ProcessPoolExecutor(jobs, initializer=tune_collector) as pool:
        for name, found in zip(names, pool.map(hunt, names), strict=True):
            missed += 2 * found.caught < found.tried if BY_NAME[name].classic else not found.caught
            complaint, _ = found.complaints.most_common(1)[0] if found.complaints else ("none", 0)
            print(f"{BY_NAME[name].promise:8} {name:44} {found.caught:2}/{found.tried}   {complaint}", flush=True)
    print(f"{len(names)} bugs, {missed} of them not found (the classic ones: in less than half of the seeds)")
    return int(missed > 0)


def digest(result: Result) -> str:
    """A short name for all that happened."""
    return hashlib.sha256("\n".join([*result.log, *result.wrong]).encode()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run seeds of the simulation.")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="start", help="the first one")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--mutants", nargs="*", metavar="NAME", choices=BY_NAME, help="plant bugs; all of them")
    options = parser.parse_args()
    if options.mutants is not None and options.seed is None:
        return hunt_all(options.mutants, options.jobs)
    mutant = BY_NAME[options.mutants[0]] if options.mutants else None
    seeds = [options.seed] if options.seed is not None else range(options.start, options.start + options.seeds)
    if options.trace:
        results = [simulate(seed, trace=True, mutant=mutant) for seed in seeds]
        for result in results:
            print("\n".join(result.wrong) or "sound")
        return int(any(result.wrong for result in results))
    began = time.perf_counter()
    seen: Counter[str] = Counter()
    schedules: Counter[str] = Counter()
    failed, virtual, commands = [], 0.0, 0
    with ProcessPoolExecutor(options.jobs, initializer=tune_collector) as pool:
        for done, result in enumerate(pool.map(simulate, seeds, chunksize=10), start=1):
            if done % 500 == 0:
                print(f"{done} seeds, {len(failed)} failed", flush=True)
            seen += result.seen
            schedules.update(result.seen.keys())
            virtual += result.virtual
            commands += result.commands
            if result.wrong:
                failed.append(result.seed)
                if len(failed) <= SHOWN:
                    print(f"seed {result.seed}: {result.wrong[0][-400:]}\n  again: {replay(result.seed)}", flush=True)
    took = time.perf_counter() - began
    for what, count in sorted(seen.items()):
        print(f"{what:32} {count:8}  in {schedules[what] / len(seeds):6.1%} of the runs")
    missing = never(seen) if len(seeds) >= 100 else []
    for what in missing:
        print(f"never happened: {what}")
    print(
        f"{len(seeds)} seeds, {len(failed)} failed; {virtual:,.0f} s of bus time and {commands:,} packets in {took:.0f} s: "
        f"{len(seeds) / took:.1f} seeds/s"
    )
    return int(bool(failed or missing))


if __name__ == "__main__":
    os.environ.pop("CANVASBUS_URL", None)
    raise SystemExit(main())
