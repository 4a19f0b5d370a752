"""Run seeds of the simulation.

python tests/simulation/run.py --seeds 1000 [--jobs 2] [--from N]      many seeds, figures at the end
python tests/simulation/run.py --seed N --trace                        one, with everything that happens
"""

import argparse
import gc
import hashlib
import os
import signal
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import structlog
import trio
from simulation.judge import judge
from simulation.plan import draw
from simulation.repeatable import repeatable
from simulation.world import World

SECONDS = 30
"""Real time that one seed may take; then something in it turns without end."""


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
    *("retry", "reap", "take", "audit", "fence raised", "fenced", "rejoin", "hand back", "script loaded again"),
    *("publish verified", "late transaction aborted", "dead letter: rejected", "dead letter: exhausted"),
    *("dead letter: lost_workers", "loss: entry_trimmed", "loss: group_recreated"),
)
"""The ways of recovery: each must be taken in some run, or the runs prove nothing about it."""


def never(seen: Counter[str]) -> list[str]:
    """What of that did not happen."""
    return [what for what in SOMETIMES if not seen[what]]


SHOWN = 10
"""Failed seeds that are named, at most."""


class Endless(BaseException):
    """The seed does not end in real time."""


def simulate(seed: int, *, trace: bool = False) -> Result:
    """Run one seed and judge it."""
    plan = draw(seed)
    if trace:
        print(plan)
    world = World(plan, trace=trace)

    def say(_: object, method: str, facts: dict[str, object]) -> str:
        world.note("log", f"{method}: {facts.pop('event')} {facts}")
        raise structlog.DropEvent

    def give_up(*_: object) -> None:
        raise Endless

    structlog.configure(processors=[say], wrapper_class=structlog.BoundLogger)
    if not trace:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        with repeatable(seed) as clock:
            trio.run(world.run, clock=clock)
            virtual = clock.current_time()
        wrong = judge(plan, world.history, world.eyes)
    except Exception:
        return Result(seed, [f"the run itself crashed: {traceback.format_exc()}"], world.log)
    except Endless:
        return Result(seed, [f"no end within {SECONDS} s of real time"], world.log)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        structlog.reset_defaults()
    return Result(seed, wrong, world.log, world.seen(), virtual, world.network.commands.total())


def replay(seed: int) -> str:
    """The command that runs a seed again."""
    return f"python tests/simulation/run.py --seed {seed} --trace"


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
    options = parser.parse_args()
    seeds = [options.seed] if options.seed is not None else range(options.start, options.start + options.seeds)
    if options.trace:
        results = [simulate(seed, trace=True) for seed in seeds]
        for result in results:
            print("\n".join(result.wrong) or "sound")
        return int(any(result.wrong for result in results))
    began = time.perf_counter()
    seen: Counter[str] = Counter()
    schedules: Counter[str] = Counter()
    failed, virtual, commands = [], 0.0, 0
    with ProcessPoolExecutor(options.jobs, initializer=gc.freeze) as pool:
        for result in pool.map(simulate, seeds, chunksize=10):
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
