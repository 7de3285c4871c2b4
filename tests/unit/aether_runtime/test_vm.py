"""One live actor on a log in memory: what it promises while appends are lost, refused or held, and while owners change."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from aether_api import headers
from aether_api.commit_index import NO_COMMITS
from aether_api.envelope import Commit, Event, StoredCommit, build_event_id, build_source, encode_event, encode_fields, join_events
from aether_api.errors import CommitTooLarge, Disconnected, InternalError, JetStreamError, PayloadTooLarge, Reason, RequestTimeout, StreamFull
from aether_api.identity import ActorId, Epoch
from aether_api.messages import Command, Reply
from aether_api.v1alpha1 import ActorPhase
from aether_model.decide import CompiledModel
from aether_model.model import CommandInput, Decision, State
from aether_runtime.adapters.memory import MemoryCommitLog, MemorySnapshotStore
from aether_runtime.answers import CONFLICTS_MAX
from aether_runtime.core.group import COMMANDS_MAX, Waiting
from aether_runtime.core.history import History
from aether_runtime.core.snapshots import FORMAT, Snapshot, SnapshotBody
from aether_runtime.core.window import hash_command_id
from aether_runtime.permits import Permit, Permits
from aether_runtime.snapshotter import SnapshotMark
from aether_runtime.vm import MAILBOX_BYTES_MAX, MAILBOX_MAX
from tests.histories.alarm import CLOCK, Alarm
from tests.histories.bank import ALICE, build_command, compile_account, compile_account_in_other_units, compile_account_with_stricter_guard, compile_unspeakable_account
from tests.histories.faults import Fate, FaultyCommitLog
from tests.histories.invariants import check_answers, check_log, events_of, read_history
from tests.histories.world import Call, Pod, run_commands, send_alone, settle

OPEN = build_command("Open", {"owner": "alice"}, id="open")


def deposit(id: str, amount: int = 1) -> Command:
    return build_command("Deposit", {"amount": amount}, id=id)


def withdraw(id: str, amount: int) -> Command:
    return build_command("Withdraw", {"amount": amount}, id=id)


def build_store(*fates: Fate) -> FaultyCommitLog:
    """Return a log whose appends have these fates, and then are stored."""
    waiting = list(fates)
    return FaultyCommitLog(MemoryCommitLog(), lambda commit: waiting.pop(0) if waiting else Fate.STORED)


async def append_foreign(
    events: FaultyCommitLog, *facts: tuple[str, dict[str, object]], epoch: int = 1, writer: str = "other/boot", id: str = "foreign", command: str = ""
) -> None:
    """Store a commit as another owner would."""
    commits = await read_history(events.inner, ALICE)
    head: StoredCommit | None = commits[-1] if commits else None
    version, incarnation = (head.last_version, head.incarnation) if head else (0, 0)
    time = events_of(commits)[-1].time if events_of(commits) else "2026-07-01T12:00:00.000000Z"
    encoded = [
        encode_event(Event("1.0", build_event_id(incarnation, version + place), build_source(ALICE), type, time, encode_fields(data), command))
        for place, (type, data) in enumerate(facts, 1)
    ]
    index = head.next_index() if head else NO_COMMITS
    commit = Commit(id, ALICE, head.sequence if head else 0, version + 1, version + len(facts), index, Epoch(epoch), writer, "account@x", join_events(encoded), incarnation)
    await events.inner.append(commit)


async def history_of(events: FaultyCommitLog) -> list[StoredCommit]:
    found = await read_history(events.inner, ALICE)
    check_log(found)
    return found


def outcomes(replies: list[Reply]) -> list[tuple[str, int, str]]:
    return [(reply.outcome, reply.version, reply.reason) for reply in replies]


async def test_commands_are_stored_and_answered_with_their_own_versions() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    replies = await run_commands(pod, vm, OPEN, deposit("d1", 5), withdraw("w1", 9), deposit("d2", 2))
    assert outcomes(replies) == [("accepted", 1, ""), ("accepted", 2, ""), ("rejected", 2, "InsufficientFunds"), ("accepted", 3, "")]
    assert (vm.get_version(), vm.get_state()) == (3, {"owner": "alice", "balance": 7, "open": True})
    check_answers(await history_of(events), replies)


async def test_what_waits_while_an_append_is_under_way_becomes_one_commit() -> None:
    events = build_store(Fate.STORED, Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    calls = [await send_alone(pod, vm, deposit("d0")), *(pod.send(vm, deposit(f"d{number}")) for number in range(1, 20))]
    await settle(pod)
    assert [len(call.answers) for call in calls] == [0] * 20
    events.release()
    await settle(pod, until=lambda: all(call.answers for call in calls))
    assert [(commit.first_version, commit.last_version) for commit in await history_of(events)] == [(1, 1), (2, 2), (3, 21)]
    assert [call.reply.version for call in calls] == list(range(2, 22))


async def test_what_a_stage_queues_is_written_at_its_end() -> None:
    """Answers leave before the next group is decided, and its append right behind it."""
    events = build_store(Fate.STORED, Fate.HELD)
    written: list[tuple[int, int]] = []
    calls: list[Call] = []
    pod = Pod("a", events, write=lambda: written.append((len(events.appends), sum(len(call.answers) for call in calls))))
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    written.clear()
    calls += [await send_alone(pod, vm, deposit("d0")), pod.send(vm, deposit("d1"))]
    assert (2, 0) in written, "the append of d0"
    written.clear()
    events.release()
    await settle(pod, until=lambda: all(call.answers for call in calls))
    assert list(dict.fromkeys(written)) == [(2, 1), (3, 1), (3, 2)], "the answer to d0, the append of d1, the answer to d1"


async def test_a_lost_ack_is_found_in_the_log_and_answered_as_accepted() -> None:
    events = build_store(Fate.STORED, Fate.STORED_ACK_LOST)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    replies = await run_commands(pod, vm, deposit("d1", 5), deposit("d2", 6))
    assert outcomes(replies) == [("accepted", 2, ""), ("accepted", 3, "")]
    check_answers(await history_of(events), replies)
    assert (len(events_of(await history_of(events))), vm.get_state()["balance"]) == (3, 11)


async def test_a_lost_ack_is_found_although_another_owner_wrote_after_it() -> None:
    events = build_store(Fate.STORED, Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    call = pod.send(vm, deposit("d1", 5))
    await settle(pod)
    await events.inner.append(events.appends[-1])
    await append_foreign(events, ("Deposited", {"amount": 100}))
    events.release()
    await settle(pod, until=lambda: bool(call.answers))
    assert (call.reply.outcome, call.reply.version, vm.get_state()["balance"]) == ("accepted", 2, 105)
    assert len(events_of(await history_of(events))) == 3


async def test_a_refused_group_is_decided_again_on_the_new_state() -> None:
    events = build_store(Fate.STORED, Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN, deposit("d1", 10))
    call = pod.send(vm, withdraw("w1", 10))
    await settle(pod, until=lambda: events.holds)
    await append_foreign(events, ("Withdrawn", {"amount": 4}))
    events.release()
    await settle(pod, until=lambda: bool(call.answers))
    assert (call.reply.outcome, call.reply.version, call.reply.reason) == ("rejected", 3, "InsufficientFunds")
    assert vm.get_state()["balance"] == 6


async def test_a_group_that_is_decided_again_goes_before_what_came_meanwhile() -> None:
    events = build_store(Fate.STORED, Fate.STORED, Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    await run_commands(pod, vm, deposit("d1", 10))
    first = pod.send(vm, withdraw("w1", 6))
    await settle(pod, until=lambda: events.holds)
    second = pod.send(vm, withdraw("w2", 6))
    await append_foreign(events, ("Deposited", {"amount": 1}))
    events.release()
    await settle(pod, until=lambda: bool(first.answers and second.answers))
    assert outcomes([first.reply, second.reply]) == [("accepted", 4, ""), ("rejected", 4, "InsufficientFunds")]


async def test_a_group_that_keeps_losing_is_answered_conflict_and_nothing_of_it_is_stored() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    events.choose = lambda commit: Fate.HELD
    call = pod.send(vm, deposit("d1", 1000))
    for round in range(CONFLICTS_MAX + 1):
        await settle(pod, until=lambda: events.holds)
        await append_foreign(events, ("Deposited", {"amount": 1}), id=f"foreign-{round}")
        events.release()
    await settle(pod, until=lambda: bool(call.answers))
    assert (call.reply.outcome, call.reply.reason, call.reply.retry_after_ms > 0) == ("error", Reason.CONFLICT, True)
    assert vm.get_state()["balance"] == CONFLICTS_MAX + 1
    events.choose = lambda commit: Fate.STORED
    assert outcomes(await run_commands(pod, vm, deposit("d2"))) == [("accepted", CONFLICTS_MAX + 3, "")]


async def test_a_spurious_refusal_is_waited_out() -> None:
    """A replicated stream refuses while another write is under way, and then shows that write."""
    events = build_store(Fate.STORED, Fate.REFUSED)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    call = pod.send(vm, deposit("d1", 5))
    await settle(pod, turns_max=50)
    assert call.answers == []
    await append_foreign(events, ("Deposited", {"amount": 1}))
    async with asyncio.timeout(5):
        while not call.answers:
            await asyncio.sleep(0.01)
    assert (call.reply.outcome, call.reply.version) == ("accepted", 3)


async def test_a_rejection_is_sent_only_after_the_log_confirmed_it() -> None:
    """L3: the actor believes that there is no money, but another owner has deposited some."""
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    await append_foreign(events, ("Deposited", {"amount": 50}))
    replies = await run_commands(pod, vm, withdraw("w1", 10))
    assert outcomes(replies) == [("accepted", 3, "")]


@pytest.mark.parametrize(
    "command",
    [withdraw("w1", 10), build_command("Deposit", {"amount": 1}, id="v", expected_version=7), build_command("Deposit", {"amount": 1}, id="dry", dry_run=True)],
    ids=["rejection", "wrong version", "dry run"],
)
async def test_an_answer_that_stores_nothing_waits_while_the_log_is_away(command: Command) -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    events.away = True
    call = pod.send(vm, command)
    await settle(pod, turns_max=50)
    assert call.answers == []
    events.away = False
    async with asyncio.timeout(5):
        while not call.answers:
            await asyncio.sleep(0.01)
    assert call.reply.version in (1, 2)


async def test_a_stop_while_the_log_is_away_never_confirms_what_it_does_not_know() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    events.away = True
    call = pod.send(vm, withdraw("w1", 10))
    await settle(pod, turns_max=20)
    await vm.stop()
    await settle(pod)
    assert (call.reply.outcome, call.reply.retry_after_ms > 0) == ("error", True)
    assert pod.ended == [], "a log that is away fences nobody"


async def test_an_answer_from_before_a_purge_is_never_sent() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    await events.inner.purge(ALICE, epoch=Epoch(1), writer="operator")
    call = pod.send(vm, withdraw("w1", 10))
    await settle(pod, until=lambda: bool(call.answers))
    assert (call.reply.outcome, call.reply.reason, call.reply.retry_after_ms > 0) == ("error", Reason.BUSY, True)
    assert pod.ended == [vm]


async def test_an_append_after_a_purge_is_refused_and_ends_the_vm() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    await events.inner.purge(ALICE, epoch=Epoch(1), writer="operator")
    call = pod.send(vm, deposit("d1"))
    await settle(pod, until=lambda: bool(call.answers))
    assert (call.reply.reason, call.reply.retry_after_ms > 0, pod.ended) == (Reason.UNKNOWN, True, [vm])
    heir = await pod.start(2)
    assert outcomes(await run_commands(pod, heir, build_command("Open", {"owner": "bob"}, id="again"))) == [("accepted", 1, "")]


async def test_a_log_that_lost_its_end_ends_the_vm() -> None:
    """After a restore from a backup the actor's last commits are gone: nothing that the VM believes can be confirmed."""
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    await run_commands(pod, vm, deposit("d1", 5))
    older = MemoryCommitLog()
    await older.append(events.appends[0])
    events.inner = older
    call = pod.send(vm, withdraw("w1", 100))
    await settle(pod, until=lambda: bool(call.answers))
    assert (call.reply.outcome, call.reply.reason, pod.ended) == ("error", Reason.BUSY, [vm])


