"""Assignments over NATS: what is for this process and not out of date is carried out, everything else is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import cast

from aether_api.control import RELEASE_WAIT_S, Action, Assignment, AssignmentItem, AssignmentReply, AssignmentResult, encode
from aether_api.identity import ActorId, BootId, Epoch, PodIdentity, PodUid, PoolName
from aether_nats.connection import NatsConnection
from aether_nats.message import Message
from aether_runtime.assignments import Assignments
from aether_runtime.ports import DesiredActor, Spawn
from aether_runtime.registry import VMRegistry
from aether_runtime.vm import VirtualMachine
from tests.histories.bank import ALICE


class Listener:
    """What the runtime does with the registry, and nothing else."""

    def __init__(self, registry: VMRegistry) -> None:
        self.registry = registry

    def on_assign(self, desired: DesiredActor) -> None:
        self.registry.want(desired)

    def on_release(self, actor: ActorId, epoch: Epoch) -> None:
        self.registry.unwant(actor)


class Pod:
    def __init__(self) -> None:
        self.registry = VMRegistry()
        pod = PodIdentity(PodUid("uid"), BootId("boot"))
        self.assignments = Assignments(cast("NatsConnection", None), "default", pod, self.registry, Listener(self.registry), spawn=cast("Spawn", None))

    def take(self, *items: AssignmentItem, term: int = 1, uid: str = "uid", boot: str = "boot") -> AssignmentReply:
        return self.assignments.take(Assignment(term, uid, boot, items))

    def say(self, action: Action, epoch: int, *, term: int = 1) -> AssignmentResult:
        return self.take(AssignmentItem(action, "alice", "u", "account", "alice", epoch, 3, 50), term=term).results[0]

    def held_epoch(self) -> int | None:
        desired = self.registry.desired.get(ALICE)
        return None if desired is None else desired.epoch


def test_an_adopted_actor_is_held_as_the_assignment_says() -> None:
    pod = Pod()
    assert pod.say("adopt", 5) == AssignmentResult("alice", "done", 5)
    assert pod.registry.desired[ALICE] == DesiredActor(ALICE, "alice", "u", Epoch(5), 3, 50)


def test_everything_may_be_said_twice() -> None:
    pod = Pod()
    assert [pod.say("adopt", 5).verdict, pod.say("adopt", 5).verdict, pod.held_epoch()] == ["done", "done", 5]
    assert [pod.say("release", 5).verdict, pod.say("release", 5).verdict, pod.held_epoch()] == ["done", "done", None]


def test_a_lower_epoch_than_a_known_one_is_stale_and_the_known_one_is_told() -> None:
    pod = Pod()
    pod.say("adopt", 5)
    assert pod.say("adopt", 4) == AssignmentResult("alice", "stale", 5)
    assert pod.say("release", 4) == AssignmentResult("alice", "stale", 5)
    assert pod.held_epoch() == 5


def test_a_placement_that_was_released_can_be_given_again() -> None:
    """An operator that ended between the release and the new status finds the old placement there, and stands by it."""
    pod = Pod()
    pod.say("adopt", 5)
    pod.say("release", 5)
    assert (pod.say("adopt", 5).verdict, pod.held_epoch()) == ("done", 5)


def test_a_released_actor_is_still_known_by_its_epoch() -> None:
    pod = Pod()
    pod.say("adopt", 5)
    pod.say("release", 5)
    assert (pod.say("adopt", 4), pod.held_epoch()) == (AssignmentResult("alice", "stale", 5), None)


class Connection:
    """Keeps what is subscribed and published."""

    def __init__(self) -> None:
        self.published: list[bytes] = []

    def subscribe(self, subject: str, take: Callable[[Message], None]) -> None:
        self.take = take

    def respond(self, subject: bytes, payload: bytes) -> None:
        self.published.append(subject)


class Going:
    """A VM that has not stopped yet."""

    def get_actor_id(self) -> ActorId:
        return ALICE


async def test_the_answer_to_a_release_waits_for_nobody_who_has_gone_before_it_began() -> None:
    registry, connection, vm = VMRegistry(), Connection(), cast("VirtualMachine", Going())
    registry.put(vm)
    spawned: list[Coroutine[None, None, None]] = []

    def spawn(work: Coroutine[None, None, None], name: str) -> bool:
        spawned.append(work)
        return True

    pod = PodIdentity(PodUid("uid"), BootId("boot"))
    assignments = Assignments(cast("NatsConnection", connection), "default", pod, registry, Listener(registry), spawn=spawn)
    assignments.subscribe(PoolName("default"))
    release = AssignmentItem("release", "alice", "u", "account", "alice", 5, 3, 50)
    connection.take(Message(b"assign", b"answer", b"", encode(Assignment(1, "uid", "boot", (release,)))))
    registry.remove(vm)
    async with asyncio.timeout(RELEASE_WAIT_S / 2):
        await spawned.pop()
    assert connection.published == [b"answer"]


def test_an_older_leader_is_refused_whatever_it_says() -> None:
    pod = Pod()
    pod.say("adopt", 5, term=3)
    result = pod.say("adopt", 9, term=2)
    assert (result.verdict, result.message, pod.held_epoch()) == ("stale", "term 3 rules", 5)
    assert pod.take(term=2).term == 3
    assert pod.say("adopt", 9, term=3).verdict == "done"


def test_an_assignment_for_another_process_of_the_same_pod_is_not_taken() -> None:
    pod = Pod()
    item = AssignmentItem("adopt", "alice", "u", "account", "alice", 5)
    assert [result.verdict for result in pod.take(item, boot="earlier").results] == ["wrong-pod"]
    assert [result.verdict for result in pod.take(item, uid="other").results] == ["wrong-pod"]
    assert pod.held_epoch() is None


def test_an_assignment_for_another_process_does_not_teach_a_term() -> None:
    pod = Pod()
    pod.take(term=9, boot="earlier")
    assert pod.say("adopt", 5, term=1).verdict == "done"


def test_an_impossible_name_is_refused_and_the_others_are_carried_out() -> None:
    pod = Pod()
    reply = pod.take(AssignmentItem("adopt", "bad", "u", "account", "a b", 5), AssignmentItem("adopt", "alice", "u", "account", "alice", 5))
    assert [(result.name, result.verdict) for result in reply.results] == [("bad", "refused"), ("alice", "done")]
    assert "a b" in reply.results[0].message


def test_what_an_assignment_says_of_snapshots_and_sleep_is_what_the_resource_says() -> None:
    pod = Pod()
    pod.take(AssignmentItem("adopt", "alice", "u", "account", "alice", 5, 1, 9, 0.25, 60))
    desired = pod.registry.desired[ALICE]
    assert (desired.snapshot_every, desired.recovery_target_s, desired.idle_after_s) == (9, 0.25, 60)
