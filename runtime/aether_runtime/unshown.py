"""Looks up the resources of actors that were given to this process and that its source does not show.

An assignment travels ahead of the resource. If that is deleted meanwhile, its release may be lost with the operator that wrote it, and
the watch has nothing to take back, since it never showed the actor: it would be served, and seen by nobody, until the process ends.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Literal

from aether_api import logs
from aether_api.errors import AetherError
from aether_api.identity import ActorId, PodUid
from aether_runtime.ports import DesiredActor, DesiredListener, Directory, Home
from aether_runtime.registry import VMRegistry
from aether_runtime.reporter import Reporter

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
"""Seconds between looks; those that are overdue are looked up one after the other, so that thousands do not flood the API server."""

Finding = Literal["shown", "over", "waits"]


class UnshownPlacements:
    """Finds out what became of the placements of one process that take long to show."""

    def __init__(self, directory: Directory, pod_uid: PodUid, registry: VMRegistry, reporter: Reporter, listener: DesiredListener) -> None:
        self._directory = directory
        self._pod_uid = pod_uid
        self._registry = registry
        self._reporter = reporter
        self._listener = listener

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for actor in self._reporter.take_overdue():
                await self._look_up(actor)

    async def _look_up(self, actor: ActorId) -> None:
        try:
            home = await self._directory.find(actor)
        except AetherError as exc:
            logger.debug("a placement could not be looked up; it is tried again", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
            return
        desired = self._registry.desired.get(actor)
        if desired is None:
            return
        finding = judge_placement(desired, home, self._pod_uid)
        if finding == "over":
            told = {logs.ACTOR_ID: str(actor), logs.EPOCH: desired.epoch}
            logger.warning("an actor that was given to this pod has no resource that names the pod; it is let go", extra=told)
            self._listener.on_release(actor, desired.epoch)
        elif finding == "shown" and home is not None:
            self._listener.on_adopt(home.desired)


def judge_placement(desired: DesiredActor, home: Home | None, pod_uid: PodUid) -> Finding:
    """Return what a resource, if there is one, says of a placement that it should show by now.

    A mistake is no harm: what is placed here after all is shown by the watch, and adopted again.
    """
    if home is None or home.desired.uid != desired.uid:
        return "over"
    if home.desired.epoch < desired.epoch:
        return "waits"
    return "shown" if home.pod_uid == pod_uid else "over"