async def test_a_log_that_is_empty_again_ends_the_vm() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    events.inner = MemoryCommitLog()
    calls = [await send_alone(pod, vm, withdraw("w1", 100)), pod.send(vm, deposit("d1"))]
    await settle(pod, until=lambda: all(call.answers for call in calls))
    assert ([call.reply.reason for call in calls], pod.ended) == ([Reason.BUSY] * 2, [vm])


async def test_a_commit_of_a_higher_epoch_fences_the_vm() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start(5)
    await run_commands(pod, vm, OPEN)
    await append_foreign(events, ("Deposited", {"amount": 1}), epoch=6)
    calls = [pod.send(vm, deposit("d1")), pod.send(vm, deposit("d2"))]
    await settle(pod, until=lambda: all(call.answers for call in calls))
    assert [(call.reply.outcome, call.reply.reason, call.reply.retry_after_ms > 0) for call in calls] == [("error", Reason.BUSY, True)] * 2
    assert pod.ended == [vm]
    assert (pod.reports[-1].reason, pod.reports[-1].fenced_by) == (Reason.FENCED, 6)
    assert len(events_of(await history_of(events))) == 2
    assert pod.send(vm, deposit("d3")).reply.reason == Reason.BUSY


async def test_a_rejection_under_a_higher_epoch_is_not_this_pods_to_give() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start(5)
    await run_commands(pod, vm, OPEN)
    await append_foreign(events, ("Deposited", {"amount": 1}), epoch=6)
    call = pod.send(vm, withdraw("w1", 100))
    await settle(pod, until=lambda: bool(call.answers))
    assert (call.reply.reason, pod.ended) == (Reason.BUSY, [vm])


