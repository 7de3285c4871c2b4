"""The API server itself refuses what the design forbids, names the field, and lets everything else through."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from aether_api.identity import ID_LENGTH_MAX
from aether_operator.crd_kinds import KINDS
from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]
TYPES: Final = tuple(f"crd/{kind.plural}.aether.flowmade.one" for kind in KINDS)

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A namespace of its own on a cluster that knows the three types."""

    cluster: Cluster
    namespace: str

    def apply(self, document: Document) -> subprocess.CompletedProcess[str]:
        return self.kubectl("apply", "--filename=-", stdin=json.dumps(document))

    def patch_status(self, name: str, patch: object, type: str = "merge") -> subprocess.CompletedProcess[str]:
        return self.kubectl("patch", "actor", name, "--subresource=status", f"--type={type}", f"--patch={json.dumps(patch)}")

    def read(self, *words: str) -> Any:
        result = self.kubectl("get", *words, "--output=json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def kubectl(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return self.cluster.kubectl("--namespace", self.namespace, *words, stdin=stdin, check=False)


@pytest.fixture(scope="module")
def sandbox(cluster: Cluster) -> Iterator[Sandbox]:
    """Bring the types up to date, and leave the cluster as it was found."""
    were_there = cluster.kubectl("get", *TYPES, check=False).returncode == 0
    cluster.apply_types(REPOSITORY / "crds")
    namespace = f"crds-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", namespace)
    yield Sandbox(cluster, namespace)
    cluster.kubectl("delete", "actors,actormodels,actorpools", "--all", "--namespace", namespace)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")
    if not were_there:
        cluster.kubectl("delete", *TYPES)


def build(kind: str, name: str, spec: Mapping[str, object] | None) -> Document:
    document: Document = {"apiVersion": "aether.flowmade.one/v1alpha1", "kind": kind, "metadata": {"name": name}}
    return document | ({} if spec is None else {"spec": dict(spec)})


def unique(prefix: str = "a") -> str:
    return f"{prefix}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class Case:
    """One document to apply, after another one if `before` is given, and what the answer must say; nothing: it is taken."""

    what: str
    kind: str
    spec: Mapping[str, object] | None
    name: str = ""
    before: Mapping[str, object] | None = None
    says: tuple[str, ...] = field(default=())


def emitting(event: str) -> Document:
    return {"commands": {event: {"emits": [{"event": event}]}}, "events": {event: {}}}


def opening(**command: object) -> Document:
    return {"commands": {"Open": command}, "events": {"Opened": {}}}


def placing(labels: Document | None, spread: Document | None = None) -> Document:
    affinity: Document = {} if labels is None else {"required": {"matchLabels": labels}, "preferred": [{"weight": 2, "matchLabels": labels}]}
    return {"affinity": affinity} | ({} if spread is None else {"spread": spread})


DAILY: Final[Document] = {"set": "a", "command": "Open", "cron": "@daily", "zone": "Europe/Berlin"}
TEMPLATE: Final[Document] = {
    "metadata": {"labels": {"disk": "ssd"}, "annotations": {"a": "b"}},
    "spec": {
        "containers": [{"name": "runtime", "env": [{"name": "A", "value": "b"}]}, {"name": "beside", "image": "x"}],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "securityContext": None,
        "tolerations": [{"operator": "Exists"}],
    },
}
NESTED: Final[Document] = {"type": "object", "properties": {"b": {"type": "object", "properties": {"c": {"type": "object", "properties": {"d": {"type": "string"}}}}}}}

