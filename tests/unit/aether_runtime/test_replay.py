"""Replay: what a snapshot leaves out is read from the log again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress

import msgspec
import pytest

from aether_api.commit_index import NO_COMMITS, CommitIndex
from aether_api.envelope import StoredCommit
from aether_api.errors import EventInvalid, InvalidEnvelope, RequestTimeout, RetryableError
from aether_api.identity import ActorId, Epoch
from aether_api.messages import format_time
from aether_runtime import replay as replay_module
from aether_runtime.adapters.memory import MemoryCommitLog, MemorySnapshotStore
from aether_runtime.core import window as window_module
from aether_runtime.core.history import History
from aether_runtime.core.snapshots import SnapshotBody, build_snapshot
from aether_runtime.core.window import WINDOW_S
from aether_runtime.replay import Replayed, catch_up, replay
from aether_runtime.replays import ReplayWatch
from tests.histories.bank import ALICE, START_S, compile_account
from tests.histories.world import Clock
from tests.unit.aether_runtime.test_history import commit_after, store

COMMITS = 400
WATCH = ReplayWatch(Clock().now, lambda: None)


async def fill(events: MemoryCommitLog, snapshots: MemorySnapshotStore, *, snapshot_at: int) -> None:
    """Store commits a second apart, and a snapshot after some of them."""
    history = History.empty(compile_account())
    for number in range(COMMITS):
        fact = ("Deposited", {"amount": 1}) if number else ("Opened", {"owner": "alice"})
        commit = commit_after(history, fact, time=format_time(START_S + number))
        history.fold_commit(store(commit, await events.append(commit)))
        if number + 1 == snapshot_at:
            await snapshots.write(ALICE, build_snapshot(history))


@pytest.mark.parametrize("look_back", [10, 64, 1024])
async def test_a_window_that_was_too_big_for_its_snapshot_is_whole_after_a_replay(monkeypatch: pytest.MonkeyPatch, look_back: int) -> None:
    monkeypatch.setattr(window_module, "PACKED_MAX", 100)
    monkeypatch.setattr(replay_module, "REFILL_COMMITS", look_back)
    events, snapshots = MemoryCommitLog(), MemorySnapshotStore()
    await fill(events, snapshots, snapshot_at=COMMITS - 10)
    replayed = await replay(ALICE, compile_account(), events, snapshots, WATCH)
    assert (replayed.snapshot_version, replayed.events, replayed.history.position.version) == (COMMITS - 10, 10, COMMITS)
    window = replayed.history.window
    for version in range(COMMITS - int(WINDOW_S), COMMITS + 1):
        assert window.find(f"c-0-{version}") == version
    assert window.floor_s == 0


class ReadRecorder(MemoryCommitLog):
    """Notes the ordinals from which commits were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_from: list[int] = []

    def read_commits(self, actor: ActorId, head: StoredCommit, *, from_n: int = 0) -> AsyncGenerator[Sequence[StoredCommit]]:
        self.read_from.append(from_n)
        return super().read_commits(actor, head, from_n=from_n)


async def test_a_window_that_travelled_is_not_read_again() -> None:
    events, snapshots = ReadRecorder(), MemorySnapshotStore()
    await fill(events, snapshots, snapshot_at=COMMITS - 10)
    replayed = await replay(ALICE, compile_account(), events, snapshots, WATCH)
    assert replayed.history.window.find(f"c-0-{COMMITS - 10}") == COMMITS - 10
    assert events.read_from == [COMMITS - 10]


async def test_a_snapshot_at_a_commit_whose_index_is_broken_is_not_used() -> None:
    """What follows that commit could not be written: its index names what is not before it."""
    events, snapshots, history = MemoryCommitLog(), MemorySnapshotStore(), History.empty(compile_account())
    for index, fact in ((NO_COMMITS, ("Opened", {"owner": "alice"})), (CommitIndex(1, "zz"), ("Deposited", {"amount": 1}))):
        commit = msgspec.structs.replace(commit_after(history, fact), index=index)
        history.fold_commit(store(commit, await events.append(commit)))
    await snapshots.write(ALICE, build_snapshot(history))
    replayed = await replay(ALICE, compile_account(), events, snapshots, WATCH)
    assert (replayed.snapshot_version, replayed.history.position.version, replayed.history.state) == (0, 2, history.state)


