"""More commands than a process can hold, for more actors than any one mailbox could tell."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from aether_api.identity import parse_actor_id
from aether_nats.client import CommandClient
from aether_nats.embedded import EmbeddedServer
from aether_runtime import backlog as backlog_module
from tests.histories.bank import compile_account
from tests.histories.cluster import NAMESPACE, WAIT_S, Load, connected, open_journal, running_pod
from tests.histories.invariants import check_answers, check_log, events_of, read_history

ACTORS: Final = [parse_actor_id(NAMESPACE, "account", f"a{number}") for number in range(64)]
DEPOSITS: Final = 4_000
BYTES_MAX: Final = 200 * backlog_module.COMMAND_BYTES
"""Room for a twentieth of what comes at once."""


async def test_a_flood_for_many_actors_is_held_back_and_everything_is_stored_once_in_the_end(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "BACKLOG_BYTES_MAX", BYTES_MAX)
    monkeypatch.setattr(backlog_module, "SLACK_BYTES", BYTES_MAX // 8)
    async with connected(nats_server.url) as connection, running_pod(nats_server.url, "one", models=[compile_account()]) as pod:
        load = Load(CommandClient(connection), ACTORS)
        await load.open()
        highest = 0

        async def watch() -> None:
            nonlocal highest
            while len(load.replies) < len(ACTORS) + DEPOSITS:
                highest = max(highest, pod.runtime.registry.count_backlog())
                await asyncio.sleep(0)

        async with asyncio.timeout(2 * WAIT_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(watch())
            tasks.create_task(load.deposit(range(DEPOSITS), clients=DEPOSITS))
        assert pod.runtime.metrics.tally.of("account").busy > 0
        assert 0 < highest < 2 * BYTES_MAX

        journal = await open_journal(connection)
        for actor in ACTORS:
            commits = await read_history(journal, actor)
            check_log(commits)
            check_answers(commits, load.replies_of(actor))
            assert len(events_of(commits)) == 1 + len([number for number in range(DEPOSITS) if ACTORS[number % len(ACTORS)] == actor])
        assert pod.runtime.registry.count_backlog() == 0
