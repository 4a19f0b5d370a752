"""Keys: one hash tag a partition, one partition a key."""

import inspect
import random
import zlib
from binascii import crc32

import pytest
from redis.crc import key_slot
from seeds import seeds

from canvasbus.errors import ConfigError
from canvasbus.wire.keys import (
    FREE_POOL,
    LATER_INBOX,
    SUSPECT_POOL,
    TYPES,
    Keys,
    holds_suspects,
    partition_of,
    version_in,
    version_pool,
)


def all_of(keys: Keys) -> list[bytes]:
    return [
        *(keys.topics, keys.groups, keys.meta, keys.stream("drift.detected"), keys.stream("a.b"), keys.stream_pattern),
        *(keys.dead("g"), keys.beats("g"), keys.fence("i-1"), keys.reaper("g")),
    ]


def test_all_keys_of_a_partition_lie_in_one_slot() -> None:
    """By redis-py's own slot function, for any namespace; and no two keys are the same."""
    for namespace in ("canvasbus", "a", "team-1.prod_x"):
        for partition in (0, 1, 17):
            found = all_of(Keys(namespace, partition))
            assert {key_slot(key) for key in found} == {key_slot(f"{namespace}:{partition}".encode())}
            assert len(set(found)) == len(found)
            assert all(key.startswith(f"{{{namespace}:{partition}}}:".encode()) for key in found)


def test_what_every_key_holds_is_written_down() -> None:
    """TYPES knows each kind of key that Keys names, and no other."""
    keys = Keys("studio", 3)
    found = {keys.topics, keys.groups, keys.meta, keys.stream(LATER_INBOX)}
    for name, member in vars(Keys).items():
        if isinstance(member, property):
            found.add(getattr(keys, name))
        elif inspect.isfunction(member) and not name.startswith("_") and name != "type_of":
            found.add(member(keys, *("x" for _ in list(inspect.signature(member).parameters)[1:])))
    assert {key.decode().split(":")[2] for key in found} == TYPES.keys()


def test_the_stream_of_a_type_is_as_documented() -> None:
    """{namespace:partition}:stream:type; type_of is its inverse."""
    keys = Keys("studio", 3)
    assert keys.stream("drift.detected") == b"{studio:3}:stream:drift.detected"
    assert keys.type_of(keys.stream("drift.detected")) == "drift.detected"
    assert Keys().stream("a") == b"{canvasbus:0}:stream:a"


def test_a_key_goes_to_its_crc32() -> None:
    """partition_of is crc32 of the UTF-8 text modulo the count: any language can do the same."""
    (seed,) = seeds(1, "key_names")
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(500):
        key = "".join(map(chr, draw.choices(range(32, 0x2FFF), k=draw.randrange(20))))
        count = draw.randrange(1, 64)
        assert partition_of(key, count) == zlib.crc32(key.encode("utf-8")) % count
    assert partition_of("StyleGAN-Canvas-v3", 8) == crc32(b"StyleGAN-Canvas-v3") % 8
    assert partition_of(None, 8) == 0


def test_partitions_are_evenly_used() -> None:
    """10,000 model names over 8 partitions: none gets less than half or more than double its share."""
    counts = [0] * 8
    for number in range(10_000):
        counts[partition_of(f"model-{number}", 8)] += 1
    assert all(625 < count < 2500 for count in counts)


@pytest.mark.parametrize("name", ["", "a b", "a*", "{a}", "a:b", "a\n", "ä", "x" * 101, "a?"])
def test_a_namespace_that_would_move_keys_is_refused(name: str) -> None:
    """Braces change the slot, globs the patterns, blanks the patience."""
    with pytest.raises(ConfigError, match="namespace"):
        Keys(name)


def test_a_version_pool_names_its_type_and_version() -> None:
    """~v:<type>:<n>, for suspects ~vs:<type>:<n>; other pools and consumers name none."""
    assert version_pool("drift.detected", 12) == "~v:drift.detected:12"
    assert version_pool("drift.detected", 12, suspects=True) == "~vs:drift.detected:12"
    for suspects in (False, True):
        pool = version_pool("drift.detected", 12, suspects=suspects)
        assert version_in(pool) == 12 and holds_suspects(pool) == suspects
    assert holds_suspects(SUSPECT_POOL) and not holds_suspects(FREE_POOL)
    others = (
        FREE_POOL,
        SUSPECT_POOL,
        "host-1-abc",
        "~v:",
        "~v:drift.detected",
        "~v:a:-1",
        "~v:a:x",
        "v:a:1",
        "~v:a:1 ",
        "~vx:a:1",
    )
    assert {version_in(name) for name in others} == {None}
