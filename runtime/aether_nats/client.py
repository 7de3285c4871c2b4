"""Sends commands to actors and waits for their replies, through fail-overs.

The order of things (design L5): `cmd` reaches the live VM of the actor directly; nobody there means that no VM is live, so
`call` asks any pod, which activates or forwards. After silence `find` asks all pods: a process that is frozen or cut off keeps
its subscriptions until the server misses it, ten seconds and more. The next try is `cmd` again, for a pod of an older release that
holds the actor and hears no `find`. A command keeps its id through all tries, and an id takes
effect at most once, so a lost answer is simply asked for again. Only when the deadline passes after a lost answer does the caller get
`OutcomeUnknown`, with the id to repeat.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from aether_api.errors import Disconnected, NoResponders, OutcomeUnknown, PermissionDenied, Reason, RequestTimeout, RetryableError, StreamFull
from aether_api.identity import ActorId
from aether_api.messages import TIMEOUT_DEFAULT_S, Command, Reply, build_command, build_command_headers, choose_command_id, decode_reply
from aether_api.subjects import CommandChannel, command_subject
from aether_nats.connection import NatsConnection
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.message import Message

TRY_TIMEOUT_FIRST_S: Final = 1.0
"""Seconds until an unanswered try is repeated, doubling: a pod that was killed takes its commands with it, and is replaced in about a second."""

TRY_TIMEOUT_MAX_S: Final = 5.0
"""Seconds of one try at most: a busy actor must not be asked the same thing ever more often."""

TRY_AGAIN_MIN_S: Final = 0.1
"""Seconds that must be left for another try to store a command: one that is cut short before an answer can come would make its outcome unknown for nothing."""

DECIDED: Final = (Reason.COMMAND_FAILED.value, Reason.COMMIT_TOO_LARGE.value)
"""Reasons of errors by which an actor says that no try of a command took effect, since it looks for the id first. Others come from whoever does not run the command at
all, as where its actor was suspended meanwhile."""

NOBODY_RETRY_S: Final = 0.1
"""Seconds between tries while no pod serves the namespace: a first pod is noticed at once, and the server hardly feels it."""


@dataclass(slots=True)
class _Progress:
    """What is known about a command that is under way."""

    deadline: float
    try_timeout_s: float = TRY_TIMEOUT_FIRST_S
    may_have_run: bool = False
    asks_all: bool = False
    cause: RetryableError | None = None
    last_reply: Reply | None = None

    def remaining_s(self) -> float:
        return self.deadline - time.monotonic()


class DurableReceipt(msgspec.Struct, frozen=True):
    """A command is stored and will be run.

    Attributes:
        sequence: where it stands among all that wait in the namespace.
        repeated: a command of this id was stored before, and only that one runs.
    """

    command_id: str
    sequence: int
    repeated: bool


class CommandClient:
    """Sends commands over one connection; any number may be under way."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection

    async def send(
        self,
        actor: ActorId,
        command: str,
        payload: Mapping[str, object] | bytes = b"{}",
        *,
        command_id: str | None = None,
        timeout_s: float = TIMEOUT_DEFAULT_S,
        expected_version: int | None = None,
        dry_run: bool = False,
    ) -> Reply:
        """Send a command and return the actor's reply, whatever its outcome.

        Args:
            command_id: choose it yourself to repeat a command safely later; by default a fresh one.
            expected_version: refuse unless the actor is at exactly this version.
            dry_run: decide, but store nothing.

        Raises:
            OutcomeUnknown: no answer came in time or could be heard, and the command may have taken effect; repeat it with its id.
            NoResponders: no pod serves the namespace; nothing happened.
            Disconnected: there was no link all the time; nothing happened.
            PermissionDenied: the server does not let the user send it, or hear answers; nothing happened.
            PermanentError: this is another event loop than the connection's; nothing happened.
            InvalidName: `command` cannot be a subject's token, or `actor` is no `ActorId`.
            InvalidEnvelope: another argument is nothing that a command can carry; the message names it.
        """
        id = choose_command_id(command_id)
        message = build_command(actor, command, payload, command_id=id, now_s=time.time(), timeout_s=timeout_s, expected_version=expected_version, dry_run=dry_run)
        self._connection.check_loop()
        return await self._send_until(message, _Progress(time.monotonic() + timeout_s))

    async def send_durable(
        self,
        actor: ActorId,
        command: str,
        payload: Mapping[str, object] | bytes = b"{}",
        *,
        command_id: str | None = None,
        timeout_s: float = TIMEOUT_DEFAULT_S,
        expected_version: int | None = None,
    ) -> DurableReceipt:
        """Store a command in the actor's inbox: it will be run once, in order, even if nothing runs now; nobody gets its answer.

        Args:
            timeout_s: how long to try to store it; running it may take for ever.

        Raises:
            OutcomeUnknown: it may be stored, and no answer came or could be heard; repeat it with its id, which is dropped if it is.
            RetryableError: it is not stored.
            PermissionDenied: the server does not let the user store it, or hear answers; it is not stored.
            PermanentError, InvalidName, InvalidEnvelope: as `send`.
        """
        id = choose_command_id(command_id)
        message = build_command(actor, command, payload, command_id=id, now_s=time.time(), timeout_s=timeout_s, expected_version=expected_version)
        self._connection.check_loop()
        return await self._store(message, _Progress(time.monotonic() + timeout_s))

    async def _store(self, command: Command, progress: _Progress) -> DurableReceipt:
        inbox = Inbox(JetStream(self._connection), command.actor.namespace)
        while (remaining_s := progress.remaining_s()) > (TRY_AGAIN_MIN_S if progress.cause else 0.0):
            was_deaf = self._connection.is_deaf
            try:
                ack = await inbox.send(command, timeout_s=min(progress.try_timeout_s, remaining_s))
                return DurableReceipt(command.id, ack.sequence, ack.duplicate)
            except PermissionDenied as exc:
                progress.may_have_run |= exc.action == "subscribe" and not was_deaf  # it was sent; only the answer cannot be heard
                _raise_if_unknown(command, progress, exc)
                raise
            except RetryableError as exc:
                # Only where nobody listens, or there is no room, it is certain that nothing was stored; the id makes it safe to send it again.
                progress.cause, progress.may_have_run = exc, progress.may_have_run or not (isinstance(exc, StreamFull) or isinstance(exc.__cause__, NoResponders))
                await asyncio.sleep(min(max(NOBODY_RETRY_S, exc.retry_after_s), max(0.0, progress.remaining_s())))
                await self._wait_connected(progress)
        if progress.may_have_run:
            raise OutcomeUnknown(command.id, str(progress.cause)) from progress.cause
        raise progress.cause or RequestTimeout(f"command {command.name} for {command.actor} was given no time")

    async def _send_until(self, command: Command, progress: _Progress) -> Reply:
        while progress.remaining_s() > 0:
            reply = await self._try_once(command, progress)
            if reply is None:
                continue
            if _is_final(reply, progress):
                return reply
            progress.last_reply = reply
            progress.may_have_run |= reply.reason == Reason.UNKNOWN
            if not reply.retry_after_ms:
                break
            await asyncio.sleep(min(reply.retry_after_ms / 1000, max(0.0, progress.remaining_s())))
        return _give_up(command, progress)

    async def _try_once(self, command: Command, progress: _Progress) -> Reply | None:
        """Ask once; None when there was no answer and another try makes sense."""
        try:
            return decode_reply((await self._ask(command, progress)).payload)
        except NoResponders as exc:
            progress.cause = exc
            await asyncio.sleep(min(NOBODY_RETRY_S, max(0.0, progress.remaining_s())))
        except RequestTimeout as exc:
            progress.cause, progress.may_have_run, progress.asks_all = exc, True, not progress.asks_all
            progress.try_timeout_s = min(progress.try_timeout_s * 2, TRY_TIMEOUT_MAX_S)
        except PermissionDenied as exc:
            if exc.action == "subscribe" or not progress.asks_all:
                _raise_if_unknown(command, progress, exc)
                raise
            progress.asks_all = False  # who may not ask all pods waits for the one that has the actor
        except Disconnected as exc:
            progress.cause = exc
            if self._connection.is_closed:
                return _give_up(command, progress)
            await self._wait_connected(progress)
        return None

    async def _ask(self, command: Command, progress: _Progress) -> Message:
        try:
            return await self._ask_on("find" if progress.asks_all else "cmd", command, progress)
        except NoResponders:
            return await self._ask_on("call", command, progress)

    async def _ask_on(self, channel: CommandChannel, command: Command, progress: _Progress) -> Message:
        remaining_s = max(0.001, progress.remaining_s())
        subject = command_subject(channel, command.actor, command.name)
        wait_s = min(progress.try_timeout_s, remaining_s)
        # The pod is told how long this try waits: it answers before, and runs nothing whose answer nobody awaits.
        lines = build_command_headers(msgspec.structs.replace(command, timeout_s=wait_s))
        future = self._connection.request(subject, command.payload, lines, wait_s)
        try:
            return await future
        except Disconnected:
            progress.may_have_run = True  # it was sent; only the answer is lost
            raise
        except PermissionDenied as exc:
            progress.may_have_run |= exc.action == "subscribe"  # as above: the answer cannot be heard
            raise

    async def _wait_connected(self, progress: _Progress) -> None:
        try:
            async with asyncio.timeout(max(0.0, progress.remaining_s())):
                await self._connection.wait_connected()
        except TimeoutError:
            return  # the deadline has passed, which the caller's loop notices


def _is_final(reply: Reply, progress: _Progress) -> bool:
    """Tell whether a reply settles the command.

    An error settles only the try that it answers, unless it is one of `DECIDED`: an earlier one, whose answer was lost, may have taken effect.
    """
    if reply.outcome != "error":
        return True
    return not reply.retry_after_ms and (not progress.may_have_run or reply.reason in DECIDED)


def _raise_if_unknown(command: Command, progress: _Progress, denied: PermissionDenied) -> None:
    """Raise `OutcomeUnknown` if the command may have run before something was denied, as a repeat may do."""
    if progress.may_have_run:
        raise OutcomeUnknown(command.id, str(denied)) from denied


def _give_up(command: Command, progress: _Progress) -> Reply:
    """Return the last answer, or raise what best describes why there is none."""
    last = progress.last_reply
    if last is not None and (last.reason == Reason.UNKNOWN or not progress.may_have_run):
        return last
    if progress.may_have_run:
        why = [str(progress.cause)] if progress.cause else []
        why += [f"the last try was answered {last.reason}: {last.message}"] if last is not None else []
        raise OutcomeUnknown(command.id, "; ".join(why)) from progress.cause
    raise progress.cause or RequestTimeout(f"command {command.name} for {command.actor} was given no time")
