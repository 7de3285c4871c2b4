"""What one process counts, as plain integers: the hot path adds, and `metrics` reads them when somebody asks.

A metric object of prometheus-client takes a lock and two look-ups for each increment, which a command would feel. So
counting is an addition on an attribute, once for a group of commands where that says as much; labels are names of models and
outcomes, never of actors, so that there are few of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from aether_api.messages import Reply
from aether_runtime.core.group import Waiting

COMMAND_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the buckets in seconds: an idle append takes 1 ms, a caller gives up after 5 s."""

REPLAY_BOUNDS_S: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
"""Upper bounds of the buckets in seconds: a small actor takes 1 ms, the default target is 1 s, a million events take half a minute."""


class Timing:
    """A histogram: how many observations fell below each bound, and their sum."""

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def note(self, seconds: float, times: int = 1) -> None:
        """Take an observation that counts as so many."""
        self.counts[bisect_left(self.bounds_s, seconds)] += times
        self.sum_s += seconds * times


class ModelTally:
    """What happened to the actors of one model in this process.

    Attributes:
        accepted, rejected, noop, error: commands decided, by outcome; a dry run counts as what it was answered.
        busy: commands refused because a mailbox was full.
        commits: stored; `events` are the events in them.
        conflicts: appends refused because somebody else had written.
        quarantined, fenced, failed: VMs that ended that way.
        command_times: from the arrival of the oldest command of a group to the answer, counted for all of its commands.
        replay_times: from the first read of the log to Ready.
    """

    __slots__ = (
        "accepted",
        "busy",
        "command_times",
        "commits",
        "conflicts",
        "error",
        "events",
        "failed",
        "fenced",
        "noop",
        "quarantined",
        "rejected",
        "replay_times",
        "replayed_events",
    )

    def __init__(self) -> None:
        self.accepted = self.rejected = self.noop = self.error = self.busy = 0
        self.commits = self.events = self.conflicts = 0
        self.quarantined = self.fenced = self.failed = self.replayed_events = 0
        self.command_times = Timing(COMMAND_BOUNDS_S)
        self.replay_times = Timing(REPLAY_BOUNDS_S)

    def note_answers(self, answers: Sequence[tuple[Waiting, Reply]], accepted: int, now_s: float) -> None:
        """Count the answers of one group, `accepted` of them to commands that its commit holds."""
        self.accepted += accepted
        if len(answers) != accepted:
            self._note_others(answers, accepted)
        oldest = answers[0][0]
        if oldest.inbox is None:  # a durable command arrived when it was stored, perhaps days ago
            self.command_times.note(max(0.0, now_s - oldest.deadline + oldest.command.timeout_s), len(answers))

    def note_commit(self, events: int) -> None:
        """Count a stored commit."""
        self.commits += 1
        self.events += events

    def note_replay(self, events: int, seconds: float) -> None:
        """Count a replay that succeeded."""
        self.replayed_events += events
        self.replay_times.note(seconds)

    def _note_others(self, answers: Sequence[tuple[Waiting, Reply]], accepted: int) -> None:
        outcomes = [reply.outcome for _, reply in answers]
        self.accepted += outcomes.count("accepted") - accepted
        self.rejected += outcomes.count("rejected")
        self.noop += outcomes.count("noop")
        self.error += outcomes.count("error")


class Tally:
    """All that a process counts; one for a runtime."""

    def __init__(self) -> None:
        self.models: dict[str, ModelTally] = {}

    def of(self, model: str) -> ModelTally:
        """Return the counts of a model."""
        found = self.models.get(model)
        if found is None:
            found = self.models[model] = ModelTally()
        return found
