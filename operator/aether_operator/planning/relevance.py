"""Decides whether a change of an Actor can change a plan. Pure.

What a pod reports of an actor that it holds (versions, phases) can not, so traffic wakes nobody.
"""

from __future__ import annotations

from dataclasses import replace

from aether_operator.planning.snapshot import ActorView


def matters(old: ActorView, new: ActorView) -> bool:
    """Return whether the difference between two states of an Actor can change a plan."""
    return _decisive(old) != _decisive(new)


def _decisive(actor: ActorView) -> ActorView:
    """Return the Actor without what its pod reports while it is placed."""
    if actor.home is None:
        return replace(actor, resource_version=0)
    scheduled = actor.condition("Scheduled")
    is_scheduled = scheduled is not None and scheduled.status == "True"
    reported = max(actor.reported_epoch, actor.home.epoch)
    return replace(actor, resource_version=0, phase=str(is_scheduled), conditions=(), reported_epoch=reported)
