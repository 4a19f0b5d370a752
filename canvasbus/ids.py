"""Event ids.

An event published by a producer gets a UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, 74 random bits. An
event derived from another gets uuid5(parent id, group, handler, index), so that running the handler again after a
crash gives the same id, one that is published under a key uuid5(type, key), so that it is the same event however often
it is published. Nothing sorts by an id or reads time from it.

This file lies below `wire` because `Event.correlation_id` needs a default, and the contract may not import the wire.

Cost: `uuid.UUID(int=...)` spends 540 ns on argument checks that cannot fail here; msgspec makes a UUID out of msgpack
bytes in 160, and `publish` has 2 microseconds in all.
"""

import os
from collections.abc import Iterator
from hashlib import sha1
from random import Random
from struct import Struct
from uuid import UUID, uuid5

import msgspec

from canvasbus import clock

_random = Random()
_bits = _random.getrandbits
_decode = msgspec.msgpack.Decoder(UUID).decode
_rests = Struct("7s").iter_unpack

_prefix = b""
_prefix_ends = 0


def uuid7_bytes() -> bytes:
    """The 16 bytes of a new UUIDv7. Safe in threads and after a fork (a child draws from a new seed).

    All but the last 56 bits are drawn once per millisecond. When the wall clock goes back the old prefix stays in use
    until it has caught up.
    """
    ns = clock.time_ns()
    if ns >= _prefix_ends:
        _new_prefix(ns)
    return _prefix + _bits(56).to_bytes(7, "big")


def uuid7_parts(count: int) -> tuple[bytes, Iterator[tuple[bytes]]]:
    """`count` new UUIDv7 at half the price, as what all of them begin with and the rest of each, the one field of a tuple:
    whoever writes them into bytes need not make them first."""
    ns = clock.time_ns()
    if ns >= _prefix_ends:
        _new_prefix(ns)
    return _prefix, _rests(_random.randbytes(7 * count))


def uuid7() -> UUID:
    """A new UUIDv7."""
    return from_bytes(uuid7_bytes())


def from_bytes(raw: bytes) -> UUID:
    """A UUID of 16 bytes."""
    return _decode(b"\xc4\x10" + raw)


def _new_prefix(ns: int) -> None:
    global _prefix, _prefix_ends
    ms = ns // 1_000_000
    _prefix = (ms & 0xFFFF_FFFF_FFFF).to_bytes(6, "big") + bytes((0x70 | _bits(4), _bits(8), 0x80 | _bits(6)))
    _prefix_ends = (ms + 1) * 1_000_000


def id_order(entry_id: str | bytes) -> tuple[int, int]:
    """The id of a stream's entry as something that compares like the server compares it."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    ms, _, sequence = text.partition("-")
    return int(ms or 0), int(sequence or 0)


def derived(parent: UUID, group: str, handler: str, index: int) -> UUID:
    """The id of the `index`-th event that `handler` of `group` returns for the event `parent`: uuid5 (RFC 9562, 5.5).

    By hand, because uuid.uuid5 takes 4 µs for what sha1 does in 1, and a deriving worker does it once per event.
    """
    return _named(parent.bytes, f"{group}\n{handler}\n{index}".encode())


def keyed(event_type: str, dedupe_key: str) -> UUID:
    """The id of an event that is published under a key: the same in every process (uuid5 of its type and the key)."""
    return _named(_KEYED, f"{event_type}\n{dedupe_key}".encode(errors="surrogatepass"))


def _named(space: bytes, name: bytes) -> UUID:
    digest = bytearray(sha1(space + name, usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return from_bytes(bytes(digest))


def foreign(stream: str, entry_id: str) -> UUID:
    """The id of an entry that came without one: the same on every reading."""
    return uuid5(_FOREIGN, f"{stream}\n{entry_id}")


def outside(source: str, name: str) -> UUID:
    """The id of what somebody outside of the bus names otherwise than by a UUID: the same in every process."""
    return _named(_OUTSIDE, f"{source}\n{name}".encode(errors="surrogatepass"))


_OUTSIDE = UUID("7f0a1c52-93f4-5d0b-8a6e-41b7d2c90e35").bytes  # for nothing else
_KEYED = UUID("2d7c1f0a-6f0e-5b7e-9a52-3c1d8f4be6a1").bytes  # for nothing else
_FOREIGN = UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562 namespace for URLs


def generator() -> Random:
    """Randomness for something else than ids (jitter, for example), drawn from the same source: after `reseed(seed)` it
    repeats too."""
    return Random(_bits(64))


def reseed(seed: int | None = None) -> None:
    """Draw the random bits from `seed`, or from the operating system when None."""
    global _prefix_ends
    _random.seed(int.from_bytes(os.urandom(32), "big") if seed is None else seed)
    _prefix_ends = 0


os.register_at_fork(after_in_child=reseed)
