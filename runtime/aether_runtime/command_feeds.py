"""The subscriptions of VMs, most of all to their commands: one object of three fields for each, since a pod may hold 100,000."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from aether_api import logs
from aether_api.errors import RetryableError
from aether_api.identity import ActorId
from aether_api.subjects import command_wildcard
from aether_nats.connection import NatsConnection
from aether_runtime.vm import VirtualMachine

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S: Final = 1.0
"""Seconds for the messages that are on their way to a VM that stops: one round trip, and callers repeat after a second."""

TakeMessage = Callable[[VirtualMachine, bytes, bytes, bytes, bytes], None]
"""Takes a VM, and subject, reply subject, raw headers and payload of a message for it."""


class VmFeed(ABC):
    """What the link calls with each message of one VM."""

    __slots__ = ("_take", "sid", "vm")

    def __init__(self, sid: int, vm: VirtualMachine, take: TakeMessage) -> None:
        self.sid = sid
        self.vm = vm
        self._take = take

    @property
    def queue(self) -> str:
        """No queue group: of two VMs of one actor, one may be frozen, and must not swallow half of its messages; the log lets one of them write."""
        return ""

    @property
    @abstractmethod
    def subject(self) -> str:
        """What it listens to; built when the link asks for it, since few bytes are many here."""

    def __call__(self, subject: bytes, reply: bytes, raw_headers: bytes, payload: bytes) -> None:
        """Hand a message to its VM."""
        try:
            self._take(self.vm, subject, reply, raw_headers, payload)
        except Exception:  # the read loop supervises callbacks: one that raises must not end the connection
            logger.exception("a message for an actor could not be taken; it is dropped", extra={logs.NAME: self.subject})


class CommandFeed(VmFeed):
    """The commands of one VM."""

    __slots__ = ()

    @property
    def subject(self) -> str:
        """The commands of the VM's actor."""
        return command_wildcard(self.vm.desired.actor)


class CommandFeeds:
    """The feeds of one process, at most one for an actor."""

    def __init__(self, connection: NatsConnection, take: TakeMessage) -> None:
        self._connection = connection
        self._take = take
        self._feeds: dict[ActorId, CommandFeed] = {}

    def __len__(self) -> int:
        return len(self._feeds)

    def open(self, vm: VirtualMachine) -> None:
        """Begin to take a VM's commands; nothing happens if its actor has a feed."""
        actor = vm.desired.actor
        if actor not in self._feeds:
            feed = self._feeds[actor] = CommandFeed(self._connection.next_sid(), vm, self._take)
            self._connection.attach(feed)

    def close(self, actor: ActorId) -> None:
        """Stop at once; who has sent a command repeats it."""
        feed = self._feeds.pop(actor, None)
        if feed is not None:
            self._connection.stop_subscription(feed, keep_handler=False)

    def take(self, actor: ActorId) -> CommandFeed | None:
        """Hand over an actor's feed to whoever drains it; another VM may open its own at once."""
        return self._feeds.pop(actor, None)

    async def drain(self, feed: CommandFeed | None) -> None:
        """Take what the server has sent already, so that no caller waits in vain, and no more."""
        if feed is None:
            return
        try:
            await self._connection.drain_subscription(feed, DRAIN_TIMEOUT_S)
        except RetryableError as exc:
            logger.debug("a subscription could not be drained; its callers ask again", extra={logs.NAME: feed.subject, logs.REASON: str(exc)})
