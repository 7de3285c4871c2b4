"""The streams of one namespace: which there are, how they are set up, and who makes them.

Whoever comes first makes them, operator or runtime; a race between two is harmless. The number of partitions is decided
once, by the first event stream that exists: it is written into that stream's metadata, every client reads it from there, and
it never changes, since it decides where each actor's history lies; who finds another one later stops (`check_layout`). The first event stream is therefore made first.

Streams are not shared between namespaces: a Direct Get by sequence cannot be limited by subject, and quotas and removal are
per stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from msgspec import structs

from aether_api import logs, subjects
from aether_api.errors import JetStreamError, RetryableError, SettingsInvalid, StreamUnavailable
from aether_api.identity import ActorId, ModelName, Namespace, check_name
from aether_nats.connection import NatsConnection
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import ERROR_STREAM_EXISTS, ERROR_STREAM_NOT_FOUND, OWN_METADATA, Republish, StreamConfig, StreamInfo

logger = logging.getLogger(__name__)

PARTITIONS_DEFAULT: Final = 4
"""Event streams of a namespace: a replicated log is written four times in parallel, at little cost for a small tenant."""

SNAPSHOTS_KEPT: Final = 2
"""Snapshots kept for an actor and fold: the newest may turn out to be of a history that was purged meanwhile."""

PARTITIONS_KEY: Final = "aether.partitions"
"""Key in the metadata of each event stream."""

CREATE_TIMEOUT_S: Final = 30.0
"""Seconds for making a stream: JetStream may have no leader just then, or not know yet the servers that replicas need."""

NO_JETSTREAM_TIMEOUT_S: Final = 2.0
"""Seconds for the same where our server has no JetStream: then another one of its cluster may have it, and starts perhaps; most likely it is off everywhere."""

CREATE_TRY_S: Final = 5.0
"""Seconds for one try: a question to a leader that has just died is never answered."""

NO_JETSTREAM_CURE: Final = "turn it on with a block `jetstream {}` in the server's configuration, or start it as `nats-server -js`"
"""What to do where JetStream is off."""

CREATE_AGAIN_S: Final = 0.25
"""Seconds between two tries."""


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """How streams are made where there are none; existing ones are left as they are.

    Attributes:
        partitions: event streams, 1 to 64.
        replicas: copies of each stream, 1, 3 or 5; more than one needs a cluster.
        broadcast: let the server announce stored commits on `stored`; costs a third of the append rate.
    """

    partitions: int = PARTITIONS_DEFAULT
    replicas: int = 1
    broadcast: bool = True


@dataclass(frozen=True, slots=True)
class StreamLayout:
    """Where an actor's messages lie, as the existing streams say.

    Attributes:
        takes_batches: commits of several actors may be stored together; on a replicated stream nothing would be gained.
    """

    namespace: str
    partitions: int
    takes_batches: bool = False

    def event_stream(self, actor: ActorId) -> str:
        """Return the stream that holds the actor's commits."""
        return subjects.event_stream(self.namespace, subjects.partition_of(actor, self.partitions))

    def event_subject(self, actor: ActorId) -> str:
        """Return the subject that holds the actor's commits."""
        return subjects.event_subject(actor, self.partitions)

    @property
    def event_streams(self) -> tuple[str, ...]:
        """The names of all event streams, by partition."""
        return tuple(subjects.event_stream(self.namespace, partition) for partition in range(self.partitions))

    @property
    def snapshot_stream(self) -> str:
        """The name of the stream of snapshots."""
        return subjects.snapshot_stream(self.namespace)

    @property
    def inbox_stream(self) -> str:
        """The name of the stream of durable commands, reminders and dead letters."""
        return subjects.inbox_stream(self.namespace)


async def ensure_streams(connection: NatsConnection, namespace: str, plan: StreamPlan | None = None) -> StreamLayout:
    """Make the streams of a namespace that are missing, and return the layout that is in force.

    An event stream that is missing beside streams that are made after it was lost with its histories: it is made anew, and that is told as an error.

    Raises:
        SettingsInvalid: the plan cannot work, or a stream of our name is not ours.
        JetStreamError: the server refuses, for example for more replicas than it has nodes.
        PermissionDenied: the user may not look at streams, or not make them.
        RetryableError: JetStream had no leader, or lacked servers for the replicas, all the time; or it is off, or the connection was closed.
    """
    wanted = plan or StreamPlan()
    check_name("namespace", namespace)
    if not 1 <= wanted.partitions <= subjects.PARTITIONS_MAX:
        raise SettingsInvalid(f"partitions must be 1 to {subjects.PARTITIONS_MAX}, not {wanted.partitions}")
    js = JetStream(connection, timeout_s=CREATE_TRY_S)
    layout = await _ensure_first(js, namespace, wanted)
    in_force = replace(wanted, partitions=layout.partitions)
    for partition in range(1, layout.partitions):
        await _ensure(js, build_event_config(namespace, partition, in_force), namespace)
    await _ensure(js, build_snapshot_config(namespace, in_force))
    await _ensure_inbox(js, build_inbox_config(namespace, in_force))
    return layout


