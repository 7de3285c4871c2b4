"""Which actors a subscriber means: patterns of namespace, model and id.

A part is a name, `*` for any, or a beginning with a `*` at its end. Names and `*` are what NATS itself matches; a beginning is
asked of NATS as `*` and matched here, so all that the part could be travels to the subscriber.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aether_api.errors import InvalidName
from aether_api.identity import ActorId, check_id, check_member, check_name


@dataclass(frozen=True, slots=True)
class ActorPattern:
    """The actors that match all three parts; `parse_pattern` checks them."""

    namespace: str
    model: str
    id: str

    def matches(self, actor: ActorId) -> bool:
        """Tell whether an actor is meant."""
        return matches_part(self.namespace, actor.namespace) and matches_part(self.model, actor.model) and matches_part(self.id, actor.id)

    @property
    def tokens(self) -> tuple[str, str, str]:
        """Namespace, model and id as NATS can match them."""
        return _token(self.namespace), _token(self.model), _token(self.id)

    @property
    def is_whole(self) -> bool:
        """Whether NATS matches all of it."""
        return self.tokens == (self.namespace, self.model, self.id)


def parse_pattern(namespace_pattern: str, actor_pattern: str) -> ActorPattern:
    """Read patterns as people write them.

    Args:
        namespace_pattern: `shop`, `team-*` or `*`.
        actor_pattern: `<model>/<id>`, or a model alone for all of its actors; `*` for all.

    Raises:
        InvalidName: one is no text, or a part of it could never match; the message names it.
    """
    for argument, given in (("namespace_pattern", namespace_pattern), ("actor_pattern", actor_pattern)):
        _check_text(argument, given)
    model, slash, id = actor_pattern.partition("/")
    pattern = ActorPattern(namespace_pattern, model, id if slash else "*")
    check_name("namespace pattern", _sample(pattern.namespace))
    check_name("model of the actor pattern", _sample(pattern.model))
    check_id(_sample(pattern.id))
    return pattern


def parse_event_types(event_types: Iterable[object]) -> frozenset[str]:
    """Read which types of events are wanted; none for all.

    Raises:
        InvalidName: they are no names of events, so none would ever match.
    """
    if isinstance(event_types, str):
        raise InvalidName(f"event_types must be a list of names, not one text: write [{event_types!r}]")
    if not isinstance(event_types, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]  # programs that are not type-checked call it, too
        raise InvalidName(f"event_types must be a list of names such as ['Deposited'], or () for all, not {event_types!r}")
    return frozenset(_check_event_type(name) for name in event_types)


def _check_event_type(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidName(f"event_types must hold names of events such as 'Deposited', not {name!r}")
    return check_member("the name of an event in event_types,", name)


def matches_part(pattern: str, name: str) -> bool:
    """Tell whether one part matches a name."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _check_text(argument: str, given: object) -> None:
    if not isinstance(given, str):
        way = f'; write "{given.model}/{given.id}"' if isinstance(given, ActorId) else ""
        raise InvalidName(f"{argument} must be a text, not {given!r:.80}{way}")


def _token(part: str) -> str:
    return "*" if part.endswith("*") else part


def _sample(part: str) -> str:
    """Return a name that the part would match, if any can be."""
    if not part:
        raise InvalidName("a pattern must not be empty; write * for any")
    return f"{part[:-1]}x" if part.endswith("*") else part