async def test_a_vm_that_starts_below_the_epoch_of_the_log_is_fenced_at_once() -> None:
    events = build_store()
    await append_foreign(events, ("Opened", {"owner": "alice"}), epoch=9)
    pod = Pod("a", events)
    vm = await pod.start(8)
    assert (pod.ended, pod.ready, pod.reports[-1].fenced_by) == ([vm], [], 9)


@pytest.mark.parametrize("may_keep", [True, False])
async def test_of_two_owners_with_equal_epoch_the_one_that_is_named_stays(may_keep: bool) -> None:
    events = build_store()
    pod = Pod("a", events)
    pod.may_keep = may_keep
    vm = await pod.start(5)
    await run_commands(pod, vm, OPEN)
    await append_foreign(events, ("Deposited", {"amount": 1}), epoch=5)
    call = pod.send(vm, deposit("d1"))
    await settle(pod, until=lambda: bool(call.answers))
    assert (call.reply.outcome, pod.ended) == (("accepted", []) if may_keep else ("error", [vm]))


async def test_an_actor_without_a_resource_goes_on_at_the_epoch_of_its_log() -> None:
    """Its resource was deleted and its events stayed: there is no placement that could outrank them any more."""
    events = build_store()
    await append_foreign(events, ("Opened", {"owner": "alice"}), epoch=9)
    pod = Pod("a", events)
    vm = await pod.start(0, name="")
    assert (pod.ended, pod.ready) == ([], [vm])
    assert outcomes(await run_commands(pod, vm, deposit("d1"))) == [("accepted", 2, "")]
    assert [commit.epoch for commit in await history_of(events)] == [9, 9]
    vm.take_placement(pod.build(0, name="").desired)
    assert outcomes(await run_commands(pod, vm, withdraw("w1", 100))) == [("rejected", 2, "InsufficientFunds")]
    assert outcomes(await run_commands(pod, vm, deposit("d2"))) == [("accepted", 3, "")]
    await append_foreign(events, ("Deposited", {"amount": 1}), epoch=10)
    assert outcomes(await run_commands(pod, vm, deposit("d3"))) == [("error", -1, Reason.BUSY)]
    assert pod.ended == [vm]


async def test_a_repeat_of_an_accepted_command_gets_its_first_answer_from_any_pod() -> None:
    events = build_store()
    first = Pod("a", events)
    vm = await first.start(1)
    await run_commands(first, vm, OPEN)
    original = (await run_commands(first, vm, deposit("d1", 5), deposit("d2", 6)))[0]
    assert (await run_commands(first, vm, deposit("d1", 5)))[0] == original
    second = Pod("b", events)
    heir = await second.start(2)
    assert (await run_commands(second, heir, deposit("d1", 5)))[0] == original
    assert heir.get_state()["balance"] == 11


