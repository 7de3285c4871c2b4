"""Paths of the Kubernetes API."""

from __future__ import annotations

import pytest

from aether_api.errors import InvalidName
from aether_kube.kinds import ACTORS, NODES, PODS, ROLE_BINDINGS


def test_paths_are_those_of_the_api() -> None:
    assert ACTORS.path() == "/apis/aether.flowmade.one/v1alpha1/actors"
    assert ACTORS.path("shop") == "/apis/aether.flowmade.one/v1alpha1/namespaces/shop/actors"
    assert ACTORS.path("shop", "alice", "status") == "/apis/aether.flowmade.one/v1alpha1/namespaces/shop/actors/alice/status"
    assert PODS.path("shop", "p-1") == "/api/v1/namespaces/shop/pods/p-1"
    assert NODES.path(None, "n-1") == "/api/v1/nodes/n-1"


def test_no_name_reaches_another_path() -> None:
    assert PODS.path("shop", "../secrets?x=/y") == "/api/v1/namespaces/shop/pods/..%2Fsecrets%3Fx%3D%2Fy"
    with pytest.raises(InvalidName):
        PODS.path("..", "p-1")
    with pytest.raises(InvalidName):
        PODS.path("shop", "..")


def test_a_name_needs_its_namespace() -> None:
    with pytest.raises(InvalidName, match="Pod p-1"):
        PODS.path(None, "p-1")


def test_a_new_document_has_the_head_that_apply_needs() -> None:
    assert ROLE_BINDINGS.document("shop", "runtime") == {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "runtime", "namespace": "shop"},
    }
