"""The users of the chart's NATS on a real nats-server: everything works with them, and nobody can do what is not theirs."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from aether_api import headers
from aether_api.control import Assignment, AssignmentItem, decode_assignment_reply, encode
from aether_api.errors import AetherError, PermissionDenied
from aether_api.headers import encode_headers
from aether_api.identity import Epoch, PodUid, PoolName
from aether_api.subjects import assign_subject, dead_subject, event_subject, stored_subject
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.deliveries import EventStored
from aether_nats.embedded import EmbeddedServer
from aether_nats.event_bus import EventBus
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.message import Message
from aether_nats.pod_status import ask_pods
from aether_nats.settings import NatsSettings
from aether_nats.streams import StreamLayout, StreamPlan, ensure_streams
from tests.histories.bank import ALICE
from tests.histories.cluster import NAMESPACE, PARTITIONS, WAIT_S, Placements, connected, open_journal, running_pod
from tests.histories.invariants import read_history
from tests.unit.helm.program import find_helm

pytestmark = pytest.mark.asyncio

CHART = Path(__file__).parents[2] / "helm" / "aether"
DENIED_S = 0.3
"""Seconds after which a request that the server dropped is given up; whatever it says later is looked for in the log."""


@dataclass(frozen=True)
class Users:
    """A server with the chart's users, and the files with their credentials."""

    server: EmbeddedServer
    operator: Path
    runtime: Path

    def settings(self, credentials: Path | None = None) -> NatsSettings:
        return NatsSettings((self.server.url,), credentials_path=credentials)


@pytest.fixture
async def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Users]:
    documents = render_chart()
    secrets = {document["metadata"]["name"]: document["stringData"] for document in documents if document["kind"] == "Secret"}
    config = next(document["data"]["nats.conf"] for document in documents if document["kind"] == "ConfigMap")
    files = {}
    for user in ("operator", "runtime"):
        secret = secrets[f"aether-nats-{user}"]
        monkeypatch.setenv(f"AETHER_NATS_{user.upper()}_PASSWORD", secret["password"])
        files[user] = tmp_path / user
        files[user].write_text(secret["nats.creds"])
    async with EmbeddedServer.start(extra_config=config[config.index("no_auth_user") :]) as server:
        yield Users(server, files["operator"], files["runtime"])


def render_chart() -> list[dict[str, Any]]:
    program = find_helm()
    if program is None:
        pytest.skip("helm is not there: `make cluster` builds it")
    command = [program, "template", "aether", str(CHART), "--namespace=aether-system", "--kube-version=1.36.0", "--set", "nats.users.enabled=true"]
    return [document for document in yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout) if document]


@asynccontextmanager
async def as_client(users: Users) -> AsyncGenerator[NatsConnection]:
    """Connect without any credentials."""
    async with connected(users.settings(), "client") as connection:
        yield connection


async def is_denied(connection: NatsConnection, subject: str, payload: bytes = b"") -> bool:
    """Tell whether nobody answers a request that JetStream or a pod would answer."""
    try:
        await connection.request(subject, payload, timeout_s=DENIED_S)
    except AetherError:
        return True
    return False


async def test_everything_works_for_those_who_are_meant_to_do_it(users: Users) -> None:
    async with connected(users.settings(users.operator)) as operator, as_client(users) as client:
        await ensure_streams(operator, NAMESPACE, StreamPlan(PARTITIONS))
        async with running_pod(users.settings(users.runtime), "pod-a", Placements()), EventBus(client).subscribe_to_event_stored(NAMESPACE) as subscription:
            item = AssignmentItem("adopt", "alice", "u", ALICE.model, ALICE.id, 5)
            subject = assign_subject(NAMESPACE, PoolName("default"), PodUid("pod-a"))
            answer = await operator.request(subject, encode(Assignment(1, "pod-a", "boot-pod-a", (item,))), timeout_s=WAIT_S)
            assert decode_assignment_reply(answer.payload).results[0].verdict == "done"
            sender = CommandClient(client)
            assert (await sender.send(ALICE, "Open", {"owner": "alice"}, timeout_s=WAIT_S)).version == 1
            await sender.send_durable(ALICE, "Deposit", {"amount": 5}, command_id="d1")
            async with asyncio.timeout(WAIT_S):
                told = [await anext(subscription) for _ in range(2)]
            assert [item.version for item in told if isinstance(item, EventStored)] == [1, 2]
            assert [pod.pod_uid for pod in await ask_pods(client, f"aether.{NAMESPACE}.status.pods")] == ["pod-a"]
            journal = await open_journal(client)
            assert [commit.epoch for commit in await read_history(journal, ALICE)] == [5, 5], "a client may read the log"
            inbox = Inbox(JetStream(client), NAMESPACE)
            assert (await inbox.read_backlog(), await inbox.read_dead(ALICE)) == ({}, [])
        await (await open_journal(operator)).purge(ALICE, epoch=Epoch(6), writer="operator")