async def test_a_command_of_several_events_is_stored_whole_answered_as_first_when_repeated_and_replayed() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start(actor=CLOCK, model=Alarm())
    ring = build_command("RingTwice", {}, id="ring", actor=CLOCK)
    original = (await run_commands(pod, vm, ring))[0]
    assert (original.version, [event.version for event in original.events]) == (2, [1, 2])
    assert await run_commands(pod, vm, ring) == [original]
    heir = await Pod("b", events).start(2, actor=CLOCK, model=Alarm())
    assert (heir.phase, heir.get_version(), heir.get_state()) == (ActorPhase.READY, 2, {"rang": ["RingTwice"] * 2})


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all ids that begin alike one hash, up to a dash."""
    for module in ("group", "history", "window"):
        monkeypatch.setattr(f"aether_runtime.core.{module}.hash_command_id", lambda command_id: hash_command_id(command_id.partition("-")[0]))


@pytest.mark.usefixtures("twins")
async def test_of_commands_whose_ids_share_a_hash_each_takes_effect_once_and_gets_its_own_first_answer_again() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    first = [(await run_commands(pod, vm, deposit(f"d-{number}", number)))[0] for number in (1, 2, 3)]
    assert outcomes(first) == [("accepted", 2, ""), ("accepted", 3, ""), ("accepted", 4, "")]
    for holder, holder_vm in ((pod, vm), (heir := Pod("b", events), await heir.start(2))):
        assert await run_commands(holder, holder_vm, *(deposit(f"d-{number}", number) for number in (1, 2, 3))) == first
        assert holder_vm.get_state()["balance"] == 6


@pytest.mark.usefixtures("twins")
async def test_a_command_whose_hash_is_known_is_not_run_while_the_commit_cannot_be_read() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN, deposit("d-1"))
    events.read_error = RequestTimeout("no answer in time")
    reply = (await run_commands(pod, vm, deposit("d-2")))[0]
    assert (reply.outcome, reply.reason, reply.retry_after_ms > 0, vm.get_version()) == ("error", Reason.BUSY, True, 2)


async def test_a_repeat_that_cannot_be_looked_up_now_is_told_to_come_back() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    events.read_error = JetStreamError(500, 1, "broken")
    reply = (await run_commands(pod, vm, OPEN))[0]
    assert (reply.outcome, reply.retry_after_ms > 0) == ("error", True)


async def test_a_command_whose_hash_is_known_is_not_run_while_its_commit_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find_nothing(actor: ActorId, sequence: int) -> None:
        return None

    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN, deposit("d1"))
    monkeypatch.setattr(events, "read_at", find_nothing)
    reply = (await run_commands(pod, vm, deposit("d1")))[0]
    assert (reply.outcome, reply.reason, reply.retry_after_ms > 0, vm.get_version()) == ("error", Reason.BUSY, True, 2)


async def test_repeats_whose_look_up_is_cut_short_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    async def hang(actor: ActorId, sequence: int) -> None:
        asked.append(sequence)
        await asyncio.Event().wait()

    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN, deposit("d1"))
    monkeypatch.setattr(events, "read_at", hang)
    calls = [pod.send(vm, OPEN), pod.send(vm, deposit("d1"))]
    await settle(pod, until=lambda: bool(asked))
    for task in pod.tasks:
        task.cancel()
    await settle(pod)
    assert [call.reply.reason for call in calls] == [Reason.BUSY] * 2


async def test_repeats_count_as_backlog_while_they_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    held = list[int]()
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    read = events.read_at

    async def look(actor: ActorId, sequence: int) -> StoredCommit | None:
        held.append(pod._services.backlog._held)
        return await read(actor, sequence)

    await run_commands(pod, vm, OPEN)
    monkeypatch.setattr(events, "read_at", look)
    await run_commands(pod, vm, OPEN)
    assert (held[0] > 0, pod._services.backlog._held) == (True, 0)


async def test_a_poison_event_quarantines_the_actor_and_names_it() -> None:
    events = build_store()
    await append_foreign(events, ("Opened", {"owner": "alice"}))
    await append_foreign(events, ("Stolen", {}), id="poison")
    pod = Pod("a", events)
    vm = await pod.start()
    assert (vm.phase, pod.ready) == (ActorPhase.QUARANTINED, [])
    assert "Stolen" in pod.reports[-1].message
    assert "sequence 2" in pod.reports[-1].message
    call = pod.send(vm, deposit("d1"))
    assert (call.reply.outcome, call.reply.reason, call.reply.version) == ("error", Reason.QUARANTINED, pod.reports[-1].version)
    assert call.reply.version == 2, "what the log holds, not how much of it could be applied"
    await vm.stop()


async def test_a_poison_event_of_another_writer_quarantines_a_live_actor_and_answers_everybody() -> None:
    events = build_store(Fate.STORED, Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    calls = [await send_alone(pod, vm, deposit("d0")), *(pod.send(vm, deposit(f"d{number}")) for number in (1, 2))]
    await settle(pod, until=lambda: events.holds)
    await append_foreign(events, ("Stolen", {}))
    events.release()
    await settle(pod, until=lambda: all(call.answers for call in calls))
    assert [call.reply.reason for call in calls] == [Reason.UNKNOWN, Reason.QUARANTINED, Reason.QUARANTINED]
    assert vm.phase is ActorPhase.QUARANTINED


async def test_a_full_mailbox_says_busy_at_once() -> None:
    events = build_store(Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    first = await send_alone(pod, vm, OPEN)
    calls = [pod.send(vm, deposit(f"d{number}")) for number in range(MAILBOX_MAX + 1)]
    assert (calls[-1].reply.reason, calls[-1].reply.retry_after_ms > 0) == (Reason.BUSY, True)
    events.release()
    await settle(pod, until=lambda: all(call.answers for call in calls))
    assert first.reply.version == 1
    assert [call.reply.version for call in calls[:-1]] == list(range(2, MAILBOX_MAX + 2))
    assert len(await history_of(events)) == 1 + MAILBOX_MAX // COMMANDS_MAX


async def test_large_commands_fill_a_mailbox_by_their_bytes_and_small_ones_still_fit() -> None:
    events = build_store(Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    await send_alone(pod, vm, OPEN)
    eighth = b" " * (MAILBOX_BYTES_MAX // 8)
    large = [pod.send(vm, msgspec.structs.replace(deposit(f"large{number}"), payload=eighth)) for number in range(9)]
    small = pod.send(vm, deposit("small"))

    assert [bool(call.answers) for call in (*large, small)] == [False] * 8 + [True, False]
    assert large[-1].reply.reason == Reason.BUSY
    events.release()
    await settle(pod, until=lambda: small.answers)
    assert small.reply.outcome == "accepted"


async def test_what_arrives_during_replay_waits_for_it() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = pod.build()
    call = pod.send(vm, OPEN)
    assert call.answers == []
    await vm.start()
    await settle(pod, until=lambda: bool(call.answers))
    assert call.reply.version == 1


async def test_a_stop_finishes_the_append_under_way_and_sends_everything_else_away() -> None:
    events = build_store(Fate.STORED, Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    calls = [await send_alone(pod, vm, deposit("d0")), *(pod.send(vm, deposit(f"d{number}")) for number in (1, 2))]
    async with asyncio.TaskGroup() as group:
        stopping = group.create_task(vm.stop())
        await settle(turns_max=10)
        assert not stopping.done()
        late = pod.send(vm, deposit("late"))
        events.release()
    assert [(call.reply.outcome, call.reply.reason) for call in calls] == [("accepted", ""), ("error", Reason.BUSY), ("error", Reason.BUSY)]
    assert late.reply.reason == Reason.BUSY
    assert len(events_of(await history_of(events))) == 2


async def test_a_stop_that_is_repeated_ends_with_the_first_one() -> None:
    events = build_store(Fate.STORED, Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    pod.send(vm, deposit("d1"))
    async with asyncio.TaskGroup() as group:
        stops = [group.create_task(vm.stop()) for _ in range(2)]
        await settle(turns_max=10)
        assert [stop.done() for stop in stops] == [False, False]
        events.release()
        await settle(pod, until=lambda: all(stop.done() for stop in stops))
    assert (vm.phase, pod.snapshotter.written) == (ActorPhase.STOPPING, 1)


async def test_a_stop_that_learns_no_outcome_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.vm.STOP_TIMEOUT_S", 0.01)
    events = build_store(Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    calls = [await send_alone(pod, vm, OPEN), pod.send(vm, deposit("d1"))]
    await vm.stop()
    await settle(pod)
    assert [(call.reply.outcome, call.reply.reason) for call in calls] == [("error", Reason.UNKNOWN), ("error", Reason.BUSY)]


async def test_a_stop_takes_a_snapshot_and_the_next_start_uses_it() -> None:
    events, snapshots = build_store(), MemorySnapshotStore()
    pod = Pod("a", events, snapshots)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN, *(deposit(f"d{number}") for number in range(9)))
    await vm.stop()
    assert vm.snapshot.version == 10
    heir = await Pod("b", events, snapshots).start(2)
    assert (heir.snapshot.version, heir.get_version(), heir.get_state()["balance"]) == (10, 10, 9)
    assert heir.message == "replayed 0 events"


async def test_snapshots_are_taken_every_so_many_events() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start(snapshot_every=5)
    await run_commands(pod, vm, OPEN)
    for number in range(12):
        pod.clock.elapsed_s += 1
        await run_commands(pod, vm, deposit(f"d{number}"))
        await settle(pod)
    assert (vm.snapshot.version, pod.snapshotter.written) == (10, 2)
    heir = await Pod("b", events, pod.snapshots).start(2)
    assert (heir.snapshot.version, heir.get_version(), heir.get_state()["balance"]) == (10, 13, 12)


async def test_a_placement_with_another_rule_for_snapshots_is_heeded_from_the_next_commit_on() -> None:
    pod = Pod("a", build_store())
    vm = await pod.start(snapshot_every=1000)
    await run_commands(pod, vm, OPEN, deposit("d1"))
    vm.take_placement(dataclasses.replace(vm.desired, snapshot_every=3))
    await run_commands(pod, vm, deposit("d2"))
    await settle(pod)
    assert vm.snapshot.version == 3


async def test_a_hot_actor_takes_no_second_snapshot_right_after_the_first() -> None:
    pod = Pod("a", build_store())
    vm = await pod.start(snapshot_every=5)
    await run_commands(pod, vm, OPEN)
    for number in range(30):
        await run_commands(pod, vm, deposit(f"d{number}"))
        await settle(pod)
    assert (vm.snapshot.version, pod.snapshotter.written) == (5, 1)
    pod.clock.elapsed_s += 1
    await run_commands(pod, vm, deposit("later"))
    await settle(pod)
    assert (vm.snapshot.version, pod.snapshotter.written) == (32, 2)


async def test_a_snapshot_is_taken_when_a_replay_would_take_longer_than_its_target() -> None:
    pod = Pod("a", build_store())
    pod.snapshotter.rate.unit_s = 0.1
    vm = await pod.start()
    await run_commands(pod, vm, OPEN, deposit("d1"))
    await settle(pod)
    assert vm.snapshot.version == 0
    await run_commands(pod, vm, deposit("d2"))
    await settle(pod)
    assert vm.snapshot.version == 3


async def test_an_actor_whose_replay_took_long_leaves_a_snapshot_right_after_it() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN, *[deposit(f"d{number}") for number in range(20)])
    heir = Pod("b", events, pod.snapshots)
    heir.snapshotter.rate.unit_s = 0.1
    vm = await heir.start(2)
    await settle(heir)
    assert (vm.get_version(), vm.snapshot.version) == (21, 21)


class SmallMessages(MemorySnapshotStore):
    """Takes no snapshot at all, as a server does with one that exceeds its `max_payload`."""

    async def write(self, actor: ActorId, snapshot: Snapshot) -> None:
        raise PayloadTooLarge("a message of 9000000 bytes exceeds 8388608")


async def test_a_snapshot_that_is_too_large_is_reported_and_tried_ever_more_rarely() -> None:
    pod = Pod("a", build_store(), SmallMessages())
    vm = await pod.start(snapshot_every=5)
    await run_commands(pod, vm, OPEN)
    for number in range(100):
        pod.clock.elapsed_s += 1
        assert outcomes(await run_commands(pod, vm, deposit(f"d{number}"))) == [("accepted", number + 2, "")]
        await settle(pod)
    assert pod.snapshotter.too_large == 5, "at 5, 10, 20, 40 and 80"
    problem = pod.reports[-1].snapshot_problem
    assert problem is not None
    assert (problem.condition, "8388608" in problem.message) == ("SnapshotTooLarge", True)
    assert pod.reports[-1].phase is ActorPhase.READY


class SlowSnapshots(MemorySnapshotStore):
    """Stores nothing before it is told to; `begun` counts what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.may_store = asyncio.Semaphore(0)

    async def write(self, actor: ActorId, snapshot: Snapshot) -> None:
        self.begun += 1
        await self.may_store.acquire()
        await super().write(actor, snapshot)


