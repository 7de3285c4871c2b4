"""Decides about the end of Actors: who holds our finalizer, and whose history is purged."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from aether_api.identity import ActorId, Epoch
from aether_operator.planning.plan import FinalizerChange, Purge
from aether_operator.planning.snapshot import ActorView, Snapshot


def find_endings(snapshot: Snapshot, actors: list[ActorView]) -> tuple[tuple[FinalizerChange, ...], tuple[Purge, ...]]:
    """Return the changes of finalizers and the purges, in the order of the actors."""
    concerned = [actor for actor in actors if actor.purges or actor.held_by_us]
    if not concerned:
        return (), ()
    living = {actor.identity for actor in actors if actor.identity is not None and not actor.deleting}
    wanted = [(actor, _shall_hold(actor, living)) for actor in concerned]
    changes = [FinalizerChange(actor, shall) for actor, shall in wanted if shall != actor.held_by_us and (actor.held_by_us or not actor.deleting)]
    return tuple(changes), tuple(_find_purges(snapshot, concerned, living))


def _shall_hold(actor: ActorView, living: AbstractSet[ActorId]) -> bool:
    """Return whether the finalizer has a purpose: the events are to be purged, and belong to nobody else."""
    if not actor.purges:
        return False
    return not actor.deleting or (actor.identity is not None and actor.identity not in living)


def _find_purges(snapshot: Snapshot, actors: list[ActorView], living: AbstractSet[ActorId]) -> list[Purge]:
    purges: list[Purge] = []
    for actor in actors:
        ended = actor.deleting and actor.held_by_us and actor.home is None
        if ended and actor.identity is not None and _shall_hold(actor, living):
            epoch = actor.placement.epoch if actor.placement is not None else Epoch(snapshot.now_ms)
            purges.append(Purge(actor, actor.identity, epoch))
    return purges
