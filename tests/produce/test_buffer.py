"""The bounded buffer by itself: limits, order, what goes when it is full, and being interrupted in the middle."""

import random
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from seeds import seeds

from canvasbus import ids
from canvasbus.errors import BufferFull
from canvasbus.produce.buffer import BATCH_EVENTS, Buffer
from canvasbus.wire.outgoing import Outgoing


def item(size: int = 10) -> Outgoing:
    return Outgoing(ids.uuid7_bytes(), "painting.made", None, b"x" * size)


def buffer(
    limit: int = 1000, when_full: Any = "drop_oldest", max_block: float = 0.0, lanes: int = 1, rouse: Any = None
) -> Buffer:
    return Buffer(limit, when_full, max_block, lanes, rouse or (lambda: True), lambda _: None)


def all_of(buffer: Buffer) -> list[Outgoing]:
    taken = []
    while (batch := buffer.take()) is not None:
        taken += batch[1]
    return taken


def test_first_in_first_out_in_batches() -> None:
    """Batches hold at most 500 events, in the order they were added, and then nothing is left."""
    b = buffer(1 << 20)
    items = [item() for _ in range(1200)]
    for each in items:
        b.add(each, 0)
    sizes = []
    taken: list[Outgoing] = []
    while (batch := b.take()) is not None:
        sizes.append(len(batch[1]))
        taken += batch[1]
    assert sizes == [BATCH_EVENTS, BATCH_EVENTS, 200] and taken == items and b.waiting == 1200


def test_a_batch_takes_a_quarter_of_the_limit() -> None:
    """A batch ends at a quarter of the limit, so that dropping the oldest always finds something to drop."""
    b = buffer(1000)
    for _ in range(10):
        b.add(item(100), 0)
    batch = b.take()
    assert batch is not None and len(batch[1]) == 3


def test_drop_oldest_drops_the_oldest_only() -> None:
    """A full buffer makes room by as few of its oldest events as will do; they are counted and their ids handed out."""
    b = buffer(100)
    b.keep_drops = True
    items = [item(30) for _ in range(5)]
    for each in items:
        b.add(each, 0)
    assert (b.dropped, b.bytes, b.waiting, b.published) == (2, 90, 3, 5)
    assert b.take_drops() == [each.raw_id for each in items[:2]] and b.take_drops() == []
    assert all_of(b) == items[2:]


def test_what_is_in_hand_is_not_dropped() -> None:
    """Events that the sender took keep their room and cannot be dropped; when nothing else is left the new one is."""
    b = buffer(100)
    first = item(80)
    b.add(first, 0)
    assert b.take() == (0, [first])
    newer, newest = item(20), item(20)
    b.add(newer, 0)
    b.add(newest, 0)
    b.add(item(30), 0)  # does not fit beside what is in hand
    assert (b.dropped, b.bytes) == (3, 80)
    assert b.take() is None


def test_the_own_partition_pays_first() -> None:
    """When partitions share a full buffer, the one that gets a new event drops its own before those of others."""
    b = buffer(100, lanes=2)
    quiet = item(40)
    b.add(quiet, 1)
    for _ in range(10):
        b.add(item(30), 0)
    assert b.dropped == 8
    assert quiet in all_of(b)


def test_partitions_take_turns() -> None:
    """A partition with many batches does not keep the others waiting."""
    b = buffer(1 << 20, lanes=2)
    for _ in range(1500):
        b.add(item(), 0)
    b.add(item(), 1)
    assert [lane for lane, _ in iter(b.take, None)] == [0, 1, 0, 0]


def test_raise() -> None:
    """when_full="raise": BufferFull says how full it is and what to do; nothing was queued or counted."""
    b = buffer(100, "raise")
    b.add(item(90), 0)
    with pytest.raises(BufferFull, match=r"90 bytes .* limit is 100.*block"):
        b.add(item(20), 0)
    assert (b.waiting, b.published, b.dropped) == (1, 1, 0)
    b.add(item(10), 0)


