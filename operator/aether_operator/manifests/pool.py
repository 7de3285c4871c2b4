"""Builds the Kubernetes objects of an ActorPool.

- A *Deployment*, not a StatefulSet: a replacement starts at once, and actors have no disks. One pod more, never one less,
  during a rollout (`maxSurge` 1, `maxUnavailable` 0), so that an actor moves once.
- A *PodDisruptionBudget* of one, so that a drain of nodes takes pods one by one.
- A *ServiceAccount* and a *RoleBinding* for all pools of a namespace: pods read actors and models there and write statuses.

All are owned by the pool, so its deletion takes them along. What the pods are told comes by environment, see the runtime's
settings. The security context is Kubernetes' `restricted` profile. A user's `podTemplate` is laid over it all, last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aether_api.v1alpha1 import API_VERSION, ActorPoolSpec
from aether_api.v1alpha1.meta import GROUP
from aether_kube.documents import JsonObject, JsonValue, object_at
from aether_kube.kinds import DEPLOYMENTS, POD_DISRUPTION_BUDGETS, ROLE_BINDINGS, SERVICE_ACCOUNTS, ResourceKind
from aether_kube.store import ObjectKey
from aether_operator.manifests.merge import merge_documents

POOL_LABEL: Final = f"{GROUP}/pool"
CONTAINER: Final = "runtime"
SERVICE_ACCOUNT: Final = "aether-runtime"

PROBE_PORT: Final = 8080
"""TCP port of the runtime's probes; its own default."""

USER_ID: Final = 65532
"""The image's user, by number so that Kubernetes can tell that it is not root; the `nonroot` of distroless images."""

SCRAPE_ANNOTATIONS: Final[tuple[tuple[str, JsonValue], ...]] = (("prometheus.io/scrape", "true"), ("prometheus.io/port", str(PROBE_PORT)), ("prometheus.io/path", "/metrics"))
"""What a Prometheus without operator looks for; a PodMonitor names the port `probes`."""

GRACE_S: Final = 120
"""Seconds from SIGTERM to SIGKILL: 10,000 actors snapshot and leave in less, and a drain does not hang for ever."""

GRACE_RESERVE: Final = 6
"""One in so many seconds of the grace is kept for what the process does besides leaving: hearing of it, closing its connections."""

GRACE_RESERVE_S: Final = 2.0
"""Seconds that are kept at least: a process whose NATS is frozen took 1.1 s for that, most of it for a scrape under way (measured)."""

GRACE_SHARE_MIN: Final = 0.25
"""Share of a grace of one or two seconds that is for leaving all the same: commands under way are answered in less."""

CREDENTIALS_FOLDER: Final = "/var/run/secrets/aether/nats"
CREDENTIALS_FILE: Final = "nats.creds"


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """Which ActorPool: its resource."""

    key: ObjectKey
    uid: str


@dataclass(frozen=True, slots=True)
class RuntimeDefaults:
    """What pods get that their pool does not say."""

    image: str
    image_pull_policy: str
    image_pull_secrets: tuple[str, ...]
    cluster_role: str
    nats_url: str
    event_partitions: int
    event_replicas: int
    sync_always: bool
    log_level: str


@dataclass(frozen=True, slots=True)
class PoolObject:
    """One object to keep: where it lives and what it holds.

    Attributes:
        shared: other pools of the namespace use it too, so each adds itself as one of its owners.
    """

    kind: ResourceKind
    document: JsonObject
    shared: bool = False

    @property
    def path(self) -> str:
        """The object's path in the API."""
        metadata = object_at(self.document, "metadata")
        return self.kind.path(str(metadata["namespace"]), str(metadata["name"]))


def build_pool_objects(pool: PoolIdentity, spec: ActorPoolSpec, defaults: RuntimeDefaults) -> tuple[PoolObject, ...]:
    """Return everything that the pool is made of, in the order in which it is needed."""
    return (
        PoolObject(SERVICE_ACCOUNTS, build_service_account(pool), shared=True),
        PoolObject(ROLE_BINDINGS, build_role_binding(pool, defaults.cluster_role), shared=True),
        PoolObject(DEPLOYMENTS, build_deployment(pool, spec, defaults)),
        PoolObject(POD_DISRUPTION_BUDGETS, build_disruption_budget(pool)),
    )


def deployment_name(pool: str) -> str:
    """Return the name of a pool's Deployment."""
    return f"aether-{pool}"


def selector_labels(pool: str) -> JsonObject:
    """Return the labels by which a pool's pods are found."""
    return {"app.kubernetes.io/name": "aether-runtime", POOL_LABEL: pool}


def selector_text(pool: str) -> str:
    """Return the same as text, as kubectl and the scale subresource take it."""
    return ",".join(f"{name}={value}" for name, value in selector_labels(pool).items())


