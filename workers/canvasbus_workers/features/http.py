"""The one module of this worker that talks HTTP: a POST of JSON, within a deadline.

The destinations of `alerts` guard against URLs that lead inside the network. This one goes inside on purpose, to a feature
server that an operator names, so the guard would have nothing to say but yes. No redirects, no proxies of the environment,
and of the body of an answer only what fits into an error.
"""

import logging

import httpx2
import trio

from canvasbus.errors import ConfigError

# At INFO it logs a line for every request.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_SHOWN = 300
"""Characters of an answer that an error repeats."""
_BODY_CAP = 64 * 1024


class NoAnswer(Exception):
    """Nothing came back in time."""


class JsonClient:
    """Posts to one server."""

    def __init__(self, url: str, *, timeout: float, authorization: str = "") -> None:
        """`timeout`: seconds for all of it."""
        headers = {"Content-Type": "application/json", "User-Agent": "canvasbus-features"}
        if authorization:
            headers["Authorization"] = authorization
        try:
            self._client = httpx2.AsyncClient(
                base_url=url, headers=headers, timeout=timeout, follow_redirects=False, trust_env=False
            )
        except (httpx2.InvalidURL, UnicodeEncodeError, ValueError) as error:
            raise ConfigError(f"{url}: {error}") from None
        self._timeout = timeout

    async def post(self, path: str, body: bytes) -> tuple[int, str]:
        """The status of the answer and the beginning of its body. Raises NoAnswer."""
        with trio.move_on_after(self._timeout):
            try:
                async with self._client.stream("POST", path, content=body) as response:
                    said = bytearray()
                    async for chunk in response.aiter_raw():  # to the end, so that the connection can be used again
                        said += chunk
                        if len(said) >= _BODY_CAP:
                            break
                    return response.status_code, " ".join(said.decode(errors="replace").split())[:_SHOWN]
            except httpx2.HTTPError as error:
                raise NoAnswer(str(error) or type(error).__name__) from error
        raise NoAnswer(f"no answer within {self._timeout:g} s")

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()
