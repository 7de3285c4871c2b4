"""Patterns choose actors; what NATS cannot match is matched here."""

from __future__ import annotations

from typing import Any

import pytest

from aether_api.errors import InvalidName
from aether_api.identity import parse_actor_id
from aether_nats.patterns import parse_event_types, parse_pattern

ALICE = parse_actor_id("team-a", "account", "alice")


@pytest.mark.parametrize(
    ("namespace", "actor", "matched", "tokens"),
    [
        ("*", "*", True, ("*", "*", "*")),
        ("team-a", "account/alice", True, ("team-a", "account", "alice")),
        ("team-*", "account", True, ("*", "account", "*")),
        ("*", "acc*/al*", True, ("*", "*", "*")),
        ("team-b", "*", False, ("team-b", "*", "*")),
        ("*", "account/bob", False, ("*", "account", "bob")),
        ("*", "order", False, ("*", "order", "*")),
    ],
)
def test_each_part_is_exact_or_a_beginning_or_any(namespace: str, actor: str, matched: bool, tokens: tuple[str, str, str]) -> None:
    pattern = parse_pattern(namespace, actor)
    assert pattern.matches(ALICE) is matched
    assert pattern.tokens == tokens


@pytest.mark.parametrize(("namespace", "actor"), [("", "*"), ("a.b", "*"), ("*a", "*"), ("*", "account/"), ("*", "account/a.b"), ("*", "account/>"), ("Shop", "*")])
def test_a_pattern_that_could_never_match_is_refused(namespace: str, actor: str) -> None:
    with pytest.raises(InvalidName):
        parse_pattern(namespace, actor)


@pytest.mark.parametrize(
    ("namespace", "actor", "why"),
    [
        (None, "*", "namespace_pattern must be a text, not None"),
        ("default", None, "actor_pattern must be a text, not None"),
        ("default", parse_actor_id("default", "account", "alice"), 'actor_pattern must be a text, not ActorId.*; write "account/alice"'),
    ],
    ids=["no namespace", "no actor", "an actor"],
)
def test_a_pattern_that_is_no_text_is_refused(namespace: Any, actor: Any, why: str) -> None:
    with pytest.raises(InvalidName, match=why):
        parse_pattern(namespace, actor)


@pytest.mark.parametrize(
    ("event_types", "said"),
    [
        ("Deposited", r"write \['Deposited'\]"),
        (["Deposited "], "'Deposited ' must begin with a letter"),
        ([5], "event_types must hold names of events such as 'Deposited', not 5"),
        (5, "event_types must be a list of names"),
        (None, "event_types must be a list of names"),
    ],
)
def test_types_that_no_event_can_have_are_refused(event_types: Any, said: str) -> None:
    with pytest.raises(InvalidName, match=said):
        parse_event_types(event_types)


def test_types_are_any_collection_of_names() -> None:
    assert parse_event_types(name for name in ("Deposited", "Withdrawn")) == {"Deposited", "Withdrawn"}
    assert parse_event_types(()) == frozenset()
