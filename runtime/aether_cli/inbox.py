"""`aether inbox [MODEL/ID]`: what waits: durable commands and reminders of one actor, or how much waits for whom."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Final

import orjson
import uvloop

from aether_api.durable import InboxPosition, parse_durable
from aether_api.errors import AetherError, InvalidEnvelope
from aether_api.identity import ActorId
from aether_cli.link import EXIT_CODES, add_link_options, explain, open_link, parse_actor, read_options
from aether_cli.output import write_line
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StoredMessage
from aether_nats.schedules import Reminder, Schedules

SHOWN_MAX: Final = 1000
"""Commands of one inbox that are listed: nobody reads more, that there are more is told, and the backlog tells the number."""

Line = dict[str, object]


def run(arguments: Sequence[str]) -> int:
    """Print what waits, one JSON object a line; the exit code is 1 when it cannot be read."""
    parser = argparse.ArgumentParser(
        prog="aether inbox",
        description=f"Print the durable commands that wait for an actor, and its reminders; without an actor, how many wait for whom. One JSON object a line. {EXIT_CODES}",
    )
    parser.add_argument("actor", nargs="?", metavar="MODEL/ID", help="the actor, such as account/alice (default: all actors)")
    add_link_options(parser)
    options = read_options(parser, arguments)
    try:
        lines = uvloop.run(_read(options))
    except AetherError as exc:
        print(f"aether inbox: {explain(exc, options)}", file=sys.stderr)
        return 1
    if not lines:
        print(f"aether inbox: nothing waits for {options.actor or 'any actor'} in namespace {options.namespace}", file=sys.stderr)
    for line in lines:
        write_line(orjson.dumps(line).decode())
    return 0


async def _read(options: argparse.Namespace) -> list[Line]:
    actor = parse_actor(options.namespace, options.actor) if options.actor else None
    async with open_link(options) as connection:
        js = JetStream(connection)
        inbox = Inbox(js, options.namespace)
        if actor is None:
            return [{"actor": f"{found.model}/{found.id}", "waiting": count} for found, count in sorted((await inbox.read_backlog()).items())]
        waiting = await _read_waiting(inbox, actor)
        if len(waiting) > SHOWN_MAX:
            print(f"aether inbox: the first {SHOWN_MAX} durable commands are shown, more wait", file=sys.stderr)
        incarnation = (await inbox.read_end()).incarnation if waiting else 0
        return [_show_command(actor, incarnation, message) for message in waiting[:SHOWN_MAX]] + list(_show_reminders(await Schedules(js).read_all(actor)))


async def _read_waiting(inbox: Inbox, actor: ActorId) -> list[StoredMessage]:
    found: list[StoredMessage] = []
    while len(found) <= SHOWN_MAX and (page := await inbox.read_next(actor, found[-1].sequence if found else 0)):
        found += page
    return found


def _show_command(actor: ActorId, incarnation: int, message: StoredMessage) -> Line:
    """Return a line for a message of an inbox, whatever it holds."""
    line: Line = {"sequence": message.sequence, "time": message.time}
    try:
        command = parse_durable(actor, InboxPosition(incarnation, message.sequence), message.raw_headers, message.payload, stored=message.time)
    except InvalidEnvelope as exc:
        return {**line, "invalid": str(exc)}
    line |= {"command": command.command.name, "id": command.command.id, "payload": command.command.payload.decode(errors="replace")}
    return line if command.tick is None else {**line, "reminder": command.tick.name, "due": command.tick.due}


def _show_reminders(schedules: Iterable[tuple[Reminder, str]]) -> Iterable[Line]:
    for reminder, _ in schedules:
        line: Line = {"reminder": reminder.name, "command": reminder.command, "schedule": reminder.text, "missed": reminder.missed}
        yield {**line, **({"zone": reminder.zone} if reminder.zone else {}), "payload": reminder.payload.decode(errors="replace")}
