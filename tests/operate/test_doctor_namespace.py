"""The doctor on namespaces: one that works, and ones in which just what each finding is about has happened."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from operate.doctoring import Making, about, look, troubles
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, running
from waiting import until

from canvasbus.contract.bus_events import BusLoss
from canvasbus.operate import groups
from canvasbus.operate.doctor import ask_namespace as asking
from canvasbus.operate.doctor import judge_groups
from canvasbus.operate.doctor.ask_namespace import ask_namespace
from canvasbus.operate.doctor.finding import Finding
from canvasbus.operate.doctor.judge_namespace import judge_namespace
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.rights import acl, user
from canvasbus.wire.codec import Codec
from canvasbus.worker import PER_INSTANCE, Context, Reject, Worker

Findings = list[Finding]


@pytest.fixture
def eyes(server_url: str, namespace: str) -> Iterator[Eyes]:
    """What lies on a real server; a namespace with one partition on record."""
    eyes = Eyes(server_url, namespace)
    eyes.call("HSET", eyes.keys.meta, "partitions", 1)
    yield eyes
    eyes.close()


@pytest.fixture
def examine(eyes: Eyes, server_url: str) -> Iterator[Callable[..., Findings]]:
    """What the doctor finds in the namespace."""
    link = BlockingLink(open_server(server_url))

    def examine(wanted: int | None = None) -> Findings:
        return list(judge_namespace(link.run(ask_namespace(eyes.keys.namespace, wanted)), wanted))

    yield examine
    link.close()


@pytest.fixture
def nobody_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not beat counts as lifeless at once, not after 2.5 s without a word."""
    monkeypatch.setattr(groups, "ALIVE_MS", 0)


