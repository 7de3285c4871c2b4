"""What a VM says when it is not its model that decides: answers to commands, and texts of its status."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from aether_api import logs
from aether_api.errors import Reason, RetryableError, reason_of
from aether_api.messages import Reply, build_error, make_encodable
from aether_runtime.core.group import Waiting
from aether_runtime.ports import DesiredActor

logger = logging.getLogger(__name__)

MOVING_RETRY_MS: Final = 100
"""Milliseconds after which a caller may ask again while the actor moves: a hand-over takes about as long."""

CONFLICTS_MAX: Final = 3
"""Times in a row that a group is decided again after a refused append; then the callers decide."""

WRITE_ANEW: Final = 'where no model helps, docs/lifecycle.md says under "A log that no model can apply" how to write the log anew'
"""The way on from a log that is broken: the server takes nothing out of the middle of a stream of events."""


def send_all(answers: Iterable[tuple[Waiting, Reply]]) -> None:
    """Answer commands in order; one whose answer fails harms no other."""
    for item, reply in answers:
        send(item, reply)


def send(item: Waiting, reply: Reply) -> None:
    """Answer a command; never raises, since whoever answers has others to answer and an actor to go on with."""
    try:
        item.answer(reply)
    except Exception:
        logger.exception("a command could not be answered", extra={logs.ACTOR_ID: str(item.command.actor)})


def build_moving(command_id: str) -> Reply:
    """Return the answer to a command that this VM takes no more."""
    return build_error(Reason.BUSY, "the actor is moving; send the command again with the same id", command_id=command_id, retry_after_ms=MOVING_RETRY_MS)


def build_conflict(item: Waiting, version: int) -> Reply:
    """Return the answer to a command that lost against other writers too often."""
    message = f"other writers came first {CONFLICTS_MAX + 1} times; nothing was stored"
    return build_error(Reason.CONFLICT, message, command_id=item.command.id, version=version, retry_after_ms=MOVING_RETRY_MS)


def build_unstored(item: Waiting, error: BaseException, version: int) -> Reply:
    """Return the answer to a command whose commit the log refused; where it has no room now, the caller may ask again."""
    retry_after_ms = int(error.retry_after_s * 1000) if isinstance(error, RetryableError) else 0
    return build_error(reason_of(error), f"nothing was stored: {error}", command_id=item.command.id, version=version, retry_after_ms=retry_after_ms)


def build_quarantined(command_id: str, message: str, version: int | None) -> Reply:
    """Return the answer to a command for an actor in quarantine, with the version that its status shows, if that is known."""
    return build_error(Reason.QUARANTINED, message, command_id=command_id, version=-1 if version is None else version)


def build_unknown(item: Waiting) -> Reply:
    """Return the answer to a command that may have been stored."""
    return build_late(item.command.id)


def build_late(command_id: str) -> Reply:
    """Return the answer to a command of which nobody knows in time whether it was stored."""
    message = "the outcome is unknown; repeat the command with the same id to learn it"
    return build_error(Reason.UNKNOWN, message, command_id=command_id, retry_after_ms=MOVING_RETRY_MS)


@lru_cache(maxsize=512)
def describe_replay(events: int) -> str:
    """Return what is said of an actor that has started: one text for all that replayed as much, since a pod may hold 100,000."""
    return f"replayed {events} events"


def describe_quarantine(problem: str, desired: DesiredActor) -> str:
    """Return what is said of an actor whose log its model cannot apply: what is wrong, and every way on."""
    told = (
        f"{make_encodable(problem)}. Nothing was skipped. Correct the ActorModel {desired.actor.model}, and the actor replays again by itself; {WRITE_ANEW}; "
        "after a restore of the stream from a backup "
    )
    if not desired.name:
        return f"{told}its first command some time later makes it replay"
    return f"{told}set spec.suspend to true and back to false; to give its events up, delete the Actor with deletionPolicy Purge"
