"""Which actors leave memory: those idle for too long, and where there are too many, those least worth keeping. Pure.

Over the limit, the choice is S3-FIFO's (Yang and others, SOSP 2023), which beats LRU and keeps no order that a command would have
to update: newcomers pass through a short queue, and those that were used once leave from it soon; what was used again moves to the main
queue, where each use since the last visit saves it from one visit more. An actor that left from the short queue and comes back soon goes
to the main queue at once. So a flood of actors that are used once does not drive out those in steady use, and a command pays
for nothing but a counter that its VM raises once a group.

Never chosen: a VM that replays, appends, or has commands waiting, and one that has just come and served nobody yet.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from aether_api.identity import ActorId

YOUNG_SHARE: Final = 0.1
"""Share of the short queue, as the paper has it: flat between 5 and 20 %."""

UNUSED: Final = -1
"""`uses` of an actor that has served nobody yet; the first group of commands, which woke most of them, makes it 0."""

USES_MAX: Final = 3
"""Visits that a much used actor survives without being used again: two bits in the paper."""

VISITS_MAX: Final = 2_000
"""Entries looked at in one choice, a millisecond; what is still too many waits for the next one."""

GRACE_S: Final = 5.0
"""Seconds for which a VM that has served nobody is left alone: its first command may be on the way."""

SHED_ABOVE: Final = 0.80
"""Share of the memory limit at which actors begin to be put to sleep (Orleans has the same figures)."""

SHED_BELOW: Final = 0.75
"""Share of the memory limit at which that ends."""

SHED_SHARE_MAX: Final = 0.25
"""Share of the actors that one look at the memory may cost: freed memory shows late, and too many asleep is paid for in replays."""

SHED_GRACE_S: Final = 5.0
"""Seconds since its last use for which memory pressure leaves an actor alone: it would be back at once."""


class Sleeper(Protocol):
    """What is known of one awake actor.

    Attributes:
        uses: groups of commands served after the first, `UNUSED` before it; the choice lowers it as time goes by.
        touched_s: monotonic time of the last of them, or of the start.
    """

    uses: int
    touched_s: float

    @property
    def can_sleep(self) -> bool:
        """Whether nothing is under way or waiting."""
        ...


Lookup = Callable[[ActorId], Sleeper | None]


def is_rested(sleeper: Sleeper, now_s: float, *, quiet_s: float = 0.0) -> bool:
    """Tell whether an actor may be chosen at all.

    Args:
        quiet_s: seconds since its last use that are asked for.
    """
    rest_s = now_s - sleeper.touched_s
    return sleeper.can_sleep and rest_s >= quiet_s and (sleeper.uses > UNUSED or rest_s >= GRACE_S)


def is_idle(sleeper: Sleeper, idle_after_s: float, now_s: float) -> bool:
    """Tell whether an actor has had no command for so long that it shall sleep; 0 is never."""
    return idle_after_s > 0 and now_s - sleeper.touched_s >= idle_after_s and sleeper.can_sleep


class AwakeQueues:
    """Awake actors in the order in which they are looked at; those that went otherwise are found out when their turn comes."""

    def __init__(self, ghosts_max: int) -> None:
        """Begin empty.

        Args:
            ghosts_max: actors that left from the short queue to be remembered.
        """
        self._young: deque[ActorId] = deque()
        self._settled: deque[ActorId] = deque()
        self._ghosts: OrderedDict[ActorId, None] = OrderedDict()
        self._ghosts_max = ghosts_max
        self._gone = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._settled)

    def admit(self, actor: ActorId) -> None:
        """Take an actor that woke up."""
        known = actor in self._ghosts
        self._ghosts.pop(actor, None)
        (self._settled if known else self._young).append(actor)

    def note_gone(self, lookup: Lookup) -> None:
        """An actor left otherwise than by `choose`; once half of the entries may be such, they are dropped."""
        self._gone += 1
        if self._gone * 2 > len(self) + 128:
            self._gone = 0
            self._young = deque(actor for actor in dict.fromkeys(self._young) if lookup(actor) is not None)
            self._settled = deque(actor for actor in dict.fromkeys(self._settled) if lookup(actor) is not None)

    def choose(self, count: int, lookup: Lookup, now_s: float, *, quiet_s: float = 0.0) -> list[ActorId]:
        """Remove and return up to `count` actors that shall sleep; one that cannot after all is to be admitted again."""
        chosen: list[ActorId] = []
        skipped = 0  # of the short queue, which must not hide the main one while its actors are at work
        for _ in range(min(VISITS_MAX, (USES_MAX + 1) * len(self))):
            if len(chosen) >= count or not len(self):
                break
            young = len(self._young) > skipped and (not self._settled or len(self._young) > YOUNG_SHARE * len(self))
            if not young and not self._settled:
                break
            queue = self._young if young else self._settled
            actor = queue.popleft()
            sleeper = lookup(actor)
            if sleeper is None:
                self._gone = max(0, self._gone - 1)
            elif not is_rested(sleeper, now_s, quiet_s=quiet_s):
                queue.append(actor)
                skipped += young
            elif sleeper.uses > 0:
                sleeper.uses = 0 if young else min(sleeper.uses, USES_MAX) - 1
                self._settled.append(actor)
            else:
                chosen.append(actor)
                self._remember(actor)
        return chosen

    def _remember(self, actor: ActorId) -> None:
        self._ghosts[actor] = None
        if len(self._ghosts) > self._ghosts_max:
            self._ghosts.popitem(last=False)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes that this process uses, and those it may."""

    used: int
    limit: int


class MemoryValve:
    """Tells how many actors shall sleep for want of memory: from 80 % of the limit on, until 75 % is reached."""

    def __init__(self) -> None:
        self.is_shedding = False

    def count_to_shed(self, memory: MemoryUse, awake: int) -> int:
        """Return how many of the awake actors shall sleep now, taking each to need an equal share of the memory."""
        share = memory.used / memory.limit
        self.is_shedding = share >= (SHED_BELOW if self.is_shedding else SHED_ABOVE)
        if not self.is_shedding:
            return 0
        return int(awake * min(SHED_SHARE_MAX, (share - SHED_BELOW) / share)) + 1
