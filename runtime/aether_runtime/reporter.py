"""Status on a budget: which report is written next, and the task that writes them.

A status write costs the API server over 5 ms, so reports are coalesced: an actor has at most one waiting, the newest.
A version is written when it has been quiet for a second, else the longest waiting one when there is room. Changes of phase do
not wait for it: they have a larger budget of their own. An equal report is not written again, so an idle process writes nothing.

A pod hears of its placement over NATS before the resource shows it, and until then its status is not its to write: the API server
would refuse it, once a second for each of thousands. So reports of an actor that was only assigned are held until its source shows it. The first
that says all is well is told to the operator meanwhile, who may write it together with the placement; if the source then shows it, it is not written again.

A status may tell something else than was written last, and `see` writes it again then; revisions (resourceVersions) tell which write
was later. The operator overwrites phase and readiness when it changes a placement, and since pods hear of placements over NATS first,
its write may come after ours. A pod that held the actor before may speak late. And so may we ourselves: a write that was given up in an
outage can wait in the kernel of this node, and reach the API server seconds after the newer one that took another connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping
from functools import partial
from itertools import takewhile
from typing import Final

from aether_api import logs
from aether_api.errors import PermanentError, RetryableError
from aether_api.identity import ActorId, Epoch
from aether_runtime.ports import ActorReport, ReportSink, ShownStatus

logger = logging.getLogger(__name__)

QUIET_S: Final = 1.0
"""Seconds without a change after which a version is worth writing."""

OVERDUE_S: Final = 5.0
"""Seconds after which the version of an actor that never rests is written all the same."""

WRITES_AT_ONCE: Final = 8
"""Writes under way at once: hides the round trip of 10 ms, leaves most of the API server to others."""

BURST_S: Final = 1.0
"""Seconds of budget that may be spent at once, so that a phase change is seen at once."""

TURNS_SHARE: Final = 4.0
"""Times the budget that changes of phase may spend beside it. They come with placements, never with traffic, and each follows a write of
the operator, which has no budget: with one for both, 10,000 new actors took 200 s to be seen ready, twice as long as all other writes."""

HELD_S: Final = 30.0
"""Seconds for which a report waits for its placement to be shown: the operator writes thousands in that time. Then the resource is looked up, since the watch
may be cut or the resource gone."""

TICK_S: Final = 0.1
"""Seconds between looks at what has become quiet."""


UNSHOWN: Final = Epoch(-1)
"""Lower than any epoch."""


class ReportQueue:
    """Pure part: keeps the newest report of each actor and says which is due."""

    def __init__(self, under_way: Mapping[ActorId, ActorReport] | None = None) -> None:
        """Make an empty queue; `under_way` are the reports that are being written, kept by whoever writes them."""
        self._under_way: Mapping[ActorId, ActorReport] = {} if under_way is None else under_way
        self._urgent: OrderedDict[ActorId, ActorReport] = OrderedDict()
        self._versions: OrderedDict[ActorId, tuple[ActorReport, float, float]] = OrderedDict()
        self._written: dict[ActorId, ActorReport] = {}
        self._refused: dict[ActorId, ActorReport] = {}
        self._held: OrderedDict[ActorId, tuple[float, ActorReport | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._versions) + len(self._held)

    def put(self, report: ActorReport, now_s: float) -> None:
        """Take a report; it replaces the one that waits for the same actor."""
        actor = report.desired.actor
        said = self._under_way.get(actor) or self._written.get(actor)
        if actor in self._held:
            self._held[actor] = (self._held[actor][0], report)
        elif said == report:
            self._urgent.pop(actor, None)
            self._versions.pop(actor, None)
        elif actor in self._urgent or said is None or _is_turn(said, report):
            self._versions.pop(actor, None)
            self._urgent[actor] = report
        else:
            first_s = self._versions[actor][1] if actor in self._versions else now_s
            self._versions[actor] = (report, first_s, now_s)

    def hold(self, actor: ActorId, now_s: float) -> None:
        """Keep reports of an actor back until `show`."""
        versions = self._versions.pop(actor, None)
        waiting = self._urgent.pop(actor, None) or (versions[0] if versions is not None else None)
        self._held.setdefault(actor, (now_s, waiting))

    def show(self, actor: ActorId, now_s: float) -> None:
        """Let the reports of an actor go that were held back."""
        _, report = self._held.pop(actor, (now_s, None))
        if report is not None:
            self.put(report, now_s)

    def is_held(self, actor: ActorId) -> bool:
        """Whether reports of the actor are held back."""
        return actor in self._held

    def settle(self, report: ActorReport, now_s: float) -> None:
        """Take note that somebody else wrote a report of ours; a newer one waits on."""
        self.note_written(report)
        waiting = self._urgent.pop(report.desired.actor, None)
        if waiting is not None:
            self.put(waiting, now_s)

    def take_overdue(self, now_s: float) -> list[ActorId]:
        """Return the actors that were held for `HELD_S`, and hold them for as long again."""
        overdue = list(takewhile(lambda actor: now_s - self._held[actor][0] >= HELD_S, self._held))
        for actor in overdue:
            self._held[actor] = (now_s, self._held[actor][1])
            self._held.move_to_end(actor)
        return overdue

    def forget(self, actor: ActorId) -> None:
        """Drop everything about an actor that this process no longer holds."""
        self._held.pop(actor, None)
        self._urgent.pop(actor, None)
        self._versions.pop(actor, None)
        self._written.pop(actor, None)
        self._refused.pop(actor, None)

    def take_turn(self, busy: Container[ActorId] = ()) -> ActorReport | None:
        """Remove and return the longest waiting change of phase, of an actor that is not busy; None when none waits."""
        for actor in self._urgent:
            if actor not in busy:
                return self._urgent.pop(actor)
        return None

    def take_version(self, now_s: float, busy: Container[ActorId] = ()) -> ActorReport | None:
        """Remove and return the longest waiting version that is due, of an actor that is not busy; None when none is."""
        for actor, (report, first_s, changed_s) in self._versions.items():
            if actor not in busy and (now_s - changed_s >= QUIET_S or now_s - first_s >= OVERDUE_S):
                del self._versions[actor]
                return report
        return None

    def has(self, actor: ActorId) -> bool:
        """Whether a report of the actor waits."""
        return actor in self._urgent or actor in self._versions or actor in self._held

    def agrees(self, actor: ActorId, shown: ShownStatus) -> bool:
        """Whether a status tells what was written or refused last, or nothing was."""
        said = self._written.get(actor) or self._refused.get(actor)
        return said is None or said.agrees_with(shown)

    def note_written(self, report: ActorReport) -> None:
        """Remember what was written, so that it is not written again."""
        self._written[report.desired.actor] = report
        self._refused.pop(report.desired.actor, None)

    def note_refused(self, report: ActorReport) -> None:
        """Remember what was refused for good, so that it is said again when somebody else has changed the status."""
        self._written.pop(report.desired.actor, None)
        self._refused[report.desired.actor] = report

    def repeat(self, actor: ActorId) -> None:
        """Write the newest report at once, though it may have been written or refused before; one that is held stays so."""
        if actor in self._held:
            return
        report = self._written.pop(actor, None) or self._refused.pop(actor, None)
        if actor in self._versions:
            report = self._versions.pop(actor)[0]
        if report is not None and actor not in self._urgent:
            self._urgent[actor] = report


def _is_turn(written: ActorReport, report: ActorReport) -> bool:
    """Whether more than numbers changed."""
    return (written.phase, written.reason, written.desired, written.model_version, written.fenced_by) != (
        report.phase, report.reason, report.desired, report.model_version, report.fenced_by,
    )  # fmt: skip


class Budget:
    """Writes that may be made: they add up at a rate, to one second's worth. Pure: the rate may be another each time."""

    def __init__(self, now_s: float) -> None:
        self._tokens = 0.0
        self._refilled_s = now_s

    def has_room(self, now_s: float, rate_per_s: float) -> bool:
        """Whether one more write may be made now."""
        self._tokens = min(max(1.0, rate_per_s * BURST_S), self._tokens + (now_s - self._refilled_s) * rate_per_s)
        self._refilled_s = now_s
        return self._tokens >= 1

    def spend(self) -> None:
        """Note one write."""
        self._tokens -= 1


