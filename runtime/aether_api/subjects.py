"""Every NATS subject and stream name, built and parsed in one module.

`build` and `parse` functions are inverse of each other for every valid identity (a property test holds this), so no
other module ever formats or splits a subject. Layout (design: streams and subjects):

    aether.<ns>.evt.<partition>.<model>.<id>      commits, one message each; only runtimes publish here
    aether.<ns>.stored.<model>.<id>               the server's re-publish of a stored commit
    aether.<ns>.snap.<model>.<id>.<fold>          snapshots; with `inbox` for the fold: how often the first waiting command was tried
    aether.<ns>.inbox.<model>.<id>                durable commands and the ticks of reminders, until the actor has settled them
    aether.<ns>.reminder.<model>.<id>.<name>.<token>   schedules; their ticks go to the inbox
    aether.<ns>.dead.<model>.<id>                 durable commands that were given up
    aether.<ns>.wake.<model>.<id>                 the server's hint that something came into the inbox; headers only
    aether.<ns>.cmd.<model>.<id>.<Command>        answered by the live VM only; `_inbox` in place of a command hints that something waits there
    aether.<ns>.call.<model>.<id>.<Command>       answered by any pod, always works
    aether.<ns>.find.<model>.<id>.<Command>       heard by every pod, answered by the one that has the actor or should; asked after silence
    aether.<ns>.pod.<podUID>.<verb>...            one pod: forwarded calls, ping, held
    aether.<ns>.operator.<process>.ping           one process of the operator, in the operator's own namespace
    aether.<ns>.assign.<pool>.<podUID>            the operator tells a pod what to adopt and release
    aether.<ns>.hb.<pool>.<podUID>                heartbeats of a pod
    aether.<ns>.report.<podUID>                   what a pod says of new actors before their resources show where they are
    aether.<ns>.status.<model>.<id>               asks every pod what it does for an actor; wakes nobody
    aether.<ns>.status.pods                       asks every pod how it is

A Kubernetes namespace has its own streams, since neither quotas nor Direct Get can be limited by subject.
"""

from __future__ import annotations

from typing import Final, Literal

from aether_api.errors import InvalidName
from aether_api.headers import parse_count
from aether_api.identity import ActorId, PodUid, PoolName, check_name, parse_actor_id

ROOT: Final = "aether"
PARTITIONS_MAX: Final = 64
"""Streams of one namespace; more only cost memory on the server (measured: 1,900 streams 118 MB)."""

_FNV_OFFSET: Final = 0x811C9DC5
_FNV_PRIME: Final = 0x01000193

TRIES_FOLD: Final = "inbox"
"""Stands in the place of a fold in the subject that counts tries; folds are hexadecimal, so it is none."""

CommandChannel = Literal["cmd", "call", "find"]


