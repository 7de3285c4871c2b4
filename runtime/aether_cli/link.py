"""Options and the connection that the sub-commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aether_api.errors import AetherError, InvalidName, NoResponders, SettingsInvalid, StreamUnavailable
from aether_api.identity import ActorId, check_name, parse_actor_id
from aether_nats.connection import NatsConnection
from aether_nats.settings import CONNECT_TIMEOUT_S, NatsSettings

EXIT_CODES: Final = "Exit code: 0 done, 1 failed, 2 wrong usage (also wrong names and URLs)."
"""What the help of each sub-command says of them."""


def add_link_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where NATS is and which namespace is meant."""
    parser.add_argument("--nats", default=os.environ.get("AETHER_NATS_URL", "nats://127.0.0.1:4222"), metavar="URL", help="NATS server (or AETHER_NATS_URL)")
    parser.add_argument("--credentials", type=Path, default=None, metavar="FILE", help="NATS credentials file")
    parser.add_argument("-n", "--namespace", default=os.environ.get("AETHER_NAMESPACE", "default"), help="namespace of the actor (or AETHER_NAMESPACE)")


def read_options(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse arguments, whose names and URLs can then be used; what is wrong with them ends the process as argparse does, with exit code 2."""
    options = parser.parse_args(arguments)
    try:
        build_settings(options)
        check_name("namespace", options.namespace)
        if options.actor is not None:
            parse_actor(options.namespace, options.actor)
    except (InvalidName, SettingsInvalid) as exc:
        parser.error(str(exc))
    return options


def build_settings(options: argparse.Namespace, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> NatsSettings:
    """Return how NATS is reached, or raise `SettingsInvalid`."""
    return NatsSettings(tuple(options.nats.split(",")), "aether", credentials_path=options.credentials, connect_timeout_s=connect_timeout_s)


@asynccontextmanager
async def open_link(options: argparse.Namespace, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> AsyncGenerator[NatsConnection]:
    """Connect for the length of a `with` block."""
    connection = await NatsConnection.open(build_settings(options, connect_timeout_s))
    try:
        yield connection
    finally:
        await connection.close()


def explain(error: AetherError, options: argparse.Namespace) -> str:
    """Return what an error tells a person, with the way out where nobody serves the namespace."""
    namespace = options.namespace
    way = f"start one (`aether runtime --folder FOLDER --namespace {namespace}`), or check --namespace and --nats"
    if isinstance(error, NoResponders):
        return f"no runtime serves namespace {namespace}; {way}"
    if isinstance(error, StreamUnavailable):
        return f"nothing is kept for namespace {namespace} now; if no runtime has served it yet, {way} ({error})"
    return str(error)


def parse_actor(namespace: str, text: str) -> ActorId:
    """Read `MODEL/ID`, or raise `InvalidName`."""
    model, slash, id = text.partition("/")
    if not slash:
        raise InvalidName(f"{text!r} names no actor; write MODEL/ID, such as account/alice")
    return parse_actor_id(namespace, model, id)
