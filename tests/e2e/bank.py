"""The bank on a cluster: installs Aether with helm, applies actors, reads what kubectl shows and what JetStream holds."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aether_api.envelope import Event, StoredCommit
from aether_api.identity import ActorId, parse_actor_id
from aether_api.v1alpha1.meta import GROUP
from aether_nats.connection import NatsConnection
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.settings import NatsSettings
from aether_nats.streams import read_layout
from tests.cluster.cluster import Cluster
from tests.cluster.image import ensure_image
from tests.cluster.lifecycle import load_image
from tests.histories.invariants import events_of, read_history

PROJECT: Final = Path(__file__).parents[2]
EXAMPLES: Final = PROJECT / "examples" / "bank"

POOL: Final = "actorpool/default"
"""What the chart makes."""

NODE_PORT: Final = 30422
"""Where NATS answers on every node, for clients outside the cluster."""

INSTALL_S: Final = 240
"""Seconds for helm to see everything ready: images are loaded already, NATS and the operator start in a few."""

READY_S: Final = 90
"""Seconds for actors to become ready: a pod may have to start first."""

CROWD_S: Final = 300.0
"""Seconds for kubectl to create a thousand actors, of which it sends at most 50 a second."""

CROWD_LABEL: Final = "crowd"

SETTLED_S: Final = 3.0
"""Seconds without a change after which none is expected: rebalancing moves several actors a second."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor is, as its status says."""

    pod_uid: str
    epoch: int
    ready: bool
    version: int


@dataclass(frozen=True, slots=True)
class Bank:
    """One installation in a namespace of its own."""

    cluster: Cluster
    namespace: str

    @property
    def nats_url(self) -> str:
        """NATS as a client outside the cluster's pods reaches it."""
        return f"nats://{self.cluster.node_addresses()[0]}:{NODE_PORT}"

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = 120.0) -> str:
        """Run kubectl in the namespace and return what it printed, errors included when `check` is off."""
        result = self.cluster.kubectl("--namespace", self.namespace, *arguments, stdin=stdin, check=check, timeout_s=timeout_s)
        return result.stdout if check else result.stdout + result.stderr

    def read(self, *arguments: str) -> dict[str, Any]:
        """Return an object or a list as kubectl prints it in JSON."""
        document: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return document

    def apply(self, *documents: dict[str, Any]) -> None:
        """Apply documents."""
        self.kubectl("apply", "--filename=-", stdin=_build_list(documents))

    def apply_accounts(self, names: Iterable[str], **spec: Any) -> None:
        """Apply one Actor of the model `account` for each name."""
        self.apply(*(build_actor(name, **spec) for name in names))

    def create_crowd(self, crowd: str, names: Iterable[str]) -> None:
        """Create many accounts with one label, which have to be new."""
        documents = [build_actor(name) for name in names]
        for document in documents:
            document["metadata"]["labels"] = {CROWD_LABEL: crowd}
        self.kubectl("create", "--filename=-", stdin=_build_list(documents), timeout_s=CROWD_S)

    def delete_crowd(self, crowd: str) -> None:
        """Delete the accounts of one crowd in one call: kubectl itself would send, and ration, one for each."""
        self.kubectl("delete", "--raw", f"/apis/{GROUP}/v1alpha1/namespaces/{self.namespace}/actors?labelSelector={CROWD_LABEL}%3D{crowd}", timeout_s=CROWD_S)

    def wait_ready(self, names: Iterable[str]) -> None:
        """Wait until kubectl says that the actors are ready."""
        self.kubectl("wait", "--for=condition=Ready", f"--timeout={READY_S}s", *(f"actor/{name}" for name in names), timeout_s=READY_S + 30)

    def actor(self, name: str) -> ActorId:
        """Return the full name of an account."""
        return parse_actor_id(self.namespace, "account", name)

    def pods(self) -> list[dict[str, Any]]:
        """Return the pool's pods that are not about to end."""
        found: list[dict[str, Any]] = self.read("pods", "--selector=aether.flowmade.one/pool=default")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[NatsConnection]:
        """Connect to NATS from outside the cluster's pods."""
        connection = await NatsConnection.open(NatsSettings((self.nats_url,), "aether e2e"))
        try:
            yield connection
        finally:
            await connection.close()

    async def read_commits(self, connection: NatsConnection, name: str) -> list[StoredCommit]:
        """Return all commits of an account from the log."""
        layout = await read_layout(connection, self.namespace)
        assert layout is not None, "no stream of the namespace exists"
        return await read_history(Journal(JetStream(connection), layout.partitions), self.actor(name))

    async def read_events(self, connection: NatsConnection, name: str) -> list[Event]:
        """Return all events of an account from the log."""
        return events_of(await self.read_commits(connection, name))

    def read_places(self, names: Collection[str]) -> dict[str, Place]:
        """Return where the status of each actor says that it is."""
        wanted = set(names)
        actors = [actor for actor in self.read("actors")["items"] if actor["metadata"]["name"] in wanted]
        return {actor["metadata"]["name"]: _read_place(actor) for actor in actors}

    def wait_settled(self, names: Collection[str], *, timeout_s: float = READY_S) -> dict[str, Place]:
        """Wait until all pods are there, all these actors ready and shared out evenly, and none has moved for a while; return where they are.

        A pod that was taken for dead a few times is given its share later, so what is uneven is not at rest.
        """
        replicas = self.read("actorpool", "default")["spec"]["replicas"]
        deadline, since_s, seen = time.monotonic() + timeout_s, time.monotonic(), self.read_places(names)
        while time.monotonic() - since_s < SETTLED_S:
            assert time.monotonic() < deadline, f"actors and pods still change after {timeout_s:g} s: {[name for name, place in seen.items() if not place.ready]}"
            time.sleep(0.5)
            places, pods = self.read_places(names), self.pods()
            is_whole = sum(map(is_ready, pods)) == replicas and len(places) == len(names) and all(place.ready for place in places.values())
            if places != seen or not is_whole or not is_even(places, {pod["metadata"]["uid"] for pod in pods}):
                since_s, seen = time.monotonic(), places
        return seen


