"""Calls to the API server: what is sent, and what a caller learns from each failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from aether_api.errors import KubeAlreadyExists, KubeConflict, KubeForbidden, KubeNotFound, KubeUnavailable, LeadershipLost
from aether_kube.client import KubeClient, StreamLimits
from aether_kube.connection import KubeConnection, anonymous_connection
from aether_kube.documents import JsonObject, integer_at, text_at
from aether_kube.kinds import ACTORS, PODS
from tests.fake_apiserver import FakeApiServer, Fault

ALICE = ACTORS.path("shop", "alice")


@asynccontextmanager
async def client_and_server() -> AsyncGenerator[tuple[KubeClient, FakeApiServer], None]:
    async with asyncio.timeout(10.0), FakeApiServer() as server, KubeClient(anonymous_connection(server.url)) as client:
        yield client, server


def alice(**sections: str) -> JsonObject:
    return {**ACTORS.document("shop", "alice"), **sections}


async def test_what_was_created_can_be_read_and_deleted() -> None:
    async with client_and_server() as (client, _):
        await client.create(ACTORS.path("shop"), alice(spec="one"))
        assert text_at(await client.get(ALICE), "spec") == "one"

        await client.delete(ALICE)
        with pytest.raises(KubeNotFound):
            await client.get(ALICE)


async def test_a_second_creation_is_told_from_a_conflict() -> None:
    async with client_and_server() as (client, _):
        await client.create(ACTORS.path("shop"), alice())
        with pytest.raises(KubeAlreadyExists):
            await client.create(ACTORS.path("shop"), alice())


async def test_a_delete_with_a_uid_spares_the_successor() -> None:
    async with client_and_server() as (client, _):
        await client.create(ACTORS.path("shop"), alice())
        with pytest.raises(KubeConflict):
            await client.delete(ALICE, uid="another")
        assert await client.get(ALICE)


async def test_a_replace_of_an_old_version_is_a_conflict() -> None:
    async with client_and_server() as (client, _):
        first = await client.create(ACTORS.path("shop"), alice(spec="one"))
        await client.patch_merge(ALICE, {"spec": "two"})
        with pytest.raises(KubeConflict):
            await client.replace(ALICE, first)


async def test_apply_names_its_manager_and_takes_over() -> None:
    async with client_and_server() as (client, server):
        await client.apply(ALICE, alice(spec="one"), field_manager="aether-operator")

        request = server.requests[-1]
        assert request.method == "PATCH"
        assert request.content_type == "application/apply-patch+yaml"
        assert dict(request.query) == {"fieldManager": "aether-operator", "force": "true"}
        assert text_at(await client.get(ALICE), "spec") == "one"


async def test_a_whole_collection_is_read_page_by_page() -> None:
    async with client_and_server() as (client, server):
        for number in range(1_001):
            server.documents.put(PODS.path("shop", f"p-{number}"), PODS.document("shop", f"p-{number}"))

        pods = await client.list_all(PODS.path(), query={"labelSelector": "a=b"})

        assert len({text_at(pod, "metadata", "name") for pod in pods}) == 1_001
        assert [request.query["labelSelector"] for request in server.requests] == ["a=b"] * 3


async def test_names_are_escaped_on_the_way() -> None:
    async with client_and_server() as (client, server):
        with pytest.raises(KubeNotFound):
            await client.get(PODS.path("shop", "a/b c?d"))
        assert server.requests[-1].raw_path == "/api/v1/namespaces/shop/pods/a%2Fb%20c%3Fd"


async def test_a_call_without_an_answer_ends_at_its_deadline() -> None:
    async with client_and_server() as (client, server):
        server.silent = True
        query = {"watch": "1", "resourceVersion": "1"}
        with pytest.raises(KubeUnavailable, match="no answer in time"):
            await client.request("GET", ACTORS.path(), query=query, timeout_s=0.05)


async def test_a_cut_connection_is_worth_another_try() -> None:
    async with client_and_server() as (client, server):
        server.faults.append(Fault(lambda request: request.method == "PATCH", 0))
        with pytest.raises(KubeUnavailable):
            await client.patch_merge(ALICE, {})


async def test_a_server_that_is_away_is_worth_another_try() -> None:
    async with client_and_server() as (client, server):
        await server.stop()
        with pytest.raises(KubeUnavailable) as caught:
            await client.get(ALICE)
        assert caught.value.retry_after_s > 0


async def test_the_wait_that_the_server_asks_for_is_passed_on() -> None:
    async with client_and_server() as (client, server):
        server.faults.append(Fault(lambda _: True, 429, headers={"Retry-After": "7"}))
        with pytest.raises(KubeUnavailable) as caught:
            await client.get(ALICE)
        assert caught.value.retry_after_s == 7.0


async def test_refused_credentials_are_fetched_anew_once() -> None:
    renewals: list[bool] = []

    async def authorize(renew: bool) -> str:
        renewals.append(renew)
        return f"Bearer token-{len(renewals)}"

    async with asyncio.timeout(10.0), FakeApiServer() as server, KubeClient(KubeConnection(server.url, authorize)) as client:
        server.documents.put(ALICE, alice())
        server.faults.append(Fault(lambda request: request.headers["Authorization"] == "Bearer token-1", 401))
        assert integer_at(await client.get(ALICE), "metadata", "generation") == 0
        assert renewals == [False, True]

        server.faults.append(Fault(lambda _: True, 401, times=2))
        with pytest.raises(KubeForbidden):
            await client.get(ALICE)
        assert renewals == [False, True, False, True]


async def test_a_stream_that_is_refused_says_why() -> None:
    async with client_and_server() as (client, server):
        server.faults.append(Fault(lambda _: True, 403))
        with pytest.raises(KubeForbidden):
            await read_stream(client, StreamLimits(silence_s=1.0, total_s=1.0))


async def test_a_stream_ends_when_it_is_too_old() -> None:
    async with client_and_server() as (client, _):
        with pytest.raises(KubeUnavailable):
            await read_stream(client, StreamLimits(silence_s=5.0, total_s=0.05))


async def read_stream(client: KubeClient, limits: StreamLimits) -> bytes:
    async with client.open_stream(ACTORS.path(), query={"watch": "1", "resourceVersion": "1"}, limits=limits) as pieces:
        return b"".join([piece async for piece in pieces])


async def test_a_write_is_asked_about_once_its_connection_stands_and_a_read_never() -> None:
    def refuse() -> None:
        raise LeadershipLost("over")

    async with client_and_server() as (_, server), KubeClient(anonymous_connection(server.url), before_write=refuse) as guarded:
        await server.put(ALICE, alice())
        assert await guarded.get(ALICE)
        with pytest.raises(LeadershipLost):
            await guarded.patch_merge(ALICE, {"spec": "one"})
        assert [request.method for request in server.requests] == ["GET"]

        await server.stop()
        with pytest.raises(KubeUnavailable):
            await guarded.patch_merge(ALICE, {"spec": "one"})
