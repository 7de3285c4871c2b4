"""Folding stored commits: the only way in which an actor's history moves."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from aether_api import commit_run, headers
from aether_api.commit_index import CommitIndex
from aether_api.commit_run import CommitRun
from aether_api.durable import NO_INBOX, InboxPosition
from aether_api.envelope import Commit, Event, StoredCommit, build_event_id, build_source, build_tombstone, decode_commit, encode_commit, encode_event, encode_fields, join_events
from aether_api.errors import EventInvalid
from aether_api.identity import Epoch
from aether_api.messages import format_time, parse_time
from aether_runtime.core.group import Now, decide_group
from aether_runtime.core.history import NOTHING_FORGOTTEN, Forgotten, History
from tests.histories.bank import ALICE, compile_account, fields_of
from tests.histories.hostile import NESTED

TIME = "2026-07-01T12:00:00.000000Z"


def store(commit: Commit, sequence: int) -> StoredCommit:
    lines, payload = encode_commit(commit)
    return decode_commit(sequence, headers.FIRST_LINE + b"\r\n" + lines + b"\r\n", payload)


def commit_after(history: History, *facts: tuple[str, dict[str, Any]], time: str = TIME) -> Commit:
    position = history.position
    versions = range(position.version + 1, position.version + 1 + len(facts))
    events = [
        Event("1.0", build_event_id(position.incarnation, version), build_source(ALICE), type, time, encode_fields(data), f"c-{position.incarnation}-{version}")
        for version, (type, data) in zip(versions, facts, strict=True)
    ]
    payload = join_events([encode_event(event) for event in events])
    return Commit(f"id-{position.index.n}", ALICE, position.sequence, versions[0], versions[-1], position.index, Epoch(1), "p/b", "account@x", payload, position.incarnation)


def build_history() -> History:
    history = History.empty(compile_account())
    history.fold_commit(store(commit_after(history, ("Opened", {"owner": "alice"}), ("Deposited", {"amount": 5})), 10))
    history.fold_commit(store(commit_after(history, ("Withdrawn", {"amount": 2})), 12))
    return history


def test_folding_moves_state_version_position_and_window() -> None:
    history = build_history()
    assert (history.state, history.position.version, history.position.sequence) == ({"owner": "alice", "balance": 3, "open": True}, 3, 12)
    assert history.position.index == CommitIndex().appended(10).appended(12)
    assert [history.window.find(f"c-0-{version}") for version in (1, 2, 3)] == [10, 10, 12]


@pytest.mark.parametrize(
    ("time", "wanted"),
    [
        (TIME, TIME),
        ("2026-07-01T14:00:00+02:00", TIME),
        ("2026-07-01T10:30:00.25-02:00", "2026-07-01T12:30:00.250000Z"),
        ("2026-07-01T12:00:00Z", TIME),
        ("2026-W27-3T12:00:00.000000Z", TIME),
    ],
)
def test_the_last_time_is_kept_in_the_form_in_which_times_can_be_compared(time: str, wanted: str) -> None:
    """Else a foreign event whose time has an offset would hold the times of all later events."""
    history = build_history()
    history.fold_commit(store(commit_after(history, ("Deposited", {"amount": 5}), time=time), 14))
    assert history.position.last_time == wanted
    group = decide_group(history, [], Now(parse_time("2026-07-01T12:00:01Z").timestamp(), 0.0), bytes_max=1024)
    assert group.time == max(wanted, "2026-07-01T12:00:01.000000Z")


@pytest.mark.parametrize(
    "change",
    [
        {"first_version": 5, "last_version": 5},
        {"first_version": 3, "last_version": 3},
        {"n": 3},
        {"n": 1},
        {"incarnation": 1},
    ],
)
def test_a_commit_that_does_not_follow_is_refused_and_nothing_changes(change: dict[str, int]) -> None:
    history = build_history()
    before = (history.state, history.position, history.window.entries())
    stray = replace(store(commit_after(history, ("Deposited", {"amount": 1})), 14), **change)
    with pytest.raises(EventInvalid, match="sequence 14"):
        history.fold_commit(stray)
    assert (history.state, history.position, history.window.entries()) == before


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ((("Deposited", {"amount": 1}), ("Stolen", {})), "Stolen"),
        ((("Deposited", {"amount": 1}), ("Deposited", {})), "amount"),
        ((("Deposited", {"amount": 1}), ("Deposited", {"amount": "1"})), "amount"),
        ((("Deposited", {"amount": 2**63 - 1}),), "balance"),
    ],
)
def test_an_event_that_cannot_be_applied_is_named_and_nothing_changes(facts: tuple[tuple[str, dict[str, Any]], ...], word: str) -> None:
    history = build_history()
    before = (history.state, history.position, history.window.entries())
    with pytest.raises(EventInvalid, match=rf"sequence 14, versions 4 to {3 + len(facts)}.*{word}"):
        history.fold_commit(store(commit_after(history, *facts), 14))
    assert (history.state, history.position, history.window.entries()) == before


def test_a_payload_that_is_no_batch_is_named() -> None:
    history = build_history()
    with pytest.raises(EventInvalid, match="sequence 14"):
        history.fold_commit(replace(store(commit_after(history, ("Deposited", {"amount": 1})), 14), payload=b"garbage"))
    with pytest.raises(EventInvalid, match="sequence 14"):
        history.fold_commit(replace(store(commit_after(history, ("Deposited", {"amount": 1})), 14), payload=NESTED))


@pytest.mark.parametrize("time", ["yesterday", "2026-07-01T12:00:00", "9999-99-99T99:99:99.999999Z", "1960-01-01T00:00:00Z", "2400-01-01T00:00:00.000000Z"])
def test_an_event_without_a_proper_time_is_named(time: str) -> None:
    history = build_history()
    with pytest.raises(EventInvalid, match="sequence 14"):
        history.fold_commit(store(commit_after(history, ("Deposited", {"amount": 1}), time=time), 14))


def test_a_tombstone_begins_a_new_life_from_version_one() -> None:
    history = build_history()
    history.fold_commit(store(build_tombstone(id="t", actor=ALICE, expected_sequence=12, epoch=Epoch(2), pod="p/b", incarnation=1), 20))
    assert (history.state, history.position.version, history.position.incarnation, len(history.window)) == (compile_account().initial_state(), 0, 1, 0)
    history.fold_commit(store(commit_after(history, ("Opened", {"owner": "bob"})), 22))
    assert (fields_of(history.state)["owner"], history.position.version, history.position.index) == ("bob", 1, CommitIndex().appended(20).appended(22))


def test_commits_move_the_inbox_and_the_reminders_and_a_tombstone_ends_them() -> None:
    history = build_history()
    history.fold_commit(store(replace(commit_after(history, ("Deposited", {"amount": 1})), inbox="7:40", reminders="dunning:t1,interest:t2"), 14))
    history.fold_commit(store(replace(commit_after(history, ("Deposited", {"amount": 1})), reminders="dunning:"), 16))
    assert (history.inbox, history.reminders) == (InboxPosition(7, 40), {"interest": "t2"})
    tombstone = build_tombstone(id="t", actor=ALICE, expected_sequence=16, epoch=Epoch(2), pod="operator", incarnation=1, inbox="7:50")
    history.fold_commit(store(tombstone, 18))
    assert (history.inbox, history.reminders) == (InboxPosition(7, 50), {})


@pytest.mark.parametrize("change", [{"inbox": "seven"}, {"reminders": "dunning"}])
def test_a_commit_with_a_broken_header_leaves_everything_as_it_was(change: dict[str, str]) -> None:
    history = build_history()
    with pytest.raises(EventInvalid):
        history.fold_commit(store(replace(commit_after(history, ("Deposited", {"amount": 1})), **change), 14))
    assert (history.position.version, history.inbox, history.reminders) == (3, NO_INBOX, {})


def build_run() -> list[StoredCommit]:
    """Return commits of all kinds: of one event and of several, with and without durable parts, and a purge in between."""
    writer, commits, sequence = History.empty(compile_account()), list[StoredCommit](), 5
    for n in range(70):
        sequence += 1 + n % 3
        if n == 41:
            commit = build_tombstone(id="t", actor=ALICE, expected_sequence=writer.position.sequence, epoch=Epoch(2), pod="p/b", incarnation=1)
        elif n % 20 == 2:
            commit = commit_after(writer, ("Opened", {"owner": "alice"}), ("Deposited", {"amount": n}))
        else:
            commit = replace(commit_after(writer, ("Deposited", {"amount": n})), **({"inbox": f"{n // 41}:{n}", "reminders": f"r{n}:t"} if n % 7 == 0 else {}))
        commits.append(store(commit, sequence))
        writer.fold_commit(commits[-1])
    return commits


def describe(history: History) -> tuple[object, ...]:
    return history.position, history.state, history.window.entries(), history.inbox, dict(history.reminders)


def test_a_run_gives_what_its_commits_give_one_by_one() -> None:
    run, single = History.empty(compile_account()), History.empty(compile_account())
    commits = build_run()
    folded = run.fold_run(commits[:30]) + run.fold_run(commits[30:])
    for commit in commits:
        single.fold_commit(commit)
    assert describe(run) == describe(single)
    assert folded == sum(len(commit.events()) for commit in commits)


@pytest.mark.parametrize("bad", [0, 1, 20, 50, 69])
def test_a_run_that_breaks_leaves_what_came_before(bad: int) -> None:
    commits = build_run()
    history, expected = History.empty(compile_account()), History.empty(compile_account())
    expected.fold_run(commits[:bad])
    with pytest.raises(EventInvalid, match=f"sequence {commits[bad].sequence}"):
        history.fold_run([*commits[:bad], replace(commits[bad], payload=b"garbage"), *commits[bad + 1 :]])
    assert describe(history) == describe(expected)


ODD_TIME = "2026-W27-3T12:00:00.000000Z"
"""As long as ours, with the same marks in the same places."""


def build_columns(commits: list[Commit], first_sequence: int) -> CommitRun:
    encoded = [encode_commit(commit) for commit in commits]
    blocks = [headers.FIRST_LINE + b"\r\n" + lines + b"\r\n" for lines, _ in encoded]
    run = commit_run.build_run([first_sequence + place for place in range(len(commits))], blocks, [payload for _, payload in encoded])
    assert run is not None
    return run


def build_long_run(sizes: list[int], *, spacing_s: float = 1.0) -> CommitRun:
    """Return deposits, so many in each commit, that come after the commit at sequence 9."""
    writer = History.empty(compile_account())
    writer.fold_commit(store(commit_after(writer, ("Opened", {"owner": "alice"})), 9))
    commits: list[Commit] = []
    for n, size in enumerate(sizes):
        commits.append(commit_after(writer, *[("Deposited", {"amount": n + 1})] * size, time=format_time(parse_time(TIME).timestamp() + spacing_s * n)))
        writer.fold_commit(store(commits[-1], 10 + n))
    return build_columns(commits, 10)


def open_history() -> History:
    history = History.empty(compile_account())
    history.fold_commit(store(commit_after(history, ("Opened", {"owner": "alice"})), 9))
    return history


@pytest.mark.parametrize("sizes", [[1] * 60, [1, 3, 1, 2] * 15, [1]])
@pytest.mark.parametrize("forgotten", [NOTHING_FORGOTTEN, Forgotten(1000, 1 << 32), Forgotten(20, 1 << 32), Forgotten(1000, int(parse_time(TIME).timestamp()) + 30)])
def test_a_run_in_columns_gives_what_its_commits_give_one_by_one(sizes: list[int], forgotten: Forgotten) -> None:
    run = build_long_run(sizes)
    whole, single = open_history(), open_history()
    whole.forgotten = single.forgotten = forgotten
    assert whole.fold_run(run) == sum(sizes)
    for commit in run:
        single.fold_commit(commit)
    assert describe(whole) == describe(single)


@pytest.mark.parametrize("what", ["payload", "unknown event", "time", "life"])
@pytest.mark.parametrize("bad", [0, 5, 11])
def test_a_run_in_columns_that_breaks_leaves_what_came_before(what: str, bad: int) -> None:
    run = build_long_run([1] * 12)
    payloads, good = list(run.payloads), run.payloads[bad]
    payloads[bad] = {
        "payload": b"garbage",
        "unknown event": good.replace(b"Deposited", b"Stolen"),
        "time": good.replace(b"2026-07-01T", b"2026-07-91T"),
        "life": good.replace(b'"id":"', b'"id":"1.'),
    }[what]
    run.payloads = payloads
    history, expected = open_history(), open_history()
    expected.fold_run(build_long_run([1] * 12)[:bad])
    with pytest.raises(EventInvalid, match=f"sequence {10 + bad}"):
        history.fold_run(run)
    assert describe(history) == describe(expected)


@pytest.mark.parametrize("times", [[""] * 4, ["", TIME, "", ""], [TIME, "", "", ""], [TIME, TIME, TIME, ""], [ODD_TIME] * 4, [TIME, ODD_TIME]])
def test_events_without_a_time_or_with_an_odd_one_give_the_same_in_a_run_and_one_by_one(times: list[str]) -> None:
    writer = open_history()
    commits: list[Commit] = []
    for place, time in enumerate(times):
        commits.append(commit_after(writer, ("Deposited", {"amount": 1}), time=time))
        writer.fold_commit(store(commits[-1], 10 + place))
    history = open_history()
    assert history.fold_run(build_columns(commits, 10)) == len(times)
    assert describe(history) == describe(writer)


def test_a_run_in_columns_that_does_not_follow_is_refused() -> None:
    for history in (History.empty(compile_account()), build_history()):
        before = describe(history)
        with pytest.raises(EventInvalid, match="should come next"):
            history.fold_run(build_long_run([1] * 12))
        assert describe(history) == before
