"""A runtime inside another program: it starts, takes messages that fit its models, and leaves in order or within its bound."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from aether_api.errors import Busy, Disconnected, InternalError, InvalidName, ModelInvalid, PermanentError, SettingsInvalid
from aether_api.identity import ActorId, parse_actor_id
from aether_api.messages import decode_reply
from aether_api.subjects import command_subject
from aether_model.model import Model
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.streams import StreamPlan, ensure_streams
from aether_runtime.adapters.jetstream_snapshots import JetStreamSnapshotStore
from aether_runtime.adapters.on_demand import OnDemandSource
from aether_runtime.ports import DesiredActor, DesiredListener
from aether_runtime.process import open_runtime
from aether_runtime.runtime import Runtime
from aether_runtime.runtime_message import RuntimeMessage
from aether_runtime.settings import RuntimeSettings
from tests.histories.bank import ALICE, compile_account
from tests.histories.cluster import PARTITIONS, WAIT_S, connected, open_journal, until

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def opened(server: EmbeddedServer, namespace: str = "default") -> AsyncGenerator[Runtime]:
    """A runtime that knows accounts and does not run yet."""
    settings = RuntimeSettings(source="none", namespace=namespace, nats_url=server.url, event_partitions=PARTITIONS, http_port=0)
    async with open_runtime(settings) as runtime:
        runtime.load_model(compile_account())
        yield runtime


def message(command: str, fields: dict[str, object], *, id: str = "", actor: ActorId = ALICE, timeout_s: float = 10.0) -> RuntimeMessage:
    return RuntimeMessage.build(actor, command, fields, command_id=id or None, timeout_s=timeout_s)


def tasks_of_runtimes() -> list[str]:
    """Names of the tasks that run now beside the test's own and those of the connections."""
    return [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.get_name().startswith(("nats", "Task-"))]


