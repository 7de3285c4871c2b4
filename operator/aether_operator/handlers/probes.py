"""Decides whether this process is well. Pure: the times come in.

A dead API server or NATS is no sickness of ours: a restart would not help, and would lose what is known. Sick is a loop that no
longer turns, or an informer that does not even try.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from aether_kube.informer import InformerHealth

LOOP_STALE_S: Final = 120.0
"""Seconds without a plan: four times the resync, so that a slow machine is not killed for it."""

INFORMER_STALE_S: Final = 200.0
"""Seconds without any turn of an informer: the longest legal waits are 70 s of silence, a page of 60 s and a wait of 10 s."""


ELECTION_STALE_S: Final = 60.0
"""Seconds without a look at the lease: each takes 2 s at most, and is repeated after one."""


def find_sickness(*, now_s: float, last_plan_s: float | None, last_vote_s: float | None, informers: Mapping[str, Sequence[InformerHealth]]) -> list[str]:
    """Return what is wrong with this process, nothing if it is well.

    Args:
        last_plan_s: when the last plan was made, monotonic seconds; None while this process does not lead or waits for answers.
        last_vote_s: when the lease was last looked at or renewed; None before everything was listed.
    """
    stale = [
        f"the informer of {kind} has done nothing for {now_s - health.last_turn_s:.0f} s"
        for kind, healths in informers.items()
        for health in healths
        if now_s - health.last_turn_s > INFORMER_STALE_S
    ]
    if last_plan_s is not None and now_s - last_plan_s > LOOP_STALE_S:
        stale.append(f"no plan was made for {now_s - last_plan_s:.0f} s")
    if last_vote_s is not None and now_s - last_vote_s > ELECTION_STALE_S:
        stale.append(f"nobody looked at the lease for {now_s - last_vote_s:.0f} s")
    return stale
