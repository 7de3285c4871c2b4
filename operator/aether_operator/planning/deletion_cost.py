"""Decides what `controller.kubernetes.io/pod-deletion-cost` shall say, so that a scale-down takes the emptiest pods.

Kubernetes compares the costs of the pods of one ReplicaSet and deletes the lowest first. So only their order matters, and only
where loads differ enough to be worth a write: as long as each pod that holds clearly fewer actors has a lower cost than the others,
the numbers may be as old as they like. In a pool that is even nothing is ever written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from aether_api.identity import PodUid
from aether_operator.planning.plan import CostChange
from aether_operator.planning.snapshot import PodView, Snapshot

FEWER: Final = 0.8
"""Share of another pod's actors below which a pod holds clearly fewer: twice the imbalance that rebalancing leaves."""

NEAR: Final = 0.1
"""How far a cost may be from the load, as a share of it, when all are written: near enough to keep any two in order that differ
by more than `FEWER`."""

CORDONED_COST: Final = -1
"""Below an empty pod: who cordoned a pod wants it gone."""


def find_cost_changes(snapshot: Snapshot, loads: Mapping[PodUid, int]) -> tuple[CostChange, ...]:
    """Return the pods whose cost shall change, in the order of UIDs.

    Args:
        loads: actors of each pod when the plan is carried out.
    """
    sets: dict[tuple[str, str, str], list[PodView]] = defaultdict(list)
    for pod in snapshot.pods.values():
        if pod.verdict in ("alive", "suspect", "starting"):
            sets[pod.namespace, pod.pool, pod.revision].append(pod)
    changes = [change for pods in sets.values() for change in _find_in_set(pods, loads)]
    return tuple(sorted(changes, key=lambda change: change.pod.uid))


def _find_in_set(pods: Sequence[PodView], loads: Mapping[PodUid, int]) -> list[CostChange]:
    wanted = sorted(((CORDONED_COST if pod.cordon else loads.get(pod.uid, 0), pod) for pod in pods), key=lambda item: (item[0], item[1].uid))
    if _is_in_order(wanted):
        return []
    return [CostChange(pod, cost) for cost, pod in wanted if abs(pod.deletion_cost - cost) > NEAR * abs(cost)]


def _is_in_order(wanted: Sequence[tuple[int, PodView]]) -> bool:
    """Return whether each pod that shall cost clearly less than another does so already; they come in the order of what they shall cost."""
    cheaper = 0
    highest: int | None = None
    for cost, pod in wanted:
        while _is_clearly_less(wanted[cheaper][0], cost):
            known = wanted[cheaper][1].deletion_cost
            highest = known if highest is None else max(highest, known)
            cheaper += 1
        if highest is not None and pod.deletion_cost <= highest:
            return False
    return True


def _is_clearly_less(cost: int, other: int) -> bool:
    return cost < other and (cost < 0 or cost < FEWER * other)
