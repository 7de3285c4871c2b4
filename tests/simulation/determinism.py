"""Takes the last chances from a run: clocks, ids and randomness come from the loop and the seed while it lasts.

The production code asks the standard library for them, as it should; here those few functions are replaced. Python's collector
of cycles is off, since the moment at which it runs depends on all that was allocated before.
"""

from __future__ import annotations

import gc
import random
import secrets
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from unittest import mock

from tests.simulation.loop import PROCESS, VirtualLoop

START_S: Final = 1_782_907_200.0
"""Unix time at which every run begins: 2026-07-01T12:00:00Z."""


@contextmanager
def determined(loop: VirtualLoop, seed: int) -> Iterator[None]:
    """Let time and chance come from the loop and the seed, for the length of a `with` block."""
    ids, state, was_enabled = random.Random(f"ids {seed}"), random.getstate(), gc.isenabled()

    def read_wall_s() -> float:
        process = PROCESS.get()
        return START_S + loop.time() + (process.skew_s if process is not None else 0.0)

    def draw_hex(nbytes: int | None = None) -> str:
        return ids.randbytes(nbytes or 32).hex()

    def draw_uuid() -> uuid.UUID:
        return uuid.UUID(bytes=ids.randbytes(16))

    random.seed(seed)
    gc.disable()
    gc.freeze()  # what was there before is not looked at when the run has ended
    try:
        with (
            mock.patch.object(time, "time", read_wall_s),
            mock.patch.object(time, "monotonic", loop.time),
            mock.patch.object(secrets, "token_hex", draw_hex),
            mock.patch.object(uuid, "uuid4", draw_uuid),
        ):
            yield
    finally:
        random.setstate(state)
        gc.unfreeze()
        if was_enabled:
            gc.enable()