async def test_when_start_returns_a_command_of_anybody_is_answered(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime, connected(nats_server.url) as elsewhere:
        await runtime.start()
        answer = await elsewhere.request(command_subject("call", ALICE, "Open"), b'{"owner": "alice"}')
        assert decode_reply(answer.payload).outcome == "accepted"
        await runtime.stop()


async def test_stop_leaves_a_snapshot_of_every_actor_and_nothing_that_runs(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime:
        await runtime.start()
        await runtime.send_message(message("Open", {"owner": "alice"}))
        reply = await runtime.send_message(message("Deposit", {"amount": 5}))
        assert (reply.outcome, reply.version) == ("accepted", 2)
        await runtime.stop()
        assert (dict(runtime.get_active_vms()), runtime.is_running, tasks_of_runtimes()) == ({}, False, [])
        late = await runtime.send_message(message("Deposit", {"amount": 5}))
        assert (late.outcome, late.reason) == ("error", "Busy")
    async with connected(nats_server.url) as connection:
        snapshot = await JetStreamSnapshotStore(JetStream(connection)).read_latest(ALICE, compile_account().fold)
        assert snapshot is not None
        assert snapshot.version == 2


async def test_a_message_before_start_is_told_that_the_runtime_was_not_started(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime:
        early = await runtime.send_message(message("Open", {"owner": "alice"}))
        assert (early.outcome, early.reason) == ("error", "Busy")
        assert "was not started" in early.message
        await runtime.start()
        await runtime.stop()
        late = await runtime.send_message(message("Open", {"owner": "alice"}))
        assert "is stopping" in late.message


async def test_a_with_block_is_the_life_of_a_runtime(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime:
        async with runtime:
            assert (await runtime.send_message(message("Open", {"owner": "alice"}))).outcome == "accepted"
        assert not runtime.is_running


async def read_snapshot_version(server: EmbeddedServer) -> int:
    async with connected(server.url) as connection:
        snapshot = await JetStreamSnapshotStore(JetStream(connection)).read_latest(ALICE, compile_account().fold)
    return 0 if snapshot is None else snapshot.version


async def test_an_exception_in_the_block_of_open_runtime_leaves_nothing_that_runs(nats_server: EmbeddedServer) -> None:
    with pytest.raises(ValueError, match="the program's own"):
        async with opened(nats_server) as runtime:
            await runtime.start()
            await runtime.send_message(message("Open", {"owner": "alice"}))
            raise ValueError("a mistake of the program's own")
    assert (dict(runtime.get_active_vms()), runtime.is_running, tasks_of_runtimes()) == ({}, False, [])
    assert await read_snapshot_version(nats_server) == 1
    late = await runtime.send_message(message("Deposit", {"amount": 5}))
    assert (late.outcome, late.reason) == ("error", "Busy")


async def test_a_block_that_is_cancelled_leaves_nothing_that_runs(nats_server: EmbeddedServer) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as bound, opened(nats_server) as runtime:
            await runtime.start()
            await runtime.send_message(message("Open", {"owner": "alice"}))
            bound.reschedule(0.0)
            await asyncio.Event().wait()
    assert (runtime.is_running, tasks_of_runtimes()) == (False, [])
    assert await read_snapshot_version(nats_server) == 1


async def test_a_life_in_a_task_of_the_programs_own_ends_with_the_block_too(nats_server: EmbeddedServer) -> None:
    async with asyncio.TaskGroup() as tasks:
        async with opened(nats_server) as runtime:
            started = asyncio.Event()
            life = tasks.create_task(runtime.run(started=started.set), name="life")
            await started.wait()
            await runtime.send_message(message("Open", {"owner": "alice"}))
        assert (dict(runtime.get_active_vms()), runtime.is_running) == ({}, False)
        await life
    assert await read_snapshot_version(nats_server) == 1


async def test_stop_may_be_repeated_and_start_may_not(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime:
        await runtime.stop()
        await runtime.start()
        with pytest.raises(PermanentError, match="make another one"):
            await runtime.start()
        await runtime.stop()
        await runtime.stop()
        with pytest.raises(PermanentError):
            await runtime.start()


async def test_another_event_loop_is_refused_before_anything_happens(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime, runtime:
        await runtime.send_message(message("Open", {"owner": "alice"}))

        async def use_elsewhere() -> None:
            for use in (lambda: runtime.send_message(message("Deposit", {"amount": 5})), runtime.stop, lambda: runtime.stop_vm(ALICE)):
                with pytest.raises(PermanentError, match="opened in another event loop"):
                    await use()

        await asyncio.to_thread(asyncio.run, use_elsewhere())
        reply = await runtime.send_message(message("Deposit", {"amount": 5}))
        assert (reply.outcome, reply.version, runtime.is_leaving) == ("accepted", 2, False)


async def test_a_stop_within_what_is_no_time_is_refused_and_stops_nothing(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime, runtime:
        for wrong in (cast("Any", "5"), -1, math.nan):
            with pytest.raises(SettingsInvalid, match="timeout_s must be seconds, 0 or more"):
                await runtime.stop(timeout_s=wrong)
        assert (runtime.is_running, runtime.is_leaving) == (True, False)


async def test_nodes_of_two_namespaces_share_a_server_and_nothing_else(nats_server: EmbeddedServer) -> None:
    shop_alice = parse_actor_id("shop", ALICE.model, ALICE.id)
    async with opened(nats_server) as here, opened(nats_server, "shop") as shop, here, shop:
        await here.send_message(message("Open", {"owner": "here"}))
        await shop.send_message(message("Open", {"owner": "shop"}, actor=shop_alice))
        await shop.send_message(message("Deposit", {"amount": 5}, actor=shop_alice))
        assert (set(here.get_active_vms()), set(shop.get_active_vms())) == ({ALICE}, {shop_alice})
        assert [vm.get_state()["balance"] for runtime in (here, shop) for vm in runtime.get_active_vms().values()] == [0, 5]
        assert [len(runtime.presence.pods.live()) for runtime in (here, shop)] == [1, 1]


async def test_an_actor_of_another_namespace_is_refused_and_nothing_starts(nats_server: EmbeddedServer) -> None:
    shop_alice = parse_actor_id("shop", ALICE.model, ALICE.id)
    async with opened(nats_server) as runtime, runtime:
        with pytest.raises(InvalidName, match="shop/account/alice is of namespace shop, this runtime serves default"):
            await runtime.send_message(message("Open", {"owner": "shop"}, actor=shop_alice))
        for actor in (shop_alice, DesiredActor(shop_alice)):
            with pytest.raises(InvalidName, match="this runtime serves default"):
                runtime.create_vm(actor)
        assert (dict(runtime.get_active_vms()), dict(runtime.registry.desired)) == ({}, {})


async def test_what_is_no_model_is_refused_with_the_way_to_make_one(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime:
        for wrong, way in ((None, "give an ActorModel"), ({"kind": "ActorModel"}, "ActorModel.model_validate")):
            with pytest.raises(ModelInvalid, match=way):
                runtime.load_model(cast("Model", wrong))


async def test_a_vm_is_made_and_ended_by_its_actors_name(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime, runtime:
        await runtime.send_message(message("Open", {"owner": "alice"}))
        bob = parse_actor_id("default", "account", "bob")
        vm = runtime.create_vm(bob)
        await until(lambda: vm.is_ready)
        assert (vm.get_id(), vm.get_actor_id(), vm.get_version()) == ("default/account/bob@0", bob, 0)
        assert set(runtime.get_active_vms()) == {ALICE, bob}
        await runtime.stop_vm(bob)
        assert set(runtime.get_active_vms()) == {ALICE}
        with pytest.raises(ModelInvalid, match="stranger"):
            runtime.create_vm(parse_actor_id("default", "stranger", "x"))


async def test_a_runtime_that_does_not_run_makes_no_vm_and_says_why(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime:
        with pytest.raises(Busy, match="start it"):
            runtime.create_vm(ALICE)
        with pytest.raises(ModelInvalid, match="stranger"):
            runtime.create_vm(parse_actor_id("default", "stranger", "x"))
        async with runtime:
            assert (runtime.get_active_vms(), runtime.registry.desired) == ({}, {})
            assert (await runtime.send_message(message("Open", {"owner": "alice"}))).outcome == "accepted"
        with pytest.raises(Busy, match="start it"):
            runtime.create_vm(ALICE)


async def test_a_stop_cut_short_leaves_nothing_that_runs(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime:
        await runtime.start()
        await runtime.send_message(message("Open", {"owner": "alice"}))
        await nats_server.kill()
        vm = runtime.get_active_vms()[ALICE]
        async with asyncio.TaskGroup() as callers:
            callers.create_task(runtime.send_message(message("Deposit", {"amount": 1}, timeout_s=0.5)), name="Task-deposit")
            await until(lambda: not vm.can_sleep)
            await runtime.stop(timeout_s=0.05)
            assert [name for name in tasks_of_runtimes() if not name.startswith("call")] == []
        assert not runtime.is_running


async def test_a_message_whose_outcome_stays_unknown_is_answered_in_time(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime, runtime:
        await runtime.send_message(message("Open", {"owner": "alice"}))
        await nats_server.kill()
        reply = await runtime.send_message(message("Deposit", {"amount": 5}, id="d", timeout_s=0.3))
        assert (reply.outcome, reply.reason, reply.command_id) == ("error", "Unknown", "d")
        await nats_server.run()
        again = await runtime.send_message(message("Deposit", {"amount": 5}, id="d", timeout_s=WAIT_S))
        assert (again.outcome, again.version) == ("accepted", 2)


@pytest.mark.parametrize(
    ("command", "fields", "reason"),
    [("Deposit", {"amount": "five"}, "InvalidCommand"), ("Deposit", {}, "InvalidCommand"), ("Deposit", {"amount": 1, "x": 1}, "InvalidCommand"), ("Rob", {}, "UnknownCommand")],
)
async def test_nothing_is_stored_of_a_message_that_does_not_fit_the_model(nats_server: EmbeddedServer, command: str, fields: dict[str, object], reason: str) -> None:
    async with opened(nats_server) as runtime, runtime:
        reply = await runtime.send_message(message(command, fields))
        assert (reply.outcome, reply.reason) == ("rejected", reason)
        unknown = await runtime.send_message(message("Open", {}, actor=parse_actor_id("default", "stranger", "x")))
        assert (unknown.outcome, unknown.reason) == ("error", "UnknownModel")
        async with connected(nats_server.url) as connection:
            assert await (await open_journal(connection)).read_head(ALICE) is None


class BrokenSource(OnDemandSource):
    """A source that fails once it is told to."""

    def __init__(self) -> None:
        self.fails = asyncio.Event()

    async def run(self, listener: DesiredListener) -> None:
        await self.fails.wait()
        raise InternalError("the source broke")


async def test_a_runtime_that_fails_says_so_at_once_and_when_it_is_stopped(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    source = BrokenSource()
    monkeypatch.setattr("aether_runtime.process.OnDemandSource", lambda: source)
    async with opened(nats_server) as runtime:
        await runtime.start()
        source.fails.set()
        await until(lambda: "the runtime has failed" in caplog.text)
        assert not runtime.is_running
        with pytest.raises(ExceptionGroup) as raised:
            await runtime.stop()
        assert raised.group_contains(InternalError, match="the source broke")


async def test_a_start_without_nats_leaves_nothing_that_runs(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server) as runtime:
        await nats_server.kill()
        with pytest.raises(Disconnected):
            await runtime.start()
        assert tasks_of_runtimes() == []


async def test_a_start_that_is_cancelled_leaves_nothing_that_runs(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection:
        await ensure_streams(connection, "default", StreamPlan(PARTITIONS))
    async with opened(nats_server) as runtime:
        starting = asyncio.get_running_loop().create_task(runtime.start(), name="Task-start")
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        assert starting.cancelled()
        assert tasks_of_runtimes() == []


async def test_more_copies_than_there_are_servers_are_refused_with_the_name_of_the_setting() -> None:
    async with EmbeddedServer.start() as server:
        settings = RuntimeSettings(source="none", nats_url=server.url, event_replicas=3, http_port=0)
        with pytest.raises(SettingsInvalid, match="AETHER_EVENT_REPLICAS=3: there are too few NATS servers"):
            async with open_runtime(settings):
                pass
