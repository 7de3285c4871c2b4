"""`aether history MODEL/ID`: the events of an actor as the log holds them, one JSON object a line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import msgspec
import uvloop

from aether_api.envelope import Event
from aether_api.errors import AetherError
from aether_cli.link import add_link_options, open_link, parse_actor


def run(arguments: Sequence[str]) -> int:
    """Print the events; the exit code is 1 when the log cannot be read."""
    parser = argparse.ArgumentParser(prog="aether history", description="Print an actor's events from JetStream, oldest first, one JSON object a line.")
    parser.add_argument("actor", metavar="MODEL/ID", help="the actor, such as account/alice")
    add_link_options(parser)
    options = parser.parse_args(arguments)
    try:
        events = uvloop.run(_read(options))
    except AetherError as exc:
        print(f"aether history: {exc}", file=sys.stderr)
        return 1
    if not events:
        print(f"aether history: {options.actor} has no events in namespace {options.namespace}", file=sys.stderr)
    for event in events:
        print(msgspec.json.encode(event).decode())
    return 0


async def _read(options: argparse.Namespace) -> list[Event]:
    from aether_nats.jetstream import JetStream
    from aether_nats.journal import Journal
    from aether_nats.streams import read_layout

    actor = parse_actor(options.namespace, options.actor)
    async with open_link(options) as connection:
        layout = await read_layout(connection, options.namespace)
        if layout is None:
            return []
        journal = Journal(JetStream(connection), layout.partitions)
        head = await journal.read_head(actor)
        if head is None:
            return []
        return [event async for commits in journal.read_commits(actor, head) for commit in commits for event in commit.events()]