async def test_snapshots_of_many_actors_are_taken_as_the_bytes_under_way_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.snapshotter.UNDER_WAY_BYTES_MAX", 1)
    snapshots = SlowSnapshots()
    pod = Pod("a", build_store(), snapshots)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(pod.snapshotter.write(vm.snapshot, History.empty(compile_account()), vm.desired))
        for number in range(3):
            await settle(pod)
            assert (snapshots.begun, pod.snapshotter.written) == (number + 1, number)
            snapshots.may_store.release()
            await settle(pod)
    assert pod.snapshotter.written == 3


async def test_a_snapshot_that_finds_no_room_is_not_waited_for_longer_than_an_answer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.snapshotter.UNDER_WAY_BYTES_MAX", 1)
    monkeypatch.setattr("aether_runtime.snapshotter.ROOM_WAIT_S", 0.01)
    snapshots = SlowSnapshots()
    pod = Pod("a", build_store(), snapshots)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(pod.snapshotter.write(SnapshotMark(), History.empty(compile_account()), vm.desired))
        await settle(pod)
        await pod.snapshotter.write(vm.snapshot, History.empty(compile_account()), vm.desired)
        assert (first.done(), snapshots.begun, pod.snapshotter.failed) == (False, 1, 1)
        assert vm.snapshot.pause_until_s > pod.clock.elapsed_s, "the next command is not to try it again at once"
        snapshots.may_store.release()


class ShortMessages(MemorySnapshotStore):
    """Takes no snapshot above some size, as a server does by its `max_payload`."""

    async def write(self, actor: ActorId, snapshot: Snapshot) -> None:
        if len(snapshot.payload) > 4_000:
            raise PayloadTooLarge(f"a message of {len(snapshot.payload)} bytes exceeds 4000")
        await super().write(actor, snapshot)