CASES: Final = (
    Case("an actor whose name is its id", "Actor", {"model": "account"}),
    Case("a name with dots beside an id", "Actor", {"model": "account", "id": "Order_7:a@b+c=d~e"}, name="a.b.c"),
    Case("a name with dots as an id", "Actor", {"model": "account"}, name="a.b", says=("metadata.name", "set spec.id")),
    Case("a name that is too long for an id", "Actor", {"model": "account"}, name="a" * (ID_LENGTH_MAX + 1), says=("metadata.name", "set spec.id")),
    Case("an id with a dot", "Actor", {"model": "account", "id": "a.b"}, says=("spec.id",)),
    Case("an id with a wildcard", "Actor", {"model": "account", "id": "a*"}, says=("spec.id",)),
    Case("an id with a blank", "Actor", {"model": "account", "id": "a b"}, says=("spec.id",)),
    Case("an empty id", "Actor", {"model": "account", "id": ""}, says=("spec.id",)),
    Case("an id that is too long", "Actor", {"model": "account", "id": "a" * (ID_LENGTH_MAX + 1)}, says=("spec.id",)),
    Case("an actor without a model", "Actor", {"id": "a"}, says=("spec.model", "Required")),
    Case("an actor without a spec", "Actor", None, says=("spec", "Required")),
    Case("a model that no model can be named", "Actor", {"model": "Account.x"}, says=("spec.model",)),
    Case("an unknown field", "Actor", {"model": "account", "modle": "x"}, says=('unknown field "spec.modle"',)),
    Case("an unknown field further down", "Actor", {"model": "account", "snapshot": {"evry": 1}}, says=('unknown field "spec.snapshot.evry"',)),
    Case("an unknown deletion policy", "Actor", {"model": "account", "deletionPolicy": "Drop"}, says=("spec.deletionPolicy", "Retain", "Purge")),
    Case("another model", "Actor", {"model": "other"}, before={"model": "account"}, says=("spec.model", "immutable", "create another one")),
    Case("another id", "Actor", {"model": "account", "id": "b"}, before={"model": "account", "id": "a"}, says=("spec.id", "immutable")),
    Case("an id that is added", "Actor", {"model": "account", "id": "a"}, before={"model": "account"}, says=("spec.id", "immutable")),
    Case("an id that is removed", "Actor", {"model": "account"}, before={"model": "account", "id": "a"}, says=("spec.id", "immutable")),
    Case("a duration in words", "Actor", {"model": "account", "passivation": {"idleAfter": "5 minutes"}}, says=("spec.passivation.idleAfter", "such as 500ms, 30s or 1h30m")),
    Case("a duration in days", "Actor", {"model": "account", "snapshot": {"recoveryTarget": "1d"}}, says=("spec.snapshot.recoveryTarget", "units ms, s, m and h")),
    Case("a duration that is a number", "Actor", {"model": "account", "passivation": {"idleAfter": 300}}, says=("spec.passivation.idleAfter", "type string")),
    Case("a switch that is a text", "Actor", {"model": "account", "suspend": "yes"}, says=("spec.suspend", "type boolean")),
    Case("a pool that no pool can be named", "Actor", {"model": "account", "pool": "Big"}, says=("spec.pool", "a DNS label", "such as account")),
    Case("fewer than no events", "Actor", {"model": "account", "snapshot": {"every": -1}}, says=("spec.snapshot.every", "greater than or equal to 0")),
    Case("a place that can be", "Actor", {"model": "account", "placement": placing({"disk": "ssd", "example.com/zone": ""}, {"topologyKey": "topology.kubernetes.io/zone"})}),
    Case("a label that no pod can carry", "Actor", {"model": "account", "placement": placing({"disk": "very fast"})}, says=("matchLabels[disk]", "the value of a label")),
    Case("a label without a form", "Actor", {"model": "account", "placement": placing({"my disk": "ssd"})}, says=("affinity.required.matchLabels", "keys must be those of labels")),
    Case("no labels at all", "Actor", {"model": "account", "placement": placing({})}, says=("spec.placement.affinity.required.matchLabels", "at least 1")),
    Case("a spread over nothing", "Actor", {"model": "account", "placement": placing(None, {"topologyKey": "the zone"})}, says=("topologyKey", "the key of a label")),
    Case("a pod's affinity", "Actor", {"model": "account", "placement": {"affinity": {"nodeAffinity": {}}}}, says=('unknown field "spec.placement.affinity.nodeAffinity"',)),
    Case("what may change of an actor", "Actor", {"model": "account", "id": "a", "suspend": True, "pool": "big"}, before={"model": "account", "id": "a"}),
    Case("a model", "ActorModel", emitting("Opened")),
    Case("a state within a state", "ActorModel", {"state": {"properties": {"a": NESTED}}}),
    Case("a name of a model with a dot", "ActorModel", emitting("Opened"), name="a.b", says=("metadata.name", "dot")),
    Case("a name of a model that is too long", "ActorModel", emitting("Opened"), name="a" * 64, says=("metadata.name", "63")),
    Case("a command that is no subject token", "ActorModel", {"commands": {"Open.it": {}}}, says=("spec.commands", "letter")),
    Case("an event that is no subject token", "ActorModel", {"events": {"9th": {}}}, says=("spec.events", "letter")),
    Case("a reason of two words", "ActorModel", opening(guards=[{"rule": "true", "reason": "not enough"}]), says=("guards[0].reason", "a letter, then letters, digits and _")),
    Case("an event of two words", "ActorModel", opening(emits=[{"event": "has opened"}]), says=("emits[0].event", "such as MoneyDeposited")),
    Case("reminders that can be", "ActorModel", opening(reminders=[DAILY, {"cancel": "b"}, {"set": "c", "command": "Open", "at": "command.time"}])),
    Case("a reminder set and ended", "ActorModel", opening(reminders=[{**DAILY, "cancel": "a"}]), says=("reminders[0]", "as set or as cancel, and not as both")),
    Case("a reminder without a name", "ActorModel", opening(reminders=[{"command": "Open", "cron": "@daily"}]), says=("reminders[0]", "as set or as cancel")),
    Case("a reminder of nothing", "ActorModel", opening(reminders=[{"set": "a", "cron": "@daily"}]), says=("reminders[0].command", "which command comes later")),
    Case("a reminder without a time", "ActorModel", opening(reminders=[{"set": "a", "command": "Open"}]), says=("reminders[0]", "exactly one of at, after and cron")),
    Case("a reminder with two times", "ActorModel", opening(reminders=[{**DAILY, "at": "command.time"}]), says=("reminders[0]", "exactly one of at, after and cron")),
    Case("a reminder that ends with a command", "ActorModel", opening(reminders=[{"cancel": "a", "command": "Open"}]), says=("reminders[0]", "only when goes with cancel")),
    Case("a cron of five fields", "ActorModel", opening(reminders=[{**DAILY, "cron": "0 6 * * *"}]), says=("reminders[0].cron", "six fields, the second first")),
    Case("a zone without a cron", "ActorModel", opening(reminders=[{"set": "a", "command": "Open", "at": "command.time", "zone": "UTC"}]), says=("reminders[0].zone", "only cron")),
    Case("a tick that is neither late nor skipped", "ActorModel", opening(reminders=[{**DAILY, "missed": "never"}]), says=("reminders[0].missed", "late", "collapse", "skip")),
    Case("a guard without a rule", "ActorModel", {"commands": {"Open": {"guards": [{"message": "no"}]}}}, says=("spec.commands.Open.guards[0].rule", "Required")),
    Case("a model in Python", "ActorModel", {"onDemand": True, "python": {"handler": "bank.models:Account"}}),
    Case("a model in Python and in YAML", "ActorModel", {"python": {"handler": "bank:Account"}, **emitting("Opened")}, says=("spec.python", "leave out spec.state")),
    Case("a class that is no class", "ActorModel", {"python": {"handler": "bank.Account"}}, says=("spec.python.handler", "package.module:Class")),
    Case("a misspelt part of a model", "ActorModel", {"commands": {"Open": {"emit": []}}}, says=('unknown field "spec.commands.Open.emit"',)),
    Case("an unknown type of a field", "ActorModel", {"state": {"properties": {"a": {"type": "money"}}}}, says=("spec.state.properties.a.type",)),
    Case("a pool without a spec", "ActorPool", None),
    Case("a pool with resources and a template", "ActorPool", {"resources": {"limits": {"cpu": 1, "memory": "1Gi"}}, "podTemplate": {"spec": {"hostNetwork": False}}}),
    Case("a name of a pool with a dot", "ActorPool", None, name="a.b", says=("metadata.name", "dot")),
    Case("fewer than no replicas", "ActorPool", {"replicas": -1}, says=("spec.replicas",)),
    Case("a misspelt kind of resources", "ActorPool", {"resources": {"limit": {}}}, says=('unknown field "spec.resources.limit"',)),
    Case("a quantity that is none", "ActorPool", {"resources": {"limits": {"memory": "1 GB"}}}, says=("spec.resources.limits[memory]", "such as 500m, 2 or 1Gi")),
    Case("less than nothing", "ActorPool", {"resources": {"requests": {"cpu": -1}}}, says=("spec.resources.requests[cpu]", "not below 0")),
    Case("more than the limit", "ActorPool", {"resources": {"limits": {"cpu": 1}, "requests": {"cpu": "1500m"}}}, says=("spec.resources.requests", "beyond its limit")),
    Case("requests within their limits", "ActorPool", {"resources": {"limits": {"cpu": 2, "memory": "1Gi"}, "requests": {"cpu": "1500m", "memory": "512Mi"}}}),
    Case("servers that can be", "ActorPool", {"nats": {"url": "nats://a:4222,tls://user:secret@b,c:4222", "credentialsSecret": "nats.credentials"}, "image": "r:5000/a@sha256:0"}),
    Case("servers with a blank between", "ActorPool", {"nats": {"url": "nats://a:4222, nats://b:4222"}}, says=("spec.nats.url", "with commas and no blanks")),
    Case("servers of another protocol", "ActorPool", {"nats": {"url": "http://a:4222"}}, says=("spec.nats.url", "nats, tls, ws or wss")),
    Case("a Secret that cannot be", "ActorPool", {"nats": {"credentialsSecret": "My_Secret"}}, says=("spec.nats.credentialsSecret", "the name of a Secret")),
    Case("an image with a blank", "ActorPool", {"image": "aether: latest"}, says=("spec.image", "without blanks")),
    Case("no room for actors", "ActorPool", {"actorsPerPod": 0}, says=("spec.actorsPerPod", "greater than or equal to 1")),
    Case("a template with all its parts", "ActorPool", {"podTemplate": TEMPLATE}),
    Case("a misspelt part of a template", "ActorPool", {"podTemplate": {"metdata": {}}}, says=('unknown field "spec.podTemplate.metdata"',)),
    Case("a container without a name", "ActorPool", {"podTemplate": {"spec": {"containers": [{"image": "x"}]}}}, says=("spec.podTemplate.spec.containers[0].name", "Required")),
    Case("a label that is a number", "ActorPool", {"podTemplate": {"metadata": {"labels": {"tier": 1}}}}, says=("spec.podTemplate.metadata.labels.tier", "type string")),
)


