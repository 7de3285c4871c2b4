"""The `ActorPool` resource: a set of equal runtime pods, kept by the operator as a Deployment.

The `scale` subresource belongs to whoever scales (a person or an HPA); the operator only copies `spec.replicas` down.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from aether_api.v1alpha1.meta import Condition, ResourceClass, ReturnedByCluster, TypedByPeople

IMAGE_PATTERN: Final = r"^[^\s]*$"
"""Kubernetes takes any text here, and its registry says later what is wrong; a blank can be told at once."""

_SERVER: Final = r"((nats|tls|ws|wss)://[^,\s]+|[^,/\s]+)"
NATS_URL_PATTERN: Final = rf"^({_SERVER}(,{_SERVER})*)?$"
"""What the clients take: a server without a scheme is `nats://`."""

SECRET_PATTERN: Final = r"^([a-z0-9]([a-z0-9.\-]{0,251}[a-z0-9])?)?$"
"""A DNS subdomain, as names of Secrets are."""


class NatsReference(TypedByPeople):
    """How the pods reach NATS: the servers and the account of the operator, which hears, assigns and purges over one connection of its own."""

    url: str = Field(
        default="",
        description="Server URLs, comma separated: other addresses of the NATS that the operator uses; empty takes the operator's.",
        pattern=NATS_URL_PATTERN,
        max_length=1024,
    )
    credentials_secret: str = Field(
        default="",
        description="Secret of the pool's namespace with the key nats.creds: credentials of the operator's account; empty means none.",
        pattern=SECRET_PATTERN,
        max_length=253,
    )


class ActorPoolSpec(TypedByPeople):
    """What a user wants."""

    replicas: int = Field(default=1, ge=0, le=1000, description="Number of runtime pods.", json_schema_extra={"format": "int32"})
    image: str = Field(default="", description="Image of the runtime; empty takes the operator's own.", pattern=IMAGE_PATTERN, max_length=1024)
    actors_per_pod: int = Field(default=10_000, ge=1, le=1_000_000, description="Most actors that one pod may hold.")
    resources: dict[str, Any] = Field(default_factory=dict, description="Requests and limits of the runtime container, as in a pod.")
    pod_template: dict[str, Any] = Field(default_factory=dict, description="Merged over the pod template that the operator makes: metadata and spec, containers by name.")
    nats: NatsReference = Field(default_factory=NatsReference, description="How the pods reach NATS, whose servers and account they share with the operator.")


class ActorPoolStatus(ReturnedByCluster):
    """What is."""

    observed_generation: int = Field(default=0, description="The generation that the operator acted on.", json_schema_extra={"format": "int64"})
    replicas: int = Field(default=0, description="Pods that exist.", json_schema_extra={"format": "int32"})
    ready_replicas: int = Field(default=0, description="Pods that are ready.", json_schema_extra={"format": "int32"})
    actors: int = Field(default=0, description="Actors placed on the pool's pods.")
    selector: str = Field(default="", description="Label selector of the pods, for the scale subresource.")
    conditions: tuple[Condition, ...] = Field(default=(), description="Ready.")


class ActorPool(ResourceClass):
    """A set of runtime pods."""

    kind: Literal["ActorPool"] = "ActorPool"
    spec: ActorPoolSpec = Field(default_factory=ActorPoolSpec)
    status: ActorPoolStatus = Field(default_factory=ActorPoolStatus)
