"""Runs the durable commands of the actors that live here, and sees that none is forgotten.

There are no consumers and nothing polls an inbox. Three things lead to an actor's inbox being drained: the server's hint that
something came (any one pod of the namespace gets it and passes it on to the live VM; only if there is none it looks the actor up and
has it activated), the actor's activation, and a sweep by one pod over what waits in the whole namespace, which catches a lost hint and
tells the backlog. So what waits for actors that live runs whether or not the directory answers.

A drain reads the inbox from the actor's position on, the first one after an activation from its beginning, and hands the commands to the VM one by one, like anybody else's. The commit of
a command carries its place, so wherever the actor lives next, it goes on behind it. What is settled is removed afterwards.

A command that may end the process is known by its tries, which are stored before it is begun: for the first one after an
activation, since the one before may have been its victim, and before each repeat. So that it is the first one of the next life,
what came before it and stored nothing is removed before it is begun. Where the VM moves or stops meanwhile, its try is taken back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from aether_api import logs
from aether_api.durable import NO_INBOX, DurableCommand, InboxPosition, Tick, parse_durable
from aether_api.errors import AetherError, InvalidEnvelope, InvalidName, Reason, RetryableError
from aether_api.identity import ActorId
from aether_api.messages import Reply, parse_time
from aether_api.subjects import parse_wake_subject, wake_forward_subject, wake_forward_wildcard, wake_wildcard
from aether_nats.connection import NatsConnection, Subscription
from aether_nats.inbox import Tries
from aether_nats.jetstream_wire import StoredMessage
from aether_nats.message import Message
from aether_runtime.clock import GapWatch
from aether_runtime.core.group import InboxEntry, Waiting
from aether_runtime.core.inbox import AHEAD_BYTES_MOST, Grave, count_try, explain_poison, has_stand_in, is_all, judge, repeat_after_s, share_ahead, take_try_back
from aether_runtime.core.reminders import REMINDER_GONE, Drop, choose_tick, is_followed
from aether_runtime.ports import InboxStore, ReminderStore
from aether_runtime.read_ahead import ReadAhead
from aether_runtime.single_flight import SingleFlight
from aether_runtime.vm import VirtualMachine

if TYPE_CHECKING:
    from aether_runtime.runtime import Runtime

logger = logging.getLogger(__name__)

WAKE_QUEUE: Final = "wake"
"""Queue group of all pods of a namespace: each hint reaches one of them."""

SWEEP_S: Final = 10.0
"""Seconds between sweeps: how long a command waits whose hint was lost, and how old the backlog figure may be."""

RETRY_S: Final = 0.2
"""Seconds between tries while NATS is away, or while the VM takes no command."""

BURY_AGAIN_S: Final = 10.0
"""Seconds until a burial that the server refuses is tried again: somebody has to act first."""

TAKE_BACK_S: Final = 2.0
"""Seconds for taking a try back: a runtime that stops waits for it."""

REGRESS_SURE_S: Final = 1.0
"""Seconds after which a stream that seems to have gone back is looked at again: a leader that was just elected may be behind for a moment."""

STUCK_S: Final = 10.0
"""Seconds for which a command is told to come again until somebody hears of it: longer than a move or an election takes."""

LAST_WORD_S: Final = 1.0
"""Seconds between looks whether the VM that was asked is still there, and for which one that is not may still answer: its last append may be under way."""

CHECKED_AT_ONCE: Final = 512
"""Actors whose inboxes are looked at with one request after their activation."""

WAKES_MAX: Final = 512
"""Actors for which hints are followed at once: each waits for a round trip, or for the directory. Beyond that the sweep finds what waits."""

HINTS_AT_ONCE: Final = 64
"""Live VMs that a sweep tells at once."""

LOOKUPS_AT_ONCE: Final = 8
"""Actors that a sweep looks up at once, as many as the directory takes."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Item:
    """One message of an inbox that is to be settled.

    Attributes:
        position: of the message, in the stream that it was read from.
        found: the command that it is, or why it is none.
        later: what was read with it and waits behind it.
        unread: the sequence after which more may wait; 0 if nothing does.
        before: up to where all is settled before it, though not removed where nothing was stored of it.
        links: how many the connection had had when it was read.
    """

    position: InboxPosition
    message: StoredMessage
    found: DurableCommand | InvalidEnvelope
    later: Sequence[DurableCommand | InvalidEnvelope]
    unread: int
    before: InboxPosition
    links: int