@pytest.mark.parametrize("case", [case for case in CASES if not case.says], ids=lambda case: case.what)
def test_taken(sandbox: Sandbox, case: Case) -> None:
    name = case.name or unique()
    if case.before is not None:
        assert sandbox.apply(build(case.kind, name, case.before)).returncode == 0

    result = sandbox.apply(build(case.kind, name, case.spec))

    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize("case", [case for case in CASES if case.says], ids=lambda case: case.what)
def test_refused_with_the_field_named(sandbox: Sandbox, case: Case) -> None:
    name = case.name or unique()
    if case.before is not None:
        assert sandbox.apply(build(case.kind, name, case.before)).returncode == 0

    result = sandbox.apply(build(case.kind, name, case.spec))

    assert result.returncode != 0
    for words in case.says:
        assert words in result.stderr


@pytest.fixture
def placed(sandbox: Sandbox) -> str:
    """An actor on pod p1 at epoch 5."""
    name = unique()
    assert sandbox.apply(build("Actor", name, {"model": "account"})).returncode == 0
    placement = {"pod": "p1", "podUID": "u1", "epoch": 5}
    assert sandbox.patch_status(name, {"status": {"placement": placement}}).returncode == 0
    return name


@pytest.mark.parametrize(
    "placement",
    [{"pod": "p2", "podUID": "u2", "epoch": 6}, {"pod": "", "podUID": "", "epoch": 6}, {"pod": "p1", "podUID": "u1", "epoch": 5}, {"epoch": 1_800_000_000_000}],
    ids=["another pod at a higher epoch", "unplaced at a higher epoch", "the same again", "an epoch from a clock"],
)
def test_a_placement_may_become(sandbox: Sandbox, placed: str, placement: Document) -> None:
    result = sandbox.patch_status(placed, {"status": {"placement": placement}})

    assert result.returncode == 0, result.stderr
    assert sandbox.read("actor", placed)["status"]["placement"] == {"pod": "p1", "podUID": "u1"} | placement


