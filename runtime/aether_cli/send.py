"""`aether send MODEL/ID COMMAND [--set field=value ...]`: one command, one reply."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import orjson
import uvloop

from aether_api.errors import AetherError
from aether_api.messages import Reply, encode_reply
from aether_cli.link import add_link_options, explain, open_link, parse_actor

if TYPE_CHECKING:
    from aether_nats.client import DurableReceipt

EXIT_BY_OUTCOME = {"accepted": 0, "noop": 0, "rejected": 3, "error": 1}
"""Exit codes, so that scripts can tell a refusal by the model from a failure."""


def run(arguments: Sequence[str]) -> int:
    """Send a command; the exit code is 0 accepted or no-op, 3 rejected, 1 error, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="aether send", description="Send a command to an actor. Exit code: 0 accepted or no-op, 3 rejected, 1 error.")
    parser.add_argument("actor", metavar="MODEL/ID", help="the actor, such as account/alice")
    parser.add_argument("command", metavar="COMMAND", help="name of the command, such as Deposit")
    parser.add_argument("--set", action="append", type=_parse_field, default=[], metavar="FIELD=VALUE", help="a field of the command; VALUE is JSON, or else text")
    parser.add_argument("--id", help="command id; repeat a command with its id and it takes effect once")
    parser.add_argument("--expect-version", type=int, help="refuse unless the actor is at this version")
    parser.add_argument("--dry-run", action="store_true", help="show what would be stored, store nothing")
    parser.add_argument("--durable", action="store_true", help="store the command in the actor's inbox, where it waits until the actor can run it; prints where it waits")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="how long the command may take (default: 10)")
    add_link_options(parser)
    options = parser.parse_args(arguments)
    if options.durable and options.dry_run:
        parser.error("--dry-run has no effect that could be --durable")
    try:
        if options.durable:
            print(orjson.dumps(msgspec.to_builtins(uvloop.run(_store(options))), option=orjson.OPT_INDENT_2).decode())
            return 0
        reply = uvloop.run(_send(options))
    except AetherError as exc:
        print(f"aether send: {explain(exc, options)}", file=sys.stderr)
        return 1
    print(orjson.dumps(orjson.loads(encode_reply(reply)), option=orjson.OPT_INDENT_2).decode())
    return EXIT_BY_OUTCOME[reply.outcome]


async def _send(options: argparse.Namespace) -> Reply:
    from aether_nats.client import CommandClient

    actor = parse_actor(options.namespace, options.actor)
    async with open_link(options) as connection:
        return await CommandClient(connection).send(
            actor,
            options.command,
            dict(options.set),
            command_id=options.id,
            timeout_s=options.timeout,
            expected_version=options.expect_version,
            dry_run=options.dry_run,
        )


async def _store(options: argparse.Namespace) -> DurableReceipt:
    from aether_nats.client import CommandClient

    actor = parse_actor(options.namespace, options.actor)
    async with open_link(options) as connection:
        return await CommandClient(connection).send_durable(
            actor, options.command, dict(options.set), command_id=options.id, timeout_s=options.timeout, expected_version=options.expect_version
        )


def _parse_field(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE, such as amount=100")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value
