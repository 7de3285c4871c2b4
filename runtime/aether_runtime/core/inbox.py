"""Durable commands, decided: what an answer means for a command that waits in an inbox, and when one is given up.

A command is settled by any answer of its model: accepted, no-op, and rejected just as well, since a refusal is an outcome. That
the model knows no such command, or cannot read its fields, is none: nobody decided anything, so it is given up at once. It is
poison if its model fails, or if the process ends whenever it is run. Only such tries count; that NATS is away, that the actor
moves or is suspended says nothing about the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from aether_api.durable import DurableCommand, InboxPosition, Tick
from aether_api.errors import InvalidEnvelope, Reason
from aether_api.messages import Reply
from aether_nats.inbox import READ_AHEAD, Tries
from aether_nats.jetstream_wire import StoredMessage
from aether_runtime.core.group import UNFIT
from aether_runtime.core.reminders import is_followed

TRIES_MAX: Final = 5
"""Times that a command is begun before it is given up: enough for a pod that is killed for other reasons, few enough that those
behind it wait for seconds."""

REPEAT_FIRST_S: Final = 0.1
"""Seconds before a command whose model failed is run again, doubling: what it ran into may pass."""

AHEAD_BYTES_MAX: Final = 32 << 20
AHEAD_BYTES_LEAST: Final = 8 << 10
AHEAD_BYTES_MOST: Final = 2 << 20
"""Bytes of waiting commands that all actors of a process read ahead in equal shares, and least and most of what one of them does: thousands begin at once where
a pool was away while commands came (measured: 1,000 actors with 100 commands of 2 KB each, all read at once, took 300 MB)."""

POISON: Final = (Reason.COMMAND_FAILED.value, Reason.COMMIT_TOO_LARGE.value)
"""Reasons that count as a failed try: the model failed, or wanted what no commit can hold."""

STOP: Final = (Reason.QUARANTINED.value, Reason.FENCED.value, Reason.SUSPENDED.value)
"""Reasons for which nothing of this actor can be run now."""

Fate = Literal["settled", "unfit", "failed", "later", "stop"]
"""What an answer means: the command is done with; it can never be run by this model; a try has failed; ask again soon; leave the whole inbox alone."""


@dataclass(frozen=True, slots=True)
class Grave:
    """Why a command is given up."""

    reason: str
    message: str


def judge(reply: Reply) -> Fate:
    """Return what an answer means for a durable command."""
    if reply.outcome != "error":
        return "unfit" if reply.outcome == "rejected" and reply.reason in UNFIT else "settled"
    if reply.reason in POISON:
        return "failed"
    return "stop" if reply.reason in STOP else "later"


def count_try(known: Tries | None, position: InboxPosition) -> Tries:
    """Return the count with one more try of the command there; another command's begins anew."""
    same = known is not None and (known.incarnation, known.sequence) == (position.incarnation, position.sequence)
    return Tries(position.incarnation, position.sequence, known.count + 1 if known is not None and same else 1)


def take_try_back(known: Tries | None, tried: Tries) -> Tries | None:
    """Return the count without one try, which came to nothing through no fault of the command; None if another command's is known."""
    if known is None or (known.incarnation, known.sequence) != (tried.incarnation, tried.sequence):
        return None
    return Tries(known.incarnation, known.sequence, max(0, known.count - 1))


def explain_poison(tries: Tries, last: Reply | None, *, has_stand_in: bool = False) -> Grave | None:
    """Return why a command that is not settled is given up instead of being begun for the `tries.count`th time; None if it may be.

    Args:
        last: the answer to the try before, if it was heard.
        has_stand_in: another one that waits stands for the same wish, so this one holds nobody up once it has failed.
    """
    if last is not None and judge(last) == "unfit":
        return Grave(last.reason, last.message)
    if last is not None and has_stand_in:
        return Grave(last.reason, f"it failed, and a later tick of its reminder waits: {last.message}")
    if tries.count <= TRIES_MAX:
        return None
    if last is None:
        return Grave("Unsettled", f"it was begun {TRIES_MAX} times without an answer; running it may end the process")
    return Grave(last.reason, f"it failed {TRIES_MAX} times: {last.message}")


def has_stand_in(tick: Tick | None, later: Sequence[DurableCommand | InvalidEnvelope]) -> bool:
    """Tell whether a later tick of the same recurring reminder waits, so that one that always fails cannot keep all others waiting."""
    return tick is not None and tick.recurring and is_followed(tick, later)


def share_ahead(actors: int) -> int:
    """Return how many bytes one of so many actors reads ahead."""
    return max(AHEAD_BYTES_LEAST, min(AHEAD_BYTES_MOST, AHEAD_BYTES_MAX // max(1, actors)))


def is_all(messages: Sequence[StoredMessage], max_bytes: int) -> bool:
    """Tell whether what was read with that bound is all that waited: a batch ends at its bytes or at their number."""
    return len(messages) < READ_AHEAD and count_bytes(messages) < max_bytes


def count_bytes(messages: Sequence[StoredMessage]) -> int:
    """Return how many bytes messages have."""
    return sum(len(message.raw_headers) + len(message.payload) for message in messages)


def repeat_after_s(count: int) -> float:
    """Return how long to wait before try `count`."""
    return REPEAT_FIRST_S * 2.0 ** max(0, count - 2)
