"""VMs that are behind their log catch up without a command: by announcements after a take-over, by comparison at all times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from aether_api.envelope import Commit, Event, StoredCommit, build_event_id, build_source, encode_event, encode_fields, join_events
from aether_api.errors import Reason, SettingsInvalid
from aether_api.identity import ActorId, Epoch, PodUid, parse_actor_id
from aether_api.messages import Reply
from aether_api.subjects import event_subject
from aether_nats.client import CommandClient
from aether_nats.embedded import EmbeddedServer
from aether_nats.heads import Head, HeadComparison
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.streams import StreamPlan, delete_streams, ensure_streams
from aether_runtime.vm import VirtualMachine
from tests.histories.bank import ALICE, build_command
from tests.histories.cluster import NAMESPACE, PARTITIONS, Placements, RunningPod, connected, open_journal, running_pod, until
from tests.histories.commits import append_events, build_next
from tests.integration.links import CutLink

pytestmark = pytest.mark.asyncio

OTHER_POD = "other/boot"


async def deposit_behind_its_back(journal: Journal, actor: ActorId = ALICE) -> int:
    """Append a deposit of 5 as a former owner would, and return the version."""
    head = await journal.read_head(actor)
    assert head is not None
    version = head.last_version + 1
    event = Event("1.0", build_event_id(head.incarnation, version), build_source(actor), "Deposited", head.events()[-1].time, encode_fields({"amount": 5}))
    await journal.append(
        Commit(f"foreign-{version}", actor, head.sequence, version, version, head.next_index(), Epoch(0), OTHER_POD, head.model, join_events([encode_event(event)]))
    )
    return version


@asynccontextmanager
async def holding(server: EmbeddedServer, *, compare_every_s: float = 60.0, broadcast: bool = True) -> AsyncGenerator[tuple[RunningPod, VirtualMachine, Journal]]:
    """A pod that took Alice over from another writer."""
    plan = StreamPlan(PARTITIONS, broadcast=broadcast)
    placements = Placements()
    placements.place(ALICE, PodUid("a"), 1)
    async with running_pod(server.url, "a", placements, plan=plan) as pod:
        await CommandClient(pod.connection).send(ALICE, "Open", {"owner": "alice"})
    async with connected(server.url) as connection:
        journal = await open_journal(connection)
        await deposit_behind_its_back(journal)
        async with running_pod(server.url, "a", placements, plan=plan, compare_every_s=compare_every_s) as pod:
            await until(lambda: ALICE in pod.runtime.get_active_vms() and pod.runtime.get_active_vms()[ALICE].is_ready)
            yield pod, pod.runtime.get_active_vms()[ALICE], journal


async def test_a_vm_that_took_over_hears_of_what_a_former_owner_still_appends(nats_server: EmbeddedServer) -> None:
    async with holding(nats_server) as (pod, vm, journal):
        assert vm.took_over
        version = await deposit_behind_its_back(journal)
        await until(lambda: vm.get_version() == version)
        version = await deposit_behind_its_back(journal)
        await until(lambda: vm.get_version() == version)
        assert vm.get_state()["balance"] == 15
        assert pod.runtime.get_active_vms()[ALICE] is vm


async def test_what_is_announced_in_order_is_taken_without_a_read(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[Journal] = []
    read_head = Journal.read_head

    async def note_and_read(journal: Journal, actor: ActorId) -> StoredCommit | None:
        readers.append(journal)
        return await read_head(journal, actor)

    monkeypatch.setattr(Journal, "read_head", note_and_read)
    async with holding(nats_server) as (pod, vm, journal):
        first = await deposit_behind_its_back(journal)
        await until(lambda: vm.get_version() == first and vm.can_sleep)  # by then it has looked once at what came since its replay
        readers.clear()
        before = pod.runtime.followers.behind
        for number in range(1, 11):
            version = await deposit_behind_its_back(journal)
            await until(lambda version=version: vm.get_version() == version)  # type: ignore[misc]  # the lambda's default only binds the loop's value
            assert pod.runtime.followers.behind == before + number
        assert set(readers) == {journal}, "the pod itself has read nothing"


async def test_what_is_stored_while_a_vm_replays_is_news_when_it_is_ready(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head that its replay read is old by then, and nothing is announced again."""
    read_head, heads = Journal.read_head, list[int]()
    async with running_pod(nats_server.url, "a") as pod:
        await CommandClient(pod.connection).send(ALICE, "Open", {"owner": "alice"})
    async with connected(nats_server.url) as connection:
        behind = await open_journal(connection)
        await deposit_behind_its_back(behind)

        async def read_and_fall_behind(journal: Journal, actor: ActorId) -> StoredCommit | None:
            head = await read_head(journal, actor)
            if journal is not behind and head is not None:
                heads.append(head.last_version)
                if len(heads) == 1:
                    await deposit_behind_its_back(behind)
            return head

        monkeypatch.setattr(Journal, "read_head", read_and_fall_behind)
        async with running_pod(nats_server.url, "a") as pod:
            vm = pod.runtime.create_vm(ALICE)
            await until(lambda: vm.is_ready and vm.get_version() == 3)
            assert heads == [2, 3], "once for the replay and once for the news"


