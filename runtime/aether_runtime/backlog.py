"""Bounds the memory of all commands of a process that wait or are being stored, however many actors they are for.

A full mailbox holds back the callers of one actor; a flood for thousands of them would fill the pod long before. An exact count would
have to be right wherever a command goes, for ever, or the pod would refuse everybody one day. So admitted bytes are only added up,
and when the room is used up, it is asked what is really there: nothing can drift, and a look costs no more than the flood makes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

BACKLOG_BYTES_MAX: Final = 67_108_864
"""Bytes that wait or are being stored in one process: some 50,000 small commands, two seconds of work, an eighth of a pod's memory (512 MiB in the chart)."""

COMMAND_BYTES: Final = 1_024
"""Bytes that a command takes beyond its payload: 650 while it waits (measured), and its answer after that."""

SLACK_BYTES: Final = BACKLOG_BYTES_MAX // 8
"""Bytes that must be free before commands are taken again, so that looks are rare: each goes through all that waits (some 5 ms of a full process)."""

LOOK_AGAIN_S: Final = 0.1
"""Seconds without a look after one that found no room."""


class Backlog:
    """What all VMs of one process hold of commands."""

    def __init__(self, measure: Callable[[], int] = lambda: 0, now_s: Callable[[], float] = time.monotonic) -> None:
        """Begin without knowing anything.

        Args:
            measure: returns the bytes that wait or are being stored now, `COMMAND_BYTES` for each command included.
        """
        self._measure = measure
        self._now_s = now_s
        self._room = self._held = 0
        self._closed_until_s = 0.0

    @contextmanager
    def holding(self, size: int) -> Generator[None]:
        """Count bytes that nobody measures, for the length of a `with` block."""
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    def admit(self, payload_bytes: int) -> bool:
        """Tell whether there is room for a command that is about to wait."""
        self._room -= payload_bytes + COMMAND_BYTES
        return self._room >= 0 or self._look(payload_bytes + COMMAND_BYTES)

    def _look(self, size: int) -> bool:
        now_s = self._now_s()
        if now_s < self._closed_until_s:
            return False
        self._room = BACKLOG_BYTES_MAX - self._measure() - self._held - size
        if self._room >= SLACK_BYTES:
            return True
        self._room = 0
        self._closed_until_s = now_s + LOOK_AGAIN_S
        return False
