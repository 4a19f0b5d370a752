"""The chaos run: real processes, a real server, and a nemesis that kills and stops them.

    python tests/process/chaos.py --events 200000 --kills 60 --restarts 5 --seed 1

Two producers ask, three workers answer every event by a derived one, each of them a process. Meanwhile workers are
killed (-9) and started again, stopped for longer than the heartbeat limit and let go, and the server, which writes every
command to disk before it answers, is killed and started again on its files. One event kills whoever handles it. The
blows end with the publishing; then everything must settle by itself. Prints figures, and what is wrong (exit code 1).
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).parent
if str(HERE.parent) not in sys.path:  # run as a program
    sys.path.insert(0, str(HERE.parent))

import msgspec
import redis
import trio
from process.nemesis import Blow, plan
from process.verdict import History, verdict
from servers import ServerProcess, binaries, python_path

from canvasbus.wire import deadletter
from canvasbus.wire.codec import decode_envelope
from canvasbus.wire.keys import Keys

WORKERS = 3
PRODUCERS = 2
GROUP = "answering"
KEYS = Keys("chaos")
SETTLE_SECONDS = 90.0
"""What settling may take after the last blow; what is not done by then counts as lost."""

POISONED_FOR = 0.5
"""Seconds until a worker that the poison has killed is started again."""


@dataclass
class Struck:
    """A blow that was dealt."""

    kind: str
    at_ms: float
    """Wall time; entry ids are of the same clock."""
    held: list[bytes] = field(default_factory=list)
    """Entry ids that the worker had in hand."""


@dataclass
class Outcome:
    """What a run came to."""

    history: History
    struck: list[Struck]
    exit_codes: list[int]
    """Of the workers, when they were told to leave at the end."""
    settled: float
    """Seconds from the last event's acceptance until everything was settled; inf: it never was."""
    asked_ms: dict[Any, float]
    """Event id → when it was stored."""
    asked_ids: dict[bytes, Any]
    """Entry id → event id."""
    answered_ms: dict[Any, float]
    """Causation id → when the answer was stored."""

    @property
    def wrong(self) -> list[str]:
        """Everything that is wrong."""
        late = [f"not settled within {SETTLE_SECONDS:g} s"] if self.settled == float("inf") else []
        failed = [f"workers left with {self.exit_codes}"] if any(self.exit_codes) else []
        return late + failed + verdict(self.history)

    def figures(self) -> list[str]:
        """What it took."""
        count = {kind: sum(s.kind == kind for s in self.struck) for kind in ("kill", "pause", "restart")}
        first, last = min(self.asked_ms.values()), max(self.answered_ms.values())
        waits = sorted(self.answered_ms[i] - self.asked_ms[i] for i in self.answered_ms if i in self.asked_ms)
        seconds = (last - first) / 1000
        blows = f"{count['kill']} workers killed, {count['pause']} stopped, the server killed {count['restart']} times"
        told = f"median {statistics.median(waits):.0f} ms, p99 {waits[len(waits) * 99 // 100]:,.0f} ms"
        took = f"{self._recovery('kill'):.1f} s after a kill, {self._recovery('pause'):.1f} s after a stop"
        return [
            f"{len(waits):,} events answered in {seconds:.1f} s, {len(waits) / seconds:,.0f}/s; {blows}",
            f"publish to answer: {told}, slowest {waits[-1]:,.0f} ms",
            f"what a worker had in hand: answered at most {took}",
            f"the server: next answer at most {self._server_recovery():.1f} s after its death",
            f"settled {self.settled:.1f} s after the last event was accepted",
        ]

    def _recovery(self, kind: str) -> float:
        """Seconds from a blow until the last event that its worker had in hand was answered."""
        took = [0.0]
        for struck in self.struck:
            if struck.kind == kind:
                answers = [self.answered_ms.get(self.asked_ids.get(entry_id)) for entry_id in struck.held]
                took += [(at - struck.at_ms) / 1000 for at in answers if at is not None]
        return max(took)

    def _server_recovery(self) -> float:
        """Seconds from the server's death until the first answer after it."""
        answers = sorted(self.answered_ms.values())
        took = [0.0]
        for struck in self.struck:
            if struck.kind == "restart":
                took.append(next(((at - struck.at_ms) / 1000 for at in answers if at > struck.at_ms + 1), 0.0))
        return max(took)