async def test_what_is_stored_while_its_own_actor_replays_is_news_too(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last commit that the replay read is the pod's own."""
    read_head, is_first = Journal.read_head, True
    async with connected(nats_server.url) as connection, running_pod(nats_server.url, "a") as pod:
        await CommandClient(pod.connection).send(ALICE, "Open", {"owner": "alice"})
        await pod.runtime.stop_vm(ALICE)
        behind = await open_journal(connection)

        async def read_and_fall_behind(journal: Journal, actor: ActorId) -> StoredCommit | None:
            nonlocal is_first
            head = await read_head(journal, actor)
            if is_first:
                is_first = False
                await deposit_behind_its_back(behind)
                await asyncio.sleep(0.05)
            return head

        monkeypatch.setattr(Journal, "read_head", read_and_fall_behind)
        vm = pod.runtime.create_vm(ALICE)
        await until(lambda: vm.is_ready and vm.get_version() == 2)


async def test_what_is_stored_while_a_replaying_vm_is_cut_off_is_found_soon(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its announcement is lost, and the comparison after a cut is of those that are ready by then."""
    monkeypatch.setattr("aether_runtime.followers.SETTLE_S", 0.2)
    read_head, is_first = Journal.read_head, True
    async with CutLink.to(nats_server.port) as link, connected(nats_server.url) as connection:
        async with running_pod(nats_server.url, "a") as pod:
            await CommandClient(pod.connection).send(ALICE, "Open", {"owner": "alice"})
        behind = await open_journal(connection)
        await deposit_behind_its_back(behind)

        async with running_pod(link.url, "a") as pod:

            async def read_and_lose_the_link(journal: Journal, actor: ActorId) -> StoredCommit | None:
                nonlocal is_first
                head = await read_head(journal, actor)
                if is_first:
                    is_first = False
                    await link.cut()
                    await deposit_behind_its_back(behind)
                    link.mend()
                    await until(lambda: pod.connection.is_connected)
                    await asyncio.sleep(0.1)
                return head

            monkeypatch.setattr(Journal, "read_head", read_and_lose_the_link)
            vm = pod.runtime.create_vm(ALICE)
            await until(lambda: vm.is_ready and vm.get_version() == 3)


async def test_an_actor_that_nobody_had_before_leaves_no_subscription(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "a") as pod:
        await CommandClient(pod.connection).send(ALICE, "Open", {"owner": "alice"})
        assert len(pod.runtime.followers) == 0
        await pod.runtime.stop_vm(ALICE)
        await CommandClient(pod.connection).send(ALICE, "Deposit", {"amount": 1})
        assert len(pod.runtime.followers) == 0


async def test_a_vm_that_cannot_start_leaves_no_subscription(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection, running_pod(nats_server.url, "a") as pod:
        await connection.request(event_subject(ALICE, PARTITIONS), b"garbage")
        reply = await CommandClient(pod.connection).send(ALICE, "Deposit", {"amount": 1})
        assert reply.reason == Reason.QUARANTINED.value
        assert len(pod.runtime.followers) == 0


async def test_following_ends_and_leaves_no_subscription(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.followers.FOLLOW_S", 0.05)
    async with holding(nats_server) as (pod, vm, journal):
        await until(lambda: len(pod.runtime.followers) == 0)
        await deposit_behind_its_back(journal)
        reply = await CommandClient(pod.connection).send(ALICE, "Deposit", {"amount": 1})
        assert (reply.outcome, reply.version, vm.get_version()) == ("accepted", 4, 4)


@pytest.mark.parametrize("broadcast", [True, False])
async def test_a_comparison_finds_what_nobody_announced(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, broadcast: bool) -> None:
    monkeypatch.setattr("aether_runtime.followers.FOLLOW_S", 0.0)
    async with holding(nats_server, compare_every_s=0.1, broadcast=broadcast) as (pod, vm, journal):
        await until(lambda: len(pod.runtime.followers) == 0)
        for _ in range(2):
            version = await deposit_behind_its_back(journal)
            await until(lambda version=version: vm.get_version() == version)  # type: ignore[misc]  # the lambda's default only binds the loop's value


async def test_what_others_stored_while_the_node_was_cut_off_is_found_at_once(nats_server: EmbeddedServer) -> None:
    async with CutLink.to(nats_server.port) as link, running_pod(link.url, "a") as pod, connected(nats_server.url) as connection:
        await CommandClient(pod.connection).send(ALICE, "Open", {"owner": "alice"})
        vm = pod.runtime.get_active_vms()[ALICE]
        await link.cut()
        journal = await open_journal(connection)
        await deposit_behind_its_back(journal)
        version = await deposit_behind_its_back(journal)
        link.mend()
        await until(lambda: vm.get_version() == version)
        assert vm.get_state()["balance"] == 10


async def test_a_purge_behind_its_back_starts_the_actor_anew(nats_server: EmbeddedServer) -> None:
    async with holding(nats_server) as (pod, vm, journal):
        await journal.purge(ALICE, epoch=Epoch(1), writer="operator")
        await until(lambda: pod.runtime.get_active_vms().get(ALICE) not in (vm, None) and pod.runtime.get_active_vms()[ALICE].is_ready)
        assert pod.runtime.get_active_vms()[ALICE].get_version() == 0


async def test_heads_are_compared_by_actor_and_quiet_streams_are_left_out(nats_server: EmbeddedServer) -> None:
    actors = [parse_actor_id(NAMESPACE, "account", f"a{number}") for number in range(20)]
    async with connected(nats_server.url) as connection:
        journal = await open_journal(connection)
        heads = HeadComparison(JetStream(connection), NAMESPACE, PARTITIONS)
        for actor in actors:
            await append_events(journal, actor)
        known = {actor: Head(head.sequence, head.id) for actor in actors if (head := await journal.read_head(actor))}
        assert await heads.find_moved(known.items()) == []
        await append_events(journal, actors[3])
        await append_events(journal, actors[7])
        for _ in range(2):  # a replica may have been behind, so it is asked once more
            assert sorted(await heads.find_moved(known.items())) == sorted([actors[3], actors[7]])
        assert await heads.find_moved(known.items()) == []
        stranger = parse_actor_id(NAMESPACE, "account", "stranger")
        await append_events(journal, stranger)
        assert await heads.find_moved([(stranger, Head(0, ""))]) == [stranger]


async def test_an_actor_that_is_ahead_of_its_stream_has_another_past(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        assert await HeadComparison(JetStream(connection), NAMESPACE, PARTITIONS).find_moved([(ALICE, Head(7, "x"))]) == [ALICE]


@pytest.mark.parametrize("noise", [0, 3])
@pytest.mark.parametrize("more", [0, 2])
async def test_a_log_that_went_another_way_while_the_node_was_cut_off_is_replayed(nats_server: EmbeddedServer, more: int, noise: int) -> None:
    """A stream that is restored from a backup may reach the sequences that a VM knows by other commits."""
    plan = StreamPlan(1)
    async with CutLink.to(nats_server.port) as link, running_pod(link.url, "a", plan=plan) as pod, connected(nats_server.url) as connection:
        client = CommandClient(pod.connection)
        await client.send(ALICE, "Open", {"owner": "alice"})
        for _ in range(3):
            await client.send(ALICE, "Deposit", {"amount": 100})
        vm = pod.runtime.get_active_vms()[ALICE]
        await link.cut()
        await delete_streams(connection, NAMESPACE)
        journal = Journal(JetStream(connection), (await ensure_streams(connection, NAMESPACE, plan)).partitions)
        await append_events(journal, parse_actor_id(NAMESPACE, "account", "noise"), noise)
        for _ in range(4 + more):
            await journal.append(replace(build_next(ALICE, await journal.read_head(ALICE)), epoch=Epoch(0)))
        link.mend()
        await until(lambda: pod.runtime.get_active_vms().get(ALICE) not in (vm, None) and pod.runtime.get_active_vms()[ALICE].is_ready)
        assert pod.runtime.get_active_vms()[ALICE].get_state()["balance"] == sum(range(1, 5 + more))


async def test_a_head_of_the_same_sequence_and_another_id_has_moved(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection:
        journal = await open_journal(connection)
        await append_events(journal, ALICE)
        head = await journal.read_head(ALICE)
        assert head is not None
        heads = HeadComparison(JetStream(connection), NAMESPACE, PARTITIONS)
        for _ in range(3):  # from then on the stream counts as quiet
            assert await heads.find_moved([(ALICE, Head(head.sequence, head.id))]) == []
        assert await heads.find_moved([(ALICE, Head(head.sequence, "another"))]) == []
        heads.forget()
        assert await heads.find_moved([(ALICE, Head(head.sequence, "another"))]) == [ALICE]


async def test_streams_with_another_number_of_partitions_are_refused_also_where_no_actor_is_compared(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        heads = HeadComparison(JetStream(connection), NAMESPACE, PARTITIONS)
        assert await heads.find_moved([]) == []
        await delete_streams(connection, NAMESPACE)
        assert await heads.find_moved([]) == []
        await ensure_streams(connection, NAMESPACE, StreamPlan(PARTITIONS + 1))
        with pytest.raises(SettingsInvalid, match=f"made anew with {PARTITIONS + 1} partitions, {PARTITIONS} when"):
            await heads.find_moved([])


async def test_a_host_may_supply_the_vms_that_answer_calls(nats_server: EmbeddedServer) -> None:
    placements = Placements()
    placements.place(ALICE, PodUid("a"), 1)
    async with running_pod(nats_server.url, "a", placements) as pod:
        await CommandClient(pod.connection).send(ALICE, "Open", {"owner": "alice"})
        asked: list[ActorId] = []

        def provide(actor: ActorId) -> VirtualMachine | None:
            asked.append(actor)
            return pod.runtime.get_active_vms().get(ALICE)

        pod.runtime.router.set_vm_provider(provide)
        replies: list[Reply] = []
        pod.runtime.router.serve(build_command("Deposit", {"amount": 1}, id="d", time_s=time.time(), dry_run=True), replies.append)
        await until(lambda: bool(replies))
        assert (replies[0].outcome, asked) == ("accepted", [ALICE])