@pytest.mark.parametrize(
    ("patch", "says"),
    [
        ({"placement": {"epoch": 4}}, "never goes back"),
        ({"placement": {"pod": "p2", "podUID": "u2"}}, "names one pod"),
        ({"placement": {"pod": "p2"}}, "names one pod"),
        ({"placement": {"podUID": "u2"}}, "names one pod"),
        ({"placement": {"pod": "", "podUID": ""}}, "names one pod"),
        ({"placement": None}, "may not vanish"),
        ({"placement": {"podUID": None}}, "status.placement.podUID: Required"),
    ],
)
def test_a_placement_is_guarded(sandbox: Sandbox, placed: str, patch: Document, says: str) -> None:
    result = sandbox.patch_status(placed, {"status": patch})

    assert result.returncode != 0
    assert "status.placement" in result.stderr
    assert says in result.stderr


def test_a_placement_does_not_vanish_with_the_whole_status(sandbox: Sandbox, placed: str) -> None:
    result = sandbox.patch_status(placed, [{"op": "remove", "path": "/status"}], type="json")

    assert result.returncode != 0
    assert "may not vanish" in result.stderr


def test_the_first_status_may_be_anything_but_a_part_of_a_placement(sandbox: Sandbox) -> None:
    name = unique()
    sandbox.apply(build("Actor", name, {"model": "account"}))

    assert sandbox.patch_status(name, {"status": {"phase": "Pending"}}).returncode == 0
    refused = sandbox.patch_status(name, {"status": {"placement": {"pod": "p", "podUID": "u"}}})

    assert "status.placement.epoch: Required" in refused.stderr


