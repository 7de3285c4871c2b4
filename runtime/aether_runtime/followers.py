"""Lets VMs that are behind their log catch up, though nobody sends them a command.

A VM learns of a foreign commit by its own next append. Until then its version is old, which people and projections see. Two
things bring news to a VM that nothing is asked of:

- one that took over follows the announcements of its own actor for `FOLLOW_S`: a pod that was killed without grace lives on
  for a second or two, and a leaving one for some more, and what they append is legal, since the log accepted it. An announcement
  carries the commit, so one that follows what the VM knows is applied without a read. It listens from before its replay on, when
  nobody knows yet whose commit is the last, so what is stored meanwhile is news as soon as it is ready;
- `SETTLE_S` later the heads of all that took over meanwhile are compared with the log in one go: for what was stored just then and announced by a
  server that had not heard of the subscription yet [two servers, a tight writer: 3 % of subscriptions], or while the link was cut;
- once in `compare_every_s`, and when a link that was cut is up again, the heads of all VMs are compared with the log
  (`aether_nats.heads`): for what no announcement told, for foreign writers, and where nothing is announced (`broadcast: off`).

An idle VM has no subscription for this, and a quiet stream costs one request a minute.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Iterable
from typing import Final

from aether_api import logs
from aether_api.errors import AetherError, InvalidEnvelope, SettingsInvalid
from aether_api.identity import ActorId
from aether_api.subjects import stored_subject
from aether_nats.announcement import decode_announced, read_place
from aether_nats.connection import NatsConnection
from aether_nats.heads import Head
from aether_nats.message import Message
from aether_runtime.command_feeds import TakeMessage, VmFeed
from aether_runtime.ports import Heads
from aether_runtime.registry import VMRegistry
from aether_runtime.vm import VirtualMachine

logger = logging.getLogger(__name__)

FOLLOW_S: Final = 30.0
"""Seconds for which a VM that took over follows its actor: far longer than a killed process lives on."""

COMPARE_EVERY_S: Final = 60.0
"""Seconds between comparisons of all heads: a safety net, and 100,000 VMs in busy streams cost the server half a second."""

SETTLE_S: Final = 2.0
"""Seconds from a take-over to the comparison: by then a killed process has appended what it will."""

RETRY_S: Final = 1.0
"""Seconds until heads are compared again where the log could not be read: an election takes seconds."""

RECHECK_S: Final = 0.2
"""Seconds until a VM that was busy when its news came is looked at again: what it was busy with mostly brought it the news."""


class Follower(VmFeed):
    """The announcements for one VM that starts or took over: it has no timer of its own, since a pod may take over ten thousand at once.

    Attributes:
        until_s: monotonic time at which it ends; infinite while the VM replays.
    """

    __slots__ = ("actor", "until_s")

    def __init__(self, sid: int, vm: VirtualMachine, take: TakeMessage) -> None:
        super().__init__(sid, vm, take)
        self.actor = vm.get_actor_id()
        self.until_s = math.inf

    @property
    def subject(self) -> str:
        """The announcements of the VM's actor."""
        return stored_subject(self.actor)


