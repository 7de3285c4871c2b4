"""The resources of `aether.flowmade.one/v1alpha1`; this version changes only by addition."""

from aether_api.v1alpha1.actor import Actor, ActorPhase, ActorSpec, ActorStatus, DeletionPolicy, Placement
from aether_api.v1alpha1.actor_model import ActorModel, ActorModelSpec, ActorModelStatus, CommandSpec, EmitSpec, EventSpec, GuardSpec, JsonSchema, StateSpec
from aether_api.v1alpha1.actor_pool import ActorPool, ActorPoolSpec, ActorPoolStatus
from aether_api.v1alpha1.meta import API_VERSION, GROUP, VERSION, Condition, ObjectMeta, ResourceClass

__all__ = [
    "API_VERSION",
    "GROUP",
    "VERSION",
    "Actor",
    "ActorModel",
    "ActorModelSpec",
    "ActorModelStatus",
    "ActorPhase",
    "ActorPool",
    "ActorPoolSpec",
    "ActorPoolStatus",
    "ActorSpec",
    "ActorStatus",
    "CommandSpec",
    "Condition",
    "DeletionPolicy",
    "EmitSpec",
    "EventSpec",
    "GuardSpec",
    "JsonSchema",
    "ObjectMeta",
    "Placement",
    "ResourceClass",
    "StateSpec",
]
