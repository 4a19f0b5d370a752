"""A stream with groups and its trimmer, without a bus around them."""

import json
from typing import Any

from studio import Eyes

from canvasbus.bus import Retention
from canvasbus.consume.retention import Trimmer, declare
from canvasbus.transport.resp import commands

DROPS = Retention(max_age=None, max_length=None, cap=10, when_full="drop_with_loss_event")


class House:
    """One type, kept by a policy."""

    def __init__(self, eyes: Eyes, policy: Retention, **options: Any) -> None:
        self.eyes = eyes
        self.trimmer = Trimmer(eyes.keys, **options)
        self.stream = eyes.stream()
        self.clock = 0.0
        eyes.run(declare([eyes.keys], {"painting.*": policy}))
        eyes.call("SADD", eyes.keys.topics, "painting.made")

    def add(self, *ids: str) -> None:
        for entry_id in ids:
            self.eyes.call("XADD", self.stream, entry_id, "e", "x")

    def group(
        self, name: str, *, declared: bool = True, types: tuple[str, ...] = ("painting.made",), **more: Any
    ) -> None:
        self.eyes.call("XGROUP", "CREATE", self.stream, name, "0", "MKSTREAM")
        if declared:
            about = json.dumps({"types": types, "globs": [], **more})
            self.eyes.call("HSET", self.eyes.keys.groups, name, about)

    def read(self, group: str, count: int) -> list[str]:
        rows = self.eyes._link.call("XREADGROUP", "GROUP", group, "me", "COUNT", count, "STREAMS", self.stream, ">")
        return [row[0].decode() for row in rows[0][1]] if rows else []

    def ack(self, group: str, *ids: str) -> None:
        self.eyes.call("XACK", self.stream, group, *ids)

    def look(self) -> list[Any]:
        self.clock += 100.0
        looked = self.eyes.run(self.trimmer.look(self.clock))
        self.problems = [str(problem) for problem in looked.problems]
        return looked.losses

    def told(self) -> list[Any]:
        """Every bus.loss on the server."""
        return self.eyes.events("bus.loss")

    def left(self) -> list[str]:
        return [row[0].decode() for row in self.eyes.call("XRANGE", self.stream, "-", "+")]


def sending(forms: list[tuple[Any, ...]]) -> Any:
    """Commands in one packet."""
    return (yield commands(*forms))
