"""`python examples/two-nodes/main.py` as a person runs it: it checks every line before it prints it, and leaves nothing running."""

from __future__ import annotations

import asyncio
import importlib
import re
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aether_api.errors import RetryableError
from aether_api.identity import parse_actor_id
from aether_nats.deliveries import ActorVersion, EventStored, Gap, Unreadable
from aether_nats.embedded import EmbeddedServer
from aether_nats.event_bus import EventBus
from aether_nats.missed import MissedReader
from aether_runtime.core.new_events import NewEvent
from aether_runtime.event_store import EventStore
from tests.histories.cluster import connected
from tests.histories.commits import build_events
from tests.integration.links import CutLink

PROJECT = Path(__file__).parents[2]

PATIENCE_S = 240.0
"""Seconds after which the example is given up; it takes ten on a quiet machine, and bounds each of its own waits."""

STORY = [
    "Broadcast: commands go through node a; both projections hear of every event",
    "  node b has the balances 100, 200, 300, 400 from events alone",
    "Version caches: each follows the events of the other",
    "  cache and log agree on version 4",
    "Isolation: namespace market has an account alice, too",
    "  node b of shop has heard nothing of it, though it has heard what was stored after it",
    "A node that joins late, and knows version 1 of alice",
    "  it is told that it missed versions 2 to 5, and reads them from the log",
    "A node that is cut off",
    "  its version cache has followed",
    "A subscriber that is too slow",
    "  then it is told that 16 found no room",
    "Both nodes agree with the log",
]


@asynccontextmanager
async def running_example() -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run the example, for a while, and leave no process behind."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-u",
        "examples/two-nodes/main.py",
        cwd=PROJECT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell has its background jobs ignore Ctrl-C, and they pass that on
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_example_tells_its_story_to_the_end() -> None:
    async with running_example() as process:
        output, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    told = output.decode().splitlines()
    assert [line for line in told if line in STORY] == STORY
    rows = re.findall(r"^\w+ +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)$", output.decode(), re.MULTILINE)
    assert len(rows) == 4
    assert all(log == a == b and balance_a == balance_b for log, a, b, balance_a, balance_b in rows)


async def test_ctrl_c_ends_the_example_with_a_sentence() -> None:
    async with running_example() as process:
        assert process.stdout is not None
        while b"Broadcast" not in await process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        output, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (130, "")
    assert output.decode().endswith("\nInterrupted: the nodes have left, and their server is stopped\n")


def test_the_projection_counts_an_event_that_comes_twice_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PROJECT / "examples" / "two-nodes")
    node = importlib.import_module("node")
    projection, account = node.Balances(), parse_actor_id("shop", "account", "alice")
    told = [EventStored(account, event.version, event.version, 0, event) for event in build_events(account, 1, 3)]
    for stored in [*told, *told[:2]]:
        projection.apply(stored)
    assert (projection.balances[account], projection.versions[account]) == (6, 3)


async def test_a_node_whose_link_is_cut_while_it_reads_a_gap_goes_on_when_it_is_back(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PROJECT / "examples" / "two-nodes")
    node = importlib.import_module("node")
    alice = parse_actor_id("shop", "account", "alice")
    async with asyncio.timeout(PATIENCE_S), connected(nats_server.url) as writer, CutLink.to(nats_server.port) as link:
        store = await EventStore.open(writer, "shop")
        await store.save_events(alice, [NewEvent("Opened", {"owner": "Alice"}), *(NewEvent("Deposited", {"amount": 1}) for _ in range(5))])
        refused = asyncio.Event()
        read = MissedReader.read

        async def read_noted(self: MissedReader, gap: Gap, types: frozenset[str] = frozenset()) -> AsyncGenerator[EventStored | Unreadable]:
            try:
                async for item in read(self, gap, types):
                    yield item
            except RetryableError:
                refused.set()
                raise

        async with connected(link.url) as here, EventBus(here).subscribe_to_event_stored("shop", known={alice: ActorVersion(1)}) as subscription, asyncio.TaskGroup() as tasks:
            lost = asyncio.Event()
            here.on_disconnect(lost.set)
            await link.cut()
            await lost.wait()
            monkeypatch.setattr(MissedReader, "read", read_noted)
            follower = node.Node("x", None, await EventStore.open(writer, "shop"), node.Balances())
            following = tasks.create_task(follower.follow(subscription))
            await refused.wait()
            link.mend()
            while follower.projection.versions.get(alice) != 6:
                await asyncio.sleep(0.02)
            assert follower.projection.balances[alice] == 5
            following.cancel()
