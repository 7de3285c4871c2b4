"""What `aether send` says of a command whose answer does not come or cannot be printed: its id, and what became of it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from aether_api.identity import ActorId
from aether_nats.client import CommandClient
from aether_nats.embedded import EmbeddedServer
from aether_nats.message import Message
from tests.histories.bank import ALICE
from tests.histories.cluster import WAIT_S, Load, connected, open_journal, running_pod
from tests.histories.invariants import events_of, read_history

DEPOSIT = ("send", "account/alice", "Deposit", "--set", "amount=5")

HISTORY_LONG = 600
"""Deposits whose events fill a pipe, so that printing them fails in the middle."""


@asynccontextmanager
async def aether(*arguments: str, output: int = asyncio.subprocess.PIPE, before: Callable[[], None] | None = None) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run `aether` for the length of a `with` block; heeding Ctrl-C, which a shell's background jobs ignore."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before is not None:
            before()

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = "import sys; from aether_cli.main import main; sys.exit(main())"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", command, *arguments, stdout=output, stderr=asyncio.subprocess.PIPE, env=environment, preexec_fn=prepare)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def end(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Return exit code and errors."""
    async with asyncio.timeout(WAIT_S):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def read_types(url: str, actor: ActorId = ALICE) -> list[str]:
    async with connected(url) as connection:
        return [event.type for event in events_of(await read_history(await open_journal(connection), actor))]


@pytest.mark.parametrize("options", [(), ("--durable",)])
async def test_ctrl_c_while_an_answer_is_awaited_tells_the_id_to_send_it_again(nats_server: EmbeddedServer, options: Sequence[str]) -> None:
    """Somebody takes the command and never answers, as a runtime that is frozen, or a server that stores nothing just then."""
    async with connected(nats_server.url) as connection:
        taken: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        connection.subscribe("aether.default.>", lambda message: None if taken.done() else taken.set_result(message))
        await connection.flush()
        async with aether(*DEPOSIT, "--timeout", "60", *options, "--nats", nats_server.url) as process:
            async with asyncio.timeout(WAIT_S):
                message = await taken
            process.send_signal(signal.SIGINT)
            code, errors = await end(process)
    told = re.search(rb"Aether-Command: (\S+)", message.raw_headers)
    assert told is not None
    id = told[1].decode()
    assert (code, errors) == (130, f"aether send: the outcome of command {id} is unknown; send it again with --id {id} (interrupted)\n")


async def test_a_time_out_tells_the_same(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection:
        connection.subscribe("aether.default.>", lambda message: None)
        await connection.flush()
        async with aether(*DEPOSIT, "--timeout", "1", "--id", "order 7", "--nats", nats_server.url) as process:
            code, errors = await end(process)
    assert (code, errors.partition(" (")[0]) == (1, "aether send: the outcome of command order 7 is unknown; send it again with --id 'order 7'")


async def test_an_answer_that_the_outcome_is_unknown_tells_the_same(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection:
        answer = orjson.dumps({"outcome": "error", "reason": "Unknown", "message": "the append was not confirmed", "commandId": "c-1"})
        connection.subscribe("aether.default.>", lambda message: connection.publish(message.reply, answer))
        await connection.flush()
        async with aether(*DEPOSIT, "--id", "c-1", "--nats", nats_server.url) as process:
            code, errors = await end(process)
    assert (code, errors) == (1, "aether send: the outcome of command c-1 is unknown; send it again with --id c-1 (the append was not confirmed)\n")


@asynccontextmanager
async def silent_server() -> AsyncGenerator[tuple[str, asyncio.Event]]:
    """Run a server that greets nobody; yields its URL and what is set once somebody has come."""
    come, writers = asyncio.Event(), list[asyncio.StreamWriter]()

    async def greet_never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        come.set()

    async with await asyncio.start_server(greet_never, "127.0.0.1", 0) as server:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", come
        for writer in writers:
            writer.close()


async def test_connecting_keeps_to_the_time_out() -> None:
    async with silent_server() as (url, _), aether(*DEPOSIT, "--timeout", "0.5", "--nats", url) as process:
        code, errors = await end(process)
    assert (code, "within 0.5 s" in errors) == (1, True)


async def test_ctrl_c_before_a_command_is_sent_says_so() -> None:
    async with silent_server() as (url, come), aether(*DEPOSIT, "--timeout", "60", "--nats", url) as process:
        async with asyncio.timeout(WAIT_S):
            await come.wait()
        process.send_signal(signal.SIGINT)
        assert await end(process) == (130, "aether send: interrupted; the command was not sent\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a disk that is always full")
async def test_what_became_of_a_command_is_told_where_its_answer_cannot_be_printed(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-a"):
        async with connected(nats_server.url) as connection:
            await Load(CommandClient(connection), [ALICE]).open()
        with Path("/dev/full").open("wb") as full:
            async with aether(*DEPOSIT, "--id", "c-1", "--nats", nats_server.url, output=full.fileno()) as process:
                full_disk = await end(process)
        assert full_disk == (1, "aether send: command c-1: accepted at version 2\naether: standard output cannot be written: No space left on device\n")
        async with aether(*DEPOSIT, "--id", "c-2", "--nats", nats_server.url, output=asyncio.subprocess.DEVNULL, before=lambda: os.close(1)) as process:
            closed = await end(process)
        assert closed == (1, "aether send: command c-2: accepted at version 3\naether: standard output cannot be written: Bad file descriptor\n")
        reader, writer = os.pipe()
        os.close(reader)
        async with aether("send", "account/alice", "Withdraw", "--set", "amount=99", "--id", "c-3", "--nats", nats_server.url, output=writer) as process:
            code, errors = await end(process)
        os.close(writer)
        assert (code, errors.startswith("aether send: command c-3: rejected at version 3 (InsufficientFunds: ")) == (141, True)
    assert await read_types(nats_server.url) == ["Opened", "Deposited", "Deposited"]


async def test_a_history_of_which_only_the_beginning_is_read_ends_quietly(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-a"), connected(nats_server.url) as connection:
        load = Load(CommandClient(connection), [ALICE])
        await load.open()
        await load.deposit(range(HISTORY_LONG))
        reader, writer = os.pipe()
        async with aether("history", "account/alice", "--nats", nats_server.url, output=writer) as process:
            os.close(writer)
            first = await asyncio.to_thread(os.read, reader, 1)
            os.close(reader)
            code, errors = await end(process)
    assert (first, code, errors) == (b"{", 141, "")