async def remake_inbox(connection: NatsConnection, namespace: str) -> bool:
    """Make the stream of durable commands and reminders anew where it is gone and the events are there; returns whether.

    Raises:
        JetStreamError, RetryableError: as `ensure_streams`.
    """
    return await _remake(connection, namespace, build_inbox_config)


async def remake_snapshots(connection: NatsConnection, namespace: str) -> bool:
    """Make the stream of snapshots anew, as `remake_inbox` does that of durable commands."""
    return await _remake(connection, namespace, build_snapshot_config)


async def _remake(connection: NatsConnection, namespace: str, build: Callable[[str, StreamPlan], StreamConfig]) -> bool:
    js = JetStream(connection, timeout_s=CREATE_TRY_S)
    events = await js.stream_info(subjects.event_stream(namespace, 0))
    if events is None:
        return False
    config = build(namespace, StreamPlan(replicas=events.config.num_replicas))
    if await js.stream_info(config.name) is not None:
        return False
    await _ensure(js, config)
    return True


async def read_layout(connection: NatsConnection, namespace: str) -> StreamLayout | None:
    """Read the layout of a namespace; None while it has no streams.

    Raises:
        SettingsInvalid: a stream of our name is not ours.
    """
    info = await JetStream(connection).stream_info(subjects.event_stream(namespace, 0))
    return None if info is None else _read_layout(namespace, info)


async def check_layout(connection: NatsConnection, namespace: str, partitions: int) -> None:
    """Refuse to go on where the streams were made anew with another number of partitions: commits would lie where nobody else looks for them.

    Raises:
        SettingsInvalid: that has happened, or a stream of our name is not ours.
        RetryableError: the streams cannot be looked at now.
    """
    layout = await read_layout(connection, namespace)
    if layout is not None and layout.partitions != partitions:
        raise SettingsInvalid(
            f"the streams of namespace {namespace} were made anew with {layout.partitions} partitions, {partitions} when this was started, "
            "so actors would be written and sought in the wrong stream: start the runtime, or open the store, anew"
        )


async def delete_streams(connection: NatsConnection, namespace: str) -> int:
    """Delete all streams of a namespace with everything in them, and return their number."""
    check_name("namespace", namespace)
    js = JetStream(connection, timeout_s=CREATE_TRY_S)
    prefix = subjects.event_stream(namespace, 0).removesuffix("EVT_0")
    names = [name for name in await js.stream_names(f"{subjects.ROOT}.{namespace}.>") if name.startswith(prefix)]
    deleted = 0
    # Backwards, so that the first event stream, which holds the number of partitions, goes last.
    for name in sorted(names, reverse=True):
        deleted += await js.delete_stream(name)
    return deleted


def build_event_config(namespace: str, partition: int, plan: StreamPlan) -> StreamConfig:
    """Return the configuration of one event stream: a log without limits from which no single message can be deleted."""
    announced = subjects.stored_subject(ActorId(Namespace(namespace), ModelName("{{wildcard(1)}}"), "{{wildcard(2)}}"))
    wildcard = subjects.event_wildcard(namespace, partition)
    return StreamConfig(
        name=subjects.event_stream(namespace, partition),
        subjects=(wildcard,),
        num_replicas=plan.replicas,
        deny_delete=True,
        allow_atomic=True,
        republish=Republish(src=wildcard, dest=announced) if plan.broadcast else None,
        metadata={PARTITIONS_KEY: str(plan.partitions)},
    )


def build_snapshot_config(namespace: str, plan: StreamPlan) -> StreamConfig:
    """Return the configuration of the stream of snapshots."""
    every_actor = ActorId(Namespace(namespace), ModelName("*"), "*")
    return StreamConfig(
        name=subjects.snapshot_stream(namespace),
        subjects=(subjects.snapshot_wildcard(every_actor),),
        num_replicas=plan.replicas,
        max_msgs_per_subject=SNAPSHOTS_KEPT,
    )