@pytest.fixture
def all_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every consumer counts as alive, whether it beats or not."""
    monkeypatch.setattr(groups, "ALIVE_MS", 10**12)


def join(eyes: Eyes, group: str = "framers", *consumers: str, event_type: str = "painting.made") -> None:
    """A declared group on a topic, as a worker leaves it behind."""
    eyes.call("SADD", eyes.keys.topics, event_type)
    eyes.call("HSET", eyes.keys.groups, group, json.dumps({"types": [event_type], "globs": []}))
    eyes.call("XGROUP", "CREATE", eyes.stream(event_type), group, "0", "MKSTREAM")
    for consumer in consumers:
        eyes.call("XGROUP", "CREATECONSUMER", eyes.stream(event_type), group, consumer)


def take(eyes: Eyes, owner: str, *, idle: float = 0.0, entries: int = 1, group: str = "framers") -> list[bytes]:
    """Put entries into a stream, and into the hands of an owner `idle` seconds ago."""
    ids = [eyes.put(b"x").encode() for _ in range(entries)]
    eyes.call("XREADGROUP", "GROUP", group, owner, "COUNT", 1000, "STREAMS", eyes.stream(), ">")
    eyes.call("XCLAIM", eyes.stream(), group, owner, 0, *ids, "IDLE", round(idle * 1000), "JUSTID")
    return ids


def levels(found: Findings) -> set[str]:
    return {finding.level for finding in found}


# --- the namespace ----------------------------------------------------------------------------------------------------


async def test_a_namespace_that_works(server_url: str, eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """Workers that have handled everything: all is ok, and what there is is counted."""
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade, ctx: Context) -> PaintingFramed:
        state = await ctx.state("n", int, default=0)
        state.value += 1
        return PaintingFramed(number=event.number)

    @worker.on(PaintingFramed)
    async def look(event: PaintingFramed) -> None: ...

    async with running(server_url, worker, namespace=eyes.keys.namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(20)])
        await until(lambda: eyes.count("painting.framed") == 20)
        await quiet(eyes)
        await quiet(eyes, event_type="painting.framed")
        found = await trio.to_thread.run_sync(examine)
    assert levels(found) == {"ok"}
    assert about(found, "namespace").found.endswith("has 1 partition")
    assert about(found, "topics").found == "2 topics with 40 entries"
    assert "framers (1 worker)" in about(found, "groups").found
    assert not any(finding.estimate for finding in found)


def test_a_namespace_that_nobody_uses(making: Making) -> None:
    """A note that names the others there: the name may be misspelt."""
    url, eyes = making()
    (finding,) = [f for f in look(url, "studio") if f.check == "namespace"]
    assert finding.level == "note" and finding.found.endswith("on this server yet")
    eyes.call("HSET", "{studio-2:0}:meta", "partitions", 1)
    assert about(look(url, "studio"), "namespace").found.endswith("there is studio-2")


def test_partitions(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """Another number than this process is set to; one that is none; none at all; keys of one that there is not."""
    assert troubles(examine(1)) == troubles(examine()) == []
    found = examine(4)
    assert troubles(found) == [("error", "namespace")]
    assert "has 1 partition here, this process is set to 4" in about(found, "namespace").found
    eyes.call("SET", f"{{{eyes.keys.namespace}:3}}:full", "x")
    (_, finding) = [f for f in examine() if f.check == "namespace"]
    assert finding.level == "warning" and "1 key of partition 3" in finding.found
    eyes.call("HSET", eyes.keys.meta, "partitions", "many")
    unreadable = next(f for f in examine() if f.check == "namespace")
    assert unreadable.level == "error" and f"HSET {eyes.keys.meta.decode()} partitions N" in unreadable.advice
    eyes.call("DEL", eyes.keys.meta)
    eyes.call("SADD", eyes.keys.topics, "painting.made")
    assert "not on record" in next(f for f in examine() if f.check == "namespace").found


def test_keys_of_a_wrong_type(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """Each is named with what it holds and should hold, and stops no other check."""
    join(eyes)
    keys = eyes.keys
    state = keys.state("framers", "n")
    for key in (
        keys.stream("bad.type"),
        keys.dead("framers"),
        keys.beats("framers"),
        keys.retention,
        keys.timers,
        state,
    ):
        eyes.call("LPUSH", key, "x")
    eyes.call("SADD", keys.topics, "bad.type")
    wrong = [finding for finding in examine() if finding.check == "keys"]
    assert len(wrong) == 6 and levels(wrong) == {"error"}
    assert f"{state.decode()} holds a list, not a string" in " ".join(f.found for f in wrong)
    assert f"{keys.stream('bad.type').decode()} holds a list, not a stream" in " ".join(f.found for f in wrong)
    for key in (keys.groups, keys.topics, keys.meta):
        eyes.call("DEL", key)
        eyes.call("SET", key, "x")
    assert len([finding for finding in examine() if finding.check == "keys"]) == 9


def test_keys_that_are_not_the_buss(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """A note with one of them."""
    eyes.call("SET", f"{{{eyes.keys.namespace}:0}}:mine", "x")
    (finding, _) = [f for f in examine() if f.check == "keys"]
    assert finding.level == "note" and "1 key" in finding.found and ":mine" in finding.found


def test_topics_that_nobody_reads(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """A note, except for what the bus itself tells; a group that nobody declared does not count."""
    join(eyes)
    eyes.put(b"x", "sculpture.made")
    eyes.put(b"x", "handler.failed")
    eyes.call("XGROUP", "CREATE", eyes.stream("sculpture.made"), "stranger", "$")
    (_, finding) = [f for f in examine() if f.check == "topics"]
    assert finding.level == "note" and "reads sculpture.made:" in finding.found and finding.topic == "sculpture.made"


def test_a_handler_whose_type_is_misspelt(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """A note with the topic that it may mean, one for all groups with that slip; none once its own is published, or where
    the names are not alike."""
    for number in range(7):
        join(eyes, f"board@host-{number}", event_type="paintng.made")
    join(eyes, "carvers", event_type="tool.broken")
    eyes.put(b"x")
    (finding,) = [f for f in examine() if "is empty" in f.found]
    assert finding.level == "note" and finding.found == (
        "paintng.made, read by board@host-0, board@host-1, board@host-2, board@host-3, board@host-4 and 2 more, is empty, and "
        "nobody reads painting.made"
    )
    eyes.put(b"x", "paintng.made")
    assert not [f for f in examine() if "is empty" in f.found]


def test_a_group_that_was_never_declared(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """A warning: retention does not wait for it."""
    eyes.put(b"x")
    eyes.call("XGROUP", "CREATE", eyes.stream(), "stranger", "0")
    finding = about(examine(), "group")
    assert finding.level == "warning" and "group stranger on painting.made was never declared" in finding.found


def test_a_retention_that_is_none(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """An error: nothing is trimmed because of it. It says which one it is, and how to get rid of it."""
    join(eyes)
    eyes.call("HSET", eyes.keys.retention, "sculpture.*", "{}", "painting.*", b"\xff")
    finding = about(examine(), "retention")
    assert finding.level == "error" and "'painting.*'" in finding.found
    assert "canvasbus retention clear 'painting.*'" in finding.advice


def test_a_full_stream(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """An error that says who holds it up and what becomes of publishers."""
    join(eyes)
    full = {"painting.made": {"when_full": "block", "group": "framers", "length": 500}}
    eyes.call("SET", eyes.keys.full, json.dumps(full))
    found = examine()
    finding = about(found, "full")
    assert finding.level == "error" and "'framers'" in finding.found and finding.found.endswith("publishers wait")


async def test_events_for_later_that_nobody_publishes(
    server_url: str, eyes: Eyes, examine: Callable[..., Findings]
) -> None:
    """Overdue timers, and delayed events that nobody has taken up: no finding once some bus has published them."""
    eyes.call("ZADD", eyes.keys.timers, int(time.time() * 1000) - 600_000, "t")
    eyes.call("HSET", eyes.keys.timer_bodies, "t", "painting.made\nx")
    finding = about(examine(), "later")
    assert finding.level == "warning" and "for 10 minutes" in finding.found
    eyes.call("DEL", eyes.keys.timers, eyes.keys.timer_bodies)
    eyes.call(
        "XADD", eyes.keys.stream("~later"), f"{int(time.time() * 1000) - 300_000}-0", "e", "+1000\npainting.made\nx"
    )
    assert "for 5 minutes" in about(examine(), "later").found
    async with running(server_url, namespace=eyes.keys.namespace):
        await until(lambda: eyes.call("XLEN", eyes.keys.stream("painting.made")))
        assert not [f for f in await trio.to_thread.run_sync(examine) if f.check == "later"]


@pytest.mark.parametrize("deleted", ["timers", "bodies"])
def test_events_for_later_that_somebody_has_deleted_half_of(
    eyes: Eyes, examine: Callable[..., Findings], deleted: str
) -> None:
    """An error, whichever half it is, until somebody runs who does what can be done."""
    eyes.call("ZADD", eyes.keys.timers, int(time.time() * 1000) + 600_000, "t")
    eyes.call("HSET", eyes.keys.timer_bodies, "t", "painting.made 1\nx")
    assert not [finding for finding in examine() if finding.check == "later"]
    eyes.call("DEL", eyes.keys.timers if deleted == "timers" else eyes.keys.timer_bodies)
    finding = about(examine(), "later")
    assert finding.level == "error" and "1 event for later without" in finding.found
    assert "start a canvasbus-worker" in finding.advice


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_without_workers(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """A note while nothing waits for it, a warning when something does, with how much and since when."""
    join(eyes)
    assert about(examine(), "group").level == "note"
    eyes.call("XADD", eyes.stream(), f"{int(time.time() * 1000) - 600_000}-0", "e", "x")
    finding = about(examine(), "group")
    assert finding.level == "warning" and "events on painting.made, the oldest of them 10 minutes old" in finding.found
    assert finding.group == "framers" and "canvasbus groups forget framers" in finding.advice


def test_a_group_that_is_paused(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """A note, whatever waits."""
    join(eyes)
    eyes.put(b"x")
    eyes.call("SET", eyes.keys.paused("framers"), '{"by": "me"}')
    finding = about(examine(), "group")
    assert finding.level == "note" and "is paused; waiting: events on painting.made" in finding.found


def test_a_group_of_a_process_that_is_gone(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """A note: whoever runs removes it."""
    join(eyes, "board@host-1")
    eyes.call("HSET", eyes.keys.groups, "board@host-1", '{"types": [], "globs": [], "instance": true}')
    finding = about(examine(), "group")
    assert finding.level == "note" and "removes it within a minute" in finding.found


async def test_a_dead_consumer_beside_a_living_one(
    server_url: str, eyes: Eyes, examine: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entries are on their way to the others: a note; a warning when it takes too long."""
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def hang(event: PaintingMade) -> None:
        await trio.sleep_forever()

    join(eyes)
    take(eyes, "w-dead", entries=3)
    async with running(server_url, worker, namespace=eyes.keys.namespace, grace=0.1):

        async def finding() -> Finding | None:
            found = await trio.to_thread.run_sync(examine)
            return next((f for f in found if f.check == "dead consumers"), None)

        with trio.fail_after(20):
            while (first := await finding()) is None:
                pass
        assert first.level == "note" and "w-dead has no heartbeat and 3 entries" in first.found
        assert "the others take them over" in first.found
        monkeypatch.setattr(judge_groups, "TAKEOVER_SECONDS", 0.0)
        stuck = await finding()
        assert stuck is None or (stuck.level == "warning" and "look in the workers' logs" in stuck.advice)
        with trio.fail_after(20):
            while await finding() is not None:
                pass


