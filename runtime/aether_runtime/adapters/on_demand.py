"""No resources at all: actors start at their first command, and models come by `Runtime.load_model`."""

from __future__ import annotations

import asyncio

from aether_api.identity import ActorId
from aether_runtime.ports import DesiredListener, Home


class OnDemandSource:
    """Desires nothing: for a program that embeds a runtime."""

    async def run(self, listener: DesiredListener) -> None:
        """Say that all there is has been told, and wait to be cancelled."""
        listener.on_synced()
        await asyncio.Event().wait()

    async def find(self, actor: ActorId) -> Home | None:
        """Return None: no actor has a resource."""
        return None