@dataclass(slots=True)
class _Drain:
    """How far one drain is.

    Attributes:
        position: of what was handled last.
        found_any: something was read.
        is_sure: the stream was looked at before what the VM has settled is removed.
    """

    position: InboxPosition
    found_any: bool = False
    is_sure: bool = False


class DurableInbox:
    """Durable commands of one runtime.

    Attributes:
        backlog: messages that waited in the namespace at the last sweep, of `backlog_actors` actors; 0 where another pod sweeps.
        settled: commands that this process has run.
        dropped: ticks that were not run, because they came too late or others stand for them.
        orphans: ticks whose reminders were not in force.
        buried: commands that were given up.
    """

    def __init__(self, connection: NatsConnection, store: InboxStore, reminders: ReminderStore | None, runtime: Runtime, *, now_s: Callable[[], float] | None = None) -> None:
        self._connection = connection
        self._store = store
        self._reminders = reminders
        self._runtime = runtime
        self._now_s = now_s or time.time  # looked up when it is needed, so that a simulation can be of another time
        self._gaps = GapWatch()
        self._end = NO_INBOX  # how far the stream is known to reach
        self._beginning_anew = asyncio.Lock()
        self._ahead = ReadAhead()
        self._warning = logs.Seldom()
        self._links = 0  # how many the connection has had: behind a reconnect the stream may be another one
        self._drains = SingleFlight("inbox", self._drain, runtime.spawn)
        self._wakes = SingleFlight("wake", self._wake, runtime.spawn, at_most=WAKES_MAX)
        self._asleep: list[ActorId] = []
        self._any_asleep = asyncio.Event()
        self._proven: set[ActorId] = set()
        self._looked_at: set[ActorId] = set()
        self._unchecked: list[ActorId] = []
        self._check = asyncio.Event()
        self.backlog = self.backlog_actors = 0
        self.settled = self.dropped = self.orphans = self.buried = 0

    def subscribe(self) -> tuple[Subscription, ...]:
        """Begin to take hints: the namespace's, and those that other pods pass on."""
        namespace, uid = self._runtime.config.namespace, self._runtime.config.pod.uid
        self._connection.on_reconnect(self._note_reconnect)
        return (
            self._connection.subscribe(wake_wildcard(namespace), self._on_wake, WAKE_QUEUE),
            self._connection.subscribe(wake_forward_wildcard(namespace, uid), self._on_wake),
        )

    async def run(self) -> None:
        """Look at the inboxes of actors that were activated, and sweep, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_checks(), name="checks of inboxes")
            tasks.create_task(self._run_sweeps(), name="sweeps of inboxes")
            tasks.create_task(self._run_activations(), name="activations for inboxes")

    def on_ready(self, vm: VirtualMachine) -> None:
        """Look soon whether something waits for an actor that was activated."""
        self._proven.discard(vm.get_actor_id())
        self._looked_at.discard(vm.get_actor_id())
        self._unchecked.append(vm.get_actor_id())
        self._check.set()
        if self._end.incarnation and vm.inbox.within(self._end.incarnation) > self._end.sequence:
            self.drain(vm.get_actor_id())  # whose first look tells whether the stream has gone back

    def drain(self, actor: ActorId) -> None:
        """Run what waits for an actor that lives here; if that is under way, look once more afterwards."""
        vm = self._runtime.registry.get(actor)
        if vm is not None:
            vm.draining = True  # so that it does not fall asleep before the drain begins
        self._drains.begin(actor)

    def count_done(self) -> dict[str, int]:
        """Return how many messages are done with, by result."""
        return {"settled": self.settled, "dropped": self.dropped, "orphan": self.orphans, "dead": self.buried}

    def count_backlog(self) -> dict[str, int]:
        """Return what waited at the last sweep; 0 where another pod sweeps."""
        return {"messages": self.backlog, "actors": self.backlog_actors}

    # What leads to a drain.

    def _on_wake(self, message: Message) -> None:
        try:
            actor = parse_wake_subject(message.subject)
        except InvalidName:
            return
        vm = self._runtime.registry.get(actor)
        if vm is not None and vm.is_ready:
            self.drain(actor)
        elif vm is None:
            self._wakes.begin(actor)
        # One that is starting looks into its inbox when it is ready.

    async def _wake(self, actor: ActorId) -> None:
        """Follow a hint."""
        if not await self._hint(actor):
            await self._activate(actor)

    async def _hint(self, actor: ActorId) -> bool:
        """Tell the actor's live VM, here or elsewhere; False if there is none."""
        if self._runtime.registry.get(actor) is not None:
            self.drain(actor)
            return True
        with suppress(AetherError):  # the sweep comes again
            return await self._runtime.router.hint(actor)
        return True

    async def _activate(self, actor: ActorId) -> None:
        """Activate an actor if its place is here, else pass the hint on to where it is."""
        with suppress(AetherError):
            pod = await self._runtime.router.wake(actor)
            if pod is not None:
                self._connection.publish(wake_forward_subject(actor, pod), b"")

    async def _run_checks(self) -> None:
        while True:
            await self._check.wait()
            self._check.clear()
            while self._unchecked:
                actors = list(dict.fromkeys(self._unchecked[:CHECKED_AT_ONCE]))
                del self._unchecked[:CHECKED_AT_ONCE]
                await self._check_inboxes(actors)

    async def _check_inboxes(self, actors: Sequence[ActorId]) -> None:
        try:
            for actor in await self._insist(lambda: self._store.find_last(actors)):
                self.drain(actor)
        except AetherError as exc:
            logger.warning("inboxes could not be looked into; the next sweep does", extra={logs.REASON: str(exc)})

    async def _run_sweeps(self) -> None:
        while True:
            try:
                await self._sweep()
            except AetherError as exc:
                logger.warning("a sweep over the inboxes failed; the next one comes", extra={logs.REASON: str(exc)})
            await asyncio.sleep(self._runtime.config.inbox_sweep_s)

    async def _sweep(self) -> None:
        self._proven.intersection_update(self._runtime.registry.vms)
        self._looked_at.intersection_update(self._runtime.registry.vms)
        await self._renew_end(self._end)
        if self._runtime.presence.pods.live()[:1] != [self._runtime.config.pod.uid]:
            self.backlog = self.backlog_actors = 0
            return
        waiting = await self._store.read_backlog()
        self.backlog, self.backlog_actors = sum(waiting.values()), len(waiting)
        asleep: list[ActorId] = []

        async def tell(actor: ActorId) -> None:
            if not await self._hint(actor):
                asleep.append(actor)

        await _for_each(waiting, tell, HINTS_AT_ONCE)
        self._asleep = asleep
        self._any_asleep.set()

    async def _run_activations(self) -> None:
        """Look up what a sweep found without a live VM; the directory may take its time, and the next sweep does not wait for it."""
        while True:
            await self._any_asleep.wait()
            self._any_asleep.clear()
            asleep, self._asleep = self._asleep, []
            await _for_each(asleep, self._activate, LOOKUPS_AT_ONCE)

    async def _insist(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat a call until it works."""
        while True:
            try:
                return await call()
            except RetryableError as exc:
                logger.debug("the inboxes cannot be reached now", extra={logs.REASON: str(exc)})
            await asyncio.sleep(RETRY_S)

    # One drain.

    async def _drain(self, actor: ActorId) -> None:
        vm = self._runtime.registry.get(actor)
        if vm is not None:
            await self._drain_vm(vm)

    async def _drain_vm(self, vm: VirtualMachine) -> None:
        """Run everything that waits, in order, for as long as the VM takes commands; it stays awake meanwhile."""
        vm.draining = True
        try:
            await self._drain_ready(vm, vm.get_actor_id())
        finally:
            vm.draining = False

    async def _drain_ready(self, vm: VirtualMachine, actor: ActorId) -> None:
        drain = _Drain(await self._find_position(vm))
        while vm.is_ready and await self._drain_some(vm, actor, drain):
            continue  # nothing of what was read is kept while the next read waits for room

    async def _drain_some(self, vm: VirtualMachine, actor: ActorId, drain: _Drain) -> bool:
        """Run what one read brings; False when there is no more, or the VM takes no more."""
        links = self._links
        max_bytes = share_ahead(len(self._drains))
        asked_s = asyncio.get_running_loop().time()
        read = partial(self._insist, partial(self._store.read_next, actor, drain.position.sequence, max_bytes=max_bytes))
        async with self._ahead.holding(read) as messages:
            vm.emptied_s = vm.emptied_s if messages else asked_s
            if not messages and drain.found_any:
                self._looked_at.add(actor)
                return False
            if not messages:
                fresh = await self._find_position(vm, renew=True)
                if fresh.incarnation == drain.position.incarnation:
                    self._looked_at.add(actor)
                    return False
                drain.position = fresh
                return True
            if not drain.is_sure and vm.inbox.covers(InboxPosition(drain.position.incarnation, messages[0].sequence)):
                # What the owner before has left, or the first of another stream, which nobody has run: it must not be removed.
                fresh, drain.is_sure = await self._find_position(vm, renew=True), True
                if fresh.incarnation != drain.position.incarnation:
                    drain.position = fresh
                    return True
            self._note_reached(InboxPosition(drain.position.incarnation, messages[-1].sequence))
            if not await self._run_each(vm, drain, messages, 0 if is_all(messages, max_bytes) else messages[-1].sequence, links):
                return False
            drain.found_any = True
            await self._settle(actor, drain.position, links)
            return True

    async def _run_each(self, vm: VirtualMachine, drain: _Drain, messages: Sequence[StoredMessage], unread: int, links: int) -> bool:
        """Run messages, behind which more may wait after the sequence `unread`; False when the VM takes no more."""
        incarnation = drain.position.incarnation
        parsed = [_parse(vm.get_actor_id(), incarnation, message) for message in messages]
        for place, message in enumerate(messages):
            item = _Item(InboxPosition(incarnation, message.sequence), message, parsed[place], parsed[place + 1 :], unread, drain.position, links)
            if not vm.inbox.covers(item.position) and not await self._handle(vm, item):
                return False
            drain.position = item.position
        return True

    async def _find_position(self, vm: VirtualMachine, *, renew: bool = False) -> InboxPosition:
        """Return where to read on; a position in a stream that was deleted, or has gone back behind it, says nothing.

        After an activation that is the beginning: what the owner before has settled and not removed is removed when it was seen.
        """
        if renew or not self._end.incarnation or vm.inbox.within(self._end.incarnation) > self._end.sequence:
            await self._insist(lambda: self._renew_end(vm.inbox))
        incarnation = self._end.incarnation
        return InboxPosition(incarnation, vm.inbox.within(incarnation) if vm.get_actor_id() in self._looked_at else 0)

    async def _renew_end(self, known: InboxPosition) -> None:
        """Learn which stream this is and how far it reaches; one that has gone back behind a position that is known becomes another one."""
        before = self._end.incarnation
        end = await self._store.read_end()
        end = end if known.within(end.incarnation) <= end.sequence else await self._begin_anew(known)
        if self._end.incarnation == before:  # else somebody has learnt more meanwhile
            self._end = end

    async def _begin_anew(self, known: InboxPosition) -> InboxPosition:
        """Give a stream that has gone back another incarnation, unless somebody did, and return its end: its sequences are used for other commands from now on."""
        async with self._beginning_anew:  # many drains notice at once
            for pause_s in (0.0, REGRESS_SURE_S):
                await asyncio.sleep(pause_s)
                end = await self._store.read_end()
                if known.within(end.incarnation) <= end.sequence:
                    return end
            logger.error(
                "the stream of durable commands has gone back: it was restored from a backup, or lost what came last. Nothing is removed from it unread; what it holds runs, also what ran before",
                extra={logs.SEQUENCE: end.sequence, logs.REASON: f"it reached {known.sequence} and ends at {end.sequence}"},
            )
            return await self._store.begin_anew(end, self._now_s())

    def _note_reached(self, position: InboxPosition) -> None:
        if position.incarnation == self._end.incarnation and position.sequence > self._end.sequence:
            self._end = position

    def _note_reconnect(self) -> None:
        self._links += 1

    async def _settle(self, actor: ActorId, position: InboxPosition, links: int) -> None:
        """Remove the messages up to a position; they were read when the connection had had so many links."""
        if not position.sequence:
            return
        if position.incarnation == self._end.incarnation and links == self._links:
            try:
                return await self._store.settle(actor, position.sequence)
            except RetryableError as exc:
                logger.debug("the inboxes cannot be reached now", extra={logs.REASON: str(exc)})
        await self._insist(partial(self._settle_later, actor, position))

    async def _settle_later(self, actor: ActorId, position: InboxPosition) -> None:
        """Remove them unless the stream is another one by now, or has gone back, and what it holds is not what was settled."""
        end = await self._store.read_end()
        if position.sequence <= end.within(position.incarnation):
            await self._store.settle(actor, position.sequence)

    async def _handle(self, vm: VirtualMachine, item: _Item) -> bool:
        """Settle one message, whatever that takes; False when the VM takes no more."""
        actor, found = vm.get_actor_id(), item.found
        if isinstance(found, InvalidEnvelope):
            return await self._bury(vm, item.message, Grave(Reason.INVALID_COMMAND.value, str(found)))
        if found.tick is not None:
            later = await self._look_ahead(actor, item, found.tick) if found.tick.missed == "collapse" else item.later
            choice = choose_tick(found.tick, later, self._now_s())
            if isinstance(choice, Drop):
                self.dropped += 1
                if found.tick.missed == "skip":
                    vm.skip_tick(found.tick)
                    monotonic_s = asyncio.get_running_loop().time()
                    self._gaps.note_age(actor, self._now_s() - parse_time(item.message.time).timestamp(), monotonic_s - vm.emptied_s, monotonic_s)
                logger.debug("a tick is not run", extra={logs.ACTOR_ID: str(actor), logs.NAME: found.tick.name, logs.REASON: choice.why})
                return True
        return await self._run_command(vm, item, found)

    async def _look_ahead(self, actor: ActorId, item: _Item, tick: Tick) -> Sequence[DurableCommand | InvalidEnvelope]:
        """Return so much of what waits behind a tick that it tells whether a later one of its reminder does; of what else lies between nothing is held."""
        later, unread = item.later, item.unread
        while unread and not is_followed(tick, later):
            messages = await self._insist(partial(self._store.read_next, actor, unread, max_bytes=AHEAD_BYTES_MOST))
            parsed = (_parse(actor, item.position.incarnation, message) for message in messages)
            later = [other for other in parsed if isinstance(other, DurableCommand) and other.tick is not None]
            unread = messages[-1].sequence if messages else 0
        return later

    async def _run_command(self, vm: VirtualMachine, item: _Item, found: DurableCommand) -> bool:
        """Run a command until it is settled or given up; False when the VM takes no more."""
        actor, position = vm.get_actor_id(), item.position
        if not vm.inbox.covers(item.before):
            await self._settle(actor, item.before, item.links)
        tries = count_try(None, position)
        if actor not in self._proven:
            known = await self._insist(partial(self._store.read_tries, actor))
            tries = count_try(known, position)
        grave, later = explain_poison(tries, None), None
        while grave is None:
            is_noted = tries.count > 1 or actor not in self._proven
            reply = await (self._ask_noted(vm, found, tries) if is_noted else self._ask_until_it_says(vm, found, position))
            if reply is None:
                return False
            self._proven.add(actor)
            if judge(reply) == "settled":
                await self._after_settled(actor, found, reply)
                return True
            tries = count_try(tries, position)
            if later is None:
                later = await self._look_ahead(actor, item, found.tick) if found.tick is not None and found.tick.recurring else item.later
            grave = explain_poison(tries, reply, has_stand_in=has_stand_in(found.tick, later))
            if grave is None:
                await asyncio.sleep(repeat_after_s(tries.count))
        return await self._give_up(vm, item.message, found, grave)

    async def _give_up(self, vm: VirtualMachine, message: StoredMessage, found: DurableCommand, grave: Grave) -> bool:
        """Bury a command; a one-shot is over with its tick. False when the VM takes no more."""
        is_buried = await self._bury(vm, message, grave)
        if is_buried and found.tick is not None:
            vm.skip_tick(found.tick)
        return is_buried

    async def _ask_noted(self, vm: VirtualMachine, found: DurableCommand, tries: Tries) -> Reply | None:
        """Hand a command to the VM with its try noted, which is taken back where the VM moves or stops: this process lives, so the command did not kill it."""
        reply: Reply | None = None
        try:
            await self._insist(partial(self._store.write_tries, vm.get_actor_id(), tries))
            reply = await self._ask_until_it_says(vm, found, InboxPosition(tries.incarnation, tries.sequence))
        finally:  # also where the whole runtime stops, which cancels this
            if reply is None and not vm.failed:
                await self._take_back(vm.get_actor_id(), tries)
        return reply

    async def _take_back(self, actor: ActorId, tries: Tries) -> None:
        """Take a try back, if that can be done soon; what the next owner may have noted meanwhile stays."""
        with suppress(TimeoutError, AetherError):
            async with asyncio.timeout(TAKE_BACK_S):
                left = take_try_back(await self._store.read_tries(actor), tries)
                if left is not None:
                    await self._store.write_tries(actor, left)

    async def _ask_until_it_says(self, vm: VirtualMachine, found: DurableCommand, position: InboxPosition) -> Reply | None:
        """Hand a command to the VM until its model has spoken; None when the VM takes no more."""
        entry, loop = InboxEntry(position, found.tick), asyncio.get_running_loop()
        began_s = loop.time()
        while vm.is_ready:
            answer: asyncio.Future[Reply] = loop.create_future()
            vm.process_command(Waiting(found.command, loop.time() + found.command.timeout_s, partial(_resolve, answer), entry))
            reply = await self._hear(vm, answer, began_s)
            if reply is None:
                return None
            fate = judge(reply)
            if fate in ("settled", "unfit", "failed"):
                return reply
            if fate == "stop":
                return None
            self._tell_if_stuck(vm, f"{reply.reason}: {reply.message}", began_s)
            await asyncio.sleep(max(RETRY_S, reply.retry_after_ms / 1000))
        return None

    def _tell_if_stuck(self, vm: VirtualMachine, why: str, since_s: float) -> None:
        """Say, seldom, why a command waits: nobody else hears its answers, and all behind it waits, too."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= since_s + STUCK_S and self._warning.is_due(now_s):
            extra = {logs.ACTOR_ID: str(vm.get_actor_id()), logs.REASON: why}
            logger.warning("a durable command has not been run for long, and what waits behind it neither", extra=extra)

    async def _hear(self, vm: VirtualMachine, answer: asyncio.Future[Reply], since_s: float) -> Reply | None:
        """Wait for the VM's answer; None when the VM is over and has left none, since what is lost must not hold up all that comes later."""
        while not answer.done():
            was_there = self._runtime.registry.get(vm.get_actor_id()) is vm
            await asyncio.wait({answer}, timeout=LAST_WORD_S)
            if not was_there and not answer.done():
                return None
            if not answer.done():
                self._tell_if_stuck(vm, "its actor has not answered yet", since_s)
        return answer.result()

    async def _after_settled(self, actor: ActorId, found: DurableCommand, reply: Reply) -> None:
        if reply.reason != REMINDER_GONE or found.tick is None:
            self.settled += 1
            return
        self.orphans += 1
        name, token = found.tick.name, found.tick.token
        logger.debug("a tick of a reminder that is not in force is dropped", extra={logs.ACTOR_ID: str(actor), logs.NAME: name})
        if self._reminders is not None and found.tick.recurring:
            with suppress(RetryableError):  # its next tick comes here, too
                await self._reminders.cancel(actor, name, token)

    async def _bury(self, vm: VirtualMachine, message: StoredMessage, grave: Grave) -> bool:
        """Keep a message as a dead letter, whatever that takes; False when the VM takes no more before that is done."""
        actor = vm.get_actor_id()
        extra = {logs.ACTOR_ID: str(actor), logs.SEQUENCE: message.sequence, logs.REASON: f"{grave.reason}: {grave.message}"}
        while True:
            try:
                await self._insist(partial(self._store.bury, actor, message, grave.reason, grave.message))
                break
            except AetherError as exc:
                logger.error("a durable command that is given up cannot be kept as a dead letter, and holds up its inbox", extra={**extra, logs.REASON: str(exc)})
            await asyncio.sleep(BURY_AGAIN_S)
            if not vm.is_ready:
                return False
        self.buried += 1
        logger.error("a durable command is given up; `aether dead` shows it and can retry it", extra=extra)
        return True


async def _for_each(actors: Iterable[ActorId], work: Callable[[ActorId], Awaitable[None]], at_once: int) -> None:
    """Do something for all actors, for so many at once."""
    left = iter(actors)

    async def work_on() -> None:
        for actor in left:
            await work(actor)

    async with asyncio.TaskGroup() as tasks:
        for number in range(at_once):
            tasks.create_task(work_on(), name=f"sweep {number}")


def _resolve(answer: asyncio.Future[Reply], reply: Reply) -> None:
    """Hand over an answer that may not be awaited any more."""
    if not answer.done():
        answer.set_result(reply)


def _parse(actor: ActorId, incarnation: int, message: StoredMessage) -> DurableCommand | InvalidEnvelope:
    """Return the command that a message is, or why it is none."""
    try:
        return parse_durable(actor, InboxPosition(incarnation, message.sequence), message.raw_headers, message.payload, stored=message.time)
    except InvalidEnvelope as exc:
        return exc
