"""canvasbus demo --all-seeds: the story of ten seeds, and a table of what came of them.

Each is a `canvasbus demo --json --seed N` of its own, so that a row is what anybody gets who plays that seed alone. Two
at a time: a story mostly waits, but it trains, too.
"""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from subprocess import DEVNULL

import msgspec
import trio

from canvasbus.cli import demo
from canvasbus.cli.figures import Figures, heading, overall, overall_lines, row
from canvasbus.cli.outcome import Line
from canvasbus.cli.output import Output, safe, short

SEEDS = tuple(range(10))
AT_A_TIME = min(2, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Played:
    """One story that has ended."""

    code: int
    figures: Figures | None
    """None: it came to no end."""
    said: str
    """The last line on stderr."""


def run(out: Output, *, url: str | None, speed: float) -> int:
    """0; 1 when a story did not end with 0; 130 when interrupted. Raises ConfigError for missing extras, and Unavailable
    for a server that is away."""
    demo.check(url)
    environment = dict(os.environ) | ({"CANVASBUS_URL": url} if url else {})
    found = trio.run(_play_all, out, environment, speed)
    if found is None:
        out.note("canvasbus: demo interrupted")
        return 130
    _end(out, found)
    return 0 if all(played.code == 0 and played.figures for played in found.values()) else 1


async def _play_all(out: Output, environment: Mapping[str, str], speed: float) -> dict[int, Played] | None:
    """None: interrupted."""
    found: dict[int, Played] = {}
    told: dict[int, Played] = {}
    limit = trio.CapacityLimiter(AT_A_TIME)
    _begin(out)

    async def play(seed: int) -> None:
        found[seed] = await _play(seed, environment, speed)
        limit.release_on_behalf_of(seed)
        for other in SEEDS[len(told) :]:  # in their order, each as soon as those before it are there
            if other not in found:
                break
            told[other] = found[other]
            _tell(out, other, found[other])

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(leave)
            async with trio.open_nursery() as stories:
                for seed in SEEDS:
                    await limit.acquire_on_behalf_of(seed)
                    stories.start_soon(play, seed)
            nursery.cancel_scope.cancel()
    return told if len(told) == len(SEEDS) else None


async def _play(seed: int, environment: Mapping[str, str], speed: float) -> Played:
    command = [sys.executable, "-m", "canvasbus", "demo", "--json", "--seed", str(seed), "--speed", str(speed)]
    # A session of its own: Ctrl-C reaches this process alone, which ends the others in order.
    ended = await trio.run_process(
        command,
        check=False,
        capture_stdout=True,
        capture_stderr=True,
        stdin=DEVNULL,
        env=environment,
        start_new_session=True,
    )
    return played(ended.returncode, ended.stdout, ended.stderr)


def played(code: int, stdout: bytes, stderr: bytes) -> Played:
    """What a story printed."""
    last = stdout.strip().rpartition(b"\n")[2]
    said = (stderr.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
    try:
        summary = msgspec.json.decode(last)["summary"]
    except (msgspec.DecodeError, KeyError):
        return Played(code, None, said)
    return Played(code, msgspec.convert(summary["figures"], Figures), said)


# --- how it is told -------------------------------------------------------------------------------------------------------


def _begin(out: Output) -> None:
    if out.json:
        return
    out.line(f"canvasbus demo, seeds {SEEDS[0]} to {SEEDS[-1]}, {AT_A_TIME} at a time: takes some minutes")
    out.line()
    for line in heading():
        out.line(_painted(out, line))
    out.flush()


def _tell(out: Output, seed: int, one: Played) -> None:
    if out.json:
        figures = asdict(one.figures) if one.figures else None
        out.record({"seed": seed, "code": one.code, "figures": figures} | ({} if figures else {"error": one.said}))
    elif one.figures is None:
        out.line(out.paint(short(f"{seed:4}  came to no end ({one.code}): {safe(one.said)}", 80), "red"))
    else:
        out.line(_painted(out, row(seed, one.figures)))
    out.flush()


def _end(out: Output, found: Mapping[int, Played]) -> None:
    figures = {seed: one.figures for seed, one in found.items() if one.figures is not None}
    if not figures:
        return
    if out.json:
        out.record({"overall": [asdict(one) for one in overall(figures)]})
        return
    for line in overall_lines(figures):
        out.line(_painted(out, line))


def _painted(out: Output, line: Line) -> str:
    return "".join(out.paint(text, style) if text.strip() else text for text, style in line).rstrip()
