"""Bugs that were planted: known-wrong variants of the product, each of which the simulation must find.

A plant changes a few words of one function or script, in this process and for one run, and fails loudly when those
words are no longer there. Whatever cannot be caught is not tested, however many seeds are sound: so every promise has a
plant here, and every bug that was found later joins them. `wants` names what its seeds must contain, for bugs of a part
or after a fault that most seeds do without; the plan is otherwise the seed's own.

python tests/simulation/run.py --mutants        all of them, 40 seeds each
"""

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from canvasbus import ids
from canvasbus.consume import (
    backoff,
    breaker,
    breaking,
    dispatch,
    holding,
    leaving,
    outcomes,
    pausing,
    quarantine,
    recovery,
    runner,
    settle,
    state,
    sweep,
    taking,
)
from canvasbus.consume.liveness import Watcher
from canvasbus.produce import adoption, buffer, fenced, publisher, sender, spool, spooled
from canvasbus.transport import group_scripts, link
from canvasbus.transport.owner_scripts import TAKE
from canvasbus.transport.scripts import ONCE, REDRIVE, Script
from canvasbus.transport.settle_script import SETTLE
from canvasbus.transport.timer_scripts import DUE, FIRE
from canvasbus.transport.trim_script import TRIM

Change = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """A bug."""

    name: str
    promise: str
    """Which line of DESIGN section 5 it breaks; empty: none, but what an operator was told."""
    changes: tuple[Change, ...]
    wants: frozenset[str] = frozenset()
    classic: bool = False
    """One of the six that every event bus must be free of: half of the seeds must find it."""
    patient: bool = False
    """It shows when nothing is left to do: the run is not ended by the first thing that is wrong."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The product has this bug until the block ends."""
        with pytest.MonkeyPatch.context() as patch:
            for change in self.changes:
                change(patch)
            yield


def words(owner: Any, name: str, old: str, new: str) -> Change:
    """Change the text of a function of a class or module."""

    def change(patch: pytest.MonkeyPatch) -> None:
        function = inspect.getattr_static(owner, name)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(old) == 1, f"{owner.__name__}.{name} has {source.count(old)} times {old!r}"
        made: dict[str, Any] = {}
        module = inspect.getmodule(function)
        assert module is not None
        code = compile(
            "from __future__ import annotations\n" + source.replace(old, new), f"<{name} with a bug>", "exec"
        )
        exec(code, vars(module) | {"__name__": module.__name__}, made)
        patch.setattr(owner, name, made[name])

    return change


def lua(script: Script, old: str, new: str) -> Change:
    """Change the text of a script."""

    def change(patch: pytest.MonkeyPatch) -> None:
        assert script.source.count(old) == 1, f"{script.name} has {script.source.count(old)} times {old!r}"
        wrong = Script(script.name, script.source.replace(old, new))
        patch.setattr(script, "source", wrong.source)
        patch.setattr(script, "sha", wrong.sha)

    return change


ACK_FIRST = """
    for commit in chunk:
        await self._link.request(command("XACK", commit.delivery.topic.stream, self._group, commit.delivery.entry_id))
    return await self.fence.run("""

BY_AGE = """
    dead = []
    for stream in subscription.topics if reaper else ():
        old = await self._shared.call("XPENDING", stream, self._group, "IDLE", 2000, "-", "+", 100)
        for entry_id, *_ in check(old, "look"):
            await self._shared.call("XCLAIM", stream, self._group, self._consumer, 2000, entry_id, "JUSTID")
            subscription.recovery.audit_soon()
"""