def is_even(places: Mapping[str, Place], pods: Set[str]) -> bool:
    """Tell whether every one of the pods (UIDs), and nobody else, has its share of the actors, within a tenth of it and one actor."""
    counts, share = Counter(place.pod_uid for place in places.values()), len(places) / len(pods)
    return not places or (set(counts) == pods and all(abs(count - share) <= share / 10 + 1 for count in counts.values()))


def install_bank(cluster: Cluster, namespace: str, *, say: Callable[[str], None] = lambda text: None) -> Bank:
    """Build and load the image, install both charts, and wait until everything is ready. Safe to repeat."""
    image = load_image(cluster, ensure_image())
    repository, _, tag = image.rpartition(":")
    say("helm install aether-crds and aether")
    cluster.helm("upgrade", "--install", "aether-crds", str(PROJECT / "helm" / "aether-crds"), "--namespace", namespace, "--create-namespace", "--take-ownership")
    values = {"image.repository": repository, "image.tag": tag, "image.pullPolicy": "IfNotPresent", "nats.persistence": "emptyDir", "nats.nodePort": str(NODE_PORT)}
    settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    deadline = ("--wait", "--timeout", f"{INSTALL_S}s")
    cluster.helm("upgrade", "--install", "aether", str(PROJECT / "helm" / "aether"), "--namespace", namespace, *settings, *deadline, timeout_s=INSTALL_S + 30)
    bank = Bank(cluster, namespace)
    # helm waits for the operator, and the operator makes the pool's pods.
    bank.kubectl("wait", "--for=condition=Ready", f"--timeout={READY_S}s", POOL, timeout_s=READY_S + 30)
    return bank


def uninstall_bank(bank: Bank) -> None:
    """Remove the release and the namespace, if they are there."""
    if not bank.cluster.kubectl("get", "namespace", bank.namespace, "--ignore-not-found").stdout:
        return
    bank.kubectl("delete", "actors,actormodels,actorpools", "--all", "--timeout=60s", check=False)
    bank.cluster.helm("uninstall", "aether", "--namespace", bank.namespace, "--wait", check=False)
    bank.cluster.kubectl("delete", "namespace", bank.namespace, "--timeout=120s", check=False, timeout_s=150)


def build_actor(name: str, **spec: Any) -> dict[str, Any]:
    """Return the document of an account."""
    return {"apiVersion": "aether.flowmade.one/v1alpha1", "kind": "Actor", "metadata": {"name": name}, "spec": {"model": "account", **spec}}


def is_ready(document: dict[str, Any]) -> bool:
    """Tell whether the condition Ready of an object is true."""
    conditions = document.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def wait_until(what: str | Callable[[], str], is_so: Callable[[], bool], *, timeout_s: float = READY_S) -> None:
    """Ask again and again until something is so; asserts that it becomes so, and says what, or what it is instead."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}"
        time.sleep(0.5)


def _build_list(documents: Iterable[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})


def _read_place(actor: dict[str, Any]) -> Place:
    status = actor.get("status", {})
    placement = status.get("placement", {})
    return Place(placement.get("podUID", ""), placement.get("epoch", 0), is_ready(actor), status.get("version", 0))
