"""Kubernetes Events: posted once, counted afterwards, never in the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from aether_kube.client import KubeClient
from aether_kube.connection import anonymous_connection
from aether_kube.documents import integer_at, object_at, text_at
from aether_kube.kinds import ACTORS, KUBE_EVENTS
from aether_kube.kube_events import (
    KNOWN_MAX,
    NOTE_BYTES_MAX,
    QUEUE_MAX,
    REPEAT_POST_S,
    WINDOW_S,
    Aggregator,
    Involved,
    KubeEvent,
    KubeEventRecorder,
    Post,
    Reporter,
    event_document,
)
from tests.fake_apiserver import FakeApiServer, Fault

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
REPORTER = Reporter("aether.flowmade.one/operator", "operator-0")
FAST_PER_S = 100_000.0


def scheduled(uid: str = "u-1", message: str = "placed on pod p-1") -> KubeEvent:
    return KubeEvent(Involved(ACTORS, "shop", "alice", uid), "Scheduled", message, "Place")


def observe(aggregator: Aggregator, event: KubeEvent, at_s: float) -> Post | None:
    return aggregator.observe(event, now=NOW + timedelta(seconds=at_s), now_s=at_s)


@asynccontextmanager
async def recording(server: FakeApiServer, monotonic_s: list[float]) -> AsyncGenerator[KubeEventRecorder, None]:
    async with asyncio.timeout(10.0), KubeClient(anonymous_connection(server.url)) as client, asyncio.TaskGroup() as group:
        recorder = KubeEventRecorder(client, REPORTER, posts_per_s=FAST_PER_S, monotonic=lambda: monotonic_s[0])
        task = group.create_task(recorder.run(), name="events")
        try:
            yield recorder
        finally:
            task.cancel()


async def test_a_new_event_is_posted_and_a_repeat_is_only_counted() -> None:
    aggregator = Aggregator()
    first = observe(aggregator, scheduled(), 0.0)

    assert first is not None
    assert first.count == 1
    assert observe(aggregator, scheduled(), 1.0) is None


async def test_the_count_is_posted_under_the_first_name_when_it_is_due() -> None:
    aggregator = Aggregator()
    first = observe(aggregator, scheduled(), 0.0)
    observe(aggregator, scheduled(), 1.0)
    later = observe(aggregator, scheduled(), REPEAT_POST_S)

    assert first is not None
    assert later is not None
    assert (later.name, later.count, later.last_seen) == (first.name, 3, NOW + timedelta(seconds=REPEAT_POST_S))
    assert observe(aggregator, scheduled(), REPEAT_POST_S + 1.0) is None


async def test_after_a_quiet_window_an_event_is_new_again() -> None:
    aggregator = Aggregator()
    first = observe(aggregator, scheduled(), 0.0)
    again = observe(aggregator, scheduled(), WINDOW_S + 1.0)

    assert first is not None
    assert again is not None
    assert again.count == 1
    assert again.name != first.name


async def test_events_of_other_objects_reasons_or_messages_are_others() -> None:
    aggregator = Aggregator()
    posts = [observe(aggregator, event, 0.0) for event in (scheduled(), scheduled("u-2"), scheduled(message="placed on pod p-2"))]

    assert len({post.name for post in posts if post is not None}) == 3


async def test_memory_is_bounded_and_forgets_what_was_quiet_longest() -> None:
    aggregator = Aggregator()
    for number in range(KNOWN_MAX):
        observe(aggregator, scheduled(f"u-{number}"), 0.0)
    observe(aggregator, scheduled("u-0"), 1.0)
    observe(aggregator, scheduled("one more"), 1.0)

    assert observe(aggregator, scheduled("u-0"), 2.0) is None
    assert observe(aggregator, scheduled("u-1"), 2.0) is not None


async def test_an_event_is_written_as_the_api_wants_it() -> None:
    post = observe(Aggregator(), scheduled(message="ü" * 2_000), 0.0)
    assert post is not None
    document = event_document(post, REPORTER)

    assert document["eventTime"] == "2026-05-01T12:00:00.000000Z"
    assert document["regarding"] == {"apiVersion": "aether.flowmade.one/v1alpha1", "kind": "Actor", "namespace": "shop", "name": "alice", "uid": "u-1"}
    assert len(text_at(document, "note").encode()) <= NOTE_BYTES_MAX
    assert text_at(document, "note").endswith("...")
    assert text_at(document, "metadata", "name").startswith("alice.")


async def test_recorded_events_reach_the_server_with_their_counts() -> None:
    clock_s = [0.0]
    async with FakeApiServer() as server, recording(server, clock_s) as recorder:
        recorder.record(scheduled())
        recorder.record(scheduled())
        clock_s[0] = REPEAT_POST_S
        recorder.record(scheduled())
        await recorder.flush()

        (stored,) = server.documents.under(KUBE_EVENTS.path("shop")).values()
        assert text_at(stored, "reason") == "Scheduled"
        assert text_at(stored, "reportingController") == "aether.flowmade.one/operator"
        assert integer_at(object_at(stored, "series"), "count") == 3
        assert recorder.dropped == 0


async def test_an_event_that_may_not_be_posted_is_dropped_and_the_next_one_is_posted() -> None:
    async with FakeApiServer() as server, recording(server, [0.0]) as recorder:
        server.faults.append(Fault(lambda _: True, 403))
        recorder.record(scheduled("u-1"))
        recorder.record(scheduled("u-2"))
        await recorder.flush()

        assert len(server.documents.under(KUBE_EVENTS.path("shop"))) == 1
        assert recorder.dropped == 1


async def test_an_event_that_was_dropped_is_posted_when_it_repeats() -> None:
    async with FakeApiServer() as server, recording(server, [0.0]) as recorder:
        server.faults.append(Fault(lambda _: True, 403))
        recorder.record(scheduled())
        await recorder.flush()
        recorder.record(scheduled())
        await recorder.flush()

        assert len(server.documents.under(KUBE_EVENTS.path("shop"))) == 1


async def test_an_event_that_somebody_deleted_is_posted_anew_after_its_count_found_nothing() -> None:
    clock_s = [0.0]
    async with FakeApiServer() as server, recording(server, clock_s) as recorder:
        recorder.record(scheduled())
        await recorder.flush()
        for path in [*server.documents.under(KUBE_EVENTS.path("shop"))]:
            await server.remove(path)
        for clock_s[0] in (REPEAT_POST_S, REPEAT_POST_S + 1.0):
            recorder.record(scheduled())
            await recorder.flush()

        assert len(server.documents.under(KUBE_EVENTS.path("shop"))) == 1


async def test_an_event_whose_count_could_not_be_written_stays_known() -> None:
    clock_s = [0.0]
    async with FakeApiServer() as server, recording(server, clock_s) as recorder:
        recorder.record(scheduled())
        await recorder.flush()
        server.faults.append(Fault(lambda _: True, 403))
        for clock_s[0] in (REPEAT_POST_S, 2 * REPEAT_POST_S):
            recorder.record(scheduled())
            await recorder.flush()

        (stored,) = server.documents.under(KUBE_EVENTS.path("shop")).values()
        assert integer_at(object_at(stored, "series"), "count") == 3


async def test_an_event_for_which_there_was_no_room_is_new_again_when_it_repeats() -> None:
    async with FakeApiServer() as server, KubeClient(anonymous_connection(server.url)) as client:
        recorder = KubeEventRecorder(client, REPORTER)
        for number in [*range(QUEUE_MAX + 1), QUEUE_MAX, 0]:
            recorder.record(scheduled(f"u-{number}"))

        assert recorder.dropped == 2  # the last one waits, and is only counted


async def test_more_events_than_fit_are_dropped_without_waiting() -> None:
    async with FakeApiServer() as server, KubeClient(anonymous_connection(server.url)) as client:
        recorder = KubeEventRecorder(client, REPORTER)
        for number in range(QUEUE_MAX + 5):
            recorder.record(scheduled(f"u-{number}"))

        assert recorder.dropped == 5
