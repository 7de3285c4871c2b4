"""JetStream's answers become values, and its refusals the right error."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_api.errors import AetherError, InvalidEnvelope, JetStreamError, RequestTimeout, StreamFull, StreamUnavailable, WrongLastSequence
from aether_nats.jetstream_wire import ApiError, PubAck, StreamInfo, ack_of, build_error, check_batch, decode_answer, find_pending, stored_of
from aether_nats.message import Message
from tests.histories.hostile import HOSTILE_JSON, NESTED, damaged


def reply(payload: bytes, raw_headers: bytes = b"") -> Message:
    return Message(b"_INBOX.x.1", b"", raw_headers, payload)


def test_an_ack_tells_stream_sequence_and_whether_it_was_stored_before() -> None:
    assert ack_of(reply(b'{"stream":"S","seq":7}')) == PubAck("S", 7, False)
    assert ack_of(reply(b'{"stream":"S", "domain":"d", "seq":7,"duplicate":true}')) == PubAck("S", 7, True)


@pytest.mark.parametrize(("description", "last"), [("wrong last sequence: 42", 42), ("wrong last sequence", None)])
def test_a_conflict_names_the_last_sequence_if_the_server_does(description: str, last: int | None) -> None:
    error = build_error(ApiError(400, 10071, description))
    assert isinstance(error, WrongLastSequence)
    assert error.last == last


def test_a_write_under_way_on_a_replicated_stream_is_a_conflict_without_a_number() -> None:
    answer = b'{"error":{"code":400,"err_code":10164,"description":"wrong last sequence: 10"},"stream":"S","seq":0}'
    with pytest.raises(WrongLastSequence) as refused:
        ack_of(reply(answer))
    assert refused.value.last is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ApiError(503, 10008, "JetStream system temporarily unavailable"), StreamUnavailable),
        (ApiError(409, 10158, "duplicate message id is in process"), StreamUnavailable),
        (ApiError(400, 10005, "no suitable peers for placement, peer offline"), StreamUnavailable),
        (ApiError(400, 10005, "no suitable peers for placement, insufficient storage"), JetStreamError),
        (ApiError(429, 10167, "too many requests"), StreamUnavailable),
        (ApiError(503, 10023, "insufficient resources"), StreamFull),
        (ApiError(400, 10002, "resource limits exceeded for account"), StreamFull),
        (ApiError(503, 10077, "maximum bytes exceeded"), StreamFull),
        (ApiError(503, 10077, "no space left on device"), StreamUnavailable),
        (ApiError(400, 10054, "message size exceeds maximum allowed"), JetStreamError),
        (ApiError(404, 10059, "stream not found"), JetStreamError),
    ],
)
def test_only_what_may_pass_is_retryable(error: ApiError, expected: type[AetherError]) -> None:
    assert type(build_error(error)) is expected


@pytest.mark.parametrize("payload", [b"", b"+OK", b"[]", b'{"seq":"x"}'])
def test_what_is_no_ack_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        ack_of(reply(payload))


def test_a_stored_message_is_read_from_the_servers_headers_not_from_the_publishers() -> None:
    raw = b"NATS/1.0\r\nNats-Sequence: 6\r\nNats-Stream: S\r\nNats-Subject: s.a\r\nNats-Sequence: 5\r\nNats-Time-Stamp: 2026-01-31T12:00:00Z\r\n\r\n"
    stored = stored_of(reply(b"payload", raw))
    assert stored is not None
    assert (stored.subject, stored.sequence, stored.payload, stored.time) == ("s.a", 5, b"payload", "2026-01-31T12:00:00Z")


def test_a_missing_message_is_none_and_a_bad_question_an_error() -> None:
    assert stored_of(reply(b"", b"NATS/1.0 404 Message Not Found\r\n\r\n")) is None
    with pytest.raises(JetStreamError, match="Bad Request"):
        stored_of(reply(b"", b"NATS/1.0 408 Bad Request\r\n\r\n"))
    with pytest.raises(InvalidEnvelope):
        stored_of(reply(b"payload", b""))


ACK = b'{"stream":"S","seq":7,"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 42"}}'
STORED = b"NATS/1.0\r\nAether-Commit: c\r\nNats-Stream: S\r\nNats-Subject: s.a\r\nNats-Sequence: 5\r\nNats-Time-Stamp: 2026-01-31T12:00:00Z\r\nNats-Num-Pending: 3\r\n\r\n"
INFO = b'{"config":{"name":"S","subjects":["a"]},"state":{"messages":1,"subjects":{"a":1}},"created":"2026-01-31T12:00:00Z"}'


@given(damaged(ACK) | st.sampled_from(HOSTILE_JSON))
def test_whatever_answers_an_append_it_is_an_ack_or_an_error_of_ours(payload: bytes) -> None:
    with suppress(AetherError):
        ack_of(reply(payload))


@given(damaged(INFO) | st.sampled_from(HOSTILE_JSON))
def test_whatever_answers_a_question_it_is_an_answer_or_an_error_of_ours(payload: bytes) -> None:
    with suppress(AetherError):
        decode_answer(reply(payload), msgspec.json.Decoder(StreamInfo))


@given(damaged(STORED))
def test_whatever_answers_a_read_it_is_a_message_or_an_error_of_ours(raw: bytes) -> None:
    message = reply(b"payload", raw)
    assert find_pending(message) >= 0
    with suppress(AetherError):
        assert stored_of(message) is None or message.status == 0


@pytest.mark.parametrize("payload", [b'{"stream":"\xff"}', b'{"x":%b}' % NESTED, *HOSTILE_JSON[:5]])
def test_hostile_json_is_no_ack(payload: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        ack_of(reply(payload))


@pytest.mark.parametrize("raw", [STORED.replace(b"s.a", b"s.\xff"), STORED.replace(b"Sequence: 5", b"Sequence: " + b"5" * 5000)])
def test_a_message_on_a_subject_that_is_no_text_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        stored_of(reply(b"", raw))


def test_a_conflict_that_names_no_possible_sequence_is_a_conflict_all_the_same() -> None:
    error = build_error(ApiError(400, 10071, "wrong last sequence: " + "9" * 5000))
    assert isinstance(error, WrongLastSequence)
    assert error.last is None


def batch(*links: tuple[int, int], end: int) -> tuple[list[Message], Message]:
    """Return messages by their sequence and the one that they name as the one before, and the end of the batch."""
    messages = [reply(b"", b"NATS/1.0\r\nNats-Sequence: %d\r\nNats-Num-Pending: 1\r\nNats-Last-Sequence: %d\r\n\r\n" % link) for link in links]
    return messages, reply(b"", b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: %d\r\n\r\n" % end)


def test_a_batch_that_came_whole_is_taken() -> None:
    check_batch(*batch((3, 0), (5, 3), (8, 5), end=8))


@pytest.mark.parametrize(
    "torn",
    [batch((5, 3), (8, 5), end=8), batch((3, 0), (8, 5), end=8), batch((3, 0), (5, 3), end=8), batch(end=8)],
    ids=["its first is lost", "one is lost", "its last is lost", "all are lost"],
)
def test_a_batch_with_a_hole_is_asked_for_again(torn: tuple[list[Message], Message]) -> None:
    """Found by the simulation: a durable command in the hole was passed over for good."""
    with pytest.raises(RequestTimeout):
        check_batch(*torn)
