"""Decides the transition times of conditions. Pure.

Kubernetes' convention: `lastTransitionTime` moves only when `status` changes, so that people can read how long something has
been so, and so that writing the same condition again is no change. Each writer settles its own conditions only; the list is
merged by the API server, which keys it by `type`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from aether_api.v1alpha1.meta import Condition
from aether_kube.documents import JsonObject, format_time


def settle_conditions(desired: Iterable[Condition], observed: Iterable[Condition], *, now: datetime) -> tuple[Condition, ...]:
    """Return the desired conditions sorted by type, each with the time at which its status last changed."""
    known = {condition.type: condition for condition in observed}
    return tuple(_settle(condition, known.get(condition.type), now) for condition in sorted(desired, key=lambda condition: condition.type))


def condition_document(condition: Condition) -> JsonObject:
    """Return a condition as the API server takes it."""
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": condition.observed_generation,
        "lastTransitionTime": condition.last_transition_time,
    }


def _settle(desired: Condition, known: Condition | None, now: datetime) -> Condition:
    unchanged = known is not None and known.status == desired.status and known.last_transition_time != ""
    time = known.last_transition_time if known is not None and unchanged else format_time(now)
    return desired.model_copy(update={"last_transition_time": time})
