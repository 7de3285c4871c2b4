"""`aether demo` as a person meets it: its table agrees with the log that it leaves behind, and an interrupt leaves nothing running."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

import nats
import orjson
import pytest

from aether_nats.embedded import EmbeddedServer

PROJECT = Path(__file__).parents[2]
DEPOSITS = 120


def _heed_interrupts() -> None:
    """Undo what a shell does to its background jobs, as a CI may be one: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


async def start_demo(store: Path, **settings: str) -> asyncio.subprocess.Process:
    command = "import sys; from aether_cli.main import main; sys.exit(main())"
    arguments = ("demo", "--commands", str(DEPOSITS), "--store", str(store))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        command,
        *arguments,
        cwd=PROJECT,
        env={**os.environ, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_heed_interrupts,
    )


def find_session(session: int) -> list[int]:
    """Return the processes of a session that run; a zombie only waits to be counted by its parent."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, owner, *_ = entry.read_text().rpartition(")")[2].split()
            if int(owner) == session and state != "Z":
                found.append(int(entry.parent.name))
    return found


async def read_accounts(url: str) -> dict[str, tuple[int, int]]:
    """Return version and balance of each account from the streams alone."""
    client = await nats.connect(url)  # pyright: ignore[reportUnknownMemberType]  # nats-py leaves its options untyped
    accounts: dict[str, tuple[int, int]] = {}
    try:
        js = client.jetstream()  # pyright: ignore[reportUnknownMemberType]  # likewise
        for info in await js.streams_info():
            if info.config.name is None or "_EVT_" not in info.config.name:
                continue
            for sequence in range(max(1, info.state.first_seq), info.state.last_seq + 1):  # an empty stream is one from 0 to 0
                message = await js.get_msg(info.config.name, sequence)
                for event in orjson.loads(message.data or b"[]"):
                    owner = event["source"].rpartition("/")[2]
                    version, balance = accounts.get(owner, (0, 0))
                    assert event["id"] == str(version + 1), "versions have no gap"
                    accounts[owner] = version + 1, balance + event["data"].get("amount", 0)
    finally:
        await client.close()
    return accounts


@pytest.mark.parametrize("partitions", ["4", "8"])
async def test_the_demos_last_table_agrees_with_what_jetstream_holds(tmp_path: Path, partitions: str) -> None:
    process = await start_demo(tmp_path, AETHER_EVENT_PARTITIONS=partitions)
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    rows = re.findall(r"^account/(\w+) +(\d+) +(\d+) .* yes$", output.decode(), re.MULTILINE)
    async with EmbeddedServer.start(tmp_path) as server:
        assert {owner: (int(version), int(balance)) for owner, version, balance in rows} == await read_accounts(server.url)
    assert sum(int(balance) for _, _, balance in rows) == sum(range(1, DEPOSITS + 1)), "every deposit is there, once"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="sessions are read from /proc")
@pytest.mark.parametrize(
    ("number", "line"),
    [(signal.SIGINT, b"a runtime starts"), (signal.SIGINT, b"opened the accounts"), (signal.SIGINT, b"starting another one"), (signal.SIGTERM, b"starting another one")],
)
async def test_an_interrupted_demo_leaves_nothing_running_and_shows_no_traceback(tmp_path: Path, number: signal.Signals, line: bytes) -> None:
    process = await start_demo(tmp_path)
    assert process.stderr is not None
    seen = b""
    while line not in seen:
        seen += await process.stderr.readline()
    assert len(find_session(process.pid)) > 1, "the demo has started something"
    os.killpg(process.pid, number)
    _, errors = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert b"everything it started is ended" in errors
    assert not find_session(process.pid)
