"""Reminders as the server keeps them: one message for each, which the server turns into a message of the actor's inbox when it is due.

The server (2.12 and later) does the waiting, so a reminder survives every restart and costs nothing until it is due. A
schedule is addressed by the reminder's name and by a token of the commit that sets it: a schedule that is made before its
commit can then never replace one that is in force.

What the server takes was found by trying nats-server 2.15: cron texts have six fields, seconds first (`0 30 9 * * MON-FRI`);
`@hourly`, `@daily` and the like work, days of the week are 0 to 6 or names, `@every` takes whole seconds from `1s` on. What
came due while the server was down fires at its start, of a recurring one a single tick; one that was killed may make its last tick
again, since what schedules have done is written down every two minutes (2.15).
"""

from __future__ import annotations

import msgspec

from aether_api import headers
from aether_api.durable import Missed, parse_missed
from aether_api.errors import CommandFailed, JetStreamError
from aether_api.identity import ActorId
from aether_api.subjects import inbox_stream, inbox_subject, parse_reminder_subject, reminder_subject, reminder_wildcard
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import ERROR_BAD_SCHEDULE, ERROR_BAD_TIME_ZONE, ERRORS_TOO_LARGE, StoredMessage


class Reminder(msgspec.Struct, frozen=True):
    """A command that an actor is to get later.

    Attributes:
        text: the server's schedule: `@at <time>`, `@every <duration>` or a cron text.
        due: when a one-shot is due, RFC 3339; empty for a recurring one.
        zone: of a cron text, from the IANA database; empty is UTC.
    """

    name: str
    command: str
    payload: bytes
    text: str
    due: str = ""
    zone: str = ""
    missed: Missed = "late"


class Schedules:
    """Makes, ends and lists schedules; every call may be repeated."""

    def __init__(self, js: JetStream) -> None:
        self._js = js

    async def set(self, actor: ActorId, reminder: Reminder, token: str) -> None:
        """Make a schedule; its ticks come to the actor's inbox.

        Raises:
            CommandFailed: the server cannot read the schedule, or its stream finds it too long; the message says what it takes.
        """
        try:
            await self._js.publish(reminder_subject(actor, reminder.name, token), reminder.payload, build_schedule_headers(actor, reminder, token))
        except JetStreamError as exc:
            if exc.error_code == ERROR_BAD_SCHEDULE:
                raise CommandFailed(f"reminder {reminder.name}: the server cannot read {reminder.text!r}; write six fields, seconds first, such as 0 30 9 * * MON-FRI") from exc
            if exc.error_code == ERROR_BAD_TIME_ZONE:
                raise CommandFailed(f"reminder {reminder.name}: the server knows no time zone {reminder.zone!r}; use a name such as Europe/Berlin") from exc
            if exc.error_code in ERRORS_TOO_LARGE:
                raise CommandFailed(f"reminder {reminder.name}: it is longer than the stream of reminders takes (max_msg_size): {exc}") from exc
            raise

    async def cancel(self, actor: ActorId, name: str, token: str) -> None:
        """End a schedule; harmless if there is none."""
        await self._js.purge(inbox_stream(actor.namespace), reminder_subject(actor, name, token))

    async def read_all(self, actor: ActorId) -> list[tuple[Reminder, str]]:
        """List an actor's schedules with their tokens, also such as no commit stands behind."""
        return [_read_schedule(message) async for message in self._js.read_all(inbox_stream(actor.namespace), reminder_wildcard(actor))]


def build_schedule_headers(actor: ActorId, reminder: Reminder, token: str) -> bytes:
    """Return the header lines of a schedule; the server copies all but its own into each tick."""
    lines = {
        headers.SCHEDULE: reminder.text,
        headers.SCHEDULE_TARGET: inbox_subject(actor),
        headers.COMMAND_NAME: reminder.command,
        headers.REMINDER: f"{reminder.name}:{token}",
        headers.MISSED: reminder.missed,
    }
    if reminder.zone:
        lines[headers.SCHEDULE_ZONE] = reminder.zone
    if reminder.due:
        lines[headers.DUE] = reminder.due
    return headers.encode_headers(lines)


def _read_schedule(message: StoredMessage) -> tuple[Reminder, str]:
    _, name, token = parse_reminder_subject(message.subject)
    found = headers.decode_headers(message.raw_headers)
    return Reminder(
        name,
        found.get(headers.COMMAND_NAME, ""),
        message.payload,
        found.get(headers.SCHEDULE, ""),
        found.get(headers.DUE, ""),
        found.get(headers.SCHEDULE_ZONE, ""),
        parse_missed(found.get(headers.MISSED, "")) or "late",
    ), token
