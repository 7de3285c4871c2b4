"""The runtime of actors: replay, decide, append, answer; one process holds many VMs.

Reading order: `ports` (what the world must offer), `core` (pure: window, history, groups, snapshots), `vm` (one live
actor), `runtime` (all of a process), `router` (calls for actors elsewhere), `reporter` (status on a budget), `adapters`.

What a program may rely on can be imported from here (`from aether_runtime import Runtime, EventStore`); docs/python-api.md describes
it. Each name is loaded at its first use, so that the command line, which needs few of them, starts as fast as before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aether_api.envelope import Event
    from aether_api.errors import (
        AetherError,
        Busy,
        CommitTooLarge,
        Disconnected,
        EventInvalid,
        InvalidEnvelope,
        InvalidName,
        JetStreamError,
        ModelInvalid,
        NoResponders,
        OutcomeUnknown,
        PayloadTooLarge,
        PermanentError,
        PermissionDenied,
        RequestTimeout,
        RetryableError,
        SettingsInvalid,
        StreamFull,
        VersionConflictError,
    )
    from aether_api.identity import ActorId, parse_actor_id
    from aether_api.messages import Reply, ReplyEvent
    from aether_api.v1alpha1 import ActorModel
    from aether_model.load import build_model
    from aether_model.model import Model
    from aether_model.python import PythonModel
    from aether_model.python_compile import compile_python
    from aether_nats.bus_settings import BusSettings
    from aether_nats.client import CommandClient
    from aether_nats.connection import NatsConnection
    from aether_nats.deliveries import ActorVersion, EventStored, Gap, Overflow, Reset, Unreadable
    from aether_nats.event_bus import EventBus
    from aether_nats.event_subscription import EventSubscription
    from aether_nats.settings import NatsSettings
    from aether_runtime.core.new_events import NewEvent
    from aether_runtime.core.replay_result import ReplayResult
    from aether_runtime.event_store import EventStore, EventStoreSettings
    from aether_runtime.ports import CommitLog, DesiredActor, SnapshotStore
    from aether_runtime.process import open_runtime
    from aether_runtime.registry import VMRegistry
    from aether_runtime.router import VmProvider
    from aether_runtime.runtime import Runtime
    from aether_runtime.runtime_config import RuntimeConfig, RuntimePorts
    from aether_runtime.runtime_message import RuntimeMessage
    from aether_runtime.settings import RuntimeSettings
    from aether_runtime.vm import VirtualMachine

__all__ = [
    "ActorId",
    "ActorModel",
    "ActorVersion",
    "AetherError",
    "BusSettings",
    "Busy",
    "CommandClient",
    "CommitLog",
    "CommitTooLarge",
    "DesiredActor",
    "Disconnected",
    "Event",
    "EventBus",
    "EventInvalid",
    "EventStore",
    "EventStoreSettings",
    "EventStored",
    "EventSubscription",
    "Gap",
    "InvalidEnvelope",
    "InvalidName",
    "JetStreamError",
    "Model",
    "ModelInvalid",
    "NatsConnection",
    "NatsSettings",
    "NewEvent",
    "NoResponders",
    "OutcomeUnknown",
    "Overflow",
    "PayloadTooLarge",
    "PermanentError",
    "PermissionDenied",
    "PythonModel",
    "ReplayResult",
    "Reply",
    "ReplyEvent",
    "RequestTimeout",
    "Reset",
    "RetryableError",
    "Runtime",
    "RuntimeConfig",
    "RuntimeMessage",
    "RuntimePorts",
    "RuntimeSettings",
    "SettingsInvalid",
    "SnapshotStore",
    "StreamFull",
    "Unreadable",
    "VMRegistry",
    "VersionConflictError",
    "VirtualMachine",
    "VmProvider",
    "build_model",
    "compile_python",
    "open_runtime",
    "parse_actor_id",
]

_HOMES: Final = {
    "aether_api.envelope": ("Event",),
    "aether_api.errors": (
        "AetherError",
        "Busy",
        "CommitTooLarge",
        "Disconnected",
        "EventInvalid",
        "InvalidEnvelope",
        "InvalidName",
        "JetStreamError",
        "ModelInvalid",
        "NoResponders",
        "OutcomeUnknown",
        "PayloadTooLarge",
        "PermanentError",
        "PermissionDenied",
        "RequestTimeout",
        "RetryableError",
        "SettingsInvalid",
        "StreamFull",
        "VersionConflictError",
    ),
    "aether_api.identity": ("ActorId", "parse_actor_id"),
    "aether_api.messages": ("Reply", "ReplyEvent"),
    "aether_api.v1alpha1": ("ActorModel",),
    "aether_model.load": ("build_model",),
    "aether_model.model": ("Model",),
    "aether_model.python": ("PythonModel",),
    "aether_model.python_compile": ("compile_python",),
    "aether_nats.client": ("CommandClient",),
    "aether_nats.connection": ("NatsConnection",),
    "aether_nats.deliveries": ("ActorVersion", "EventStored", "Gap", "Overflow", "Reset", "Unreadable"),
    "aether_nats.event_bus": ("EventBus",),
    "aether_nats.bus_settings": ("BusSettings",),
    "aether_nats.event_subscription": ("EventSubscription",),
    "aether_nats.settings": ("NatsSettings",),
    "aether_runtime.core.new_events": ("NewEvent",),
    "aether_runtime.core.replay_result": ("ReplayResult",),
    "aether_runtime.event_store": ("EventStore", "EventStoreSettings"),
    "aether_runtime.ports": ("CommitLog", "DesiredActor", "SnapshotStore"),
    "aether_runtime.process": ("open_runtime",),
    "aether_runtime.registry": ("VMRegistry",),
    "aether_runtime.router": ("VmProvider",),
    "aether_runtime.runtime": ("Runtime",),
    "aether_runtime.runtime_config": ("RuntimeConfig", "RuntimePorts"),
    "aether_runtime.runtime_message": ("RuntimeMessage",),
    "aether_runtime.settings": ("RuntimeSettings",),
    "aether_runtime.vm": ("VirtualMachine",),
}
"""The module of each public name."""

if not TYPE_CHECKING:  # for a type checker only the imports above exist, so that it finds misspelt names

    def __getattr__(name: str) -> object:
        """Load a public name at its first use."""
        for module, names in _HOMES.items():
            if name in names:
                found = globals()[name] = getattr(import_module(module), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        """Show the public names, loaded or not."""
        return sorted({*globals(), *__all__})
