"""What every command stands on: its settings, its way to the server, the event types it knows, and its output."""

from collections.abc import Sequence
from functools import cached_property

from canvasbus.cli.output import Output
from canvasbus.config import Loaded
from canvasbus.errors import ConfigError
from canvasbus.operate.plugins import import_module
from canvasbus.operate.topics import recorded_partitions
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import Keys


class Context:
    """Made once per command."""

    def __init__(self, command: str, loaded: Loaded, out: Output, modules: Sequence[str] = ()) -> None:
        self.command = command
        self.loaded = loaded
        self.settings = loaded.settings
        self.out = out
        self.modules_named = modules
        """Those of --module, without those of the settings."""

    @cached_property
    def link(self) -> BlockingLink:
        """The server; nothing is sent yet. Raises ConfigError for a URL that cannot serve this command."""
        url = self.loaded.require_url(self.command)
        if url.startswith("memory:"):
            raise ConfigError(
                f"{self.command}: memory:// lives inside one process, so another one has nothing to look at there; give "
                f"the URL of a server (url from {self.loaded.origins['url']})"
            )
        try:
            return BlockingLink(open_server(url))
        except ConfigError as error:
            raise self.loaded.blame("url", error) from None

    def close(self) -> None:
        """End the connection, if there is one."""
        if "link" in self.__dict__:
            self.link.close()

    @property
    def where(self) -> str:
        """The namespace and the server, for people."""
        return f"namespace {self.settings.namespace!r} on {self.link.server.name}"

    @cached_property
    def partitions(self) -> list[Keys]:
        """The keys of every partition. The number that the server has on record wins over the default, never over one
        that somebody set: then one of the two is a mistake."""
        namespace, wanted = self.settings.namespace, self.settings.partitions
        recorded = self.link.run(recorded_partitions(namespace))
        if recorded is not None and recorded != wanted:
            if self.loaded.origins["partitions"] != "default":
                raise self.loaded.blame(
                    "partitions",
                    ConfigError(
                        f"namespace {namespace!r} has {recorded} partition{'s' if recorded != 1 else ''} on {self.link.server.name}, "
                        f"this process is set to {wanted}: set the same number everywhere, or use another namespace"
                    ),
                )
            wanted = recorded
        return [Keys(namespace, partition) for partition in range(wanted)]

    @property
    def modules(self) -> list[str]:
        """The user's modules that declare events."""
        return [*self.settings.modules, *self.modules_named]

    @cached_property
    def codec(self) -> Codec:
        """Knows the domain's events, the bus's own, and those of the modules that the user named."""
        import canvasbus.contract.bus_events
        import canvasbus.events  # noqa: F401  importing is what makes the types known

        for name in self.settings.modules:
            import_module(name, f"modules from {self.loaded.origins['modules']}")
        for name in self.modules_named:
            import_module(name, "--module")
        return Codec(self.settings.source, limit=self.settings.max_event_bytes)