def test_raise_in_the_middle_of_many() -> None:
    """add_many queues what fits before it raises."""
    b = buffer(100, "raise")
    with pytest.raises(BufferFull):
        b.add_many([item(30) for _ in range(5)], 0)
    assert b.waiting == 3


def test_block_waits_for_room_and_goes_on(soon: Callable[..., Any]) -> None:
    """when_full="block": a publisher waits, and goes on as soon as a batch is settled."""
    b = buffer(100, "block", 60)
    b.add(item(90), 0)
    batch = b.take()
    assert batch is not None
    publisher = threading.Thread(target=b.add, args=(item(50), 0))
    publisher.start()
    soon(lambda: len(b._changed._waiters) == 1)  # type: ignore[attr-defined]
    b.settle(*batch, stored=1)
    publisher.join(10)
    assert not publisher.is_alive() and (b.bytes, b.stored, b.dropped) == (50, 1, 0)


def test_block_gives_up_after_max_block() -> None:
    """when_full="block" raises BufferFull after max_block seconds and names them."""
    b = buffer(100, "block", 0.01)
    b.add(item(90), 0)
    with pytest.raises(BufferFull, match=r"max_block=0.01 s"):
        b.add(item(50), 0)


def test_closing_wakes_those_who_wait(soon: Callable[..., Any]) -> None:
    """A publisher that waits for room when the Producer is closed gets BufferFull at once."""
    b = buffer(100, "block", 60)
    b.add(item(90), 0)
    raised: list[BaseException] = []

    def publish() -> None:
        try:
            b.add(item(50), 0)
        except BufferFull as error:
            raised.append(error)

    publisher = threading.Thread(target=publish)
    publisher.start()
    soon(lambda: len(b._changed._waiters) == 1)  # type: ignore[attr-defined]
    b.close("closed")
    publisher.join(10)
    assert len(raised) == 1 and "closed" in str(raised[0])


def test_the_sender_never_waits_for_room() -> None:
    """With "block" the thread that takes gets BufferFull instead of waiting for itself."""
    b = buffer(100, "block", 60)
    b.consumer = threading.get_ident()
    b.add(item(90), 0)
    with pytest.raises(BufferFull, match="on_delivery"):
        b.add(item(50), 0)


def test_muted_drops_and_counts() -> None:
    """A muted buffer takes nothing, raises nothing, and counts; whoever laments holds no lock."""
    laments: list[bool] = []
    b = Buffer(100, "raise", 0, 1, lambda: True, lambda _: laments.append(b.lock._is_owned()))  # type: ignore[attr-defined]
    b.close("muted")
    b.add(item(), 0)
    b.add_many([item(), item()], 0)
    assert (b.dropped, b.waiting, laments) == (3, 0, [False] * 3)


def test_waiting_for_the_fate_of_what_is_queued() -> None:
    """wait_settled is True once all is stored, and waits for nothing that was added later."""
    b = buffer()
    b.add(item(), 0)
    assert b.wait_settled(0) is False
    batch = b.take()
    assert batch is not None
    b.settle(*batch, stored=1)
    assert b.wait_settled(0) is True


@pytest.mark.parametrize("fate", ["refused", "unknown", "dropped"])
def test_a_failure_is_told_once(fate: str) -> None:
    """wait_settled is False after a failure, and True again when nothing failed since."""
    b = buffer()
    b.add(item(), 0)
    batch = b.take()
    assert batch is not None
    b.settle(*batch, **({} if fate == "dropped" else {fate: 1}))
    assert getattr(b, fate) == 1
    assert b.wait_settled(0) is False
    assert b.wait_settled(0) is True


def test_late_is_false_and_then_true() -> None:
    """What was only late is no failure: the next wait is True."""
    b = buffer()
    b.add(item(), 0)
    batch = b.take()
    assert batch is not None and b.wait_settled(0) is False
    b.settle(*batch, stored=1)
    assert b.wait_settled(0) is True


