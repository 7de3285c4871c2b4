"""What goes over NATS between programs that may be of different releases, as samples: what they say must mean the same for ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aether_api import control, subjects
from aether_api.control import (
    ActorView,
    Assignment,
    AssignmentItem,
    AssignmentReply,
    AssignmentResult,
    FirstCondition,
    FirstReport,
    FirstReports,
    FirstStatus,
    Heartbeat,
    HeldActor,
    HeldPage,
    HeldQuestion,
    OperatorPulse,
    PodStatus,
)
from aether_api.durable import DurableCommand, InboxPosition, build_dead_headers, build_durable_headers, parse_durable, read_dead_letter
from aether_api.headers import FIRST_LINE
from aether_api.identity import CommandId, PodUid, PoolName, parse_actor_id
from aether_api.messages import Command, Reply, ReplyEvent, build_command_headers, decode_reply, encode_reply, parse_command
from aether_nats.schedules import Reminder, build_schedule_headers

ALICE: Final = parse_actor_id("bank", "account", "alice")
TIME: Final = "2026-01-31T12:00:00.000000Z"
TIME_S: Final = 1769860800.0
POD: Final = PodUid("ca4f9ccb-826a-4a7f-b722-73eabe73625e")
COMMAND: Final = Command(ALICE, "Deposit", CommandId("order-4711"), b'{"amount":100}', TIME, TIME_S, 10.0)
TRACED: Final = msgspec.structs.replace(COMMAND, expected_version=3, dry_run=True, forwards=1, traceparent="00-1-2-01")
REMINDER: Final = Reminder("dun", "Remind", b"{}", "0 30 9 * * MON-FRI", zone="Europe/Berlin", missed="skip")


@dataclass(frozen=True)
class Wire:
    """Header lines and payload of a message."""

    headers: bytes
    payload: bytes

    @property
    def block(self) -> bytes:
        """The header block as a receiver gets it."""
        return FIRST_LINE + b"\r\n" + self.headers + b"\r\n"


@dataclass(frozen=True)
class Kind:
    """One kind of message: how it is read, and how what was read is sent again."""

    read: Callable[[Wire], Any]
    send: Callable[[Any], Wire]


def _read_command(wire: Wire) -> Command:
    return parse_command(ALICE, "Deposit", wire.block, wire.payload, now_s=TIME_S, fresh_id=lambda: "fresh")


def _read_durable(wire: Wire) -> DurableCommand:
    return parse_durable(ALICE, InboxPosition(5, 7), wire.block, wire.payload, stored=TIME)


def _read_schedule(wire: Wire) -> Reminder:
    """Read a tick, which is a copy of its schedule."""
    found = _read_durable(wire)
    if found.tick is None:
        raise ValueError("the schedule gives no tick")
    return Reminder(found.tick.name, found.command.name, found.command.payload, REMINDER.text, zone=REMINDER.zone, missed=found.tick.missed)


def _control(decode: Callable[[bytes], Any]) -> Kind:
    """Return the kind of a message between operator and pods."""
    return Kind(lambda wire: decode(wire.payload), lambda sent: Wire(b"", control.encode(sent)))


KINDS: Final = {
    "command": Kind(_read_command, lambda command: Wire(build_command_headers(command), command.payload)),
    "durable command": Kind(_read_durable, lambda found: Wire(build_durable_headers(found.command), found.command.payload)),
    "schedule": Kind(_read_schedule, lambda reminder: Wire(build_schedule_headers(ALICE, reminder, "t1"), reminder.payload)),
    "dead letter": Kind(
        lambda wire: read_dead_letter(9, wire.block, wire.payload, stored=TIME),
        lambda letter: Wire(build_dead_headers(FIRST_LINE + b"\r\n" + build_durable_headers(COMMAND) + b"\r\n", 7, letter.reason, letter.message), letter.payload.encode()),
    ),
    "reply": Kind(lambda wire: decode_reply(wire.payload), lambda reply: Wire(b"", encode_reply(reply))),
    "heartbeat": _control(control.decode_heartbeat),
    "assignment": _control(control.decode_assignment),
    "answer to an assignment": _control(control.decode_assignment_reply),
    "status of a pod": _control(control.decode_pod_status),
    "question for held actors": _control(control.decode_held_question),
    "page of held actors": _control(control.decode_held_page),
    "first reports": _control(control.decode_first_reports),
    "pulse of an operator": _control(control.decode_operator_pulse),
}

MESSAGES: Final[list[tuple[str, Any]]] = [
    ("command", COMMAND),
    ("command", TRACED),
    ("durable command", DurableCommand(7, msgspec.structs.replace(COMMAND, expected_version=3, traceparent="00-1-2-01"))),
    ("schedule", REMINDER),
    ("dead letter", read_dead_letter(9, FIRST_LINE + b"\r\nAether-Dead-Reason: CommandFailed\r\nAether-Dead-Message: it raised\r\n\r\n", COMMAND.payload, stored=TIME)),
    ("reply", Reply("accepted", 2, (ReplyEvent("Deposited", 2, TIME, msgspec.Raw(b'{"amount":100}')),), command_id="order-4711")),
    ("reply", Reply("rejected", 2, (), "InsufficientFunds", "not enough money", command_id="order-4712", dry_run=True, state={"balance": 3})),
    ("reply", Reply("noop", 2, command_id="order-4713")),
    ("reply", Reply("error", -1, (), "Busy", "the actor is moving", 100, "order-4714")),
    ("heartbeat", Heartbeat(POD, "boot-1", "aether-default-bdc486767-vq2s2", "ready", 12)),
    ("heartbeat", Heartbeat(POD, "boot-1", "aether-default-bdc486767-vq2s2", "leaving", 0)),
    (
        "assignment",
        Assignment(
            3, POD, "boot-1", (AssignmentItem("adopt", "alice", "u-1", "account", "alice", 7, 2, 500, 2.5, 600.0), AssignmentItem("release", "bob", "u-2", "account", "bob", 6))
        ),
    ),
    ("answer to an assignment", AssignmentReply(3, "boot-1", (AssignmentResult("alice", "done", 7), AssignmentResult("bob", "stale", 9, "term 4 rules")))),
    (
        "status of a pod",
        PodStatus(
            POD,
            "boot-1",
            "aether-default-bdc486767-vq2s2",
            "default",
            "ready",
            2,
            3,
            {"Ready": 1, "Replaying": 1},
            events_to_go=500,
            oldest_replay_s=1.25,
            actors=(ActorView("account/alice", "alice", 7, "Replaying", 900, 400, "account@c8525ff36c8ccbdc", "Replaying", "400 of 900 events", 3),),
        ),
    ),
    ("status of a pod", PodStatus(POD, "boot-1", "aether-default-bdc486767-vq2s2", "default", "leaving", 1, 0, {})),
    ("question for held actors", HeldQuestion("alice")),
    ("question for held actors", HeldQuestion()),
    ("page of held actors", HeldPage(POD, "boot-1", 3, (HeldActor("bob", "u-2", 6), HeldActor("carol", "u-3", 8)), more=True)),
    (
        "first reports",
        FirstReports(
            POD,
            (
                FirstReport(
                    "alice",
                    "u-1",
                    FirstStatus(2, "Ready", 5, 0, "account@c8525ff36c8ccbdc", 7, (FirstCondition("Ready", "True", "Ready", "replayed 5 events", 2, "2026-01-02T03:04:05Z"),)),
                ),
            ),
        ),
    ),
    ("pulse of an operator", OperatorPulse("aether-operator-6d4cf56db6-2xk7q_1", 3)),
    ("pulse of an operator", OperatorPulse("aether-operator-6d4cf56db6-2xk7q_1", 0)),
]


def build_samples() -> dict[str, Any]:
    """Return the samples of today's code: messages with what they mean, and subjects."""
    samples = []
    for name, message in MESSAGES:
        wire = KINDS[name].send(message)
        samples.append({"kind": name, "headers": wire.headers.decode().split("\r\n")[:-1], "payload": wire.payload.decode(), "means": show(KINDS[name].read(wire))})
    return {"messages": samples, "subjects": build_subjects()}


