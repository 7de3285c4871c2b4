"""Streams that somebody deleted, or that were lost with a server, under runtimes that live: what is made anew, what waits, and what is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from aether_api.identity import PodUid
from aether_api.subjects import event_stream, partition_of, snapshot_stream
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.streams import StreamPlan, ensure_streams
from tests.histories.bank import ALICE
from tests.histories.cluster import WAIT_S, Load, Placements, connected, open_journal, running_pod, tells_ready, until

pytestmark = pytest.mark.asyncio

PARTITIONS = 2
DEPOSITS = 30
SNAPSHOTS = snapshot_stream(ALICE.namespace)
EVENTS = event_stream(ALICE.namespace, partition_of(ALICE, PARTITIONS))


@dataclass
class Rig:
    """A server on which Alice's pod has left a history and a snapshot."""

    server: EmbeddedServer
    connection: NatsConnection
    js: JetStream
    placements: Placements

    @property
    def client(self) -> CommandClient:
        return CommandClient(self.connection)


@pytest.fixture
async def rig(nats_server: EmbeddedServer) -> AsyncIterator[Rig]:
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        placements = Placements()
        placements.place(ALICE, PodUid("a"), 1)
        async with running_pod(nats_server.url, "a", placements, plan=StreamPlan(PARTITIONS)):
            load = Load(CommandClient(connection), [ALICE])
            await load.open()
            await load.deposit(range(DEPOSITS), clients=1)
        yield Rig(nats_server, connection, JetStream(connection), placements)


async def test_lost_snapshots_are_made_anew_by_the_sweep_and_the_first_durable_command_waits_for_its_tries(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aether_runtime.adapters.jetstream_inbox.MISSED_S", 2.0)
    async with running_pod(rig.server.url, "b", rig.placements, sweep_s=0.5) as pod:
        await rig.js.delete_stream(SNAPSHOTS)
        rig.placements.place(ALICE, PodUid("b"), 2)
        await until(lambda: tells_ready(pod, ALICE), within_s=2 * WAIT_S)
        version = pod.runtime.get_active_vms()[ALICE].get_version()
        await rig.client.send_durable(ALICE, "Deposit", {"amount": 1}, command_id="durable", timeout_s=WAIT_S)
        await until(lambda: pod.runtime.get_active_vms()[ALICE].get_version() > version, within_s=2 * WAIT_S)
        info = await rig.js.stream_info(SNAPSHOTS)
        assert info is not None
        assert info.state.last_seq > 0, "its try was noted before it was begun"
    assert [record.levelname for record in caplog.records if "is made anew" in record.message] == ["WARNING"]
    assert [record.message for record in caplog.records if "background work failed" in record.message] == []


async def test_actors_of_a_lost_event_stream_wait_and_say_why_until_it_is_there_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    async with running_pod(rig.server.url, "b", rig.placements, sweep_s=0.1) as pod:
        await rig.js.delete_stream(EVENTS)
        rig.placements.place(ALICE, PodUid("b"), 2)

        def says_why() -> bool:
            vm = pod.runtime.registry.get(ALICE)
            return vm is not None and vm.replaying is not None and f"there is no stream {EVENTS}; restore it from a backup" in vm.replaying.describe()

        await until(says_why, within_s=2 * WAIT_S)
        await until(lambda: any("an event stream is gone" in record.message for record in caplog.records), within_s=2 * WAIT_S)
        assert pod.runtime.registry.get(ALICE) is not None, "it waits in its replay, and has not failed"
        assert await rig.js.stream_info(EVENTS) is None, "nobody makes histories anew of nothing while somebody may restore them"
        assert not any("a VM failed" in record.message for record in caplog.records)
        await ensure_streams(rig.connection, ALICE.namespace)
        await until(lambda: tells_ready(pod, ALICE), within_s=2 * WAIT_S)
        assert pod.runtime.get_active_vms()[ALICE].get_version() == 0
    told = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert told == [
        "an event stream is gone, so its actors can neither start nor store anything",
        "an event stream was gone and is made anew; the histories that it held are lost, and its actors begin anew",
    ]