async def test_a_snapshot_that_is_too_large_for_its_known_commands_is_stored_without_them_and_they_are_read_from_the_log() -> None:
    events = build_store()
    pod = Pod("a", events, ShortMessages())
    vm = await pod.start()
    replies = await run_commands(pod, vm, OPEN, *[deposit(f"d{number}") for number in range(300)])
    await vm.stop()
    assert (pod.snapshotter.written, pod.snapshotter.too_large, vm.snapshot.version) == (1, 0, 301)
    heir = Pod("b", events, pod.snapshots)
    vm = await heir.start(2)
    assert (vm.get_version(), vm.snapshot.version) == (301, 301)
    assert await run_commands(heir, vm, deposit("d0"), deposit("d299")) == [replies[1], replies[-1]]
    assert vm.get_version() == 301


async def test_a_state_that_cannot_be_encoded_costs_its_snapshots_and_nothing_else() -> None:
    pod = Pod("a", build_store())
    vm = await pod.start(model=compile_unspeakable_account(), snapshot_every=5)
    await run_commands(pod, vm, OPEN)
    for number in range(100):
        pod.clock.elapsed_s += 1
        assert outcomes(await run_commands(pod, vm, deposit(f"d{number}"))) == [("accepted", number + 2, "")]
        await settle(pod)
    await vm.prepare_sleep()
    assert (pod.failures, pod.snapshotter.failed) == ([], 5), "at 5, 10, 20, 40 and 80"
    problem = pod.reports[-1].snapshot_problem
    assert problem is not None
    assert (problem.condition, problem.message) == ("SnapshotImpossible", "no snapshot can be taken, so replays take longer: the state is no JSON")


async def test_a_dry_run_whose_state_cannot_be_encoded_fails_alone() -> None:
    pod = Pod("a", build_store())
    vm = await pod.start(model=compile_unspeakable_account())
    asked, refused = (build_command(name, {"amount": 9}, id=name, dry_run=True) for name in ("Deposit", "Withdraw"))
    replies = await run_commands(pod, vm, OPEN, asked, refused, deposit("d"))
    assert outcomes(replies) == [("accepted", 1, ""), ("error", 1, Reason.COMMAND_FAILED), ("error", 1, Reason.COMMAND_FAILED), ("accepted", 2, "")]
    assert (replies[1].message, pod.failures) == ("the state is no JSON; nothing was stored", [])


async def test_a_snapshot_under_way_holds_up_no_command() -> None:
    class Slow(MemorySnapshotStore):
        gate = asyncio.Event()
        writes = 0

        async def write(self, actor: ActorId, snapshot: Snapshot) -> None:
            self.writes += 1
            await self.gate.wait()
            await super().write(actor, snapshot)

    snapshots = Slow()
    pod = Pod("a", build_store(), snapshots)
    vm = await pod.start(snapshot_every=5)
    await run_commands(pod, vm, OPEN)
    for number in range(40):
        pod.clock.elapsed_s += 1
        assert outcomes(await run_commands(pod, vm, deposit(f"d{number}"))) == [("accepted", number + 2, "")]
    assert (snapshots.writes, vm.snapshot.version) == (1, 0), "the first one is under way still, and no second one beside it"
    snapshots.gate.set()
    await settle(pod)
    assert vm.snapshot.version >= 5


async def test_a_reply_leaves_before_its_snapshot_is_begun() -> None:
    class Noting(MemorySnapshotStore):
        answered = 0

        async def write(self, actor: ActorId, snapshot: Snapshot) -> None:
            self.answered = sum(len(call.answers) for call in calls)
            await super().write(actor, snapshot)

    snapshots = Noting()
    pod = Pod("a", build_store(), snapshots)
    vm = await pod.start(snapshot_every=2)
    calls = [pod.send(vm, OPEN), pod.send(vm, deposit("d1"))]
    await settle(pod)
    assert (snapshots.answered, vm.snapshot.version) == (2, 2)


async def test_only_the_first_snapshot_under_another_fold_makes_the_store_look_for_those_of_former_ones() -> None:
    class Noting(MemorySnapshotStore):
        """Fails at first."""

        asked = 0

        async def drop_outdated(self, actor: ActorId, fold: str, last_time: str) -> None:
            assert (await self.read_latest(actor, fold)) is not None, "there is one under the present fold by now"
            self.asked += 1
            if self.asked == 1:
                raise Disconnected("no leader")

    events, snapshots = build_store(), Noting()
    pod = Pod("a", events, snapshots)
    vm = await pod.start(snapshot_every=2)
    await run_commands(pod, vm, OPEN, deposit("d1"))
    await settle(pod)
    assert (pod.snapshotter.written, snapshots.asked) == (1, 0), "a new actor has no former snapshots"
    snapshots.drop(ALICE)  # as another fold would find them
    heir_pod = Pod("b", events, snapshots)
    heir = await heir_pod.start(2, snapshot_every=2)
    for number in range(6):
        heir_pod.clock.elapsed_s += 1
        await run_commands(heir_pod, heir, deposit(f"e{number}"))
        await settle(heir_pod)
    assert heir_pod.snapshotter.written > 2
    assert snapshots.asked == 2, "it failed once, and was tried again"


async def test_a_snapshot_of_another_past_is_not_used() -> None:
    events, snapshots = build_store(), MemorySnapshotStore()
    pod = Pod("a", events, snapshots)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN, deposit("d1", 77))
    await vm.stop()
    other = build_store()
    await append_foreign(other, ("Opened", {"owner": "mallory"}), ("Deposited", {"amount": 1}))
    heir = await Pod("b", other, snapshots).start(2)
    assert (heir.snapshot.version, heir.get_state()) == (0, {"owner": "mallory", "balance": 1, "open": True})
    assert snapshots.dropped == 1


