"""What runs in the processes of the chaos run: a worker that answers, and a producer that asks.

canvasbus-worker chaos_programs:worker
python chaos_programs.py FIRST END SECONDS POISON     publish the numbers from FIRST to END - 1 in so many seconds
"""

import json
import os
import sys
import time

import trio

from canvasbus import Event, Producer, event
from canvasbus.worker import Backoff, Worker

ATTEMPTS = int(os.environ.get("CHAOS_ATTEMPTS", "5"))


@event("chaos.asked")
class Asked(Event):
    number: int
    poison: bool = False


@event("chaos.answered")
class Answered(Event):
    number: int


worker = Worker("answering")


@worker.on(Asked, concurrency=32, retry=Backoff(attempts=ATTEMPTS, base=0.1))
async def answer(event: Asked) -> Answered:
    """Takes a moment, so that whoever is killed has something in hand. The poison takes its process along."""
    await trio.sleep(0.02)
    if event.poison:
        os._exit(7)
    return Answered(number=event.number)


def ask(first: int, end: int, seconds: float, poison: int) -> None:
    """Publish at an even pace, a hundredth of it at a time, and tell on stdout what the bus has accepted: a promise that
    holds through every crash from then on."""
    chunk = max(1, (end - first) // 100)
    begun = time.monotonic()
    with Producer(source=f"asking-{first}", namespace="chaos", when_full="block", max_block=300) as bus:
        for number, chunked in enumerate(range(first, end, chunk)):
            numbers = range(chunked, min(chunked + chunk, end))
            for one in numbers:
                bus.publish(Asked(number=one, poison=one == poison))
            accepted = bus.flush(timeout=300)
            print(json.dumps({"first": numbers[0], "end": numbers[-1] + 1, "accepted": accepted}), flush=True)
            time.sleep(max(0.0, begun + seconds * (number + 1) / 100 - time.monotonic()))


if __name__ == "__main__":
    ask(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
