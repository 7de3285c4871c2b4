"""Posts Kubernetes Events (`kubectl describe` shows them), counted instead of repeated.

For transitions only: never one for each command or event of an actor. An equal Event (object UID, reason, message) within
the window becomes a count in the first one's `series`, written at most once in `REPEAT_POST_S`, as Kubernetes' own recorder
does. Events are a courtesy: they wait in a bounded queue, are posted at a bounded rate, tried a few times, and dropped with
a count when there is no room or no permission. Nothing waits for them, and losing one loses nothing else: an Event of which nothing is
stored is new again when it repeats.

`Aggregator` decides (pure), `KubeEventRecorder` waits and posts.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal

from aether_api.errors import AetherError, KubeAlreadyExists, KubeNotFound, PermanentError, RetryableError
from aether_api.logs import COUNT, KIND, NAME, NAMESPACE, REASON
from aether_kube.client import KubeClient
from aether_kube.documents import JsonObject, format_micro_time
from aether_kube.kinds import KUBE_EVENTS, ResourceKind

logger = logging.getLogger(__name__)

WINDOW_S: Final = 600.0
"""Seconds after its last repeat in which an equal Event is only counted: the ten minutes of Kubernetes' recorder."""

REPEAT_POST_S: Final = 60.0
"""Seconds between two writes of a count: a person who looks reads minutes, and Events must stay cheap."""

KNOWN_MAX: Final = 4_096
"""Events remembered for counting; about 2 MB. The one that was quiet longest is forgotten first."""

QUEUE_MAX: Final = 1_000
"""Events that may wait to be posted: a mass move of 1,000 actors; more are dropped and counted."""

POSTS_PER_S: Final = 10.0
"""Posts a second: a tenth of what one API server takes here, so that Events never starve status writes."""

TRIES_MAX: Final = 3
"""Tries of one post, a second apart or as the server asks: a leader change passes, a longer outage is not worth a queue."""

NOTE_BYTES_MAX: Final = 1_024
"""Bytes of a message: the API's own limit is 1 kB."""