def test_dead_consumers_alone(eyes: Eyes, examine: Callable[..., Findings], nobody_lives: None) -> None:
    """A warning with their names, what they have, and since when."""
    join(eyes)
    take(eyes, "w-1", idle=600, entries=2)
    take(eyes, "w-2")
    found = examine()
    finding = about(found, "dead consumers")
    assert finding.level == "warning" and "w-1, w-2 have no heartbeat and 3 entries" in finding.found
    assert "for 10 minutes; nobody takes them over" in finding.found
    assert "3 entries that were given to workers" in about(found, "group").found


def test_leaked_names(eyes: Eyes, examine: Callable[..., Findings], nobody_lives: None, monkeypatch: Any) -> None:
    """Names that own nothing: a note with one of them, a warning when there are very many."""
    join(eyes, "framers", "w-1", "w-2", "w-3")
    finding = about(examine(), "leaked names")
    assert finding.level == "note" and "3 names of consumers that are gone" in finding.found and "w-1" in finding.found
    monkeypatch.setattr(judge_groups, "LEAKED", 2)
    assert about(examine(), "leaked names").level == "warning"


def test_long_in_one_hand(eyes: Eyes, examine: Callable[..., Findings], all_live: None) -> None:
    """A note: a handler may take that long."""
    join(eyes)
    take(eyes, "w-1", idle=7200)
    finding = about(examine(), "in hand")
    assert finding.level == "note" and "w-1 has had entries for up to 2 hours" in finding.found


