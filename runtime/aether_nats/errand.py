"""Work that a subscriber waits for, and that goes on where it gives up the wait: whoever waits next takes the result.

A wait that is given up, as polls do (`asyncio.timeout`), would else throw away what was read so far, and one that is shorter than the work would never
see its end. Such a task outlives its caller's scope, hence no TaskGroup can hold it; its owner ends it with `end`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine


class Errand:
    """One piece of work at a time."""

    def __init__(self, name: str, wake: Callable[[], None]) -> None:
        """Make one that has nothing to do.

        Args:
            name: of its tasks.
            wake: called at the end of each piece of work.
        """
        self._name = name
        self._wake = wake
        self._task: asyncio.Task[None] | None = None

    def begin(self, work: Coroutine[None, None, None]) -> None:
        """Begin what is to be done; nothing may be under way."""
        self._task = asyncio.get_running_loop().create_task(work, name=self._name)
        self._task.add_done_callback(lambda _: self._wake())

    def is_over(self) -> bool:
        """Tell whether nothing is under way; raises what the work failed with, once."""
        task = self._task
        if task is None:
            return True
        if not task.done():
            return False
        self._task = None
        if not task.cancelled():
            task.result()
        return True

    def cancel(self) -> None:
        """Cut short what is under way."""
        if self._task is not None:
            self._task.cancel()

    async def end(self) -> None:
        """Cut short what is under way, and return once it has ended; nobody hears of its failure any more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()
