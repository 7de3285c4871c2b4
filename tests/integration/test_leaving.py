"""Runtimes that are told to leave: their callers hear from them, and they are gone in time whatever NATS does."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from aether_api.errors import NoResponders
from aether_api.identity import parse_actor_id
from aether_api.subjects import command_subject, pods_status_subject
from aether_nats import client as client_module
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.message import Message
from aether_nats.pod_status import ask_pods
from tests.histories.bank import FOLDER
from tests.histories.cluster import NAMESPACE, WAIT_S, Load, RuntimeProcess, connected, open_journal, running_pod, until
from tests.histories.invariants import check_answers, check_log, events_of, read_history

ACTORS = [parse_actor_id(NAMESPACE, "account", f"a{number}") for number in range(24)]


CALLS = 4800


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
    """A caller whose first try lasts for all of its time, so that a message which is dropped anywhere on its way is waited for that long."""
    monkeypatch.setattr(client_module, "_Progress", partial(client_module._Progress, try_timeout_s=10 * WAIT_S))


def record_waits(connection: NatsConnection, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """Keep how long each request waited for its answer, with its subject."""
    waits: list[tuple[float, str]] = []
    request, now_s = connection.request, asyncio.get_running_loop().time

    def record(subject: str, payload: bytes, headers: bytes = b"", timeout_s: float = WAIT_S) -> asyncio.Future[Message]:
        future, began_s = request(subject, payload, headers, timeout_s), now_s()
        future.add_done_callback(lambda _: waits.append((now_s() - began_s, subject)))
        return future

    monkeypatch.setattr(connection, "request", record)
    return waits


@pytest.mark.usefixtures("patience")
async def test_sigterm_under_load_leaves_no_message_unanswered(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    deposits = 2400
    async with connected(nats_server.url) as connection, RuntimeProcess(FOLDER, nats_server.url) as one, RuntimeProcess(FOLDER, nats_server.url) as other:
        await until_pods(connection, 2)
        load = Load(CommandClient(connection), ACTORS)
        await load.open()
        waits = record_waits(connection, monkeypatch)

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
        assert max(waits)[0] < WAIT_S, max(waits)
        journal = await open_journal(connection)
        for actor in ACTORS:
            commits = await read_history(journal, actor)
            check_log(commits)
            check_answers(commits, load.replies_of(actor))
            assert len(events_of(commits)) == 1 + deposits // len(ACTORS)


async def test_calls_that_are_on_their_way_when_a_pod_leaves_are_answered(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection, running_pod(nats_server.url, "pod-a") as pod:
        await Load(CommandClient(connection), ACTORS).open()
        calls = [connection.request(command_subject("call", actor, "Deposit"), b'{"amount":1}', timeout_s=WAIT_S) for _ in range(CALLS // len(ACTORS)) for actor in ACTORS]
        pod.runtime.request_stop()
        await asyncio.wait(calls)
        failed = [error for call in calls if (error := call.exception()) is not None and not isinstance(error, NoResponders)]
        assert failed == [], f"{len(failed)} of {len(calls)} calls were dropped"


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