def test_a_group_that_is_behind(eyes: Eyes, examine: Callable[..., Findings], all_live: None) -> None:
    """Workers that live, and an event that they have not been given for five minutes."""
    join(eyes, "framers", "w-1")
    eyes.call("XADD", eyes.stream(), f"{int(time.time() * 1000) - 200_000}-0", "e", "x")
    assert not troubles(examine())
    eyes.call("XTRIM", eyes.stream(), "MAXLEN", 0)
    eyes.call("XADD", eyes.stream("sculpture.made"), f"{int(time.time() * 1000) - 400_000}-0", "e", "x")
    eyes.call("XGROUP", "CREATE", eyes.stream("sculpture.made"), "framers", "0")
    eyes.call("HSET", eyes.keys.groups, "framers", json.dumps({"types": ["painting.made"], "globs": ["sculpture.*"]}))
    finding = about(examine(), "behind")
    assert finding.level == "warning" and finding.topic == "sculpture.made" and "7 minutes old" in finding.found
    assert finding.advice.startswith("start more workers")


def test_a_topic_that_a_new_version_reads_no_more(eyes: Eyes, examine: Callable[..., Findings], all_live: None) -> None:
    """What waits there waits for ever, and retention with it: more workers of that version are no help. What was redriven
    of a type counts as the type."""
    join(eyes, "framers", "w-1", event_type="sculpture.made")
    join(eyes, "framers", "w-1")  # what the newer version declares
    retry = eyes.keys.retry("framers", "painting.made")
    eyes.call("SADD", eyes.keys.retries("framers"), "painting.made")
    eyes.call("XGROUP", "CREATE", retry, "framers", "0", "MKSTREAM")
    for stream in (eyes.stream("sculpture.made"), retry):
        eyes.call("XADD", stream, f"{int(time.time() * 1000) - 400_000}-0", "e", "x")
    read, dropped = [finding for finding in examine() if finding.check == "behind"]
    assert read.topic == "painting.made (redriven)" and read.advice.startswith("start more workers")
    assert dropped.topic == "sculpture.made" and "which its workers do not say that they read" in dropped.found
    assert f"XGROUP DESTROY '{eyes.stream('sculpture.made').decode()}' framers" in dropped.advice


