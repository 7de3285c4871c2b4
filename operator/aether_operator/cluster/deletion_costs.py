"""Writes at pods what their deletion costs, rarely: what counts is the newest plan's word when the time to write has come.

A cost is advice for a scale-down that may never come, so a write waits a while for more of the same pod, and nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aether_api.errors import KubeConflict, KubeForbidden, KubeNotFound, KubeUnavailable
from aether_api.identity import PodUid
from aether_kube.client import KubeClient
from aether_kube.kinds import PODS
from aether_operator.cluster.keyed_queue import KeyedQueue
from aether_operator.cluster.records import COST_ANNOTATION
from aether_operator.cluster.statuses import MANAGER
from aether_operator.planning.plan import CostChange

WRITE_LATER_S: Final = 5.0
"""Seconds from the first plan that wants another cost to the write: a mass move is one write for each pod."""

FORBIDDEN_RETRY_S: Final = 300.0
"""Seconds until a forbidden write is tried again: a missing right is for somebody to give, and only scale-downs miss the cost."""

WORKERS: Final = 2
"""Pods at once: nobody waits for it."""


class DeletionCosts:
    """The costs that the newest plan wants written."""

    def __init__(self, client: KubeClient, *, later_s: float = WRITE_LATER_S) -> None:
        """Make the work; `queue` is to be run.

        Args:
            later_s: seconds that a write waits for a newer word.
        """
        self._client = client
        self._later_s = later_s
        self._wanted: dict[PodUid, CostChange] = {}
        self.queue: KeyedQueue[PodUid] = KeyedQueue("deletion cost", self._write, workers=WORKERS)

    def submit(self, changes: Sequence[CostChange]) -> None:
        """Take what a plan wants written, in place of all earlier ones."""
        self._wanted = {change.pod.uid: change for change in changes}
        for uid in self._wanted:
            self.queue.add_later(uid, self._later_s)

    async def _write(self, uid: PodUid) -> None:
        change = self._wanted.get(uid)
        if change is None:
            return
        document = {"metadata": {"uid": uid, "annotations": {COST_ANNOTATION: str(change.cost)}}}
        try:
            await self._client.patch_merge(PODS.path(change.pod.namespace, change.pod.name), document, field_manager=MANAGER)
        except KubeForbidden as exc:
            raise KubeUnavailable(f"may not write deletion costs: {exc}", retry_after_s=FORBIDDEN_RETRY_S) from exc
        except (KubeNotFound, KubeConflict):
            return  # the pod is gone, or another one has its name
