"""Keeps a local copy of one collection and tells its consumer every change: list, watch, reconnect, list again.

It promises that the copy becomes equal to the API server's whatever happens in between, because nothing depends on having
seen every event: a gap leads to a new list, and the difference to the copy is told as changes, deletions included (kopf
keeps deleted objects after a 410, and watch libraries often go silent; both were met in practice).

- A watch continues at the last resourceVersion seen; bookmarks keep that fresh on a quiet collection.
- Silence longer than a bookmark takes is a dead connection: the watch is opened again. Quiet kinds of which the server
  has never seen an event get no bookmarks, so there this happens every 70 s and costs one request.
- 410, or bytes that no API server sends, lead to a new list. So does time, as a net under our own mistakes.
- A list older than the copy (a lagging server) is refused a few times, so that it brings no deleted object back; if the
  server insists, etcd was restored from a backup and the list is taken.
- Failures wait, doubling with jitter, until something arrives again. No answer of the API server ever ends `run`. An error
  of the consumer does, because a change that got lost there could not be told again.

`health` speaks for probes, and for the rule that nobody is moved unless the link was up for a full window.
"""

from __future__ import annotations

import asyncio
import logging
import random as random_module
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from aether_api.errors import RETRY_SOON_S, InternalError, KubeExpired, KubeForbidden, KubeNotFound, KubeUnavailable, PermanentError, RetryableError
from aether_api.logs import COUNT, KIND, NAME, NAMESPACE, REASON
from aether_kube.answers import error_of_watch_status
from aether_kube.backoff import Backoff
from aether_kube.client import PAGE_SIZE, KubeClient, StreamLimits
from aether_kube.documents import JsonObject, objects_at, text_at
from aether_kube.kinds import ResourceKind
from aether_kube.store import Change, ObjectKey, ObjectStore, Observed, Unparsable, resource_version_of
from aether_kube.watch import LineBuffer, MalformedAnswer, WatchEvent, parse_watch_event

logger = logging.getLogger(__name__)

T = TypeVar("T")

STALE_LISTS_MAX: Final = 5
"""Lists in a row that are refused for being older than the copy: with the waits between them, the seconds that a lagging
API server needs to catch up; one that still shows the past then is a restored one."""

FAILURES_QUIET: Final = 3
"""Failures in a row that are logged for debugging only: a rolling API server causes one or two on every informer."""

FAILURES_BETWEEN_WARNINGS: Final = 30
"""Failures from one warning to the next: at the longest waits one in four minutes, enough to see an outage in a log."""

REFUSALS_MIN: Final = 4
"""Answers of 401, 403 or 404 before the link counts as refused: an API server that starts gives one or two before it knows our rights."""

Failure = RetryableError | PermanentError
"""What ends a turn but not the informer: all that the API server and the way to it can do to us."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects an informer keeps; selectors in kubectl's notation. Without a namespace: of all namespaces."""

    kind: ResourceKind
    namespace: str | None = None
    field_selector: str = ""
    label_selector: str = ""

    @property
    def path(self) -> str:
        """Return the path of the collection."""
        return self.kind.path(self.namespace)

    @property
    def query(self) -> dict[str, str]:
        """Return the selectors as a new query."""
        selectors = {"fieldSelector": self.field_selector, "labelSelector": self.label_selector}
        return {name: value for name, value in selectors.items() if value}


@dataclass(frozen=True, slots=True)
class InformerTiming:
    """The clocks of an informer; the defaults suit a real API server."""

    page_size: int = PAGE_SIZE
    """Objects."""

    silence_s: float = 70.0
    """Seconds: the API server sends a bookmark about every 60."""

    watch_s: float = 290.0
    """Seconds, at most, that a watch is asked to live: under the five minutes after which many proxies cut."""

    relist_s: float = 300.0
    """Seconds after which a list is due; it is made when the watch of that time ends, so 5 to 10 minutes after the last."""

    shortest_watch_s: float = 1.0
    """Seconds: a watch that ends sooner and brought nothing counts as failed, else a broken proxy is asked in a hot loop."""

    backoff: Backoff = field(default_factory=Backoff)

    monotonic: Callable[[], float] = time.monotonic
    random: Callable[[], float] = random_module.random