@pytest.mark.parametrize("harm", ["checksum", "state", "past"])
async def test_the_snapshot_before_serves_when_the_newest_cannot_be_used(harm: str) -> None:
    events, snapshots = build_store(), MemorySnapshotStore()
    pod = Pod("a", events, snapshots)
    vm = await pod.start(snapshot_every=2)
    await run_commands(pod, vm, OPEN, deposit("d1", 1))
    await settle(pod)
    assert vm.snapshot.version == 2
    await run_commands(pod, vm, deposit("d2", 10))
    body = await snapshots.read_latest(ALICE, compile_account().fold)
    assert body is not None
    harmed = {"state": msgspec.structs.replace(body, state=msgspec.Raw(b"[]")), "past": msgspec.structs.replace(body, commit_id="another")}.get(harm, body)
    payload = msgspec.json.encode(harmed)
    digest = "0" * 64 if harm == "checksum" else hashlib.sha256(payload).hexdigest()
    lines = headers.encode_headers({headers.SNAPSHOT_FORMAT: FORMAT, headers.SNAPSHOT_SHA256: digest})
    await snapshots.write(ALICE, Snapshot(compile_account().fold, 3, lines, payload))
    heir = await Pod("b", events, snapshots).start(2)
    assert (heir.snapshot.version, heir.get_version(), heir.get_state()["balance"], heir.message) == (2, 3, 11, "replayed 1 events")
    assert snapshots.dropped == 1


async def test_an_actor_starts_without_its_snapshots_when_they_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.vm_reading.RETRY_S", 0.0)

    class Broken(MemorySnapshotStore):
        async def read_kept(self, actor: ActorId, fold: str) -> AsyncIterator[SnapshotBody]:
            raise Disconnected("no leader", retry_after_s=0.0)
            yield  # type: ignore[unreachable]  # makes it a generator

    events = build_store()
    await append_foreign(events, ("Opened", {"owner": "alice"}))
    vm = await Pod("a", events, Broken()).start()
    assert (vm.phase, vm.get_version()) == (ActorPhase.READY, 1)


async def test_the_start_waits_while_the_log_is_away() -> None:
    events = build_store()
    await append_foreign(events, ("Opened", {"owner": "alice"}))
    events.away = True
    pod = Pod("a", events)
    vm = pod.build()
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(vm.start())
        await settle(turns_max=20)
        assert (starting.done(), vm.phase) == (False, ActorPhase.REPLAYING)
        events.away = False
    assert (vm.phase, vm.get_version()) == (ActorPhase.READY, 1)


async def test_a_start_that_waits_for_its_log_lets_others_have_its_permit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.vm_reading.RETRY_S", 0.0)
    events = build_store()
    events.away = True
    permits = Permits(1)
    permit, other = Permit(permits), Permit(permits)
    await permit.take()
    vm = Pod("a", events).build()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(vm.start(permit))
        await other.take()
        events.away = False
        other.give_back()
    permit.give_back()
    assert (vm.phase, permits.held) == (ActorPhase.READY, 0)


async def test_a_new_model_of_equal_fold_decides_from_the_next_command_on() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN, deposit("d1", 5000))
    stricter = compile_account_with_stricter_guard()
    assert stricter.fold == compile_account().fold
    vm.take_model(stricter)
    assert outcomes(await run_commands(pod, vm, deposit("d2", 5000))) == [("rejected", 2, "TooMuch")]
    assert vm.get_state()["balance"] == 5000


async def test_a_new_model_that_comes_during_replay_is_not_forgotten() -> None:
    class Slow(FaultyCommitLog):
        gate = asyncio.Event()

        async def read_head(self, actor: ActorId) -> StoredCommit | None:
            await self.gate.wait()
            return await super().read_head(actor)

    events = Slow(MemoryCommitLog())
    await append_foreign(events, ("Opened", {"owner": "alice"}))
    pod = Pod("a", events)
    vm = pod.build()
    async with asyncio.TaskGroup() as group:
        group.create_task(vm.start())
        await settle(turns_max=5)
        vm.take_model(compile_account_with_stricter_guard())
        events.gate.set()
    assert outcomes(await run_commands(pod, vm, deposit("d1", 5000))) == [("rejected", 1, "TooMuch")]


async def test_a_model_of_another_fold_keeps_snapshots_of_its_own() -> None:
    events, snapshots = build_store(), MemorySnapshotStore()
    pod = Pod("a", events, snapshots)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN, deposit("d1", 3))
    await vm.stop()
    other = compile_account_in_other_units()
    assert other.fold != compile_account().fold
    heir = await Pod("b", events, snapshots).start(2, model=other)
    assert (heir.snapshot.version, heir.get_state()["balance"]) == (0, 300)


class Failing(FaultyCommitLog):
    """A log whose appends fail with an error, until it is mended."""

    def __init__(self, error: Exception) -> None:
        super().__init__(MemoryCommitLog())
        self.error: Exception | None = error

    def append(self, commit: Commit) -> asyncio.Future[int]:
        if self.error is None:
            return super().append(commit)
        outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        outcome.set_exception(self.error)
        return outcome


@pytest.mark.parametrize(("error", "retry_ms"), [(CommitTooLarge("too large"), 0), (JetStreamError(400, 10060, "no such stream"), 0), (StreamFull("no space"), 1000)])
async def test_an_append_that_is_refused_is_answered_and_the_actor_goes_on(error: Exception, retry_ms: int) -> None:
    events = Failing(error)
    pod = Pod("a", events)
    vm = await pod.start()
    reply = (await run_commands(pod, vm, OPEN))[0]
    assert (reply.outcome, reply.retry_after_ms) == ("error", retry_ms)
    assert "nothing was stored" in reply.message
    events.error = None
    assert outcomes(await run_commands(pod, vm, OPEN)) == [("accepted", 1, "")]


async def test_callers_of_an_append_whose_connection_was_closed_learn_that_nobody_knows() -> None:
    pod = Pod("a", Failing(Disconnected("the connection was closed")))
    vm = await pod.start()
    reply = (await run_commands(pod, vm, OPEN))[0]
    assert (reply.outcome, reply.reason) == ("error", Reason.UNKNOWN)


@pytest.mark.parametrize("command", [deposit("d1"), withdraw("w1", 100)], ids=["recover", "confirm"])
async def test_a_log_that_fails_for_good_leaves_no_caller_without_an_answer(command: Command) -> None:
    events = build_store(Fate.STORED, Fate.REFUSED)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    events.read_error = JetStreamError(404, 10059, "stream not found")
    calls = [pod.send(vm, command), pod.send(vm, deposit("d2"))]
    await settle(pod, until=lambda: all(call.answers for call in calls))
    assert [(call.reply.outcome, call.reply.retry_after_ms > 0) for call in calls] == [("error", True)] * 2
    assert len(pod.failures) == 1


