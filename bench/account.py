"""The account of the benches: deposits and withdrawals, events of 200 bytes.

The bare loops use the structs below; bench/account_model.py says the same for ours.
"""

from __future__ import annotations

from typing import Final

import msgspec

NOTE: Final = "x" * 67
"""What a deposit carries beside its amount, so that a bare event has 200 bytes."""

DEPOSIT: Final = msgspec.json.encode({"amount": 5, "note": NOTE})
"""The command of every closed loop."""


class Change(msgspec.Struct):
    """Payload of the commands Deposit and Withdraw."""

    amount: int
    note: str = ""


class Entry(msgspec.Struct):
    """A bare event."""

    type: str
    version: int
    account: str
    amount: int
    time: str
    command: str
    note: str


class Answer(msgspec.Struct):
    """A bare reply; the load generator looks at its first field."""

    outcome: str
    version: int
    balance: int