def test_two_managers_own_a_condition_each(sandbox: Sandbox, placed: str) -> None:
    head = build("Actor", placed, None)
    for manager, type in (("aether-operator", "Scheduled"), ("aether-runtime", "Ready")):
        condition = {"type": type, "status": "True", "reason": "Because", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        document = head | {"status": {"conditions": [condition]}}
        words = ("apply", "--server-side", "--subresource=status", f"--field-manager={manager}", "--filename=-")
        result = sandbox.kubectl(*words, stdin=json.dumps(document))
        assert result.returncode == 0, result.stderr

    conditions = sandbox.read("actor", placed)["status"]["conditions"]

    assert {condition["type"] for condition in conditions} == {"Scheduled", "Ready"}


def test_actors_are_selected_by_pod_model_and_id(sandbox: Sandbox, placed: str) -> None:
    other = unique()
    sandbox.apply(build("Actor", other, {"model": "order", "id": "x1"}))

    def names(selector: str) -> list[str]:
        return [item["metadata"]["name"] for item in sandbox.read("actors", f"--field-selector={selector}")["items"]]

    assert other not in names("status.placement.podUID=u1")
    assert placed in names("status.placement.podUID=u1")
    assert names("spec.model=order,spec.id=x1") == [other]


def test_kubectl_get_shows_where_an_actor_is(sandbox: Sandbox, placed: str) -> None:
    condition = {"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = {"phase": "Ready", "version": 7, "snapshotVersion": 5, "conditions": [condition]}
    assert sandbox.patch_status(placed, {"status": status}).returncode == 0

    head, row = (line.split() for line in sandbox.kubectl("get", "act", placed, "--output=wide").stdout.splitlines())

    assert head == ["NAME", "READY", "PHASE", "MODEL", "VERSION", "POD", "AGE", "REASON", "SNAPSHOT"]
    assert [*row[:6], *row[7:]] == [placed, "True", "Ready", "account", "7", "p1", "Serving", "5"]


def test_a_pool_is_scaled_like_a_deployment(sandbox: Sandbox) -> None:
    name = unique("pool")
    sandbox.apply(build("ActorPool", name, None))

    assert sandbox.kubectl("scale", "actorpool", name, "--replicas=3").returncode == 0

    assert sandbox.read("apool", name)["spec"]["replicas"] == 3


def test_the_category_lists_all_three_kinds(sandbox: Sandbox) -> None:
    for kind in ("Actor", "ActorModel", "ActorPool"):
        assert sandbox.apply(build(kind, unique("all"), {"model": "account"} if kind == "Actor" else {})).returncode == 0

    kinds = {item["kind"] for item in sandbox.read("aether")["items"]}

    assert kinds == {"Actor", "ActorModel", "ActorPool"}


def test_what_the_example_says_is_taken(sandbox: Sandbox) -> None:
    result = sandbox.kubectl("apply", f"--filename={REPOSITORY / 'examples' / 'bank'}")

    assert result.returncode == 0, result.stderr
