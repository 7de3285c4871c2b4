"""Keeps what was decided until the caches show it, so that a stale cache never causes a second move.

An entry is a status that is being written or was written. It is laid over the cached Actor in every snapshot, and ends when the
cache shows it (or something newer), when the write failed for good, or when the resource is another one by now.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from aether_api.control import FirstReport
from aether_api.identity import PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning.relevance import matters
from aether_operator.planning.snapshot import ActorView
from aether_operator.planning.statuses import DesiredStatus, with_status


@dataclass(frozen=True, slots=True)
class Entry:
    """A decided status of one Actor.

    Attributes:
        base: resourceVersion that the decision was made on.
        written: resourceVersion of the write; None while it is under way.
        report: what the pod says meanwhile of an actor that is new to it.
    """

    uid: str
    status: DesiredStatus
    base: int
    written: int | None = None
    report: FirstReport | None = None


class Overlay:
    """Decided statuses by Actor."""

    def __init__(self) -> None:
        """Start with nothing decided."""
        self._entries: dict[ObjectKey, Entry] = {}
        # What was laid over what, since a snapshot is made many times while a decision travels.
        self._laid: dict[ObjectKey, tuple[ActorView, DesiredStatus, ActorView]] = {}

    def __len__(self) -> int:
        """Return how many decisions do not show yet."""
        return len(self._entries)

    def decide(self, actor: ActorView, status: DesiredStatus) -> None:
        """Keep a decision; it takes the place of an earlier one."""
        self._entries[actor.key] = Entry(actor.uid, status, actor.resource_version)

    def is_current(self, key: ObjectKey, status: DesiredStatus) -> bool:
        """Return whether this very decision still stands."""
        entry = self._entries.get(key)
        return entry is not None and entry.status is status

    def note_written(self, key: ObjectKey, status: DesiredStatus, resource_version: int) -> None:
        """Note that the decision was written."""
        entry = self._entries.get(key)
        if entry is not None and entry.status is status:
            self._entries[key] = replace(entry, written=resource_version)

    def hear(self, key: ObjectKey, pod_uid: PodUid, report: FirstReport) -> bool:
        """Keep what a pod says of an actor until the decision that gave it the actor is written; False if there is no such decision."""
        entry = self._entries.get(key)
        placement = entry.status.placement if entry is not None and entry.written is None and entry.uid == report.uid else None
        if entry is None or placement is None or placement.pod_uid != pod_uid or placement.epoch != report.status.reported_epoch:
            return False
        self._entries[key] = replace(entry, report=report)
        return True

    def find_report(self, key: ObjectKey, status: DesiredStatus) -> FirstReport | None:
        """Return what the pod says of an actor that this very decision gives it, as long as it is not written."""
        entry = self._entries.get(key)
        return entry.report if entry is not None and entry.status is status else None

    def forget_report(self, key: ObjectKey, status: DesiredStatus) -> None:
        """Let the pod write its report itself."""
        entry = self._entries.get(key)
        if entry is not None and entry.status is status:
            self._entries[key] = replace(entry, report=None)

    def drop(self, key: ObjectKey, status: DesiredStatus | None = None) -> None:
        """Give a decision up; with a status only that very one."""
        if status is None or self.is_current(key, status):
            self._forget(key)

    def apply(self, actor: ActorView) -> ActorView:
        """Return the Actor as it was decided, and forget the decision once the cache shows it."""
        entry = self._entries.get(actor.key)
        if entry is None:
            return actor
        if entry.uid != actor.uid or _shows(actor, entry):
            self._forget(actor.key)
            return actor
        return self._lay(actor, entry.status)

    def expects(self, old: ActorView, new: ActorView) -> bool:
        """Return whether a change of the cache leaves snapshots as they were, since the decision was laid over them; forgets nothing."""
        entry = self._entries.get(new.key)
        if entry is None or entry.uid != new.uid or entry.uid != old.uid:
            return False
        before = self._lay(old, entry.status)
        return not matters(before, new if _shows(new, entry) else self._lay(new, entry.status))

    def _lay(self, actor: ActorView, status: DesiredStatus) -> ActorView:
        laid = self._laid.get(actor.key)
        if laid is None or laid[0] is not actor or laid[1] is not status:
            laid = self._laid[actor.key] = (actor, status, with_status(actor, status))
        return laid[2]

    def _forget(self, key: ObjectKey) -> None:
        self._entries.pop(key, None)
        self._laid.pop(key, None)


def _shows(actor: ActorView, entry: Entry) -> bool:
    if entry.written is not None:
        return actor.resource_version >= entry.written
    decided = entry.status.placement.epoch if entry.status.placement is not None else 0
    observed = actor.placement.epoch if actor.placement is not None else 0
    # Equal epochs are our own write, whose answer is late or was lost; only another writer can be above.
    return observed > decided or (observed == decided and observed > 0 and actor.resource_version > entry.base and _placement_changed(entry, actor))


def _placement_changed(entry: Entry, actor: ActorView) -> bool:
    """Return whether the decision is visible by its placement alone; a mere text is visible only by its resourceVersion."""
    scheduled = actor.condition("Scheduled")
    wanted = next((condition for condition in entry.status.conditions if condition.type == "Scheduled"), None)
    return scheduled is not None and wanted is not None and scheduled.reason == wanted.reason and scheduled.message == wanted.message