class Worker:
    """One canvasbus-worker, started again whenever it dies."""

    def __init__(self, number: int, url: str, folder: Path, attempts: int) -> None:
        self.process: trio.Process | None = None
        self.paused = False
        self.dead_for = POISONED_FOR
        self.exit_code: int | None = None
        self._stop = False
        self._log = folder / f"worker-{number}.log"
        self._command = [sys.executable, "-m", "canvasbus.cli.worker", "chaos_programs:worker"]
        self._command += ["--url", url, "--namespace", "chaos", "--log-format", "json", "--log-level", "warning"]
        self._folder = folder
        self._environ = dict(os.environ) | {"PYTHONPATH": python_path(HERE), "CHAOS_ATTEMPTS": str(attempts)}

    async def run(self) -> None:
        """Keep it running until `leave`."""
        with self._log.open("ab") as log:
            while not self._stop:
                self.process = await trio.lowlevel.open_process(
                    self._command, cwd=self._folder, env=self._environ, stderr=log, stdout=log
                )
                try:
                    code = await self.process.wait()
                finally:
                    if self.process.returncode is None:
                        self.process.kill()
                self.paused = False
                if self._stop:
                    self.exit_code = code
                    return
                self.process = None
                pause, self.dead_for = self.dead_for, POISONED_FOR
                await trio.sleep(pause)

    @property
    def up(self) -> bool:
        return self.process is not None and self.process.returncode is None and not self.paused

    def kill(self, dead_for: float) -> None:
        """kill -9; it comes again after so many seconds."""
        assert self.process is not None
        self.dead_for = dead_for
        self.process.kill()

    async def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so many seconds, if it still lives."""
        process = self.process
        assert process is not None
        self.paused = True
        process.send_signal(signal.SIGSTOP)
        await trio.sleep(seconds)
        if process is self.process and process.returncode is None:
            process.send_signal(signal.SIGCONT)
            self.paused = False

    def leave(self) -> None:
        """SIGTERM, for good."""
        self._stop = True
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()


class Chaos:
    """One run."""

    def __init__(
        self,
        server: ServerProcess,
        folder: Path,
        blows: list[Blow],
        *,
        events: int,
        seconds: float,
        seed: int,
        attempts: int,
    ) -> None:
        self._server = server
        self._folder = folder
        self._blows = blows
        self._events = events
        self._seconds = seconds
        self._poison = Random(seed).randrange(events // 4, events // 2)
        self._attempts = attempts
        self._workers = [Worker(number, server.url, folder, attempts) for number in range(WORKERS)]
        self._redis = redis.Redis.from_url(server.url, socket_timeout=5)
        self._struck: list[Struck] = []
        self._accepted: set[int] = set()

    async def run(self) -> Outcome:
        """Publish under blows, wait until everything is settled, look at what is there."""
        async with trio.open_nursery() as nursery:
            for worker in self._workers:
                nursery.start_soon(worker.run)
            async with trio.open_nursery() as trouble:
                for number in range(PRODUCERS):
                    bounds = [self._events * part // PRODUCERS for part in (number, number + 1)]
                    trouble.start_soon(self._ask, *bounds)
                trouble.start_soon(self._strike, trouble)
            began = trio.current_time()
            settled = float("inf")
            with trio.move_on_after(SETTLE_SECONDS):
                while not self._is_settled():
                    await trio.sleep(0.1)
                settled = trio.current_time() - began
            consumers = self._consumers()
            for worker in self._workers:
                worker.leave()
        return self._outcome(settled, consumers)

    # --- what happens ------------------------------------------------------------------------------------------------

    async def _ask(self, first: int, end: int) -> None:
        command = [sys.executable, str(HERE / "chaos_programs.py"), str(first), str(end)]
        command += [str(self._seconds), str(self._poison)]
        environ = dict(os.environ) | {"PYTHONPATH": python_path(HERE), "CANVASBUS_URL": self._server.url}
        done = await trio.run_process(command, capture_stdout=True, env=environ)
        for line in done.stdout.splitlines():
            told = json.loads(line)
            if told["accepted"]:
                self._accepted |= set(range(told["first"], told["end"]))

    async def _strike(self, nursery: trio.Nursery) -> None:
        begun = trio.current_time()
        for blow in self._blows:
            await trio.sleep_until(begun + blow.at)
            if blow.kind == "restart":
                self._struck.append(Struck("restart", time.time() * 1000))
                self._server.kill()
                await trio.sleep(blow.seconds)
                await trio.to_thread.run_sync(self._server.start)
                continue
            order = [self._workers[(blow.worker + turn) % WORKERS] for turn in range(WORKERS)]
            worker = next((one for one in order if one.up), None)
            if worker is None or worker.process is None:
                continue
            held = self._held(worker.process.pid)
            self._struck.append(Struck(blow.kind, time.time() * 1000, held))
            if blow.kind == "kill":
                worker.kill(blow.seconds)
            else:
                nursery.start_soon(worker.pause, blow.seconds)

    def _held(self, pid: int) -> list[bytes]:
        """Entry ids in the hands of a worker; none while the server is away."""
        stream = KEYS.stream("chaos.asked")
        try:
            for consumer in self._redis.xinfo_consumers(stream, GROUP):
                if f"-{pid}-".encode() in consumer["name"]:
                    rows = self._redis.xpending_range(stream, GROUP, "-", "+", 10_000, consumer["name"])
                    return [row["message_id"] for row in rows]
        except redis.RedisError:
            pass
        return []

    # --- what is there -----------------------------------------------------------------------------------------------

    def _is_settled(self) -> bool:
        try:
            (group,) = self._redis.xinfo_groups(KEYS.stream("chaos.asked"))
            done = self._redis.xlen(KEYS.stream("chaos.answered")) + self._redis.xlen(KEYS.dead(GROUP))
            asked = self._redis.xlen(KEYS.stream("chaos.asked"))
        except (redis.RedisError, ValueError):
            return False
        return done >= asked and group["pending"] == 0 and len(self._consumers()) == WORKERS

    def _consumers(self) -> list[str]:
        """Names in the group and names that beat: a server makes a consumer when it first gets an entry."""
        names = {row["name"].decode() for row in self._redis.xinfo_consumers(KEYS.stream("chaos.asked"), GROUP)}
        names |= {name.decode() for name in self._redis.hkeys(KEYS.beats(GROUP))}
        return sorted(name for name in names if not name.startswith("~"))

    def _entries(self, stream: bytes) -> Iterator[tuple[bytes, bytes]]:
        start = b"-"
        while rows := self._redis.xrange(stream, start, "+", 5000):
            yield from ((entry_id, fields[b"e"]) for entry_id, fields in rows)
            start = b"(" + rows[-1][0]

    def _outcome(self, settled: float, consumers: list[str]) -> Outcome:
        history = History(WORKERS, accepted=self._accepted, poison={self._poison}, consumers=consumers)
        asked_ms: dict[Any, float] = {}
        asked_ids: dict[bytes, Any] = {}
        answered_ms: dict[Any, float] = {}
        for entry_id, value in self._entries(KEYS.stream("chaos.asked")):
            envelope = decode_envelope(value)
            history.asked.append((envelope.id, msgspec.msgpack.decode(envelope.data)["number"]))
            asked_ms[envelope.id] = _milliseconds(entry_id)
            asked_ids[entry_id] = envelope.id
        for entry_id, value in self._entries(KEYS.stream("chaos.answered")):
            envelope = decode_envelope(value)
            history.answered.append((envelope.causation_id, msgspec.msgpack.decode(envelope.data)["number"]))
            answered_ms.setdefault(envelope.causation_id, _milliseconds(entry_id))
        for _, value in self._entries(KEYS.dead(GROUP)):
            record = deadletter.decode(value)
            history.dead.append((asked_ids.get(record.entry_id.encode(), record.event_id), record.reason))
        for _, value in self._entries(KEYS.stream("bus.loss")):
            history.losses.append(msgspec.msgpack.decode(decode_envelope(value).data)["detail"])
        (group,) = self._redis.xinfo_groups(KEYS.stream("chaos.asked"))
        history.pending = group["pending"]
        codes = [-1 if worker.exit_code is None else worker.exit_code for worker in self._workers]
        return Outcome(history, self._struck, codes, settled, asked_ms, asked_ids, answered_ms)


def _milliseconds(entry_id: bytes) -> float:
    return float(entry_id.partition(b"-")[0])


async def chaos(
    server: ServerProcess,
    folder: Path,
    *,
    events: int,
    seconds: float,
    seed: int,
    kills: int,
    pauses: int,
    restarts: int,
    attempts: int,
) -> Outcome:
    """A run on a server that is `persistent`. Logs go to `folder`."""
    blows = plan(seed, seconds, kills=kills, pauses=pauses, restarts=restarts, workers=WORKERS)
    return await Chaos(server, folder, blows, events=events, seconds=seconds, seed=seed, attempts=attempts).run()


def main() -> int:
    """Run once and print what came of it."""
    parser = argparse.ArgumentParser(description="Real processes, a real server, and a nemesis.")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=60, help="kill -9 of a worker")
    parser.add_argument("--pauses", type=int, help="SIGSTOP of a worker for longer than the heartbeat limit (kills/4)")
    parser.add_argument("--restarts", type=int, default=5, help="kill -9 and restart of the server")
    parser.add_argument("--seconds", type=float, help="how long the producers take (3 per kill, at least 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", choices=sorted(binaries()), default=next(iter(binaries())))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ServerProcess(binaries()[options.server], persistent=True) as server:
        outcome = trio.run(
            lambda: chaos(
                server,
                Path(folder),
                events=options.events,
                seconds=options.seconds or max(20.0, options.kills * 3.0),
                seed=options.seed,
                kills=options.kills,
                pauses=options.kills // 4 if options.pauses is None else options.pauses,
                restarts=options.restarts,
                attempts=5,
            )
        )
        print(*outcome.figures(), sep="\n")
        for sentence in outcome.wrong:
            print(f"WRONG: {sentence}")
        if outcome.wrong:
            for log in sorted(Path(folder).glob("*.log")):
                print(f"--- the end of {log.name}:", *log.read_text().splitlines()[-5:], sep="\n")
            return 1
    print("0 lost, 0 doubled, 1 dead letter: the poison")
    return 0


if __name__ == "__main__":
    sys.exit(main())
