"""Batches: a lane whose handler gets lists.

One task gathers up to `max_size` deliveries, or what has come within `max_wait` seconds, and runs them together. What a
batch could not do together its events try alone, so that one bad event costs its neighbours nothing but time.
"""

from typing import Any

import trio

from canvasbus.consume.delivery import Delivery
from canvasbus.consume.dispatch import Lane, log
from canvasbus.consume.inbox import Inbox
from canvasbus.consume.invoke import for_above
from canvasbus.consume.policy import BatchFailure, Raised, word_of
from canvasbus.contract.event import Event, set_correlation
from canvasbus.wire.traceparent import set_current as set_trace


class BatchLane(Lane):
    """The deliveries of one batch handler in one process."""

    def _start_runs(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._run_batches)

    async def _call_one(self, delivery: Delivery) -> Any:
        if self.inbox is not None and (why := await self.inbox.judge(delivery)):
            return why
        failures: dict[int, BaseException] = {}
        try:
            result = await self._call([delivery.event], [delivery])
        except BaseException as error:
            word = word_of(error)
            if not isinstance(word, BatchFailure):
                raise
            result, failures = word.events, self._failures(word, 1)
        if failures:
            raise failures[0]
        return [event for _, event in result or ()] or None

    def _failures(self, word: BatchFailure, size: int) -> dict[int, BaseException]:
        """What a handler says of the events of a batch; the same of all, if there are positions that are none."""
        if word.failures.keys() <= set(range(size)):
            return dict(word.failures)
        outside = ValueError(
            f"{self.handler.name} raised BatchFailure for the positions {sorted(word.failures)} of a batch of {size}"
        )
        return dict.fromkeys(range(size), outside)

    async def _run_batches(self) -> None:
        options = self.handler.batch
        assert options is not None
        while True:
            batch: list[Delivery] = []
            while not self._queue:
                self._check_quiet()
                await self._lot.park()
            with trio.move_on_after(options.max_wait):
                while len(batch) < options.max_size:
                    while self._queue and len(batch) < options.max_size:
                        delivery = self._queue.popleft()
                        if not self._skip(delivery):
                            batch.append(delivery)
                    if len(batch) < options.max_size:
                        if self._stopping:
                            break
                        await self._lot.park()
            if self._stopping:  # what was gathered has not begun
                for delivery in batch:
                    self._put_down(delivery)
                continue
            if self.inbox is not None:
                batch = await self._sifted(self.inbox, batch)
            if batch:
                await self._run_batch(batch)

    async def _sifted(self, inbox: Inbox, batch: list[Delivery]) -> list[Delivery]:
        """Those that may run."""
        rest = []
        for delivery in batch:
            if why := await inbox.judge(delivery):
                self._ended(delivery, None, why)
            else:
                rest.append(delivery)
        return rest

    async def _run_apart(self, batch: list[Delivery], error: BaseException) -> None:
        """Run the events of a failed batch one by one, as long as that makes sense."""
        if len(batch) == 1:
            self._ended(batch[0], Raised(error))  # it was alone already
            return
        log.info("a batch failed; its events run one by one", group=self.group, handler=self.handler.name)
        for delivery in batch:
            # A probe came into a batch that was being gathered: the breaker waits for its end, and for nothing else.
            probes = self.breaking is not None and delivery is self.breaking.probe
            if (self.blocked and not probes) or self._stopping:
                self._set_aside(delivery, tried=False)
            else:
                await self._run_alone(delivery)

    async def _run_batch(self, batch: list[Delivery]) -> None:
        set_correlation(None)
        set_trace(None)
        try:
            with self.watchdog.outside(batch) as slot:
                result = await self._call([d.event for d in batch], batch)
            if slot.scope.cancelled_caught:
                raise self._timed_out()
            failures: dict[int, BaseException] = {}
        except BaseException as error:
            if above := for_above(error):
                raise above
            word = word_of(error)
            if not isinstance(word, BatchFailure):
                await self._run_apart(batch, error)
                return
            result, failures = word.events, self._failures(word, len(batch))
        derived: dict[int, list[Event]] = {}
        try:
            for position, event in result or ():
                if not 0 <= position < len(batch):
                    raise ValueError
                derived.setdefault(position, []).append(event)
        except BaseException as error:  # what it returned may be a generator, with anything in it
            if above := for_above(error):
                raise above
            failures = dict.fromkeys(range(len(batch)), error)
            if isinstance(error, TypeError | ValueError):
                wrong = TypeError(
                    f"{self.handler.name} must return an iterable of (position, event), with positions from 0 to "
                    f"{len(batch) - 1}"
                )
                wrong.__cause__ = error
                failures = dict.fromkeys(range(len(batch)), wrong)
        for index, delivery in enumerate(batch):
            if index in failures:
                self._ended(delivery, Raised(failures[index]))
            else:
                self._ended(delivery, None, derived.get(index))
        self._check_quiet()
