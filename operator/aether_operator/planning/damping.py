"""Decides how long a pod that flaps is left alone: one restart is an accident, several in a row are a habit.

A flap is a process that was taken for dead and came back: another boot id, or a sound after a ping stayed without answer. From the
second one on, the pod gets new actors only where no other pod has room, for a time that doubles with each further flap. What it
holds it keeps, since moving actors on suspicion is what makes flapping expensive.
Prior art: BGP's route flap damping; CrashLoopBackOff.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FORGET_S: Final = 600.0
"""Seconds without a flap after which the earlier ones are forgotten: twice the longest time that a pod is left alone."""

FIRST_S: Final = 10.0
"""Seconds for which a pod is left alone after its second flap: some restarts of a container."""

LONGEST_S: Final = 300.0
"""Seconds for which a pod is left alone at most, as with Kubernetes' own back-off of restarts."""


@dataclass(frozen=True, slots=True)
class Flaps:
    """How often a pod flapped, and when last, in monotonic seconds."""

    count: int = 0
    last_s: float = 0.0


STEADY: Final = Flaps()


def note_flap(flaps: Flaps, now_s: float) -> Flaps:
    """Return the history with one more flap."""
    return Flaps(1 if now_s - flaps.last_s > FORGET_S else flaps.count + 1, now_s)


def is_damped(flaps: Flaps, now_s: float) -> bool:
    """Return whether the pod is to be left alone now."""
    if flaps.count < 2:
        return False
    # A pod that flaps all day must not overflow a float.
    doublings = min(flaps.count - 2, 16)
    return now_s - flaps.last_s < min(LONGEST_S, FIRST_S * (1 << doublings))
