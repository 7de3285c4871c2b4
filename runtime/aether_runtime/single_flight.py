"""Work on actors, for each at most once at a time; what is asked for meanwhile becomes one more round behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf

from aether_api.identity import ActorId
from aether_runtime.ports import Spawn


class SingleFlight:
    """Rounds of one kind of work."""

    def __init__(self, name: str, work: Callable[[ActorId], Awaitable[None]], spawn: Spawn, *, at_most: float = inf) -> None:
        """Make it, with nothing under way.

        Args:
            name: of its tasks, before the actor's.
            at_most: actors that are worked on at once; for others `begin` does nothing.
        """
        self._name = name
        self._work = work
        self._spawn = spawn
        self._at_most = at_most
        self._again: dict[ActorId, bool] = {}

    def __len__(self) -> int:
        """Return how many actors are worked on."""
        return len(self._again)

    def __contains__(self, actor: ActorId) -> bool:
        """Tell whether an actor is worked on."""
        return actor in self._again

    def begin(self, actor: ActorId) -> None:
        """Begin a round; one that is under way may not see what came since, so another one follows it."""
        if actor in self._again:
            self._again[actor] = True
        elif len(self._again) < self._at_most:
            self._again[actor] = False
            if not self._spawn(self._run(actor), f"{self._name} {actor}"):
                del self._again[actor]  # nobody runs it

    async def _run(self, actor: ActorId) -> None:
        try:
            while True:
                self._again[actor] = False
                await self._work(actor)
                if not self._again[actor]:
                    return
        finally:
            del self._again[actor]
