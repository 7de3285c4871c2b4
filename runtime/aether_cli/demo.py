"""`aether demo`: the main job on one machine, without Kubernetes.

It starts a real NATS server and a runtime as processes of their own, opens the bank's accounts, sends commands, kills the
runtime without warning in the middle of them, starts it again, and prints what each actor says next to what JetStream
holds. The second column is read by a path of its own: an ordinary consumer of nats-py and a few lines of arithmetic. What
it starts it also ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import orjson

from aether_api.errors import AetherError, InternalError
from aether_api.identity import ActorId, parse_actor_id
from aether_api.messages import Reply
from aether_cli.main import EXIT_INTERRUPTED
from aether_cli.output import write_line
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.settings import NatsSettings
from aether_nats.streams import StreamLayout, read_layout

NAMESPACE: Final = "default"
OWNERS: Final = ("alice", "bob", "carol", "dave")
"""The first three have manifests, dave starts at his first command."""

CLIENTS: Final = 16
"""Commands under way at once: enough that the kill hits some of them."""

START_TIMEOUT_S: Final = 30.0
"""Seconds until a runtime answers its first command; imports on a cold disk take most of it."""

STOP_TIMEOUT_S: Final = 15.0
"""Seconds for an orderly stop before the demo kills the runtime."""


@dataclass(frozen=True, slots=True)
class Row:
    """One actor at the end: what it says, and what the log says."""

    owner: str
    version: int
    balance: int
    log_version: int
    log_balance: int

    @property
    def agrees(self) -> bool:
        """Whether both paths tell the same."""
        return (self.version, self.balance) == (self.log_version, self.log_balance)


def run(arguments: Sequence[str]) -> int:
    """Run the demo; the exit code is 0 only if every actor agrees with the log."""
    parser = argparse.ArgumentParser(
        prog="aether demo",
        description="Run the bank example on this machine, kill the runtime, show that nothing is lost. Exit code: 0 if every actor agrees with the log, 1 if not, 2 wrong usage.",
    )
    parser.add_argument("--folder", type=Path, default=Path("examples/bank"), help="folder of manifests (default: examples/bank)")
    parser.add_argument("--commands", type=int, default=400, help="how many deposits to send (default: 400)")
    parser.add_argument("--store", type=Path, help="keep JetStream's files in this folder")
    options = parser.parse_args(arguments)
    if options.commands < 1:
        parser.error(f"--commands must be at least 1, not {options.commands}")
    if not options.folder.is_dir():
        parser.error(f"--folder: {options.folder} is not a folder; run the demo where Aether's examples/ is, or name a folder with its manifests")
    try:
        rows = asyncio.run(_run(options))
    except (AetherError, ExceptionGroup) as exc:
        print(f"aether demo: {_find_cause(exc)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("aether demo: interrupted; everything it started is ended", file=sys.stderr)
        return EXIT_INTERRUPTED
    write_line(build_table(rows))
    return 0 if all(row.agrees for row in rows) else 1


def _find_cause(error: Exception) -> AetherError:
    """Return the error that a person can act on; any other is a bug and is raised."""
    if isinstance(error, AetherError):
        return error
    known = cast("ExceptionGroup[Exception]", error).subgroup(AetherError)
    if known is None:
        raise error
    return _find_cause(known.exceptions[0])


async def _run(options: argparse.Namespace) -> list[Row]:
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with tempfile.TemporaryDirectory(prefix="aether-demo-") as temporary:
        store = options.store or Path(temporary)
        async with EmbeddedServer.start(store) as server:
            _say(f"NATS is up at {server.url}, JetStream stores into {store}")
            connection = await NatsConnection.open(NatsSettings((server.url,), "aether demo"))
            try:
                return await _play(options, server.url, connection)
            finally:
                await connection.close()


async def _play(options: argparse.Namespace, url: str, connection: NatsConnection) -> list[Row]:
    client = CommandClient(connection)
    async with _RuntimeProcess(options.folder, url) as runtime:
        first = await runtime.start()
        _say(f"a runtime starts (process {first.pid}), actors come from {options.folder}")
        for owner in OWNERS:
            await _send(client, owner, "Open", {"owner": owner}, f"open-{owner}")
        _say(f"opened the accounts of {', '.join(OWNERS)}; dave has no manifest and started on demand")
        async with asyncio.TaskGroup() as group:
            group.create_task(_deposit(client, options.commands), name="deposits")
            group.create_task(_kill_later(first), name="kill")
            second = await group.create_task(_start_again(runtime, first), name="second runtime")
        _say(f"the second runtime (process {second.pid}) has replayed; all {options.commands} deposits are acknowledged")
        layout = await read_layout(connection, NAMESPACE)
        if layout is None:
            raise InternalError(f"namespace {NAMESPACE} has no streams after all these commands")
        return [await _read_row(client, url, layout, owner) for owner in OWNERS]


async def _start_again(runtime: _RuntimeProcess, first: asyncio.subprocess.Process) -> asyncio.subprocess.Process:
    await first.wait()
    _say("the runtime is dead; the commands under way wait and try again; starting another one")
    return await runtime.start()


async def _deposit(client: CommandClient, count: int) -> None:
    """Send deposits of 1, 2, 3, ... with ids of their own, so that a repeat after the kill takes effect once."""
    amounts = iter(range(1, count + 1))

    async def work() -> None:
        for amount in amounts:
            await _send(client, OWNERS[amount % len(OWNERS)], "Deposit", {"amount": amount}, f"deposit-{amount}")

    async with asyncio.TaskGroup() as workers:
        for number in range(CLIENTS):
            workers.create_task(work(), name=f"client {number}")


async def _kill_later(process: asyncio.subprocess.Process) -> None:
    await asyncio.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    _say(f"killed process {process.pid} with SIGKILL in the middle of the deposits")


async def _send(client: CommandClient, owner: str, command: str, fields: dict[str, object], command_id: str) -> Reply:
    reply = await client.send(_actor(owner), command, fields, command_id=command_id, timeout_s=START_TIMEOUT_S)
    if reply.outcome != "accepted":
        raise InternalError(f"{command} of {owner} was answered {reply.outcome}: {reply.reason} {reply.message}")
    return reply


async def _read_row(client: CommandClient, url: str, layout: StreamLayout, owner: str) -> Row:
    asked = await client.send(_actor(owner), "Open", {"owner": owner}, dry_run=True, timeout_s=START_TIMEOUT_S)
    balance = asked.state.get("balance", -1) if asked.state else -1
    log_version, log_balance = await read_log(url, layout, owner)
    return Row(owner, asked.version, balance, log_version, log_balance)


async def read_log(url: str, layout: StreamLayout, owner: str) -> tuple[int, int]:
    """Return version and balance from the stream alone, of which the layout only says which one it is: plain nats-py, plain JSON, no code of the runtime."""
    import nats

    client = await nats.connect(url)  # pyright: ignore[reportUnknownMemberType]  # nats-py leaves its options untyped
    try:
        js = client.jetstream()  # pyright: ignore[reportUnknownMemberType]  # likewise
        subscription = await js.subscribe(layout.event_subject(_actor(owner)), stream=layout.event_stream(_actor(owner)), ordered_consumer=True)
        version = balance = 0
        while True:
            message = await subscription.next_msg(timeout=5)
            for event in orjson.loads(message.data):
                version += 1
                balance += event["data"].get("amount", 0) * (-1 if event["type"] == "Withdrawn" else 1)
            if message.metadata.num_pending == 0:
                return version, balance
    finally:
        await client.close()


def _actor(owner: str) -> ActorId:
    return parse_actor_id(NAMESPACE, "account", owner)


class _RuntimeProcess:
    """A runtime as a process of its own; whatever process it has at the end of the `with` block is ended."""

    def __init__(self, folder: Path, url: str) -> None:
        self._arguments = ("-m", "aether_runtime", "--folder", str(folder), "--nats", url, "--namespace", NAMESPACE, "--http-port", "0")
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> asyncio.subprocess.Process:
        """Start a process, in the place of one that is dead."""
        # A process group of its own, so that a Ctrl-C at the terminal reaches the demo alone, which then ends its processes in order.
        self.process = await asyncio.create_subprocess_exec(sys.executable, *self._arguments, env=_quiet_environment(), process_group=0)
        return self.process

    async def __aenter__(self) -> _RuntimeProcess:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


def _quiet_environment() -> dict[str, str]:
    return {**os.environ, "AETHER_LOG_LEVEL": os.environ.get("AETHER_LOG_LEVEL", "ERROR")}


def build_table(rows: Sequence[Row]) -> str:
    """Return the last table: one line an actor, what it says beside what the log says."""
    lines = [f"{'ACTOR':<16}{'VERSION':>8}{'BALANCE':>10}   {'IN JETSTREAM':<20}AGREES"]
    lines += [
        f"{'account/' + row.owner:<16}{row.version:>8}{row.balance:>10}   {f'{row.log_version} events, {row.log_balance}':<20}{'yes' if row.agrees else 'NO'}" for row in rows
    ]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)
