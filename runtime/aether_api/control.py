"""What operator and runtime pods say to each other over NATS: assignments, heartbeats and what a pod holds; and how pods are, for whoever asks.

An assignment travels over NATS first and reaches the resource's status afterwards (a thousand API writes take seconds).
Adopt is idempotent; a lower term or epoch than one already seen is refused, so a late message of an old leader or an old
plan does no harm (omicron's Reconfigurator fences by generation in the same way).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from aether_api.errors import MALFORMED, InvalidEnvelope

Action = Literal["adopt", "release"]
PodState = Literal["ready", "leaving"]
Verdict = Literal["done", "stale", "wrong-pod", "refused"]

RELEASE_WAIT_S: Final = 0.7
"""Seconds for which a pod keeps the answer to a release back until it has let the actors go: most do in a few round trips, and nobody should be held up by the rest."""

Count = Annotated[int, Meta(ge=0, le=2**62)]
"""A number that pods tell: what a resource can hold, with room for the operator to count on."""

_T = TypeVar("_T")


class AssignmentItem(msgspec.Struct, frozen=True, rename="camel"):
    """One actor to take or to give back.

    Attributes:
        name: the resource's name; `uid` and `generation` are its metadata.
        epoch: the placement's epoch; a release names the epoch that it ends.
        snapshot_every: `spec.snapshot.every`, events between snapshots; 0 leaves it to the runtime.
        recovery_target_s: `spec.snapshot.recoveryTarget` in seconds, 0 for none.
        idle_after_s: `spec.passivation.idleAfter` in seconds, 0 for never.
    """

    action: Action
    name: str
    uid: str
    model: str
    id: str
    epoch: int
    generation: int = 0
    snapshot_every: int = 0
    recovery_target_s: float = 1.0
    idle_after_s: float = 0.0


class Assignment(msgspec.Struct, frozen=True, rename="camel"):
    """What one pod shall hold, as a change: sent on `assign`, answered by an `AssignmentReply`."""

    term: int
    pod_uid: str
    boot_id: str
    items: tuple[AssignmentItem, ...]


class AssignmentResult(msgspec.Struct, frozen=True, rename="camel"):
    """What became of one item; `epoch` is the highest that the pod knows for the actor.

    A release that is `done` with a message was taken, and the actor's last step goes on.
    """

    name: str
    verdict: Verdict
    epoch: Count = 0
    message: str = ""


class AssignmentReply(msgspec.Struct, frozen=True, rename="camel"):
    """The pod's answer, one result for each item, in their order."""

    term: Count
    boot_id: str
    results: tuple[AssignmentResult, ...]


class Heartbeat(msgspec.Struct, frozen=True, rename="camel"):
    """A pod is alive: sent every 300 ms, and as the answer to a ping."""

    pod_uid: str
    boot_id: str
    pod_name: str
    state: PodState
    held: int


class ActorView(msgspec.Struct, frozen=True, rename="camel"):
    """What one pod does for an actor.

    Attributes:
        actor: `<model>/<id>`.
        name: of its resource; empty without one.
        phase: as the resource's status has it.
        version: events stored, as far as the pod knows.
        message: what a person should know; of a replay, how far it is.
        waiting: commands in its mailbox.
    """

    actor: str
    name: str
    epoch: int
    phase: str
    version: int | None
    snapshot_version: int
    model_version: str
    reason: str
    message: str
    waiting: int = 0


class PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    """How a pod is: its answer on `status`.

    Attributes:
        live_pods: how many pods of the namespace it knows to be alive, itself included: so many answer.
        held: actors that it should hold; `phases` counts those in memory.
        events_to_go: of all replays under way; `oldest_replay_s` is since when the oldest runs.
        actors: the actor that was asked for, if this pod holds it; else those that are neither ready nor asleep, as many as fit.
    """

    pod_uid: str
    boot_id: str
    pod_name: str
    pool: str
    state: PodState
    live_pods: int
    held: int
    phases: dict[str, int]
    events_to_go: int = 0
    oldest_replay_s: float = 0.0
    actors: tuple[ActorView, ...] = ()


class HeldQuestion(msgspec.Struct, frozen=True, rename="camel"):
    """Which actors with a resource do you hold, by name after this one? Sent on `held`, answered by a `HeldPage`."""

    after: str = ""


class HeldActor(msgspec.Struct, frozen=True, rename="camel"):
    """One actor that a pod holds; `name` and `uid` are of its resource."""

    name: str
    uid: str
    epoch: Count


