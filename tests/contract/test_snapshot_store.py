"""The contract of the store of snapshots: in memory, on one server, and on three.

Any replica may answer, and one that is behind costs a longer replay and nothing else; so what was written is read in the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from aether_api.commit_index import NO_COMMITS
from aether_api.envelope import decode_fields
from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_runtime.adapters.jetstream_snapshots import JetStreamSnapshotStore
from aether_runtime.adapters.memory import MemoryCommitLog, MemorySnapshotStore
from aether_runtime.core.history import History, Position
from aether_runtime.core.snapshots import Snapshot, build_snapshot
from aether_runtime.core.window import CommandWindow
from aether_runtime.ports import CommitLog, SnapshotStore
from tests.histories.bank import compile_account
from tests.histories.places import PLACES, open_place, until_equal

ALICE, BOB = parse_actor_id("default", "account", "alice"), parse_actor_id("default", "account", "bob")


@pytest.fixture(params=["memory", *PLACES])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[tuple[SnapshotStore, CommitLog]]:
    if request.param == "memory":
        memory = MemorySnapshotStore()
        yield memory, MemoryCommitLog(memory)
        return
    async with open_place(request.param, request) as place, place.with_streams() as connection:
        yield JetStreamSnapshotStore(JetStream(connection)), Journal(JetStream(connection), 1)


@pytest.fixture
def snapshots(stores: tuple[SnapshotStore, CommitLog]) -> SnapshotStore:
    return stores[0]


def build(version: int, *, day: int = 1, **state: Any) -> Snapshot:
    window = CommandWindow()
    window.add(f"c-{version}", version, 1_782_907_200.25)
    position = Position(version, version * 10, NO_COMMITS.appended(version * 10), 0, f"c-{version}", f"2026-07-{day:02}T12:00:00.000000Z")
    return build_snapshot(History(compile_account(), position, {"owner": "alice", "balance": version, "open": True, **state}, window))


async def version_of(snapshots: SnapshotStore, actor: ActorId = ALICE, fold: str = compile_account().fold) -> int | None:
    body = await snapshots.read_latest(actor, fold)
    return None if body is None else body.version


async def versions_of(snapshots: SnapshotStore, actor: ActorId = ALICE) -> list[int]:
    return [body.version async for body in snapshots.read_kept(actor, compile_account().fold)]


async def count_dropped(snapshots: SnapshotStore) -> int:
    """Read once and return how many were found to be broken by now."""
    await version_of(snapshots)
    return min(1, snapshots.dropped)


async def until_version(snapshots: SnapshotStore, version: int | None, actor: ActorId = ALICE, fold: str = compile_account().fold) -> None:
    await until_equal(lambda: version_of(snapshots, actor, fold), version)


async def test_there_is_none_at_first(snapshots: SnapshotStore) -> None:
    assert await version_of(snapshots) is None


async def test_a_snapshot_comes_back_whole(snapshots: SnapshotStore) -> None:
    await snapshots.write(ALICE, build(3))
    await until_version(snapshots, 3)
    body = await snapshots.read_latest(ALICE, compile_account().fold)
    assert body is not None
    assert (decode_fields(body.state), body.version, body.sequence, body.n, body.incarnation, body.commit_id) == (
        {"owner": "alice", "balance": 3, "open": True},
        3,
        30,
        0,
        0,
        "c-3",
    )
    assert CommandWindow(body.window).find("c-3") == 3


async def test_the_newest_counts(snapshots: SnapshotStore) -> None:
    for version in (1, 2, 3):
        await snapshots.write(ALICE, build(version))
    await until_version(snapshots, 3)


async def test_actors_and_folds_have_snapshots_of_their_own(snapshots: SnapshotStore) -> None:
    await snapshots.write(ALICE, build(3))
    await snapshots.write(ALICE, replace(build(5), fold="another"))
    await until_version(snapshots, 3)
    await until_version(snapshots, 5, fold="another")
    await until_version(snapshots, None, BOB)


async def test_two_are_kept_and_read_newest_first(snapshots: SnapshotStore) -> None:
    for version in (1, 2, 3):
        await snapshots.write(ALICE, build(version))
        await snapshots.write(BOB, build(10 * version))
    await until_equal(lambda: versions_of(snapshots), [3, 2])
    await until_equal(lambda: versions_of(snapshots, BOB), [30, 20])


async def test_a_broken_snapshot_is_ignored_for_the_one_before(snapshots: SnapshotStore) -> None:
    await snapshots.write(ALICE, build(2))
    await until_version(snapshots, 2)
    await snapshots.write(ALICE, replace(build(3), payload=b"garbage"))
    await until_equal(lambda: count_dropped(snapshots), 1)
    await until_version(snapshots, 2)
    await snapshots.write(ALICE, replace(build(4), payload=b"garbage"))
    await until_version(snapshots, None)
    await snapshots.write(ALICE, build(5))
    await until_equal(lambda: versions_of(snapshots), [5])


async def test_a_purge_takes_the_snapshots_of_all_folds_with_it(stores: tuple[SnapshotStore, CommitLog]) -> None:
    snapshots, events = stores
    await snapshots.write(ALICE, build(3))
    await snapshots.write(ALICE, replace(build(3), fold="another"))
    await snapshots.write(BOB, build(4))
    await events.purge(ALICE, epoch=Epoch(1), writer="operator")
    await until_version(snapshots, None)
    await until_version(snapshots, None, fold="another")
    await until_version(snapshots, 4, BOB)


async def test_old_snapshots_of_former_folds_are_dropped_but_for_the_newest(snapshots: SnapshotStore) -> None:
    fold = compile_account().fold
    for former, day in (("oldest", 1), ("old", 2), ("recent", 9), ("newest", 10)):
        for version in (day, day + 1):
            await snapshots.write(ALICE, replace(build(version, day=day), fold=former))
        await until_version(snapshots, day + 1, fold=former)
    await snapshots.write(BOB, replace(build(1, day=1), fold="old"))
    await snapshots.write(ALICE, build(15, day=15))
    await snapshots.drop_outdated(ALICE, fold, "2026-07-15T12:00:00.000000Z")
    for former, kept in (("oldest", None), ("old", None), ("recent", 10), ("newest", 11), (fold, 15)):
        await until_version(snapshots, kept, fold=former)
    await until_version(snapshots, 1, BOB, fold="old")


async def test_the_snapshots_of_one_former_fold_stay_however_old_they_are(snapshots: SnapshotStore) -> None:
    await snapshots.write(ALICE, replace(build(1, day=1), fold="former"))
    await until_version(snapshots, 1, fold="former")
    await snapshots.write(ALICE, build(30, day=30))
    await snapshots.drop_outdated(ALICE, compile_account().fold, "2026-07-30T12:00:00.000000Z")
    await until_version(snapshots, 1, fold="former")


async def test_a_large_state_fits(snapshots: SnapshotStore) -> None:
    await snapshots.write(ALICE, build(3, owner="x" * 1_000_000))
    await until_version(snapshots, 3)
