"""Durable commands on the wire: what an actor's inbox holds, and what a dead letter says.

A message of an inbox is a command that will be run, whenever its actor runs: it carries the headers of a command, the
command's name (its subject has no room for it) and no deadline. A tick of a reminder is one that the server wrote: it copies
the schedule's headers, so a schedule carries what its ticks need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import msgspec

from aether_api import headers
from aether_api.errors import InvalidEnvelope, InvalidName
from aether_api.identity import ActorId, CommandId, check_member
from aether_api.messages import COMMAND_ID_LENGTH_MAX, Command, format_time, parse_command, parse_time

Missed = Literal["late", "collapse", "skip"]
"""What becomes of ticks that waited: each runs, however late; of several the last runs; one that is too late does not run."""

NEVER_S: Final = 1e9
"""Seconds that a durable command waits, thirty years: nobody waits for its answer. Finite, so that one can count back from its deadline."""

DEAD_MESSAGE_LENGTH_MAX: Final = 1000
"""Characters of an explanation in a header: a line for a person, not a traceback."""

DEAD_MESSAGE_LENGTH_SHORT: Final = 100
"""Characters of an explanation where a dead letter does not fit into a message otherwise."""

DEAD_VALUE_LENGTH_MAX: Final = 256
"""Characters of a header there: as many as the id of a command or a name may have; only what never was a command has more."""

_RETRIED: Final = (headers.COMMAND, headers.COMMAND_NAME, headers.TIME, headers.EXPECTED_VERSION)
"""Headers without which a retry would be another command."""


class InboxPosition(msgspec.Struct, frozen=True, gc=False):
    """How far an actor has come in its inbox; commits carry it.

    Attributes:
        incarnation: of the stream, in which alone the sequence means something.
        sequence: of the last message that is settled; 0 before the first.
    """

    incarnation: int = 0
    sequence: int = 0

    def __str__(self) -> str:
        return f"{self.incarnation}:{self.sequence}"

    def within(self, incarnation: int) -> int:
        """Return the sequence after which an actor reads on in a stream."""
        return self.sequence if self.incarnation == incarnation else 0

    def covers(self, other: InboxPosition) -> bool:
        """Tell whether the message at another position is settled."""
        return other.sequence <= self.within(other.incarnation)


NO_INBOX: Final = InboxPosition()
"""The position of an actor that never had a durable command, and of a command that is none."""


class Tick(msgspec.Struct, frozen=True):
    """What makes a message of an inbox a tick of a reminder.

    Attributes:
        token: names the commit that set the reminder; another one than the actor knows is a reminder that is no more.
        due: when it should have come, RFC 3339.
        recurring: more ticks follow under the same token.
    """

    name: str
    token: str
    missed: Missed
    due: str
    recurring: bool


class DurableCommand(msgspec.Struct, frozen=True):
    """A message of an inbox.

    Attributes:
        sequence: where it stands in the stream; the order in which an actor runs its durable commands.
        tick: None for a command that somebody sent.
    """

    sequence: int
    command: Command
    tick: Tick | None = None


class DeadLetter(msgspec.Struct, frozen=True):
    """A durable command that was given up, as people see it.

    Attributes:
        sequence: names it, for a retry or to drop it.
        time: when it was given up, RFC 3339.
        lost_bytes: of its payload, where that did not fit into a message beside the reason and is lost; it cannot be retried then.
    """

    sequence: int
    command: str
    command_id: str
    reason: str
    message: str
    time: str
    payload: str
    lost_bytes: int = 0


def build_durable_headers(command: Command) -> bytes:
    """Return the header lines of a durable command; the server drops a repeat of its id for two minutes.

    The server knows ids of a whole stream, in which all actors of a namespace have their inboxes; ours are an actor's own.

    Raises:
        InvalidEnvelope: it is a dry run, or its id would forge a header.
    """
    if command.dry_run:
        raise InvalidEnvelope("a dry run has no effect to be durable; send it without")
    if not 1 <= len(command.id) <= COMMAND_ID_LENGTH_MAX:
        raise InvalidEnvelope(f"the id of a command must have 1 to {COMMAND_ID_LENGTH_MAX} characters, not {len(command.id)}")
    lines = {
        headers.MESSAGE_ID: f"{command.actor.model}/{command.actor.id}/{command.id}",
        headers.COMMAND: str(command.id),
        headers.COMMAND_NAME: command.name,
        headers.TIME: command.time,
    }
    if command.expected_version is not None:
        lines[headers.EXPECTED_VERSION] = str(command.expected_version)
    if command.traceparent:
        lines[headers.TRACEPARENT] = command.traceparent
    return headers.encode_headers(lines)


def parse_durable(actor: ActorId, position: InboxPosition, raw_headers: bytes, payload: bytes, *, stored: str) -> DurableCommand:
    """Read a message of an inbox.

    Args:
        position: of the message; names a command without an id. The incarnation belongs to it: the sequences of a stream that was made anew
            are those of other commands. (Ids of earlier builds lacked it. What ran under one does not run again under the new one: its commit holds its position, too.)
        stored: when the server stored it, RFC 3339: the time of a command that has none.

    Raises:
        InvalidEnvelope: it is no command; it never will be one.
    """
    found = headers.decode_headers(raw_headers)
    stored_s = parse_time(stored).timestamp()
    try:
        name = check_member("command", found.get(headers.COMMAND_NAME, ""))
        tick = _parse_tick(found, format_time(stored_s))
    except InvalidName as exc:
        raise InvalidEnvelope(f"headers {headers.COMMAND_NAME} or {headers.REMINDER} name nothing: {exc}") from exc
    place = f"{position.incarnation}.{position.sequence}"
    id = f"inbox:{place}" if tick is None else _name_tick(tick, found, place)
    command = parse_command(actor, name, raw_headers, payload, now_s=stored_s, fresh_id=lambda: id)
    if command.dry_run:
        raise InvalidEnvelope("a dry run cannot be durable")
    if tick is not None:
        due_s = parse_time(tick.due).timestamp()
        command = msgspec.structs.replace(command, id=CommandId(id), time=tick.due, unix_s=due_s)
    return DurableCommand(position.sequence, msgspec.structs.replace(command, timeout_s=NEVER_S), tick)


def parse_inbox_position(text: str) -> InboxPosition:
    """Read the position that a commit carries.

    Raises:
        InvalidEnvelope: it is not `incarnation:sequence`.
    """
    first, _, second = text.partition(":")
    incarnation, sequence = headers.parse_count(first), headers.parse_count(second)
    if incarnation is None or sequence is None:
        raise InvalidEnvelope(f"header {headers.INBOX} must be INCARNATION:SEQUENCE, not {text!r}")
    return InboxPosition(incarnation, sequence)


def parse_missed(text: str) -> Missed | None:
    """Return the policy of that name, or None."""
    match text:
        case "late" | "collapse" | "skip":
            return text
        case _:
            return None


def build_dead_headers(raw_headers: bytes, sequence: int, reason: str, message: str) -> bytes:
    """Return the header lines of a dead letter: the command's own, and why it was given up.

    Args:
        sequence: of the message in the inbox; a repeat of the burial is dropped by the server.
    """
    return _encode_dead(_read_own(raw_headers), sequence, reason, _shorten(message, DEAD_MESSAGE_LENGTH_MAX))


def build_dead_forms(raw_headers: bytes, payload: bytes, sequence: int, reason: str, message: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield headers and payload of a dead letter, whole and then ever shorter: the first that the server takes is to be kept.

    The message in the inbox may be as long as any may be, and what explains it comes on top.
    """
    yield build_dead_headers(raw_headers, sequence, reason, message), payload
    own, short = _read_own(raw_headers), _shorten(message, DEAD_MESSAGE_LENGTH_SHORT)
    yield _encode_dead(own, sequence, reason, short), payload
    own = {name: value[:DEAD_VALUE_LENGTH_MAX] for name, value in own.items() if name in _RETRIED}
    yield _encode_dead(own, sequence, reason, short), payload
    if payload:
        told = f"{short} (its payload of {len(payload)} bytes did not fit beside this and is lost)"
        yield _encode_dead({**own, headers.DEAD_LOST_BYTES: str(len(payload))}, sequence, reason, told), b""


