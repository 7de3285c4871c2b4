"""Resource kinds, and the only place that builds paths of the Kubernetes API.

A path names a collection (`ACTORS.path("shop")`), an object (`ACTORS.path("shop", "alice")`) or a subresource
(`ACTORS.path("shop", "alice", "status")`). Every part is escaped, so no name can reach another path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from aether_api.errors import InvalidName
from aether_api.v1alpha1.meta import GROUP, VERSION
from aether_kube.documents import JsonObject


@dataclass(frozen=True, slots=True)
class ResourceKind:
    """A kind of resource.

    Attributes:
        group: API group; empty for the core group.
        plural: the name in paths.
        kind: the name in documents.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """Return what documents carry as `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """Return the path of an object, of its subresource, or (without a name) of a collection.

        Without a namespace, a namespaced kind yields the collection of all namespaces.

        Raises:
            InvalidName: a part that would lead to another path: a name without its namespace, or a `.` or `..`.
        """
        if name and self.namespaced and not namespace:
            raise InvalidName(f"{self.kind} {name} lives in a namespace: name it")
        parts = [*(("apis", self.group) if self.group else ("api",)), self.version]
        parts += ["namespaces", namespace] if self.namespaced and namespace else []
        parts += [part for part in (self.plural, name, subresource) if part]
        if {".", ".."} & set(parts):
            raise InvalidName(f"{'/'.join(parts)} is not a path of the Kubernetes API")
        return "/" + "/".join(quote(part, safe="") for part in parts)

    def document(self, namespace: str | None, name: str) -> JsonObject:
        """Return a new document with the head that every object needs, for the caller to fill."""
        metadata: JsonObject = {"name": name}
        if self.namespaced and namespace:
            metadata["namespace"] = namespace
        return {"apiVersion": self.api_version, "kind": self.kind, "metadata": metadata}


ACTORS: Final = ResourceKind(GROUP, VERSION, "actors", "Actor")
ACTOR_MODELS: Final = ResourceKind(GROUP, VERSION, "actormodels", "ActorModel")
ACTOR_POOLS: Final = ResourceKind(GROUP, VERSION, "actorpools", "ActorPool")
PODS: Final = ResourceKind("", "v1", "pods", "Pod")
NODES: Final = ResourceKind("", "v1", "nodes", "Node", namespaced=False)
SERVICE_ACCOUNTS: Final = ResourceKind("", "v1", "serviceaccounts", "ServiceAccount")
DEPLOYMENTS: Final = ResourceKind("apps", "v1", "deployments", "Deployment")
REPLICA_SETS: Final = ResourceKind("apps", "v1", "replicasets", "ReplicaSet")
POD_DISRUPTION_BUDGETS: Final = ResourceKind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
ROLE_BINDINGS: Final = ResourceKind("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
LEASES: Final = ResourceKind("coordination.k8s.io", "v1", "leases", "Lease")
KUBE_EVENTS: Final = ResourceKind("events.k8s.io", "v1", "events", "Event")
