"""Conditions keep the time at which their status last changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from aether_api.v1alpha1.meta import Condition, ConditionStatus
from aether_kube.conditions import condition_document, settle_conditions
from aether_kube.documents import format_micro_time, format_time

NOW = datetime(2026, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC)


def ready(status: ConditionStatus, *, reason: str = "Replayed", time: str = "") -> Condition:
    return Condition(type="Ready", status=status, reason=reason, last_transition_time=time)


def test_a_new_condition_starts_now() -> None:
    (settled,) = settle_conditions([ready("True")], [], now=NOW)

    assert settled.last_transition_time == "2026-05-01T12:00:00Z"


def test_a_new_reason_alone_does_not_move_the_time() -> None:
    (settled,) = settle_conditions([ready("True", reason="Other")], [ready("True", time="2020-01-01T00:00:00Z")], now=NOW)

    assert settled.last_transition_time == "2020-01-01T00:00:00Z"
    assert settled.reason == "Other"


def test_a_new_status_moves_the_time() -> None:
    (settled,) = settle_conditions([ready("False")], [ready("True", time="2020-01-01T00:00:00Z")], now=NOW)

    assert settled.last_transition_time == "2026-05-01T12:00:00Z"


def test_conditions_come_sorted_by_type() -> None:
    settled = settle_conditions([Condition(type="Scheduled", status="True"), ready("True")], [], now=NOW)

    assert [condition.type for condition in settled] == ["Ready", "Scheduled"]


def test_a_condition_is_written_as_the_api_server_takes_it() -> None:
    document = condition_document(ready("True", time="2020-01-01T00:00:00Z"))

    assert document == {"type": "Ready", "status": "True", "reason": "Replayed", "message": "", "observedGeneration": 0, "lastTransitionTime": "2020-01-01T00:00:00Z"}


def test_times_are_written_in_utc() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=2)))

    assert format_time(there) == "2026-05-01T12:00:00Z"
    assert format_micro_time(there) == "2026-05-01T12:00:00.250000Z"
