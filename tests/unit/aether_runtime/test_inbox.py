"""What answers mean for durable commands, and when one is given up."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from aether_api.durable import DurableCommand, InboxPosition, Tick
from aether_api.errors import InvalidEnvelope, Reason
from aether_api.messages import Reply, build_error
from aether_nats.inbox import Tries
from aether_runtime.core.inbox import (
    AHEAD_BYTES_LEAST,
    AHEAD_BYTES_MAX,
    AHEAD_BYTES_MOST,
    TRIES_MAX,
    Fate,
    Grave,
    count_try,
    explain_poison,
    has_stand_in,
    judge,
    repeat_after_s,
    share_ahead,
    take_try_back,
)
from aether_runtime.core.reminders import REMINDER_GONE
from tests.histories.bank import build_command


@pytest.mark.parametrize(
    ("reply", "fate"),
    [
        (Reply("accepted", 3), "settled"),
        (Reply("noop", 3), "settled"),
        (Reply("noop", 3, reason=REMINDER_GONE), "settled"),
        (Reply("rejected", 3, reason="InsufficientFunds"), "settled"),
        (Reply("rejected", 3, reason=Reason.WRONG_VERSION), "settled"),
        (Reply("rejected", 3, reason=Reason.UNKNOWN_COMMAND), "unfit"),
        (Reply("rejected", 3, reason=Reason.INVALID_COMMAND), "unfit"),
        (build_error(Reason.COMMAND_FAILED, "division by zero"), "failed"),
        (build_error(Reason.COMMIT_TOO_LARGE, "9 MB"), "failed"),
        (build_error(Reason.QUARANTINED, "sequence 3"), "stop"),
        (build_error(Reason.SUSPENDED, "spec.suspend"), "stop"),
        (build_error(Reason.BUSY, "moving", retry_after_ms=100), "later"),
        (build_error(Reason.UNKNOWN, "no ack", retry_after_ms=100), "later"),
        (build_error(Reason.CONFLICT, "rivals", retry_after_ms=100), "later"),
    ],
)
def test_only_what_the_model_says_settles_a_command_and_only_what_it_fails_at_counts(reply: Reply, fate: Fate) -> None:
    assert judge(reply) == fate


def test_tries_count_for_one_command_of_one_stream() -> None:
    first = count_try(None, InboxPosition(7, 40))
    assert (first, count_try(first, InboxPosition(7, 40))) == (Tries(7, 40, 1), Tries(7, 40, 2))
    assert count_try(Tries(7, 40, 4), InboxPosition(7, 41)).count == count_try(Tries(7, 40, 4), InboxPosition(8, 40)).count == 1


def test_a_try_is_taken_back_from_the_command_that_it_was_of() -> None:
    tried = Tries(7, 40, 3)
    assert take_try_back(Tries(7, 40, 4), tried) == Tries(7, 40, 3), "the next owner began it once more meanwhile"
    assert take_try_back(Tries(7, 40, 0), tried) == Tries(7, 40, 0)
    assert [take_try_back(known, tried) for known in (None, Tries(7, 41, 3), Tries(8, 40, 3))] == [None] * 3


def test_a_command_is_given_up_instead_of_a_sixth_try() -> None:
    assert explain_poison(Tries(7, 40, TRIES_MAX), None) is None
    silent = explain_poison(Tries(7, 40, TRIES_MAX + 1), None)
    failed = explain_poison(Tries(7, 40, TRIES_MAX + 1), build_error(Reason.COMMAND_FAILED, "division by zero"))
    assert silent is not None
    assert failed is not None
    assert (silent.reason, failed.reason, "division by zero" in failed.message) == ("Unsettled", Reason.COMMAND_FAILED, True)


def test_a_command_that_its_model_does_not_know_is_given_up_at_once_with_what_the_model_says() -> None:
    assert explain_poison(Tries(7, 40, 2), Reply("rejected", 3, (), Reason.UNKNOWN_COMMAND, "known are Ring")) == Grave("UnknownCommand", "known are Ring")


def test_a_tick_that_failed_is_given_up_at_once_where_a_later_one_waits() -> None:
    failed = build_error(Reason.COMMAND_FAILED, "division by zero")
    grave = explain_poison(Tries(7, 40, 2), failed, has_stand_in=True)
    assert grave is not None
    assert (grave.reason, "later tick" in grave.message, "division by zero" in grave.message) == (Reason.COMMAND_FAILED, True, True)
    assert explain_poison(Tries(7, 40, 2), failed) is None
    assert explain_poison(Tries(7, 40, 2), None, has_stand_in=True) is None, "nobody knows that it failed: the pod may have ended for other reasons"


def build_found(tick: Tick | None) -> DurableCommand:
    return DurableCommand(41, build_command("Ring", {}, id="x"), tick)


def test_only_a_later_tick_of_the_same_reminder_stands_for_a_recurring_one() -> None:
    tick = Tick("bell", "t1", "late", "2026-01-31T12:00:00Z", recurring=True)
    later: list[DurableCommand | InvalidEnvelope] = [
        InvalidEnvelope("no command"),
        build_found(None),
        build_found(replace(tick, name="other")),
        build_found(replace(tick, token="t2")),
    ]
    assert has_stand_in(tick, [*later, build_found(tick)])
    assert not has_stand_in(tick, later)
    assert not has_stand_in(None, [build_found(tick)])
    assert not has_stand_in(replace(tick, recurring=False), [build_found(tick)])


def test_repeats_come_later_and_later() -> None:
    assert [repeat_after_s(count) for count in (2, 3, 4, 5)] == [0.1, 0.2, 0.4, 0.8]


def test_actors_that_catch_up_together_share_what_is_read_ahead() -> None:
    assert [share_ahead(actors) for actors in (0, 1, 16)] == [AHEAD_BYTES_MOST] * 3
    assert [share_ahead(actors) * actors for actors in (17, 100, 1000, 4096)] == [pytest.approx(AHEAD_BYTES_MAX, rel=0.001)] * 4
    assert [share_ahead(actors) for actors in (4097, 100_000)] == [AHEAD_BYTES_LEAST] * 2
