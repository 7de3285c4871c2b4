"""The API server takes what the charts render, and their roles allow what the operator and the pods do, and no more."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.cluster

CHARTS: Final = Path(__file__).parents[2] / "helm"
VARIANTS: Final[dict[str, tuple[str, ...]]] = {
    "default": (),
    "production": ("--values", str(CHARTS / "aether" / "values-production.yaml"), "--set=nats.nodePort=30499"),
    "external NATS": ("--set=nats.url=tls://nats.example:4222,nats.credentialsSecret=credentials",),
    "everything set": (
        "--set=commonLabels.team=bank,imagePullSecrets={a},nats.persistence=emptyDir,operator.podLabels.a=b,nats.podAnnotations.a=b",
        "--set=operator.nodeSelector.disk=ssd,nats.priorityClassName=system-cluster-critical,serviceAccount.annotations.a=b",
    ),
}


def render(cluster: Cluster, namespace: str, release: str, *words: str) -> str:
    return render_or_refuse(cluster, namespace, release, *words, check=True).stdout


def render_or_refuse(cluster: Cluster, namespace: str, release: str, *words: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    version = json.loads(cluster.kubectl("version", "--output=json").stdout)["serverVersion"]["gitVersion"]
    # Without the pool: its type need not be known to this cluster.
    return cluster.helm("template", release, str(CHARTS / "aether"), f"--namespace={namespace}", f"--kube-version={version}", "--set=pool.enabled=false", *words, check=check)


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace in which only pods of the restricted profile may run."""
    name = f"charts-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_the_api_server_takes_every_object_without_a_warning(cluster: Cluster, namespace: str, words: tuple[str, ...]) -> None:
    manifest = render(cluster, namespace, f"t{secrets.token_hex(3)}", *words)

    result = cluster.kubectl("create", f"--namespace={namespace}", "--dry-run=server", "--validate=strict", "--filename=-", stdin=manifest, check=False)

    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_the_crd_chart_is_taken_as_it_is(cluster: Cluster) -> None:
    manifest = cluster.helm("template", "aether-crds", str(CHARTS / "aether-crds"), "--kube-version=1.36.0").stdout

    result = cluster.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--filename=-", stdin=manifest, check=False)

    assert result.returncode == 0, result.stderr
    assert result.stdout.count("customresourcedefinition") == 3


@dataclass(frozen=True, slots=True)
class Account:
    """A service account whose rights are looked at by standing in for it."""

    cluster: Cluster
    namespace: str
    name: str

    def may(self, verb: str, resource: str, *, namespace: str = "", subresource: str = "") -> bool:
        words = [verb, resource, f"--namespace={namespace or self.namespace}", *([f"--subresource={subresource}"] if subresource else [])]
        return self._run("auth", "can-i", *words) == 0

    def may_create(self, document: dict[str, object]) -> bool:
        return self._run("create", "--dry-run=server", f"--namespace={self.namespace}", "--filename=-", stdin=json.dumps(document)) == 0

    def _run(self, *words: str, stdin: str | None = None) -> int:
        return self.cluster.kubectl(f"--as=system:serviceaccount:{self.namespace}:{self.name}", *words, stdin=stdin, check=False).returncode


@pytest.fixture(scope="module", params=[False, True], ids=["all namespaces", "named namespaces"])
def operator(cluster: Cluster, namespace: str, request: pytest.FixtureRequest) -> Iterator[Account]:
    """The operator's account with its roles, for all namespaces or for its own only."""
    release = f"t{secrets.token_hex(3)}-aether"
    words = [f"--set=watchNamespaces={{{namespace}}}"] if request.param else []
    manifest = render(cluster, namespace, release, "--show-only=templates/rbac.yaml", *words)
    cluster.apply_types(CHARTS.parent / "crds")  # rights on a kind need the kind
    cluster.kubectl("apply", "--filename=-", stdin=manifest)
    yield Account(cluster, namespace, f"{release}-operator")
    cluster.kubectl("delete", "--filename=-", stdin=manifest)


def binding_of(role: str) -> dict[str, object]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "aether-runtime"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "aether-runtime", "namespace": "default"}],
    }


def test_the_operator_may_do_its_work(operator: Account) -> None:
    for resource in ("actors", "actormodels", "actorpools"):
        assert operator.may("watch", f"{resource}.aether.flowmade.one")
        assert operator.may("patch", f"{resource}.aether.flowmade.one", subresource="status")
    assert operator.may("place", "actors.aether.flowmade.one", subresource="status")
    assert operator.may("watch", "pods")
    assert operator.may("patch", "pods")
    assert operator.may("watch", "replicasets.apps")
    assert operator.may("patch", "deployments.apps")
    assert operator.may("create", "events.events.k8s.io")
    assert operator.may("create", "leases.coordination.k8s.io")
    assert operator.may("patch", f"leases.coordination.k8s.io/{operator.name}")


def test_the_operator_may_not_do_more(operator: Account) -> None:
    for verb, resource in (
        ("get", "secrets"),
        ("create", "pods"),
        ("delete", "pods"),
        ("create", "clusterroles"),
        ("delete", "namespaces"),
        ("create", "actors.aether.flowmade.one"),
    ):
        assert not operator.may(verb, resource), f"{verb} {resource}"


def test_the_operator_hands_out_the_runtimes_role_and_no_other(operator: Account) -> None:
    release = operator.name.removesuffix("-operator")

    assert operator.may_create(binding_of(f"{release}-runtime"))
    assert not operator.may_create(binding_of("system:aggregate-to-edit"))
    assert not operator.may_create(binding_of("cluster-admin"))


def test_an_operator_of_named_namespaces_is_blind_elsewhere(operator: Account, request: pytest.FixtureRequest) -> None:
    narrowed = bool(request.node.callspec.params["operator"])

    assert operator.may("watch", "actors.aether.flowmade.one", namespace="default") != narrowed
    assert operator.may("list", "namespaces") != narrowed


def test_a_second_release_may_not_look_after_the_same_namespaces(operator: Account) -> None:
    words = ("--dry-run=server", f"--set=watchNamespaces={{{operator.namespace}}}")

    other = render_or_refuse(operator.cluster, operator.namespace, f"t{secrets.token_hex(3)}", *words)
    same = render_or_refuse(operator.cluster, operator.namespace, operator.name.removesuffix("-operator"), *words)

    assert "already looks after" in other.stderr
    assert operator.name in other.stderr
    assert same.returncode == 0, same.stderr
