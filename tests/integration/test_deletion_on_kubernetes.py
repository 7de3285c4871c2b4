"""What becomes of actors that are deleted, applied again and restored, by the real operator and real runtimes on a real API server."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pytest

from aether_api.identity import ActorId, parse_actor_id
from aether_kube.connection import open_connection
from aether_nats.embedded import EmbeddedServer
from aether_operator.handlers.candidate import Candidate
from aether_operator.planning.snapshot import FINALIZER
from aether_operator.settings import OperatorSettings
from tests.cluster.cluster import Cluster
from tests.histories.bank import FOLDER
from tests.histories.bound_pods import Fenced, fenced_namespace, is_ready, running, send
from tests.histories.cluster import RunningPod, connected, open_journal

pytestmark = pytest.mark.cluster

WAIT_S: Final = 40.0
"""Seconds after which a test that waits has failed: a lease is taken, pods are watched, on a busy machine."""

NOT_READY: Final = {"type": "Ready", "status": "False", "reason": "Nonsense", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}

POOL: Final = {"apiVersion": "aether.flowmade.one/v1alpha1", "kind": "ActorPool", "metadata": {"name": "default"}, "spec": {"replicas": 0}}


@pytest.fixture(scope="module")
def fenced(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fenced]:
    with fenced_namespace(cluster, tmp_path_factory.mktemp("kubeconfigs")) as found:
        found.kubectl("apply", f"--filename={FOLDER / '10-account-model.yaml'}")
        found.kubectl("apply", "--filename=-", stdin=json.dumps(POOL))
        yield found


@dataclass
class Stage:
    """A namespace with an operator that can be stopped, and a runtime that serves."""

    fenced: Fenced
    nats: EmbeddedServer
    pod: RunningPod
    tasks: asyncio.TaskGroup
    operator: asyncio.Task[None] | None = None

    def start_operator(self) -> None:
        self.operator = self.tasks.create_task(self._run_operator(), name="operator")

    async def stop_operator(self) -> None:
        assert self.operator is not None
        self.operator.cancel()
        await asyncio.wait({self.operator})

    async def _run_operator(self) -> None:
        settings = OperatorSettings(
            namespace=self.fenced.namespace,
            lease_name=f"{self.fenced.release}-operator",
            watch_namespaces=(self.fenced.namespace, self.fenced.doomed),
            runtime_cluster_role=f"{self.fenced.release}-runtime",
            lease_retry_s=0.3,
        )
        async with connected(self.nats.url, "operator") as connection:
            await Candidate(settings, await open_connection(str(self.fenced.operator.kubeconfig)), connection).run()

    async def apply(self, name: str, **spec: object) -> ActorId:
        await self.kubectl("apply", "--filename=-", stdin=json.dumps(build_actor(name, spec)))
        return parse_actor_id(self.fenced.namespace, "account", name)

    async def open(self, actor: ActorId, deposits: int = 1) -> None:
        await self.until(lambda: is_ready(self.pod, actor))
        assert (await send(self.pod, "Open", {"owner": "ada"}, actor)).outcome == "accepted"
        for _ in range(deposits):
            assert (await send(self.pod, "Deposit", {"amount": 1}, actor)).outcome == "accepted"

    async def delete_without_nats(self, name: str) -> Any:
        """Make an actor that is to be purged, delete it while NATS is away, and return it once it says that it waits."""
        await self.open(await self.apply(name, deletionPolicy="Purge"))
        await self.until_reads(name, lambda found: is_serving(found, 2) and holds_it(found))
        await self.nats.stop()
        await self.kubectl("delete", "actor", name, "--wait=false")
        return await self.until_reads(name, lambda found: "not yet done" in told(found, "Scheduled"))

    async def kubectl(self, *words: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.fenced.kubectl, *words, stdin=stdin)

    async def read(self, name: str) -> Any:
        """Return an Actor, or nothing if it is gone."""
        text = await self.kubectl("get", "actor", name, "--ignore-not-found", "--output=json")
        return json.loads(text) if text else {}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.05)

    async def until_reads(self, name: str, condition: Callable[[Any], bool]) -> Any:
        async with asyncio.timeout(WAIT_S):
            while not condition(found := await self.read(name)):
                await asyncio.sleep(0.2)
        return found


def build_actor(name: str, spec: dict[str, object]) -> dict[str, object]:
    return {"apiVersion": "aether.flowmade.one/v1alpha1", "kind": "Actor", "metadata": {"name": name}, "spec": {"model": "account", **spec}}


def unique() -> str:
    return f"a-{secrets.token_hex(4)}"


def is_serving(actor: Any, version: int) -> bool:
    status = actor.get("status", {})
    return bool(status.get("phase") == "Ready" and status.get("version") == version and status.get("reportedEpoch") == status["placement"]["epoch"])


def holds_it(actor: Any) -> bool:
    return FINALIZER in actor.get("metadata", {}).get("finalizers", [])


def told(actor: Any, type_: str) -> str:
    conditions = actor.get("status", {}).get("conditions", [])
    return next((f"{item['reason']}: {item['message']}" for item in conditions if item["type"] == type_), "")


@asynccontextmanager
async def staged(fenced: Fenced, nats: EmbeddedServer) -> AsyncGenerator[Stage]:
    pod = await asyncio.to_thread(fenced.add_pod, f"pod-{secrets.token_hex(3)}", ready=True)
    async with running(fenced, nats, pod) as (served, _), asyncio.TaskGroup() as tasks:
        stage = Stage(fenced, nats, served, tasks)
        stage.start_operator()
        try:
            yield stage
        finally:
            await stage.stop_operator()
            await asyncio.to_thread(fenced.kubectl, "delete", "actors", "--all", "--wait=false")
            await asyncio.to_thread(fenced.kubectl, "delete", "pod", pod.name, "--grace-period=0", "--force")


async def test_an_actor_that_retains_its_events_is_deleted_without_the_operator_and_goes_on_when_it_is_applied_again(fenced: Fenced, nats_server: EmbeddedServer) -> None:
    async with staged(fenced, nats_server) as stage:
        actor = await stage.apply(name := unique())
        await stage.open(actor)
        before = await stage.until_reads(name, lambda found: is_serving(found, 2))
        assert not before["metadata"].get("finalizers")

        await stage.stop_operator()
        await stage.kubectl("delete", "actor", name, "--timeout=20s")
        await stage.apply(name)
        stage.start_operator()

        after = await stage.until_reads(name, lambda found: is_serving(found, 2))
        assert after["status"]["placement"]["epoch"] > before["status"]["placement"]["epoch"]
        assert (await send(stage.pod, "Deposit", {"amount": 1}, actor)).version == 3


async def test_an_actor_that_purges_leaves_a_tombstone_only_and_begins_anew(fenced: Fenced, nats_server: EmbeddedServer) -> None:
    async with staged(fenced, nats_server) as stage:
        actor = await stage.apply(name := unique(), deletionPolicy="Purge", snapshot={"every": 1})
        await stage.open(actor)
        await stage.until_reads(name, lambda found: is_serving(found, 2) and holds_it(found))

        await stage.kubectl("delete", "actor", name, f"--timeout={WAIT_S:g}s")

        async with connected(nats_server.url) as connection:
            journal = await open_journal(connection, fenced.namespace)
            head = await journal.read_head(actor)
        assert head is not None
        assert (head.tombstone, head.n) == (True, 0)
        await stage.apply(name)
        assert not holds_it(await stage.until_reads(name, lambda found: is_serving(found, 0)))
        await stage.open(actor, deposits=0)


async def test_the_finalizer_comes_and_goes_with_the_policy(fenced: Fenced, nats_server: EmbeddedServer) -> None:
    async with staged(fenced, nats_server) as stage:
        await stage.apply(name := unique())
        assert not holds_it(await stage.until_reads(name, lambda found: is_serving(found, 0)))

        await stage.apply(name, deletionPolicy="Purge")
        await stage.until_reads(name, holds_it)
        await stage.apply(name, deletionPolicy="Retain")
        await stage.until_reads(name, lambda found: not holds_it(found))


async def test_a_purge_that_cannot_go_on_says_what_it_waits_for_and_goes_on_by_itself(fenced: Fenced, nats_server: EmbeddedServer) -> None:
    async with staged(fenced, nats_server) as stage:
        stuck = await stage.delete_without_nats(name := unique())

        assert told(stuck, "Scheduled").startswith("Deleting: its events are being purged, as spec.deletionPolicy says; not yet done, it is tried again: ")
        assert "NATS" in told(stuck, "Scheduled")
        assert told(stuck, "Scheduled").endswith("; to keep them and let the resource go, set spec.deletionPolicy to Retain")
        await nats_server.run()
        await stage.until_reads(name, lambda found: not found)


async def test_a_purge_that_waits_is_given_up_by_its_policy_and_the_events_stay(fenced: Fenced, nats_server: EmbeddedServer) -> None:
    async with staged(fenced, nats_server) as stage:
        await stage.delete_without_nats(name := unique())

        await stage.kubectl("patch", "actor", name, "--type=merge", '--patch={"spec": {"deletionPolicy": "Retain"}}')
        await stage.until_reads(name, lambda found: not found)

        await nats_server.run()
        await stage.apply(name)
        await stage.until_reads(name, lambda found: is_serving(found, 2))


async def test_a_namespace_goes_with_its_actors_while_the_operator_is_down_unless_one_is_to_be_purged(fenced: Fenced, nats_server: EmbeddedServer) -> None:
    async with staged(fenced, nats_server) as stage:
        await stage.stop_operator()
        await asyncio.to_thread(fenced.cluster.kubectl, "create", "namespace", fenced.doomed)
        await asyncio.to_thread(fenced.cluster.kubectl, "apply", f"--namespace={fenced.doomed}", "--filename=-", stdin=json.dumps(build_actor("alice", {})))

        await asyncio.to_thread(fenced.cluster.kubectl, "delete", "namespace", fenced.doomed, "--timeout=60s")

        await asyncio.to_thread(fenced.cluster.kubectl, "create", "namespace", fenced.doomed)
        await asyncio.to_thread(fenced.cluster.kubectl, "apply", f"--namespace={fenced.doomed}", "--filename=-", stdin=json.dumps(build_actor("bob", {"deletionPolicy": "Purge"})))
        stage.start_operator()
        async with asyncio.timeout(WAIT_S):
            while FINALIZER not in await stage.kubectl("get", "actor", "bob", f"--namespace={fenced.doomed}", "--output=yaml"):
                await asyncio.sleep(0.2)
        await nats_server.stop()
        await asyncio.to_thread(fenced.cluster.kubectl, "delete", "namespace", fenced.doomed, "--wait=false")
        async with asyncio.timeout(WAIT_S):
            while "not yet done" not in (text := await stage.kubectl("get", "actor", "bob", f"--namespace={fenced.doomed}", "--output=yaml")):
                await asyncio.sleep(0.2)
        assert "NATS" in text
        await nats_server.run()
        await asyncio.to_thread(fenced.cluster.kubectl, "wait", "--for=delete", f"namespace/{fenced.doomed}", "--timeout=60s")


@pytest.mark.parametrize("words", [("apply",), ("replace", "--force")], ids=["deleted and applied", "replaced by force"])
async def test_an_actor_restored_from_a_backup_goes_on_at_its_version(fenced: Fenced, nats_server: EmbeddedServer, words: tuple[str, ...]) -> None:
    async with staged(fenced, nats_server) as stage:
        actor = await stage.apply(name := unique())
        await stage.open(actor)
        before = await stage.until_reads(name, lambda found: is_serving(found, 2))
        backup = await stage.kubectl("get", "actor", name, "--output=yaml")
        assert (await send(stage.pod, "Deposit", {"amount": 1}, actor)).version == 3
        if words == ("apply",):
            await stage.kubectl("delete", "actor", name)

        await stage.kubectl(*words, "--filename=-", stdin=backup)

        after = await stage.until_reads(name, lambda found: is_serving(found, 3))
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert after["status"]["placement"]["epoch"] > before["status"]["placement"]["epoch"]
        assert (await send(stage.pod, "Deposit", {"amount": 1}, actor)).version == 4


@pytest.mark.parametrize(
    "damage",
    [
        [{"op": "remove", "path": "/status/conditions"}],
        [{"op": "replace", "path": "/status/conditions", "value": [NOT_READY]}],
        [{"op": "remove", "path": "/status/phase"}, {"op": "remove", "path": "/status/version"}, {"op": "remove", "path": "/status/reportedEpoch"}],
        [{"op": "replace", "path": "/status/placement", "value": {"pod": "nobody", "podUID": "none", "epoch": 4_102_444_800_000}}],
        [{"op": "replace", "path": "/status", "value": {"placement": {"pod": "", "podUID": "", "epoch": 4_102_444_800_000}}}],
    ],
    ids=["no conditions", "other conditions", "no report", "a pod that does not exist", "nothing but a higher epoch"],
)
async def test_a_status_that_an_administrator_damages_heals(fenced: Fenced, nats_server: EmbeddedServer, damage: list[dict[str, object]]) -> None:
    async with staged(fenced, nats_server) as stage:
        actor = await stage.apply(name := unique())
        await stage.open(actor)
        before = await stage.until_reads(name, lambda found: is_serving(found, 2))

        await stage.kubectl("patch", "actor", name, "--subresource=status", "--type=json", f"--patch={json.dumps(damage)}")

        after = await stage.until_reads(name, lambda found: is_serving(found, 2) and told(found, "Scheduled").startswith("Scheduled") and told(found, "Ready").startswith("Ready"))
        assert after["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]
        assert after["status"]["placement"]["podUID"] == before["status"]["placement"]["podUID"]
        assert (await send(stage.pod, "Deposit", {"amount": 1}, actor)).version == 3


async def test_an_old_status_is_not_put_back(fenced: Fenced, nats_server: EmbeddedServer) -> None:
    async with staged(fenced, nats_server) as stage:
        actor = await stage.apply(name := unique())
        await stage.open(actor)
        old = await stage.until_reads(name, lambda found: is_serving(found, 2))
        await stage.apply(name, suspend=True)
        await stage.until_reads(name, lambda found: found["status"]["phase"] == "Suspended")
        del old["metadata"]["resourceVersion"]

        words = ("replace", "--subresource=status", f"--namespace={fenced.namespace}", "--filename=-")
        refused = await asyncio.to_thread(partial(fenced.cluster.kubectl, *words, stdin=json.dumps(old), check=False))

        assert "status.placement.epoch never goes back: read the actor again and raise the epoch" in refused.stderr
        assert (await stage.read(name))["status"]["phase"] == "Suspended"
