"""An alarm clock: a model in plain Python whose commands set and end reminders, and fail in every way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

import msgspec

from aether_api.envelope import Event
from aether_api.errors import CommandFailed
from aether_api.identity import parse_actor_id
from aether_model.model import NO_OP, After, At, CancelReminder, CommandInput, Cron, Decision, DomainEvent, Emitted, Missed, Rejected, Schedule, SetReminder, State, apply_each

CLOCK: Final = parse_actor_id("default", "alarm", "clock")


class Wish(msgspec.Struct, frozen=True):
    """The fields of all commands."""

    name: str = "morning"
    command: str = "Ring"
    at: str = ""
    after_s: float = -1.0
    cron: str = ""
    zone: str = "UTC"
    missed: Missed = "late"
    label: str = ""
    count: int = 0

    def names(self) -> list[str]:
        """Return the names of so many reminders."""
        return [f"{self.name}_{number}" for number in range(self.count)]


class Alarm:
    """The model; a state is the list of what it was told, in order."""

    name = "alarm"
    version = "1"
    content_hash = "alarm-1"
    fold = "f-alarm"
    on_demand = True

    def initial_state(self) -> State:
        """Nothing was told."""
        return {"rang": []}

    def decide(self, state: State, command: CommandInput) -> Decision:
        """Do as the command's name says."""
        wish = msgspec.json.decode(command.payload, type=Wish)
        rang = DomainEvent("Rang", msgspec.json.encode({"label": wish.label or command.name}))
        match command.name:
            case "Ring":
                return Emitted((rang,))
            case "RingTwice":
                return Emitted((rang, rang))
            case "Set":
                return Emitted((rang,), (_build_reminder(wish, wish.name),))
            case "SetMany":
                return Emitted((rang,), tuple(_build_reminder(wish, name) for name in wish.names()))
            case "CancelMany":
                return Emitted((rang,), tuple(CancelReminder(name) for name in wish.names()))
            case "Cancel":
                return Emitted((rang,), (CancelReminder(wish.name),))
            case "Refuse":
                return Rejected("NotNow", "it is night")
            case "Ignore":
                return NO_OP
            case "Fail":
                raise CommandFailed("the spring broke")
            case _:
                raise ZeroDivisionError(command.name)

    def apply(self, state: State, event_type: str, data: bytes, *, time: str, version: int, schema_version: int = 1) -> State:
        """Add what it was told."""
        rang = cast("dict[str, list[str]]", state)["rang"]
        return {"rang": [*rang, msgspec.json.decode(data)["label"]]}

    def apply_all(self, state: State, events: Iterable[Event], version: int) -> State:
        """Return the state after stored events."""
        return apply_each(self, state, events, version)

    def encode_state(self, state: State) -> bytes:
        """Encode it as it is."""
        return msgspec.json.encode(state)

    def decode_state(self, encoded: bytes) -> State:
        """Decode it as it is."""
        return cast("dict[str, Any]", msgspec.json.decode(encoded))


def _build_reminder(wish: Wish, name: str) -> SetReminder:
    return SetReminder(name, wish.command, b'{"label":"%s"}' % name.encode(), _build_schedule(wish), wish.missed)


def _build_schedule(wish: Wish) -> Schedule:
    if wish.cron:
        return Cron(wish.cron, wish.zone)
    return At(wish.at) if wish.at else After(wish.after_s)
