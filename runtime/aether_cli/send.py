"""`aether send MODEL/ID COMMAND [--set field=value ...]`: one command, one reply."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import orjson
import uvloop

from aether_api.errors import AetherError, InvalidEnvelope, InvalidName, OutcomeUnknown, Reason
from aether_api.messages import Reply, build_command, choose_command_id, encode_reply
from aether_cli.link import EXIT_CODES, add_link_options, explain, open_link, parse_actor, read_options
from aether_cli.main import EXIT_INTERRUPTED
from aether_cli.output import OutputLost, flush, tell, write_line
from aether_nats.settings import CONNECT_TIMEOUT_S

if TYPE_CHECKING:
    from aether_nats.client import CommandClient, DurableReceipt

EXIT_BY_OUTCOME = {"accepted": 0, "noop": 0, "rejected": 3, "error": 1}
"""Exit codes, so that scripts can tell a refusal by the model from a failure."""

EXIT_CODES_SEND: Final = "Done is a command that was accepted, is a no-op or, with --durable, is stored; 3: the model or a precondition rejected it."
"""What its help says of them besides."""

TIMEOUT_LEAST_S: Final = 0.001
"""Seconds that a command has at least, if connecting took all of them but the last moment."""


@dataclass(slots=True)
class _Sending:
    """A command, from its id on; what becomes of it is told, however that ends.

    Attributes:
        is_out: whether it may have been sent, so that only an answer tells its outcome.
    """

    options: argparse.Namespace
    deadline: float
    is_out: bool = False

    async def send(self) -> Reply:
        """Send it and return the reply."""
        options = self.options
        async with self._open_client() as client:
            return await client.send(
                parse_actor(options.namespace, options.actor),
                options.command,
                dict(options.set),
                command_id=options.id,
                timeout_s=self._remaining_s(),
                expected_version=options.expect_version,
                dry_run=options.dry_run,
            )

    async def store(self) -> DurableReceipt:
        """Store it in the actor's inbox."""
        options = self.options
        async with self._open_client() as client:
            actor = parse_actor(options.namespace, options.actor)
            return await client.send_durable(
                actor, options.command, dict(options.set), command_id=options.id, timeout_s=self._remaining_s(), expected_version=options.expect_version
            )

    @asynccontextmanager
    async def _open_client(self) -> AsyncGenerator[CommandClient]:
        from aether_nats.client import CommandClient

        async with open_link(self.options, min(CONNECT_TIMEOUT_S, self.options.timeout)) as connection:
            self.is_out = True
            yield CommandClient(connection)

    def _remaining_s(self) -> float:
        return max(TIMEOUT_LEAST_S, self.deadline - time.monotonic())

    def report(self, answer: object, summary: str) -> None:
        """Print an answer; where that cannot be, tell at least its summary."""
        try:
            write_line(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())
            flush()
        except OutputLost:
            tell(f"aether send: command {self.options.id}: {summary}")
            raise

    def tell_unknown(self, why: str) -> None:
        """Say what to do where nobody knows whether the command has taken effect."""
        tell(f"aether send: the outcome of command {self.options.id} is unknown; send it again with --id {shlex.quote(self.options.id)} ({why})")


def run(arguments: Sequence[str]) -> int:
    """Send a command; the exit code is 0 accepted or no-op, 3 rejected, 1 error, 2 wrong usage, 130 interrupted."""
    options = _read_options(arguments)
    sending = _Sending(options, time.monotonic() + options.timeout)
    try:
        return _store(sending) if options.durable else _send(sending)
    except OutcomeUnknown as exc:
        sending.tell_unknown(str(exc.__cause__))
        return 1
    except AetherError as exc:
        tell(f"aether send: {explain(exc, options)}")
        return 1
    except KeyboardInterrupt:
        if sending.is_out:
            sending.tell_unknown("interrupted")
        else:
            tell("aether send: interrupted; the command was not sent")
        return EXIT_INTERRUPTED


def _read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments and check what can be checked without asking anybody."""
    parser = argparse.ArgumentParser(prog="aether send", description=f"Send a command to an actor. {EXIT_CODES} {EXIT_CODES_SEND}")
    parser.add_argument("actor", metavar="MODEL/ID", help="the actor, such as account/alice")
    parser.add_argument("command", metavar="COMMAND", help="name of the command, such as Deposit")
    parser.add_argument("--set", action="append", type=_parse_field, default=[], metavar="FIELD=VALUE", help="a field of the command; VALUE is JSON, or else text")
    parser.add_argument("--id", help="command id; repeat a command with its id and it takes effect once (default: a fresh one, which is told where the outcome is unknown)")
    parser.add_argument("--expect-version", type=int, help="refuse unless the actor is at this version")
    parser.add_argument("--dry-run", action="store_true", help="show what would be stored, store nothing")
    parser.add_argument("--durable", action="store_true", help="store the command in the actor's inbox, where it waits until the actor can run it; prints where it waits")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="how long the command may take, connecting included (default: 10)")
    add_link_options(parser)
    options = read_options(parser, arguments)
    if options.durable and options.dry_run:
        parser.error("--dry-run has no effect that could be --durable")
    options.id = choose_command_id(options.id)
    try:
        _check_command(options)
    except (InvalidName, InvalidEnvelope) as exc:
        parser.error(str(exc))
    return options


def _check_command(options: argparse.Namespace) -> None:
    actor = parse_actor(options.namespace, options.actor)
    build_command(actor, options.command, dict(options.set), command_id=options.id, now_s=0.0, timeout_s=options.timeout, expected_version=options.expect_version)


def _send(sending: _Sending) -> int:
    reply = uvloop.run(sending.send())
    why = f" ({reply.reason}: {reply.message})" if reply.reason else ""
    sending.report(orjson.loads(encode_reply(reply)), f"{reply.outcome} at version {reply.version}{why}")
    if reply.reason == Reason.UNKNOWN:
        sending.tell_unknown(reply.message)
    return EXIT_BY_OUTCOME[reply.outcome]


def _store(sending: _Sending) -> int:
    receipt = uvloop.run(sending.store())
    sending.report(msgspec.to_builtins(receipt), f"waits in the inbox as {receipt.sequence}")
    return 0


def _parse_field(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE, such as amount=100")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value
