"""Reads from the log what a subscriber missed: the commits of one gap, in order, and not one more than it must.

From the gap's last commit the index of commits leads back. Where the first missed version is known, each missed commit holds
at least one version, so no more commits were missed than versions; where it is not, the index is followed down to the first
commit after the known sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from aether_api.commit_index import inner_blocks
from aether_api.envelope import StoredCommit
from aether_api.errors import InvalidEnvelope
from aether_api.identity import ActorId
from aether_nats.deliveries import EventStored, Gap, Unreadable, read_events
from aether_nats.errand import Errand
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.streams import read_layout

READ_AHEAD_MAX: Final = 32
"""Events of a gap that are read before they are asked for: few enough to be held, and a task for so many costs little."""


class MissedReader:
    """Reads gaps in any namespace; remembers how many partitions each has."""

    def __init__(self, js: JetStream) -> None:
        self._js = js
        self._journals: dict[str, Journal] = {}

    async def find_journal(self, namespace: str) -> Journal | None:
        """Return the log of a namespace; None while it has no streams."""
        known = self._journals.get(namespace)
        if known is not None:
            return known
        layout = await read_layout(self._js.connection, namespace)
        if layout is None:
            return None
        return self._journals.setdefault(namespace, Journal(self._js, layout.partitions))

    def forget(self, namespace: str) -> None:
        """Forget how a namespace was laid out: its streams were made anew."""
        self._journals.pop(namespace, None)

    async def read(self, gap: Gap, types: frozenset[str] = frozenset()) -> AsyncGenerator[EventStored | Unreadable]:
        """Yield the missed events, in order; none where a purge took them meanwhile, since a `Reset` follows then.

        Raises:
            RetryableError: the log cannot be read now; read the gap again from its beginning.
            InvalidEnvelope: the log is broken.
        """
        journal = await self.find_journal(gap.actor.namespace)
        head = None if journal is None else await journal.read_at(gap.actor, gap.to_sequence)
        if journal is None or head is None or head.incarnation != gap.incarnation:
            return
        try:
            async with aclosing(journal.read_commits(gap.actor, head, from_n=await _find_first(journal, gap, head))) as batches:
                async for commits in batches:
                    for commit in commits:
                        for item in _select(gap, commit, types):
                            yield item
        except InvalidEnvelope:
            if await journal.read_at(gap.actor, gap.to_sequence) is not None:
                raise


class GapReading:
    """A gap that is being read from the log, a little ahead of who asks for it.

    Attributes:
        rest: what of it was not taken yet.
        has_failed: it cannot go on; another one may.
    """

    def __init__(self, gap: Gap, items: AsyncGenerator[EventStored | Unreadable], wake: Callable[[], None]) -> None:
        """Make one that begins when it is asked for the first time.

        Args:
            items: yields what lies in the gap.
            wake: called when there is something to take.
        """
        self.rest = gap
        self.has_failed = False
        self._items = items
        self._wake = wake
        self._found: deque[EventStored | Unreadable] = deque()
        self._has_all = False
        self._errand = Errand(f"gap of {gap.actor}", wake)

    def is_ready(self) -> bool:
        """Tell whether there is something to take, or nothing more; reads on where neither is known.

        Raises:
            AetherError: the gap cannot be read further, see `MissedReader.read`.
        """
        if self._found:
            return True
        self.has_failed = True
        is_over = self._errand.is_over()
        self.has_failed = False
        if is_over and not self._found and not self._has_all:
            self._errand.begin(self._read_on())
        return bool(self._found) or (is_over and self._has_all)

    def take(self) -> EventStored | Unreadable | None:
        """Return the next item, None after the last; it must be ready."""
        return self._found.popleft() if self._found else None

    async def aclose(self) -> None:
        """End it."""
        await self._errand.end()
        await self._items.aclose()

    async def _read_on(self) -> None:
        async for item in self._items:
            self._found.append(item)
            self._wake()
            if len(self._found) >= READ_AHEAD_MAX:
                return
        self._has_all = True

    def pass_over(self, found: EventStored | Unreadable) -> Gap | None:
        """Move the rest on behind what was found, and return it; None if nothing can follow."""
        if isinstance(found, Unreadable):
            self.rest = replace(self.rest, after_sequence=found.sequence)
        else:  # the commit may hold more events
            self.rest = replace(self.rest, from_version=found.version + 1, after_sequence=found.sequence - 1)
        is_last = found.sequence >= self.rest.to_sequence and self.rest.from_version > self.rest.to_version
        return None if is_last or self.rest.after_sequence >= self.rest.to_sequence else self.rest


def _select(gap: Gap, commit: StoredCommit, types: frozenset[str]) -> list[EventStored | Unreadable]:
    """Return what of a commit lies in the gap."""
    if commit.tombstone or commit.sequence <= gap.after_sequence:
        return []
    return [item for item in read_events(gap.actor, commit, types) if isinstance(item, Unreadable) or item.version >= gap.from_version]


async def _find_first(journal: Journal, gap: Gap, head: StoredCommit) -> int:
    """Return the ordinal of a commit from which on all missed ones lie, and few others."""
    if gap.from_version:
        return min(head.n, max(0, head.n - (gap.to_version - gap.from_version)))
    return await find_first_after(journal, gap.actor, head, gap.after_sequence)


async def find_first_after(journal: Journal, actor: ActorId, head: StoredCommit, after_sequence: int) -> int:
    """Return the ordinal of the actor's first commit after a sequence that lies before `head`."""
    first_n, blocks = head.n, list(head.index().blocks())
    while blocks:
        newer = [block for block in blocks if block.sequence > after_sequence]
        if not newer:
            return first_n
        oldest = newer[-1]
        commit = await journal.read_at(actor, oldest.sequence) if oldest.first < oldest.last else None
        if commit is None:
            return oldest.first
        first_n, blocks = oldest.last, list(inner_blocks(oldest, commit.index()))
    return first_n
