"""The launchers that the settings ask for, each made when it is needed first."""

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from canvasbus.errors import ConfigError
from canvasbus_workers.outside.secret import Secret
from canvasbus_workers.retrain.launchers.protocol import Launcher, OnTheBus
from canvasbus_workers.retrain.settings import Policy, Settings, Subprocess, authorization

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
        check_machine(self._policies, make=True)
        self._authorizations = {place: authorization(place, policy) for place, policy in self._policies.items()}
        if any(policy.remote for policy in self._policies.values()):
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
                from canvasbus_workers.retrain.launchers import subprocess

                return subprocess.Subprocess(policy)
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


def check_machine(policies: Mapping[str, Policy], *, make: bool = False) -> None:
    """Look at what the policies name on this machine: told at the start, and by the doctor, not with the first order.
    `make`: the folders that are not there. Raises ConfigError, which names the table and the key."""
    for place, policy in policies.items():
        if policy.launcher in ("subprocess", "http"):
            _check_folder(place, Path(policy.folder).absolute(), make)
        if policy.launcher == "subprocess":
            _check_program(place, policy.subprocess)


def _check_folder(place: str, folder: Path, make: bool) -> None:
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST if there == folder else errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(f"{place}: folder {folder}: {error.strerror}") from None


def _check_program(place: str, settings: Subprocess) -> None:
    cwd = Path(settings.cwd or ".").absolute()
    if not cwd.is_dir():
        raise ConfigError(f"{place}: subprocess.cwd: there is no folder {cwd} here: mend the path, or make it")
    program = settings.command[0]
    if os.sep in program:
        if shutil.which(cwd / program) is None:  # as the child looks for it: from its own folder
            raise ConfigError(f"{place}: subprocess.command: {cwd / program} is no program that can be started here")
    elif shutil.which(program) is None:
        raise ConfigError(
            f"{place}: subprocess.command: there is no program {program!r} on the PATH here: install it, or write its whole "
            "path"
        )
