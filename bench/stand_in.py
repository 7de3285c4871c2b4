"""Stands in for what runs pods: Deployment controller, scheduler and kubelet of one pool, with runtimes as processes of this machine.

A pod is made as Kubernetes would make it from the template that the operator wrote: an object with its labels, bound to a node that
nobody looks for, environment from the template, a token that is bound to the pod; it becomes Ready when its probe says so. When its
process ends, the object is deleted, as late as a kubelet would have shown the death. Nothing is replaced: a bench says how many pods
there are.

Prior art: kwok, which plays kubelets without processes.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp

from aether_kube.documents import JsonObject, object_at, objects_at, text_at
from aether_kube.kinds import DEPLOYMENTS, PODS, SERVICE_ACCOUNTS
from bench.errors import BenchFailed
from bench.kube_stage import NAMESPACE, POOL, WAIT_S, Stage, once_found
from bench.processes import start_python
from tests.cluster.processes import find_free_ports

NODE: Final = "stand-in"
REVISION: Final = "bench"
"""The hash of the one pod template."""

NOTICED_S: Final = 1.3
"""Seconds from the death of a process to the change of its Pod [1.1 to 1.5 on kind]: the operator must not hear of it sooner here than there."""

TOKEN_S: Final = 86_400
"""Seconds that a token is valid."""

LOOK_S: Final = 0.05
"""Seconds between looks at what another process makes; it tells us nothing by itself."""


@dataclass(frozen=True, slots=True)
class LocalPod:
    """A pod and its process."""

    name: str
    uid: str
    process: asyncio.subprocess.Process

    def kill(self) -> None:
        """End the process without warning."""
        self.process.send_signal(signal.SIGKILL)


class StandIn:
    """The pods of the pool."""

    def __init__(self, stage: Stage, stack: AsyncExitStack) -> None:
        self._stage = stage
        self._stack = stack
        self._started: asyncio.Queue[LocalPod] = asyncio.Queue()
        self.pods: list[LocalPod] = []

    async def run(self) -> None:
        """Delete the pods whose process ended, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                pod = await self._started.get()
                tasks.create_task(self._bury(pod), name=f"burial of pod {pod.name}")

    async def add_pods(self, count: int) -> None:
        """Start pods from the operator's template, and wait until they are Ready."""
        template = await self._read_template()
        async with asyncio.TaskGroup() as starts:
            for number in range(len(self.pods), len(self.pods) + count):
                starts.create_task(self._add(f"{POOL}-{number}", template), name=f"start of pod {number}")

    async def _read_template(self) -> JsonObject:
        """Return the pod template of the pool's Deployment, once the operator has made it: the account and its rights come before."""
        path = DEPLOYMENTS.path(NAMESPACE, f"aether-{POOL}")
        return object_at(await once_found(lambda: self._stage.client.get(path), what="the operator's Deployment"), "spec", "template")

    async def _add(self, name: str, template: JsonObject) -> None:
        client, [port] = self._stage.client, find_free_ports(1)
        made = await client.create(PODS.path(NAMESPACE), build_pod(name, template))
        uid = text_at(made, "metadata", "uid")
        token = await self._request_token(name, uid, account=text_at(made, "spec", "serviceAccountName"))
        environment = {
            **read_environment(made),
            "AETHER_HTTP_PORT": str(port),
            "KUBECONFIG": str(self._stage.plane.write_kubeconfig(name, token)),
        }
        process = await self._stack.enter_async_context(start_python("-m", "aether_runtime", environment=environment))
        pod = LocalPod(name, uid, process)
        await self._wait_probe(pod, port)
        await client.patch_merge(PODS.path(NAMESPACE, name, "status"), build_pod_status())
        self.pods.append(pod)
        self._started.put_nowait(pod)

    async def _request_token(self, name: str, uid: str, *, account: str) -> str:
        bound: JsonObject = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}
        request: JsonObject = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": TOKEN_S, "boundObjectRef": bound}}
        return text_at(await self._stage.client.create(SERVICE_ACCOUNTS.path(NAMESPACE, account, "token"), request), "status", "token")

    async def _wait_probe(self, pod: LocalPod, port: int) -> None:
        """Wait until the process says at its probe that it takes commands."""
        async with asyncio.timeout(WAIT_S), aiohttp.ClientSession() as session:
            while pod.process.returncode is None:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass  # it does not listen yet
                await asyncio.sleep(LOOK_S)
        raise BenchFailed(f"the runtime of pod {pod.name} ended with code {pod.process.returncode}")

    async def _bury(self, pod: LocalPod) -> None:
        await pod.process.wait()
        await asyncio.sleep(NOTICED_S)
        await self._stage.client.delete(PODS.path(NAMESPACE, pod.name), uid=pod.uid, grace_period_s=0)


@asynccontextmanager
async def start_stand_in(stage: Stage) -> AsyncGenerator[StandIn, None]:
    """Play the nodes for the length of a `with` block; at its end the processes are killed, since nobody looks at the pods any more."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        stand_in = StandIn(stage, stack)
        burials = tasks.create_task(stand_in.run(), name="stand-in")
        try:
            yield stand_in
        finally:
            burials.cancel()
            for pod in stand_in.pods:
                if pod.process.returncode is None:
                    pod.kill()


def build_pod(name: str, template: JsonObject) -> JsonObject:
    """Return the Pod of a template, as a ReplicaSet makes it and a scheduler binds it."""
    metadata = object_at(template, "metadata")
    labels: JsonObject = {**object_at(metadata, "labels"), "pod-template-hash": REVISION}
    document = PODS.document(NAMESPACE, name)
    document["metadata"] = {**object_at(document, "metadata"), "labels": labels}
    document["spec"] = {**object_at(template, "spec"), "nodeName": NODE}
    return document


def build_pod_status() -> JsonObject:
    """Return the change by which a kubelet says that a pod is Ready."""
    return {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}


def read_environment(pod: JsonObject) -> dict[str, str]:
    """Return what the pod's container is told, with the fields that it names filled in."""
    container = objects_at(pod, "spec", "containers")[0]
    found: dict[str, str] = {}
    for item in objects_at(container, "env"):
        path = text_at(item, "valueFrom", "fieldRef", "fieldPath")
        found[text_at(item, "name")] = text_at(pod, *path.split(".")) if path else text_at(item, "value")
    return found
