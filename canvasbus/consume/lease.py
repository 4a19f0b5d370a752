"""A lease on the server: of many who could do something, one does it.

It only spares the others the work. What is done under it must be safe when two believe to hold it: the holder may have
been paused for longer than its lease, and nothing fences it.
"""

from canvasbus.transport.resp import Argument, Operation, ReplyError, check, code, command, commands

LEASE_MS = 4000
"""How long after its holder's last word a lease can be had by somebody else."""


def hold_lease(key: bytes, name: str, *also: tuple[Argument, ...]) -> Operation[tuple[bool, bool]]:
    """Take the lease, or keep it for another LEASE_MS. Returns whether we have it, else somebody else does, and whether the
    server has memory. `also`: what its holder says in the same packet. Raises TransportError.

    A server at its maxmemory gives the lease to nobody, but lets its holder keep it. Where there is none everybody has it
    then: trimming, which frees memory, must not wait for memory.

    What lies there without an end, somebody has put there by hand: it is given one (LT: a lease has less left), or
    nobody would ever do it again."""
    made, holder, _ = yield commands(
        ("SET", key, name, "NX", "PX", LEASE_MS), ("GET", key), ("PEXPIRE", key, LEASE_MS, "LT")
    )
    full = isinstance(made, ReplyError) and code(made) == "OOM"
    if not full:
        check(made, "lease")
    if check(holder, "lease") not in (name.encode(), *([None] if full else [])):
        return False, not full
    yield commands(("PEXPIRE", key, LEASE_MS), *also)
    return True, not full


def release_lease(key: bytes, name: str) -> Operation[None]:
    """Let somebody else have the lease at once, if it is ours. Raises TransportError. (Should it go to another between the
    two steps, nobody has it, which is no worse than two.)"""
    (holder,) = yield command("GET", key)
    if check(holder, "lease") == name.encode():
        yield command("PEXPIRE", key, 1)