def _read_own(raw_headers: bytes) -> dict[str, str]:
    """Return the headers of a message that its dead letter keeps."""
    try:
        found = headers.decode_headers(raw_headers)
    except InvalidEnvelope:
        return {}
    return {name: _join_lines(value) for name, value in found.items() if (name.startswith("Aether-") and name.isprintable()) or name == headers.TRACEPARENT}


def _encode_dead(own: dict[str, str], sequence: int, reason: str, explanation: str) -> bytes:
    return headers.encode_headers({**own, headers.MESSAGE_ID: f"dead:{sequence}", headers.DEAD_REASON: reason, headers.DEAD_MESSAGE: explanation})


def _shorten(message: str, length: int) -> str:
    return " ".join(message.split())[:length]


def _join_lines(value: str) -> str:
    """Return a value as a header can hold it: what a stranger wrote must not keep a message from its grave."""
    return value.replace("\r", " ").replace("\n", " ")


def build_retry_headers(raw_headers: bytes, sequence: int) -> bytes:
    """Return the header lines with which a dead letter goes back into the inbox.

    The reminder that a dead tick came from may be long gone; what comes back is an ordinary command.

    Raises:
        InvalidEnvelope: its payload is lost.
    """
    found = headers.decode_headers(raw_headers)
    lost = headers.parse_count(found.get(headers.DEAD_LOST_BYTES, ""))
    if lost:
        raise InvalidEnvelope(
            f"the payload of dead letter {sequence}, {lost} bytes, did not fit beside the reason and is lost; send the command again, smaller, then drop the letter"
        )
    gone = (headers.DEAD_REASON, headers.DEAD_MESSAGE, headers.REMINDER, headers.MISSED, headers.DUE)
    lines = {name: value for name, value in found.items() if (name.startswith("Aether-") or name == headers.TRACEPARENT) and name not in gone}
    return headers.encode_headers({**lines, headers.MESSAGE_ID: f"retry:{sequence}"})