async def test_a_commit_that_cannot_be_taken_over_leaves_no_caller_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def accept(self: History, *_: object) -> None:
        raise InternalError("the window is broken")

    pod = Pod("a", build_store())
    vm = await pod.start()
    monkeypatch.setattr(History, "accept", accept)
    calls = [pod.send(vm, OPEN), pod.send(vm, deposit("d1"))]
    await settle(pod, until=lambda: bool(pod.failures))
    assert [call.reply.reason for call in calls] == [Reason.UNKNOWN] * 2, "they are stored, but nobody knows their answers any more"


async def test_a_commit_that_cannot_be_built_leaves_no_caller_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Commit:
        raise InternalError("the index is broken")

    pod = Pod("a", build_store())
    vm = await pod.start()
    monkeypatch.setattr("aether_runtime.vm.build_commit", fail)
    calls = [pod.send(vm, OPEN), pod.send(vm, deposit("d1"))]
    await settle(pod, until=lambda: bool(pod.failures))
    assert [call.reply.reason for call in calls] == [Reason.BUSY] * 2


class Broken(CompiledModel):
    """The account, with a state that lost a field."""

    def decide(self, state: State, command: CommandInput) -> Decision:
        raise InternalError("the state has no field")


async def test_a_broken_invariant_of_the_model_leaves_no_caller_without_an_answer() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start(model=Broken(**{field.name: getattr(compile_account(), field.name) for field in dataclasses.fields(CompiledModel)}))
    calls = [pod.send(vm, OPEN), pod.send(vm, deposit("d1"))]
    await settle(pod, until=lambda: all(call.answers for call in calls))
    assert [(call.reply.outcome, call.reply.retry_after_ms > 0) for call in calls] == [("error", True)] * 2
    assert [type(error) for error in pod.failures] == [InternalError]


async def test_a_catch_up_that_is_interrupted_still_finds_its_own_commit() -> None:
    """The link drops after the first of two commits was read: what was found before the drop counts."""
    events = build_store(Fate.STORED, Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    calls = [pod.send(vm, deposit("d1", 5))]
    await settle(pod, until=lambda: events.holds)
    await events.inner.append(events.appends[-1])
    await append_foreign(events, ("Deposited", {"amount": 1}), epoch=1)
    pod.may_keep = False
    events.away_after = 1
    events.release()
    async with asyncio.timeout(5):
        while not all(call.answers for call in calls):
            await asyncio.sleep(0.01)
    assert (calls[0].reply.outcome, calls[0].reply.version) == ("accepted", 2)


async def test_moved_confirmations_do_not_add_up_to_a_conflict() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    for number in range(CONFLICTS_MAX + 3):
        await append_foreign(events, ("Deposited", {"amount": 1}), id=f"foreign-{number}")
        assert outcomes(await run_commands(pod, vm, withdraw(f"w{number}", 1000))) == [("rejected", number + 2, "InsufficientFunds")]


async def test_state_that_is_not_stored_is_never_shown() -> None:
    events = build_store(Fate.STORED, Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    pod.send(vm, deposit("d1", 5))
    await settle(pod, until=lambda: events.holds)
    assert (vm.get_version(), vm.get_state()["balance"]) == (1, 0)
    assert max(report.version or 0 for report in pod.reports) == 1
    events.release()
    await settle(pod, until=lambda: vm.get_version() == 2)


def test_the_id_of_an_activation_names_actor_and_epoch() -> None:
    assert Pod("a", build_store()).build(4).get_id() == "default/account/alice@4"


async def test_a_vm_that_took_over_learns_what_the_former_owner_still_appended() -> None:
    events = build_store()
    old, new = Pod("a", events), Pod("b", events)
    first = await old.start(epoch=1)
    await run_commands(old, first, OPEN)
    second = await new.start(epoch=2)
    await run_commands(old, first, deposit("late"))
    assert (first.get_version(), second.get_version(), second.took_over) == (2, 1, True)

    second.look_again()
    await settle(new, until=lambda: second.get_version() == 2)

    assert second.is_ready


async def test_an_append_that_is_refused_while_the_log_stands_still_is_decided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.vm_reading.RETRY_S", 0.0)
    events = build_store(Fate.STORED, Fate.REFUSED)
    pod = Pod("a", events)
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)

    (reply,) = await run_commands(pod, vm, deposit("d1"))

    assert (reply.outcome, vm.get_version()) == ("accepted", 2)


async def test_a_log_that_was_made_anew_at_our_own_epoch_is_replayed_and_not_a_fence() -> None:
    events = build_store()
    pod = Pod("a", events)
    vm = await pod.start(epoch=5)
    await run_commands(pod, vm, OPEN)
    await events.inner.purge(ALICE, epoch=Epoch(5), writer="operator")

    vm.look_again()
    await settle(pod, until=lambda: bool(pod.ended))

    assert (vm.is_ready, vm.reason) == (False, "Ready")


async def test_a_commit_of_our_own_pods_former_process_is_nobody_elses() -> None:
    events = build_store()
    former, pod = Pod("former", events), Pod("a", events)
    former.writer = "a/former-boot"
    pod.may_keep = False
    first = await former.start(epoch=3)
    await run_commands(former, first, OPEN)
    vm = await pod.start(epoch=3)
    await run_commands(former, first, deposit("late"))

    (reply,) = await run_commands(pod, vm, deposit("d1"))

    assert (reply.outcome, vm.get_version(), pod.ended) == ("accepted", 3, [])


async def test_an_answer_that_cannot_be_given_harms_neither_the_actor_nor_those_who_wait_beside_it() -> None:
    def refuse(reply: Reply) -> None:
        raise TypeError("this answer cannot be encoded")

    pod = Pod("a", build_store())
    vm = await pod.start()
    await run_commands(pod, vm, OPEN)
    vm.process_command(Waiting(withdraw("w", 5), 10.0, refuse))
    vm.process_command(Waiting(deposit("d0"), 10.0, refuse))
    later = await run_commands(pod, vm, withdraw("x", 50), deposit("d1"))
    assert outcomes(later) == [("rejected", 2, "InsufficientFunds"), ("accepted", 3, "")]
    assert (vm.is_ready, pod.failures) == (True, [])
