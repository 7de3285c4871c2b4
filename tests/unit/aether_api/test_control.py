"""What operator and pods say to each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_api import control
from aether_api.control import (
    ActorView,
    Assignment,
    AssignmentItem,
    AssignmentReply,
    AssignmentResult,
    FirstCondition,
    FirstReport,
    FirstReports,
    FirstStatus,
    Heartbeat,
    HeldActor,
    HeldPage,
    HeldQuestion,
    OperatorPulse,
    PodStatus,
)
from aether_api.errors import InvalidEnvelope
from tests.histories.hostile import HOSTILE_JSON, damaged

FIRST = FirstReports(
    "pod-1", (FirstReport("alice", "u-1", FirstStatus(2, "Ready", 5, 0, "account@x", 7, (FirstCondition("Ready", "True", "Ready", "serving", 2, "2026-01-02T03:04:05Z"),))),)
)
ITEM = AssignmentItem("adopt", "alice", "u-1", "account", "alice", 7, 2, 500)


def test_an_assignment_reads_back_as_it_was_sent() -> None:
    assignment = Assignment(3, "pod-1", "boot-1", (ITEM, AssignmentItem("release", "bob", "u-2", "account", "bob", 6)))
    assert control.decode_assignment(control.encode(assignment)) == assignment


def test_the_answer_to_an_assignment_reads_back_as_it_was_sent() -> None:
    reply = AssignmentReply(3, "boot-1", (AssignmentResult("alice", "done", 7), AssignmentResult("bob", "stale", 9, "term 4 rules")))
    assert control.decode_assignment_reply(control.encode(reply)) == reply


def test_a_heartbeat_reads_back_as_it_was_sent() -> None:
    heartbeat = Heartbeat("pod-1", "boot-1", "runtime-x", "leaving", 12)
    assert control.decode_heartbeat(control.encode(heartbeat)) == heartbeat


def test_the_status_of_a_pod_reads_back_as_it_was_sent() -> None:
    view = ActorView("account/alice", "alice", 7, "Replaying", 12, 0, "account@x", "Replaying", "replayed 1 of 12 events", 3)
    status = PodStatus("pod-1", "boot-1", "runtime-x", "default", "ready", 2, 5, {"Ready": 4, "Replaying": 1}, 11, 0.5, (view,))
    assert control.decode_pod_status(control.encode(status)) == status


def test_what_a_pod_holds_reads_back_as_it_was_sent() -> None:
    page = HeldPage("pod-1", "boot-1", 3, (HeldActor("alice", "u-1", 7),), more=True)
    assert control.decode_held_page(control.encode(page)) == page
    assert control.decode_held_question(control.encode(HeldQuestion("alice"))) == HeldQuestion("alice")
    assert control.decode_held_question(b"{}") == HeldQuestion()


def test_first_reports_read_back_as_they_were_sent() -> None:
    assert control.decode_first_reports(control.encode(FIRST)) == FIRST


@pytest.mark.parametrize(
    ("now", "then"),
    [
        (b'"version":5', b'"version":%d' % 10**30),
        (b'"version":5', b'"version":-1'),
        (b'"reportedEpoch":7', b'"reportedEpoch":%d' % 2**63),
        (b'"account@x"', b'"%b"' % (b"x" * 3000)),
        (b'"Ready",', b'"Quarantined",'),
    ],
)
def test_first_reports_hold_nothing_that_a_resource_does_not(now: bytes, then: bytes) -> None:
    """The operator writes them."""
    payload = control.encode(FIRST)
    assert now in payload
    with pytest.raises(InvalidEnvelope):
        control.decode_first_reports(payload.replace(now, then))


def test_the_pulse_of_an_operator_reads_back_as_it_was_sent() -> None:
    pulse = OperatorPulse("operator-x_1", 9)
    assert control.decode_operator_pulse(control.encode(pulse)) == pulse


@pytest.mark.parametrize(
    "decode",
    [
        control.decode_pod_status,
        control.decode_first_reports,
        control.decode_held_page,
        control.decode_operator_pulse,
        control.decode_assignment,
        control.decode_assignment_reply,
        control.decode_heartbeat,
    ],
)
@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"\xff", b'{"term":"x"}'])
def test_what_is_no_such_message_is_refused(decode: Callable[[bytes], object], payload: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        decode(payload)


def test_fields_of_newer_versions_are_ignored() -> None:
    raw = control.encode(Heartbeat("pod-1", "boot-1", "runtime-x", "ready", 1)).replace(b"{", b'{"loadAverage":1,', 1)
    assert control.decode_heartbeat(raw).pod_uid == "pod-1"


words = st.text(st.characters(codec="utf-8"), max_size=12)
numbers = st.integers(0, 2**53)
items = st.builds(AssignmentItem, st.sampled_from(("adopt", "release")), words, words, words, words, numbers, numbers, numbers, st.floats(0, 1e6), st.floats(0, 1e6))
results = st.builds(AssignmentResult, words, st.sampled_from(("done", "stale", "wrong-pod", "refused")), numbers, words)


@given(st.builds(Assignment, numbers, words, words, st.lists(items, max_size=3).map(tuple)))
def test_every_assignment_reads_back(assignment: Assignment) -> None:
    assert control.decode_assignment(control.encode(assignment)) == assignment


@given(st.builds(AssignmentReply, numbers, words, st.lists(results, max_size=3).map(tuple)))
def test_every_answer_to_an_assignment_reads_back(reply: AssignmentReply) -> None:
    assert control.decode_assignment_reply(control.encode(reply)) == reply


@given(st.builds(Heartbeat, words, words, words, st.sampled_from(("ready", "leaving")), numbers))
def test_every_heartbeat_reads_back(heartbeat: Heartbeat) -> None:
    assert control.decode_heartbeat(control.encode(heartbeat)) == heartbeat


@pytest.mark.parametrize("decode", [control.decode_assignment, control.decode_assignment_reply, control.decode_heartbeat, control.decode_first_reports])
@pytest.mark.parametrize("payload", HOSTILE_JSON)
def test_hostile_json_is_refused(decode: Callable[[bytes], object], payload: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        decode(payload)


@given(damaged(control.encode(Assignment(3, "pod-1", "boot-1", (ITEM,)))))
def test_a_damaged_assignment_is_read_or_refused(payload: bytes) -> None:
    with suppress(InvalidEnvelope):
        assert isinstance(control.decode_assignment(payload), Assignment)
