"""What the CRDs say beyond the types: names, columns, selectable fields, subresources, and rules over several fields.

A rule's message names the field and the way out, since it is all that a person sees. Rules about `status` stand at the
schema's root: one under `status` does not run when `status` itself is removed. The rules are those of the design:

- what identifies an actor never changes: its events are stored under model and id;
- an id is one token of a NATS subject, and a resource's name is the id where none is given;
- an epoch is a fence: it never goes back, and names one pod, so a late writer cannot hand an actor to somebody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from aether_api.identity import ID_LENGTH_MAX, MEMBER_PATTERN
from aether_api.v1alpha1 import Actor, ActorModel, ActorPool, ResourceClass
from aether_kube.documents import JsonObject, JsonValue

NAME_LENGTH_MAX: Final = 63
"""Characters of a DNS label: names of models and pools are tokens of subjects and values of labels."""

MEMBERS_MAX: Final = 256
"""Commands or events of one model: far above what people write, and it bounds the cost of the rule over their names."""

AMOUNTS_MAX: Final = 64
"""Kinds of resources that a pool requests or limits, and characters of a quantity: far above what people write, and it bounds the cost of rules."""

EACH_ITEM: Final = "[]"
EACH_VALUE: Final = "*"
"""In a path: the items of an array, and the values of an object that has any keys."""

LABEL_KEY: Final = r"([a-z0-9]([a-z0-9.\-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.\-]*[A-Za-z0-9])?"
LABEL_VALUE: Final = r"(([A-Za-z0-9][A-Za-z0-9_.\-]*)?[A-Za-z0-9])?"
"""Kubernetes' own forms: no pod carries another label. Said here and not in the types, so that who reads an old resource is not stopped by it."""

Extra = Mapping[str, JsonValue]
FieldPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; a wide one shows with `-o wide` only."""

    name: str
    json_path: str
    type: Literal["string", "integer", "date"] = "string"
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL rule; one that speaks of `oldSelf` runs on updates only.

    Attributes:
        field_path: the field that the API server's answer names, below the place of the rule.
    """

    rule: str
    message: str
    field_path: str = ""


@dataclass(frozen=True, slots=True)
class CustomKind:
    """What a kind's CRD says beyond its type.

    Attributes:
        rules: by the path of properties at which they stand; the empty path is the root.
        extras: keywords that are laid over the schema at a path.
        scalable: whether the kind has the `scale` subresource.
    """

    resource: type[ResourceClass]
    plural: str
    short_name: str
    columns: tuple[Column, ...]
    rules: Mapping[FieldPath, tuple[Rule, ...]]
    extras: Mapping[FieldPath, Extra] = field(default_factory=lambda: MappingProxyType({}))
    selectable: tuple[str, ...] = ()
    scalable: bool = False

    @property
    def name(self) -> str:
        """The kind as documents name it."""
        return self.resource.__name__


def condition_path(type: str, field: str) -> str:
    """Return the JSON path of a field of one condition."""
    return f'.status.conditions[?(@.type=="{type}")].{field}'


_AGE: Final = Column("Age", ".metadata.creationTimestamp", "date")

_METADATA: Final[Extra] = MappingProxyType({"properties": {"name": {"type": "string"}}})
"""Lets a rule speak of the name and an answer name it; the API server allows no more than this of metadata."""


def _label_rule(kind: str) -> Rule:
    return Rule(
        f"self.metadata.name.size() <= {NAME_LENGTH_MAX} && !self.metadata.name.contains('.')",
        f"the name of an {kind} is part of NATS subjects, so it holds no dot and at most {NAME_LENGTH_MAX} characters: choose another name",
        ".metadata.name",
    )


_OLD_PLACEMENT: Final = "!has(oldSelf.status) || !has(oldSelf.status.placement)"
_PLACEMENT: Final = "has(self.status) && has(self.status.placement)"
_BOTH_OR_FIRST: Final = f"{_OLD_PLACEMENT} || !({_PLACEMENT})"

