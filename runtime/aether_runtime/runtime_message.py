"""A message to one actor, as a program hands it to the runtime that it embeds, and how often it is tried.

A try may get lost: the pod that it was passed on to has just died, or its link is cut. So each try has a time of its own, a
fraction of the message's, and the next one carries the same id, which takes effect at most once (`CommandClient` does the same).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from aether_api.errors import InvalidEnvelope, InvalidName, Reason, describe_value
from aether_api.identity import ActorId, check_actor
from aether_api.messages import TIMEOUT_DEFAULT_S, Command, Reply, build_command, check_command_id, choose_command_id
from aether_runtime.answers import build_late

TRY_FIRST_S: Final = 1.0
"""Seconds of the first try, doubling: a pod that was killed is replaced in about a second."""

TRY_MAX_S: Final = 5.0
"""Seconds of one try at most: a busy actor must not be asked the same thing ever more often."""

Try = Callable[[Command], Awaitable[Reply]]
"""Have a command answered within its time-out."""


@dataclass(frozen=True, slots=True)
class RuntimeMessage:
    """A command on its way to `Runtime.send_message`; `build` makes one from its parts."""

    command: Command

    @classmethod
    def build(
        cls,
        actor: ActorId,
        command: str,
        fields: Mapping[str, object] | bytes = b"{}",
        *,
        command_id: str | None = None,
        timeout_s: float = TIMEOUT_DEFAULT_S,
        expected_version: int | None = None,
        dry_run: bool = False,
    ) -> RuntimeMessage:
        """Return a message that is made now; the arguments are those of `CommandClient.send`.

        Args:
            fields: the command's fields, or the JSON object that they are.
            command_id: choose it yourself to repeat a command safely later; by default a fresh one.

        Raises:
            InvalidName: `command` could not be a subject's token, or `actor` is no `ActorId`.
            InvalidEnvelope: another argument is nothing that a command can carry; the message names it.
        """
        id = choose_command_id(command_id)
        return cls(build_command(actor, command, fields, command_id=id, now_s=time.time(), timeout_s=timeout_s, expected_version=expected_version, dry_run=dry_run))


def take_command(message: object, namespace: str) -> Command:
    """Return the command of a message that a runtime of `namespace` can route.

    Raises:
        InvalidName: its actor is of another namespace.
        InvalidEnvelope: it is no message, or holds what `build` would have refused.
    """
    if not isinstance(message, RuntimeMessage):
        raise InvalidEnvelope(f"message must be a RuntimeMessage, as RuntimeMessage.build gives, not {describe_value(message)}")
    command = message.command
    check_home(command.actor, namespace)
    check_command_id(command.id)
    return command


def check_home(actor: ActorId, namespace: str) -> None:
    """Raise `InvalidName` for an actor that no runtime of `namespace` may hold, or what is none."""
    if check_actor(actor).namespace != namespace:
        raise InvalidName(f"{actor} is of namespace {actor.namespace}, this runtime serves {namespace}; open a runtime for each")


async def send_until(try_once: Try, command: Command, *, may_go_on: Callable[[], bool]) -> Reply:
    """Try a command again for as long as its time-out allows and its replies say that this may help; return the last one.

    Where an earlier try may have taken effect, and no later one told, the outcome is `Unknown`.
    """
    clock = asyncio.get_running_loop().time
    deadline, try_s, may_have_run = clock() + command.timeout_s, TRY_FIRST_S, False
    while True:
        reply = await try_once(msgspec.structs.replace(command, timeout_s=min(try_s, max(0.0, deadline - clock()))))
        if reply.outcome != "error":
            return reply
        may_have_run |= reply.reason == Reason.UNKNOWN
        pause_s = reply.retry_after_ms / 1000
        if not pause_s or clock() + pause_s >= deadline or not may_go_on():
            return build_late(command.id) if may_have_run else reply
        await asyncio.sleep(pause_s)
        try_s = min(try_s * 2, TRY_MAX_S)
