"""The informer against a server that does what real ones do on a bad day: its copy always ends equal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from aether_api.errors import InternalError, KubeConflict
from aether_kube.backoff import Backoff
from aether_kube.client import KubeClient
from aether_kube.connection import anonymous_connection
from aether_kube.documents import JsonObject, text_at
from aether_kube.informer import REFUSALS_MIN, Informer, InformerTiming, Selection
from aether_kube.kinds import ACTORS
from aether_kube.store import Change, ChangeKind, ObjectKey
from tests.fake_apiserver import FakeApiServer, Fault
from tests.integration.links import CutLink

DEADLINE_S = 10.0
"""Seconds after which a test that waits for something has failed."""

FAST = InformerTiming(page_size=2, silence_s=30.0, watch_s=30.0, relist_s=600.0, backoff=Backoff(first_s=0.001, max_s=0.01))

SHOP = Selection(ACTORS, "shop")


def actor(name: str, value: str = "good") -> JsonObject:
    return {"metadata": {"namespace": "shop", "name": name}, "value": value}


def path(name: str) -> str:
    return ACTORS.path("shop", name)


def parse(document: JsonObject) -> str:
    value = text_at(document, "value")
    if value == "bad":
        raise ValueError("bad value")
    return value


@dataclass
class Following:
    """An informer that runs, and what it told."""

    server: FakeApiServer
    changes: list[tuple[ChangeKind, str]] = field(default_factory=list[tuple[ChangeKind, str]])
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    informer: Informer[str] = field(init=False)

    def note(self, change: Change[str]) -> None:
        self.changes.append((change.kind, change.key.name))
        self.moved.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.moved.wait()
            self.moved.clear()

    async def until_holds(self, **values: str) -> None:
        expected = {ObjectKey("shop", name): value for name, value in values.items()}
        await self.until(lambda: dict(self.informer.store) == expected)

    async def until_watching(self, times: int = 1) -> None:
        await self.server.until(lambda: len(watches(self.server)) >= times and self.server.open_watches > 0)


@asynccontextmanager
async def following(server: FakeApiServer, timing: InformerTiming = FAST, selection: Selection = SHOP, url: str = "") -> AsyncGenerator[Following, None]:
    async with asyncio.timeout(DEADLINE_S), KubeClient(anonymous_connection(url or server.url)) as client, asyncio.TaskGroup() as group:
        follower = Following(server)
        follower.informer = Informer(client, selection, parse=parse, on_change=follower.note, timing=timing)
        task = group.create_task(follower.informer.run(), name="informer")
        try:
            yield follower
        finally:
            task.cancel()


def watches(server: FakeApiServer) -> list[web.Request]:
    return [request for request in server.requests if "watch" in request.query]


def lists(server: FakeApiServer) -> list[web.Request]:
    return [request for request in server.requests if "watch" not in request.query]


def is_list(request: web.Request) -> bool:
    return "watch" not in request.query


def is_watch(request: web.Request) -> bool:
    return "watch" in request.query


def is_second_page(request: web.Request) -> bool:
    return "continue" in request.query


async def test_a_collection_is_listed_in_pages_and_then_followed() -> None:
    async with FakeApiServer() as server:
        for name in ("a", "b", "c"):
            await server.put(path(name), actor(name))
        async with following(server) as follower:
            await follower.informer.synced.wait()
            assert sorted(follower.changes) == [("added", "a"), ("added", "b"), ("added", "c")]

            await server.put(path("a"), actor("a", "better"))
            await server.remove(path("b"))
            await follower.until_holds(a="better", c="good")

        assert follower.changes[3:] == [("modified", "a"), ("deleted", "b")]
        assert len(lists(server)) == 2


async def test_an_empty_collection_is_synced() -> None:
    async with FakeApiServer() as server, following(server) as follower:
        await follower.informer.synced.wait()

        assert dict(follower.informer.store) == {}


async def test_selectors_go_with_every_list_and_watch() -> None:
    selection = Selection(ACTORS, "shop", field_selector="status.placement.podUID=u-1", label_selector="app=x,tier in (a,b)")
    async with FakeApiServer() as server, following(server, selection=selection) as follower:
        await follower.until_watching()

        queries = [(request.query["fieldSelector"], request.query["labelSelector"]) for request in server.requests]
        assert queries == [("status.placement.podUID=u-1", "app=x,tier in (a,b)")] * 2


@pytest.mark.parametrize("how", ["end", "cut"])
async def test_a_watch_that_ends_is_continued_without_a_new_list(how: str) -> None:
    async with FakeApiServer() as server, following(server) as follower:
        await follower.until_watching()
        await server.put(path("a"), actor("a"))
        await follower.until_holds(a="good")
        await server.end_watches(how)
        await server.put(path("b"), actor("b"))
        await follower.until_holds(a="good", b="good")

        assert follower.changes == [("added", "a"), ("added", "b")]
        assert len(lists(server)) == 1


async def test_a_watch_that_is_cut_within_a_line_loses_nothing() -> None:
    async with FakeApiServer() as server, following(server) as follower:
        await follower.until_watching()
        await server.send_raw(b'{"type":"ADDED","object":{"metadata":{"na')
        await server.end_watches("end")
        await server.put(path("a"), actor("a"))
        await follower.until_holds(a="good")

        assert len(lists(server)) == 1


async def test_a_forgotten_version_leads_to_a_list_with_deletions_for_what_was_missed() -> None:
    async with FakeApiServer() as server:
        await server.put(path("a"), actor("a"))
        await server.put(path("b"), actor("b"))
        async with following(server) as follower:
            await follower.until_watching()
            await server.remove(path("a"), silently=True)
            await server.put(path("b"), actor("b", "better"), silently=True)
            server.documents.forgotten = server.documents.resource_version
            await server.end_watches()
            await follower.until_holds(b="better")

        assert follower.changes[2:] == [("deleted", "a"), ("modified", "b")]


async def test_a_410_in_the_answer_of_a_watch_leads_to_a_list() -> None:
    async with FakeApiServer() as server, following(server) as follower:
        await follower.until_watching()
        await server.put(path("a"), actor("a"), silently=True)
        server.faults.append(Fault(is_watch, 410))
        await server.end_watches()
        await follower.until_holds(a="good")

        assert len(lists(server)) == 2


async def test_a_410_between_two_pages_starts_the_list_again() -> None:
    async with FakeApiServer() as server:
        for name in ("a", "b", "c"):
            await server.put(path(name), actor(name))
        server.faults.append(Fault(is_second_page, 410))
        async with following(server) as follower:
            await follower.until_holds(a="good", b="good", c="good")

        assert sorted(follower.changes) == [("added", "a"), ("added", "b"), ("added", "c")]
        assert ["continue" in request.query for request in lists(server)] == [False, True, False, True]


async def test_pages_show_the_moment_of_the_first_one_and_the_watch_brings_the_rest() -> None:
    async with FakeApiServer() as server:
        for name in ("a", "b", "c"):
            await server.put(path(name), actor(name))
        server.holds = is_second_page
        async with following(server) as follower:
            await server.until(lambda: any(map(is_second_page, server.requests)))
            await server.remove(path("a"))
            await server.put(path("c"), actor("c", "better"))
            await server.put(path("d"), actor("d"))
            await server.let_go()
            await follower.until_holds(b="good", c="better", d="good")

        assert len(lists(server)) == 2


async def test_pages_that_the_server_forgot_while_they_were_read_start_again() -> None:
    async with FakeApiServer() as server:
        for name in ("a", "b", "c"):
            await server.put(path(name), actor(name))
        server.holds = is_second_page
        async with following(server) as follower:
            await server.until(lambda: any(map(is_second_page, server.requests)))
            await server.remove(path("a"))
            server.documents.forgotten = server.documents.resource_version
            await server.let_go()
            await follower.until_holds(b="good", c="good")

        assert follower.changes == [("added", "b"), ("added", "c")], "what was gone before the list was complete is never told"


async def test_a_failure_between_two_pages_deletes_nothing() -> None:
    async with FakeApiServer() as server:
        for name in ("a", "b", "c"):
            await server.put(path(name), actor(name))
        async with following(server) as follower:
            await follower.until_watching()
            server.documents.forgotten = server.documents.resource_version + 1
            server.faults.append(Fault(is_second_page, 500, times=3))
            await server.end_watches()
            await server.until(lambda: len(lists(server)) >= 10)

        assert [kind for kind, _ in follower.changes] == ["added"] * 3


async def test_bookmarks_move_the_position_from_which_a_watch_continues() -> None:
    async with FakeApiServer() as server, following(server) as follower:
        await follower.until_watching()
        server.documents.resource_version = 500
        await server.send_bookmark()
        await server.end_watches()
        await follower.until_watching(times=2)

        assert [request.query["resourceVersion"] for request in watches(server)] == ["1", "500"]
        assert watches(server)[0].query["allowWatchBookmarks"] == "true"


async def test_a_silent_watch_is_opened_again_and_what_it_withheld_arrives() -> None:
    timing = InformerTiming(silence_s=0.05, watch_s=30.0, backoff=FAST.backoff)
    async with FakeApiServer() as server:
        server.silent = True
        async with following(server, timing) as follower:
            await follower.until_watching()
            await server.put(path("a"), actor("a"))
            await follower.until_watching(times=2)
            server.silent = False
            await server.put(path("b"), actor("b"))
            await follower.until_holds(a="good", b="good")

        assert len(lists(server)) == 1


async def test_a_connection_that_only_looks_alive_is_left_and_what_it_withheld_arrives() -> None:
    """A firewall that forgot the connection sends no FIN; only the silence tells."""
    timing = InformerTiming(silence_s=0.2, watch_s=30.0, backoff=FAST.backoff)
    async with FakeApiServer() as server, CutLink.to(int(server.url.rpartition(":")[2])) as link, following(server, timing, url=link.http_url) as follower:
        await follower.until_watching()
        link.stall()
        await server.put(path("a"), actor("a"))
        while follower.informer.health().failures == 0:
            await asyncio.sleep(0.01)  # a failure is told to nobody
        link.mend()
        await follower.until_holds(a="good")


async def test_a_list_older_than_the_copy_brings_no_deleted_object_back() -> None:
    async with FakeApiServer() as server:
        await server.put(path("a"), actor("a"))
        async with following(server) as follower:
            await follower.until_watching()
            await server.remove(path("a"))
            await follower.until_holds()
            stale = b'{"kind":"List","metadata":{"resourceVersion":"2"},"items":[{"value":"good","metadata":{"namespace":"shop","name":"a","resourceVersion":"2"}}]}'
            server.faults.append(Fault(is_list, 200, times=2, body=stale))
            server.faults.append(Fault(is_watch, 410))
            await server.put(path("b"), actor("b"), silently=True)
            await server.end_watches()
            await follower.until_holds(b="good")

        assert follower.changes == [("added", "a"), ("deleted", "a"), ("added", "b")]
        assert len(lists(server)) == 4


async def test_a_server_that_was_restored_from_a_backup_is_believed_in_the_end() -> None:
    async with FakeApiServer() as server:
        await server.put(path("a"), actor("a"))
        await server.put(path("b"), actor("b"))
        async with following(server) as follower:
            await follower.until_watching()
            await server.remove(path("b"), silently=True)
            server.documents.resource_version = 2
            server.faults.append(Fault(is_watch, 410))
            await server.end_watches()
            await follower.until_holds(a="good")
            await server.until(lambda: server.open_watches == 1)

        assert watches(server)[-1].query["resourceVersion"] == "2"


@pytest.mark.parametrize("line", [b"<html>oops</html>\n", b'{"type":"NEWS","object":{}}\n', b'{"type":"ADDED","object":{"metadata":{"name":"x"}}}\n'])
async def test_bytes_that_no_api_server_sends_lead_to_a_list(line: bytes) -> None:
    async with FakeApiServer() as server, following(server) as follower:
        await follower.until_watching()
        await server.put(path("a"), actor("a"), silently=True)
        await server.send_raw(line)
        await follower.until_holds(a="good")


async def test_an_error_event_that_is_no_410_continues_the_watch_without_a_list() -> None:
    async with FakeApiServer() as server, following(server) as follower:
        await follower.until_watching()
        await server.send_event("ERROR", {"kind": "Status", "code": 500, "message": "etcd has no leader"})
        await server.put(path("a"), actor("a"))
        await follower.until_holds(a="good")

        assert len(lists(server)) == 1


async def test_an_object_that_does_not_parse_stops_no_other() -> None:
    async with FakeApiServer() as server:
        await server.put(path("a"), actor("a", "bad"))
        await server.put(path("b"), actor("b"))
        async with following(server) as follower:
            await follower.until_watching()
            await server.put(path("b"), actor("b", "bad"))
            await server.put(path("c"), actor("c"))
            await follower.until_holds(b="good", c="good")
            assert follower.informer.health().unparsable == 2

            await server.put(path("b"), actor("b", "better"))
            await follower.until_holds(b="better", c="good")
            assert follower.informer.health().unparsable == 1


async def test_an_event_longer_than_any_buffer_is_taken() -> None:
    async with FakeApiServer() as server, following(server) as follower:
        await follower.until_watching()
        await server.put(path("a"), actor("a", "x" * 1_000_000))
        await follower.until_holds(a="x" * 1_000_000)


async def test_an_outage_is_survived_with_the_copy_intact() -> None:
    async with FakeApiServer() as server:
        await server.put(path("a"), actor("a"))
        async with following(server) as follower:
            await follower.until_watching()
            await server.stop()
            assert dict(follower.informer.store) == {ObjectKey("shop", "a"): "good"}
            server.documents.put(path("b"), actor("b"))
            await server.start()
            await follower.until_holds(a="good", b="good")

        assert len(lists(server)) == 1


async def test_every_refusal_of_a_list_is_outlived() -> None:
    async with FakeApiServer() as server:
        await server.put(path("a"), actor("a"))
        server.faults += [Fault(is_list, status) for status in (0, 401, 401, 403, 404, 429, 500, 503)]
        server.faults.append(Fault(is_list, 200, body=b"<html>a proxy</html>"))
        server.faults.append(Fault(is_list, 200, body=b"{}"))
        async with following(server) as follower:
            await follower.until_holds(a="good")


@pytest.mark.parametrize("status", [403, 404])
async def test_a_link_that_is_refused_again_and_again_says_so_until_it_works(status: int) -> None:
    def is_refused(follower: Following) -> bool:
        return follower.informer.health().refused

    async with FakeApiServer() as server:
        server.faults += [*[Fault(is_list, status)] * (REFUSALS_MIN - 1), Fault(is_list, 503), Fault(is_list, status), Fault(is_list, 503), Fault(is_list, 503)]
        refused: list[bool] = []
        async with following(server) as follower:
            follower.informer.on_health = lambda: refused.append(is_refused(follower))
            await follower.until_watching()

        assert refused[: REFUSALS_MIN + 4] == [False] * REFUSALS_MIN + [True] * 3 + [False]


async def test_a_list_is_due_after_some_time_even_when_all_is_well() -> None:
    timing = InformerTiming(relist_s=0.0, silence_s=30.0, watch_s=30.0, backoff=FAST.backoff)
    async with FakeApiServer() as server:
        await server.put(path("a"), actor("a"))
        async with following(server, timing) as follower:
            await follower.until_watching()
            await server.remove(path("a"), silently=True)
            await server.end_watches()
            await follower.until_holds()

        assert follower.changes == [("added", "a"), ("deleted", "a")]


async def test_a_watch_that_always_ends_at_once_is_asked_ever_more_slowly() -> None:
    waits: list[int] = []

    class Noting(Backoff):
        def delay_s(self, failures: int, random: float, *, at_least_s: float = 0.0) -> float:
            waits.append(failures)
            return 0.0

    timing = InformerTiming(backoff=Noting())
    async with FakeApiServer() as server:
        server.faults.append(Fault(is_watch, 200, times=4, body=b""))
        async with following(server, timing) as follower:
            await follower.until_watching(times=5)

    assert waits[:4] == [1, 2, 3, 4]


async def test_watches_that_are_silent_because_nothing_happens_do_not_add_up_to_an_outage() -> None:
    timing = InformerTiming(silence_s=0.02, shortest_watch_s=0.0, backoff=FAST.backoff)
    async with FakeApiServer() as server, following(server, timing) as follower:
        await follower.until_watching(times=4)

        assert follower.informer.health().failures <= 1


async def test_health_tells_a_working_link_from_a_broken_one() -> None:
    async with FakeApiServer() as server, following(server) as follower:
        await follower.until_watching()
        await server.put(path("a"), actor("a"))
        await follower.until_holds(a="good")
        well = follower.informer.health()
        assert well.synced
        assert well.failures == 0
        assert well.healthy_since_s is not None
        assert well.last_contact_s is not None

        server.faults.append(Fault(is_watch, 503, times=1_000_000))
        await server.end_watches("cut")
        await server.until(lambda: len(watches(server)) >= 4)
        ill = follower.informer.health()
        assert ill.synced
        assert ill.failures >= 2
        assert ill.healthy_since_s is None
        assert ill.last_turn_s >= well.last_turn_s

        server.faults.clear()
        await server.put(path("b"), actor("b"))
        await follower.until_holds(a="good", b="good")
        mended = follower.informer.health()
        assert mended.failures == 0
        assert mended.healthy_since_s is not None
        assert mended.healthy_since_s > well.healthy_since_s


async def test_a_consumer_that_fails_ends_the_informer_whatever_it_raises() -> None:
    def fail(change: Change[str]) -> None:
        raise KubeConflict(f"not ready for {change.key.name}")

    async with FakeApiServer() as server, KubeClient(anonymous_connection(server.url)) as client, asyncio.timeout(DEADLINE_S):
        await server.put(path("a"), actor("a"))
        informer = Informer(client, Selection(ACTORS), parse=parse, on_change=fail, timing=FAST)
        with pytest.raises(InternalError, match="actors"):
            await informer.run()