@dataclass(frozen=True, slots=True)
class InformerHealth:
    """What probes and the planner ask; times are monotonic seconds.

    Attributes:
        last_contact_s: when bytes last came from the API server.
        healthy_since_s: since when the link works without a failure; None while it does not.
        last_turn_s: when the informer last did anything, outages included; it is alive if this is recent.
        failures: failures in a row, 0 when all is well.
        refused: the API server does not let us list or watch, and no try of its own brings that back; other failures in between say nothing.
        relists: complete lists so far.
        unparsable: objects whose newest state could not be read.
    """

    synced: bool
    last_contact_s: float | None
    healthy_since_s: float | None
    last_turn_s: float
    failures: int
    refused: bool
    relists: int
    unparsable: int


@dataclass(slots=True)
class _Link:
    """What is known of the link; changes with every turn."""

    last_turn_s: float
    last_contact_s: float | None = None
    healthy_since_s: float | None = None
    failures: int = 0
    refusals: int = 0
    relists: int = 0
    stale_lists: int = 0
    relist_due_s: float = field(default=float("-inf"))

    def touch(self, now_s: float) -> None:
        self.last_turn_s = now_s
        self.last_contact_s = now_s
        self.refusals = 0
        if self.healthy_since_s is None:
            self.healthy_since_s = now_s

    def fail(self, now_s: float, failure: Failure) -> None:
        self.last_turn_s = now_s
        self.healthy_since_s = None
        self.failures += 1
        self.refusals += isinstance(failure, KubeForbidden | KubeNotFound)


