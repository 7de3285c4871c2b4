"""The stage of the benches of the operator: a real API server, a real nats-server, the operator, and pods without nodes.

The API server runs bare (tests/cluster/control_plane.py), so no container runtime is needed and ten thousand actors fit on two cores.
Programs that are not there make a bench `holds: null`, as a missing peer does; `make bench-peers` builds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import yaml

from aether_api.errors import KubeNotFound
from aether_kube.client import KubeClient
from aether_kube.documents import JsonObject, integer_at, object_at, objects_at, text_at
from aether_kube.informer import Informer, Selection
from aether_kube.kinds import ACTOR_MODELS, ACTOR_POOLS, ACTORS, ResourceKind
from aether_kube.store import Change, ObjectKey
from aether_nats.embedded import EmbeddedServer
from bench.at_once import background, run_at_once
from bench.errors import BenchFailed, PeerMissing
from bench.processes import PROJECT, start_python
from bench.scale import Scale
from bench.sides import MANIFESTS
from tests.cluster.control_plane import ControlPlane, Programs, find_programs, start_control_plane
from tests.cluster.folders import find_folders
from tests.cluster.pins import KUBERNETES
from tests.cluster.processes import ask
from tests.cluster.tools import find_helm

NAMESPACE: Final = "bench"
SYSTEM: Final = "aether-system"
POOL: Final = "default"
RELEASE: Final = "aether"
ROLE: Final = f"{RELEASE}-runtime"

OPERATORS: Final = ("operator-0", "operator-1")
"""Users of the operator's processes: the audit tells them apart."""

AT_ONCE: Final = 32
"""Calls of a client under way: two cores of an API server are busy with as many."""

NAMESPACES: Final = ResourceKind("", "v1", "namespaces", "Namespace", namespaced=False)
CRDS: Final = ResourceKind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)

CHART: Final = PROJECT / "helm" / "aether"
GUARDS: Final = ("templates/rbac.yaml", "templates/fencing.yaml")
"""What of the chart stands around the operator: rights, and the fence in front of statuses."""

WAIT_S: Final = 120.0
"""Seconds for what takes seconds."""

FOUND_AGAIN_S: Final = 0.1
"""Seconds between tries while something is not there yet: it takes one or two."""


@dataclass(frozen=True, slots=True)
class SeenActor:
    """What the benches look at in an Actor."""

    ready: bool
    pod: str
    pod_uid: str
    epoch: int
    version: int


NOWHERE: Final = SeenActor(False, "", "", 0, 0)