def parse_sample(sample: dict[str, Any]) -> Wire:
    """Return a sample as it was sent."""
    return Wire("".join(f"{line}\r\n" for line in sample["headers"]).encode(), sample["payload"].encode())


def show(message: object) -> Any:
    """Return what a message means, as JSON."""
    return json.loads(msgspec.json.encode(message))


def build_subjects() -> dict[str, str]:
    """Return a subject or name of every kind."""
    return {
        "evt": subjects.event_subject(ALICE, 4),
        "event stream": subjects.event_stream("bank", 3),
        "snapshot stream": subjects.snapshot_stream("bank"),
        "inbox stream": subjects.inbox_stream("bank"),
        "stored": subjects.stored_subject(ALICE),
        "snap": subjects.snapshot_subject(ALICE, "abc"),
        "tries": subjects.tries_subject(ALICE),
        "inbox": subjects.inbox_subject(ALICE),
        "reminder": subjects.reminder_subject(ALICE, "dun", "t1"),
        "dead": subjects.dead_subject(ALICE),
        "wake": subjects.wake_subject(ALICE),
        "cmd": subjects.command_subject("cmd", ALICE, "Deposit"),
        "call": subjects.command_subject("call", ALICE, "Deposit"),
        "forwarded call": subjects.forward_subject("bank", POD, ALICE, "Deposit"),
        "forwarded wake": subjects.wake_forward_subject(ALICE, POD),
        "ping": subjects.ping_subject("bank", POD),
        "assign": subjects.assign_subject("bank", PoolName("default"), POD),
        "held": subjects.held_subject("bank", POD),
        "ping of an operator": subjects.operator_ping_subject("aether-system", "1"),
        "status of an actor": subjects.actor_status_subject(ALICE),
        "status of pods": subjects.pods_status_subject("bank"),
        "hb": subjects.heartbeat_subject("bank", PoolName("default"), POD),
        **{f"partition of {id}": str(subjects.partition_of(parse_actor_id("bank", "account", id), 64)) for id in ("alice", "bob", "a:b=c~d", "0" * 200)},
    }
