"""The log for programs without a VM: an importer saves events, a test looks at them, a projection reads them all.

What it saves are commits like those of a VM (`core.new_events`): valid for every reader, fenced by the sequence of the actor's
last commit, and, where the program has the actor's model, applied to its state before they are written. A live VM of the
actor learns of them as of every foreign commit. Rules:

- `expected_version` is the version that the caller decided on; another one in the log is a `VersionConflictError`, and nothing was
  saved. Without it the events follow whatever is there, and are tried again while other writers come first, until the time-out.
- All events of one call are one commit: all or nothing.
- A lost ack is the log's business: the identical commit is sent again until it is stored or refused, and after a refusal all
  commits since are searched for it. Only a time-out leaves the outcome unknown, unless no append was begun by then; the actor's
  version tells it later.
- The version cache makes `get_latest_version` and a first append cheap. It is a hint, fed by what is read and saved here, by
  `update_version_cache`, and by `follow`, which listens to the event bus.

Reading is tolerant where the caller wants it: `get_events_with_errors` goes on behind what cannot be read, and says what that was.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

from aether_api import logs
from aether_api.envelope import Event, StoredCommit
from aether_api.errors import Disconnected, EventInvalid, InvalidEnvelope, InvalidName, ModelInvalid, RequestTimeout, RetryableError, VersionConflictError
from aether_api.identity import NO_EPOCH, ActorId, Epoch, check_actor, check_id, check_name
from aether_api.messages import check_version, normalise_time
from aether_api.v1alpha1 import ActorModel
from aether_model.load import take_models
from aether_model.model import Model
from aether_nats.connection import NatsConnection
from aether_nats.deliveries import Delivery, EventStored, Gap, Reset
from aether_nats.event_subscription import EventSubscription
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.settings import check_count, check_seconds
from aether_nats.streams import check_layout, ensure_streams
from aether_runtime.adapters.jetstream_snapshots import JetStreamSnapshotStore
from aether_runtime.core.group import Now
from aether_runtime.core.history import History, Position
from aether_runtime.core.new_events import ANY_EVENTS, NewEvent, PlannedCommit, Writer, plan_commit, take_events
from aether_runtime.core.replay_result import ReplayReader, ReplayResult, join_results
from aether_runtime.core.version_cache import KnownActor, VersionCache
from aether_runtime.ports import CommitLog, SnapshotStore
from aether_runtime.replay import replay
from aether_runtime.replays import ReplayWatch
from aether_runtime.vm_reading import RETRY_S, Tail, read_tail

logger = logging.getLogger(__name__)

PAUSE_FIRST_S: Final = 0.001
"""Seconds at most before the third try to save events that may follow any version, doubling: about a round trip, so that writers in lockstep part."""

PAUSE_MAX_S: Final = 0.05
"""Seconds at most between such tries: an actor that many write takes hundreds of commits a second."""

LAYOUT_CHECK_S: Final = 5.0
"""Seconds between looks whether the streams were made anew with another number of partitions, in a store that is used: what is saved meanwhile may be lost, and a look is one request."""


async def _accept_layout() -> None:
    """Find nothing wrong, where the log knows no partitions."""


@dataclass(frozen=True, slots=True)
class EventStoreSettings:
    """The bounds of one store.

    Attributes:
        writer: what its commits name as their writer, for people.
        timeout_s: seconds after which a save is given up.
        actors_max: actors that the version cache knows, some 1 KB each, and with models their states.
    """

    writer: str = "event-store"
    timeout_s: float = 30.0
    actors_max: int = 10_000

    def __post_init__(self) -> None:
        """Refuse what cannot work here, since it would come out with the first save.

        Raises:
            SettingsInvalid: names the setting and what is allowed.
        """
        check_seconds("timeout_s of EventStoreSettings", self.timeout_s)
        check_count("actors_max of EventStoreSettings", self.actors_max)


@dataclass(slots=True)
class _Save:
    """One call.

    Attributes:
        may_be_saved: an append was begun, and its outcome is not known.
        races_lost: tries that came too late, and stored nothing.
    """

    actor: ActorId
    events: tuple[NewEvent, ...]
    expected_version: int | None
    may_be_saved: bool = False
    races_lost: int = 0

    def describe(self, why: str) -> str:
        """Return what is said of it when it is given up."""
        if not self.may_be_saved:
            return f"{self.actor}: nothing was saved: {why}"
        return f"{self.actor}: {len(self.events)} events may or may not be saved: {why}. Look at its version before saving them again"


class EventStore:
    """Saves and reads events of the actors of one namespace; `open` makes one, any number of tasks may use it."""

    def __init__(
        self,
        log: CommitLog,
        snapshots: SnapshotStore,
        namespace: str,
        *,
        models: Iterable[ActorModel | Model] = (),
        settings: EventStoreSettings | None = None,
        is_closed: Callable[[], bool] = lambda: False,
        check_layout: Callable[[], Awaitable[None]] = _accept_layout,
    ) -> None:
        """Use `log`, until `is_closed` or `check_layout` raises; with `models`, only events that the actor's model can apply are saved, and only for actors of these models."""
        self._log = log
        self._snapshots = snapshots
        self._namespace = namespace
        self._models = take_models(models)
        self._settings = settings or EventStoreSettings()
        self._is_closed = is_closed
        self._check_layout = check_layout
        self._layout_until_s = time.monotonic() + LAYOUT_CHECK_S
        self._writer = check_id(self._settings.writer)
        self._cache = VersionCache(self._settings.actors_max)
        self._locks: WeakValueDictionary[ActorId, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    async def open(cls, connection: NatsConnection, namespace: str, *, models: Iterable[ActorModel | Model] = (), settings: EventStoreSettings | None = None) -> EventStore:
        """Return the store of a namespace; its streams are made if they are not there.

        Raises:
            InvalidName: the namespace can have no streams.
            ModelInvalid: one of the models is none, or does not compile.
            RetryableError: NATS does not answer.
        """
        taken = take_models(models).values()
        layout = await ensure_streams(connection, check_name("namespace", namespace))
        js = JetStream(connection)
        store = cls(
            Journal(js, layout.partitions),
            JetStreamSnapshotStore(js),
            namespace,
            models=taken,
            settings=settings,
            is_closed=lambda: connection.is_closed,
            check_layout=partial(check_layout, connection, namespace, layout.partitions),
        )
        connection.on_disconnect(store._cache.doubt)
        return store

    # Writing.

    async def save_event(self, actor: ActorId, event: NewEvent, *, expected_version: int | None = None) -> Event:
        """Save one event and return it as it is stored; raises as `save_events`."""
        (saved,) = await self.save_events(actor, [event], expected_version=expected_version)
        return saved

    async def save_events(self, actor: ActorId, events: Iterable[NewEvent], *, expected_version: int | None = None) -> tuple[Event, ...]:
        """Save events of one actor, all or none, and return them as they are stored.

        Args:
            expected_version: the version that they follow, 0 for a new actor; None for whatever is there.

        Raises:
            VersionConflictError: the actor is at another version, which the error names; nothing was saved.
            EventInvalid: an event is none, or the model cannot apply it, and nothing was saved; or the actor's log is broken.
            ModelInvalid: the store has models, but not the actor's.
            CommitTooLarge: they do not fit into one message; nothing was saved. Save fewer at once.
            RetryableError: other writers came first for `timeout_s`, or NATS has no room (`StreamFull`); nothing was saved.
            RequestTimeout: the log did not answer for `timeout_s`. The message says whether nothing was saved, since it could not even be
                read, or whether they may be saved; then the actor's version tells.
            Disconnected: the connection was closed, so that waiting is in vain; the message says the same.
        """
        self._check_namespace(actor)
        if expected_version is not None:
            expected_version = check_version("expected_version", expected_version)
        taken = take_events(events)
        if not taken:
            return ()
        save = _Save(actor, taken, expected_version)
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._writing(actor):
                return (await self._save(save)).events
        except TimeoutError as exc:
            if save.races_lost and not save.may_be_saved:
                raise RetryableError(save.describe(f"other writers came first for {self._settings.timeout_s:g} s, {save.races_lost} times. Save again when they are done")) from exc
            raise RequestTimeout(save.describe(f"no answer within {self._settings.timeout_s:g} s")) from exc
        except Disconnected as exc:
            raise Disconnected(save.describe(str(exc))) from exc

    async def _save(self, save: _Save) -> PlannedCommit:
        actor, events, expected_version = save.actor, save.events, save.expected_version
        known, history = await self._read_past(actor, expected_version)
        attempted = history.position.version if expected_version is None else expected_version
        while expected_version in (None, history.position.version):
            attempted = history.position.version
            planned = plan_commit(actor, history, events, Writer(self._writer, known.epoch), commit_id=secrets.token_hex(8), now_s=time.time())
            if await self._append(save, planned, known, history):
                return planned
            save.races_lost += 1
            if save.races_lost > 1:
                await asyncio.sleep(random.uniform(0.0, min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** min(save.races_lost - 2, 10))))
            known, history = await self._read_past(actor, expected_version, fresh=save.races_lost > 1)
        raise VersionConflictError(str(actor), attempted, history.position.version)

    async def _append(self, save: _Save, planned: PlannedCommit, known: KnownActor, history: History) -> bool:
        """Append a commit; returns False if another one came first, which the history then holds, unless the log began anew."""
        actor = planned.commit.actor
        self._check_open()
        save.may_be_saved = True
        try:
            planned.accept(history, await self._log.append(planned.commit))
            is_stored = True
        except VersionConflictError:
            tail = await self._read_tail(history, actor, may_be_empty=False)
            is_stored = save.may_be_saved = tail.holds(planned.commit.id)
            known.epoch = tail.head.epoch if tail.head is not None else known.epoch
            if tail.end == "other":
                self._forget_past(actor)
                return is_stored
        known.version = max(known.version, history.position.version)
        self._cache.put(actor, known)
        return is_stored

    async def _read_past(self, actor: ActorId, expected_version: int | None, *, fresh: bool = False) -> tuple[KnownActor, History]:
        """Return what the actor's log holds, from the cache where nothing speaks against it, or with `fresh` as it is now."""
        known, doubts = self._cache.get(actor), self._cache.doubts
        if known is not None and known.history is not None:
            told = known.version
            if not fresh and not known.is_behind and known.proven == doubts and expected_version in (None, told):
                return known, known.history
            tail = await self._read_tail(known.history, actor, may_be_empty=True)
            if tail.end != "other":
                known.proven = doubts
                known.version = known.history.position.version if known.version == told else known.version  # unless it was told more meanwhile
                known.epoch = tail.head.epoch if tail.head is not None else known.epoch
                return known, known.history
            self._forget_past(actor)
        known, history = await self._load(actor)
        known.proven = doubts
        self._cache.put(actor, known)
        return known, history

    async def _load(self, actor: ActorId) -> tuple[KnownActor, History]:
        """Read the actor's past: its state where there is a model, else where its log ends; waits while the log cannot be read."""
        model = self._find_model(actor)
        while True:
            try:
                await self._confirm_layout()
                if model is ANY_EVENTS:
                    history, epoch = await self._read_end(actor)
                else:
                    replayed = await replay(actor, model, self._log, self._snapshots, ReplayWatch(_read_clock, lambda: None))
                    history, epoch = replayed.history, replayed.epoch
                return KnownActor(history.position.version, history, epoch), history
            except RetryableError as exc:
                self._check_open()
                logger.debug("reading the log has to wait", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
                await asyncio.sleep(max(RETRY_S, exc.retry_after_s))

    async def _read_tail(self, history: History, actor: ActorId, *, may_be_empty: bool) -> Tail:
        tail = await read_tail(history, actor, self._log, may_be_empty=may_be_empty, is_stopping=self._is_closed)
        if tail.end == "unread":
            self._check_open()
        return tail

    def _forget_past(self, actor: ActorId) -> None:
        """Know nothing of an actor whose log is another one, and look at the streams before it is read."""
        self._cache.forget(actor)
        self._layout_until_s = 0.0

    async def _confirm_layout(self) -> None:
        """Look at the streams if that is due.

        Raises:
            SettingsInvalid: they were made anew with another number of partitions.
            RetryableError: they cannot be looked at now.
        """
        if time.monotonic() >= self._layout_until_s:
            await self._check_layout()
            self._layout_until_s = time.monotonic() + LAYOUT_CHECK_S

    def _check_open(self) -> None:
        if self._is_closed():
            raise Disconnected("the connection is closed; open another one, and a store on it")

    async def _read_end(self, actor: ActorId) -> tuple[History, Epoch]:
        try:
            head = await self._log.read_head(actor)
            return (History(ANY_EVENTS), NO_EPOCH) if head is None else (History(ANY_EVENTS, _build_position(head)), head.epoch)
        except InvalidEnvelope as exc:
            raise EventInvalid(f"{actor}: its log ends with something that cannot be read: {exc}") from exc

    def _find_model(self, actor: ActorId) -> Model:
        if not self._models:
            return ANY_EVENTS
        model = self._models.get(actor.model)
        if model is None:
            raise ModelInvalid(actor.model, (f"the store has no such model, only {', '.join(sorted(self._models))}; give it to the store, or correct the actor's name",))
        return model

    def _check_namespace(self, actor: ActorId) -> None:
        if check_actor(actor).namespace != self._namespace:
            raise InvalidName(f"{actor} is of namespace {actor.namespace}, this store of {self._namespace}; open a store for each")

    @asynccontextmanager
    async def _writing(self, actor: ActorId) -> AsyncGenerator[None]:
        """Let one save of an actor follow the other, since both would otherwise append at the same place."""
        lock = self._locks.get(actor)
        if lock is None:
            lock = self._locks[actor] = asyncio.Lock()
        async with lock:
            yield

    # Reading.

    async def get_events(self, actor: ActorId, from_version: int = 1) -> list[Event]:
        """Return the actor's events from a version on, in order; none for an actor without events.

        Raises:
            InvalidEnvelope: something in its log cannot be read; `get_events_with_errors` returns the rest.
        """
        results: list[ReplayResult] = []
        async for result in self.read_results(actor, from_version):
            if result.errors:
                found = result.errors[0]
                raise InvalidEnvelope(f"{actor}: sequence {found.sequence} cannot be read: {found.reason}; get_events_with_errors returns what can")
            results.append(result)
        return list(join_results(results).events)

    async def get_events_with_errors(self, actor: ActorId, from_version: int = 1) -> ReplayResult:
        """Return the actor's events from a version on, and what stands between them that cannot be read."""
        return join_results([result async for result in self.read_results(actor, from_version)])

    async def read_results(self, actor: ActorId, from_version: int = 1) -> AsyncIterator[ReplayResult]:
        """Yield the same in batches of some hundred commits, so that memory stays flat for the longest history.

        Raises:
            RetryableError: the log cannot be read now; read on from the version after the last event.
        """
        self._check_namespace(actor)
        from_version = check_version("from_version", from_version)
        reader = ReplayReader(actor, from_version)
        await self._confirm_layout()
        try:
            head = await self._log.read_head(actor)
            if head is None or head.last_version < from_version:
                return
            from_n = max(0, head.n - (head.last_version - from_version)) if from_version > 1 else 0  # each commit holds a version at least
            reader = ReplayReader(actor, from_version, is_start=not from_n)
            async for commits in self._log.read_commits(actor, head, from_n=from_n):
                yield reader.take(commits)
            return
        except InvalidEnvelope as exc:
            logger.warning("an actor's log is broken, everything in it is looked at", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
        async for found in self._log.scan(actor, after_sequence=reader.sequence):
            yield reader.take(found)

    # Versions.

    async def get_latest_version(self, actor: ActorId, *, fresh: bool = False) -> int:
        """Return the actor's version, 0 without events: from the cache, where it may be old if others write, or with `fresh` from the log."""
        self._check_namespace(actor)
        known = self._cache.get(actor)
        if known is not None and not fresh:
            return known.version
        await self._confirm_layout()
        head = await self._log.read_head(actor)
        version = 0 if head is None else head.last_version
        if known is not None and version < known.version:
            self._cache.forget(actor)  # its history was purged
        self._cache.raise_version(actor, version)
        return version

    def update_version_cache(self, actor: ActorId, version: int) -> None:
        """Note that an actor has reached a version, as another node told; a lower one than is known changes nothing."""
        self._check_namespace(actor)
        self._cache.raise_version(actor, check_version("version", version))

    def forget_version(self, actor: ActorId) -> None:
        """Know nothing of an actor any more, as after its history was purged; the log is asked next time."""
        self._cache.forget(actor)

    def take_delivery(self, item: Delivery) -> None:
        """Let the version cache follow what a subscription to stored events tells; other namespaces are left out."""
        if isinstance(item, EventStored | Gap | Reset) and item.actor.namespace == self._namespace:
            if isinstance(item, Reset):
                self.forget_version(item.actor)
            else:
                self.update_version_cache(item.actor, item.version if isinstance(item, EventStored) else item.to_version)

    async def follow(self, subscription: EventSubscription) -> None:
        """Let the version cache follow a subscription until that is closed; a gap needs no reading, since it names its last version."""
        async for item in subscription:
            self.take_delivery(item)


def _read_clock() -> Now:
    return Now(time.time(), time.monotonic())


def _build_position(head: StoredCommit) -> Position:
    """Return the position behind the actor's last commit, or raise `InvalidEnvelope`."""
    events = head.events()
    return Position(head.last_version, head.sequence, head.next_index(), head.incarnation, head.id, normalise_time(events[-1].time) if events else "")
