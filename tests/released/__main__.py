"""Writes what a release leaves behind: `python -m tests.released v1.2.3`, once, from the code that is released."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from tests.released.recording import FOLDER, Recorded, find_versions, write_messages
from tests.released.scenario import Scenario
from tests.released.schemas import read_schemas
from tests.released.wire import build_samples

STREAMS: Final = ("AETHER_default_EVT_0", "AETHER_default_EVT_1", "AETHER_default_INBOX", "AETHER_default_SNAP")


def main() -> int:
    """Write the folder of a release unless it is there."""
    parser = argparse.ArgumentParser(prog="python -m tests.released", description="write what a release leaves behind, to be replayed by every later build")
    parser.add_argument("version", help="such as v1.2.3")
    version: str = parser.parse_args().version
    folder = FOLDER / version
    if (folder / "messages.jsonl").exists():
        print(f"{folder} holds what {version} left behind, which nothing may change; name a new version", file=sys.stderr)
        return 1
    if not (folder / "models").exists():
        shutil.copytree(FOLDER / find_versions()[-1] / "models", folder / "models", ignore=shutil.ignore_patterns("__pycache__"))
    asyncio.run(_write(folder, version))
    return 0


async def _write(folder: Path, version: str) -> None:
    async with EmbeddedServer.start() as server:
        scenario = Scenario(server.url, version)
        snapshots: list[Recorded] = []
        async with scenario.connected() as connection:
            await scenario.run_first_edition()
            await scenario.run_everything(connection)
            snapshots += await _read_stream(connection, "AETHER_default_SNAP")
            await scenario.run_after_snapshots()
            await scenario.leave_waiting(connection)
            configs = [await _read_config(connection, stream) for stream in STREAMS]
            messages = [message for stream in STREAMS[:3] for message in await _read_stream(connection, stream)]
    write_messages(folder / "messages.jsonl", messages + snapshots)
    _write_json(folder / "streams.json", configs)
    _write_json(folder / "expected.json", scenario.expected)
    _write_json(folder / "wire.json", build_samples())
    fields = ",\n".join(f"{json.dumps(path)}: {json.dumps(field)}" for path, field in read_schemas().items())
    (folder / "schemas.json").write_text(f"{{\n{fields}\n}}\n")


async def _read_config(connection: NatsConnection, stream: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((await connection.request(f"$JS.API.STREAM.INFO.{stream}", b"")).payload)["config"]
    config["metadata"] = {key: value for key, value in config.get("metadata", {}).items() if not key.startswith("_nats.")}
    return config


async def _read_stream(connection: NatsConnection, stream: str) -> list[Recorded]:
    """Read every message as it was published; a Direct Get would add headers of the server."""
    js = JetStream(connection)
    info = await js.stream_info(stream)
    if info is None:
        raise ValueError(f"there is no stream {stream}")
    found = [await js.leader_message(stream, sequence) for sequence in range(info.state.first_seq, info.state.last_seq + 1)]
    return [Recorded(stream, message.sequence, message.subject, message.raw_headers, message.payload) for message in found if message is not None]


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
