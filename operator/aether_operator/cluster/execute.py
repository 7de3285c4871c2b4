"""Carries a plan out: pods are told first, statuses follow.

Each pair of pods (the one that gives back, the one that takes) is one chain: release, adopt, write. Chains run side by side and
never hold the next plan up. A release is waited for, within its time-out, so that a living pod ends what it began before another
one begins; safety does not depend on it, since the log refuses all but one. What a pod that fell silent still holds is owed to
it, and told when it is heard again.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from typing import Final

from aether_api.control import AssignmentItem
from aether_api.errors import InternalError
from aether_api.identity import PodUid
from aether_kube.store import ObjectKey
from aether_operator.cluster.assignments import Assigner, build_item
from aether_operator.cluster.deletion_costs import DeletionCosts
from aether_operator.cluster.observe import Memory
from aether_operator.cluster.purges import Purges
from aether_operator.cluster.statuses import StatusWriter
from aether_operator.planning.plan import Introduction, PlacementChange, Plan
from aether_operator.planning.snapshot import PodView, Snapshot
from aether_operator.planning.statuses import HAND_OVERS

CHAINS_AT_ONCE: Final = 64
"""Chains under way: more than pairs of pods in most pools; the rest waits, which costs a loss of 64 pods at once some time."""

INTRODUCE_AGAIN_S: Final = 1.0
"""Seconds until a process that did not answer is told again what it holds; its own watch tells it as well."""


class Executor:
    """Carries plans out, several at once if they come so fast."""

    def __init__(self, assigner: Assigner, statuses: StatusWriter, purges: Purges, memory: Memory, replan: Callable[[], None], *, costs: DeletionCosts) -> None:
        """Make an executor; `run` gives its work a home.

        Args:
            replan: asked for when a pod was not told what it holds, or knows of a higher epoch, and when hand-overs are done.
        """
        self._assigner = assigner
        self._statuses = statuses
        self._purges = purges
        self._memory = memory
        self._replan = replan
        self._costs = costs
        self._owed: dict[PodUid, dict[ObjectKey, AssignmentItem]] = defaultdict(dict)
        self._permits = asyncio.Semaphore(CHAINS_AT_ONCE)
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Own the tasks of all chains until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await asyncio.Event().wait()

    def execute(self, snapshot: Snapshot, plan: Plan) -> None:
        """Begin to carry a plan out; returns at once, with all decisions laid over the caches."""
        for change in plan.changes:
            self._memory.overlay.decide(change.actor, change.status)
        for status in plan.statuses:
            self._memory.overlay.decide(status.actor, status.status)
            self._statuses.submit(status.actor, status.status)
        self._memory.paces = plan.paces
        for (old, new), changes in _by_pods(plan).items():
            self._owe(snapshot, changes)
            self._memory.under_way.update(_hand_overs(changes))
            self._spawn(self._run_chain(snapshot.pods.get(old), snapshot.pods.get(new), changes), f"move from {old or 'nowhere'} to {new or 'nowhere'}")
        for introduction in plan.introductions:
            self._memory.introduced[introduction.pod.uid] = introduction.pod.boot_id
            self._spawn(self._introduce(introduction), f"introduction of {introduction.pod.name}")
        self._release_vanished(snapshot, plan)
        self._pay_debts(snapshot)
        for finalizer in plan.finalizers:
            self._purges.submit(finalizer)
        for purge in plan.purges:
            self._purges.submit(purge)
        self._costs.submit(plan.costs)

    async def _run_chain(self, old: PodView | None, new: PodView | None, changes: Sequence[PlacementChange]) -> None:
        async with self._permits:
            if old is not None and old.hears and old is not new:
                await self._assigner.send(old, [build_item("release", change.actor, change.old.epoch) for change in changes if change.old is not None])
            if new is not None and new.hears:
                current = [change for change in changes if self._memory.overlay.is_current(change.actor.key, change.status)]
                await self._assigner.send(new, [build_item("adopt", change.actor, change.new.epoch) for change in current])
        for change in changes:
            self._statuses.submit(change.actor, change.status)
        self._end_hand_overs(changes)
        if any(self._memory.epoch_floors.get(change.actor.key, 0) > change.new.epoch for change in changes):
            self._replan()

    def _end_hand_overs(self, changes: Sequence[PlacementChange]) -> None:
        """Let the next ones begin."""
        ended = _hand_overs(changes)
        # What is left at zero would be kept for pods that are long gone.
        self._memory.under_way = self._memory.under_way - ended
        if ended:
            self._replan()

    async def _introduce(self, introduction: Introduction) -> None:
        items = [build_item("adopt", actor, actor.home.epoch) for actor in introduction.actors if actor.home is not None]
        if not await self._assigner.send(introduction.pod, items):
            self._memory.introduced.pop(introduction.pod.uid, None)
            asyncio.get_running_loop().call_later(INTRODUCE_AGAIN_S, self._replan)
        if any(self._memory.epoch_floors.get(actor.key, 0) > item.epoch for actor, item in zip(introduction.actors, items, strict=True)):
            self._replan()

    def _owe(self, snapshot: Snapshot, changes: Sequence[PlacementChange]) -> None:
        """Remember what a pod that cannot be told now shall give back."""
        for change in changes:
            pod = snapshot.pods.get(change.old.pod_uid) if change.old is not None else None
            if pod is not None and change.old is not None and not pod.hears:
                self._owed[pod.uid][change.actor.key] = build_item("release", change.actor, change.old.epoch)

    def _pay_debts(self, snapshot: Snapshot) -> None:
        for uid in list(self._owed):
            pod = snapshot.pods.get(uid)
            if pod is None:
                del self._owed[uid]
            elif pod.hears:
                self._spawn(self._assign(pod, list(self._owed.pop(uid).values())), f"releases that {pod.name} missed")

    def _release_vanished(self, snapshot: Snapshot, plan: Plan) -> None:
        items: dict[PodUid, list[AssignmentItem]] = defaultdict(list)
        for actor in plan.releases:
            if actor.home is not None:
                items[actor.home.pod_uid].append(build_item("release", actor, actor.home.epoch))
        for uid, releases in items.items():
            self._spawn(self._assign(snapshot.pods[uid], releases), f"releases of deleted actors on {uid}")
        for actor in snapshot.vanished:
            if self._memory.vanished.get(actor.key) is actor:
                del self._memory.vanished[actor.key]

    async def _assign(self, pod: PodView, items: Sequence[AssignmentItem]) -> None:
        async with self._permits:
            await self._assigner.send(pod, items)

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        if self._tasks is None:
            work.close()
            raise InternalError("a plan is carried out before the executor runs")
        self._tasks.create_task(work, name=name)


def _hand_overs(changes: Sequence[PlacementChange]) -> Counter[PodUid]:
    """Return how many of the changes take an actor off a pod that lives, by that pod."""
    return Counter(change.old.pod_uid for change in changes if change.old is not None and change.cause in HAND_OVERS)


def _by_pods(plan: Plan) -> dict[tuple[PodUid, PodUid], list[PlacementChange]]:
    """Return the changes by the pods that give back and take."""
    chains: dict[tuple[PodUid, PodUid], list[PlacementChange]] = defaultdict(list)
    for change in plan.changes:
        old = change.old.pod_uid if change.old is not None else PodUid("")
        chains[old, change.new.pod_uid].append(change)
    return chains