class Informer(Generic[T]):
    """The local copy of one collection and the loop that keeps it."""

    def __init__(
        self, client: KubeClient, selection: Selection, *, parse: Callable[[JsonObject], T], on_change: Callable[[Change[T]], None], timing: InformerTiming | None = None
    ) -> None:
        """Make an informer; `run` starts it.

        Args:
            parse: makes a value of a document; raises a ValueError (as pydantic does) for one that it cannot read.
            on_change: told each change, after the copy holds it; must be quick and must not raise.
        """
        self._client = client
        self._selection = selection
        self._on_change = on_change
        self._timing = timing or InformerTiming()
        self._store = ObjectStore(parse, self._report_unparsable)
        self._link = _Link(last_turn_s=self._timing.monotonic())
        self._synced = asyncio.Event()
        self.on_health: Callable[[], None] = lambda: None
        """Called when `health` may be another: after each list, each failure, and when a watch is open; must be quick and must not raise."""

    @property
    def store(self) -> Mapping[ObjectKey, T]:
        """Return a live, read-only view of the copy, by (namespace, name)."""
        return self._store.objects

    @property
    def synced(self) -> asyncio.Event:
        """Return the event that is set after the first complete list was told; it stays set."""
        return self._synced

    def health(self) -> InformerHealth:
        """Return how the link is now."""
        link = self._link
        return InformerHealth(
            synced=self._synced.is_set(),
            last_contact_s=link.last_contact_s,
            healthy_since_s=link.healthy_since_s,
            last_turn_s=link.last_turn_s,
            failures=link.failures,
            refused=link.refusals >= REFUSALS_MIN,
            relists=link.relists,
            unparsable=self._store.unparsable_count,
        )

    async def run(self) -> None:
        """Keep the copy until cancelled.

        Raises:
            InternalError: `on_change` raised; the copy can no longer be trusted to match what the consumer knows.
        """
        while True:
            failure = await self._run_turn()
            if failure is not None:
                await asyncio.sleep(self._note_failure(failure))

    async def _run_turn(self) -> Failure | None:
        """List if one is due, then watch until the watch ends; return what went wrong, if anything did."""
        try:
            if self._timing.monotonic() >= self._link.relist_due_s:
                await self._relist()
            await self._watch()
        except (RetryableError, PermanentError) as exc:
            if isinstance(exc, KubeExpired):
                self._link.relist_due_s = float("-inf")
            return exc
        except MalformedAnswer as exc:
            self._link.relist_due_s = float("-inf")
            return KubeUnavailable(f"{self._selection.path}: {exc}")
        return None

    async def _relist(self) -> None:
        """Read all pages, then take them as the whole truth; a failure in between changes nothing."""
        listed: list[Observed[T]] = []
        query = {**self._selection.query, "limit": str(self._timing.page_size)}
        position = 0
        while True:
            page = await self._client.list_page(self._selection.path, query=query)
            self._link.touch(self._timing.monotonic())
            # The first page counts: a later one may be newer, and events after the first are sent again at worst.
            position = position or resource_version_of(page)
            listed += [self._store.read(self._completed(item)) for item in objects_at(page, "items")]
            continuation = text_at(page, "metadata", "continue")
            if not continuation:
                break
            query["continue"] = continuation
        self._refuse_stale(position)
        self._link.relists += 1
        self._link.relist_due_s = self._timing.monotonic() + self._timing.relist_s
        self._deliver(self._store.replace(listed, position))
        self._synced.set()
        self.on_health()

    def _refuse_stale(self, position: int) -> None:
        link = self._link
        if position < self._store.position and link.stale_lists < STALE_LISTS_MAX:
            link.stale_lists += 1
            raise KubeUnavailable(f"{self._selection.path}: the list is of {position}, older than what is known ({self._store.position})")
        if position < self._store.position:
            logger.warning("the API server went back in time; its list is taken as it is", extra={KIND: self._selection.kind.kind})
        link.stale_lists = 0

    async def _watch(self) -> None:
        """Take events until the server ends the watch in order.

        Raises:
            KubeExpired: the position is too old; list again.
            KubeUnavailable: cut, silent, or over before it brought anything.
        """
        timing = self._timing
        limits = StreamLimits(silence_s=timing.silence_s, total_s=timing.watch_s + timing.silence_s)
        async with self._client.open_stream(self._selection.path, query=self._watch_query(), limits=limits) as pieces:
            opened_s = timing.monotonic()
            self._link.touch(opened_s)
            self.on_health()
            try:
                lines = await self._take_lines(pieces)
            finally:
                lasted = timing.monotonic() - opened_s >= timing.shortest_watch_s
                # Also when it then went silent or was cut: quiet kinds bring no line for hours and are well all the same.
                self._link.failures = 0 if lasted else self._link.failures
        if not lines and not lasted:
            raise KubeUnavailable(f"{self._selection.path}: the watch ended at once")

    def _watch_query(self) -> dict[str, str]:
        # Spread over the last tenth, so that the watches of many pods do not end together.
        lifetime_s = max(1, round(self._timing.watch_s * (0.9 + 0.1 * self._timing.random())))
        watching = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": str(self._store.position), "timeoutSeconds": str(lifetime_s)}
        return {**self._selection.query, **watching}

    async def _take_lines(self, pieces: AsyncIterator[bytes]) -> int:
        """Return how many lines came."""
        buffer = LineBuffer()
        count = 0
        async for piece in pieces:
            self._link.touch(self._timing.monotonic())
            for line in buffer.feed(piece):
                self._take_event(parse_watch_event(line))
                count += 1
        return count

    def _take_event(self, event: WatchEvent) -> None:
        if event.kind == "ERROR":
            raise error_of_watch_status(f"WATCH {self._selection.path}", event.document)
        if event.kind != "BOOKMARK":
            self._completed(event.document)
        changes = self._store.apply_event(event)
        self._link.failures = 0
        self._deliver(changes)

    def _completed(self, document: JsonObject) -> JsonObject:
        """Add what the API server leaves out of the items of a list, so that parsers see one shape."""
        document.setdefault("apiVersion", self._selection.kind.api_version)
        document.setdefault("kind", self._selection.kind.kind)
        return document

    def _deliver(self, changes: list[Change[T]]) -> None:
        for change in changes:
            try:
                self._on_change(change)
            except (RetryableError, PermanentError) as exc:
                # Else it would pass for a failure of the API server, and the change would be lost in silence.
                raise InternalError(f"the consumer of {self._selection.kind.plural} failed at {change.key}") from exc

    def _note_failure(self, failure: Failure) -> float:
        """Count a failure and return how long to wait before the next turn, in seconds."""
        self._link.fail(self._timing.monotonic(), failure)
        self.on_health()
        failures = self._link.failures
        asked_s = failure.retry_after_s if isinstance(failure, RetryableError) and failure.retry_after_s > RETRY_SOON_S else 0.0
        delay_s = self._timing.backoff.delay_s(failures, self._timing.random(), at_least_s=asked_s)
        loud = failures > FAILURES_QUIET and (failures - FAILURES_QUIET) % FAILURES_BETWEEN_WARNINGS == 1
        logger.log(
            logging.WARNING if loud else logging.DEBUG,
            "the API server cannot be listed or watched; the copy stays as it is, the next try follows",
            extra={KIND: self._selection.kind.kind, NAMESPACE: self._selection.namespace or "", REASON: str(failure), COUNT: failures},
        )
        return delay_s

    def _report_unparsable(self, refused: Unparsable) -> None:
        key = refused.identity.key
        extra = {KIND: self._selection.kind.kind, NAMESPACE: key.namespace, NAME: key.name, REASON: refused.problem}
        logger.warning("an object cannot be read; its last good state, if any, stays in use", extra=extra)
