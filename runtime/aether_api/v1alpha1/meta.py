"""What all resources share: how their classes read the API server's JSON, metadata and conditions.

Two bases, since two kinds of writer exist. What a person types is checked strictly, so a misspelt field is named. What the
cluster returns may grow fields of newer versions, so unknown ones are ignored.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP: Final = "aether.flowmade.one"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

DUPLICATE_IDENTITY: Final = "DuplicateIdentity"
"""Why the operator does not place an Actor whose model and id an older one has; pods read it in the condition `Scheduled`."""

ConditionStatus = Literal["True", "False", "Unknown"]


class TypedByPeople(BaseModel):
    """Base of everything under `spec`: unknown fields are refused by name."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class ReturnedByCluster(BaseModel):
    """Base of metadata and status: fields that we do not know are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class ObjectMeta(ReturnedByCluster):
    """The part of Kubernetes' metadata that Aether reads."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: tuple[str, ...] = ()


class Condition(ReturnedByCluster):
    """A Kubernetes condition."""

    type: str = Field(description="Kind of the condition, such as Ready.", max_length=316)
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: str = Field(default="", description="One CamelCase word that programs can rely on.", max_length=1024)
    message: str = Field(default="", description="What happened and what to do, for people.", max_length=32768)
    observed_generation: int = Field(default=0, description="The metadata.generation that the condition speaks of.")
    last_transition_time: str = Field(default="", description="When status last changed, RFC 3339.", json_schema_extra={"format": "date-time"})


class ResourceClass(ReturnedByCluster):
    """Base of the three kinds."""

    api_version: str = API_VERSION
    metadata: ObjectMeta
