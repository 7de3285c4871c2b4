"""`aether history MODEL/ID`: the events of an actor as the log holds them, one JSON object a line.

It reads in batches, so the longest history needs no memory, and goes on behind what cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import msgspec
import uvloop

from aether_api.errors import AetherError, StreamUnavailable
from aether_cli.link import EXIT_CODES, add_link_options, explain, open_link, parse_actor, read_options
from aether_cli.output import write_line


def run(arguments: Sequence[str]) -> int:
    """Print the events, and to standard error what cannot be read; the exit code is 1 if there is any such thing, or nothing can be read at all."""
    parser = argparse.ArgumentParser(prog="aether history", description=f"Print an actor's events from JetStream, oldest first, one JSON object a line. {EXIT_CODES}")
    parser.add_argument("actor", metavar="MODEL/ID", help="the actor, such as account/alice")
    add_link_options(parser)
    options = read_options(parser, arguments)
    try:
        printed, unreadable = uvloop.run(_print_history(options))
    except AetherError as exc:
        print(f"aether history: {explain(exc, options)}", file=sys.stderr)
        return 1
    if not printed and not unreadable:
        print(f"aether history: {options.actor} has no events in namespace {options.namespace}", file=sys.stderr)
    return 1 if unreadable else 0


async def _print_history(options: argparse.Namespace) -> tuple[int, int]:
    """Print everything and return how many events there were, and how many things that are none."""
    from aether_nats.jetstream import JetStream
    from aether_nats.journal import Journal
    from aether_nats.streams import read_layout
    from aether_runtime.adapters.jetstream_snapshots import JetStreamSnapshotStore
    from aether_runtime.event_store import EventStore

    actor = parse_actor(options.namespace, options.actor)
    printed = unreadable = 0
    async with open_link(options) as connection:
        layout = await read_layout(connection, options.namespace)
        if layout is None:
            raise StreamUnavailable(f"namespace {options.namespace} has no streams")
        js = JetStream(connection)
        async for result in EventStore(Journal(js, layout.partitions), JetStreamSnapshotStore(js), options.namespace).read_results(actor):
            for event in result.events:
                write_line(msgspec.json.encode(event).decode())
            for error in result.errors:
                print(f"aether history: sequence {error.sequence} cannot be read: {error.reason}", file=sys.stderr)
            printed, unreadable = printed + len(result.events), unreadable + len(result.errors)
    return printed, unreadable