MUTANTS = (
    # The six that must be found in half of the seeds.
    Mutant(
        "acknowledged before it is committed",
        "2",
        (words(settle.Settler, "_send", "\n    return await self.fence.run(", ACK_FIRST),),
        classic=True,
    ),
    Mutant(
        "settled without fence and owner",
        "2",
        (
            lua(SETTLE, "if fence ~= ARGV[1] then", "if false then"),
            lua(SETTLE, "elseif look or verb", "elseif verb"),
        ),
        classic=True,
    ),
    Mutant(
        "claimed by age",
        "3",
        (words(sweep.Sweep, "_sweep", "    dead = self._watcher.judge(now, beats, owners)\n", BY_AGE),),
        frozenset({"slow", "company"}),
        classic=True,
    ),
    Mutant(
        "trimmed up to what was delivered",
        "6",
        (lua(TRIM, "local oldest = one['pending'] > 0 and", "local oldest = false and"),),
        frozenset({"retention"}),
        classic=True,
    ),
    Mutant(
        "published again without looking",
        "1",
        (words(fenced.FencedSender, "send", "if unsure:", "if False:"),),
        classic=True,
    ),
    Mutant(
        "a cancelled reply goes to the next",
        "8",
        (
            words(
                link.SharedLink,
                "request",
                "    await waiter.event.wait()\n",
                "    try:\n        await waiter.event.wait()\n    except BaseException:\n"
                "        self._waiters.remove(waiter)\n        raise\n",
            ),
            words(
                link.SharedLink,
                "_hand_out",
                "if not waiters:",
                "if not waiters:\n            break\n        if False:",
            ),
        ),
        classic=True,
    ),
    # One more for each promise, and those that were found.
    Mutant(
        "a late transaction is not fenced off",
        "1",
        (words(fenced.FencedSender, "_investigate", '("INCR", self._fence)', '("GET", self._fence)'),),
        frozenset({"publish late"}),
    ),
    Mutant(
        "what was begun is not put back",
        "1",
        (words(fenced.FencedSender, "_put_back", "_DISCARD", "pack('PING')"),),
        frozenset({"retention"}),
    ),
    Mutant("derived ids are drawn", "2", (words(ids, "derived", "parent.bytes", "os.urandom(16)"),)),
    Mutant(
        "a lost reply of a read is not looked for",
        "3",
        (words(recovery.Recovery, "audit", "    try:\n", "    return\n    try:\n"),),
        frozenset({"lose"}),
    ),
    Mutant(
        "a take that comes late is not shut out",
        "4",
        (words(recovery.Recovery, "take", "if isinstance(error, Unavailable):", "if False:"),),
        frozenset({"kills", "take late"}),
    ),
    Mutant(
        "a late raising of one's own fence is taken for death",
        "3",
        tuple(lua(script, "'FENCED' or 'STALE'", "'FENCED' or 'FENCED'") for script in (SETTLE, TAKE)),
        frozenset({"late", "raise late"}),
    ),
    Mutant(
        "the dead are not looked for",
        "3",
        (words(Watcher, "judge", "return dead", "return []"),),
        frozenset({"kill"}),
    ),
    Mutant(
        "heartbeats are not listened to",
        "3",
        (words(Watcher, "judge", "if seen is None or seen[0] != count:", "if seen is None:"),),
    ),
    Mutant("attempts are not counted", "4", (words(outcomes, "decide", "failures += 1", "pass"),)),
    Mutant(
        "the attempt of a suspect is not written down",
        "4",
        (
            words(
                dispatch.Lane,
                "_run_suspect",
                "    await delivery.topic.settler.write_ahead(delivery, delivery.failures + 1).wait()\n",
                "",
            ),
        ),
        frozenset({"kills"}),
    ),
    Mutant(
        "a suspect that hangs among others is waited for",
        "4",
        (words(quarantine.Quarantine, "late", "self.ended(delivery)", "pass"),),
        frozenset({"stuck", "kills"}),
    ),
    Mutant(
        "a suspect that hangs alone is waited for",
        "4",
        (words(quarantine.Quarantine, "late", "self._over.set()", "pass"),),
        frozenset({"stuck", "kills", "company"}),
    ),
    Mutant(
        "a probe that hangs is waited for",
        "4",
        (words(breaking.Breaking, "late", "if delivery is self.probe and", "if False and"),),
        frozenset({"stuck", "breaker"}),
    ),
    Mutant(
        "who joins again waits for what hangs",
        "8",
        (words(runner._Incarnation, "run", "await lives.start(self._live)", "await self._live()"),),
        frozenset({"stuck", "pause, long", "company"}),
    ),
    Mutant(
        "a takeover counts as an attempt",
        "4",
        (lua(TAKE, "result[#result + 1] = row[4]", "result[#result + 1] = row[4] + 1"),),
        frozenset({"kill"}),
    ),
    Mutant(
        "what cannot be read is dropped",
        "5",
        (
            words(
                outcomes.Outcomes,
                "bury",
                "    unread = delivery.error is not None\n",
                "    unread = delivery.error is not None\n    if unread:\n        return self.done(delivery)\n",
            ),
        ),
    ),
    Mutant(
        "expired events are handled",
        "5",
        (words(dispatch.Lane, "_skip", "envelope.expires_on < clock.time()", "False"),),
    ),
    Mutant(
        "a lost group begins at its end",
        "8",
        (
            lua(
                group_scripts.RENEW,
                "redis.call('XGROUP', 'CREATE', stream, group, start)",
                "redis.call('XGROUP', 'CREATE', stream, group, '$')",
            ),
        ),
        frozenset({"group lost", "company"}),
    ),
    Mutant(
        "what is held is not held in a new group",
        "8",
        (words(holding.Holding, "run", "[i for i in topic.held if id_order(i) <= id_order(start)]", "[]"),),
        frozenset({"group lost, leave", "company", "calm"}),
    ),
    Mutant(
        "who leaves does not wait for its group",
        "9",
        (words(leaving.Leaving, "_leave", "                away = True\n", "                pass\n"),),
        frozenset({"group lost, leave", "company", "calm"}),
    ),
    Mutant(
        "an outcome does not wait for its group",
        "8",
        (words(settle.Settler, "_wait_for_group", "if not commit.unsure]", "if False]"),),
        frozenset({"group lost, leave", "kill", "company"}),
    ),
    Mutant(
        "a server that restarted is believed",
        "8",
        (words(settle.Settler, "_doubts", "    link = self._link\n", "    return False\n    link = self._link\n"),),
        frozenset({"restart", "company"}),
    ),
    Mutant(
        "an outage costs attempts",
        "8",
        (words(state.StateStore, "load", "raise RetryLater(AWAY_SECONDS,", "raise Unavailable("),),
        frozenset({"state", "outage"}),
    ),
    Mutant(
        "a server that is away is asked without a pause",
        "8",
        (
            words(
                backoff.ServerBackoff,
                "next",
                "seconds, self._seconds = self._seconds, min(self._seconds * 2, MOST_SECONDS)",
                "seconds = 0.0",
            ),
        ),
        frozenset({"outage"}),
    ),
    Mutant(
        "idle workers never stop looking into the pools",
        "8",
        (words(taking.Taking, "run", "move_on_after(SWEEP_SECONDS", "move_on_after(0.02"),),
        frozenset({"calm"}),
        patient=True,
    ),
    Mutant(
        "nothing is handed back",
        "9",
        (
            words(
                leaving.Leaving,
                "_release",
                "    for subscription in self._subscriptions:\n",
                "    for subscription in ():\n",
            ),
        ),
        frozenset({"stop", "calm"}),
    ),
    Mutant(
        "a commit on its way outlives its worker",
        "2",
        (words(leaving.Leaving, "_leave", "if subscription.settler.fence.in_doubt:", "if False:"),),
        frozenset({"stop, commit late", "company"}),
    ),
    Mutant(
        "what was read and never came is not handed back",
        "9",
        (words(leaving.Leaving, "_release_unheld", "chunks(words)", "()"),),
        frozenset({"stop, mute", "company"}),
    ),
    Mutant(
        "state is not compared",
        "10",
        (lua(SETTLE, "== ARGV[at + 2] or 2", "~= nil"),),
        frozenset({"state", "company"}),
    ),
    Mutant(
        "parts are not committed",
        "10",
        (lua(SETTLE, "redis.call('HSET', key, ARGV[at + 2], ARGV[at + 3])", "local _ = key"),),
        frozenset({"state"}),
    ),
    Mutant(
        "timers and state are missing in a commit that looks",
        "time",
        (
            words(
                settle.Settler,
                "_send",
                "script_words(chunk)",
                "script_words([(lambda c: setattr(c, 'changes', None) or c)(__import__('copy').copy(c)) if look else c for c in chunk])",
            ),
        ),
        frozenset({"timers", "state"}),
    ),
    Mutant(
        "a timer comes again",
        "time",
        (
            lua(
                FIRE,
                "        redis.call('ZREM', KEYS[1], timer)\n        redis.call('HDEL', KEYS[2], timer)\n        result[1]",
                "        redis.call('ZADD', KEYS[1], string.format('%.0f', now + 2000), timer)\n        result[1]",
            ),
        ),
        frozenset({"timers"}),
    ),
    Mutant(
        "what is delayed is read again",
        "time",
        (
            lua(
                DUE,
                "redis.call('XREADGROUP', 'GROUP', ARGV[3], ARGV[3], 'COUNT', #rows, 'NOACK', 'STREAMS', KEYS[3], '>')",
                "local _ = rows",
            ),
        ),
        frozenset({"timers"}),
    ),
    Mutant(
        "a timer cannot be set anew",
        "time",
        (
            lua(
                SETTLE,
                "redis.call('ZADD', key, due, ARGV[at + 3])",
                "redis.call('ZADD', key, 'NX', due, ARGV[at + 3])",
            ),
        ),
        frozenset({"timers"}),
    ),
    Mutant(
        "a circuit never opens",
        "4",
        (words(breaker.Circuit, "failed", 'if self.state != "closed":', "if True:"),),
        frozenset({"breaker"}),
    ),
    Mutant(
        "instances share a group",
        "fan-out",
        (words(runner.Runner, "__init__", 'f"{worker.name}@{consumer_name()}"', 'f"{worker.name}@all"'),),
        frozenset({"instances"}),
    ),
    Mutant(
        "a key's partition is drawn",
        "wire",
        (lambda patch: patch.setattr(publisher, "partition_of", lambda key, count: ids._bits(8) % count),),
        frozenset({"partitions"}),
    ),
    # Of programs with a Producer.
    Mutant(
        "what a dead program left is not sent",
        "7",
        (words(adoption.Adoption, "look", "found = spoolfolder.folders(self._root)", "found = []"),),
        frozenset({"kill producer", "spool"}),
    ),
    Mutant(
        "a dead program's batch is sent without looking",
        "7",
        (words(sender.Sender, "_run", "if buffer.doubt is not None:", "if False:"),),
        frozenset({"kill producer, after", "spool"}),
    ),
    Mutant(
        "a batch on its way is not written down",
        "7",
        (words(spooled.SpooledBuffer, "_note_sending", "    hand = self._hand\n", "    return\n"),),
        frozenset({"kill producer, after", "spool"}),
    ),
    Mutant(
        "a dead program's fence is not raised",
        "1",
        (words(sender._Lane, "resume", "self._new_sender(left.fence)", "self._new_sender(None)"),),
        frozenset({"kill producer, late", "spool"}),
    ),
    Mutant(
        "what a dead program left comes last",
        "7",
        (
            words(
                spooled.SpooledBuffer,
                "take",
                "self._take_adopted(lane) or (self._take_own(lane) if self._looked else [])",
                "self._take_own(lane) or self._take_adopted(lane)",
            ),
        ),
        frozenset({"kill producer", "spool", "outage"}),
    ),
    Mutant(
        "a segment goes with an event in it",
        "7",
        (words(spool.Ledger, "forget_settled", "segment.last < self.settled", "True"),),
        frozenset({"kill producer", "spool", "small", "outage"}),
    ),
    Mutant(
        "a batch without an answer is told as stored",
        "1",
        (
            words(sender.Sender, "_send", "sender.send(items)", "sender.send(items, patience=0.0)"),
            words(
                sender.Sender,
                "_settle",
                "    refused = unknown = 0\n",
                "    refused = unknown = 0\n"
                "    results = [b'0-1' if isinstance(result, Unavailable) else result for result in results]\n",
            ),
        ),
        frozenset({"producer"}),
    ),
    Mutant(
        "a flush does not wait for what is on its way",
        "1",
        (words(buffer.Buffer, "wait_settled", "settled + in_hand + self", "settled + self"),),
        frozenset({"producer"}),
    ),
    Mutant(
        "what is settled fills a spool",
        "7",
        (words(spool.Ledger, "rests", "return bool(", "return False and bool("),),
        frozenset({"producer", "spool", "small", "blocks", "partitions"}),
    ),
    Mutant(
        "what is dropped is told as stored",
        "7",
        (words(sender.Sender, "_tell_drops", "self._tell(raw_id, error)", "self._tell(raw_id, None)"),),
        frozenset({"producer", "small", "outage"}),
    ),
    Mutant(
        "a Producer's thread is not woken",
        "1",
        (
            words(buffer.Buffer, "take", "self._asleep = True", "pass"),
            words(spooled.SpooledBuffer, "take", "self._asleep = True", "pass"),
        ),
        frozenset({"producer"}),
    ),
    Mutant(
        "a paused group is read",
        "",
        (words(pausing.Pausing, "look", "subscription.pause(self.pause is not None)", "subscription.pause(False)"),),
        frozenset({"group paused, long", "calm"}),
    ),
    Mutant(
        "a dead letter that is given back stays",
        "4",
        (lua(REDRIVE, "redis.call('XDEL', KEYS[1], id)", "redis.call('XRANGE', KEYS[1], id, id)"),),
        frozenset({"redrive"}),
    ),
    Mutant(
        "retention forgets that a group was set back",
        "6",
        (lua(TRIM, "if oldest and before(oldest, id) then", "if oldest then"),),
        frozenset({"group paused, reset", "retention"}),
    ),
    Mutant(
        "marks are not looked at",
        "1",
        (lua(ONCE, "elseif known then", "elseif false then"),),
        frozenset({"kill producer", "producer lost"}),
    ),
)

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
