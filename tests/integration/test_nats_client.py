"""The command client on a real server: which subjects it asks, when it asks again, and what a caller learns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from aether_api.errors import InvalidName, NoResponders, OutcomeUnknown, PermanentError, PermissionDenied, Reason
from aether_api.identity import parse_actor_id
from aether_api.messages import Command, Reply, build_error, encode_reply, parse_command
from aether_api.subjects import call_wildcard, command_wildcard, find_wildcard, parse_command_subject
from aether_nats.client import TRY_TIMEOUT_FIRST_S, CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.message import Message
from aether_nats.streams import StreamPlan, ensure_streams
from tests.histories.cluster import connected

pytestmark = pytest.mark.asyncio

ALICE = parse_actor_id("bank", "account", "alice")
NOW = "2026-01-31T12:00:00.000000Z"
NOW_S = 1769860800.0

Behaviour = Callable[["Service", Command], Reply | None]


@dataclass
class Service:
    """Answers commands as its behaviour says, and remembers them; None means that it stays silent."""

    connection: NatsConnection
    behaviour: Behaviour
    seen: list[Command] = field(default_factory=list)

    def __call__(self, message: Message) -> None:
        actor, name = parse_command_subject(message.subject)
        command = parse_command(actor, name, message.raw_headers, message.payload, now_s=NOW_S, fresh_id=lambda: "none")
        self.seen.append(command)
        reply = self.behaviour(self, command)
        if reply is not None:
            self.connection.publish(message.reply, encode_reply(reply))


async def serve(connection: NatsConnection, subject: str, behaviour: Behaviour) -> Service:
    service = Service(connection, behaviour)
    connection.subscribe(subject, service, queue="own")
    await connection.flush()
    return service


def accept(service: Service, command: Command) -> Reply:
    return Reply("accepted", version=len(service.seen), command_id=command.id)


async def test_the_live_vm_gets_the_command_as_it_was_meant() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        vm = await serve(pod, command_wildcard(ALICE), accept)
        reply = await CommandClient(outside).send(ALICE, "Deposit", {"amount": 5}, command_id="c-1", timeout_s=7, expected_version=3, dry_run=True)
        assert (reply.outcome, reply.version, reply.command_id) == ("accepted", 1, "c-1")
        (command,) = vm.seen
        assert (command.actor, command.name, command.id, command.payload) == (ALICE, "Deposit", "c-1", b'{"amount":5}')
        assert (command.expected_version, command.dry_run) == (3, True)
        assert command.timeout_s == TRY_TIMEOUT_FIRST_S, "a pod is told how long this try waits"
        assert command.time != NOW


async def test_any_pod_is_asked_when_no_vm_is_live() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        any_pod = await serve(pod, call_wildcard("bank"), accept)
        reply = await CommandClient(outside).send(ALICE, "Deposit", b'{"amount":1}')
        assert reply.outcome == "accepted"
        assert [(command.id, command.payload) for command in any_pod.seen] == [(reply.command_id, b'{"amount":1}')]


async def test_a_rejection_is_an_answer_and_is_not_asked_again() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        vm = await serve(pod, command_wildcard(ALICE), lambda service, command: Reply("rejected", version=4, reason="TooLittle"))
        reply = await CommandClient(outside).send(ALICE, "Withdraw")
        assert (reply.outcome, reply.reason, len(vm.seen)) == ("rejected", "TooLittle", 1)


async def test_a_lost_answer_is_asked_for_again_with_the_same_id_from_all_pods() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        frozen = await serve(pod, command_wildcard(ALICE), lambda service, command: None)
        elsewhere = await serve(pod, find_wildcard("bank"), accept)
        reply = await CommandClient(outside).send(ALICE, "Deposit", timeout_s=5)
        assert (reply.outcome, len(frozen.seen), len(elsewhere.seen)) == ("accepted", 1, 1)
        seen = [*frozen.seen, *elsewhere.seen]
        assert {command.id for command in seen} == {reply.command_id}
        assert len({command.time for command in seen}) == 1
        assert [command.timeout_s for command in seen] == [TRY_TIMEOUT_FIRST_S, 2 * TRY_TIMEOUT_FIRST_S]


async def test_a_vm_that_hears_no_find_is_asked_again_after_all_pods_were_silent() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        old = await serve(pod, command_wildcard(ALICE), lambda service, command: accept(service, command) if len(service.seen) > 1 else None)
        others = await serve(pod, find_wildcard("bank"), lambda service, command: None)
        reply = await CommandClient(outside).send(ALICE, "Deposit", timeout_s=10)
        assert (reply.outcome, len(old.seen), len(others.seen)) == ("accepted", 2, 1)


async def test_a_busy_actor_is_asked_again_after_the_time_that_it_names() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:

        def busy_at_first(service: Service, command: Command) -> Reply:
            return accept(service, command) if len(service.seen) > 2 else build_error(Reason.BUSY, "full", retry_after_ms=5)

        vm = await serve(pod, command_wildcard(ALICE), busy_at_first)
        assert (await CommandClient(outside).send(ALICE, "Deposit")).version == 3
        assert len(vm.seen) == 3


async def test_an_actor_that_stays_busy_says_so_at_the_deadline() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        await serve(pod, command_wildcard(ALICE), lambda service, command: build_error(Reason.BUSY, "full", retry_after_ms=20))
        reply = await CommandClient(outside).send(ALICE, "Deposit", timeout_s=0.1)
        assert (reply.outcome, reply.reason) == ("error", "Busy")


async def test_silence_until_the_deadline_leaves_the_outcome_unknown_and_names_the_id() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        await serve(pod, command_wildcard(ALICE), lambda service, command: None)
        with pytest.raises(OutcomeUnknown, match="c-9") as unknown:
            await CommandClient(outside).send(ALICE, "Deposit", command_id="c-9", timeout_s=0.1)
        assert unknown.value.command_id == "c-9"


@pytest.mark.parametrize("reason", [Reason.EXPIRED, Reason.SUSPENDED, Reason.QUARANTINED, Reason.UNKNOWN_MODEL, Reason.UNKNOWN_ACTOR, Reason.INTERNAL])
async def test_an_error_of_whoever_runs_nothing_leaves_the_outcome_of_a_lost_answer_unknown(reason: Reason) -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        vm = await serve(pod, command_wildcard(ALICE), lambda service, command: None)
        others = await serve(pod, find_wildcard("bank"), lambda service, command: build_error(reason, "no more"))
        with pytest.raises(OutcomeUnknown, match=f"the last try was answered {reason}: no more"):
            await CommandClient(outside).send(ALICE, "Deposit", timeout_s=20)
        assert (len(vm.seen), len(others.seen)) == (1, 1), "asking again and again tells nothing more"


async def test_an_error_of_the_actor_itself_settles_the_tries_before() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        await serve(pod, command_wildcard(ALICE), lambda service, command: None)
        await serve(pod, find_wildcard("bank"), lambda service, command: build_error(Reason.COMMAND_FAILED, "it broke"))
        assert (await CommandClient(outside).send(ALICE, "Deposit", timeout_s=5)).reason == "CommandFailed"


async def test_a_namespace_that_nobody_serves_is_named_and_a_late_pod_is_found() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        client = CommandClient(outside)
        with pytest.raises(NoResponders, match=r"aether\.bank\.call"):
            await client.send(ALICE, "Deposit", timeout_s=0.2)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(client.send(ALICE, "Deposit", timeout_s=5), name="send")
            await serve(pod, call_wildcard("bank"), accept)
        assert sending.result().outcome == "accepted"


async def test_a_command_outlives_a_restart_of_the_server() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        asked = asyncio.Event()

        def answer_second(service: Service, command: Command) -> Reply | None:
            asked.set()
            return accept(service, command) if len(service.seen) > 1 else None

        vm = await serve(pod, command_wildcard(ALICE), answer_second)
        async with asyncio.timeout(15), asyncio.TaskGroup() as group:
            sending = group.create_task(CommandClient(outside).send(ALICE, "Deposit", timeout_s=12), name="send")
            await asked.wait()
            await server.kill()
            await server.run()
        assert sending.result().outcome == "accepted"
        assert len({command.id for command in vm.seen}) == 1


async def test_a_command_that_is_no_name_is_refused_before_it_is_sent() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as outside:
        with pytest.raises(InvalidName, match="command"):
            await CommandClient(outside).send(ALICE, "Deposit.>")


USERS = """authorization { users: [
  {user: all, password: p}
  {user: deaf, password: p, permissions: {subscribe: {deny: ["_INBOX.>"]}}}
  {user: narrow, password: p, permissions: {publish: {deny: ["aether.*.find.>", "aether.*.inbox.>"]}}}
] }"""


@asynccontextmanager
async def pod_and(user: str) -> AsyncGenerator[tuple[NatsConnection, str]]:
    """Connect as one who may do everything, and return the URL of another user."""
    async with EmbeddedServer.start(extra_config=USERS) as server:
        address = server.url.removeprefix("nats://")
        async with connected(f"nats://all:p@{address}") as pod:
            await ensure_streams(pod, "bank", StreamPlan(partitions=1))
            yield pod, f"nats://{user}:p@{address}"


async def test_a_command_of_another_event_loop_is_refused_before_it_is_sent() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as pod, connected(server.url) as outside:
        await ensure_streams(outside, "bank", StreamPlan(1))
        vm = await serve(pod, command_wildcard(ALICE), accept)
        client = CommandClient(outside)

        async def use_elsewhere() -> None:
            for send in (client.send, client.send_durable):
                with pytest.raises(PermanentError, match="opened in another event loop"):
                    await send(ALICE, "Deposit")

        await asyncio.to_thread(asyncio.run, use_elsewhere())
        await client.send(ALICE, "Deposit", command_id="own")
        assert [command.id for command in vm.seen] == ["own"]
        assert (await client.send_durable(ALICE, "Deposit")).sequence == 1


async def test_who_may_hear_no_answer_does_not_know_whether_the_command_ran() -> None:
    async with pod_and("deaf") as (pod, url):
        vm = await serve(pod, command_wildcard(ALICE), accept)
        async with connected(url) as outside:
            with pytest.raises(OutcomeUnknown, match=r"_INBOX\.>") as caught:
                await CommandClient(outside).send(ALICE, "Deposit", command_id="c-1")
            assert isinstance(caught.value.__cause__, PermissionDenied)
            with pytest.raises(PermissionDenied):
                await CommandClient(outside).send(ALICE, "Deposit", command_id="c-2")
            await pod.flush()
            assert (caught.value.command_id, [command.id for command in vm.seen]) == ("c-1", ["c-1"])


async def test_who_may_hear_no_answer_does_not_know_whether_a_command_is_stored() -> None:
    async with pod_and("deaf") as (pod, url), connected(url) as outside:
        with pytest.raises(OutcomeUnknown, match="c-1"):
            await CommandClient(outside).send_durable(ALICE, "Deposit", command_id="c-1")
        with pytest.raises(PermissionDenied):
            await CommandClient(outside).send_durable(ALICE, "Deposit", command_id="c-2")
        assert await Inbox(JetStream(pod), "bank").read_backlog() == {ALICE: 1}


async def test_who_may_not_ask_all_pods_asks_the_live_vm_again() -> None:
    async with pod_and("narrow") as (pod, url):
        vm = await serve(pod, command_wildcard(ALICE), lambda service, command: accept(service, command) if len(service.seen) > 1 else None)
        async with connected(url) as outside:
            reply = await CommandClient(outside).send(ALICE, "Deposit", command_id="c-1")
            assert (reply.outcome, [command.id for command in vm.seen]) == ("accepted", ["c-1", "c-1"])


async def test_a_command_that_may_not_be_stored_is_denied() -> None:
    async with pod_and("narrow") as (_, url), connected(url) as outside:
        with pytest.raises(PermissionDenied, match=r"aether\.bank\.inbox"):
            await CommandClient(outside).send_durable(ALICE, "Deposit")
