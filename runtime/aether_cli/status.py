"""`aether status [MODEL/ID]`: what the pods do for an actor, or how they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import orjson
import uvloop

from aether_api.errors import AetherError
from aether_api.identity import ActorId
from aether_api.subjects import actor_status_subject, pods_status_subject
from aether_cli.link import EXIT_CODES, add_link_options, explain, open_link, parse_actor, read_options
from aether_cli.output import write_line
from aether_nats.pod_status import ask_pods

if TYPE_CHECKING:
    from aether_api.control import PodStatus
    from aether_nats.connection import NatsConnection

Line = dict[str, object]


def run(arguments: Sequence[str]) -> int:
    """Print what the pods say, one JSON object a line; the exit code is 1 when none can be asked."""
    parser = argparse.ArgumentParser(
        prog="aether status",
        description="Ask the runtime pods what they do for an actor, and the log what it holds; without an actor, how the pods are and which actors "
        f"they hold that are neither ready nor asleep. Wakes no actor. One JSON object a line. {EXIT_CODES}",
    )
    parser.add_argument("actor", nargs="?", metavar="MODEL/ID", help="the actor, such as account/alice (default: all pods)")
    add_link_options(parser)
    options = read_options(parser, arguments)
    try:
        lines = uvloop.run(_read(options))
    except AetherError as exc:
        print(f"aether status: {explain(exc, options)}", file=sys.stderr)
        return 1
    for line in lines:
        write_line(orjson.dumps(line).decode())
    if options.actor and not any("phase" in line for line in lines):
        print(f"aether status: no pod of namespace {options.namespace} holds {options.actor} now; if it may run, its next command activates it", file=sys.stderr)
    return 0


async def _read(options: argparse.Namespace) -> list[Line]:
    async with open_link(options) as connection:
        if not options.actor:
            answers = await ask_pods(connection, pods_status_subject(options.namespace))
            return [line for answer in answers for line in (_show_pod(answer), *_show_actors(answer))]
        actor = parse_actor(options.namespace, options.actor)
        log = await _read_log(connection, actor)
        answers = await ask_pods(connection, actor_status_subject(actor))
        return [*log, *(line for answer in answers for line in _show_actors(answer))]


async def _read_log(connection: NatsConnection, actor: ActorId) -> list[Line]:
    """Return what the actor's last commit says, if there is one."""
    from aether_nats.jetstream import JetStream
    from aether_nats.journal import Journal
    from aether_nats.streams import read_layout

    layout = await read_layout(connection, actor.namespace)
    head = None if layout is None else await Journal(JetStream(connection), layout.partitions).read_head(actor)
    if head is None:
        return []
    return [{"in": "log", "version": head.last_version, "sequence": head.sequence, "epoch": head.epoch, "writer": head.pod, "modelVersion": head.model}]


def _show_pod(answer: PodStatus) -> Line:
    line: Line = msgspec.to_builtins(answer)
    del line["actors"]
    return line


def _show_actors(answer: PodStatus) -> list[Line]:
    return [{"in": f"pod {answer.pod_name}", **msgspec.to_builtins(view)} for view in answer.actors]
