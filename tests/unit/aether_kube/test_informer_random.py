"""The informer through random trouble: in the end its copy is the server's, and what it told on the way makes sense for each object."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

import pytest
from aiohttp import web

from aether_kube.backoff import Backoff
from aether_kube.client import KubeClient
from aether_kube.connection import anonymous_connection
from aether_kube.documents import JsonObject, text_at
from aether_kube.informer import Informer, InformerTiming, Selection
from aether_kube.kinds import ACTORS
from aether_kube.store import Change, ObjectKey
from tests.fake_apiserver import FakeApiServer, Fault

DEADLINE_S: Final = 20.0
PAUSE_S: Final = 0.01
"""Seconds that the informer gets at most to catch up between two troubles; where an event was lost it cannot."""

STEPS: Final = 200
NAMES: Final = "abcdefgh"
TIMING: Final = InformerTiming(page_size=3, silence_s=30.0, watch_s=30.0, relist_s=600.0, shortest_watch_s=0.0, backoff=Backoff(first_s=0.0005, max_s=0.002))

TROUBLE: Final = {
    "put": 40,
    "remove": 14,
    "make anew": 6,
    "put unseen": 6,
    "remove unseen": 4,
    "repeat": 8,
    "bookmark": 6,
    "end": 6,
    "cut": 6,
    "forget": 4,
    "forget in pages": 3,
    "fail": 6,
    "nonsense": 2,
    "wait": 30,
}
"""What happens, and how often. `unseen` leaves no event, as if the server had lost it; `repeat` sends an old event again."""

HONEST: Final = {what: weight for what, weight in TROUBLE.items() if "unseen" not in what}
"""The same from a server that loses no event, so that nothing but events need be seen."""


class State(NamedTuple):
    """What the consumer keeps of an object."""

    uid: str
    resource_version: int
    value: str


@dataclass
class Consumer:
    """Follows the changes as a consumer does that keeps nothing but them, and checks each against the one before."""

    told: dict[ObjectKey, State] = field(default_factory=dict[ObjectKey, State])
    newest: dict[str, int] = field(default_factory=dict[str, int])
    buried: set[str] = field(default_factory=set[str])
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, change: Change[State]) -> None:
        assert self.told.get(change.key) == change.old, "the old value is not what was told last"
        assert (change.old is None, change.new is None) == (change.kind == "added", change.kind == "deleted")
        if change.old is not None:
            self.told.pop(change.key)
        if change.new is None:
            assert change.old is not None
            self.buried.add(change.old.uid)
        else:
            self._check(change.new, change.old)
            self.told[change.key] = change.new
        self.moved.set()

    def _check(self, new: State, old: State | None) -> None:
        assert new.uid not in self.buried, "a deleted object came back"
        assert new.resource_version > self.newest.get(new.uid, 0), "an older state after a newer one, or the same one twice"
        assert old is None or old.uid == new.uid, "another object of the same name is no modification"
        self.newest[new.uid] = new.resource_version


def parse(document: JsonObject) -> State:
    return State(text_at(document, "metadata", "uid"), int(text_at(document, "metadata", "resourceVersion")), text_at(document, "value"))


def is_later_page(request: web.Request) -> bool:
    return "continue" in request.query


class Storm:
    """One server, one informer, and what happens to them."""

    def __init__(self, server: FakeApiServer, chance: Random, trouble: dict[str, int]) -> None:
        self.server = server
        self.chance = chance
        self.trouble = trouble
        self.happened: list[str] = []

    async def step(self) -> str:
        """Let one thing happen and return what it was."""
        (what,) = self.chance.choices(list(self.trouble), list(self.trouble.values()))
        name = self.chance.choice(NAMES)
        path = ACTORS.path("shop", name)
        known = path in self.server.documents.objects
        self.happened.append(f"{what} {name}")
        if what in ("put", "put unseen"):
            await self._put(name, silently=what == "put unseen")
        elif what in ("remove", "remove unseen") and known:
            await self.server.remove(path, silently=what == "remove unseen")
        elif what == "make anew" and known:
            await self.server.remove(path)
            await self._put(name)
        elif what == "forget in pages":
            self.server.faults.append(Fault(is_later_page, 410))
            await self._forget()
        elif what == "forget":
            await self._forget()
        else:
            await self._disturb(what)
        return what

    async def _disturb(self, what: str) -> None:
        server = self.server
        if what == "repeat" and server.documents.history:
            entry = self.chance.choice(server.documents.history)
            await server.send_event(entry.kind, entry.document)
        elif what == "bookmark":
            await server.send_bookmark()
        elif what in ("end", "cut"):
            await server.end_watches(what)
        elif what == "fail":
            server.faults.append(Fault(lambda _: True, self.chance.choice([0, 429, 500, 503, 410])))
            await server.end_watches("cut")
        elif what == "nonsense":
            await server.send_raw(b"<html>\n")

    async def _put(self, name: str, *, silently: bool = False) -> None:
        document: JsonObject = {"metadata": {"namespace": "shop", "name": name}, "value": str(self.chance.random())}
        await self.server.put(ACTORS.path("shop", name), document, silently=silently)

    async def _forget(self) -> None:
        self.server.documents.forgotten = self.server.documents.resource_version
        await self.server.end_watches(self.chance.choice(["end", "cut"]))

    async def calm_down(self) -> None:
        """End all trouble; where events were lost a last gap makes up for them, since nobody else tells of them."""
        self.server.faults.clear()
        if self.trouble is TROUBLE:
            # Above all bookmarks, one of which may have told that nothing was lost.
            self.server.documents.resource_version += 1
            await self._forget()

    def there(self) -> dict[ObjectKey, State]:
        """Return what the server holds."""
        return {ObjectKey("shop", path.rpartition("/")[2]): parse(document) for path, document in self.server.documents.objects.items()}


async def until_equal(consumer: Consumer, informer: Informer[State], storm: Storm, timeout_s: float) -> bool:
    """Wait until the copy is what the server holds, and return whether it came to be so in time."""
    try:
        async with asyncio.timeout(timeout_s):
            while dict(informer.store) != storm.there():
                consumer.moved.clear()
                await consumer.moved.wait()
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("trouble", [TROUBLE, HONEST], ids=["events are lost", "no event is lost"])
@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_the_copy_ends_equal_and_every_object_was_told_in_order(seed: int, trouble: dict[str, int]) -> None:
    async with FakeApiServer() as server, KubeClient(anonymous_connection(server.url)) as client, asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        consumer, storm = Consumer(), Storm(server, Random(seed), trouble)
        informer = Informer(client, Selection(ACTORS, "shop"), parse=parse, on_change=consumer.take, timing=TIMING)
        task = tasks.create_task(informer.run(), name="informer")
        for _ in range(STEPS):
            if await storm.step() == "wait":
                await until_equal(consumer, informer, storm, PAUSE_S)
        await storm.calm_down()
        assert await until_equal(consumer, informer, storm, DEADLINE_S / 2), (seed, storm.happened)
        task.cancel()

    assert consumer.told == storm.there(), seed
