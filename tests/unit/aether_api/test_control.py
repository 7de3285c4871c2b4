"""What operator and pods say to each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aether_api import control
from aether_api.control import Assignment, AssignmentItem, AssignmentReply, AssignmentResult, Heartbeat, HeldActor, HeldPage, HeldQuestion, OperatorPulse
from aether_api.errors import InvalidEnvelope

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


def test_what_a_pod_holds_reads_back_as_it_was_sent() -> None:
    page = HeldPage("pod-1", "boot-1", 3, (HeldActor("alice", "u-1", 7),), more=True)
    assert control.decode_held_page(control.encode(page)) == page
    assert control.decode_held_question(control.encode(HeldQuestion("alice"))) == HeldQuestion("alice")
    assert control.decode_held_question(b"{}") == HeldQuestion()


def test_the_pulse_of_an_operator_reads_back_as_it_was_sent() -> None:
    pulse = OperatorPulse("operator-x_1", 9)
    assert control.decode_operator_pulse(control.encode(pulse)) == pulse


STRICT = [control.decode_assignment, control.decode_assignment_reply, control.decode_heartbeat, control.decode_held_page, control.decode_operator_pulse]


@pytest.mark.parametrize("decode", STRICT)
@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"\xff", b'{"term":"x"}'])
def test_what_is_no_such_message_is_refused(decode: Callable[[bytes], object], payload: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        decode(payload)


@pytest.mark.parametrize("payload", [b"", b"[]", b"\xff", b'{"after":1}'])
def test_what_is_no_question_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        control.decode_held_question(payload)


def test_fields_of_newer_versions_are_ignored() -> None:
    raw = control.encode(Heartbeat("pod-1", "boot-1", "runtime-x", "ready", 1)).replace(b"{", b'{"loadAverage":1,', 1)
    assert control.decode_heartbeat(raw).pod_uid == "pod-1"
