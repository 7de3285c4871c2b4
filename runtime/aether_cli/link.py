"""Options and the connection that the sub-commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from aether_api.errors import AetherError, InvalidName, NoResponders, StreamUnavailable
from aether_api.identity import ActorId, parse_actor_id
from aether_nats.connection import NatsConnection
from aether_nats.settings import NatsSettings


def add_link_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where NATS is and which namespace is meant."""
    parser.add_argument("--nats", default=os.environ.get("AETHER_NATS_URL", "nats://127.0.0.1:4222"), metavar="URL", help="NATS server (or AETHER_NATS_URL)")
    parser.add_argument("--credentials", type=Path, default=None, metavar="FILE", help="NATS credentials file")
    parser.add_argument("-n", "--namespace", default=os.environ.get("AETHER_NAMESPACE", "default"), help="namespace of the actor (or AETHER_NAMESPACE)")


@asynccontextmanager
async def open_link(options: argparse.Namespace) -> AsyncGenerator[NatsConnection]:
    """Connect for the length of a `with` block."""
    connection = await NatsConnection.open(NatsSettings(tuple(options.nats.split(",")), "aether", credentials_path=options.credentials))
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