def test_reset_forgets_all_and_replaces_the_lock() -> None:
    """After a fork: empty, counting from zero, with a lock that nobody holds, and still closed if it was closed."""
    b = buffer()
    for _ in range(10):
        b.add(item(200), 0)
    b.lock.acquire()
    b.reset()
    thread = threading.Thread(target=b.add, args=(item(), 0))
    thread.start()
    thread.join(5)
    assert (b.waiting, b.published, b.dropped, b.bytes) == (1, 1, 0, 10)
    b.close("closed")
    b.reset()
    with pytest.raises(BufferFull):
        b.add(item(), 0)


# --- the sleeping sender ----------------------------------------------------------------------------------------------


def test_roused_only_when_asleep() -> None:
    """The sender is roused by the first event after it found nothing, and not again until it sleeps again."""
    calls: list[int] = []

    def rouse() -> bool:
        calls.append(1)
        return True

    b = buffer(rouse=rouse)
    b.add(item(), 0)
    b.add(item(), 0)
    assert len(calls) == 1
    assert len(all_of(b)) == 2  # found nothing at the end: asleep
    b.add(item(), 0)
    assert len(calls) == 2


def test_rousing_in_vain_is_repeated() -> None:
    """When nobody can be roused, or rousing was interrupted by Ctrl-C, the next event rouses again."""
    answers: list[Any] = [False, KeyboardInterrupt(), True]

    def rouse() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return bool(answer)

    b = buffer(rouse=rouse)
    b.add(item(), 0)
    with pytest.raises(KeyboardInterrupt):
        b.add(item(), 0)
    b.add(item(), 0)
    b.add(item(), 0)
    assert answers == [] and b.waiting == 4


class Interrupter:
    """Calls something at every line that a function executes, as a signal handler or a `__del__` might."""

    def __init__(self, rng: random.Random, action: Callable[[], object]) -> None:
        self._rng = rng
        self._action = action
        self._busy = False

    def __call__(self, frame: Any, event: str, argument: object) -> Any:
        if frame.f_code.co_filename.endswith("produce/buffer.py"):
            if event == "line" and not self._busy and self._rng.random() < 0.08:
                self._busy = True
                try:
                    self._action()
                finally:
                    self._busy = False
            return self
        return None


@pytest.mark.parametrize("seed", seeds(3, "buffer"))
def test_interrupted_anywhere(seed: int) -> None:
    """A publish between any two lines of a publish, a take or a settle: no error, no event lost uncounted or taken twice,
    the bytes add up, and a sender that found nothing was roused afterwards."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    tokens: deque[None] = deque()

    def rouse() -> bool:
        tokens.append(None)
        return True

    b = buffer(600, lanes=2, rouse=rouse)
    b.keep_drops = True
    added: list[Outgoing] = []

    def publish() -> None:
        each = item(rng.randrange(1, 80))
        added.append(each)
        b.add(each, rng.randrange(2))

    taken: list[Outgoing] = []
    previous = sys.gettrace()
    sys.settrace(Interrupter(rng, publish))
    try:
        for _ in range(4000):
            if rng.random() < 0.6:
                publish()
            elif tokens or not b._asleep:
                batch = b.take()
                if batch is None:
                    tokens.popleft()
                else:
                    taken += batch[1]
                    b.settle(*batch, stored=len(batch[1]))
            waiting = b.waiting  # first: it can be interrupted too
            assert tokens or not b._asleep or not waiting, "events wait and nobody comes"
    finally:
        sys.settrace(previous)
    while tokens or not b._asleep:  # what the sender's thread does: takes until it finds nothing and has no token left
        batch = b.take()
        if batch is None:
            if not tokens:
                break
            tokens.popleft()
        else:
            taken += batch[1]
            b.settle(*batch, stored=len(batch[1]))
    drops = b.take_drops()
    assert sorted(each.raw_id for each in added) == sorted([each.raw_id for each in taken] + drops)
    assert (b.bytes, b.waiting, b.published) == (0, 0, len(added))
    assert (b.stored, b.dropped) == (len(taken), len(drops)) and drops and taken
    assert b.wait_settled(0) is False and b.wait_settled(0) is False, "not while a drop is untold"
    b.told(len(drops))
    assert b.wait_settled(0) is True
