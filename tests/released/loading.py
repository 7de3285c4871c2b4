"""Puts what a release left behind into a real server, so that today's code finds it where the release had it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from aether_api.headers import EXPECTED_SEQUENCE, FIRST_LINE, decode_headers
from aether_api.v1alpha1 import ActorModel
from aether_nats.connection import NatsConnection
from aether_nats.jetstream import JetStream
from tests.released.recording import FOLDER, Recorded, read_messages

FILLER: Final = "aether.default.evt.{}.filler.filler"
"""Subject of what stands where a release had purged something: sequences are part of what it stored."""


def read_expected(version: str) -> dict[str, Any]:
    """Return what a release said of its actors."""
    found: dict[str, Any] = json.loads((FOLDER / version / "expected.json").read_text())
    return found


@contextmanager
def released_models(version: str) -> Iterator[list[ActorModel]]:
    """Yield the models of a release; modules that they name can be imported for the length of the `with` block."""
    folder = str(FOLDER / version / "models")
    sys.path.insert(0, folder)
    try:
        yield [ActorModel.model_validate(yaml.safe_load(path.read_text())) for path in sorted(Path(folder).glob("*.yaml"))]
    finally:
        sys.path.remove(folder)


async def load_release(connection: NatsConnection, version: str) -> None:
    """Make the streams as the release had them, with every message at its sequence."""
    js = JetStream(connection)
    messages = read_messages(FOLDER / version / "messages.jsonl")
    for config in json.loads((FOLDER / version / "streams.json").read_text()):
        answer = json.loads((await connection.request(f"$JS.API.STREAM.CREATE.{config['name']}", json.dumps(config).encode())).payload)
        assert "error" not in answer, answer
        await _load_stream(js, config["name"], [message for message in messages if message.stream == config["name"]])


async def _load_stream(js: JetStream, stream: str, messages: Sequence[Recorded]) -> None:
    is_log = "_EVT_" in stream
    owners = _find_owners(messages)
    fillers: set[str] = set()
    next_sequence = 1
    for message in messages:
        while is_log and next_sequence < message.sequence:
            subject = owners.get(next_sequence, FILLER.format(stream.rpartition("_")[2]))
            await js.publish(subject, b"")
            fillers.add(subject)
            next_sequence += 1
        ack = await js.publish(message.subject, message.payload, message.headers.removeprefix(FIRST_LINE + b"\r\n").removesuffix(b"\r\n"))
        assert ack.sequence == message.sequence or not is_log
        next_sequence = ack.sequence + 1
    for subject in fillers:
        first = min((message.sequence for message in messages if message.subject == subject), default=0)
        await js.purge(stream, subject, before_sequence=first)


def _find_owners(messages: Sequence[Recorded]) -> dict[int, str]:
    """Return whose message stood at a sequence that a later one names as the one before it."""
    return {int(decode_headers(message.headers).get(EXPECTED_SEQUENCE, "0")): message.subject for message in messages}
