"""`aether dead list|show|retry|drop MODEL/ID`: the durable commands of an actor that were given up."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import assert_never

import msgspec
import orjson
import uvloop

from aether_api.durable import DeadLetter
from aether_api.errors import AetherError, InvalidEnvelope
from aether_api.identity import ActorId
from aether_cli.link import EXIT_CODES, add_link_options, explain, open_link, parse_actor, read_options
from aether_cli.output import write_line
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream

HELP = {
    "list": "print the dead letters, oldest first, one JSON object a line",
    "show": "print one dead letter with its payload",
    "retry": "put dead letters behind what waits in the inbox, oldest first",
    "drop": "remove dead letters for good",
}


def run(arguments: Sequence[str]) -> int:
    """Do one thing with dead letters; the exit code is 1 when it cannot be done."""
    options = read_options(_build_parser(), arguments)
    try:
        lines = uvloop.run(_do(options))
    except AetherError as exc:
        print(f"aether dead: {explain(exc, options)}", file=sys.stderr)
        return 1
    if not lines:
        print(f"aether dead: {options.actor} has no dead letters in namespace {options.namespace}", file=sys.stderr)
    for line in lines:
        write_line(line)
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aether dead", description=f"Durable commands that were given up: look at them, run them again, or remove them. {EXIT_CODES}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|show|retry|drop")
    for verb, text in HELP.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        sub.add_argument("actor", metavar="MODEL/ID", help="the actor, such as account/alice")
        if verb == "show":
            sub.add_argument("sequence", type=int, metavar="SEQUENCE", help="number of the dead letter, as list prints it")
        elif verb != "list":
            which = sub.add_mutually_exclusive_group(required=True)
            which.add_argument("sequence", type=int, nargs="?", metavar="SEQUENCE", help="number of the dead letter, as list prints it")
            which.add_argument("--all", action="store_true", help="every dead letter of the actor")
        add_link_options(sub)
    return parser


async def _do(options: argparse.Namespace) -> list[str]:
    actor = parse_actor(options.namespace, options.actor)
    async with open_link(options) as connection:
        inbox = Inbox(JetStream(connection), options.namespace)
        shown = options.sequence if options.verb == "show" else 0
        letters = [letter if letter.sequence == shown else msgspec.structs.replace(letter, payload="") async for letter in inbox.read_each_dead(actor)]
        match options.verb:
            case "list":
                return [orjson.dumps({name: value for name, value in msgspec.structs.asdict(letter).items() if name != "payload"}).decode() for letter in letters]
            case "show":
                return [orjson.dumps(msgspec.structs.asdict(_choose(letters, actor, options.sequence)[0]), option=orjson.OPT_INDENT_2).decode()]
            case "retry":
                chosen = letters if options.all else _choose(letters, actor, options.sequence)
                return [await _retry(inbox, actor, letter, is_one_of_all=options.all) for letter in chosen]
            case "drop":
                chosen = letters if options.all else _choose(letters, actor, options.sequence)
                return [await _drop(inbox, actor, letter) for letter in chosen]
            case other:
                assert_never(other)


async def _retry(inbox: Inbox, actor: ActorId, letter: DeadLetter, *, is_one_of_all: bool) -> str:
    if is_one_of_all and letter.lost_bytes:
        return f"{letter.command or 'message'} {letter.sequence} stays: its payload of {letter.lost_bytes} bytes is lost"
    return f"{letter.command or 'message'} {letter.sequence} waits again as {await inbox.retry_dead(actor, letter.sequence)}"


async def _drop(inbox: Inbox, actor: ActorId, letter: DeadLetter) -> str:
    await inbox.drop_dead(actor, letter.sequence)
    return f"{letter.command or 'message'} {letter.sequence} is removed"


def _choose(letters: Sequence[DeadLetter], actor: ActorId, sequence: int) -> list[DeadLetter]:
    chosen = [letter for letter in letters if letter.sequence == sequence]
    if not chosen:
        raise InvalidEnvelope(f"{actor} has no dead letter {sequence}; `aether dead list` shows what there is")
    return chosen
