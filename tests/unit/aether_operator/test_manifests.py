"""What a pool is made of: golden values of what people and the runtime rely on."""

from __future__ import annotations

from aether_api.v1alpha1 import ActorPoolSpec
from aether_kube.documents import JsonObject, object_at, objects_at, text_at, value_at
from aether_kube.store import ObjectKey
from aether_operator.manifests.merge import merge_documents
from aether_operator.manifests.pool import SCRAPE_ANNOTATIONS, PoolIdentity, RuntimeDefaults, build_deployment, build_pool_objects

POOL = PoolIdentity(ObjectKey("shop", "default"), "uid-1")
DEFAULTS = RuntimeDefaults("aether:1", "IfNotPresent", ("registry",), "release-runtime", "nats://nats:4222", 4, 3, True, "INFO")


def deployment(**spec: object) -> JsonObject:
    return build_deployment(POOL, ActorPoolSpec.model_validate(spec), DEFAULTS)


def container(document: JsonObject) -> JsonObject:
    return objects_at(document, "spec", "template", "spec", "containers")[0]


def environment(document: JsonObject) -> dict[str, str]:
    return {text_at(item, "name"): text_at(item, "value") or text_at(item, "valueFrom", "fieldRef", "fieldPath") for item in objects_at(container(document), "env")}


def test_a_pool_is_four_objects_that_go_with_it() -> None:
    objects = build_pool_objects(POOL, ActorPoolSpec(), DEFAULTS)

    assert [item.path for item in objects] == [
        "/api/v1/namespaces/shop/serviceaccounts/aether-runtime",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings/aether-runtime",
        "/apis/apps/v1/namespaces/shop/deployments/aether-default",
        "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/aether-default",
    ]
    assert {text_at(objects_at(item.document, "metadata", "ownerReferences")[0], "uid") for item in objects} == {"uid-1"}


def test_pods_with_a_nats_of_their_own_do_not_batch_for_the_operators() -> None:
    assert environment(deployment(nats={"url": "nats://other:4222"}))["AETHER_SYNC_ALWAYS"] == "false"


def test_a_rollout_adds_a_pod_before_it_takes_one() -> None:
    document = deployment(replicas=3)

    assert value_at(document, "spec", "replicas") == 3
    assert object_at(document, "spec", "strategy") == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_the_runtime_is_told_who_and_where_it_is() -> None:
    assert environment(deployment(actorsPerPod=50)) == {
        "AETHER_POD_NAME": "metadata.name",
        "AETHER_POD_UID": "metadata.uid",
        "AETHER_NAMESPACE": "metadata.namespace",
        "AETHER_SOURCE": "kubernetes",
        "AETHER_POOL": "default",
        "AETHER_NATS_URL": "nats://nats:4222",
        "AETHER_EVENT_PARTITIONS": "4",
        "AETHER_EVENT_REPLICAS": "3",
        "AETHER_SYNC_ALWAYS": "true",
        "AETHER_ACTORS_PER_POD": "50",
        "AETHER_LOG_LEVEL": "INFO",
        "AETHER_STOP_TIMEOUT": "100s",
    }


def test_a_pod_leaves_within_its_grace_whatever_the_template_says_of_it() -> None:
    assert object_at(deployment(), "spec", "template", "spec")["terminationGracePeriodSeconds"] == 120
    leaving = {grace: environment(deployment(podTemplate={"spec": {"terminationGracePeriodSeconds": grace}}))["AETHER_STOP_TIMEOUT"] for grace in (1, 2, 3, 5, 6, 10, 12, 20, 30)}
    assert leaving == {1: "250ms", 2: "500ms", 3: "1s", 5: "3s", 6: "4s", 10: "8s", 12: "10s", 20: "16s", 30: "25s"}, "two seconds are left for the rest where there are that many"
    named = {"spec": {"containers": [{"name": "runtime", "env": [{"name": "AETHER_STOP_TIMEOUT", "value": "5s"}]}]}}
    assert environment(deployment(podTemplate=named))["AETHER_STOP_TIMEOUT"] == "5s"


def test_pods_are_as_restricted_as_kubernetes_knows() -> None:
    document = deployment()
    pod = object_at(document, "spec", "template", "spec")

    assert object_at(pod, "securityContext") == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert object_at(container(document), "securityContext") == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def test_credentials_are_mounted_where_the_runtime_looks() -> None:
    document = deployment(nats={"url": "tls://other:4222", "credentialsSecret": "creds"})

    assert environment(document)["AETHER_NATS_URL"] == "tls://other:4222"
    assert environment(document)["AETHER_NATS_CREDENTIALS"] == "/var/run/secrets/aether/nats/nats.creds"
    assert [text_at(item, "secret", "secretName") for item in objects_at(document, "spec", "template", "spec", "volumes")] == ["", "creds"]


def test_a_pod_template_is_laid_over_ours_by_name() -> None:
    template = {
        "metadata": {"annotations": {"team": "a"}, "labels": {"aether.flowmade.one/pool": "mine"}},
        "spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "runtime", "env": [{"name": "EXTRA", "value": "1"}]}, {"name": "sidecar", "image": "x"}]},
    }
    document = deployment(image="mine:2", podTemplate=template)

    assert text_at(container(document), "image") == "mine:2"
    assert environment(document)["EXTRA"] == "1"
    assert environment(document)["AETHER_POOL"] == "default"
    assert [text_at(item, "name") for item in objects_at(document, "spec", "template", "spec", "containers")] == ["runtime", "sidecar"]
    assert object_at(document, "spec", "template", "metadata", "annotations") == {**dict(SCRAPE_ANNOTATIONS), "team": "a"}
    assert text_at(document, "spec", "template", "metadata", "labels", "aether.flowmade.one/pool") == "default"


def test_merging_removes_what_is_null_and_replaces_lists_without_names() -> None:
    base: JsonObject = {"a": {"b": 1, "c": 2}, "args": ["x"]}

    assert merge_documents(base, {"a": {"b": None, "d": 3}, "args": ["y", "z"]}) == {"a": {"c": 2, "d": 3}, "args": ["y", "z"]}
    assert base == {"a": {"b": 1, "c": 2}, "args": ["x"]}
