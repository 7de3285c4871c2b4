"""Runtimes that are told to leave: their callers hear from them, and they are gone in time whatever NATS does."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from aether_api.errors import NoResponders
from aether_api.identity import parse_actor_id
from aether_api.subjects import pods_status_subject
from aether_nats import client as client_module
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.pod_status import ask_pods
from tests.histories.bank import FOLDER
from tests.histories.cluster import NAMESPACE, WAIT_S, Load, RuntimeProcess, connected, open_journal
from tests.histories.invariants import check_answers, check_log, events_of, read_history

ACTORS = [parse_actor_id(NAMESPACE, "account", f"a{number}") for number in range(24)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def until_pods(connection: NatsConnection, count: int) -> None:
    """Wait until so many pods know of each other."""
    async with asyncio.timeout(WAIT_S):
        while await count_known_pods(connection) != [count] * count:
            await asyncio.sleep(0.05)


async def count_known_pods(connection: NatsConnection) -> list[int]:
    try:
        return [answer.live_pods for answer in await ask_pods(connection, pods_status_subject(NAMESPACE))]
    except NoResponders:
        return []


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller whose first try lasts for ever: it is never answered if any one message is dropped."""
    monkeypatch.setattr(client_module, "_Progress", partial(client_module._Progress, try_timeout_s=10 * WAIT_S))


@pytest.mark.usefixtures("patience")
async def test_sigterm_under_load_leaves_no_message_unanswered(nats_server: EmbeddedServer) -> None:
    deposits = 2400
    async with connected(nats_server.url) as connection, RuntimeProcess(FOLDER, nats_server.url) as one, RuntimeProcess(FOLDER, nats_server.url) as other:
        await until_pods(connection, 2)
        load = Load(CommandClient(connection), ACTORS)
        await load.open()

        async def end_in_turn() -> None:
            for share, leaving in enumerate((one, other), 1):
                await until(partial(load.has_sent, deposits * share // 4))
                assert await leaving.end(signal.SIGTERM) == 0
                await leaving.run()
                await until_pods(connection, 2)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.deposit(range(deposits)))
            tasks.create_task(end_in_turn())
        assert {reply.outcome for _, reply in load.replies} == {"accepted"}
        journal = await open_journal(connection)
        for actor in ACTORS:
            commits = await read_history(journal, actor)
            check_log(commits)
            check_answers(commits, load.replies_of(actor))
            assert len(events_of(commits)) == 1 + deposits // len(ACTORS)


@asynccontextmanager
async def frozen(server: EmbeddedServer) -> AsyncIterator[None]:
    """Let the server neither answer nor close its connections for a while."""
    assert server.process_id is not None
    os.kill(server.process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process_id, signal.SIGCONT)


async def test_a_runtime_whose_nats_does_not_answer_leaves_within_its_bound(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with connected(nats_server.url) as connection, RuntimeProcess(FOLDER, nats_server.url, log=log, settings={"AETHER_STOP_TIMEOUT": "1s"}) as runtime:
        load = Load(CommandClient(connection), ACTORS)
        await load.open()
        async with frozen(nats_server):
            assert await runtime.end(signal.SIGTERM, timeout_s=8) == 0, "one VM alone may wait for ten seconds"
    counted = re.search(r"0 without a snapshot, ([0-9]+) cut short", log.read_text())
    assert counted is not None
    assert int(counted[1]) >= len(ACTORS)


async def test_a_runtime_whose_nats_is_gone_under_load_leaves_within_its_bound_and_loses_nothing(nats_server: EmbeddedServer) -> None:
    settings = {"AETHER_STOP_TIMEOUT": "1s"}
    async with connected(nats_server.url) as connection, RuntimeProcess(FOLDER, nats_server.url, settings=settings) as runtime:
        load = Load(CommandClient(connection), ACTORS)
        await load.open()

        async def end() -> None:
            await until(partial(load.has_sent, 200))
            await nats_server.kill()
            assert await runtime.end(signal.SIGTERM, timeout_s=8) == 0
            await nats_server.run()
            await runtime.run()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.deposit(range(480)))
            tasks.create_task(end())
        journal = await open_journal(connection)
        for actor in ACTORS:
            commits = await read_history(journal, actor)
            check_log(commits)
            check_answers(commits, load.replies_of(actor))
            assert len(events_of(commits)) == 1 + 480 // len(ACTORS)
