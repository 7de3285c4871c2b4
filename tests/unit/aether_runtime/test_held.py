"""What a process tells a new operator: every actor that it holds for a resource, in pages, and the highest term that it obeyed."""

from __future__ import annotations

from typing import cast

from aether_api.control import Assignment, HeldActor, HeldQuestion
from aether_api.identity import BootId, Epoch, PodIdentity, PodUid, parse_actor_id
from aether_nats.connection import NatsConnection
from aether_runtime.assignments import Assignments
from aether_runtime.held import PAGE_ACTORS, HeldActors
from aether_runtime.ports import AssignmentListener, DesiredActor, Spawn
from aether_runtime.registry import VMRegistry

POD = PodIdentity(PodUid("uid"), BootId("boot"))
NOWHERE = cast("NatsConnection", None)


def held(registry: VMRegistry, *, term: int = 0) -> HeldActors:
    assignments = Assignments(NOWHERE, "shop", POD, registry, cast("AssignmentListener", None), spawn=cast("Spawn", None))
    if term:
        assignments.take(Assignment(term, POD.uid, POD.boot_id, ()))
    return HeldActors(NOWHERE, "shop", POD, registry, assignments)


def want(registry: VMRegistry, id: str, *, name: str, epoch: int = 5) -> None:
    registry.want(DesiredActor(parse_actor_id("shop", "account", id), name, f"uid-{name}", Epoch(epoch)))


def test_an_empty_process_holds_nothing_and_tells_its_term() -> None:
    page = held(VMRegistry(), term=7).build_page(HeldQuestion())

    assert (page.pod_uid, page.boot_id, page.term, page.actors, page.more) == ("uid", "boot", 7, (), False)


def test_actors_without_a_resource_are_not_told() -> None:
    registry = VMRegistry()
    want(registry, "alice", name="alice")
    want(registry, "walk-in", name="")

    assert held(registry).build_page(HeldQuestion()).actors == (HeldActor("alice", "uid-alice", 5),)


def test_many_actors_come_page_by_page_each_once() -> None:
    registry = VMRegistry()
    names = [f"n{number:05}" for number in range(2 * PAGE_ACTORS + 1)]
    for name in reversed(names):
        want(registry, name, name=name)
    answers = held(registry)
    told: list[str] = []
    more = True
    while more:
        page = answers.build_page(HeldQuestion(told[-1] if told else ""))
        told += [actor.name for actor in page.actors]
        more = page.more

    assert told == names


def test_a_full_page_is_the_last_one_if_nothing_comes_after_it() -> None:
    registry = VMRegistry()
    for number in range(PAGE_ACTORS):
        want(registry, f"a{number}", name=f"a{number}")

    assert held(registry).build_page(HeldQuestion()).more is False
