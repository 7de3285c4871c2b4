"""The tasks of one runtime: who owns them, and what becomes of them when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from aether_api import logs
from aether_api.errors import AetherError, Busy

logger = logging.getLogger(__name__)


class Background:
    """Work of a runtime that nobody awaits; it can be begun between `open` and `close`."""

    def __init__(self) -> None:
        self._tasks: asyncio.TaskGroup | None = None
        self._owned: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether work can be begun."""
        return self._tasks is not None

    def open(self, tasks: asyncio.TaskGroup) -> None:
        """Begin work in `tasks` from now on."""
        self._tasks = tasks

    def close(self) -> None:
        """Begin nothing more, and cancel what goes on."""
        self._tasks = None
        for task in list(self._owned):
            task.cancel()

    def create(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Begin work whose failure ends the runtime.

        Raises:
            Busy: there is nobody to own it: the runtime has not started, or is stopping.
        """
        if self._tasks is None:
            work.close()
            raise Busy("the runtime does not run")
        task = self._tasks.create_task(work, name=name)
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)
        return task

    def spawn(self, work: Coroutine[None, None, None], name: str) -> bool:
        """Begin work as long as the runtime lives, and return whether it lives; the work's failure is logged."""
        if self._tasks is None:
            work.close()
            return False
        task = self.create(_supervise(work, name), name)
        task.add_done_callback(lambda _: work.close())  # cancelled before its first step it leaves the work as it was, which Python complains of
        return True


async def _supervise(work: Coroutine[None, None, None], name: str) -> None:
    """Run background work to its end; what it raises harms nothing else."""
    try:
        await work
    except AetherError as exc:
        logger.warning("background work failed", extra={logs.NAME: name, logs.REASON: str(exc)})
    except Exception:
        logger.exception("background work met something that must not happen", extra={logs.NAME: name})
