"""Writes a plan for people: a line for each thing to be done, in the log at DEBUG and in tests."""

from __future__ import annotations

from collections.abc import Iterator

from aether_kube.store import ObjectKey
from aether_operator.planning.plan import PlacementChange, Plan


def render_plan(plan: Plan, *, lines_max: int = 200) -> str:
    """Return the lines of a plan; what is left out at the end is counted."""
    lines = list(_lines(plan))
    left_out = len(lines) - lines_max
    return "\n".join([*lines[:lines_max], *([f"... and {left_out} more"] if left_out > 0 else [])])


def _lines(plan: Plan) -> Iterator[str]:
    for change in plan.changes:
        yield f"{_name(change.actor.key)}: {_way(change)} ({change.cause})"
    for status in plan.statuses:
        yield f"{_name(status.actor.key)}: waits ({status.status.conditions[0].reason})"
    for introduction in plan.introductions:
        yield f"pod {introduction.pod.name}: is told of {len(introduction.actors)} actors"
    for actor in plan.releases:
        yield f"{_name(actor.key)}: gone, released by {actor.home.pod if actor.home is not None else 'nobody'}"
    for finalizer in plan.finalizers:
        yield f"{_name(finalizer.actor.key)}: finalizer {'on' if finalizer.wanted else 'off'}"
    for purge in plan.purges:
        yield f"{_name(purge.actor.key)}: history is purged"
    for cost in plan.costs:
        yield f"pod {cost.pod.name}: deletion cost {cost.pod.deletion_cost} to {cost.cost}"
    if plan.again_after_s is not None:
        yield f"more after {plan.again_after_s:g} s"


def _way(change: PlacementChange) -> str:
    old, new = change.old.pod if change.old is not None else "nowhere", change.new.pod or "nowhere"
    return f"stays on {new}" if old == new else f"{old} to {new}"


def _name(key: ObjectKey) -> str:
    return f"{key.namespace}/{key.name}"