def build_deployment(pool: PoolIdentity, spec: ActorPoolSpec, defaults: RuntimeDefaults) -> JsonObject:
    """Return the Deployment of the pool's pods."""
    document = _head(DEPLOYMENTS, pool, deployment_name(pool.key.name))
    document["spec"] = {
        "replicas": spec.replicas,
        "selector": {"matchLabels": selector_labels(pool.key.name)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": merge_documents(_pod_template(pool, spec, defaults), spec.pod_template),
    }
    # The labels by which pods are found are ours whatever a template says: a Deployment that misses its pods makes them for ever.
    template = object_at(document, "spec", "template")
    template["metadata"] = merge_documents(object_at(template, "metadata"), {"labels": selector_labels(pool.key.name)})
    return document


def build_disruption_budget(pool: PoolIdentity) -> JsonObject:
    """Return the PodDisruptionBudget of the pool's pods."""
    document = _head(POD_DISRUPTION_BUDGETS, pool, deployment_name(pool.key.name))
    document["spec"] = {"maxUnavailable": 1, "selector": {"matchLabels": selector_labels(pool.key.name)}}
    return document


def build_service_account(pool: PoolIdentity) -> JsonObject:
    """Return the account of all runtime pods of the namespace."""
    return _head(SERVICE_ACCOUNTS, pool, SERVICE_ACCOUNT, shared=True)


def build_role_binding(pool: PoolIdentity, cluster_role: str) -> JsonObject:
    """Return what lets the account do its work, in this namespace only."""
    document = _head(ROLE_BINDINGS, pool, SERVICE_ACCOUNT, shared=True)
    document["roleRef"] = {"apiGroup": ROLE_BINDINGS.group, "kind": "ClusterRole", "name": cluster_role}
    document["subjects"] = [{"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": pool.key.namespace}]
    return document


def _head(kind: ResourceKind, pool: PoolIdentity, name: str, *, shared: bool = False) -> JsonObject:
    document = kind.document(pool.key.namespace, name)
    labels: JsonObject = {"app.kubernetes.io/name": "aether-runtime", "app.kubernetes.io/managed-by": "aether-operator"}
    owner: JsonObject = {"apiVersion": API_VERSION, "kind": "ActorPool", "name": pool.key.name, "uid": pool.uid}
    if not shared:
        labels[POOL_LABEL] = pool.key.name
        owner["controller"] = True
    document["metadata"] = {**object_at(document, "metadata"), "labels": labels, "ownerReferences": [owner]}
    return document


def _pod_template(pool: PoolIdentity, spec: ActorPoolSpec, defaults: RuntimeDefaults) -> JsonObject:
    volumes: list[JsonValue] = [{"name": "tmp", "emptyDir": {}}]
    if spec.nats.credentials_secret:
        volumes.append({"name": "nats-credentials", "secret": {"secretName": spec.nats.credentials_secret, "defaultMode": 0o440}})
    pod: JsonObject = {
        "serviceAccountName": SERVICE_ACCOUNT,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector_labels(pool.key.name)},
                "matchLabelKeys": ["pod-template-hash"],  # else a rollout evens the new pods out with those that are about to go
            }
        ],
        "containers": [_container(pool, spec, defaults)],
        "volumes": volumes,
    }
    if defaults.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in defaults.image_pull_secrets]
    labels: JsonObject = {**selector_labels(pool.key.name), "app.kubernetes.io/managed-by": "aether-operator"}
    return {"metadata": {"labels": labels, "annotations": dict(SCRAPE_ANNOTATIONS)}, "spec": pod}


def _container(pool: PoolIdentity, spec: ActorPoolSpec, defaults: RuntimeDefaults) -> JsonObject:
    mounts: list[JsonValue] = [{"name": "tmp", "mountPath": "/tmp"}]
    if spec.nats.credentials_secret:
        mounts.append({"name": "nats-credentials", "mountPath": CREDENTIALS_FOLDER, "readOnly": True})
    container: JsonObject = {
        "name": CONTAINER,
        "image": spec.image or defaults.image,
        "imagePullPolicy": defaults.image_pull_policy,
        "args": ["runtime"],
        "env": _environment(pool, spec, defaults),
        "ports": [{"name": "probes", "containerPort": PROBE_PORT, "protocol": "TCP"}],
        "readinessProbe": _probe("/readyz", period_s=1, failures=3),
        "livenessProbe": _probe("/livez", period_s=10, failures=6),
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    if spec.resources:
        container["resources"] = spec.resources
    return container


def _environment(pool: PoolIdentity, spec: ActorPoolSpec, defaults: RuntimeDefaults) -> list[JsonValue]:
    values = {
        "AETHER_SOURCE": "kubernetes",
        "AETHER_POOL": pool.key.name,
        "AETHER_NATS_URL": spec.nats.url or defaults.nats_url,
        "AETHER_EVENT_PARTITIONS": str(defaults.event_partitions),
        "AETHER_EVENT_REPLICAS": str(defaults.event_replicas),
        "AETHER_SYNC_ALWAYS": str(defaults.sync_always and not spec.nats.url).lower(),
        "AETHER_ACTORS_PER_POD": str(spec.actors_per_pod),
        "AETHER_LOG_LEVEL": defaults.log_level,
        "AETHER_STOP_TIMEOUT": _format_duration(stop_timeout_s(spec)),
    }
    if spec.nats.credentials_secret:
        values["AETHER_NATS_CREDENTIALS"] = f"{CREDENTIALS_FOLDER}/{CREDENTIALS_FILE}"
    fields = {"AETHER_POD_NAME": "metadata.name", "AETHER_POD_UID": "metadata.uid", "AETHER_NAMESPACE": "metadata.namespace"}
    from_fields: list[JsonValue] = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    return from_fields + [{"name": name, "value": value} for name, value in values.items()]


def stop_timeout_s(spec: ActorPoolSpec) -> float:
    """Return how long a pod may take to leave: what its grace allows, also where the pool's template sets another one."""
    grace = object_at(spec.pod_template, "spec").get("terminationGracePeriodSeconds")
    grace_s = grace if isinstance(grace, int) else GRACE_S
    return max(GRACE_SHARE_MIN * grace_s, min(float(grace_s * (GRACE_RESERVE - 1) // GRACE_RESERVE), grace_s - GRACE_RESERVE_S))


def _format_duration(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds * 1000:.0f}ms"


def _probe(path: str, *, period_s: int, failures: int) -> JsonObject:
    return {"httpGet": {"path": path, "port": "probes"}, "periodSeconds": period_s, "failureThreshold": failures, "timeoutSeconds": 1 if period_s == 1 else 5}
