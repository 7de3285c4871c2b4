"""Names of actors: what is none is refused with the argument that it was."""

from __future__ import annotations

from typing import Any

import pytest

from aether_api.errors import InvalidName
from aether_api.identity import ID_LENGTH_MAX, check_actor, check_member, parse_actor_id


@pytest.mark.parametrize("wrong", [None, 5, b"account", ["account"], "Account", ""])
def test_a_name_that_is_none_is_refused_whatever_its_type(wrong: Any) -> None:
    with pytest.raises(InvalidName, match=r"namespace .* must be lower case letters"):
        parse_actor_id(wrong, "account", "alice")
    with pytest.raises(InvalidName, match=r"model .* must be lower case letters"):
        parse_actor_id("default", wrong, "alice")


@pytest.mark.parametrize("wrong", [None, 5, b"alice", ["alice"], "a.b", ""])
def test_an_id_or_a_member_that_is_none_is_refused_whatever_its_type(wrong: Any) -> None:
    with pytest.raises(InvalidName, match=r"id .* must be letters, digits"):
        parse_actor_id("default", "account", wrong)
    with pytest.raises(InvalidName, match=r"event .* must begin with a letter"):
        check_member("event", wrong)


def test_an_id_is_bounded() -> None:
    assert parse_actor_id("default", "account", "a" * ID_LENGTH_MAX).id == "a" * ID_LENGTH_MAX
    with pytest.raises(InvalidName, match="longer than 200"):
        parse_actor_id("default", "account", "a" * (ID_LENGTH_MAX + 1))


def test_a_text_is_no_actor() -> None:
    alice = parse_actor_id("default", "account", "alice")
    assert check_actor(alice) is alice
    with pytest.raises(InvalidName, match=r"actor must be an ActorId, as parse_actor_id\(namespace, model, id\) gives, not 'default/account/alice' \(str\)"):
        check_actor(str(alice))
