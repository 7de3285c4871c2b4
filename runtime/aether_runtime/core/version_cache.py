"""What a program knows of the actors that it writes to: a version, which may come from anywhere, and perhaps the past that leads to it.

A version is a hint. It may be old, because others write, and then costs a refused append or one read of the log; it never
lets a wrong append through, since that names the sequence of the actor's last commit, which only the past tells.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from aether_api.identity import NO_EPOCH, ActorId, Epoch
from aether_runtime.core.history import History


@dataclass(slots=True)
class KnownActor:
    """One actor as far as it is known.

    Attributes:
        version: the highest that anybody told.
        history: as far as it was read or written here; None where only the version is known.
        epoch: of the last commit of that history.
        proven: the count of the cache's doubts when the log was last seen to hold that history.
    """

    version: int
    history: History | None = None
    epoch: Epoch = NO_EPOCH
    proven: int = 0

    @property
    def is_behind(self) -> bool:
        """Whether a higher version was told than the history holds."""
        return self.history is None or self.history.position.version < self.version


class VersionCache:
    """A bounded table of actors; beyond `actors_max` the one that was used least recently is forgotten.

    Attributes:
        doubts: how often the log may have become another one.
    """

    def __init__(self, actors_max: int) -> None:
        self._actors_max = actors_max
        self._known: OrderedDict[ActorId, KnownActor] = OrderedDict()
        self.doubts = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, actor: ActorId) -> KnownActor | None:
        """Return what is known of an actor."""
        known = self._known.get(actor)
        if known is not None:
            self._known.move_to_end(actor)
        return known

    def put(self, actor: ActorId, known: KnownActor) -> None:
        """Note what is known of an actor; a higher version that was told meanwhile stays, and makes it `is_behind`."""
        before = self._known.get(actor)
        if before is not None:
            known.version = max(known.version, before.version)
        self._known[actor] = known
        self._known.move_to_end(actor)
        if len(self._known) > self._actors_max:
            self._known.popitem(last=False)

    def raise_version(self, actor: ActorId, version: int) -> None:
        """Note that an actor has reached a version; a lower one than is known tells nothing."""
        known = self.get(actor)
        if known is None:
            self.put(actor, KnownActor(version))
        else:
            known.version = max(known.version, version)

    def doubt(self) -> None:
        """Note that the log may be another one, restored from a backup while the link to it is lost."""
        self.doubts += 1

    def forget(self, actor: ActorId) -> None:
        """Know nothing of an actor any more."""
        self._known.pop(actor, None)
