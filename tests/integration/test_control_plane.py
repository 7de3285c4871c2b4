"""A bare control plane is a real API server: it knows its users, checks rights, and binds tokens to pods."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from aether_api.errors import KubeForbidden
from aether_kube.client import KubeClient
from aether_kube.documents import JsonObject, text_at, value_at
from aether_kube.kinds import LEASES, PODS, SERVICE_ACCOUNTS
from tests.cluster.control_plane import ControlPlane, Programs, ensure_programs, start_control_plane
from tests.cluster.folders import find_folders
from tests.cluster.lifecycle import is_required

SELF_REVIEWS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


@pytest.fixture(scope="session")
def programs() -> Programs:
    """Find the programs of a control plane; they are built where nothing may be skipped."""
    found = ensure_programs(find_folders(), required=is_required(os.environ))
    if found is None:
        pytest.skip("etcd and kube-apiserver were not built; `make bench-peers` does it")
    return found


@pytest.fixture
async def plane(programs: Programs) -> AsyncIterator[ControlPlane]:
    """Run a control plane for one test."""
    async with start_control_plane(programs, users=("alice",), audit=True) as plane:
        yield plane


async def test_a_user_of_the_control_plane_is_known_by_name_and_shows_in_the_audit(plane: ControlPlane) -> None:
    async with await KubeClient.open(str(plane.kubeconfig("alice"))) as client:
        review = await client.create(SELF_REVIEWS, {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})

    assert text_at(review, "status", "userInfo", "username") == "alice"
    assert '"username":"alice"' in plane.audit_log.read_text()


async def test_a_token_is_bound_to_its_pod_and_gives_no_more_rights_than_its_account_has(plane: ControlPlane) -> None:
    async with await KubeClient.open(str(plane.kubeconfig())) as admin:
        await admin.create(SERVICE_ACCOUNTS.path("default"), SERVICE_ACCOUNTS.document("default", "runtime"))
        pod: JsonObject = {**PODS.document("default", "p"), "spec": {"serviceAccountName": "runtime", "nodeName": "nowhere", "containers": [{"name": "c", "image": "i"}]}}
        uid = text_at(await admin.create(PODS.path("default"), pod), "metadata", "uid")
        wanted = {"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid}}}
        answer = await admin.create(SERVICE_ACCOUNTS.path("default", "runtime", "token"), {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", **wanted})

    async with await KubeClient.open(str(plane.write_kubeconfig("pod", text_at(answer, "status", "token")))) as client:
        review = await client.create(SELF_REVIEWS, {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
        with pytest.raises(KubeForbidden):
            await client.get(LEASES.path("kube-system"))

    assert value_at(review, "status", "userInfo", "extra", "authentication.kubernetes.io/pod-uid") == [uid]
