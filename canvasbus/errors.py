"""The whole error tree, split by whose move is next.

    CanvasbusError
      ContractError      the code that declares events or handlers: fix it
      LifespanError      what a worker opens around its life failed: look at what it opens
      EncodeError        the event handed to publish: fix the caller
      DecodeError        one entry on the stream: it goes to the dead letters, nothing else stops
      TransportError     the server
        Unavailable        wait: it is away, loading, full or busy; the bus retries by itself
        Refused            configuration: password, ACL, TLS, wrong key type, partition count; retrying cannot help
      BufferFull         this process publishes faster than the server takes it: slow down or drop
      StreamFull         a retention cap is reached and nothing may be trimmed: look at the slowest group
      ConfigError        a setting; names the key and where its value came from

Messages never contain a password: URLs are shown through `canvasbus.config.redacted`.
"""


class CanvasbusError(Exception):
    """Base of every error that canvasbus raises on purpose."""


class ContractError(CanvasbusError):
    """A declaration cannot work (event, handler, worker). Raised at import; fix the code."""


class LifespanError(CanvasbusError):
    """A worker's `@worker.lifespan` failed on starting, while the worker ran, or on leaving. The message names the
    worker and the error, which is its cause."""


class EncodeError(CanvasbusError):
    """The event cannot be published as it is. Nothing was sent; fix the event and publish again."""


class DecodeError(CanvasbusError):
    """The bytes of one entry are not a valid event. The entry goes to the dead letters with its bytes.

    `reason` is one word for machines: foreign, undecodable, invalid, unknown_type, newer_version, upcast_failed
    or oversize.
    """

    def __init__(self, message: str, *, reason: str = "undecodable") -> None:
        super().__init__(message)
        self.reason = reason


class TransportError(CanvasbusError):
    """Something between this process and the server."""


class Unavailable(TransportError):
    """The server cannot take the command now. Wait and try again.

    `ambiguous` is True when the command may have been executed although no answer came back.
    """

    def __init__(self, message: str, *, ambiguous: bool = False) -> None:
        super().__init__(message)
        self.ambiguous = ambiguous


class Refused(TransportError):
    """The server is there and says no. Somebody must change the configuration."""


class BufferFull(CanvasbusError):
    """The bounded buffer of this publisher has no room for the event, which was not accepted."""


class StreamFull(CanvasbusError):
    """The stream has reached its cap and retention may not trim it."""


class ConfigError(CanvasbusError):
    """A setting is missing, unknown or of the wrong type."""
