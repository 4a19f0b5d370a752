"""Judges what the server told. Pure.

What an acknowledged event is worth was measured with 200-byte entries, kill -9 and emulated power cuts (files cut back
to what was fsynced): always lost none of 1.1 million; everysec lost the last 0.5 to 1.0 s, five times out of five; no
lost everything written in two seconds. When only the process was killed, nothing was lost but by everysec on a disk that
lags: while an fsync runs, the server acknowledges for up to two seconds what it has not even written (all of 1,000, with
fsyncs that `strace -f -e inject=fdatasync,fsync:delay_enter=3000000` held up for three seconds).
"""

from collections.abc import Iterator

from canvasbus.consume.subscription import READ_COUNT
from canvasbus.errors import TransportError
from canvasbus.operate.doctor.finding import Finding, Level
from canvasbus.operate.doctor.server import ServerFacts
from canvasbus.operate.words import count, size
from canvasbus.transport.address import Address

CLOCK_SECONDS = 2.0
"""Clocks that differ by more are told."""

FULL_SHARE = 0.85
"""Of maxmemory, of the machine's memory, or of maxclients: from here on it is told."""

REFUSALS: dict[str, tuple[str, str]] = {
    "READONLY": (
        "this server is a read-only replica",
        "give the URL of the master, or redis+sentinel:// which finds it",
    ),
    "OOM": (
        "the server is at its maxmemory limit",
        "raise maxmemory, or let retention keep less (`canvasbus retention`)",
    ),
    "MISCONF": ("the server cannot write to its disk", "look into its log: disk full, no permission, no such folder"),
    "NOREPLICAS": (
        "fewer replicas are in reach than min-replicas-to-write asks for",
        "bring them back, or lower min-replicas-to-write",
    ),
    "MOVED": (
        "this is one node of a Redis Cluster, and these keys lie on another",
        "the bus needs a server of its own, a replicated one with Sentinel if it shall outlive a machine",
    ),
    "CLUSTERDOWN": ("the cluster is down", "look at CLUSTER INFO"),
    "MASTERDOWN": ("this replica has lost its master", "give the URL of the master"),
}
"""First word of an error → what it means, and what to do."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def judge_address(address: Address) -> Iterator[Finding]:
    """What can be said of the URL alone."""
    if address.tls and not address.verify:
        yield Finding(
            "error",
            "tls",
            "the URL says ssl_cert_reqs=none: the connection is encrypted, but whoever stands in between can pretend to "
            "be the server, and read and change everything, the password included",
            "name the authority that signed the server's certificate with ?ssl_ca_certs=FILE, and drop ssl_cert_reqs",
        )
    elif address.tls:
        yield Finding("ok", "tls", "encrypted, and the server's certificate is verified")
    elif address.path is None:
        hosts = [host for host, _ in address.sentinels] or [address.host]
        far = [host for host in hosts if host not in _LOOPBACK]
        if far:
            secret = " and the password" if address.password else ""
            yield Finding(
                "note",
                "tls",
                f"not encrypted: events{secret} can be read on the way to {', '.join(far)}",
                "outside of a network that you trust, use rediss:// and let the server speak TLS",
            )


def judge_server(facts: ServerFacts) -> Iterator[Finding]:
    """Everything about the server that does not depend on the namespace."""
    if facts.silent:
        told = "; ".join(f"{question} ({why})" for question, why in facts.silent.items())
        advice = ""
        if "CONFIG GET" in facts.silent:
            advice = "who may see the server's passwords too can give this user +config|get"
        yield Finding("note", "not told", f"the server does not answer {told}: what hangs on it is not known", advice)
    yield _kind(facts)
    yield from _capabilities(facts)
    yield from _writes(facts)
    yield from _durability(facts)
    yield from _persistence(facts)
    yield from _replication(facts)
    yield from _eviction(facts)
    yield from _memory(facts)
    yield from _clock(facts)
    yield from _clients(facts)


def _kind(facts: ServerFacts) -> Finding:
    info = facts.info
    pace = "answers" if facts.round_trip is None else f"answers in {facts.round_trip * 1000:.2g} ms"
    if not info:
        return Finding("note", "server", f"its kind and version are not known; it {pace}")
    kind = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "of unknown version")
    mode = info.get("redis_mode") or info.get("server_mode", "")
    hours = (facts.number("uptime_in_seconds") or 0) / 3600
    up = (
        f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours" if hours >= 2 else f"{hours * 60:.0f} minutes"
    )
    return Finding("ok", "server", f"{kind} {version}, {mode}, up {up}, {pace}")


def _capabilities(facts: ServerFacts) -> Iterator[Finding]:
    if facts.knows.get("ENTRIESREAD") is False:
        yield Finding(
            "error",
            "capabilities",
            "the server is older than Redis 7.0: it does not know XGROUP CREATE … ENTRIESREAD, so no worker can join",
            "use Redis 7.0 or newer, or Valkey",
        )
    newer = {name: known for name, known in facts.knows.items() if name != "ENTRIESREAD"}
    has = [name for name, known in newer.items() if known]
    lacks = [name for name, known in newer.items() if known is False]
    parts = [f"{word} {', '.join(names)}" for word, names in (("it has", has), ("it lacks", lacks)) if names]
    unknown = [name for name, known in newer.items() if known is None]
    if unknown:
        parts.append(f"{', '.join(unknown)} could not be tried")
    yield Finding(
        "ok" if not unknown else "note",
        "capabilities",
        f"of the newer commands {'; '.join(parts)}; the bus does without all of them, by scripts of its own",
    )


def judge_failure(error: TransportError) -> Finding:
    """The server could not be asked. (One that cannot write to its disk refuses even PING.)"""
    advice = next((advice for word, (_, advice) in REFUSALS.items() if f"({word} " in str(error)), "")
    return Finding("error", "connection", str(error), advice)


def _writes(facts: ServerFacts) -> Iterator[Finding]:
    if facts.write_error is None:
        yield Finding("note", "writes", "whether the server takes writes is not known: this user may not XADD")
    elif not facts.write_error:
        yield Finding("ok", "writes", "the server takes writes")
    else:
        word = facts.write_error.partition(" ")[0]
        meaning, advice = REFUSALS.get(word, ("the server refuses writes", ""))
        yield Finding(
            "error", "writes", f"nothing can be published or acknowledged now: {meaning} ({facts.write_error})", advice
        )


def _durability(facts: ServerFacts) -> Iterator[Finding]:
    """What an acknowledged event is worth here, in one sentence."""
    keep = "CONFIG SET appendonly yes, and the same in the server's configuration file"
    aof, fsync = facts.info.get("aof_enabled"), facts.config.get("appendfsync")
    crash = "an acknowledged event survives a crash of the server process"
    level: Level
    if aof is None:
        level, found, advice = "note", "what an acknowledged event is worth here is not known: INFO is not told", ""
    elif aof != "1":
        saves = facts.config.get("save")
        if saves == "":
            level, advice = "warning", keep
            found = (
                "nothing is persisted: when the server stops or crashes, all events, groups and dead letters are gone"
            )
        else:
            level, advice = "warning", keep
            changes = facts.number("rdb_changes_since_last_save") or 0
            how = f"snapshots only (save {saves})" if saves else "no append-only file, snapshots at best"
            found = (
                f"{how}: a crash of the server or a power cut loses every event since the last snapshot, acknowledged or "
                f"not; {count(changes, 'change')} {'is' if changes == 1 else 'are'} at stake now"
            )
    elif fsync == "always":
        level, found, advice = "ok", f"appendfsync always: {crash}, and a power cut", ""
    elif fsync == "everysec":
        level = "note"
        found = (
            f"appendfsync everysec: {crash}, unless the disk lags (then up to the last two seconds are lost); a power cut "
            "loses up to the last second, and more where the disk lags"
        )
        if lags := facts.number("aof_delayed_fsync"):  # writes that waited for an fsync for two seconds
            found += f", which it did {count(lags, 'time')} since the server started"
        advice = "where that is too much: CONFIG SET appendfsync always, which costs throughput"
    elif fsync == "no":
        level = "warning"
        found = (
            f"appendfsync no: {crash}; a power cut loses what the operating system had not written yet, maybe all of it"
        )
        advice = "CONFIG SET appendfsync everysec, or always"
    else:
        level, advice = "note", ""
        found = (
            "append-only file: what is lost is not known, since CONFIG GET appendfsync is not told (with everysec, the "
            "server's default: by a power cut up to the last second; where the disk lags more than that, and by a crash "
            "of the server process up to the last two)"
        )
    if aof == "1" and "valkey_version" not in facts.info:  # which has mended it (valkey#4342); Redis 7.0.15 has not
        found += "; after each crash run BGREWRITEAOF, or the next one may bring back half a transaction"
    yield Finding(level, "durability", found, advice)
    if aof == "1" and fsync == "everysec" and facts.config.get("no-appendfsync-on-rewrite") == "yes":
        yield Finding(
            "note",
            "durability",
            "no-appendfsync-on-rewrite yes: while the append-only file is rewritten, a power cut loses as much as with "
            "appendfsync no",
            "CONFIG SET no-appendfsync-on-rewrite no",
        )


def _persistence(facts: ServerFacts) -> Iterator[Finding]:
    """Whether the last attempts to write to disk succeeded."""
    if not facts.info:
        return
    failed = []
    if facts.info.get("aof_last_write_status", "ok") != "ok":
        failed.append("the last write to the append-only file failed")
    if facts.info.get("aof_last_bgrewrite_status", "ok") != "ok":
        failed.append("the last rewrite of the append-only file failed")
    if facts.info.get("rdb_last_bgsave_status", "ok") != "ok":
        stops = facts.config.get("stop-writes-on-bgsave-error") != "no" and facts.config.get("save") != ""
        failed.append(
            "the last snapshot failed" + (", and until one succeeds the server refuses writes" if stops else "")
        )
    if failed:
        advice = "look into the server's log (disk full, no permission, no such folder), then BGSAVE or BGREWRITEAOF"
        yield Finding("error", "persistence", "; ".join(failed), advice)
    elif facts.info.get("aof_enabled") == "1" or facts.config.get("save"):
        yield Finding("ok", "persistence", "the last writes to disk succeeded")


def _replication(facts: ServerFacts) -> Iterator[Finding]:
    info = facts.info
    role = info.get("role")
    if role is None:
        return
    if role != "master":
        link = info.get("master_link_status", "unknown")
        yield Finding(
            "error",
            "replication",
            f"this server is a replica of {info.get('master_host')}:{info.get('master_port')} (link {link}), and what is "
            "written to it does not last",
            "give the URL of the master, or redis+sentinel:// which finds it",
        )
        return
    replicas = facts.number("connected_slaves") or 0
    wanted = facts.setting("min-replicas-to-write")
    lag = facts.setting("min-replicas-max-lag")
    if wanted and (facts.number("min_slaves_good_slaves") or 0) < wanted:
        good = facts.number("min_slaves_good_slaves") or 0
        yield Finding(
            "error",
            "replication",
            f"min-replicas-to-write {wanted}, but {good} of {count(replicas, 'replica')} keep up: writes are refused",
            "bring the replicas back, or lower min-replicas-to-write",
        )
    elif not replicas:
        yield Finding("ok", "replication", "a master without replicas: when its machine is lost, so is what is on it")
    else:
        if wanted:
            lost = f"; at most {lag} s of events are at stake, since min-replicas-to-write is {wanted}"
            advice = "for events that may not be lost, publish with durability='replicated'"
        else:
            lost = ", and with them all that an old master still takes while it is cut off"
            advice = "publish with durability='replicated' what may not be lost, and set min-replicas-to-write 1"
            if wanted is None:
                lost, advice = "", "publish with durability='replicated' what may not be lost"
        yield Finding(
            "note",
            "replication",
            f"{count(replicas, 'replica')}, asynchronous: a failover loses the last acknowledged events, those that no replica "
            f"had yet{lost}",
            advice,
        )


def _eviction(facts: ServerFacts) -> Iterator[Finding]:
    policy = facts.info.get("maxmemory_policy")
    evicted = facts.number("evicted_keys") or 0
    if policy is None:
        yield Finding("note", "eviction", "the eviction policy is not known: INFO is not told")
    elif policy != "noeviction":
        what = (
            "streams with their groups" if policy.startswith("allkeys") else "state, fences and leases, which expire,"
        )
        already = f"; it has removed {count(evicted, 'key')} since it started" if evicted else ""
        yield Finding(
            "error",
            "eviction",
            f"maxmemory-policy {policy}: short of memory the server removes {what} without a word{already}",
            "CONFIG SET maxmemory-policy noeviction, and the same in the server's configuration file",
        )
    else:
        were = "was" if evicted == 1 else "were"
        already = f" ({count(evicted, 'key')} {were} evicted under another policy since it started)" if evicted else ""
        yield Finding("note" if evicted else "ok", "eviction", f"noeviction: a full server refuses writes{already}")


def _memory(facts: ServerFacts) -> Iterator[Finding]:
    used, limit, machine = (facts.number(name) for name in ("used_memory", "maxmemory", "total_system_memory"))
    if used is None or limit is None:
        yield Finding("note", "memory", "memory is not known: INFO is not told")
        return
    held = facts.number("used_memory_rss") or used
    wasted = held - used
    loose = f"; fragmentation: the process holds {size(held)} for it" if wasted > 64 << 20 and held > 1.5 * used else ""
    if limit:
        level: Level = "error" if used >= limit else "warning" if used >= FULL_SHARE * limit else "ok"
        left = max(0, limit - used)
        advice = "" if level == "ok" else "raise maxmemory, or let retention keep less (`canvasbus retention list`)"
        found = f"{size(used)} of maxmemory {size(limit)} used, {size(left)} left"
        if machine and limit > machine:
            level, advice = "warning", "lower maxmemory below what the machine has"
            found += f", but the machine has only {size(machine)}"
        yield Finding(level, "memory", found + loose, advice)
        return
    full = machine is not None and held >= FULL_SHARE * machine
    of = f" of the machine's {size(machine)}" if machine else ""
    yield Finding(
        "warning" if full else "note",
        "memory",
        f"{size(used)} used{of}, without maxmemory: a server that grows is killed by the operating system instead of "
        f"refusing writes{loose}",
        "CONFIG SET maxmemory to what it may use, less than the machine has: snapshots and rewrites need room too",
    )


def _clock(facts: ServerFacts) -> Iterator[Finding]:
    if facts.clock_offset is None or facts.round_trip is None:
        yield Finding("note", "clock", "how the clocks differ is not known: TIME is not told")
        return
    ahead, doubt = facts.clock_offset, facts.round_trip / 2
    if abs(ahead) - doubt <= CLOCK_SECONDS:
        yield Finding("ok", "clock", f"the server's clock and ours differ by {abs(ahead):.1f} s")
        return
    yield Finding(
        "warning",
        "clock",
        f"the server's clock is {abs(ahead):,.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's: ages, times of "
        "delayed events and positions given as a time are off by that much",
        "let both follow the same time (NTP)",
    )


def _clients(facts: ServerFacts) -> Iterator[Finding]:
    connected, most = facts.number("connected_clients"), facts.number("maxclients")
    if connected is not None and most and connected >= FULL_SHARE * most:
        yield Finding(
            "warning",
            "clients",
            f"{connected:,} of at most {most:,} clients are connected; further ones are refused",
            "raise maxclients, or find who opens so many (CLIENT LIST)",
        )
    seconds = facts.setting("timeout")
    if seconds:
        yield Finding(
            "note",
            "timeout",
            f"the server closes connections that are idle for {seconds} s: who publishes less often connects anew each time",
            "CONFIG SET timeout 0; dead connections are found by tcp-keepalive",
        )
    yield from _reply_limit("client-output-buffer-limit normal", _hard_limit(facts))
    limit = facts.config.get("maxmemory-clients", "")
    if limit.isdigit():
        yield from _reply_limit("maxmemory-clients", int(limit))
    elif limit.endswith("%"):
        yield Finding(
            "note",
            "output buffers",
            f"maxmemory-clients {limit}: when all clients together hold more, the one that holds most is disconnected",
        )


def _hard_limit(facts: ServerFacts) -> int:
    """Bytes of replies that a client may have waiting; 0: any."""
    words = facts.config.get("client-output-buffer-limit", "").split()
    for name, hard, soft, _ in zip(words[::4], words[1::4], words[2::4], words[3::4], strict=False):
        if name == "normal" and hard.isdigit() and soft.isdigit():
            return min((int(limit) for limit in (hard, soft) if limit != "0"), default=0)
    return 0


def _reply_limit(name: str, limit: int) -> Iterator[Finding]:
    if not limit:
        return
    each = limit // READ_COUNT
    small = each < 16 * 1024
    yield Finding(
        "warning" if small else "note",
        "output buffers",
        f"{name} {size(limit)}: a client with more than that waiting for it is disconnected, and a worker reads up to "
        f"{READ_COUNT} entries at once: events of {size(each)} on average are too much",
        f"CONFIG SET {name.split()[0]}"
        + (" 'normal 0 0 0'" if "normal" in name else " 0")
        + ", or a few hundred megabytes",
    )
