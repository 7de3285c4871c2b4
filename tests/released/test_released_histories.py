"""Every build replays what every release has stored, answers repeats as that release did, and goes on behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from aether_api.headers import SNAPSHOT_FORMAT
from aether_api.identity import ActorId, PodUid, parse_actor_id
from aether_api.messages import Reply, encode_reply
from aether_model.load import build_model
from aether_model.model import Model
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.streams import ensure_streams
from aether_runtime.adapters.jetstream_snapshots import JetStreamSnapshotStore
from aether_runtime.adapters.memory import MemorySnapshotStore
from aether_runtime.core.snapshots import FORMAT
from aether_runtime.ports import SnapshotStore
from aether_runtime.replay import Replayed, replay
from aether_runtime.replays import ReplayWatch
from tests.histories.cluster import WAIT_S, Placements, connected, running_pod
from tests.histories.invariants import check_log, events_of, read_history
from tests.histories.world import Clock
from tests.released.__main__ import main
from tests.released.loading import load_release, read_expected, released_models
from tests.released.recording import FOLDER, find_versions, read_messages, write_messages

VERSIONS = find_versions()


@dataclass
class Release:
    """What a release left behind, on a server of today."""

    url: str
    version: str
    connection: NatsConnection
    models: dict[str, Model]
    expected: dict[ActorId, dict[str, Any]]

    @property
    def journal(self) -> Journal:
        return Journal(JetStream(self.connection), 2)

    async def replay(self, actor: ActorId, snapshots: SnapshotStore) -> Replayed:
        return await replay(actor, self.models[actor.model], self.journal, snapshots, ReplayWatch(Clock().now, lambda: None))


@pytest.fixture(params=VERSIONS)
async def release(request: pytest.FixtureRequest, nats_server: EmbeddedServer) -> AsyncIterator[Release]:
    async with connected(nats_server.url) as connection:
        await load_release(connection, request.param)
        expected = {parse_actor_id("default", *name.split("/")): found for name, found in read_expected(request.param).items()}
        with released_models(request.param) as resources:
            models = {resource.metadata.name: build_model(resource.metadata.name, resource.spec) for resource in resources}
            yield Release(nats_server.url, request.param, connection, models, expected)


def test_there_is_a_release_on_record() -> None:
    assert "v0.1.0" in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_the_record_of_a_release_reads_back_byte_for_byte(version: str, tmp_path: Path) -> None:
    write_messages(tmp_path / "again.jsonl", read_messages(FOLDER / version / "messages.jsonl"))
    assert (tmp_path / "again.jsonl").read_bytes() == (FOLDER / version / "messages.jsonl").read_bytes()


def test_nothing_that_is_on_record_is_written_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in (FOLDER / VERSIONS[-1]).glob("*.json*")}
    monkeypatch.setattr("sys.argv", ["tests.released", VERSIONS[-1]])
    assert main() == 1
    assert "nothing may change" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("with_snapshots", [True, False])
async def test_state_version_inbox_and_reminders_are_what_the_release_said(release: Release, with_snapshots: bool) -> None:
    for actor, expected in release.expected.items():
        snapshots = JetStreamSnapshotStore(JetStream(release.connection)) if with_snapshots else MemorySnapshotStore()
        replayed = await release.replay(actor, snapshots)
        history, model = replayed.history, release.models[actor.model]
        assert json.loads(model.encode_state(history.state)) == expected["state"], actor
        assert (history.position.version, str(history.inbox), dict(history.reminders), replayed.epoch) == (
            expected["version"],
            expected["inbox"],
            expected["reminders"],
            expected["epoch"],
        )
        may_be_used = with_snapshots and has_todays_snapshots(release.version)
        assert not may_be_used or (replayed.snapshot_version > 0, snapshots.dropped) == (True, 0), "a snapshot of the release is of no use"
        assert [history.window.find(id) for id in expected["answers"] if history.window.find(id) is None] == []


async def test_every_commit_of_a_release_is_found_by_its_index(release: Release) -> None:
    journal, longest = release.journal, 0
    for actor in release.expected:
        commits = await read_history(journal, actor)
        assert [commit.n for commit in commits] == list(range(len(commits)))
        for from_n in {len(commits) * part // 8 for part in range(8)}:
            found = [commit async for batch in journal.read_commits(actor, commits[-1], from_n=from_n) for commit in batch]
            assert found == commits[from_n:]
        longest = max(longest, len(commits))
    assert longest > 1024
    assert journal.scans == 0


async def test_repeats_get_the_answers_of_the_release_and_the_actors_go_on(release: Release) -> None:
    async with serving(release) as client:
        for actor, expected in release.expected.items():
            for id, answer in expected["answers"].items():
                assert show(await client.send(actor, *a_command(actor), command_id=id, timeout_s=WAIT_S)) == answer
            added = [await client.send(actor, *a_command(actor), command_id=f"today-{number}", timeout_s=WAIT_S) for number in range(3)]
            version = expected["version"] + len(expected.get("waiting", ()))
            assert [(reply.outcome, reply.version) for reply in added] == [("accepted", version + number) for number in (1, 2, 3)]
            commits = await read_history(release.journal, actor)
            if not commits[0].tombstone:
                check_log(commits)
            assert events_of(commits)[-1].version == version + 3


async def test_what_a_release_left_in_an_inbox_is_run(release: Release) -> None:
    waiting = {actor: expected["waiting"] for actor, expected in release.expected.items() if "waiting" in expected}
    assert waiting
    async with serving(release), asyncio.timeout(WAIT_S):
        while await Inbox(JetStream(release.connection), "default").read_backlog():
            await asyncio.sleep(0.02)
    for actor, ids in waiting.items():
        events = events_of(await read_history(release.journal, actor))
        assert [event.command_id for event in events[-len(ids) :]] == ids
        replayed = await release.replay(actor, MemorySnapshotStore())
        assert str(replayed.history.inbox) != release.expected[actor]["inbox"]


async def test_the_streams_of_a_release_are_taken_as_they_are(release: Release) -> None:
    js = JetStream(release.connection)
    names = await js.stream_names("aether.default.>")
    before = [await js.stream_info(name) for name in sorted(names)]
    layout = await ensure_streams(release.connection, "default")
    after = [await js.stream_info(name) for name in sorted(await js.stream_names("aether.default.>"))]
    assert layout.partitions == 2
    assert [info.config for info in after if info] == [info.config for info in before if info]


def has_todays_snapshots(version: str) -> bool:
    """Tell whether a release wrote snapshots of the form of today: those of another one are thrown away, which costs a longer replay."""
    return any(f"{SNAPSHOT_FORMAT}: {FORMAT}\r\n".encode() in message.headers for message in read_messages(FOLDER / version / "messages.jsonl"))


@asynccontextmanager
async def serving(release: Release) -> AsyncIterator[CommandClient]:
    """Run today's runtime on what the release left behind; what it had placed is placed again, at a higher epoch."""
    placements = Placements(models=[])
    for actor, expected in release.expected.items():
        if expected["epoch"]:
            placements.place(actor, PodUid("today"), expected["epoch"] + 1)
    async with running_pod(release.url, "today", placements, models=tuple(release.models.values())) as pod:
        yield CommandClient(pod.connection)


def a_command(actor: ActorId) -> tuple[str, dict[str, object]]:
    """Return a command that every actor of a model accepts."""
    return ("Book", {"cents": [1]}) if actor.model == "ledger" else ("Deposit", {"amount": 1})


def show(reply: Reply) -> dict[str, Any]:
    return cast("dict[str, Any]", msgspec.json.decode(encode_reply(reply)))