_ACTOR_RULES: Final = (
    Rule(
        f"has(self.spec.id) || (self.metadata.name.size() <= {ID_LENGTH_MAX} && !self.metadata.name.contains('.'))",
        f"without spec.id the name is the actor's id, which holds no dot and at most {ID_LENGTH_MAX} characters: set spec.id, or choose another name",
        ".metadata.name",
    ),
    Rule(
        f"{_OLD_PLACEMENT} || ({_PLACEMENT})",
        "status.placement fences late writers and may not vanish: to unplace the actor, empty pod and podUID and raise the epoch",
    ),
    Rule(
        f"{_BOTH_OR_FIRST} || self.status.placement.epoch >= oldSelf.status.placement.epoch",
        "status.placement.epoch never goes back: read the actor again and raise the epoch",
    ),
    Rule(
        f"{_BOTH_OR_FIRST} || self.status.placement.epoch != oldSelf.status.placement.epoch"
        " || (self.status.placement.pod == oldSelf.status.placement.pod && self.status.placement.podUID == oldSelf.status.placement.podUID)",
        "status.placement.epoch names one pod: raise it with every change of pod or podUID",
    ),
)

_MODEL_IS_IMMUTABLE: Final = Rule("self == oldSelf", "spec.model is immutable, since events are stored under it: delete this Actor and create another one")
_ID_IS_IMMUTABLE: Final = Rule(
    "has(self.id) == has(oldSelf.id) && (!has(self.id) || self.id == oldSelf.id)",
    "spec.id is immutable, since events are stored under it, and can neither be added nor removed: delete this Actor and create another one",
    ".id",
)
_MEMBER_NAMES: Final = Rule(
    f"self.all(name, name.matches('{MEMBER_PATTERN}'))",
    "names of commands and events start with a letter and hold only letters, digits and _, at most 63 characters",
)

_AFFINITY: Final = ("spec", "placement", "affinity")
_LABEL_KEYS: Final = Rule(
    f"self.all(key, key.matches(r'^{LABEL_KEY}$'))",
    "keys must be those of labels, such as disk or topology.kubernetes.io/zone",
)
_LABEL_VALUE: Final = Rule(f"self.matches(r'^{LABEL_VALUE}$')", "must be the value of a label: letters, digits and, inside, - _ and dots, such as ssd")
_TOPOLOGY_KEY: Final = Rule(f"self.matches(r'^({LABEL_KEY})?$')", "must be the key of a label, such as topology.kubernetes.io/zone, or empty")

ACTOR: Final = CustomKind(
    Actor,
    "actors",
    "act",
    columns=(
        Column("Ready", condition_path("Ready", "status")),
        Column("Phase", ".status.phase"),
        Column("Model", ".spec.model"),
        Column("Version", ".status.version", "integer"),
        Column("Pod", ".status.placement.pod"),
        _AGE,
        Column("Reason", condition_path("Ready", "reason"), wide=True),
        Column("Snapshot", ".status.snapshotVersion", "integer", wide=True),
    ),
    rules=MappingProxyType(
        {
            (): _ACTOR_RULES,
            ("spec",): (_ID_IS_IMMUTABLE,),
            ("spec", "model"): (_MODEL_IS_IMMUTABLE,),
            (*_AFFINITY, "required", "matchLabels"): (_LABEL_KEYS,),
            (*_AFFINITY, "required", "matchLabels", EACH_VALUE): (_LABEL_VALUE,),
            (*_AFFINITY, "preferred", EACH_ITEM, "matchLabels"): (_LABEL_KEYS,),
            (*_AFFINITY, "preferred", EACH_ITEM, "matchLabels", EACH_VALUE): (_LABEL_VALUE,),
            ("spec", "placement", "spread", "topologyKey"): (_TOPOLOGY_KEY,),
        }
    ),
    extras=MappingProxyType({("metadata",): _METADATA, ("status", "placement"): {"required": ["pod", "podUID", "epoch"]}}),
    selectable=(".status.placement.podUID", ".spec.model", ".spec.id"),
)

_ONE_LANGUAGE: Final = Rule(
    "!has(self.python) || ((!has(self.state) || !has(self.state.properties) || self.state.properties.size() == 0)"
    " && (!has(self.commands) || self.commands.size() == 0) && (!has(self.events) || self.events.size() == 0))",
    "a model is written in YAML or in Python: with spec.python, leave out spec.state, spec.commands and spec.events",
    ".python",
)