def partition_of(actor: ActorId, partitions: int) -> int:
    """Return the actor's partition: FNV-1a (32 bit) of `<model>.<id>`, modulo `partitions`."""
    digest = _FNV_OFFSET
    for byte in f"{actor.model}.{actor.id}".encode():
        digest = ((digest ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return digest % partitions


def event_stream(namespace: str, partition: int) -> str:
    """Return the name of an event stream."""
    return f"AETHER_{namespace}_EVT_{partition}"


def snapshot_stream(namespace: str) -> str:
    """Return the name of the snapshot stream."""
    return f"AETHER_{namespace}_SNAP"


def inbox_stream(namespace: str) -> str:
    """Return the name of the stream of durable commands, reminders and dead letters."""
    return f"AETHER_{namespace}_INBOX"


def event_subject(actor: ActorId, partitions: int) -> str:
    """Return the subject that holds the actor's commits."""
    return f"{ROOT}.{actor.namespace}.evt.{partition_of(actor, partitions)}.{actor.model}.{actor.id}"


def event_wildcard(namespace: str, partition: int) -> str:
    """Return the subject filter of one event stream."""
    return f"{ROOT}.{namespace}.evt.{partition}.*.*"


def event_filter(namespace: str, partition: int, model: str, id: str) -> str:
    """Return the filter of the commits of some actors in one stream; `*` for a model or id means any."""
    return f"{ROOT}.{namespace}.evt.{partition}.{model}.{id}"


def event_streams_filter(namespace: str) -> str:
    """Return the subject that overlaps with those of all event streams of a namespace, or of all for `*`."""
    return f"{ROOT}.{namespace}.evt.>"


def stored_filter(namespace: str, model: str, id: str) -> str:
    """Return the filter of the announcements of some actors; `*` means any."""
    return f"{ROOT}.{namespace}.stored.{model}.{id}"


def stored_subject(actor: ActorId) -> str:
    """Return the subject on which the server announces the actor's stored commits."""
    return f"{ROOT}.{actor.namespace}.stored.{actor.model}.{actor.id}"


def snapshot_subject(actor: ActorId, fold: str) -> str:
    """Return the subject of the actor's snapshots made with one version of state and events."""
    return f"{ROOT}.{actor.namespace}.snap.{actor.model}.{actor.id}.{fold}"


def snapshot_wildcard(actor: ActorId) -> str:
    """Return the filter of all snapshots of the actor, whatever made them."""
    return f"{ROOT}.{actor.namespace}.snap.{actor.model}.{actor.id}.*"


def tries_subject(actor: ActorId) -> str:
    """Return the subject that says how often the first command of the actor's inbox was tried; it goes with the actor's snapshots."""
    return snapshot_subject(actor, TRIES_FOLD)


def inbox_subject(actor: ActorId) -> str:
    """Return the subject of the actor's durable commands and ticks."""
    return f"{ROOT}.{actor.namespace}.inbox.{actor.model}.{actor.id}"


def inbox_wildcard(namespace: str) -> str:
    """Return the filter of all inboxes of a namespace."""
    return f"{ROOT}.{namespace}.inbox.*.*"


def reminder_subject(actor: ActorId, name: str, token: str) -> str:
    """Return the subject of one schedule: a reminder that is set anew gets another token, so that a refused commit loses nothing."""
    return f"{ROOT}.{actor.namespace}.reminder.{actor.model}.{actor.id}.{name}.{token}"


def reminder_wildcard(actor: ActorId) -> str:
    """Return the filter of all schedules of the actor."""
    return reminder_subject(actor, "*", "*")


def dead_subject(actor: ActorId) -> str:
    """Return the subject of the actor's dead letters."""
    return f"{ROOT}.{actor.namespace}.dead.{actor.model}.{actor.id}"


def wake_subject(actor: ActorId) -> str:
    """Return the subject on which the server hints that the actor's inbox got a message."""
    return f"{ROOT}.{actor.namespace}.wake.{actor.model}.{actor.id}"


def wake_wildcard(namespace: str) -> str:
    """Return the filter of all hints of a namespace."""
    return f"{ROOT}.{namespace}.wake.*.*"


def wake_forward_subject(actor: ActorId, pod_uid: PodUid) -> str:
    """Return the subject that carries a hint to the one pod where the actor lives."""
    return f"{ROOT}.{actor.namespace}.pod.{pod_uid}.wake.{actor.model}.{actor.id}"


def wake_forward_wildcard(namespace: str, pod_uid: PodUid) -> str:
    """Return the filter of all hints that are passed on to a pod."""
    return f"{ROOT}.{namespace}.pod.{pod_uid}.wake.*.*"


def command_subject(channel: CommandChannel, actor: ActorId, command: str) -> str:
    """Return the subject of a command: `cmd` asks the live VM, `call` any pod, `find` all pods."""
    return f"{ROOT}.{actor.namespace}.{channel}.{actor.model}.{actor.id}.{command}"


INBOX_HINT: Final = "_inbox"
"""What stands in place of a command in a hint to a live VM; no command can have this name."""


def command_wildcard(actor: ActorId) -> str:
    """Return the subject that the live VM of an actor subscribes to."""
    return f"{ROOT}.{actor.namespace}.cmd.{actor.model}.{actor.id}.*"


def call_wildcard(namespace: str) -> str:
    """Return the subject that every pod of a namespace subscribes to, in one queue group."""
    return f"{ROOT}.{namespace}.call.*.*.*"


def find_wildcard(namespace: str) -> str:
    """Return the subject that every pod of a namespace subscribes to for itself."""
    return f"{ROOT}.{namespace}.find.*.*.*"


def forward_subject(namespace: str, pod_uid: PodUid, actor: ActorId, command: str) -> str:
    """Return the subject that carries a call to the one pod that placement names."""
    return f"{ROOT}.{namespace}.pod.{pod_uid}.call.{actor.model}.{actor.id}.{command}"


def forward_wildcard(namespace: str, pod_uid: PodUid) -> str:
    """Return the filter of all calls that are forwarded to a pod."""
    return f"{ROOT}.{namespace}.pod.{pod_uid}.call.*.*.*"


def ping_subject(namespace: str, pod_uid: PodUid) -> str:
    """Return the subject on which a pod answers a ping with its heartbeat."""
    return f"{ROOT}.{namespace}.pod.{pod_uid}.ping"


def held_subject(namespace: str, pod_uid: PodUid) -> str:
    """Return the subject on which a pod tells which actors it holds."""
    return f"{ROOT}.{namespace}.pod.{pod_uid}.held"


def operator_ping_subject(namespace: str, process: str) -> str:
    """Return the subject on which a process of the operator tells whether it leads."""
    return f"{ROOT}.{namespace}.operator.{process}.ping"


def assign_subject(namespace: str, pool: PoolName, pod_uid: PodUid) -> str:
    """Return the subject on which a pod takes assignments."""
    return f"{ROOT}.{namespace}.assign.{pool}.{pod_uid}"


def heartbeat_subject(namespace: str, pool: PoolName, pod_uid: PodUid) -> str:
    """Return the subject of a pod's heartbeats."""
    return f"{ROOT}.{namespace}.hb.{pool}.{pod_uid}"


def heartbeat_wildcard(namespace: str | None = None) -> str:
    """Return the filter of all heartbeats of a namespace, or of all namespaces."""
    return f"{ROOT}.{namespace or '*'}.hb.*.*"


def report_subject(namespace: str, pod_uid: PodUid) -> str:
    """Return the subject on which a pod says how its new actors are."""
    return f"{ROOT}.{namespace}.report.{pod_uid}"


def report_wildcard(namespace: str | None = None) -> str:
    """Return the subject of what all pods of a namespace, or of all, say of new actors."""
    return f"{ROOT}.{namespace or '*'}.report.*"


def actor_status_subject(actor: ActorId) -> str:
    """Return the subject on which every pod says what it does for an actor."""
    return f"{ROOT}.{actor.namespace}.status.{actor.model}.{actor.id}"


def pods_status_subject(namespace: str) -> str:
    """Return the subject on which every pod of a namespace says how it is."""
    return f"{ROOT}.{namespace}.status.pods"


def status_wildcard(namespace: str) -> str:
    """Return the filter of both."""
    return f"{ROOT}.{namespace}.status.>"


def parse_event_stream(name: str) -> tuple[str, int]:
    """Return namespace and partition of an event stream, or raise `InvalidName`."""
    root, _, rest = name.partition("_")
    namespace, kind, partition = rest.rpartition("_EVT_")
    number = parse_count(partition)
    if root != "AETHER" or not kind or number is None:
        raise InvalidName(f"{name!r} is not the name of an event stream")
    return check_name("namespace", namespace), number


def parse_event_subject(subject: str) -> tuple[ActorId, int]:
    """Return the actor and partition of a commit's subject, or raise `InvalidName`."""
    tokens = _tokens(subject, "evt", 6)
    partition = parse_count(tokens[3])
    if partition is None:
        raise InvalidName(f"{subject!r} names no partition")
    return parse_actor_id(tokens[1], tokens[4], tokens[5]), partition


def parse_stored_subject(subject: str) -> ActorId:
    """Return the actor of a stored commit's announcement, or raise `InvalidName`."""
    tokens = _tokens(subject, "stored", 5)
    return parse_actor_id(tokens[1], tokens[3], tokens[4])


def parse_inbox_subject(subject: str) -> ActorId:
    """Return the actor of an inbox, or raise `InvalidName`."""
    tokens = _tokens(subject, "inbox", 5)
    return parse_actor_id(tokens[1], tokens[3], tokens[4])


def parse_wake_subject(subject: str) -> ActorId:
    """Return the actor of a hint, passed on or not, or raise `InvalidName`."""
    tokens = subject.split(".")
    if len(tokens) == 7 and tokens[0] == ROOT and tokens[2] == "pod" and tokens[4] == "wake":
        return parse_actor_id(tokens[1], tokens[5], tokens[6])
    tokens = _tokens(subject, "wake", 5)
    return parse_actor_id(tokens[1], tokens[3], tokens[4])


def parse_reminder_subject(subject: str) -> tuple[ActorId, str, str]:
    """Return actor, name and token of a schedule, or raise `InvalidName`."""
    tokens = _tokens(subject, "reminder", 7)
    return parse_actor_id(tokens[1], tokens[3], tokens[4]), tokens[5], tokens[6]


def parse_command_subject(subject: str) -> tuple[ActorId, str]:
    """Return the actor and the command of a `cmd`, `call`, `find` or forwarded subject, or raise `InvalidName`."""
    tokens = subject.split(".")
    if len(tokens) == 8 and tokens[0] == ROOT and tokens[2] == "pod" and tokens[4] == "call":
        return parse_actor_id(tokens[1], tokens[5], tokens[6]), tokens[7]
    if len(tokens) == 6 and tokens[0] == ROOT and tokens[2] in ("cmd", "call", "find"):
        return parse_actor_id(tokens[1], tokens[3], tokens[4]), tokens[5]
    raise InvalidName(f"{subject!r} is not the subject of a command")


def parse_heartbeat_subject(subject: str) -> tuple[str, PoolName, PodUid]:
    """Return namespace, pool and pod UID of a heartbeat, or raise `InvalidName`."""
    tokens = _tokens(subject, "hb", 5)
    return tokens[1], PoolName(tokens[3]), PodUid(tokens[4])


def parse_report_subject(subject: str) -> tuple[str, PodUid]:
    """Return the namespace and the pod that says how its new actors are, or raise `InvalidName`."""
    tokens = _tokens(subject, "report", 4)
    return tokens[1], PodUid(tokens[3])


def parse_status_subject(subject: str) -> ActorId | None:
    """Return the actor that is asked for, None where all pods are, or raise `InvalidName`."""
    tokens = subject.split(".")
    if len(tokens) == 4 and subject == pods_status_subject(tokens[1]):
        return None
    tokens = _tokens(subject, "status", 5)
    return parse_actor_id(tokens[1], tokens[3], tokens[4])


def _tokens(subject: str, kind: str, count: int) -> list[str]:
    tokens = subject.split(".")
    if len(tokens) != count or tokens[0] != ROOT or tokens[2] != kind:
        raise InvalidName(f"{subject!r} is not a subject of kind {kind!r}")
    return tokens
