"""Takes snapshots for all VMs of a process, at the times that `core.snapshot_policy` names.

A snapshot is made of committed state after the replies have left. To encode a state holds the process for two milliseconds a
megabyte (measured; a thread would hold the interpreter just as long), so one actor spends at most a twentieth of its time on it.
One that does not fit into a message, or of a state that JSON cannot hold, is told in the actor's status and tried ever more rarely; the
actor works on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aether_api import logs
from aether_api.errors import PayloadTooLarge, PermanentError, RetryableError
from aether_api.identity import ActorId
from aether_runtime.core.history import History
from aether_runtime.core.snapshot_policy import NEVER, ReplayRate, SnapshotRule, Tail, events_after_problem, events_to_go, is_worth_before_sleep
from aether_runtime.core.snapshots import Snapshot, build_snapshot, leave_window_out
from aether_runtime.ports import DesiredActor, SnapshotProblem, SnapshotStore
from aether_runtime.room import Room

logger = logging.getLogger(__name__)

PAUSE_MIN_S: Final = 1.0
"""Seconds between two snapshots of one actor at least: a hot actor passes any count many times a second."""

PAUSE_FACTOR: Final = 20.0
"""Pause after a snapshot, in multiples of what it took."""

UNDER_WAY_BYTES_MAX: Final = 4 << 20
"""Bytes of snapshots under way from which on the next one waits. Actors fall asleep, and stop, by the dozen: with states of 2 MB that took 130 MB where memory was short, and filled the
socket, so that half of the snapshots were not stored and commands waited behind them (measured)."""

ROOM_WAIT_S: Final = 5.0
"""Seconds for which a snapshot waits for others, as long as a write that the server does not answer; then whoever stops or sleeps goes without one."""


@dataclass(slots=True)
class SnapshotMark:
    """What one VM knows of its snapshots.

    Attributes:
        version: of the newest, 0 for none; `n` is the number of commits in it.
        due_at: version before which no further one can be due.
        pause_until_s: monotonic time before which none is taken.
        is_first: whether there is a history and no snapshot of the present fold, so that there may be some of former ones.
        problem: why there is none newer; None while all is well.
    """

    version: int = 0
    n: int = 0
    due_at: int = NEVER
    pause_until_s: float = 0.0
    is_first: bool = False
    problem: SnapshotProblem | None = None

    def tail(self, history: History) -> Tail:
        """Return what came after the snapshot; all of it, should the log have begun anew."""
        position = history.position
        return Tail(max(0, position.version - self.version), max(0, position.index.n - self.n))


class Snapshotter:
    """One for a process.

    Attributes:
        rate: how fast this process replays.
        written, too_large, failed: snapshots, counted.
    """

    def __init__(self, store: SnapshotStore, monotonic: Callable[[], float]) -> None:
        self.store = store
        self.rate = ReplayRate()
        self.written = self.too_large = self.failed = 0
        self._monotonic = monotonic
        self._room = Room(UNDER_WAY_BYTES_MAX)

    def is_due(self, mark: SnapshotMark, history: History, desired: DesiredActor) -> bool:
        """Tell whether to take one now; otherwise `mark.due_at` says when to ask again."""
        if self._monotonic() < mark.pause_until_s:
            return False
        to_go = events_to_go(mark.tail(history), _rule(desired), self.rate)
        mark.due_at = history.position.version + to_go
        return not to_go

    async def write(self, mark: SnapshotMark, history: History, desired: DesiredActor) -> None:
        """Take one, once there is room; what goes wrong costs a longer replay and nothing else."""
        if not await self._room.wait(ROOM_WAIT_S):
            self.failed += 1
            mark.pause_until_s = self._monotonic() + ROOM_WAIT_S
            return
        began_s = self._monotonic()
        try:
            await self._build_and_store(mark, history, desired)
        finally:
            ended_s = self._monotonic()
            mark.pause_until_s = ended_s + max(PAUSE_MIN_S, PAUSE_FACTOR * (ended_s - began_s))

    async def _build_and_store(self, mark: SnapshotMark, history: History, desired: DesiredActor) -> None:
        n, last_time = history.position.index.n, history.position.last_time
        later = history.position.version + events_after_problem(mark.tail(history), _rule(desired))
        try:
            snapshot = build_snapshot(history)
        except PermanentError as exc:
            self.failed += 1
            mark.due_at = later
            mark.problem = SnapshotProblem("SnapshotImpossible", f"no snapshot can be taken, so replays take longer: {exc}")
            logger.warning("no snapshot can be taken of a state", extra={logs.ACTOR_ID: str(desired.actor), logs.REASON: str(exc)})
            return
        try:
            await self._store(desired.actor, snapshot)
        except PayloadTooLarge as exc:
            self.too_large += 1
            mark.due_at = later
            mark.problem = SnapshotProblem("SnapshotTooLarge", f"a snapshot of {len(snapshot.payload)} bytes does not fit into a message, so replays take longer: {exc}")
            logger.warning("a snapshot is too large", extra={logs.ACTOR_ID: str(desired.actor), logs.REASON: str(exc)})
        except (RetryableError, PermanentError) as exc:
            self.failed += 1
            logger.warning("a snapshot was not stored; the next one will be", extra={logs.ACTOR_ID: str(desired.actor), logs.REASON: str(exc)})
        else:
            self.written += 1
            mark.version, mark.n, mark.problem = snapshot.version, n, None
            mark.due_at = history.position.version + events_to_go(mark.tail(history), _rule(desired), self.rate)
            if mark.is_first:
                await self._drop_outdated(mark, snapshot.fold, last_time, desired)

    async def _store(self, actor: ActorId, snapshot: Snapshot) -> None:
        """Store a snapshot; one that does not fit into a message goes without the accepted commands, which are most of it where there are hundreds a second."""
        self._room.take(len(snapshot.payload))
        try:
            await self.store.write(actor, snapshot)
        except PayloadTooLarge:
            await self.store.write(actor, leave_window_out(snapshot))
        finally:
            self._room.give_back(len(snapshot.payload))

    async def _drop_outdated(self, mark: SnapshotMark, fold: str, last_time: str, desired: DesiredActor) -> None:
        """Remove what former models left behind, once when another one begins: so only the first snapshot under a fold pays for it."""
        try:
            await self.store.drop_outdated(desired.actor, fold, last_time)
            mark.is_first = False
        except (RetryableError, PermanentError) as exc:
            logger.debug("snapshots of former models were not removed; tried again after the next one", extra={logs.ACTOR_ID: str(desired.actor), logs.REASON: str(exc)})

    def is_worth_before_sleep(self, mark: SnapshotMark, history: History) -> bool:
        """Tell whether an actor that goes to sleep should leave a snapshot behind."""
        return not mark.problem and is_worth_before_sleep(mark.tail(history))


def _rule(desired: DesiredActor) -> SnapshotRule:
    return SnapshotRule(desired.snapshot_every, desired.recovery_target_s)