class ActorWatch:
    """The Actors of a namespace as a user sees them, live."""

    def __init__(self, client: KubeClient, namespace: str = NAMESPACE) -> None:
        self._namespace = namespace
        self._moved = asyncio.Event()
        self._informer = Informer(client, Selection(ACTORS, namespace), parse=_see, on_change=self._on_change)
        self.ready = self.placed = 0

    @property
    def actors(self) -> dict[str, SeenActor]:
        """Return all of them by name, as they are now."""
        return {key.name: seen for key, seen in self._informer.store.items()}

    def get(self, name: str) -> SeenActor:
        """Return one of them; one that is not there is nowhere."""
        return self._informer.store.get(ObjectKey(self._namespace, name), NOWHERE)

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._informer.run()

    async def wait(self, condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
        """Wait until something is so.

        Raises:
            BenchFailed: it is not in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError as exc:
            raise BenchFailed(f"{what}: not within {timeout_s:g} s ({self.ready} of {len(self._informer.store)} actors are ready)") from exc

    def _on_change(self, change: Change[SeenActor]) -> None:
        for seen, step in ((change.old, -1), (change.new, 1)):
            if seen is not None:
                self.ready += step * seen.ready
                self.placed += step * bool(seen.pod)
        self._moved.set()


@dataclass(frozen=True, slots=True)
class Stage:
    """A cluster without nodes.

    Attributes:
        client: of an administrator.
    """

    plane: ControlPlane
    nats: EmbeddedServer
    client: KubeClient
    scale: Scale

    @asynccontextmanager
    async def start_operator(self, name: str = OPERATORS[0], environment: Mapping[str, str] | None = None) -> AsyncGenerator[asyncio.subprocess.Process, None]:
        """Run one process of the operator as its image does, for the namespace of the bench."""
        settings = {
            "KUBECONFIG": str(self.plane.kubeconfig(name)),
            "AETHER_NATS_URL": self.nats.url,
            "AETHER_NAMESPACE": SYSTEM,
            "AETHER_WATCH_NAMESPACES": NAMESPACE,
            "AETHER_HEALTH_PORT": "0",
            "AETHER_LOG_LEVEL": "ERROR",
            "AETHER_RUNTIME_CLUSTER_ROLE": ROLE,
        }
        module = ("-m", "aether_operator") if self.scale.profile is None else ("-m", "bench.profiled_operator", str(self.scale.profile / f"{name}.prof"))
        async with start_python(*module, environment={**settings, **(environment or {})}) as process:
            yield process

    @asynccontextmanager
    async def watch_actors(self) -> AsyncGenerator[ActorWatch, None]:
        """Watch the Actors of the bench for the length of a `with` block."""
        watch = ActorWatch(self.client)
        async with background(watch.run(), name="watch of actors"):
            yield watch

    async def create_actors(self, names: Iterable[str], namespace: str = NAMESPACE) -> None:
        """Create Actors as one client does that has some calls under way."""
        await run_at_once([partial(self._create_actor, namespace, name) for name in names], AT_ONCE)

    async def _create_actor(self, namespace: str, name: str) -> None:
        await self.client.create(ACTORS.path(namespace), {**ACTORS.document(namespace, name), "spec": {"model": "account"}})


@asynccontextmanager
async def start_stage(scale: Scale, *, audit: bool = False) -> AsyncGenerator[Stage, None]:
    """Set up a cluster with the account model and one pool; no operator and no pods yet.

    Raises:
        PeerMissing: etcd and kube-apiserver were never built here.
    """
    programs, helm = find_kube()
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(start_control_plane(programs, users=OPERATORS, audit=audit))
        nats = await stack.enter_async_context(EmbeddedServer.start())
        client = await stack.enter_async_context(await KubeClient.open(str(plane.kubeconfig())))
        await _furnish(client)
        await asyncio.to_thread(_guard, plane, helm)
        yield Stage(plane, nats, client, scale)


def find_kube() -> tuple[Programs, Path]:
    """Return the programs of the control plane, and helm.

    Raises:
        PeerMissing: they were never built here.
    """
    folders = find_folders()
    programs, helm = find_programs(folders), find_helm(folders)
    if programs is None or helm is None:
        missing = "etcd and kube-apiserver" if programs is None else "helm"
        raise PeerMissing(f"there is no {missing}; `make bench-peers` builds it with Go, in about ten minutes the first time")
    return programs, helm


async def make_namespace(client: KubeClient, name: str) -> None:
    """Make a namespace."""
    await client.create(NAMESPACES.path(), NAMESPACES.document(None, name))


async def _furnish(client: KubeClient) -> None:
    for path in sorted((PROJECT / "crds").glob("*_*.yaml")):
        await client.create(CRDS.path(), yaml.safe_load(path.read_text()))
    for namespace in (SYSTEM, NAMESPACE):
        await make_namespace(client, namespace)
    model: JsonObject = next(yaml.safe_load_all((MANIFESTS / "account.yaml").read_text()))
    pool: JsonObject = {**ACTOR_POOLS.document(NAMESPACE, POOL), "spec": {"replicas": 0, "actorsPerPod": 100_000}}
    for kind, document in ((ACTOR_MODELS, model), (ACTOR_POOLS, pool)):  # of types that are new: the API server answers 404 until it serves them
        await once_found(partial(client.create, kind.path(NAMESPACE), document), what=kind.plural)


def _guard(plane: ControlPlane, helm: Path) -> None:
    """Apply the chart's rights and its fence, for the namespace of the bench alone."""
    values = [f"--set=watchNamespaces={{{NAMESPACE}}}", "--set=pool.enabled=false", *(f"--show-only={template}" for template in GUARDS)]
    manifest = ask(helm, "template", RELEASE, CHART, f"--namespace={SYSTEM}", f"--kube-version={KUBERNETES}", *values)
    plane.kubectl("create", "--filename=-", stdin=manifest)


async def once_found(call: Callable[[], Awaitable[JsonObject]], *, what: str) -> JsonObject:
    """Repeat a call of the API server while it answers 404.

    Raises:
        BenchFailed: `what` is not there in time.
    """
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    return await call()
                except KubeNotFound:
                    await asyncio.sleep(FOUND_AGAIN_S)
    except TimeoutError as exc:
        raise BenchFailed(f"{what}: not there within {WAIT_S:g} s") from exc


def _see(document: JsonObject) -> SeenActor:
    placement = object_at(document, "status", "placement")
    ready = any(item.get("type") == "Ready" and item.get("status") == "True" for item in objects_at(document, "status", "conditions"))
    return SeenActor(ready, text_at(placement, "pod"), text_at(placement, "podUID"), integer_at(placement, "epoch"), integer_at(document, "status", "version"))
