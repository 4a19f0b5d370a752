"""URL → Server."""

from canvasbus.errors import ConfigError
from canvasbus.transport import address as addresses
from canvasbus.transport.server import Server


def open_server(url: str) -> Server:
    """The server behind `url`; nothing is connected yet. Raises ConfigError for a URL that cannot work."""
    address = addresses.parse(url)
    if address.scheme == "off":
        raise ConfigError("off:// switches the bus off; only publishing makes sense there")
    if address.scheme == "memory":
        from canvasbus.transport import memory

        return memory.named(address.name) if address.name else memory.MemoryServer()
    if address.sentinels:
        from canvasbus.transport.sentinel import SentinelServer

        return SentinelServer(address)
    from canvasbus.transport.remote import RemoteServer

    return RemoteServer(address)