class Breaths:
    """Counts the turns that the event loop takes beside what is under way."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._note)

    def _note(self) -> None:
        self.count += 1
        self._next = self._loop.call_soon(self._note)

    def stop(self) -> int:
        self._next.cancel()
        return self.count


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize(("fold_bytes", "expected"), [(1 << 20, 0), (1000, COMMITS // 5), (1, COMMITS)])
async def test_a_batch_of_large_commits_is_folded_in_slices_between_which_others_have_the_loop(
    monkeypatch: pytest.MonkeyPatch, follow: bool, fold_bytes: int, expected: int
) -> None:
    monkeypatch.setattr(replay_module, "FOLD_BYTES", fold_bytes)
    events, snapshots, history, seen = MemoryCommitLog(), MemorySnapshotStore(), History.empty(compile_account()), list[StoredCommit]()
    await fill(events, snapshots, snapshot_at=0)
    head = await events.read_head(ALICE)
    assert head is not None
    breaths = Breaths()
    if follow:
        await catch_up(history, ALICE, events, head, seen)
    else:
        history = (await replay(ALICE, compile_account(), events, snapshots, WATCH)).history
    assert breaths.stop() == pytest.approx(expected, rel=0.3)
    assert (history.position.version, [(commit.n, commit.payload) for commit in seen]) == (COMMITS, [(n, b"") for n in range(COMMITS)] if follow else [])


class TiredSnapshotStore(MemorySnapshotStore):
    """Gives no answer the first times; notes how often it was asked."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.asked = 0

    async def read_kept(self, actor: ActorId, fold: str) -> AsyncIterator[SnapshotBody]:
        self.asked += 1
        if self.asked <= self.failures:
            raise RequestTimeout("no answer in time")
        async for body in super().read_kept(actor, fold):
            yield body


async def replay_at_last(events: MemoryCommitLog, snapshots: MemorySnapshotStore, watch: ReplayWatch) -> Replayed:
    while True:
        with suppress(RetryableError):
            return await replay(ALICE, compile_account(), events, snapshots, watch)


@pytest.mark.parametrize(("failures", "expected"), [(0, (1, 390)), (1, (2, 390)), (2, (3, 390)), (1000, (3, 0))])
async def test_snapshots_that_cannot_be_read_now_are_asked_for_again_a_few_times(failures: int, expected: tuple[int, int]) -> None:
    """One lost answer made an actor replay its whole log."""
    events, snapshots = MemoryCommitLog(), TiredSnapshotStore(failures)
    await fill(events, snapshots, snapshot_at=COMMITS - 10)
    replayed = await replay_at_last(events, snapshots, ReplayWatch(Clock().now, lambda: None))
    assert (snapshots.asked, replayed.snapshot_version) == expected
    assert (replayed.history.position.version, snapshots.dropped) == (COMMITS, 0)


async def test_a_log_that_cannot_confirm_a_snapshot_now_is_asked_again_however_often_that_fails() -> None:
    class AwayLog(MemoryCommitLog):
        failures = 10

        async def read_at(self, actor: ActorId, sequence: int) -> StoredCommit | None:
            self.failures -= 1
            if self.failures >= 0:
                raise RequestTimeout("no answer in time")
            return await super().read_at(actor, sequence)

    events, snapshots = AwayLog(), MemorySnapshotStore()
    await fill(events, snapshots, snapshot_at=COMMITS - 10)
    replayed = await replay_at_last(events, snapshots, ReplayWatch(Clock().now, lambda: None))
    assert (replayed.snapshot_version, events.failures) == (COMMITS - 10, -1)


class TornLog(MemoryCommitLog):
    """Loses commits while they are read: to a purge, or for good."""

    def __init__(self, *, purged: bool) -> None:
        super().__init__()
        self.purged = purged

    async def read_commits(self, actor: ActorId, head: StoredCommit, *, from_n: int = 0) -> AsyncGenerator[Sequence[StoredCommit]]:
        if self.purged:
            await self.purge(actor, epoch=Epoch(9), writer="operator")
        if from_n <= head.n:
            raise InvalidEnvelope(f"commit {from_n} is missing from the log")
        yield []


@pytest.mark.parametrize(("purged", "expected"), [(True, RetryableError), (False, EventInvalid)])
async def test_commits_that_a_purge_took_while_they_were_read_are_no_broken_log(purged: bool, expected: type[Exception]) -> None:
    """Found by the simulation: a VM that started or caught up during a purge was quarantined."""
    for follow in (False, True):
        events, snapshots = TornLog(purged=purged), MemorySnapshotStore()
        await fill(events, snapshots, snapshot_at=0)
        head = await events.read_head(ALICE)
        assert head is not None
        with pytest.raises(expected):
            await (catch_up(History.empty(compile_account()), ALICE, events, head, []) if follow else replay(ALICE, compile_account(), events, snapshots, WATCH))