_REMINDER_RULES: Final = (
    Rule("has(self.set) != has(self.cancel)", "give the name of the reminder as set or as cancel, and not as both"),
    Rule("!has(self.set) || has(self.command)", "with set, say which command comes later", ".command"),
    Rule("!has(self.set) || [has(self.at), has(self.after), has(self.cron)].exists_one(given, given)", "with set, say when: exactly one of at, after and cron"),
    Rule(
        "!has(self.cancel) || !(has(self.command) || has(self.at) || has(self.after) || has(self.cron))",
        "only when goes with cancel: leave out command, at, after and cron",
    ),
    Rule("!has(self.zone) || has(self.cron)", "only cron has a time zone: leave zone out", ".zone"),
    Rule(
        r"!has(self.cron) || self.cron.matches(r'^\s*(@[a-z].*|\S+(\s+\S+){5})\s*$')",
        "cron has six fields, the second first, such as 0 0 6 * * *; or write @daily, @hourly, @every 90m and the like",
        ".cron",
    ),
)

ACTOR_MODEL: Final = CustomKind(
    ActorModel,
    "actormodels",
    "amodel",
    columns=(
        Column("Accepted", condition_path("Accepted", "status")),
        Column("Version", ".spec.version"),
        Column("Hash", ".status.contentHash"),
        _AGE,
        Column("Reason", condition_path("Accepted", "reason"), wide=True),
    ),
    rules=MappingProxyType(
        {
            (): (_label_rule("ActorModel"),),
            ("spec",): (_ONE_LANGUAGE,),
            ("spec", "commands"): (_MEMBER_NAMES,),
            ("spec", "events"): (_MEMBER_NAMES,),
            ("spec", "commands", EACH_VALUE, "reminders", EACH_ITEM): _REMINDER_RULES,
        }
    ),
    extras=MappingProxyType(
        {
            ("metadata",): _METADATA,
            ("spec", "commands"): {"maxProperties": MEMBERS_MAX},
            ("spec", "events"): {"maxProperties": MEMBERS_MAX},
        }
    ),
)

_AMOUNTS: Final[JsonObject] = {
    "type": "object",
    "maxProperties": AMOUNTS_MAX,
    "additionalProperties": {"anyOf": [{"type": "integer"}, {"type": "string"}], "maxLength": AMOUNTS_MAX, "x-kubernetes-int-or-string": True},
}
_AMOUNT: Final = Rule(
    "isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))",
    "must be a quantity, such as 500m, 2 or 1Gi, and not below 0",
)
_REQUESTS_WITHIN_LIMITS: Final = Rule(
    "!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits) || !isQuantity(string(self.requests[name]))"
    " || !isQuantity(string(self.limits[name])) || !quantity(string(self.requests[name])).isGreaterThan(quantity(string(self.limits[name]))))",
    "nothing may be requested beyond its limit: lower it in requests or raise it in limits",
    ".requests",
)

_NAMED: Final[JsonObject] = {
    "type": "array",
    "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "minLength": 1}}, "x-kubernetes-preserve-unknown-fields": True},
}
_POD_TEMPLATE: Final[Extra] = MappingProxyType(
    {
        "x-kubernetes-preserve-unknown-fields": None,
        "properties": {
            "metadata": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": True,
                "properties": {name: {"type": "object", "additionalProperties": {"type": "string"}} for name in ("labels", "annotations")},
            },
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": dict.fromkeys(("containers", "initContainers", "volumes"), _NAMED)},
        },
    }
)
"""What the operator merges: by name, so a container or a volume has one; Kubernetes checks the rest when the Deployment is applied."""

ACTOR_POOL: Final = CustomKind(
    ActorPool,
    "actorpools",
    "apool",
    columns=(
        Column("Ready", ".status.readyReplicas", "integer"),
        Column("Desired", ".spec.replicas", "integer"),
        Column("Actors", ".status.actors", "integer"),
        _AGE,
    ),
    rules=MappingProxyType(
        {
            (): (_label_rule("ActorPool"),),
            ("spec", "resources"): (_REQUESTS_WITHIN_LIMITS,),
            ("spec", "resources", "limits", EACH_VALUE): (_AMOUNT,),
            ("spec", "resources", "requests", EACH_VALUE): (_AMOUNT,),
        }
    ),
    extras=MappingProxyType(
        {
            ("metadata",): _METADATA,
            ("spec", "resources"): {"properties": {"limits": _AMOUNTS, "requests": _AMOUNTS}, "x-kubernetes-preserve-unknown-fields": None},
            ("spec", "podTemplate"): _POD_TEMPLATE,
        }
    ),
    scalable=True,
)

KINDS: Final = (ACTOR, ACTOR_MODEL, ACTOR_POOL)