def build_inbox_config(namespace: str, plan: StreamPlan) -> StreamConfig:
    """Return the configuration of the stream of durable commands, reminders (schedules) and dead letters.

    The target of a schedule must lie in its own stream, so all three are one. The server hints to the pods what came into an
    inbox; without its content, since the actor reads it in order anyway.
    """
    waked = subjects.wake_subject(ActorId(Namespace(namespace), ModelName("{{wildcard(1)}}"), "{{wildcard(2)}}"))
    return StreamConfig(
        name=subjects.inbox_stream(namespace),
        subjects=tuple(f"{subjects.ROOT}.{namespace}.{kind}.>" for kind in ("inbox", "reminder", "dead")),
        num_replicas=plan.replicas,
        allow_msg_schedules=True,
        republish=Republish(src=subjects.inbox_wildcard(namespace), dest=waked, headers_only=True),
    )


async def _ensure_first(js: JetStream, namespace: str, plan: StreamPlan) -> StreamLayout:
    """Make or read the first event stream and return the layout that it fixes."""
    config = build_event_config(namespace, 0, plan)
    # Somebody else may have made it with another plan between our look and our try.
    info = await _ensure(js, config, namespace) or await js.stream_info(config.name)
    if info is None:
        raise JetStreamError(404, ERROR_STREAM_NOT_FOUND, f"stream {config.name} was deleted while it was being made")
    return _read_layout(namespace, info)


async def _ensure(js: JetStream, config: StreamConfig, events_of: str = "") -> StreamInfo | None:
    """Make a stream unless it exists, with whatever configuration; returns what is there, None where somebody else makes it meanwhile.

    Args:
        events_of: the namespace of an event stream, whose loss is told.
    """
    connection, loop = js.connection, asyncio.get_running_loop()
    began_s = loop.time()
    while True:
        try:
            return await _try_to_ensure(js, config, events_of)
        except RetryableError as exc:
            is_off = isinstance(exc, StreamUnavailable) and not connection.has_jetstream
            if is_off and loop.time() > began_s + NO_JETSTREAM_TIMEOUT_S:
                raise StreamUnavailable(f"JetStream is off on the NATS server, and no other one answers for it: {NO_JETSTREAM_CURE}") from exc
            if connection.is_closed or loop.time() > began_s + CREATE_TIMEOUT_S:
                raise
        await asyncio.sleep(CREATE_AGAIN_S)


async def _try_to_ensure(js: JetStream, config: StreamConfig, events_of: str) -> StreamInfo | None:
    """Look first, since a stream that is there answers itself; making one takes the leader of all JetStream, without which a runtime must start."""
    info = await js.stream_info(config.name)
    if info is not None:
        return info
    is_lost = bool(events_of) and await _is_lost(js, config.name, events_of)
    if is_lost and (other := await js.stream_info(subjects.event_stream(events_of, 1))) is not None:
        config = structs.replace(config, metadata={PARTITIONS_KEY: other.config.metadata.get(PARTITIONS_KEY, "")})  # the first one may have been lost, and another plan be ours
    try:
        made = await js.create_stream(config)
    except JetStreamError as exc:
        if exc.error_code != ERROR_STREAM_EXISTS:
            raise
        return None
    if is_lost:
        logger.error(
            "an event stream was gone and is made anew; the histories that it held are lost, and its actors begin anew", extra={logs.NAME: config.name, logs.NAMESPACE: events_of}
        )
    return made


async def _is_lost(js: JetStream, stream: str, namespace: str) -> bool:
    """Tell whether an event stream that is missing was there before: what is made after it is there, and after that was seen it still is missing."""
    later = (subjects.snapshot_stream(namespace), subjects.inbox_stream(namespace))
    return any([await js.stream_info(name) is not None for name in later]) and await js.stream_info(stream) is None


async def _ensure_inbox(js: JetStream, config: StreamConfig) -> None:
    """Make the inbox; one of an earlier release gets what it lacks, its limits stay as somebody may have set them."""
    info = await _ensure(js, config)
    if info is None or (info.config.republish is not None and info.config.allow_msg_schedules):
        return
    metadata = {key: value for key, value in info.config.metadata.items() if not key.startswith(OWN_METADATA)}
    await js.update_stream(structs.replace(info.config, republish=config.republish, allow_msg_schedules=True, metadata=metadata))


def _read_layout(namespace: str, info: StreamInfo) -> StreamLayout:
    text = info.config.metadata.get(PARTITIONS_KEY, "")
    if not text.isdigit() or not 1 <= int(text) <= subjects.PARTITIONS_MAX:
        raise SettingsInvalid(f"stream {info.config.name} was not made by Aether: its metadata lacks {PARTITIONS_KEY}; rename or delete it")
    return StreamLayout(namespace, int(text), info.config.allow_atomic and info.config.num_replicas == 1)