class HeldPage(msgspec.Struct, frozen=True, rename="camel"):
    """The next actors by name.

    Attributes:
        term: the highest term that this process took an assignment of.
        more: ask again after the last name.
    """

    pod_uid: str
    boot_id: str
    term: Count
    actors: tuple[HeldActor, ...]
    more: bool = False


class FirstCondition(msgspec.Struct, frozen=True, rename="camel"):
    """A condition of a `FirstStatus`, as the resource has it."""

    type: Literal["Ready", "Replayed"]
    status: Literal["True"]
    reason: Annotated[str, Meta(max_length=1024)]
    message: Annotated[str, Meta(max_length=32_768)]
    observed_generation: Count
    last_transition_time: Annotated[str, Meta(max_length=64)]


class FirstStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The pod's part of the status of an actor that runs and of which there is nothing else to say; fields as the resource has them."""

    observed_generation: Count
    phase: Literal["Ready"]
    version: Count
    snapshot_version: Count
    model_version: Annotated[str, Meta(max_length=512)]
    reported_epoch: Count
    conditions: tuple[FirstCondition, ...]


class FirstReport(msgspec.Struct, frozen=True, rename="camel"):
    """How one actor is that was assigned to a pod, before its resource shows the placement; `name` and `uid` are of its resource."""

    name: str
    uid: str
    status: FirstStatus


class FirstReports(msgspec.Struct, frozen=True, rename="camel"):
    """What a pod says of new actors on `report`, so that the operator may write it together with their placement: one write instead of two.

    Nobody answers, and nothing depends on it: what the resource then does not show, the pod writes itself.
    """

    pod_uid: str
    reports: tuple[FirstReport, ...]


class OperatorPulse(msgspec.Struct, frozen=True, rename="camel"):
    """A process of the operator is there; `term` is the one under which it acts now, 0 while it does not."""

    process: str
    term: int


_encode = msgspec.json.Encoder().encode
_decode_assignment = msgspec.json.Decoder(Assignment).decode
_decode_assignment_reply = msgspec.json.Decoder(AssignmentReply).decode
_decode_heartbeat = msgspec.json.Decoder(Heartbeat).decode
_decode_pod_status = msgspec.json.Decoder(PodStatus).decode
_decode_held_question = msgspec.json.Decoder(HeldQuestion).decode
_decode_held_page = msgspec.json.Decoder(HeldPage).decode
_decode_first_reports = msgspec.json.Decoder(FirstReports).decode
_decode_operator_pulse = msgspec.json.Decoder(OperatorPulse).decode


def encode(message: Assignment | AssignmentReply | Heartbeat | PodStatus | HeldQuestion | HeldPage | FirstReports | OperatorPulse) -> bytes:
    """Encode one of the messages above as JSON."""
    return _encode(message)


def decode_assignment(payload: bytes) -> Assignment:
    """Decode an assignment, or raise `InvalidEnvelope`."""
    return _read(_decode_assignment, payload, "an assignment")


def decode_assignment_reply(payload: bytes) -> AssignmentReply:
    """Decode a pod's answer to an assignment, or raise `InvalidEnvelope`."""
    return _read(_decode_assignment_reply, payload, "an answer to an assignment")


def decode_heartbeat(payload: bytes) -> Heartbeat:
    """Decode a heartbeat, or raise `InvalidEnvelope`."""
    return _read(_decode_heartbeat, payload, "a heartbeat")


def decode_pod_status(payload: bytes) -> PodStatus:
    """Decode how a pod is, or raise `InvalidEnvelope`."""
    return _read(_decode_pod_status, payload, "the status of a pod")


def decode_held_question(payload: bytes) -> HeldQuestion:
    """Decode a question for what a pod holds, or raise `InvalidEnvelope`."""
    return _read(_decode_held_question, payload, "a question for held actors")


def decode_held_page(payload: bytes) -> HeldPage:
    """Decode a page of what a pod holds, or raise `InvalidEnvelope`."""
    return _read(_decode_held_page, payload, "a page of held actors")


def decode_first_reports(payload: bytes) -> FirstReports:
    """Decode what a pod says of new actors, or raise `InvalidEnvelope`."""
    return _read(_decode_first_reports, payload, "first reports")


def decode_operator_pulse(payload: bytes) -> OperatorPulse:
    """Decode what a process of the operator answers, or raise `InvalidEnvelope`."""
    return _read(_decode_operator_pulse, payload, "a pulse of an operator")


def _read(decode: Callable[[bytes], _T], payload: bytes, what: str) -> _T:
    try:
        return decode(payload)
    except MALFORMED as exc:
        raise InvalidEnvelope(f"not {what}: {exc}") from exc
