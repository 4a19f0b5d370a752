"""The launchers that the settings ask for, each made when it is needed first."""

import errno
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from canvasbus.errors import ConfigError
from canvasbus_workers.outside.secret import Secret
from canvasbus_workers.retrain.launchers.protocol import Launcher, OnTheBus
from canvasbus_workers.retrain.settings import Policy, Settings, authorization

if TYPE_CHECKING:
    from canvasbus_workers.outside.client import Client


class Launchers:
    """Who trains which model, in this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._policies = settings.policies
        self._authorizations: dict[str, Secret | None] = {}
        self._open = AsyncExitStack()
        self._client: Client | None = None

    async def __aenter__(self) -> Self:
        policies = self._policies.values()
        for folder in {policy.folder for policy in policies if policy.launcher in ("subprocess", "http")}:
            _check_folder(Path(folder))
        self._authorizations = {place: authorization(place, policy) for place, policy in self._policies.items()}
        if any(policy.remote for policy in policies):
            _parse_urls(self._policies)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def policy(self, model: str) -> Policy:
        """What holds for a model."""
        return self._policies[self._settings.place(model)]

    async def launcher(self, model: str) -> Launcher:
        """Who trains it."""
        policy, key = self.policy(model), self._authorizations[self._settings.place(model)]
        match policy.launcher:
            case "subprocess":
                from canvasbus_workers.retrain.launchers.subprocess import Subprocess

                return Subprocess(policy)
            case "http":
                from canvasbus_workers.retrain.launchers.http import Http

                return Http(policy, await self._http(), key)
            case "prefect":
                from canvasbus_workers.retrain.launchers.prefect import Prefect

                return Prefect(policy, await self._http(), key)
            case "bus":
                return OnTheBus()

    async def _http(self) -> "Client":
        if self._client is None:
            from canvasbus_workers.outside.client import Client

            self._client = await self._open.enter_async_context(Client("canvasbus-retrain"))
        return self._client


def _parse_urls(policies: Mapping[str, Policy]) -> None:
    """Raises ConfigError for one that looks like a URL and is none: told at the start, not with the first order."""
    from canvasbus_workers.outside.client import parse

    for place, policy in policies.items():
        for name, url in policy.urls.items():
            if url:
                parse(f"{place}: {name}", url)


def _check_folder(folder: Path) -> None:
    """Raises ConfigError where nothing can be written: told at the start, not with the first order."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(f"[workers.retrain]: folder {folder.absolute()}: {error.strerror}") from None
