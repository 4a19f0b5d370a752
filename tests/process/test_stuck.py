"""Worker programs whose loop is blocked by a handler: real processes and real blocking."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import python_path
from studio import Eyes, quiet
from waiting import until

from canvasbus import Event, Producer, event

pytestmark = pytest.mark.long

UNIT = """
import time
from canvasbus import Event, event
from canvasbus.worker import Backoff, Context, Worker

@event("stuck.asked")
class Asked(Event):
    number: int
    blocks: float = 0.0
    extends: float = 0.0

@event("stuck.answered")
class Answered(Event):
    number: int

worker = Worker("unit")

@worker.on(Asked, retry=Backoff(attempts=1))
async def on_asked(event: Asked, ctx: Context) -> Answered:
    if event.extends:
        ctx.extend(event.extends)
    block_stubbornly(event.blocks)
    return Answered(number=event.number)

def block_stubbornly(seconds):
    time.sleep(seconds)
"""

OWN_PROGRAM = """
import sys
import trio
from canvasbus.bus import EventBus
from unit import Asked, worker

async def main(url, namespace):
    async with EventBus(url, namespace=namespace, max_block=1.0) as bus:
        bus.add(worker)
        await bus.wait_ready()
        await bus.publish(Asked(number=1, blocks=2.5))
        with trio.fail_after(20):
            while bus.statistics()[0].handled < 1:
                await trio.sleep(0.01)
    print("still here")

trio.run(main, *sys.argv[1:])
"""


@event("stuck.asked")
class Asked(Event):
    number: int
    blocks: float = 0.0
    extends: float = 0.0


@event("stuck.answered")
class Answered(Event):
    number: int


STUCK = "the worker's loop has made no progress; its heartbeat stops and others take over its events"


async def test_a_stuck_worker_says_where_and_ends(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any]
) -> None:
    """A handler that blocks the loop for longer than --max-block: the stack is in the log, the exit code is 70, and
    others answer what the worker held. The event itself, which does that to every worker, is one dead letter."""
    where = ("--url", server_url, "--namespace", namespace, "--max-block", "1")
    program = start(*where, "--processes", "2", unit=UNIT)
    await until(lambda: len(program.said("worker joined")) == 2, 20)
    with Producer(server_url, namespace=namespace) as bus:
        for number in range(40):
            bus.publish(Asked(number=number, blocks=600.0 if number == 10 else 0.0))
        assert bus.flush(20)
    await until(lambda: eyes.dead("unit"), 60)
    await until(lambda: eyes.count("stuck.answered") >= 39, 20)
    await quiet(eyes, event_type="stuck.asked", timeout=20)
    assert sorted(answer.number for answer in eyes.events("stuck.answered")) == [n for n in range(40) if n != 10]
    assert [letter.reason for letter in eyes.dead("unit")] == ["lost_workers"]
    told, ended = program.said(STUCK), program.said("a worker process ended")
    assert {end["how"] for end in ended} == {"exit code 70"} and len(told) == len(ended)
    assert all("block_stubbornly" in str(one["stack"]) for one in told)


async def test_a_handler_that_asks_for_time_may_block(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any]
) -> None:
    """ctx.extend before it blocks: the worker goes on beating, keeps its event, and lives."""
    program = start("--url", server_url, "--namespace", namespace, "--max-block", "1", unit=UNIT)
    await until(lambda: program.said("worker joined"), 20)
    with Producer(server_url, namespace=namespace) as bus:
        bus.publish(Asked(number=1, blocks=3.0, extends=60.0))
        assert bus.flush(20)
    await until(lambda: eyes.count("stuck.answered") == 1, 20)
    await quiet(eyes, event_type="stuck.asked")
    assert program.process.poll() is None and program.said(STUCK) == []


def test_somebodys_own_program_is_told_and_goes_on(server_url: str, namespace: str, tmp_path: Path) -> None:
    """An EventBus ends no process that is not its own: it tells, and when the loop turns again the work is done."""
    (tmp_path / "unit.py").write_text(UNIT)
    (tmp_path / "own.py").write_text(OWN_PROGRAM)
    run = subprocess.run(
        [sys.executable, "own.py", server_url, namespace],
        cwd=tmp_path,
        env={"PYTHONPATH": python_path(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert STUCK in run.stdout and run.stdout.rstrip().endswith("still here")


WITHOUT_THREADS = """
import threading
from canvasbus.worker import end_stuck

def refuse(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = refuse
end_stuck()
"""


def test_a_stuck_worker_ends_where_no_thread_can_be_had() -> None:
    """At its limit of processes nothing watches over what is flushed: it ends all the same, and with 70."""
    assert subprocess.run([sys.executable, "-c", WITHOUT_THREADS], timeout=60).returncode == 70
