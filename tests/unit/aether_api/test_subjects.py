"""Subjects are built and parsed by functions that are inverse of each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_api import subjects
from aether_api.errors import InvalidName
from aether_api.identity import ID_LENGTH_MAX, ActorId, PodUid, PoolName, check_id, check_member, check_name, parse_actor_id

names = st.from_regex(r"[a-z0-9]([a-z0-9\-]{0,20}[a-z0-9])?", fullmatch=True)
ids = st.from_regex(r"[A-Za-z0-9_\-]([A-Za-z0-9_\-:@+=~]{0,20}[A-Za-z0-9_\-])?", fullmatch=True)
members = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,20}", fullmatch=True)
actors = st.builds(parse_actor_id, names, names, ids)
partitions = st.integers(1, subjects.PARTITIONS_MAX)


@given(actors, partitions)
def test_an_event_subject_parses_back_to_its_actor_and_partition(actor: ActorId, count: int) -> None:
    assert subjects.parse_event_subject(subjects.event_subject(actor, count)) == (actor, subjects.partition_of(actor, count))


@given(actors)
def test_an_announcement_parses_back_to_its_actor(actor: ActorId) -> None:
    assert subjects.parse_stored_subject(subjects.stored_subject(actor)) == actor


@given(names, st.integers(0, subjects.PARTITIONS_MAX - 1))
def test_the_name_of_an_event_stream_parses_back(namespace: str, partition: int) -> None:
    assert subjects.parse_event_stream(subjects.event_stream(namespace, partition)) == (namespace, partition)


@given(actors, members)
def test_every_way_to_address_a_command_parses_back_to_actor_and_command(actor: ActorId, command: str) -> None:
    built = (
        subjects.command_subject("cmd", actor, command),
        subjects.command_subject("call", actor, command),
        subjects.command_subject("find", actor, command),
        subjects.forward_subject(actor.namespace, PodUid("pod-1"), actor, command),
    )
    assert [subjects.parse_command_subject(subject) for subject in built] == [(actor, command)] * 4


@given(actors)
def test_a_question_for_the_status_parses_back_to_its_actor_or_to_all_pods(actor: ActorId) -> None:
    assert subjects.parse_status_subject(subjects.actor_status_subject(actor)) == actor
    assert subjects.parse_status_subject(subjects.pods_status_subject(actor.namespace)) is None
    with pytest.raises(InvalidName):
        subjects.parse_status_subject(subjects.stored_subject(actor))


@given(names, names, ids)
def test_a_heartbeat_parses_back_to_its_pod(namespace: str, pool: str, uid: str) -> None:
    assert subjects.parse_report_subject(subjects.report_subject(namespace, PodUid(uid))) == (namespace, uid)
    assert subjects.parse_heartbeat_subject(subjects.heartbeat_subject(namespace, PoolName(pool), PodUid(uid))) == (namespace, pool, uid)


def matches(wildcard: str, subject: str) -> bool:
    """Match as NATS does."""
    ours, theirs = wildcard.split("."), subject.split(".")
    return len(ours) == len(theirs) and all(a in ("*", b) for a, b in zip(ours, theirs, strict=True))


@given(actors, members, partitions)
def test_wildcards_cover_the_subjects_that_they_stand_for(actor: ActorId, command: str, count: int) -> None:
    pod, namespace = PodUid("u-1"), actor.namespace
    assert matches(subjects.event_wildcard(namespace, subjects.partition_of(actor, count)), subjects.event_subject(actor, count))
    assert matches(subjects.event_filter(namespace, subjects.partition_of(actor, count), "*", actor.id), subjects.event_subject(actor, count))
    assert matches(subjects.stored_filter("*", actor.model, "*"), subjects.stored_subject(actor))
    assert matches(subjects.snapshot_wildcard(actor), subjects.snapshot_subject(actor, "abc"))
    assert matches(subjects.command_wildcard(actor), subjects.command_subject("cmd", actor, command))
    assert matches(subjects.call_wildcard(namespace), subjects.command_subject("call", actor, command))
    assert matches(subjects.find_wildcard(namespace), subjects.command_subject("find", actor, command))
    assert matches(subjects.forward_wildcard(namespace, pod), subjects.forward_subject(namespace, pod, actor, command))
    assert matches(subjects.report_wildcard(namespace), subjects.report_subject(namespace, pod))
    assert matches(subjects.report_wildcard(), subjects.report_subject(namespace, pod))
    assert matches(subjects.heartbeat_wildcard(namespace), subjects.heartbeat_subject(namespace, PoolName("p"), pod))
    assert matches(subjects.heartbeat_wildcard(), subjects.heartbeat_subject(namespace, PoolName("p"), pod))


@pytest.mark.parametrize(
    ("model", "id", "partitions", "expected"),
    [
        ("account", "alice", 1, 0),
        ("account", "alice", 4, 0xFB7E54DE % 4),
        ("account", "alice", 64, 0xFB7E54DE % 64),
    ],
)
def test_the_partition_is_a_known_function_of_model_and_id(model: str, id: str, partitions: int, expected: int) -> None:
    """Other languages compute it as well, so it is pinned to values from outside of this code: FNV-1a of `account.alice`."""
    digest = 0x811C9DC5
    for byte in f"{model}.{id}".encode():
        digest = (digest ^ byte) * 0x01000193 % 2**32
    assert subjects.partition_of(parse_actor_id("default", model, id), partitions) == digest % partitions == expected


@given(actors)
def test_one_partition_holds_everything(actor: ActorId) -> None:
    assert subjects.partition_of(actor, 1) == 0


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "aether",
        "aether.ns.cmd.account.alice",
        "aether.ns.cmd.account.alice.Open.more",
        "other.ns.cmd.account.alice.Open",
        "aether.ns.cmd.Account.alice.Open",
        "aether.ns.cmd.account.*.Open",
    ],
)
def test_what_is_no_subject_of_a_command_is_refused(subject: str) -> None:
    with pytest.raises(InvalidName):
        subjects.parse_command_subject(subject)


@pytest.mark.parametrize("subject", ["aether.ns.evt.x.account.alice", "aether.ns.evt.1.account", "aether.ns.stored.account.alice"])
def test_what_is_no_event_subject_is_refused(subject: str) -> None:
    with pytest.raises(InvalidName):
        subjects.parse_event_subject(subject)


@given(st.text(max_size=8))
def test_an_id_that_is_accepted_is_one_plain_token(text: str) -> None:
    try:
        check_id(text)
    except InvalidName:
        return
    assert text
    assert not any(letter in " .*>\r\n\t\0/" for letter in text)


@pytest.mark.parametrize("id", ["alice\n", "a b", "a.b", "*", ">", "", ":a", "a:", "a" * (ID_LENGTH_MAX + 1), "é"])
def test_an_id_that_cannot_be_a_token_is_refused(id: str) -> None:
    with pytest.raises(InvalidName):
        check_id(id)


@pytest.mark.parametrize("name", ["account\n", "Account", "a.b", "-a", "a-", "", "a" * 64])
def test_a_name_that_is_no_dns_label_is_refused_with_its_field(name: str) -> None:
    with pytest.raises(InvalidName, match="model"):
        check_name("model", name)


@pytest.mark.parametrize("name", ["Open\n", "1Open", "Open.", "", "a" * 64])
def test_a_command_that_is_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="command"):
        check_member("command", name)


@given(actors, members, members)
def test_what_lies_in_the_inbox_stream_parses_back_to_its_actor(actor: ActorId, name: str, token: str) -> None:
    assert subjects.parse_inbox_subject(subjects.inbox_subject(actor)) == actor
    assert subjects.parse_wake_subject(subjects.wake_subject(actor)) == actor
    assert subjects.parse_reminder_subject(subjects.reminder_subject(actor, name, token)) == (actor, name, token)
    assert matches(subjects.inbox_wildcard(actor.namespace), subjects.inbox_subject(actor))
    assert matches(subjects.wake_wildcard(actor.namespace), subjects.wake_subject(actor))
    assert matches(subjects.reminder_wildcard(actor), subjects.reminder_subject(actor, name, token))


@given(actors)
def test_the_count_of_tries_goes_with_the_snapshots_of_its_actor(actor: ActorId) -> None:
    assert matches(subjects.snapshot_wildcard(actor), subjects.tries_subject(actor))


PARSERS = (
    subjects.parse_event_stream,
    subjects.parse_event_subject,
    subjects.parse_stored_subject,
    subjects.parse_inbox_subject,
    subjects.parse_wake_subject,
    subjects.parse_reminder_subject,
    subjects.parse_command_subject,
    subjects.parse_heartbeat_subject,
    subjects.parse_report_subject,
)
tokens = st.sampled_from(
    ("aether", "ns", "evt", "stored", "inbox", "reminder", "wake", "cmd", "call", "find", "pod", "hb", "account", "alice", "1", "²", "9" * 5000, "", "*", ">", "Open")
)
texts = st.lists(tokens, max_size=8).map(".".join) | st.text(max_size=20) | tokens.map("AETHER_ns_EVT_{}".format)


@given(st.sampled_from(PARSERS), texts)
def test_whatever_subject_arrives_it_is_parsed_or_refused_as_a_name(parse: Callable[[str], object], text: str) -> None:
    with suppress(InvalidName):
        assert parse(text)
