"""Pods that a real API server knows and no kubelet runs, each with a token that is bound to it, as the kubelet gives its process."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from aether_api.errors import RetryableError
from aether_api.identity import ActorId, PodUid
from aether_api.messages import Reply
from aether_api.v1alpha1 import ActorPhase
from aether_kube.client import KubeClient
from aether_nats.embedded import EmbeddedServer
from aether_operator.manifests.pool import POOL_LABEL
from aether_runtime.adapters.kubernetes import KubernetesSink, KubernetesSource
from aether_runtime.ports import ActorReport, ActorSource, ReportSink
from aether_runtime.runtime_message import RuntimeMessage
from tests.cluster.cluster import Cluster
from tests.histories.bank import build_command
from tests.histories.cluster import Outside, RunningPod, running_pod

CHART: Final = Path(__file__).parents[2] / "helm" / "aether"
ACCOUNT: Final = "aether-runtime"
"""The service account of a pool's pods, as the operator makes it."""

STANDS_S: Final = 60.0
"""Seconds until a new policy is enforced: about one on an idle API server."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Somebody with a token: `kubeconfig` holds it, and no other credentials.

    Attributes:
        name, uid: of the pod that the token is bound to; empty for whoever is no pod.
    """

    kubeconfig: Path
    name: str
    uid: PodUid