class Reporter:
    """Spends the budget on what the queue says is due.

    Attributes:
        written, retried, refused: writes, counted by what became of them.
    """

    def __init__(self, sink: ReportSink, *, budget_per_s: Callable[[], float]) -> None:
        self._sink = sink
        self._budget_per_s = budget_per_s
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._turns, self._versions = Budget(self._loop.time()), Budget(self._loop.time())
        self._writing: dict[ActorId, ActorReport] = {}
        self._queue = ReportQueue(self._writing)
        self._written_at: dict[ActorId, int] = {}
        self._seen_at: dict[ActorId, int] = {}
        self._unjudged: dict[ActorId, ShownStatus] = {}
        self._shown: dict[ActorId, Epoch] = {}
        self._awaited: dict[ActorId, Epoch] = {}
        self._said: dict[ActorId, ActorReport] = {}
        self.written = self.retried = self.refused = 0

    @property
    def dirty(self) -> int:
        """Actors whose status is out of date."""
        return len(self._queue) + len(self._writing)

    def report(self, report: ActorReport) -> None:
        """Take a report; never waits."""
        actor = report.desired.actor
        self._queue.put(report, self._loop.time())
        self._wake.set()
        if report.is_well and self._queue.is_held(actor) and actor not in self._said:
            self._said[actor] = report
            self._sink.say(report)

    def hold(self, actor: ActorId, epoch: Epoch) -> None:
        """Write nothing about an actor until its placement of this epoch is shown."""
        if self._shown.get(actor, UNSHOWN) < epoch:
            if epoch > self._awaited.get(actor, UNSHOWN):
                self._awaited[actor] = epoch
                self._said.pop(actor, None)
            self._queue.hold(actor, self._loop.time())

    def show(self, actor: ActorId, epoch: Epoch) -> None:
        """Take note that the resource shows the actor's placement of this epoch."""
        self._shown[actor] = max(epoch, self._shown.get(actor, UNSHOWN))
        if self._awaited.get(actor, UNSHOWN) <= epoch:
            self._awaited.pop(actor, None)
            self._queue.show(actor, self._loop.time())
            self._wake.set()

    def take_overdue(self) -> list[ActorId]:
        """Return the actors whose placement was not shown for `HELD_S`, each once in that time."""
        return self._queue.take_overdue(self._loop.time())

    def forget(self, actor: ActorId) -> None:
        """Write nothing more about an actor; a write under way is left alone, and what becomes of it no longer counts."""
        self._queue.forget(actor)
        self._sink.forget(actor)
        self._shown.pop(actor, None)
        self._awaited.pop(actor, None)
        self._said.pop(actor, None)
        self._writing.pop(actor, None)
        self._written_at.pop(actor, None)
        self._seen_at.pop(actor, None)
        self._unjudged.pop(actor, None)

    def see(self, actor: ActorId, shown: ShownStatus) -> None:
        """Write an actor's status again if it tells something else than our last write, and that later."""
        if shown.revision < self._seen_at.get(actor, 0):
            self._written_at.pop(actor, None)  # etcd was restored from a backup, and counts on from there
        self._seen_at[actor] = shown.revision
        said = self._said.pop(actor, None) if not self._queue.is_held(actor) else None
        if said is not None and shown.revision > self._written_at.get(actor, 0) and said.agrees_with(shown):
            self._queue.settle(said, self._loop.time())
            self._written_at[actor] = shown.revision
        self._unjudged[actor] = shown
        if actor not in self._writing:
            self._judge(actor)

    def _judge(self, actor: ActorId) -> None:
        """Look at what the status of an actor told last, now that no write of ours is under way."""
        shown = self._unjudged.pop(actor, None)
        if shown is None or shown.revision <= self._written_at.get(actor, 0) or self._queue.agrees(actor, shown):
            return
        logger.debug("a status tells something else than was written", extra={logs.ACTOR_ID: str(actor), logs.VERSION: shown.version})
        self._queue.repeat(actor)
        self._wake.set()

    async def run(self) -> None:
        """Write reports until cancelled."""
        slots = asyncio.Semaphore(WRITES_AT_ONCE)
        async with asyncio.TaskGroup() as writers:
            while True:
                await self._wait_for_work()
                await slots.acquire()  # first, so that what is taken is written at once, and `forget` finds it
                while (report := self._take_due()) is not None:
                    self._writing[report.desired.actor] = report
                    self._said.pop(report.desired.actor, None)  # what we write ourselves is newer than what we said
                    writers.create_task(self._write(report, slots), name=f"report {report.desired.actor}")
                    await slots.acquire()
                slots.release()

    async def _wait_for_work(self) -> None:
        if not self._queue:
            self._wake.clear()
            await self._wake.wait()
        else:
            await asyncio.sleep(TICK_S)

    def _take_due(self) -> ActorReport | None:
        """Return what shall be written now, within the budgets."""
        now_s, budget = self._loop.time(), self._budget_per_s()
        if self._turns.has_room(now_s, budget * TURNS_SHARE) and (turn := self._queue.take_turn(self._writing)) is not None:
            self._turns.spend()
            return turn
        if self._versions.has_room(now_s, budget) and (version := self._queue.take_version(now_s, self._writing)) is not None:
            self._versions.spend()
            return version
        return None

    async def _write(self, report: ActorReport, slots: asyncio.Semaphore) -> None:
        actor = report.desired.actor
        try:
            revision = await self._sink.write(report)
            self.written += 1
            if self._is_current(report):
                self._queue.note_written(report)
                self._written_at[actor] = revision
        except RetryableError as exc:
            self.retried += 1
            logger.debug("a status could not be written, trying again", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
            self._loop.call_later(exc.retry_after_s, partial(self._end_write, report, again=True))
            return
        except PermanentError as exc:
            self.refused += 1
            logger.warning("a status was refused", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
            self._note_refused(report)
        except Exception:  # a report that cannot be written harms its own actor's status and no other
            self.refused += 1
            logger.exception("a status could not be written", extra={logs.ACTOR_ID: str(actor)})
            self._note_refused(report)
        finally:
            slots.release()
        self._end_write(report)

    def _note_refused(self, report: ActorReport) -> None:
        if self._is_current(report):
            self._queue.note_refused(report)

    def _end_write(self, report: ActorReport, *, again: bool = False) -> None:
        """Let the actor's next report be written: this one again if it failed and there is no newer one."""
        if self._is_current(report):
            del self._writing[report.desired.actor]
            if again:
                self._requeue(report)
            self._judge(report.desired.actor)

    def _is_current(self, report: ActorReport) -> bool:
        """Whether a write under way is still about an actor that this process holds."""
        return self._writing.get(report.desired.actor) is report

    def _requeue(self, report: ActorReport) -> None:
        """Put a failed report back, unless a newer one waits already."""
        if not self._queue.has(report.desired.actor):
            self._queue.put(report, self._loop.time())
            self._wake.set()
