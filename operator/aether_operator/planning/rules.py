"""What an actor asks of its pod, as values: `affinity` decides by them.

Equal rules are one object (`records` sees to that), since ten thousand actors have few different ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Labels = tuple[tuple[str, str], ...]
"""Labels and their values, in order of names."""


@dataclass(frozen=True, slots=True)
class Preference:
    """Labels that a pod had better carry, and how much they weigh."""

    weight: int
    labels: Labels


@dataclass(frozen=True, slots=True)
class Spread:
    """Keeps actors of one group apart.

    Attributes:
        group: of one namespace.
        topology_key: label of pods whose values are apart from each other; empty keeps pods apart.
    """

    group: str
    topology_key: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """What an actor asks of its pod."""

    required: Labels = ()
    preferred: tuple[Preference, ...] = ()
    spread: Spread | None = None


NO_RULES: Final = Rules()
