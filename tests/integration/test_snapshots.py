"""The life of snapshots on a real server: when one is taken, what it saves, and what becomes of one that is of no use."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from aether_api.headers import FIRST_LINE
from aether_api.identity import ActorId, Epoch, PodUid
from aether_api.subjects import snapshot_subject, snapshot_wildcard
from aether_api.v1alpha1 import ActorPhase
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.inbox import Inbox, Tries
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StoredMessage
from aether_nats.streams import SNAPSHOTS_KEPT
from aether_runtime.adapters.kubernetes import build_conditions
from aether_runtime.exposition import build_registry, build_renderer
from aether_runtime.ports import Home
from tests.histories.alarm import CLOCK, Alarm
from tests.histories.bank import ALICE, compile_account
from tests.histories.cluster import WAIT_S, Load, Placements, RunningPod, connected, open_journal, running_pod, tells_ready, until

STREAM = "AETHER_default_SNAP"
SUBJECT = snapshot_subject(ALICE, compile_account().fold)
NEVER_S = 0.0


@dataclass
class Rig:
    """A server, what lies in its stream of snapshots, and pods that hold Alice."""

    server: EmbeddedServer
    connection: NatsConnection
    js: JetStream
    epoch: int = 0

    @property
    def client(self) -> CommandClient:
        return CommandClient(self.connection)

    @asynccontextmanager
    async def holding(self, *, every: int = 0, target_s: float = NEVER_S) -> AsyncGenerator[RunningPod]:
        """Run a pod that holds Alice under a rule."""
        self.epoch += 1
        placements = Placements()
        placements.place(ALICE, PodUid("a"), self.epoch)
        home = placements.homes[ALICE]
        placements.homes[ALICE] = Home(home.pod_uid, replace(home.desired, snapshot_every=every, recovery_target_s=target_s))
        async with running_pod(self.server.url, "a", placements) as pod:
            await until(lambda: tells_ready(pod, ALICE))
            yield pod

    async def deposit(self, numbers: range) -> None:
        await Load(self.client, [ALICE]).deposit(numbers, clients=1)

    async def stored(self) -> list[StoredMessage]:
        messages, _ = await self.js.read_batch(STREAM, SUBJECT, 1, 100)
        return messages


@pytest.fixture
async def rig(nats_server: EmbeddedServer) -> AsyncIterator[Rig]:
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        yield Rig(nats_server, connection, JetStream(connection))


def count(pod: RunningPod, result: str) -> float:
    """Return a counter as Prometheus would scrape it."""
    page, _ = build_renderer(build_registry(pod.runtime.metrics))("")
    line = next(line for line in page.decode().splitlines() if line.startswith(f'aether_snapshots_total{{result="{result}"}}'))
    return float(line.rpartition(" ")[2])


def replayed(pod: RunningPod) -> tuple[int, int, str, object]:
    """Return version, version of the snapshot, what the replay says of itself, and the balance."""
    vm = pod.runtime.get_active_vms()[ALICE]
    return vm.get_version(), vm.snapshot.version, vm.message, vm.get_state()["balance"]


async def fill(rig: Rig, deposits: int) -> None:
    """Let Alice have a history and a snapshot at its end."""
    async with rig.holding():
        await rig.client.send(ALICE, "Open", {"owner": "alice"}, timeout_s=WAIT_S)
        await rig.deposit(range(deposits))


async def test_by_count_snapshots_are_taken_while_commands_run_and_a_bounded_number_is_kept(rig: Rig) -> None:
    async with rig.holding(every=10) as pod, asyncio.timeout(2 * WAIT_S):
        await rig.client.send(ALICE, "Open", {"owner": "alice"}, timeout_s=WAIT_S)
        await rig.deposit(range(8))
        assert count(pod, "written") == 0
        while count(pod, "written") < SNAPSHOTS_KEPT + 2:
            await rig.client.send(ALICE, "Deposit", {"amount": 1}, timeout_s=WAIT_S)
        assert count(pod, "failed") == 0
    assert len(await rig.stored()) == SNAPSHOTS_KEPT


async def test_by_recovery_target_a_snapshot_is_taken_before_a_replay_would_take_too_long(rig: Rig) -> None:
    async with rig.holding(target_s=0.002) as pod:
        await rig.client.send(ALICE, "Open", {"owner": "alice"}, timeout_s=WAIT_S)
        assert count(pod, "written") == 0
        await rig.deposit(range(100))
        await until(lambda: count(pod, "written") >= 1)


async def test_without_a_rule_none_is_taken_but_at_the_end(rig: Rig) -> None:
    async with rig.holding() as pod:
        await rig.client.send(ALICE, "Open", {"owner": "alice"}, timeout_s=WAIT_S)
        await rig.deposit(range(60))
        assert count(pod, "written") == 0
        assert await rig.stored() == []
    assert len(await rig.stored()) == 1


async def test_an_actor_starts_from_its_snapshot_and_reads_only_what_came_after_it(rig: Rig) -> None:
    await fill(rig, 40)
    async with rig.holding() as pod:
        assert replayed(pod) == (41, 41, "replayed 0 events", 40)
        assert count(pod, "dropped") == 0


@pytest.mark.parametrize("damage", [lambda payload: b"garbage", lambda payload: payload.replace(b'"balance":40', b'"balance":41'), lambda payload: b""])
async def test_broken_snapshots_are_counted_and_after_two_of_them_everything_is_replayed(rig: Rig, damage: Callable[[bytes], bytes]) -> None:
    await fill(rig, 40)
    (good,) = await rig.stored()
    broken = damage(good.payload)
    assert broken != good.payload
    await rig.js.publish(SUBJECT, broken, lines_of(good))
    async with rig.holding() as pod:
        assert replayed(pod) == (41, 41, "replayed 0 events", 40), "the one before serves"
        assert count(pod, "dropped") == 1
    await rig.js.publish(SUBJECT, broken, lines_of(good))
    async with rig.holding() as pod:
        assert replayed(pod) == (41, 0, "replayed 41 events", 40)
        assert count(pod, "dropped") == 2
    async with rig.holding() as pod:
        assert replayed(pod) == (41, 41, "replayed 0 events", 40), "the next one takes its place"


async def test_a_snapshot_of_another_past_is_counted_and_not_used(rig: Rig) -> None:
    """As after a restore of the snapshots without the log, or of an older log."""
    await fill(rig, 40)
    (of_old_life,) = await rig.stored()
    await (await open_journal(rig.connection)).purge(ALICE, epoch=Epoch(rig.epoch), writer="test")
    assert await rig.stored() == []
    async with rig.holding():
        await rig.client.send(ALICE, "Open", {"owner": "again"}, timeout_s=WAIT_S)
        await rig.client.send(ALICE, "Deposit", {"amount": 7}, timeout_s=WAIT_S)
    for times, found in enumerate([(2, 2, "replayed 0 events", 7), (2, 0, "replayed 2 events", 7)], 1):
        await rig.js.publish(SUBJECT, of_old_life.payload, lines_of(of_old_life))
        async with rig.holding() as pod:
            assert replayed(pod) == found
            assert count(pod, "dropped") == times


def lines_of(message: StoredMessage) -> bytes:
    """Return the header lines that its writer gave a message."""
    lines = [line for line in message.raw_headers.removeprefix(FIRST_LINE + b"\r\n").split(b"\r\n") if line.startswith(b"Aether-")]
    return b"".join(line + b"\r\n" for line in lines)


async def test_what_former_models_left_goes_when_another_one_leaves_its_first_snapshot(rig: Rig) -> None:
    await fill(rig, 40)
    present = (await rig.stored())[-1]
    long_ago = re.sub(rb'"last_time":"[^"]+"', b'"last_time":"2026-01-01T12:00:00.000000Z"', present.payload)
    digest = hashlib.sha256(long_ago).hexdigest().encode()
    lines = re.sub(rb"Aether-Sha256: [^\r]+", b"Aether-Sha256: " + digest, lines_of(present))
    inbox = Inbox(rig.js, "default")
    await inbox.write_tries(ALICE, Tries(1, 1, 2))
    for fold, body, headers in (("before", present.payload, lines_of(present)), ("old", long_ago, lines), ("broken", b"x", lines)):
        await rig.js.publish(snapshot_subject(ALICE, fold), body, headers)
    await rig.js.purge(STREAM, SUBJECT)
    async with rig.holding(every=5):
        await rig.deposit(range(40, 50))
        await until(lambda: has_folds(rig, {"before", "inbox", compile_account().fold}))
    assert await inbox.read_tries(ALICE) is not None


async def has_folds(rig: Rig, expected: set[str]) -> bool:
    info = await rig.js.stream_info(STREAM, subjects_filter=snapshot_wildcard(ALICE))
    return info is not None and {subject.rpartition(".")[2] for subject in info.state.subjects} == expected


@pytest.mark.slow
async def test_a_state_that_exceeds_a_message_is_told_in_a_condition_and_the_actor_works_on(rig: Rig) -> None:
    placements = Placements()
    placements.place(CLOCK, PodUid("a"), 1)
    home = placements.homes[CLOCK]
    placements.homes[CLOCK] = Home(home.pod_uid, replace(home.desired, snapshot_every=1, recovery_target_s=NEVER_S))
    async with running_pod(rig.server.url, "a", placements, models=(Alarm(),)) as pod:
        while count(pod, "too_large") == 0:
            await ring(rig, CLOCK, size=1_000_000)
        await ring(rig, CLOCK, size=1)
        await until(lambda: bool(pod.sink.reports[CLOCK].snapshot_problem))
        report = pod.sink.reports[CLOCK]
    assert report.phase is ActorPhase.READY
    (condition,) = [condition for condition in build_conditions(report) if condition.type == "SnapshotTooLarge"]
    assert condition.status == "True"
    assert "does not fit" in condition.message


async def ring(rig: Rig, actor: ActorId, *, size: int) -> None:
    reply = await rig.client.send(actor, "Ring", {"label": "x" * size}, timeout_s=WAIT_S)
    assert reply.outcome == "accepted"
