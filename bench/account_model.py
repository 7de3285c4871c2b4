"""The account of the benches as a Python model, which our side runs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from aether_model.python import CommandFields, EventFields, PythonModel, Rejected, StateFields, applies, handles

Cents = Annotated[int, Meta(ge=1)]


class AccountState(StateFields, frozen=True):
    """What an account holds."""

    balance: int = 0


class Deposit(CommandFields, frozen=True):
    """Put money in."""

    amount: Cents
    note: str = ""


class Withdraw(CommandFields, frozen=True):
    """Take money out."""

    amount: Cents
    note: str = ""


class Deposited(EventFields, frozen=True):
    """Money came in."""

    amount: int
    note: str


class Withdrawn(EventFields, frozen=True):
    """Money went out."""

    amount: int
    note: str


class Account(PythonModel[AccountState]):
    """An account that needs no opening."""

    name = "account"
    version = "1.0.0"
    on_demand = True

    @handles
    def deposit(self, state: AccountState, command: Deposit) -> Deposited:
        """Decide Deposit."""
        return Deposited(command.amount, command.note)

    @handles
    def withdraw(self, state: AccountState, command: Withdraw) -> Withdrawn | Rejected:
        """Decide Withdraw."""
        if state.balance < command.amount:
            return Rejected("InsufficientFunds", "not enough money")
        return Withdrawn(command.amount, command.note)

    @applies
    def deposited(self, state: AccountState, event: Deposited) -> AccountState:
        """Apply Deposited."""
        return AccountState(state.balance + event.amount)

    @applies
    def withdrawn(self, state: AccountState, event: Withdrawn) -> AccountState:
        """Apply Withdrawn."""
        return AccountState(state.balance - event.amount)
