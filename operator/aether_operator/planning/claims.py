"""Decides where an actor is when its pod knows more than its status does. Pure.

Assignments travel ahead of statuses, so a leader that dies in between leaves actors on pods of which no status tells. The next
leader asks the pods, and takes the highest of what they hold, what the status says and what the log knows (`reportedEpoch`): such
an actor stays where it is, and the plan repairs its status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from aether_api.identity import BootId, Epoch, PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning.snapshot import ActorView, Placed, PodView


@dataclass(frozen=True, slots=True)
class Claim:
    """A process says that it holds an Actor, by the UID of the resource, since an epoch."""

    uid: str
    pod_uid: PodUid
    boot_id: BootId
    epoch: Epoch


def is_ahead(claim: Claim | None, actor: ActorView) -> bool:
    """Return whether a claim knows of a later placement of this very resource than its status does."""
    if claim is None or claim.uid != actor.uid:
        return False
    return claim.epoch > (actor.placement.epoch if actor.placement is not None else 0)


def place_as_claimed(actor: ActorView, claim: Claim | None, pods: Mapping[PodUid, PodView]) -> ActorView:
    """Return the actor where a living process holds it, with a status that is to be written anew; unchanged if no claim is ahead."""
    if claim is None or not is_ahead(claim, actor):
        return actor
    pod = pods.get(claim.pod_uid)
    if pod is None or pod.boot_id != claim.boot_id or not pod.keeps_actors:
        return actor
    return replace(actor, placement=Placed(pod.name, pod.uid, claim.epoch), conditions=())


def raise_floors(floors: Mapping[ObjectKey, Epoch], claims: Mapping[ObjectKey, Claim]) -> dict[ObjectKey, Epoch]:
    """Return the least epochs that are known, with those that were claimed, whether or not the claiming process still lives."""
    return {key: max(floors.get(key, Epoch(0)), claims[key].epoch if key in claims else Epoch(0)) for key in {*floors, *claims}}
