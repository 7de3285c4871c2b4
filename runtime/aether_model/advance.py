"""Takes a model through commands and events without a log: for tests, tools, and the examples of a model."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aether_api.errors import CommandFailed, EventInvalid
from aether_model.model import CommandInput, Decision, Emitted, Model, State


class Advance(msgspec.Struct, frozen=True):
    """A decision, and the state and version after its events."""

    decision: Decision
    state: State
    version: int


def advance(model: Model, state: State, command: CommandInput, *, event_time: str) -> Advance:
    """Decide and apply in one step, on state that is not stored yet; an event that cannot be applied fails the command.

    Raises:
        CommandFailed: the model computed something impossible; nothing may be stored.
    """
    decision = model.decide(state, command)
    if not isinstance(decision, Emitted):
        return Advance(decision, state, command.version)
    version = command.version
    try:
        for event in decision.events:
            version += 1
            state = model.apply(state, event.type, event.data, time=event_time, version=version, schema_version=event.schema_version)
    except EventInvalid as exc:
        raise CommandFailed(f"command {command.name} made an event that cannot be applied: {exc}") from exc
    return Advance(decision, state, version)


def replay(model: Model, events: Sequence[tuple[str, bytes, str]]) -> State:
    """Return the state after `(type, data, time)` events from version 1 on.

    Raises:
        EventInvalid: the model cannot apply one of them.
    """
    state = model.initial_state()
    for version, (event_type, data, time) in enumerate(events, start=1):
        state = model.apply(state, event_type, data, time=time, version=version)
    return state
