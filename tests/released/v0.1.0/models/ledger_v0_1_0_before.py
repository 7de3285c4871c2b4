"""The ledger's first edition: what it stored is in the log still, though no resource names it any more."""

from __future__ import annotations

from msgspec.structs import replace

from aether_model.python import CommandFields, EventFields, PythonModel, StateFields, applies, handles


class LedgerState(StateFields, frozen=True):
    """The sum."""

    euros: int = 0


class Book(CommandFields, frozen=True):
    """Book amounts, all or none."""

    euros: list[int]


class Posted(EventFields, frozen=True):
    """The first amount of several was booked, as this was called once."""

    euros: int


class Booked(EventFields, frozen=True):
    """One amount was booked."""

    euros: int


class Ledger(PythonModel[LedgerState]):
    """The model."""

    name = "ledger"
    version = "1"
    on_demand = True

    @handles
    def book(self, state: LedgerState, command: Book) -> tuple[Posted | Booked, ...]:
        """Decide Book."""
        return (Posted(command.euros[0]), *(Booked(euros) for euros in command.euros[1:]))

    @applies
    def posted(self, state: LedgerState, event: Posted) -> LedgerState:
        """Apply Posted."""
        return replace(state, euros=state.euros + event.euros)

    @applies
    def booked(self, state: LedgerState, event: Booked) -> LedgerState:
        """Apply Booked."""
        return replace(state, euros=state.euros + event.euros)
