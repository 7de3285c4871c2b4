"""Reminders, decided: what a wish comes to, what is in force, and which ticks run."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_api.durable import NEVER_S, DurableCommand, Missed, Tick
from aether_api.errors import CommandFailed, InvalidEnvelope
from aether_api.identity import CommandId, parse_actor_id
from aether_api.messages import Command, format_time
from aether_model.model import After, At, CancelReminder, Cron, Schedule, SetReminder
from aether_nats.schedules import Reminder
from aether_runtime.core.reminders import LEAD_S, RUN, SKIP_AFTER_S, Drop, choose_tick, fold_changes, format_changes, parse_changes, plan_reminders

ALICE = parse_actor_id("bank", "account", "alice")
NOW_S = 1_769_860_800.0
NOON = "2026-01-31T12:00:00.000000Z"
names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,10}", fullmatch=True)
tokens = st.from_regex(r"[0-9a-f]{0,16}", fullmatch=True)


def wish(schedule: Schedule, name: str = "dunning", command: str = "Remind") -> SetReminder:
    return SetReminder(name, command, b"{}", schedule)


def build_tick(missed: Missed = "late", *, name: str = "dunning", token: str = "t1", due_s: float = NOW_S) -> Tick:
    return Tick(name, token, missed, format_time(due_s), recurring=True)


def waiting(tick: Tick | None, sequence: int = 2) -> DurableCommand:
    return DurableCommand(sequence, Command(ALICE, "Remind", CommandId(f"c-{sequence}"), b"{}", NOON, NOW_S, NEVER_S), tick)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (At("2026-03-01T09:00:00+01:00"), Reminder("dunning", "Remind", b"{}", "@at 2026-03-01T08:00:00.000000Z", "2026-03-01T08:00:00.000000Z")),
        (After(90.5), Reminder("dunning", "Remind", b"{}", "@at 2026-01-31T12:01:30.500000Z", "2026-01-31T12:01:30.500000Z")),
        (Cron("0 30 9 * * MON-FRI", "Europe/Berlin"), Reminder("dunning", "Remind", b"{}", "0 30 9 * * MON-FRI", zone="Europe/Berlin")),
        (Cron("@daily"), Reminder("dunning", "Remind", b"{}", "@daily")),
    ],
)
def test_a_wish_becomes_what_the_server_is_asked_for(schedule: Schedule, expected: Reminder) -> None:
    assert plan_reminders([wish(schedule)], NOW_S) == {"dunning": expected}


def test_the_last_wish_for_a_name_counts() -> None:
    assert plan_reminders([wish(After(1)), CancelReminder("dunning")], NOW_S) == {"dunning": None}


@pytest.mark.parametrize(
    "refused",
    [
        wish(At("tomorrow")),
        wish(At("2026-03-01T09:00:00")),
        wish(After(-1)),
        wish(After(float("nan"))),
        wish(After(1e12)),
        wish(Cron("")),
        wish(Cron("* * * * * *\r\nNats-Rollup: all")),
        wish(Cron("@at 2026-03-01T09:00:00Z")),
        wish(Cron("@daily", "Europe/Berlin\r\n")),
        wish(After(1), name="a.b"),
        wish(After(1), command="not one"),
        CancelReminder("*"),
    ],
)
def test_a_wish_that_cannot_be_carried_out_costs_its_command(refused: SetReminder | CancelReminder) -> None:
    with pytest.raises(CommandFailed):
        plan_reminders([refused], NOW_S)


@pytest.mark.parametrize(
    ("schedule", "why"),
    [
        (At("3000-01-01T00:00:00Z"), "at '3000-01-01T00:00:00Z' is too late, the latest is 2262-04-11T23:47:16Z"),
        (At("9999-12-31T23:59:59-01:00"), "at '9999-12-31T23:59:59-01:00' lies outside of the years 1 to 9999; the latest is 2262-04-11T23:47:16Z"),
        (Cron("@daily", " "), "there is no time zone ' '; names are those of IANA, such as Europe/Berlin"),
        (Cron("@daily", "Local"), "time zone 'Local' is whatever the server's machine is set to; name the zone, such as Europe/Berlin"),
        (Cron("@every 1h", "Europe/Berlin"), "@every counts seconds and has no time zone"),
        (Cron("0 0 0 30 2 *"), "cron '0 0 0 30 2 *' names a day that no such month has"),
    ],
)
def test_a_refused_wish_names_its_reminder_and_says_what_is_wrong_with_it(schedule: Schedule, why: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        plan_reminders([wish(schedule)], NOW_S)
    assert str(caught.value) == f"reminder dunning: {why}"


@given(st.dictionaries(names, tokens, min_size=1))
def test_what_a_commit_says_of_reminders_parses_back(changes: dict[str, str]) -> None:
    assert parse_changes(format_changes(changes)) == changes


@pytest.mark.parametrize("text", ["x", ":t", "a:1,,b:2"])
def test_what_is_no_change_is_refused(text: str) -> None:
    with pytest.raises(InvalidEnvelope, match="Aether-Reminder"):
        parse_changes(text)


def test_reminders_are_set_replaced_and_ended_by_commits() -> None:
    one = fold_changes({}, "a:1,b:2")
    two = fold_changes(one, "a:3,b:")
    assert (one, two, fold_changes(two, "a:")) == ({"a": "1", "b": "2"}, {"a": "3"}, {})


def test_a_moment_that_has_passed_comes_as_soon_as_the_commit_can_be_there() -> None:
    (planned,) = plan_reminders([wish(At("2020-01-01T00:00:00Z"))], NOW_S).values()
    assert planned is not None
    assert planned.due == format_time(NOW_S + LEAD_S)


def test_a_tick_runs_however_late_it_is() -> None:
    assert choose_tick(build_tick(due_s=NOW_S - 1e6), [waiting(build_tick())], NOW_S) == RUN


def test_of_collapsing_ticks_only_the_last_that_waits_runs() -> None:
    tick = build_tick("collapse")
    assert isinstance(choose_tick(tick, [waiting(None, 2), waiting(build_tick("collapse"), 3)], NOW_S), Drop)
    assert choose_tick(tick, [waiting(None), waiting(build_tick("collapse", name="other")), waiting(build_tick("collapse", token="t0"))], NOW_S) == RUN


@pytest.mark.parametrize(("late_s", "runs"), [(0.0, True), (SKIP_AFTER_S, True), (SKIP_AFTER_S + 1, False)])
def test_a_skipping_tick_runs_only_on_time(late_s: float, runs: bool) -> None:
    assert isinstance(choose_tick(build_tick("skip", due_s=NOW_S - late_s), [], NOW_S), Drop) is not runs


@given(st.lists(st.dictionaries(st.sampled_from(("dun", "interest", "a")), st.sampled_from(("", "t1", "t2")), min_size=1), max_size=6))
def test_reminders_in_force_are_those_that_were_set_last_and_not_ended(commits: list[dict[str, str]]) -> None:
    in_force: Mapping[str, str] = {}
    naive: dict[str, str] = {}
    for changes in commits:
        in_force = fold_changes(in_force, format_changes(changes))
        naive |= changes
    assert in_force == {name: token for name, token in naive.items() if token}


@given(st.text(max_size=30))
def test_whatever_text_a_commit_carries_it_is_read_or_refused(text: str) -> None:
    try:
        changes = parse_changes(text)
    except InvalidEnvelope:
        return
    assert parse_changes(format_changes(changes)) == changes