class Followers:
    """Watches the logs of one process's VMs.

    Attributes:
        behind: how often a VM was found behind its log.
    """

    def __init__(self, connection: NatsConnection, heads: Heads | None, registry: VMRegistry, *, compare_every_s: float = COMPARE_EVERY_S) -> None:
        self.behind = 0
        self._connection = connection
        self._heads = heads
        self._registry = registry
        self._compare_every_s = compare_every_s
        self._loop = asyncio.get_running_loop()
        self._followed: dict[ActorId, Follower] = {}
        self._by_end: deque[Follower] = deque()
        self._take = self._on_stored  # bound once, not once for each follower
        self._announced: dict[VirtualMachine, int] = {}
        self._due = asyncio.Event()
        self._is_all_due = self._is_log_new = False
        self._compare_at = self._loop.time() + compare_every_s
        self._fresh: list[ActorId] = []
        connection.on_reconnect(self._compare_all)

    def __len__(self) -> int:
        return len(self._followed)

    def watch(self, vm: VirtualMachine) -> None:
        """Listen to the announcements for a VM that is about to replay, until `on_ready` or `leave`."""
        actor = vm.get_actor_id()
        self._unfollow(actor)
        follower = self._followed[actor] = Follower(self._connection.next_sid(), vm, self._take)
        self._connection.attach(follower)

    def on_ready(self, vm: VirtualMachine) -> None:
        """Go on listening for a VM that took over, or that has news; it looks at what came after the head that it had read."""
        follower, has_news = self._find(vm), self._announced.pop(vm, 0) > vm.sequence
        if follower is None:
            return
        if not (vm.took_over or has_news):
            return self._unfollow(vm.get_actor_id())
        follower.until_s = self._loop.time() + FOLLOW_S
        if not self._by_end:
            self._loop.call_at(follower.until_s, self._end_due)
        self._by_end.append(follower)
        if self._heads is not None:
            if not self._fresh:
                self._loop.call_later(SETTLE_S, self._due.set)
            self._fresh.append(vm.get_actor_id())
        if has_news:
            self.behind += 1
            self._loop.call_soon(vm.look_again)

    def leave(self, vm: VirtualMachine) -> None:
        """Listen no more for a VM that did not start, or has ended."""
        if self._find(vm) is not None:
            self._unfollow(vm.get_actor_id())

    def check_log(self) -> None:
        """Look at the log as a whole soon: a VM met another one than it knew."""
        self._due.set()

    async def run(self) -> None:
        """Compare heads until cancelled.

        Raises:
            SettingsInvalid: the log is laid out anew; this process has to start again.
        """
        while self._heads is not None:
            try:
                async with asyncio.timeout_at(self._compare_at):
                    await self._due.wait()
            except TimeoutError:
                self._is_all_due = True
            self._due.clear()
            fresh, self._fresh = self._fresh, []
            is_all, self._is_all_due = self._is_all_due, False
            if is_all:
                self._compare_at = self._loop.time() + self._compare_every_s
            if self._is_log_new:
                self._is_log_new = False
                self._heads.forget()
            try:
                moved = await self._heads.find_moved(self._list_heads(self._registry.vms if is_all else fresh), some=not is_all)
            except SettingsInvalid:
                raise  # ends the runtime: what it goes on to write nobody would find
            except AetherError as exc:
                logger.debug("heads cannot be compared now", extra={logs.REASON: str(exc)})
                self._fresh += fresh
                self._is_all_due |= is_all
                self._loop.call_later(RETRY_S, self._due.set)
                continue
            for actor in moved:
                self._look(actor)

    def _list_heads(self, actors: Iterable[ActorId]) -> list[tuple[ActorId, Head]]:
        """Return where ready VMs stand; a VM that has gone meanwhile is kept by nobody here."""
        vms = map(self._registry.get, actors)
        return [(vm.get_actor_id(), vm.head) for vm in vms if vm is not None and vm.is_ready]

    def _compare_all(self) -> None:
        self._is_all_due = self._is_log_new = True  # it may have been restored while the link was cut
        self._due.set()

    def _look(self, actor: ActorId) -> None:
        vm = self._registry.get(actor)
        if vm is not None:
            self.behind += 1
            vm.look_again()

    def _on_stored(self, vm: VirtualMachine, subject: bytes, reply: bytes, raw_headers: bytes, payload: bytes) -> None:
        message, follower = Message(subject, reply, raw_headers, payload), self._followed.get(vm.get_actor_id())
        if follower is None or self._registry.get(vm.get_actor_id()) is not vm:
            return self._unfollow(vm.get_actor_id())
        try:
            sequence = read_place(message).sequence
        except InvalidEnvelope as exc:
            return logger.debug("not an announcement of the server", extra={logs.NAME: message.subject, logs.REASON: str(exc)})
        if sequence <= vm.sequence:
            return
        if vm in self._announced or follower.until_s == math.inf:
            self._announced[vm] = sequence
        elif not self._hand_over(vm, sequence, message):
            self._announced[vm] = sequence
            self._loop.call_later(RECHECK_S, self._catch_up, vm)

    def _hand_over(self, vm: VirtualMachine, sequence: int, message: Message) -> bool:
        """Give an announced commit to its VM; returns whether the VM has it now. What is no commit is for the log to tell."""
        self.behind += vm.can_sleep
        try:
            return vm.process_event(decode_announced(sequence, message))
        except InvalidEnvelope as exc:
            logger.debug("an announcement holds no commit", extra={logs.ACTOR_ID: str(vm.get_actor_id()), logs.REASON: str(exc)})
            vm.look_again()
            return False

    def _catch_up(self, vm: VirtualMachine) -> None:
        """Let a VM look at its log until it has reached what was announced; one that is busy a moment later."""
        if self._announced[vm] <= vm.sequence or not vm.is_ready:
            del self._announced[vm]
            return
        if vm.can_sleep:
            self.behind += 1
            vm.look_again()
        self._loop.call_later(RECHECK_S, self._catch_up, vm)

    def _end_due(self) -> None:
        """End the subscriptions whose time is over, unless another VM's has taken their place."""
        by_end = self._by_end
        while by_end and by_end[0].until_s <= self._loop.time():
            follower = by_end.popleft()
            if self._followed.get(follower.actor) is follower:
                self._unfollow(follower.actor)
        if by_end:
            self._loop.call_at(by_end[0].until_s, self._end_due)

    def _find(self, vm: VirtualMachine) -> Follower | None:
        """Return what listens for a VM, unless another VM's has taken its place."""
        follower = self._followed.get(vm.get_actor_id())
        return follower if follower is not None and follower.vm is vm else None

    def _unfollow(self, actor: ActorId) -> None:
        follower = self._followed.pop(actor, None)
        if follower is not None:
            if follower.until_s == math.inf:
                self._announced.pop(follower.vm, None)
            self._connection.stop_subscription(follower, keep_handler=False)
            del follower.vm  # which may sleep long before its time is over
