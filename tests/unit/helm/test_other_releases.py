"""Releases of the chart beside each other: those that would look after the same namespaces are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.helm.api import NAMESPACE, RBAC, render, serving


def role(name: str, namespace: str = "", *, release: str = "bank", home: str | None = "bank-system", component: str = "operator") -> dict[str, Any]:
    """Return a role as the chart makes it; without a home it was not helm that applied it."""
    labels = {"app.kubernetes.io/part-of": "aether", "app.kubernetes.io/component": component, "app.kubernetes.io/instance": release}
    metadata: dict[str, Any] = {"name": name, "labels": labels, "annotations": {"meta.helm.sh/release-namespace": home} if home else {}}
    return {"apiVersion": RBAC, "kind": "Role" if namespace else "ClusterRole", "metadata": {**metadata, "namespace": namespace} if namespace else metadata}


def explain_refusal(roles: list[dict[str, Any]], *values: str, release: str = "aether") -> str:
    """Return why an installation in a cluster with these roles is refused, or nothing if it is not."""
    found: dict[str, Any] = {}
    for path, namespace in {"clusterroles": "", "roles": None, "namespaces/shop/roles": "shop", "namespaces/bank/roles": "bank"}.items():
        items = [item for item in roles if item["metadata"].get("namespace", "") == namespace or (namespace is None and item["kind"] == "Role")]
        kind = "ClusterRoleList" if path == "clusterroles" else "RoleList"
        found[f"/apis/{RBAC}/{path}"] = {"apiVersion": RBAC, "kind": kind, "metadata": {}, "items": items}
    with serving(found) as url:
        result = render(url, ["--set=pool.enabled=false", *(f"--set={value}" for value in values)], release=release)
    return result.stderr


SHOP = "watchNamespaces={shop}"


@pytest.mark.parametrize(
    ("there", "values", "where", "leftover"),
    [
        (role("bank-aether-operator"), (), "all namespaces", "ClusterRole bank-aether-operator"),
        (role("bank-aether-operator"), (SHOP,), "all namespaces", "ClusterRole bank-aether-operator"),
        (role("bank-aether-operator", "shop"), (SHOP,), "namespace shop", "Role bank-aether-operator"),
        (role("bank-aether-operator", "shop"), (SHOP, "fencing.enabled=false"), "namespace shop", "Role bank-aether-operator"),
        (role("bank-aether-operator", "bank"), (), "namespace bank", "Role bank-aether-operator"),
        (role("other-operator", release="aether"), (), "all namespaces", "ClusterRole other-operator"),
    ],
)
def test_a_release_whose_namespaces_another_looks_after_is_refused(there: dict[str, Any], values: tuple[str, ...], where: str, leftover: str) -> None:
    told = explain_refusal([there], *values)
    release = there["metadata"]["labels"]["app.kubernetes.io/instance"]
    assert f"The operator of release {release} in namespace bank-system already looks after {where}, and two would undo each other's work." in told
    assert f"if it is gone, delete its leftover {leftover}." in told


@pytest.mark.parametrize(
    ("there", "values"),
    [
        (role("aether-operator", release="aether", home=NAMESPACE), ()),
        (role("aether-operator", release="aether", home=None), ()),
        (role("aether-operator", "shop", release="aether", home=NAMESPACE), (SHOP,)),
        (role("bank-aether-operator", "bank"), (SHOP,)),
        (role("bank-aether-operator-lease", "shop"), (SHOP,)),
        (role("bank-aether-runtime", component="runtime"), ()),
        (role("bank-aether-operator"), ("rbac.create=false",)),
        (role("bank-aether-operator"), (SHOP, "fencing.enabled=false")),
        ({"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": "somebody-operator"}}, ()),
    ],
)
def test_its_own_roles_those_of_other_namespaces_and_those_that_it_may_not_list_hinder_nobody(there: dict[str, Any], values: tuple[str, ...]) -> None:
    assert explain_refusal([there], *values) == ""
