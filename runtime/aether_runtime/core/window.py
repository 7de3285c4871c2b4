"""The window of accepted commands: which ids took effect lately, and in which commit.

A command id takes effect at most once while it is in the window. Entries hold a 64-bit hash of the id and the commit's
sequence, so the window of a busy actor stays small; a hit is checked against the commit before it is believed. The
window is rebuilt by replay and travels in snapshots, so it survives restarts and moves.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

WINDOW_S: Final = 150.0
"""Seconds that an accepted command stays known: a command older than 120 s is refused, and clocks may differ by 30 s."""

AGE_MAX_S: Final = 120.0
"""Seconds after which a command is never run: its id may have left the window of another pod."""

KEPT_MIN: Final = 64
"""Entries kept whatever their age, so that a person who repeats a command after lunch still gets the first answer."""


def hash_command_id(command_id: str) -> int:
    """Return the 64-bit hash that the window keeps of an id."""
    return int.from_bytes(hashlib.blake2b(command_id.encode(), digest_size=8).digest(), "big")


class CommandWindow:
    """Ids of accepted commands, oldest first."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[tuple[int, int, float]] = ()) -> None:
        """Restore from `(hash, sequence, unix time)` entries, oldest first."""
        self._entries: OrderedDict[int, tuple[int, float]] = OrderedDict((digest, (sequence, time_s)) for digest, sequence, time_s in entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, command_id: str) -> int | None:
        """Return the sequence of the commit that may hold the command."""
        entry = self._entries.get(hash_command_id(command_id))
        return None if entry is None else entry[0]

    def add(self, command_id: str, sequence: int, time_s: float) -> None:
        """Note an accepted command and forget those that are too old; `time_s` is the event's unix time."""
        digest = hash_command_id(command_id)
        self._entries.pop(digest, None)
        self._entries[digest] = (sequence, time_s)
        while len(self._entries) > KEPT_MIN and next(iter(self._entries.values()))[1] < time_s - WINDOW_S:
            self._entries.popitem(last=False)

    def entries(self) -> list[tuple[int, int, float]]:
        """Return the `(hash, sequence, unix time)` entries, oldest first."""
        return [(digest, sequence, time_s) for digest, (sequence, time_s) in self._entries.items()]