@pytest.mark.parametrize(
    ("pool", "idle", "check", "level", "says"),
    [
        ("~free", 40, "handed back", "warning", "taken by nobody for 40 s"),
        ("~suspect", 1, "quarantine", "note", "in quarantine"),
        ("~suspect", 600, "quarantine", "warning", "up to 10 minutes"),
        ("~v:painting.made:3", 3600, "parked", "note", "know version 3"),
        ("~novel", 1, "parked", "note", "a pool that this version does not know"),
    ],
)
def test_pools(
    eyes: Eyes,
    examine: Callable[..., Findings],
    all_live: None,
    pool: str,
    idle: float,
    check: str,
    level: str,
    says: str,
) -> None:
    """Entries that were handed back, that are suspects, or that wait for a newer version: how many and how long."""
    join(eyes, "framers", "w-1")
    take(eyes, pool, idle=idle, entries=2)
    finding = about(examine(), check)
    assert finding.level == level and "2 entries on painting.made" in finding.found and says in finding.found


def test_what_has_just_been_handed_back(eyes: Eyes, examine: Callable[..., Findings], all_live: None) -> None:
    """Is on its way, and no finding."""
    join(eyes, "framers", "w-1")
    take(eyes, "~free", idle=1)
    assert not [f for f in examine() if f.check == "handed back"]


@pytest.mark.parametrize("how", ["trimmed", "deleted", "all of them"])
def test_pending_entries_that_are_gone(eyes: Eyes, examine: Callable[..., Findings], all_live: None, how: str) -> None:
    """Trimmed away, deleted in the middle, or the whole stream emptied: an error with the topic."""
    join(eyes)
    ids = take(eyes, "w-1", entries=10)
    assert not troubles(examine())
    if how == "trimmed":
        eyes.call("XTRIM", eyes.stream(), "MINID", ids[3])
    elif how == "deleted":
        eyes.call("XDEL", eyes.stream(), *ids[4:7])
    else:
        eyes.call("XTRIM", eyes.stream(), "MAXLEN", 0)
    finding = about(examine(), "gone")
    assert finding.level == "error" and finding.topic == "painting.made" and not finding.estimate
    assert f"{10 if how == 'all of them' else 3} of the 10 oldest pending entries" in finding.found