async def test_a_client_without_credentials_changes_nothing_that_is_not_a_command(users: Users) -> None:
    async with connected(users.settings(users.runtime)) as runtime, as_client(users) as client:
        layout = await ensure_streams(runtime, NAMESPACE, StreamPlan(PARTITIONS))
        heard: list[str] = []
        runtime.subscribe("aether.>", lambda message: heard.append(message.subject))
        await runtime.flush()
        for kind in ("evt.0.account.x", "snap.account.x.fold", "reminder.account.x.dun.t", "dead.account.x"):
            assert await is_denied(client, f"aether.{NAMESPACE}.{kind}", b"x"), kind
        for kind in ("stored.account.x", "wake.account.x", "assign.default.pod", "hb.default.pod", "report.pod", "pod.uid.held", "operator.p.ping"):
            client.publish(f"aether.{NAMESPACE}.{kind}", b"x")
        for api in (
            "CREATE.X",
            f"PURGE.{layout.inbox_stream}",
            f"DELETE.{layout.event_streams[0]}",
            f"UPDATE.{layout.snapshot_stream}",
            f"MSG.DELETE.{layout.inbox_stream}",
            f"SNAPSHOT.{layout.event_streams[0]}",
        ):
            assert await is_denied(client, f"$JS.API.STREAM.{api}", b"{}"), api
        for api in (f"CREATE.{layout.inbox_stream}", f"DURABLE.CREATE.{layout.inbox_stream}.x", f"DELETE.{layout.event_streams[0]}.x", f"MSG.NEXT.{layout.event_streams[0]}.x"):
            assert await is_denied(client, f"$JS.API.CONSUMER.{api}", b"{}"), api
        client.publish(f"aether.{NAMESPACE}.cmd.account.x.Open", b"{}")
        async with asyncio.timeout(WAIT_S):
            while not heard:
                await asyncio.sleep(0.01)
        assert heard == [f"aether.{NAMESPACE}.cmd.account.x.Open"]
        info = await JetStream(client).stream_info(layout.event_streams[0])
        assert info is not None
        assert info.state.last_seq == 0


async def test_a_client_without_credentials_takes_nobodys_commands_and_sees_nothing_that_may_be_refused(users: Users) -> None:
    async with connected(users.settings(users.operator)) as operator, as_client(users) as client:
        await ensure_streams(operator, NAMESPACE, StreamPlan(PARTITIONS))
        heard: list[Message] = []
        client.subscribe("aether.>", heard.append)
        await client.flush()
        for kind in ("cmd.account.x.Open", "call.account.x.Open", "pod.uid.call.account.x.Open", "assign.default.uid", "status.pods"):
            operator.publish(f"aether.{NAMESPACE}.{kind}", b"x")
        await operator.request(event_subject(ALICE, PARTITIONS), b"x", timeout_s=WAIT_S)
        async with asyncio.timeout(WAIT_S):
            while not heard:
                await asyncio.sleep(0.01)
        assert [message.subject for message in heard] == [stored_subject(ALICE)]


