"""A ledger, second edition: it reads what the first one stored, under older names and with older schemas."""

from __future__ import annotations

from typing import Any, ClassVar

from msgspec.structs import replace

from aether_model.python import CommandFields, EventFields, PythonModel, StateFields, applies, handles, upcasts


class LedgerState(StateFields, frozen=True):
    """The sum and the number of bookings."""

    cents: int = 0
    bookings: int = 0


class Book(CommandFields, frozen=True):
    """Book amounts, all or none."""

    cents: list[int]


class Booked(EventFields, frozen=True):
    """One amount was booked."""

    schema_version: ClassVar[int] = 2
    cents: int


class Ledger(PythonModel[LedgerState]):
    """The model."""

    name = "ledger"
    version = "2"
    state_version = 2
    on_demand = True

    @handles
    def book(self, state: LedgerState, command: Book) -> tuple[Booked, ...]:
        """Decide Book."""
        return tuple(Booked(cents) for cents in command.cents)

    @applies("Booked", "Posted")
    def booked(self, state: LedgerState, event: Booked) -> LedgerState:
        """Apply Booked."""
        return replace(state, cents=state.cents + event.cents, bookings=state.bookings + 1)

    @upcasts("Booked", 1)
    def booked_1(self, data: dict[str, Any]) -> dict[str, Any]:
        """Make cents of euros."""
        return {"cents": data["euros"] * 100}

    @upcasts("Posted", 1)
    def posted_1(self, data: dict[str, Any]) -> dict[str, Any]:
        """Make cents of euros."""
        return {"cents": data["euros"] * 100}