async def test_dead_letters(server_url: str, eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """How many a group has, and why the newest is there; one that no bus wrote is told apart."""
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> None:
        raise Reject(f"too dark\nnumber {event.number}")

    async with running(server_url, worker, namespace=eyes.keys.namespace) as bus:
        for number in range(3):
            await bus.publish(PaintingMade(number=number))
            await until(lambda n=number: len(eyes.dead("framers")) == n + 1)
        finding = about(await trio.to_thread.run_sync(examine), "dead letters")
        assert finding.level == "warning" and "framers has given up 3 events" in finding.found
        assert "rejected" in finding.found and "too dark number 2" in finding.found
        assert "dlq list --group framers" in finding.advice
        eyes.call("XADD", eyes.keys.dead("framers"), "*", "e", "nonsense")
        assert "the newest cannot be read" in about(await trio.to_thread.run_sync(examine), "dead letters").found


async def test_redriven_events_count(server_url: str, eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """What was redriven and is not handled is work that waits, too."""
    join(eyes)
    eyes.call("SADD", eyes.keys.retries("framers"), "painting.made")
    eyes.call("XADD", eyes.keys.retry("framers", "painting.made"), "*", "e", "x")
    eyes.call("XGROUP", "CREATE", eyes.keys.retry("framers", "painting.made"), "framers", "0")
    assert "painting.made (redriven)" in about(examine(), "group").found


async def test_a_group_of_each_process(server_url: str, eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """One that lives is as good as any."""
    worker = Worker("board", group=PER_INSTANCE)

    @worker.on(SculptureMade)
    async def show(event: SculptureMade) -> None: ...

    async with running(server_url, worker, namespace=eyes.keys.namespace):
        assert not troubles(await trio.to_thread.run_sync(examine))


# --- strangers, limits, rights ----------------------------------------------------------------------------------------


def test_a_hostile_namespace(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """Keys, topics, groups and consumers with binary and malicious names, and nonsense in every value: findings as ever,
    and names in a copied command are quoted for the shell."""
    keys = eyes.keys
    nasty = [b"\xff\x00\x1b[2J", b"x\r\nok  all is well", b"'; rm -rf ~; '", b"%s{}:*", "\u202eevil".encode(), b""]
    for name in nasty:
        stream = keys.stream("") + name
        eyes.call("XADD", stream, "*", name or b"f", name)
        eyes.call("XGROUP", "CREATE", stream, name, "0")
        eyes.call("XREADGROUP", "GROUP", name, b"c" + name, "STREAMS", stream, ">")
        eyes.call("HSET", keys.groups, name, name)
        eyes.call("SADD", keys.topics, name)
        eyes.call("XADD", keys.dead("") + name, "*", b"e", name)
        eyes.call("HSET", keys.beats("") + name, b"c" + name, name)
        eyes.call("SET", keys.paused("") + name, name)
        eyes.call("XADD", keys.retry("", "")[:-1] + name, "*", "f", "v")
        eyes.call("SET", f"{{{keys.namespace}:".encode() + name, "x")
    eyes.call("SET", keys.full, b"\xff")
    eyes.call("XADD", keys.stream("~later"), "*", "f", "v")
    eyes.call("ZADD", keys.timers, "-inf", b"\xff")
    eyes.call("HSET", keys.retention, b"\xff", b"\xff")
    found = examine()
    assert len([f for f in found if f.check == "dead letters"]) == len(nasty)
    assert any(f"--group '{chr(39)}\"'\"'" in f.advice or "'\"'\"'; rm -rf" in f.advice for f in found)
    for binary in (b"\xff", "١٢".encode(), b"9" * 400, b"-1", b"1.5"):
        eyes.call("HSET", keys.meta, "partitions", binary)
        examine()


def test_long_lists_are_cut(
    eyes: Eyes, examine: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch, all_live: None
) -> None:
    """Beyond each limit nothing is asked, and what is said is marked as an estimate."""
    for number in range(10):
        join(eyes, f"group-{number}", "w-1", event_type=f"type.t{number}")
        for extra in range(10):
            if extra != number:
                eyes.call("XGROUP", "CREATE", eyes.stream(f"type.t{number}"), f"group-{extra}", "0", "MKSTREAM")
    assert not any(f.estimate for f in examine())
    for name in ("KEY_LIMIT", "STREAM_LIMIT", "PAIR_LIMIT", "GROUP_LIMIT", "OWNER_LIMIT"):
        monkeypatch.setattr(asking, name, 3)
    found = examine()
    assert about(found, "topics").found.startswith("3 topics") and about(found, "topics").estimate
    assert not [f for f in found if f.level == "ok" and f.check == "groups" and "group-9" in f.found]
    assert "not all were looked at" in next(f for f in found if f.check == "groups").found
    assert about(found, "keys").estimate


def test_a_sample_of_what_is_pending(
    eyes: Eyes, examine: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch, all_live: None
) -> None:
    """Of many pending entries the oldest are looked for, and the finding says that there may be more."""
    monkeypatch.setattr(asking, "SAMPLE", 3)
    join(eyes)
    take(eyes, "w-1", entries=5)
    eyes.call("XTRIM", eyes.stream(), "MAXLEN", 0)
    finding = about(examine(), "gone")
    assert "3 of the 3 oldest" in finding.found and finding.estimate


def test_the_search_for_keys_ends(
    eyes: Eyes, examine: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many pages; what is listed is looked at all the same."""
    join(eyes)
    for number in range(50):
        eyes.call("SET", f"other-{eyes.keys.namespace}-{number}", "x")
    monkeypatch.setattr(asking, "SCAN_PAGES", 1)
    monkeypatch.setattr(asking, "SCAN_COUNT", 1)
    assert about(examine(), "topics").estimate
    for number in range(50):
        eyes.call("DEL", f"other-{eyes.keys.namespace}-{number}")


@pytest.mark.parametrize(
    "command", ["xinfo", "xpending", "hgetall", "scan", "type", "xlen", "smembers", "hget", "time"]
)
def test_what_may_not_be_asked_is_not_concluded(making: Making, command: str) -> None:
    """Without a right nothing is wrong that would not be with it: the namespace says what it does not know."""
    url, eyes = making()
    eyes.call("HSET", eyes.keys.meta, "partitions", 1)
    join(eyes, "framers", "w-1")
    take(eyes, "w-1", entries=3)
    eyes.call("HSET", eyes.keys.beats("framers"), "w-1", 1)
    eyes.call(*acl("operator", "studio").split())
    eyes.call("ACL", "SETUSER", user("operator", "studio"), ">pw")
    as_operator = url.replace("redis://", f"redis://{user('operator', 'studio')}:pw@")
    before = {(f.check, f.group) for f in look(as_operator) if f.level in ("warning", "error")}
    eyes.call("ACL", "SETUSER", user("operator", "studio"), f"-{command}")
    found = look(as_operator)
    after = {(f.check, f.group) for f in found if f.level in ("warning", "error") and f.check != "rights"}
    assert after <= before
    about_it = [f for f in found if f.check in ("namespace", "keys", "topics", "groups", "group")]
    assert command == "time" or not [f for f in about_it if f.level == "ok" and f.check != "namespace"]
    assert any(f.level == "note" and "may not" in f.found for f in found if f.check == "namespace") or command == "time"


def test_losses_of_the_last_day_are_found(eyes: Eyes, examine: Callable[..., Findings]) -> None:
    """How many, and of the newest why and whose; older ones, and what a stranger wrote, are no reason to fail."""
    now = time.time_ns() // 1_000_000
    stream = eyes.stream("bus.loss")
    for hours, topic in ((25, "sculpture.made"), (2, "sculpture.made"), (1, "painting.made")):
        loss = BusLoss(topic=topic, group="framers", reason="group_recreated", detail="x")
        eyes.call("XADD", stream, f"{now - hours * 3_600_000}-0", "e", Codec().encode(loss).data)
    found = about(examine(), "losses")
    assert (found.level, found.group, found.topic) == ("warning", "framers", "painting.made")
    assert found.found.startswith("2 bus.loss events in the last 24 hours; the newest 60 minutes ")
    assert found.found.endswith("ago: group_recreated of group framers on topic painting.made")
    assert "canvasbus tail --type bus.loss --from 24h" in found.advice
    eyes.call("XADD", stream, "*", "e", "strange")
    assert about(examine(), "losses").found == "3 bus.loss events in the last 24 hours"