async def test_a_retry_of_a_dead_letter_that_is_denied_runs_nothing(users: Users) -> None:
    async with connected(users.settings(users.runtime)) as runtime, as_client(users) as client:
        await ensure_streams(runtime, NAMESPACE, StreamPlan(PARTITIONS))
        dead = encode_headers({headers.COMMAND_NAME: "Deposit", headers.COMMAND: "d1", headers.DEAD_REASON: "CommandFailed"})
        letter = (await JetStream(runtime).publish(dead_subject(ALICE), b"{}", dead)).sequence
        with pytest.raises(PermissionDenied, match=r"STREAM\.MSG\.DELETE"):
            await Inbox(JetStream(client), NAMESPACE).retry_dead(ALICE, letter)
        inbox = Inbox(JetStream(runtime), NAMESPACE)
        assert (await inbox.read_backlog(), [left.sequence for left in await inbox.read_dead(ALICE)]) == ({}, [letter])
        await inbox.retry_dead(ALICE, letter)
        assert (await inbox.read_backlog(), await inbox.read_dead(ALICE)) == ({ALICE: 1}, [])


async def test_no_runtime_writes_for_a_client_by_answering_where_that_may_not_publish(users: Users) -> None:
    async with connected(users.settings(users.operator)) as operator, as_client(users) as client:
        layout = await ensure_streams(operator, NAMESPACE, StreamPlan(PARTITIONS))
        placements = Placements()
        placements.place(ALICE, PodUid("pod-a"), 5)
        async with running_pod(users.settings(users.runtime), "pod-a", placements):
            sender = CommandClient(client)
            assert (await sender.send(ALICE, "Open", {"owner": "alice"}, timeout_s=WAIT_S)).version == 1
            for kind in ("cmd.account.alice.Nonsense", "call.account.alice.Nonsense", "find.account.alice.Nonsense", "status.pods", "status.account.alice"):
                client.publish(f"aether.{NAMESPACE}.{kind}", b"{}", reply=event_subject(ALICE, PARTITIONS))
            await client.flush()
            assert (await sender.send(ALICE, "Deposit", {"amount": 5}, timeout_s=WAIT_S)).version == 2
            assert await ask_pods(client, f"aether.{NAMESPACE}.status.pods"), "its questions are answered by now"
        assert await count_stored(client, layout) == 2


async def test_users_protect_against_mistakes_and_not_against_malice(users: Users) -> None:
    """The server stores its own answer wherever the reply says: the README says so, and has to be corrected once this fails."""
    async with connected(users.settings(users.operator)) as operator, as_client(users) as client:
        layout = await ensure_streams(operator, NAMESPACE, StreamPlan(PARTITIONS))
        stored, chosen = event_subject(ALICE, PARTITIONS), f"aether.{NAMESPACE}.inbox.nobody.x"
        await client.request(chosen, b"chosen", timeout_s=WAIT_S)
        client.publish("$JS.API.INFO", b"", reply=stored)
        client.publish(f"$JS.API.DIRECT.GET.{layout.inbox_stream}", b'{"last_by_subj":"%s"}' % chosen.encode(), reply=stored)
        async with asyncio.timeout(WAIT_S):
            while await count_stored(client, layout) < 2:
                await asyncio.sleep(0.01)


async def count_stored(connection: NatsConnection, layout: StreamLayout) -> int:
    """Return how many messages the event streams hold."""
    js = JetStream(connection)
    found = [await js.stream_info(stream) for stream in layout.event_streams]
    return sum(info.state.messages for info in found if info is not None)


@pytest.mark.parametrize("user", ["operator", "runtime"])
async def test_nobody_but_the_server_says_what_is_stored(users: Users, user: str) -> None:
    async with connected(users.settings(getattr(users, user))) as connection, connected(users.settings(users.operator)) as listener:
        heard: list[str] = []
        listener.subscribe("aether.>", lambda message: heard.append(message.subject))
        await listener.flush()
        connection.publish(stored_subject(ALICE), b"x")
        if user == "runtime":
            connection.publish(assign_subject(NAMESPACE, PoolName("default"), PodUid("pod-a")), b"x")
        connection.publish(f"aether.{NAMESPACE}.pod.uid.ping", b"x")
        async with asyncio.timeout(WAIT_S):
            while not heard:
                await asyncio.sleep(0.01)
        assert heard == [f"aether.{NAMESPACE}.pod.uid.ping"]
