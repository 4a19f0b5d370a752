"""The launchers that the settings ask for, each made when it is needed first."""

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from canvasbus_workers.retrain.launchers.protocol import Launcher, OnTheBus
from canvasbus_workers.retrain.settings import Policy, Settings


class Launchers:
    """Who trains which model, in this process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def policy(self, model: str) -> Policy:
        """What holds for a model."""
        return self.settings.policy(model)

    def launcher(self, model: str) -> Launcher:
        """Who trains it."""
        policy = self.policy(model)
        if policy.launcher == "subprocess":
            from canvasbus_workers.retrain.launchers.subprocess import Subprocess

            return Subprocess(policy)
        return OnTheBus()