EventType = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True)
class Involved:
    """The object that an Event speaks of."""

    kind: ResourceKind
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class KubeEvent:
    """What happened, for people.

    Attributes:
        reason: one CamelCase word, such as `Scheduled`.
        message: a sentence; equal messages are counted, so it holds no moving number.
        action: what was done or tried, a CamelCase verb, such as `Place`.
    """

    involved: Involved
    reason: str
    message: str
    action: str
    type: EventType = "Normal"


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who posts: a name with a domain (`aether.flowmade.one/operator`) and the pod."""

    controller: str
    instance: str


@dataclass(frozen=True, slots=True)
class Post:
    """One write to make: the first of an Event creates it, later ones only write the count."""

    event: KubeEvent
    name: str
    count: int
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class _Known:
    post: Post
    seen_s: float
    posted_s: float


class Aggregator:
    """Decides whether an Event is new, counted in silence, or worth writing its count. Pure: times are arguments."""

    def __init__(self) -> None:
        """Start with nothing known."""
        self._known: OrderedDict[tuple[str, str, str], _Known] = OrderedDict()

    def observe(self, event: KubeEvent, *, now: datetime, now_s: float) -> Post | None:
        """Count an Event and return the write it needs, if any.

        Args:
            now: wall clock, for what people read.
            now_s: monotonic seconds, for windows.
        """
        key = _key_of(event)
        known = self._known.pop(key, None)
        if known is None or now_s - known.seen_s > WINDOW_S:
            post = Post(event, _event_name(event, now), 1, now, now)
            self._remember(key, _Known(post, now_s, now_s))
            return post
        post = replace(known.post, count=known.post.count + 1, last_seen=now)
        due = now_s - known.posted_s >= REPEAT_POST_S
        self._remember(key, _Known(post, now_s, now_s if due else known.posted_s))
        return post if due else None

    def forget(self, post: Post) -> None:
        """Take an Event for new when it comes again, since nothing of it is stored."""
        key = _key_of(post.event)
        known = self._known.get(key)
        if known is not None and known.post.name == post.name:
            del self._known[key]

    def _remember(self, key: tuple[str, str, str], known: _Known) -> None:
        self._known[key] = known
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)


class KubeEventRecorder:
    """Takes Events without waiting and posts them in the background."""

    def __init__(self, client: KubeClient, reporter: Reporter, *, posts_per_s: float = POSTS_PER_S, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Make a recorder; `run` posts."""
        self._client = client
        self._reporter = reporter
        self._pause_s = 1.0 / posts_per_s
        self._monotonic = monotonic
        self._aggregator = Aggregator()
        self._queue: asyncio.Queue[Post] = asyncio.Queue(QUEUE_MAX)
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Return how many Events were given up, for lack of room, permission or an API server."""
        return self._dropped

    def record(self, event: KubeEvent) -> None:
        """Take an Event; never waits, drops it when the queue is full."""
        post = self._aggregator.observe(event, now=datetime.now(UTC), now_s=self._monotonic())
        if post is None:
            return
        try:
            self._queue.put_nowait(post)
        except asyncio.QueueFull:
            self._drop(post)

    async def run(self) -> None:
        """Post Events until cancelled; what waits then is lost."""
        while True:
            await self._post(await self._queue.get())
            self._queue.task_done()
            await asyncio.sleep(self._pause_s)

    async def flush(self) -> None:
        """Wait until everything recorded so far is posted or given up; needs `run`, and a deadline of the caller."""
        await self._queue.join()

    async def _post(self, post: Post) -> None:
        for tries_left in reversed(range(TRIES_MAX)):
            try:
                await self._write(post)
                return
            except KubeAlreadyExists:
                # An earlier try of this very post came through, and only its answer was lost.
                return
            except PermanentError as exc:
                self._give_up(post, exc)
                return
            except RetryableError as exc:
                if tries_left == 0:
                    self._give_up(post, exc)
                    return
                delay_s = exc.retry_after_s
            await asyncio.sleep(delay_s)

    async def _write(self, post: Post) -> None:
        involved = post.event.involved
        if post.count == 1:
            await self._client.create(KUBE_EVENTS.path(involved.namespace), event_document(post, self._reporter))
            return
        await self._client.patch_merge(KUBE_EVENTS.path(involved.namespace, post.name), series_document(post))

    def _drop(self, post: Post, *, is_gone: bool = False) -> None:
        """Count a post that is given up; without its first one, or when that is gone, there is nothing to write counts to."""
        self._dropped += 1
        if post.count == 1 or is_gone:
            self._aggregator.forget(post)

    def _give_up(self, post: Post, problem: AetherError) -> None:
        self._drop(post, is_gone=isinstance(problem, KubeNotFound))
        involved = post.event.involved
        extra = {KIND: involved.kind.kind, NAMESPACE: involved.namespace, NAME: involved.name, REASON: str(problem), COUNT: self._dropped}
        logger.debug("a Kubernetes Event could not be posted and is dropped", extra=extra)


def _key_of(event: KubeEvent) -> tuple[str, str, str]:
    """Return what makes Events equal."""
    return event.involved.uid, event.reason, event.message


def event_document(post: Post, reporter: Reporter) -> JsonObject:
    """Return the Event as events.k8s.io/v1 takes it."""
    event, involved = post.event, post.event.involved
    return {
        **KUBE_EVENTS.document(involved.namespace, post.name),
        "eventTime": format_micro_time(post.first_seen),
        "reportingController": reporter.controller,
        "reportingInstance": reporter.instance,
        "action": event.action,
        "reason": event.reason,
        "note": _shorten(event.message),
        "type": event.type,
        "regarding": {
            "apiVersion": involved.kind.api_version,
            "kind": involved.kind.kind,
            "namespace": involved.namespace,
            "name": involved.name,
            "uid": involved.uid,
        },
    }


def series_document(post: Post) -> JsonObject:
    """Return the merge patch that writes how often an Event was seen."""
    return {"series": {"count": post.count, "lastObservedTime": format_micro_time(post.last_seen)}}


def _event_name(event: KubeEvent, now: datetime) -> str:
    """Return a name that no other Event has: the object's, so that people find it, and a digest."""
    involved = event.involved
    content = "\0".join((involved.uid, event.reason, event.message, format_micro_time(now)))
    # A name of an object has at most 253 characters, the digest and its dot take 17 of them.
    return f"{involved.name[:236].rstrip('.-')}.{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _shorten(message: str) -> str:
    encoded = message.encode()
    if len(encoded) <= NOTE_BYTES_MAX:
        return message
    return encoded[: NOTE_BYTES_MAX - 3].decode("utf-8", "ignore") + "..."
