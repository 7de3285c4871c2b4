"""The bank account as a model in Python: what examples/bank says in YAML, said with types."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from aether_model.python import CommandFields, EventFields, PythonModel, Rejected, StateFields, applies, handles

Cents = Annotated[int, Meta(ge=1, le=10**15)]
Owner = Annotated[str, Meta(min_length=1, max_length=100)]
CLOSED = Rejected("AccountClosed", "the account is closed")


class AccountState(StateFields, frozen=True):
    """What an account holds; the defaults are the state before the first event."""

    owner: str = ""
    balance: int = 0
    open: bool = False


class Open(CommandFields, frozen=True):
    """Open the account, also one that was closed."""

    owner: Owner


class Deposit(CommandFields, frozen=True):
    """Put money in."""

    amount: Cents


class Withdraw(CommandFields, frozen=True):
    """Take money out."""

    amount: Cents


class Close(CommandFields, frozen=True):
    """Close the account, which must be empty."""


class Opened(EventFields, frozen=True):
    """The account was opened."""

    owner: str


class Deposited(EventFields, frozen=True):
    """Money came in."""

    amount: int


class Withdrawn(EventFields, frozen=True):
    """Money went out."""

    amount: int


class Closed(EventFields, frozen=True):
    """The account was closed."""


class Account(PythonModel[AccountState]):
    """A bank account; amounts are in cents."""

    name = "account"
    version = "1.0.0"
    on_demand = True

    @handles
    def open(self, state: AccountState, command: Open) -> Opened | Rejected:
        """Decide Open."""
        return Rejected("AlreadyOpen", "the account is open already") if state.open else Opened(command.owner)

    @handles
    def deposit(self, state: AccountState, command: Deposit) -> Deposited | Rejected:
        """Decide Deposit."""
        return Deposited(command.amount) if state.open else CLOSED

    @handles
    def withdraw(self, state: AccountState, command: Withdraw) -> Withdrawn | Rejected:
        """Decide Withdraw."""
        if not state.open:
            return CLOSED
        if state.balance < command.amount:
            return Rejected("InsufficientFunds", f"the balance of {state.balance} is below {command.amount}")
        return Withdrawn(command.amount)

    @handles
    def close(self, state: AccountState, command: Close) -> Closed | Rejected:
        """Decide Close."""
        if not state.open:
            return CLOSED
        return Rejected("BalanceNotZero", f"withdraw the balance of {state.balance} first") if state.balance else Closed()

    @applies
    def opened(self, state: AccountState, event: Opened) -> AccountState:
        """Apply Opened."""
        return AccountState(event.owner, 0, open=True)

    @applies
    def deposited(self, state: AccountState, event: Deposited) -> AccountState:
        """Apply Deposited."""
        return replace(state, balance=state.balance + event.amount)

    @applies
    def withdrawn(self, state: AccountState, event: Withdrawn) -> AccountState:
        """Apply Withdrawn."""
        return replace(state, balance=state.balance - event.amount)

    @applies
    def closed(self, state: AccountState, event: Closed) -> AccountState:
        """Apply Closed."""
        return replace(state, open=False)
