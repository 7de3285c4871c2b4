"""How much work a run of the benches does: the full size for figures, the small one to see that they work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import PeerMissing


@dataclass(frozen=True, slots=True)
class Scale:
    """Rounds and sizes of a run.

    Attributes:
        rounds: pairs of measurements that count; one more before them warms both sides up.
        seconds: length of one measurement of a closed loop.
        size: share of the full number of actors and events, 0 to 1.
        peers: whether to compare with other software, which is installed on demand; the bare loops are no peers.
        profile: folder for profiles of our processes; None for none, since a profile slows them down.
    """

    rounds: int = 5
    seconds: float = 3.0
    size: float = 1.0
    peers: bool = True
    profile: Path | None = None

    def of(self, full: int, *, at_least: int = 1) -> int:
        """Return this run's share of a full number."""
        return max(at_least, round(full * self.size))

    def check_peers(self) -> None:
        """Raise `PeerMissing` in a run without peers."""
        if not self.peers:
            raise PeerMissing("left out of this run")


SMALL: Final = Scale(rounds=1, seconds=0.3, size=0.01)
"""Enough for each side to answer: a second or two a bench."""
