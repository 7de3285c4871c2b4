"""What goes wrong in one run, and how often: drawn from the seed.

Each kind of fault has a rate of its own, and most seeds leave some kinds out, so that rare combinations of few faults come up as
well as storms of all. What is drawn here is only what a real system may do: bytes of one connection stay in order, what is
acknowledged is stored, and a leader's answer is current.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from tests.simulation.loop import VirtualLoop
from tests.simulation.server.hazards import Fate, Hazards

LATENCY_S: Final = 0.0004
"""Seconds of a good network in one direction, in the mean."""

APPEND_MARK: Final = b".evt."
"""In what is sent when a commit is; there a broken link hurts most."""

APPEND_WEIGHT: Final = 10
"""How much more often a link breaks right after an append was sent."""

REPLICAS: Final = 3

STALE_SHARES: Final = (0.07, 0.5)
"""Shares of Direct Gets that a replica answers which is behind: as measured right after acks on three replicas, and worse."""


@dataclass(frozen=True, slots=True)
class Climate:
    """How bad it is.

    Attributes:
        loss, cut_after_send, refusal: chances of one message, of one write to a socket, of one append.
        stale: share of Direct Gets that a replica answers which is behind, by `lag_max_s` at most.
        latency_s: of the network in one direction, in the mean.
        watch_lag_s: until a pod hears of a placement by its watch, at most.
        release_loss: chance that the old pod is not told of a move at once.
        write_s: how long a replicated write is under way, in the mean.
        answer_s: how long an answer of JetStream takes, in the mean.
        calls_per_s: what each client sends.
        events: kinds of trouble, each with its rate a second.
        pieces: share of what a server sends that arrives in pieces, and of broken links over which a part of the last bytes still went.
        dry_runs: share of commands that are asked for as a dry run first.
        imports_per_s: what each program saves that writes to the log itself.
    """

    replicas: int
    pods: int
    loss: float
    cut_after_send: float
    refusal: float
    stale: float
    lag_max_s: float
    latency_s: float
    watch_lag_s: float
    release_loss: float
    write_s: float
    answer_s: float
    skew_max_s: float
    calls_per_s: float
    storm_s: float
    events: dict[str, float]
    pieces: float = 0.0
    dry_runs: float = 0.0
    imports_per_s: float = 0.0


TROUBLES: Final[dict[str, float]] = {
    "reset": 0.15,
    "silence": 0.04,
    "slow": 0.08,
    "partition": 0.05,
    "pause": 0.12,
    "kill": 0.12,
    "kill_client": 0.04,
    "kill_reader": 0.04,
    "server": 0.04,
    "election": 0.08,
    "move": 0.3,
    "purge": 0.04,
}
"""Rates a second of each kind, before a seed scales them."""

UNRULY: Final[dict[str, Any]] = {
    "pieces": 0.3,
    "dry_runs": 0.25,
    "imports_per_s": 1.0,
    "events": {**TROUBLES, "model": 0.3, "lose_model": 0.1, "leave": 0.1, "clock": 0.2},
}
"""Parts of a climate in which the world changes while it storms: models, clocks, who serves, and the log by programs. No seed draws them by itself."""

CLOCKS_S: Final = 13.0
"""Seconds by which a clock that is set is wrong, at most: two of them differ by less than commands allow for."""


def draw_climate(source: random.Random) -> Climate:
    """Draw one climate; some kinds of trouble do not occur in it at all."""

    def sometimes(value: float, share: float = 0.6) -> float:
        return value if source.random() < share else 0.0

    scale = source.choice((0.3, 0.6, 1.0, 2.0))
    return Climate(
        replicas=source.choice((1, REPLICAS)),
        pods=source.choice((2, 3)),
        loss=sometimes(source.choice((0.001, 0.01, 0.03))),
        cut_after_send=sometimes(source.choice((0.0002, 0.001, 0.003))),
        refusal=sometimes(source.choice((0.01, 0.1)), 0.3),
        stale=source.choice(STALE_SHARES),
        lag_max_s=source.choice((0.01, 0.5, 2.0)),
        latency_s=source.choice((LATENCY_S, 0.002, 0.01)),
        watch_lag_s=source.choice((0.3, 1.0, 10.0)),
        release_loss=source.choice((0.0, 0.5, 0.9)),
        write_s=source.choice((0.001, 0.01, 0.1)),
        answer_s=source.choice((0.0005, 0.005, 0.05)),
        skew_max_s=source.choice((0.0, 0.5, 5.0)),
        calls_per_s=source.choice((2.0, 5.0, 12.0)),
        storm_s=source.uniform(8.0, 25.0),
        events={kind: sometimes(rate * scale * source.uniform(0.3, 3.0), 0.7) for kind, rate in TROUBLES.items()},
    )


class Faults(Hazards):
    """The faults of one run; after `calm` almost nothing goes wrong any more."""

    replicas_max = REPLICAS

    def __init__(self, loop: VirtualLoop, source: random.Random, worse: Mapping[str, Any] | None = None) -> None:
        self.climate = replace(draw_climate(source), **(worse or {}))
        self.is_calm = False
        self.slow: dict[str, float] = {}
        self._loop = loop
        self._random = source

    def calm(self) -> None:
        """Let the storm end."""
        self.is_calm = True
        self.slow.clear()

    def draw(self, low: float, high: float) -> float:
        """Draw a number."""
        return self._random.uniform(low, high)

    def happens(self, chance: float) -> bool:
        """Tell whether something that may go wrong does."""
        return chance > 0 and not self.is_calm and self._random.random() < chance

    # The network.

    def draw_latency_s(self, process: str = "") -> float:
        """Return how long bytes are under way."""
        slow_s = self.slow.get(process, 0.0)
        mean_s = LATENCY_S if self.is_calm else self.climate.latency_s
        return self._random.expovariate(1 / mean_s) + (self._random.uniform(0, slow_s) if slow_s else 0.0)

    def cuts_after_sending(self, data: bytes) -> bool:
        """Tell whether the link breaks as soon as these bytes have arrived."""
        return self.happens(self.climate.cut_after_send * (APPEND_WEIGHT if APPEND_MARK in data else 1))

    def cut(self, data: bytes) -> list[bytes]:
        """Return bytes as they arrive: mostly at once."""
        if not self.happens(self.climate.pieces):
            return [data]
        places = sorted({self._random.randrange(len(data) + 1) for _ in range(3)})
        return [piece for start, end in pairwise([0, *places, len(data)]) if (piece := data[start:end])]

    def keep_part(self, data: bytes) -> bytes:
        """Return what of the last bytes still goes over a link that breaks."""
        return data[: self._random.randrange(len(data) + 1)] if self.happens(self.climate.pieces) else data

    # The servers.

    def loses_message(self, subject: str) -> bool:
        return self.happens(self.climate.loss)

    def cut_train(self, length: int) -> int:
        return self._random.randrange(length + 1) if length and self.happens(self.climate.loss) else length

    def answer_delay_s(self) -> float:
        return self._random.expovariate(1 / (LATENCY_S if self.is_calm else self.climate.answer_s))

    def write_delay_s(self, replicas: int) -> float:
        if replicas == 1:
            return 0.0
        return self._random.expovariate(1 / (LATENCY_S if self.is_calm else self.climate.write_s))

    def refuses_write(self, replicas: int) -> bool:
        return replicas > 1 and self.happens(self.climate.refusal)

    def replica_lag_s(self, replicas: int) -> float:
        if replicas == 1 or self._random.random() > self.climate.stale:
            return 0.0
        return self._random.uniform(0, LATENCY_S if self.is_calm else self.climate.lag_max_s)

    def is_deaf(self) -> bool:
        return self._random.random() < 0.5

    def fate_of_write(self) -> Fate:
        return self._random.choice(("stored", "lost"))

    def choose(self, count: int) -> int:
        return self._random.randrange(count)
