"""What the doctor asks of the server itself. Nothing here judges, and nothing is changed: writing is tried in a form
that adds no entry."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from canvasbus import clock
from canvasbus.errors import Refused
from canvasbus.transport.resp import Operation, Reply, ReplyError, code, command
from canvasbus.transport.rights import Right, acl_name, denied
from canvasbus.wire.keys import Keys

SETTINGS = (
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "save",
    "stop-writes-on-bgsave-error",
    "maxmemory-clients",
    "client-output-buffer-limit",
    "timeout",
    "min-replicas-to-write",
    "min-replicas-max-lag",
)

# Newer commands are tried, never concluded from a version: each in a form that has no effect. What the server answers
# where it does not know the command or the option comes third.
PROBES: Mapping[str, tuple[tuple[bytes | str | int, ...], str]] = {
    "ENTRIESREAD": (("XGROUP", "CREATE", "", "g", "$", "ENTRIESREAD", 0), "syntax"),
    "XACKDEL": (("XACKDEL",), "unknown command"),
    "XNACK": (("XNACK",), "unknown command"),
    "XREADGROUP CLAIM": (("XREADGROUP", "GROUP", "g", "c", "CLAIM", 1000, "STREAMS", "", ">"), "syntax"),
    "XADD IDMP": (("XADD", "", "NOMKSTREAM", "IDMP", "p", "i", "*", "f", "v"), "Invalid stream ID"),
    "WAITAOF": (("WAITAOF",), "unknown command"),
}

_QUESTIONS = (
    Right("INFO", "look at the server"),
    Right("CONFIG GET x", "look at its settings"),
    Right("ACL WHOAMI", "say who asks"),
    Right("TIME", "compare clocks"),
    Right("XADD stream * e x", "try to write"),
    Right("XGROUP CREATE stream g $", "try ENTRIESREAD"),
    Right("XREADGROUP GROUP g c STREAMS stream >", "try CLAIM"),
)
_FORBIDDEN = "the ACL of this user forbids it"


@dataclass(slots=True)
class ServerFacts:
    """What the server told."""

    info: dict[str, str] = field(default_factory=dict)
    """INFO, field by field; empty: it does not tell."""
    config: dict[str, str] = field(default_factory=dict)
    """CONFIG GET of SETTINGS; what is missing is not known."""
    silent: dict[str, str] = field(default_factory=dict)
    """Question → why the server does not answer it."""
    user: str | None = None
    """As whom we are connected; None: not told."""
    knows: dict[str, bool | None] = field(default_factory=dict)
    """Newer command → the server has it; None: not told."""
    write_error: str | None = None
    """What it answers to a write; empty: it takes writes; None: not tried, the user may not."""
    clock_offset: float | None = None
    """Seconds by which the server's clock is ahead of ours; None: not told."""
    round_trip: float | None = None
    """Seconds for one question and its answer, by which the offset may be wrong."""

    def number(self, name: str) -> int | None:
        """A field of INFO as a whole number; None: not told."""
        text = self.info.get(name, "")
        return int(text) if text.lstrip("-").isdigit() else None

    def setting(self, name: str) -> int | None:
        """A setting as a whole number; None: not known."""
        text = self.config.get(name, "")
        return int(text) if text.isdigit() else None


def ask(keys: Keys) -> Operation[ServerFacts]:
    """Ask everything. `keys`: of any partition, for the form of a write. Raises TransportError."""
    facts = ServerFacts()
    try:
        forbidden = {right.name for right in (yield from denied(_QUESTIONS, keys))}
    except Refused:  # no scripts for this user: then each refusal stands in the ACL log
        forbidden = set()
    info = yield from _answer(facts, forbidden, "INFO")
    if info is not None:
        lines = info.decode(errors="replace").splitlines()
        facts.info = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
    config = yield from _answer(facts, forbidden, "CONFIG", "GET", *SETTINGS)
    if config is not None:
        texts = [text.decode(errors="replace") for text in config]
        facts.config = dict(zip(texts[::2], texts[1::2], strict=True))
    user = yield from _answer(facts, forbidden, "ACL", "WHOAMI")
    if user is not None:
        facts.user = user.decode(errors="backslashreplace")
    before, started = clock.time(), clock.monotonic()
    now = yield from _answer(facts, forbidden, "TIME")
    if now is not None:
        facts.round_trip = clock.monotonic() - started
        facts.clock_offset = int(now[0]) + int(now[1]) / 1e6 - (before + facts.round_trip / 2)
    if "xadd" not in forbidden:
        # Not a key of a topic: should a stream be there all the same, an entry would be added.
        (written,) = yield command("XADD", keys.fence("doctor"), "NOMKSTREAM", "*", "e", "")
        if not isinstance(written, ReplyError) or code(written) == "WRONGTYPE":
            facts.write_error = ""
        elif code(written) != "NOPERM":
            facts.write_error = str(written)
    absent = keys.fence("doctor-probe")
    for name, (form, ignorant) in PROBES.items():
        facts.knows[name] = None
        if acl_name([str(word) for word in form]) not in forbidden:
            (reply,) = yield command(*(absent if word == "" else word for word in form))
            text = str(reply) if isinstance(reply, ReplyError) else ""
            if not text.startswith("NOPERM"):
                facts.knows[name] = ignorant.lower() not in text.lower()
    return facts


def _answer(facts: ServerFacts, forbidden: set[str], *words: str) -> Operation[Reply]:
    """The answer to a question; None: it is refused, which is noted."""
    name = acl_name(list(words))
    question = name.upper().replace("|", " ")
    if name in forbidden:
        facts.silent[question] = _FORBIDDEN
        return None
    (reply,) = yield command(*words)
    if not isinstance(reply, ReplyError):
        return reply
    facts.silent[question] = _FORBIDDEN if code(reply) == "NOPERM" else f"the server answers {str(reply)!r}"
    return None
