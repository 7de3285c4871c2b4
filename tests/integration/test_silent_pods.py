"""A pod that hears and says nothing, while the server still counts it as connected: frozen, or behind a cut that nobody was told of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aether_api.identity import ActorId, PodUid, parse_actor_id
from aether_api.messages import Reply, decode_reply
from aether_api.subjects import command_subject
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_runtime.presence import choose_pod
from aether_runtime.runtime_message import RuntimeMessage
from tests.histories.bank import build_command
from tests.histories.cluster import WAIT_S, Placements, RunningPod, connected, open_journal, running_pod, until, until_live
from tests.histories.invariants import check_answers, check_log, read_history
from tests.integration.links import CutLink

ACTORS = [parse_actor_id("default", "account", f"a{number}") for number in range(12)]
"""Enough that chance spares none of those that a silent pod swallows half the time."""


@dataclass(frozen=True, slots=True)
class Pods:
    """Two pods, and a client; one pod is behind a link that a test can stall."""

    silent: RunningPod
    other: RunningPod
    link: CutLink
    connection: NatsConnection
    placements: Placements

    async def ask_live(self, actor: ActorId) -> Reply:
        """Ask the live VM of an actor once, and wait for its answer."""
        return decode_reply((await self.connection.request(command_subject("cmd", actor, "Deposit"), b'{"amount": 1}', timeout_s=WAIT_S)).payload)

    async def check_logs(self, replies: list[tuple[Reply, ...]]) -> None:
        """Each command took effect once, as its answer said; one list of replies for each actor."""
        journal = await open_journal(self.connection)
        for actor, given in zip(ACTORS, replies, strict=True):
            assert [reply.outcome for reply in given] == ["accepted"] * len(given)
            commits = await read_history(journal, actor)
            check_log(commits)
            check_answers(commits, given)
            assert commits[-1].last_version == len(given)


@asynccontextmanager
async def running_pods(server: EmbeddedServer) -> AsyncGenerator[Pods, None]:
    placements = Placements()
    async with (
        CutLink.to(int(server.url.rpartition(":")[2])) as link,
        running_pod(link.url, "pod-a", placements) as silent,
        running_pod(server.url, "pod-b", placements) as other,
        connected(server.url) as connection,
    ):
        await until_live([silent, other])
        yield Pods(silent, other, link, connection, placements)
        link.mend()


async def all_of(sends: Iterable[Coroutine[None, None, Reply]]) -> list[Reply]:
    """Send all at once and return the replies in order."""
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(send) for send in sends]
    return [task.result() for task in started]


async def test_commands_to_actors_that_were_placed_elsewhere_never_wait_for_the_silent_pod(nats_server: EmbeddedServer) -> None:
    async with running_pods(nats_server) as pods:
        for actor in ACTORS:
            pods.placements.place(actor, PodUid("pod-a"), 1)
        client = CommandClient(pods.connection)
        opened = [await client.send(actor, "Open", {"owner": actor.id}) for actor in ACTORS]
        pods.link.stall()
        for actor in ACTORS:
            pods.placements.place(actor, PodUid("pod-b"), 2, tell_old=False)
        await until(lambda: sum(vm.is_ready for vm in pods.other.runtime.get_active_vms().values()) == len(ACTORS))

        answers = await all_of(pods.ask_live(actor) for actor in ACTORS)

        pods.link.mend()  # the old pod gets all commands too, now
        await until(lambda: not pods.silent.runtime.get_active_vms())
        await pods.check_logs(list(zip(opened, answers, strict=True)))


async def test_actors_without_a_resource_are_served_by_the_pod_that_is_heard(nats_server: EmbeddedServer) -> None:
    async with running_pods(nats_server) as pods:
        assert {choose_pod(actor, [PodUid("pod-a"), PodUid("pod-b")]) for actor in ACTORS} == {"pod-a", "pod-b"}
        client = CommandClient(pods.connection)
        opened = [await client.send(actor, "Open", {"owner": actor.id}) for actor in ACTORS]
        asleep = [actor for actor in ACTORS if actor in pods.other.runtime.get_active_vms()][::2]
        for actor in asleep:
            await pods.other.runtime.stop_vm(actor)
        pods.link.stall()

        answers = await all_of(client.send(actor, "Deposit", {"amount": 1}, timeout_s=WAIT_S) for actor in ACTORS)

        assert set(pods.other.runtime.get_active_vms()) == set(ACTORS)
        await pods.check_logs(list(zip(opened, answers, strict=True)))
        pods.link.mend()
        await until(lambda: not set(pods.silent.runtime.get_active_vms()) & set(pods.other.runtime.get_active_vms()))
        await pods.check_logs(list(zip(opened, answers, strict=True)))


async def test_a_pod_takes_an_actor_over_in_a_moment_from_one_that_is_heard_no_more(nats_server: EmbeddedServer) -> None:
    """Before, each call waited for the silent VM with all of its time, for as long as that might have been asked first."""
    async with running_pods(nats_server) as pods:
        actor = next(actor for actor in ACTORS if choose_pod(actor, [PodUid("pod-a"), PodUid("pod-b")]) == "pod-a")
        opened = await CommandClient(pods.connection).send(actor, "Open", {"owner": actor.id})
        pods.link.stall()
        await until(lambda: list(pods.other.runtime.presence.pods.live()) == ["pod-b"])

        command = build_command("Deposit", {"amount": 1}, id="d", time_s=time.time(), actor=actor)
        answer = await pods.other.runtime.send_message(RuntimeMessage(command))

        assert (answer.outcome, answer.version) == ("accepted", opened.version + 1)
        pods.link.mend()
        await until(lambda: not set(pods.silent.runtime.get_active_vms()) & set(pods.other.runtime.get_active_vms()))