def read_dead_letter(sequence: int, raw_headers: bytes, payload: bytes, *, stored: str) -> DeadLetter:
    """Show a message of a dead subject; whatever it holds."""
    found = headers.decode_headers(raw_headers)
    return DeadLetter(
        sequence,
        found.get(headers.COMMAND_NAME, ""),
        found.get(headers.COMMAND, ""),
        found.get(headers.DEAD_REASON, ""),
        found.get(headers.DEAD_MESSAGE, ""),
        stored,
        payload.decode(errors="replace"),
        headers.parse_count(found.get(headers.DEAD_LOST_BYTES, "")) or 0,
    )


def _name_tick(tick: Tick, found: Mapping[str, str], place: str) -> str:
    """Return the id of a tick's command, the same for a tick that the server makes twice.

    A server that is killed forgets up to two minutes of what its recurring schedules have done, and makes their last tick again when it starts. Both name the same next one.
    """
    if not tick.recurring:
        return f"{tick.name}:{tick.token}"
    try:
        return f"{tick.name}:{tick.token}:{format_time(parse_time(found[headers.SCHEDULE_NEXT]).timestamp())}"
    except (KeyError, InvalidEnvelope):
        return f"{tick.name}:{place}"


def _parse_tick(found: dict[str, str], stored: str) -> Tick | None:
    reminder = found.get(headers.REMINDER)
    if reminder is None:
        return None
    name, colon, token = reminder.partition(":")
    policy = parse_missed(found.get(headers.MISSED, "late"))
    if not colon or not token or policy is None:
        raise InvalidEnvelope(f"headers {headers.REMINDER} and {headers.MISSED} are not those of a tick")
    due = found.get(headers.DUE)
    if due is not None:
        parse_time(due)
    return Tick(check_member("reminder", name), token, policy, due or stored, recurring=due is None)