@dataclass(frozen=True)
class Fenced:
    """A namespace behind the chart's fence, which nobody else's namespaces feel, and whoever writes in it."""

    cluster: Cluster
    namespace: str
    release: str
    folder: Path

    @property
    def doomed(self) -> str:
        """Another namespace behind the same fence, for tests that delete it; made by who needs it."""
        return f"{self.namespace}-doomed"

    @cached_property
    def operator(self) -> Writer:
        """The operator's account, with a token that no pod holds."""
        return self._writer("operator", self._token(f"{self.release}-operator"))

    def add_pod(self, name: str, *, ready: bool = False) -> Writer:
        """Add a pod of the default pool that no node can take, but is ready if that is asked for."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {POOL_LABEL: "default"}},
            "spec": {"serviceAccountName": ACCOUNT, "schedulingGates": [{"name": "aether.flowmade.one/never"}], "containers": [{"name": "runtime", "image": "none"}]},
        }
        uid = str(json.loads(self.kubectl("create", "--output=json", "--filename=-", stdin=json.dumps(pod)))["metadata"]["uid"])
        if ready:
            status = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
            self.kubectl("patch", "pod", name, "--subresource=status", "--type=merge", f"--patch={json.dumps(status)}")
        token = self._token(ACCOUNT, "--bound-object-kind=Pod", f"--bound-object-name={name}", f"--bound-object-uid={uid}")
        return self._writer(f"{name}-{uid}", token, pod=name, uid=uid)

    def person(self, *verbs: str) -> Writer:
        """Somebody with these verbs on the statuses of Actors, beside reading them."""
        name = f"person-{secrets.token_hex(3)}"
        self.kubectl("create", "serviceaccount", name)
        self.kubectl("create", "role", name, "--verb=get", "--resource=actors.aether.flowmade.one")
        self.kubectl("create", "role", f"{name}-status", *(f"--verb={verb}" for verb in verbs), "--resource=actors.aether.flowmade.one/status")
        for role in (name, f"{name}-status"):
            self.kubectl("create", "rolebinding", role, f"--role={role}", f"--serviceaccount={self.namespace}:{name}")
        return self._writer(name, self._token(name))

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl as the cluster's administrator."""
        return self.cluster.kubectl("--namespace", self.namespace, *words, stdin=stdin).stdout

    def read(self, name: str) -> Any:
        """Return an Actor."""
        return json.loads(self.kubectl("get", "actor", name, "--output=json"))

    def _token(self, account: str, *words: str) -> str:
        return self.kubectl("create", "token", account, *words).strip()

    def _writer(self, file: str, token: str, *, pod: str = "", uid: str = "") -> Writer:
        config = json.loads(self.cluster.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output=json").stdout)
        config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
        path = self.folder / f"{file}.kubeconfig"
        path.write_text(json.dumps(config))
        return Writer(path, pod, PodUid(uid))


@dataclass
class Overheard:
    """A pod's sink, and what came of each report."""

    sink: ReportSink
    written: list[ActorReport] = field(default_factory=list[ActorReport])
    refused: list[str] = field(default_factory=list[str])

    async def write(self, report: ActorReport) -> int:
        """Write a report."""
        try:
            revision = await self.sink.write(report)
        except RetryableError as exc:
            self.refused.append(str(exc))
            raise
        self.written.append(report)
        return revision

    def say(self, report: ActorReport) -> None:
        """Have the sink tell a first report."""
        self.sink.say(report)

    def forget(self, actor: ActorId) -> None:
        """Have the sink forget an actor."""
        self.sink.forget(actor)

    def shows(self, phase: ActorPhase) -> bool:
        """Whether the last report that was written tells this phase."""
        return bool(self.written) and self.written[-1].phase is phase


@asynccontextmanager
async def calling(writer: Writer) -> AsyncGenerator[KubeClient]:
    """Call the API server with somebody's token."""
    async with await KubeClient.open(str(writer.kubeconfig)) as client:
        yield client


@asynccontextmanager
async def running(
    fenced: Fenced, nats: EmbeddedServer, pod: Writer, *, hear: Callable[[KubernetesSource], ActorSource] = lambda source: source
) -> AsyncGenerator[tuple[RunningPod, Overheard]]:
    """Run a whole runtime in this process, with the credentials of a pod."""
    async with calling(pod) as client:
        source, sink = KubernetesSource(client, fenced.namespace, pod.uid), Overheard(KubernetesSink(client))
        async with running_pod(nats.url, pod.uid, outside=Outside(fenced.namespace, hear(source), sink)) as found:
            yield found, sink


def is_ready(pod: RunningPod, actor: ActorId) -> bool:
    """Whether a pod serves an actor."""
    vm = pod.runtime.get_active_vms().get(actor)
    return vm is not None and vm.is_ready


async def send(pod: RunningPod, command: str, fields: dict[str, object], actor: ActorId) -> Reply:
    """Send a command to an actor by way of a pod."""
    return await pod.runtime.send_message(RuntimeMessage(build_command(command, fields, id=secrets.token_hex(4), time_s=time.time(), actor=actor)))


@contextmanager
def fenced_namespace(cluster: Cluster, folder: Path) -> Iterator[Fenced]:
    """Make a namespace, install the chart's roles and its fence for it alone, and take all of it away again."""
    cluster.apply_types(CHART.parents[1] / "crds")
    namespace = f"fence-{secrets.token_hex(4)}"
    fenced = Fenced(cluster, namespace, f"t{secrets.token_hex(3)}-aether", folder)
    manifest = render(fenced)
    cluster.kubectl("create", "namespace", namespace)
    fenced.kubectl("create", "serviceaccount", ACCOUNT)
    fenced.kubectl("create", "rolebinding", ACCOUNT, f"--clusterrole={fenced.release}-runtime", f"--serviceaccount={namespace}:{ACCOUNT}")
    cluster.kubectl("apply", "--filename=-", stdin=manifest)
    try:
        fenced.kubectl("create", "serviceaccount", f"{fenced.release}-operator")
        _wait_until_it_stands(fenced)
        yield fenced
    finally:
        cluster.kubectl("delete", "--filename=-", stdin=manifest)
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def _wait_until_it_stands(fenced: Fenced) -> None:
    """Try what the fence forbids until it does: the API server takes a new policy up a moment later."""
    probe = {"apiVersion": "aether.flowmade.one/v1alpha1", "kind": "Actor", "metadata": {"name": "probe"}, "spec": {"model": "account"}}
    fenced.kubectl("create", "--filename=-", stdin=json.dumps(probe))
    fenced.kubectl("create", "role", "probe", "--verb=get,patch", "--resource=actors.aether.flowmade.one,actors.aether.flowmade.one/status")
    fenced.kubectl("create", "rolebinding", "probe", "--role=probe", f"--serviceaccount={fenced.namespace}:probe")
    words = ("patch", "actor", "probe", "--subresource=status", "--type=merge", "--patch={}", f"--as=system:serviceaccount:{fenced.namespace}:probe")
    deadline = time.monotonic() + STANDS_S
    while "ValidatingAdmissionPolicy" not in fenced.cluster.kubectl("--namespace", fenced.namespace, *words, check=False).stderr:
        assert time.monotonic() < deadline, "the API server does not enforce the policy"
        time.sleep(0.1)


def render(fenced: Fenced) -> str:
    """Return the chart's roles, and its fence for the namespaces of this test."""
    version = json.loads(fenced.cluster.kubectl("version", "--output=json").stdout)["serverVersion"]["gitVersion"]
    words = ("template", fenced.release, str(CHART), f"--namespace={fenced.namespace}", f"--kube-version={version}", "--set=pool.enabled=false")
    roles = fenced.cluster.helm(*words, "--show-only=templates/rbac.yaml").stdout
    fence = fenced.cluster.helm(*words, "--show-only=templates/fencing.yaml", f"--set=watchNamespaces={{{fenced.namespace},{fenced.doomed}}}").stdout
    return f"{roles}\n---\n{fence}"
