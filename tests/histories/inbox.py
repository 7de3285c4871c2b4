"""Inboxes in memory, with calls that fail before or after they took effect, schedules, and what drains them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import accumulate
from types import SimpleNamespace

import pytest

from aether_api.durable import InboxPosition, build_durable_headers
from aether_api.errors import Disconnected
from aether_api.headers import FIRST_LINE
from aether_api.identity import ActorId
from aether_api.messages import Command, format_time
from aether_nats.inbox import READ_AHEAD, Tries
from aether_nats.jetstream_wire import StoredMessage
from aether_nats.schedules import Reminder
from aether_runtime.vm import VirtualMachine
from tests.histories.bank import START_S
from tests.histories.world import Pod


class Call(Enum):
    """What becomes of a call."""

    FINE = auto()
    LOST = auto()
    """Nothing happens, and the caller hears of an error."""
    UNHEARD = auto()
    """It takes effect, but the caller hears of an error."""


@dataclass
class MemoryInbox:
    """What `aether_nats.inbox.Inbox` promises, in memory.

    Attributes:
        choose: decides what becomes of each call.
        tried: every count of tries that was written.
    """

    choose: Callable[[], Call] = lambda: Call.FINE
    incarnation: int = 7
    sequence: int = 0
    messages: dict[ActorId, list[StoredMessage]] = field(default_factory=dict[ActorId, list[StoredMessage]])
    dead: list[tuple[StoredMessage, str]] = field(default_factory=list[tuple[StoredMessage, str]])
    tries: dict[ActorId, Tries] = field(default_factory=dict[ActorId, Tries])
    tried: list[Tries] = field(default_factory=list[Tries])

    def send(self, command: Command) -> int:
        """Store a durable command and return its sequence."""
        return self.put(command.actor, build_durable_headers(command), command.payload)

    def put(self, actor: ActorId, lines: bytes, payload: bytes) -> int:
        """Store a message with these header lines and return its sequence."""
        self.sequence += 1
        raw = FIRST_LINE + b"\r\n" + lines + b"\r\n"
        self.messages.setdefault(actor, []).append(StoredMessage("inbox", self.sequence, raw, payload, format_time(START_S)))
        return self.sequence

    def go_back(self, sequence: int) -> None:
        """Lose what came after a sequence, as a stream does that is restored from a backup."""
        self.sequence = sequence
        self.messages = {actor: [message for message in messages if message.sequence <= sequence] for actor, messages in self.messages.items()}

    async def read_end(self) -> InboxPosition:
        """Return which stream it is, and how far it reaches."""
        self._end(self._begin())
        return InboxPosition(self.incarnation, self.sequence)

    async def begin_anew(self, end: InboxPosition, now_s: float) -> InboxPosition:
        """Make it another stream, once."""
        call = self._begin()
        if self.incarnation == end.incarnation:
            self.incarnation += 1
        self._end(call)
        return InboxPosition(self.incarnation, self.sequence)

    async def read_backlog(self) -> dict[ActorId, int]:
        """Count what waits."""
        self._end(self._begin())
        return {actor: len(messages) for actor, messages in self.messages.items() if messages}

    async def find_last(self, actors: Sequence[ActorId]) -> dict[ActorId, int]:
        """Return the last sequences."""
        self._end(self._begin())
        return {actor: messages[-1].sequence for actor in actors if (messages := self.messages.get(actor))}

    async def read_next(self, actor: ActorId, after: int, *, max_bytes: int) -> list[StoredMessage]:
        """Return what comes next."""
        self._end(self._begin())
        found = [message for message in self.messages.get(actor, ()) if message.sequence > after][:READ_AHEAD]
        before = accumulate((len(message.raw_headers) + len(message.payload) for message in found), initial=0)
        return [message for message, size in zip(found, before, strict=False) if size < max_bytes]

    async def settle(self, actor: ActorId, through: int) -> None:
        """Remove what is settled."""
        call = self._begin()
        self.messages[actor] = [message for message in self.messages.get(actor, ()) if message.sequence > through]
        self._end(call)

    async def read_tries(self, actor: ActorId) -> Tries | None:
        """Return the count."""
        self._end(self._begin())
        return self.tries.get(actor)

    async def write_tries(self, actor: ActorId, tries: Tries) -> None:
        """Keep the count."""
        call = self._begin()
        self.tries[actor] = tries
        self.tried.append(tries)
        self._end(call)

    async def bury(self, actor: ActorId, message: StoredMessage, reason: str, explanation: str) -> None:
        """Keep a dead letter, once."""
        call = self._begin()
        if message.sequence not in [letter.sequence for letter, _ in self.dead]:
            self.dead.append((message, reason))
        self._end(call)

    def _begin(self) -> Call:
        call = self.choose()
        if call is Call.LOST:
            raise Disconnected("the link dropped before")
        return call

    def _end(self, call: Call) -> None:
        if call is Call.UNHEARD:
            raise Disconnected("the link dropped after")


class Schedules:
    """Schedules in memory, with what shall go wrong first; knows what the log held when each was made."""

    def __init__(self, *failures: Exception) -> None:
        self.made: dict[tuple[str, str], Reminder] = {}
        self.times_made = 0
        self.failures = list(failures)

    async def set(self, actor: ActorId, reminder: Reminder, token: str) -> None:
        """Make a schedule, unless something is to go wrong."""
        if self.failures:
            raise self.failures.pop(0)
        self.times_made += 1
        self.made[reminder.name, token] = reminder

    async def cancel(self, actor: ActorId, name: str, token: str) -> None:
        """End a schedule."""
        self.made.pop((name, token), None)

    @property
    def names(self) -> list[str]:
        """The reminders that have schedules."""
        return [name for name, _ in self.made]


@dataclass
class Host:
    """The part of a runtime that durable commands need: one VM, and tasks.

    Attributes:
        presence: another pod is the one that counts what waits.
    """

    pod: Pod
    vms: dict[ActorId, VirtualMachine] = field(default_factory=dict[ActorId, VirtualMachine])
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    presence: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(pods=SimpleNamespace(live=lambda: ["0"])))

    @property
    def config(self) -> SimpleNamespace:
        """The part that names this pod."""
        return SimpleNamespace(pod=SimpleNamespace(uid=self.pod.name))

    @property
    def registry(self) -> Host:
        """The part that knows the VMs."""
        return self

    def get(self, actor: ActorId) -> VirtualMachine | None:
        """Return the VM of an actor."""
        return self.vms.get(actor)

    def spawn(self, work: Coroutine[None, None, None], name: str) -> bool:
        """Run work in the background."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return True


def hurry_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no drain wait for a clock."""
    for name in ("vm_reading.RETRY_S", "inbox.RETRY_S", "inbox.BURY_AGAIN_S", "inbox.REGRESS_SURE_S", "core.inbox.REPEAT_FIRST_S"):
        monkeypatch.setattr(f"aether_runtime.{name}", 0.0)
    monkeypatch.setattr("aether_runtime.answers.MOVING_RETRY_MS", 0)
