"""Decides whom to trust: is a pod's process alive, suspect, leaving, or surely dead?

Silence alone proves nothing, since the fault may be ours: nobody is declared dead for missing heartbeats unless our own links
to NATS and to the API server were up for a full detection window, and then only with a second witness, a failed ping or the
Pod object itself. What the API server says of a Pod (gone, finished, deleted without grace) is proof enough.

While not one pod is heard, a ping is no witness either: the server that we are connected to may be cut off from the servers of the pods
(routes between NATS servers break apart from everything else, or the others hang), and nobody is left who could take an actor anyway.
The first that is heard again says nothing of the others, which may be about to come back, too: so a ping counts if some pod was heard all the
time since the silent one fell silent, or for a whole detection window of it.

A changed boot id means that the process before is dead; what it held is told anew to the one that came (`introduced`).
Prior art: SWIM's suspicion; and wasmCloud, whose operator once deleted every host when its own bus was out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aether_api.control import PodState
from aether_operator.planning.snapshot import Verdict

LULL: Final = 2 / 3
"""Part of the suspicion time for which a sound shows that pods are heard: two heartbeats. Less than the whole, since those that are cut off
together were last heard up to one heartbeat apart, and the first of them must not be given up while the last still counts as heard."""

ROUNDING_S: Final = 1e-6
"""Seconds by which sums of times may differ."""


@dataclass(frozen=True, slots=True)
class Windows:
    """How long to wait, in seconds: see `settings` for their reasons."""

    suspect_after_s: float
    detection_window_s: float

    @property
    def lull_s(self) -> float:
        """Seconds for which a sound of any pod shows that pods are heard."""
        return LULL * self.suspect_after_s


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the API server says of a Pod.

    Attributes:
        finished: phase Succeeded or Failed.
        process_down: the runtime container does not run, though it did once.
        grace_s: seconds that a deletion left it; None when it is not being deleted.
    """

    finished: bool = False
    process_down: bool = False
    grace_s: int | None = None


@dataclass(frozen=True, slots=True)
class Pulse:
    """What NATS says of a pod's process; times are monotonic seconds.

    Attributes:
        seen_s: when its Pod object was first seen by us.
        heard_s: when its last heartbeat or answer came; None before the first.
        ping_failed_s: when a ping last stayed without answer, and that was news of this pod alone.
        sounds_s: seconds in which any pod had been heard until then, as `Sounds` counts them.
    """

    seen_s: float
    heard_s: float | None = None
    ping_failed_s: float | None = None
    state: PodState = "ready"
    sounds_s: float = 0.0

    @property
    def silent_since_s(self) -> float:
        """When the last sound came; before the first, when it was to be expected from."""
        return self.heard_s if self.heard_s is not None else self.seen_s

    @property
    def is_unanswered(self) -> bool:
        """Whether a ping has failed since the last sound."""
        return self.ping_failed_s is not None and (self.heard_s is None or self.ping_failed_s > self.heard_s)


@dataclass(frozen=True, slots=True)
class Sounds:
    """How long pods were heard, whichever; a clock that stands still while none is.

    Attributes:
        last_s: when one was heard last, in monotonic seconds; None before the first.
        total_s: seconds until then in which one was heard.
    """

    last_s: float | None = None
    total_s: float = 0.0

    def add(self, now_s: float, windows: Windows) -> Sounds:
        """Return what is known with a sound of now."""
        return Sounds(now_s, self.measure(now_s, windows))

    def measure(self, now_s: float, windows: Windows) -> float:
        """Return the seconds in which some pod was heard."""
        return self.total_s if self.last_s is None else self.total_s + min(now_s - self.last_s, windows.lull_s)

    def are_news_of(self, pulse: Pulse, *, now_s: float, windows: Windows) -> bool:
        """Return whether a pod is silent alone, so that a ping without answer is news of it and not of the way to all of them."""
        if self.last_s is None or now_s - self.last_s >= windows.lull_s:
            return False
        heard_s = self.measure(now_s, windows) - pulse.sounds_s
        return heard_s >= min(now_s - pulse.silent_since_s - ROUNDING_S, windows.detection_window_s)


@dataclass(frozen=True, slots=True)
class Links:
    """Since when our own links are up without a break, in monotonic seconds; None while one is down.

    Attributes:
        awake_since_s: since when our own event loop runs without a stall, in which nothing could be heard either.
    """

    nats_since_s: float | None
    kube_since_s: float | None
    awake_since_s: float = 0.0

    def are_settled(self, now_s: float, windows: Windows) -> bool:
        """Return whether both were up for a full window."""
        since_s = self.since_s
        return since_s is not None and now_s - since_s >= windows.detection_window_s

    @property
    def since_s(self) -> float | None:
        """Since when both are up and we are awake."""
        if self.nats_since_s is None or self.kube_since_s is None:
            return None
        return max(self.nats_since_s, self.kube_since_s, self.awake_since_s)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one pod whose object exists; `links` are ours, as they count for this pod."""

    facts: PodFacts
    pulse: Pulse
    links: Links


def judge_pod(pod: Evidence, *, now_s: float, windows: Windows) -> Verdict:
    """Return the verdict on one pod."""
    facts, pulse, links = pod.facts, pod.pulse, pod.links
    if facts.finished or facts.grace_s == 0:
        return "dead"
    if is_silent(pulse, links, now_s=now_s, windows=windows):
        witness = facts.process_down or pulse.is_unanswered
        return "dead" if witness and links.are_settled(now_s, windows) else _while_unsure(pulse)
    if pulse.heard_s is None:
        return "starting"
    return "leaving" if is_departing(facts, pulse) else "alive"


def is_departing(facts: PodFacts, pulse: Pulse) -> bool:
    """Return whether a pod said or shows that it goes, or has gone in order: then its silence is no news, whatever the verdict is by now."""
    return facts.finished or facts.grace_s is not None or pulse.state == "leaving"


def is_silent(pulse: Pulse, links: Links, *, now_s: float, windows: Windows) -> bool:
    """Return whether a pod should have been heard by now: time in which our own links were down does not count."""
    if links.since_s is None:
        return False
    listening_since_s = max(links.since_s, pulse.silent_since_s)
    return now_s - listening_since_s >= windows.suspect_after_s


def _while_unsure(pulse: Pulse) -> Verdict:
    # A pod that was never heard holds nothing that it could lose, so there is nothing to suspect yet.
    return "suspect" if pulse.heard_s is not None else "starting"
