"""What the charts render, and what they refuse to."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from aether_api.v1alpha1 import ActorPool
from aether_nats.embedded import find_program
from aether_operator.settings import OperatorSettings, read_settings, variable_of
from tests.unit.helm.program import find_helm

CHARTS: Final = Path(__file__).parents[3] / "helm"
CHART: Final = CHARTS / "aether"
PRODUCTION: Final = ("--values", str(CHART / "values-production.yaml"))
THREE: Final = ("--set", "nats.replicas=3")
VARIANTS: Final[dict[str, tuple[str, ...]]] = {
    "default": (),
    "production": PRODUCTION,
    "external NATS": ("--set", "nats.url=tls://nats.example:4222,nats.credentialsSecret=credentials"),
    "namespaces": ("--set", "watchNamespaces={shop,bank},pool.namespaces={shop}"),
    "users": ("--set", "nats.users.enabled=true,pool.namespaces={shop}"),
    "emptyDir": ("--set", "nats.persistence=emptyDir,nats.nodePort=30422"),
}

Document = dict[str, Any]
Helm = Callable[..., subprocess.CompletedProcess[str]]
Render = Callable[..., list[Document]]


@pytest.fixture(scope="session")
def helm() -> Helm:
    program = find_helm()
    if program is None:
        pytest.skip("helm is not there: `make cluster` builds it")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *words], capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def template(helm: Helm) -> Helm:
    """Run `helm template` on the chart."""

    def run(*words: str, release: str = "aether") -> subprocess.CompletedProcess[str]:
        return helm("template", release, str(CHART), "--namespace=aether-system", "--kube-version=1.36.0", *words)

    return run


@pytest.fixture(scope="session")
def render(template: Helm) -> Render:
    """Return the documents that the chart renders."""

    def run(*words: str, release: str = "aether") -> list[Document]:
        result = template(*words, release=release)
        assert result.returncode == 0, result.stderr
        return [document for document in yaml.safe_load_all(result.stdout) if document]

    return run


def of_kind(documents: list[Document], kind: str, name: str = "") -> list[Document]:
    return [document for document in documents if document["kind"] == kind and document["metadata"]["name"].endswith(name)]


def the(documents: list[Document], kind: str, name: str = "") -> Document:
    found = of_kind(documents, kind, name)
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pods_of(documents: list[Document]) -> Iterator[Document]:
    for document in documents:
        if document["kind"] in ("Deployment", "StatefulSet"):
            yield document["spec"]["template"]["spec"]


def environment_of(documents: list[Document]) -> dict[str, str]:
    container = the(documents, "Deployment", "-operator")["spec"]["template"]["spec"]["containers"][0]
    return {variable["name"]: variable.get("value", "aether-system") for variable in container["env"]}


def rules_of(documents: list[Document], role: str) -> list[Document]:
    return [rule for kind in ("ClusterRole", "Role") for document in of_kind(documents, kind, role) for rule in document["rules"]]


@pytest.mark.parametrize("chart", ["aether", "aether-crds"])
def test_helm_finds_nothing_wrong(helm: Helm, chart: str) -> None:
    result = helm("lint", "--strict", str(CHARTS / chart), "--kube-version=1.36.0")

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_every_pod_keeps_to_the_restricted_profile_and_a_read_only_root(render: Render, words: tuple[str, ...]) -> None:
    pods = list(pods_of(render(*words)))

    assert pods
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_every_volume_mounted_is_there(render: Render, words: tuple[str, ...]) -> None:
    for document in render(*words):
        if document["kind"] not in ("Deployment", "StatefulSet"):
            continue
        spec = document["spec"]
        pod = spec["template"]["spec"]
        there = {volume["name"] for volume in pod["volumes"]} | {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
        assert there == {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_the_operator_understands_its_environment(render: Render, words: tuple[str, ...]) -> None:
    environment = environment_of(render(*words))

    assert set(environment) <= {variable_of(name) for name in OperatorSettings.model_fields}
    assert read_settings(environment).namespace == "aether-system"


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_the_pool_is_one_that_the_types_know(render: Render, words: tuple[str, ...]) -> None:
    pool = ActorPool.model_validate(the(render(*words), "ActorPool"))

    assert pool.metadata.name == "default"
    assert pool.spec.replicas >= 2


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("nats.persistance=pvc", "persistance"),
        ("imge.tag=x", "imge"),
        ("operator.replicas=-1", "replicas"),
        ("nats.persistence=disk", "persistence"),
        ("nats.replicas=2", "replicas"),
        ("nats.url=nats.example:4222", "url"),
        ("nats.storage.size=10GB", "size"),
        ("nats.nodePort=4222", "nodePort"),
        ("image.digest=abc", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("events.partitions=65", "partitions"),
        ("watchNamespaces={A}", "watchNamespaces"),
        ("logLevel=LOUD", "logLevel"),
    ],
)
def test_a_wrong_value_is_refused_by_name(template: Helm, setting: str, says: str) -> None:
    result = template("--set", setting)

    assert result.returncode != 0
    assert says in result.stderr


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("watchNamespaces={shop}", "add it to watchNamespaces"),
        ("events.replicas=3", "raise nats.replicas"),
        ("nats.url=nats://a:4222,nats.nodePort=30422", "set only one of them"),
        ("nats.users.enabled=true,nats.credentialsSecret=mine", "set only one of them"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_way_out(template: Helm, settings: str, says: str) -> None:
    result = template("--set", settings)

    assert result.returncode != 0
    assert says in result.stderr


def test_a_cluster_without_the_types_is_refused_with_the_command_that_installs_them(template: Helm) -> None:
    real = "--api-versions=apiregistration.k8s.io/v1"

    without = template(real)
    assert without.returncode != 0
    assert "helm upgrade --install aether-crds helm/aether-crds" in without.stderr

    assert template(real, "--api-versions=aether.flowmade.one/v1alpha1").returncode == 0


def test_each_value_has_a_schema_and_each_schema_a_default() -> None:
    def compare(values: Document, schema: Document, path: str = "") -> None:
        properties = schema["properties"]
        assert set(values) == set(properties) - {"global"}, path
        for name, value in values.items():
            if "properties" in properties[name]:
                compare(value, properties[name], f"{path}.{name}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), json.loads((CHART / "values.schema.json").read_text()))


def test_one_image_is_enough(render: Render) -> None:
    images = {container["image"] for pod in pods_of(render()) for container in pod["containers"]}

    assert len(images) == 1
    assert images == {environment_of(render())["AETHER_RUNTIME_IMAGE"]}


def test_a_digest_wins_over_a_tag(render: Render) -> None:
    digest = "sha256:" + "0" * 64

    assert environment_of(render("--set", f"image.digest={digest},image.tag=v1"))["AETHER_RUNTIME_IMAGE"] == f"aether@{digest}"


def test_another_image_of_nats_is_run_by_its_own_entrypoint(render: Render) -> None:
    container = the(render("--set", "nats.image=nats:2.12-alpine"), "StatefulSet")["spec"]["template"]["spec"]["containers"][0]

    assert container["image"] == "nats:2.12-alpine"
    assert "command" not in container


def test_events_are_on_a_claim_that_outlives_the_release(render: Render) -> None:
    spec = the(render(), "StatefulSet")["spec"]

    assert spec["volumeClaimTemplates"][0]["spec"]["resources"] == {"requests": {"storage": "10Gi"}}
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_events_can_be_thrown_away_with_the_pod(render: Render) -> None:
    spec = the(render("--set", "nats.persistence=emptyDir"), "StatefulSet")["spec"]

    assert "volumeClaimTemplates" not in spec
    assert {"name": "data", "emptyDir": {"sizeLimit": "10Gi"}} in spec["template"]["spec"]["volumes"]


def test_an_external_nats_replaces_the_one_of_the_chart(render: Render) -> None:
    documents = render("--set", "nats.url=tls://a:4222\\,tls://b:4222,nats.credentialsSecret=credentials")

    assert not [document for document in documents if "-nats" in document["metadata"]["name"]]
    environment = environment_of(documents)
    assert environment["AETHER_NATS_URL"] == "tls://a:4222,tls://b:4222"
    assert environment["AETHER_NATS_CREDENTIALS"] == "/etc/aether/nats/nats.creds"
    assert the(documents, "ActorPool")["spec"]["nats"] == {"credentialsSecret": "credentials"}


@pytest.mark.parametrize(("setting", "told"), [("nats.syncInterval=always", "true"), ("nats.syncInterval=2m", None), ("nats.url=nats://a:4222", None)])
def test_pods_store_commits_together_where_the_charts_own_nats_fsyncs_each_write(render: Render, setting: str, told: str | None) -> None:
    assert environment_of(render("--set", setting)).get("AETHER_SYNC_ALWAYS") == told


def test_nats_knows_no_users_unless_asked_to(render: Render) -> None:
    documents = render()

    assert "authorization" not in the(documents, "ConfigMap")["data"]["nats.conf"]
    assert not of_kind(documents, "Secret")
    assert "AETHER_NATS_CREDENTIALS" not in environment_of(documents)


def test_operator_and_pools_get_the_credentials_that_nats_is_told(render: Render) -> None:
    documents = render("--set", "nats.users.enabled=true,pool.namespaces={shop,bank}")
    secrets = {(secret["metadata"].get("namespace", "aether-system"), secret["metadata"]["name"]): secret["stringData"] for secret in of_kind(documents, "Secret")}
    runtime = [secrets[namespace, "aether-nats-runtime"] for namespace in ("shop", "bank", "aether-system")]
    operator = secrets["aether-system", "aether-nats-operator"]

    assert len(secrets) == 4
    assert runtime[0] == runtime[1] == runtime[2] == {"password": runtime[0]["password"], "nats.creds": f"runtime:{runtime[0]['password']}"}
    assert operator["nats.creds"] == f"operator:{operator['password']}" != f"operator:{runtime[0]['password']}"
    assert re.fullmatch("[a-z][A-Za-z0-9]{40}", operator["password"])
    assert [pool["spec"]["nats"] for pool in of_kind(documents, "ActorPool")] == [{"credentialsSecret": "aether-nats-runtime"}] * 2
    assert environment_of(documents)["AETHER_NATS_CREDENTIALS"] == "/etc/aether/nats/nats.creds"
    volumes = the(documents, "Deployment", "-operator")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "nats-credentials", "secret": {"secretName": "aether-nats-operator", "defaultMode": 0o440}} in volumes
    assert told_by(documents) == {"AETHER_NATS_OPERATOR_PASSWORD": "aether-nats-operator", "AETHER_NATS_RUNTIME_PASSWORD": "aether-nats-runtime"}
    assert not any(secret["password"] in json.dumps(document) for secret in secrets.values() for document in documents if document["kind"] != "Secret")


def test_secrets_of_ones_own_are_used_and_none_is_made(render: Render) -> None:
    documents = render("--set", "nats.users.enabled=true,nats.users.operatorSecret=mine,nats.users.runtimeSecret=theirs")

    assert not of_kind(documents, "Secret")
    assert the(documents, "ActorPool")["spec"]["nats"] == {"credentialsSecret": "theirs"}
    assert told_by(documents) == {"AETHER_NATS_OPERATOR_PASSWORD": "mine", "AETHER_NATS_RUNTIME_PASSWORD": "theirs"}


def test_servers_of_ones_own_have_their_own_users(render: Render) -> None:
    assert not of_kind(render(*PRODUCTION, "--set", "nats.url=nats://a:4222"), "Secret")


def told_by(documents: list[Document]) -> dict[str, str]:
    """Return the Secrets from which nats-server gets its passwords."""
    variables = the(documents, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]["env"]
    return {variable["name"]: variable["valueFrom"]["secretKeyRef"]["name"] for variable in variables if "secretKeyRef" in variable.get("valueFrom", {})}


def test_pods_of_other_namespaces_reach_nats(render: Render) -> None:
    assert environment_of(render())["AETHER_NATS_URL"] == "nats://aether-nats.aether-system.svc:4222"


def test_clients_outside_reach_nats_only_if_asked_for(render: Render) -> None:
    assert not [service for service in of_kind(render(), "Service") if service["spec"].get("type") == "NodePort"]

    port = the(render("--set", "nats.nodePort=30422"), "Service", "-external")["spec"]["ports"][0]

    assert (port["port"], port["nodePort"]) == (4222, 30422)


def test_monitoring_is_in_no_service(render: Render) -> None:
    ports = {port["port"] for service in of_kind(render(*THREE), "Service") for port in service["spec"]["ports"]}

    assert ports == {4222, 6222}


@pytest.mark.parametrize(
    ("words", "copies"), [((), "1"), (THREE, "3"), ((*THREE, "--set", "events.replicas=1"), "1"), (("--set", "nats.url=nats://a:4222,events.replicas=3"), "3")]
)
def test_streams_have_as_many_copies_as_the_chart_has_servers_unless_said_otherwise(render: Render, words: tuple[str, ...], copies: str) -> None:
    assert environment_of(render(*words))["AETHER_EVENT_REPLICAS"] == copies


def test_one_operator_leads_and_another_is_ready_to(render: Render) -> None:
    documents = render()
    operator = the(documents, "Deployment", "-operator")["spec"]

    assert operator["replicas"] == 2
    assert operator["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    apart = operator["template"]["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"]
    assert apart["labelSelector"]["matchLabels"] == operator["selector"]["matchLabels"]
    budget = the(documents, "PodDisruptionBudget", "-operator")["spec"]
    assert (budget["maxUnavailable"], budget["selector"]) == (1, operator["selector"])
    assert not of_kind(render("--set", "operator.replicas=1"), "PodDisruptionBudget", "-operator")


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_the_operator_may_write_the_one_lease_that_it_is_told_of(render: Render, words: tuple[str, ...]) -> None:
    documents = render(*words)
    role = the(documents, "Role", "-lease")
    leases = [(rule.get("resourceNames"), rule["verbs"]) for rule in role["rules"] if rule["resources"] == ["leases"]]

    assert role["metadata"]["namespace"] == "aether-system"
    assert leases == [(None, ["create"]), ([environment_of(documents)["AETHER_LEASE_NAME"]], ["get", "patch"])]


def test_three_servers_know_each_other_and_leave_one_by_one(render: Render) -> None:
    documents = render(*THREE)

    config = the(documents, "ConfigMap")["data"]["nats.conf"]
    routes = re.findall(r"nats://(\S+):6222", config)
    assert routes == [f"aether-nats-{number}.aether-nats-headless.aether-system.svc" for number in range(3)]
    assert the(documents, "PodDisruptionBudget", "-nats")["spec"]["maxUnavailable"] == 1
    assert not of_kind(render(), "PodDisruptionBudget", "-nats")


@pytest.mark.parametrize("words", [(), THREE, PRODUCTION, ("--set", "nats.maxFileStore=8GB,nats.extraConfig=debug: true")], ids=["one", "three", "production", "extra"])
def test_nats_server_takes_its_configuration(render: Render, tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AETHER_NATS_OPERATOR_PASSWORD", "pOperator")
    monkeypatch.setenv("AETHER_NATS_RUNTIME_PASSWORD", "pRuntime")
    config = the(render(*words), "ConfigMap")["data"]["nats.conf"]
    path = tmp_path / "nats.conf"
    path.write_text(config.replace('"/data"', json.dumps(str(tmp_path))))

    result = subprocess.run([find_program(), "-t", "-c", str(path)], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    for line in ("max_payload: 8MB", 'ping_interval: "5s"', "ping_max: 2", "sync_interval: always"):
        assert line in config


def test_what_jetstream_may_store_leaves_room_on_the_disk(render: Render) -> None:
    config = the(render("--set", "nats.storage.size=100Mi"), "ConfigMap")["data"]["nats.conf"]

    assert f"max_file_store: {100 * 2**20 * 9 // 10}\n" in config


def test_a_changed_configuration_restarts_the_servers_and_a_new_chart_does_not(render: Render) -> None:
    def checksum(*words: str) -> str:
        return str(the(render(*words), "StatefulSet")["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum() != checksum("--set", "nats.maxMemoryStore=1GB")
    for document in render():
        if document["kind"] in ("Deployment", "StatefulSet"):
            assert "helm.sh/chart" not in document["spec"]["template"]["metadata"]["labels"]


def test_the_operator_sees_every_namespace_by_default(render: Render) -> None:
    documents = render()

    assert rules_of(documents, "aether-operator")
    assert {role["metadata"]["name"] for role in of_kind(documents, "Role")} == {"aether-operator-lease"}


def test_named_namespaces_give_roles_there_and_nothing_wider(render: Render) -> None:
    documents = render("--set", "watchNamespaces={shop,bank},pool.namespaces={shop}")

    assert {role["metadata"]["namespace"] for role in of_kind(documents, "Role", "aether-operator")} == {"shop", "bank"}
    assert {binding["metadata"]["namespace"] for binding in of_kind(documents, "RoleBinding", "aether-operator")} == {"shop", "bank"}
    assert not of_kind(documents, "ClusterRoleBinding")
    assert environment_of(documents)["AETHER_WATCH_NAMESPACES"] == "shop,bank"


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_no_role_has_a_wildcard_or_reads_secrets(render: Render, words: tuple[str, ...]) -> None:
    documents = render(*words)
    rules = [rule for kind in ("ClusterRole", "Role") for document in of_kind(documents, kind) for rule in document["rules"]]

    assert rules
    for rule in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "secrets" not in rule["resources"]
        assert "escalate" not in rule["verbs"]


def test_the_operator_gives_away_the_runtimes_role_and_no_other(render: Render) -> None:
    documents = render()
    binds = [rule for rule in rules_of(documents, "aether-operator") if "bind" in rule["verbs"]]

    assert [rule["resourceNames"] for rule in binds] == [["aether-runtime"]]
    assert environment_of(documents)["AETHER_RUNTIME_CLUSTER_ROLE"] == the(documents, "ClusterRole", "-runtime")["metadata"]["name"] == "aether-runtime"


def test_a_runtime_pod_reads_actors_and_models_and_writes_statuses_of_actors_only(render: Render) -> None:
    allowed = {(resource, verb) for rule in rules_of(render(), "aether-runtime") for resource in rule["resources"] for verb in rule["verbs"]}

    reads = {(resource, verb) for resource in ("actors", "actormodels") for verb in ("get", "list", "watch")}
    assert allowed == reads | {("actors/status", "patch")}


def test_people_may_do_with_actors_what_they_may_do_with_the_rest_of_a_namespace(render: Render) -> None:
    documents = render()

    for role, may_write in (("view", False), ("edit", True), ("admin", True)):
        document = the(documents, "ClusterRole", f"-{role}")
        assert document["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"
        verbs = {verb for rule in document["rules"] for verb in rule["verbs"]}
        assert ("patch" in verbs) == may_write
        assert not [rule for rule in document["rules"] if "actors/status" in rule["resources"] and set(rule["verbs"]) != {"get"}]
    assert not of_kind(render("--set", "rbac.aggregate=false"), "ClusterRole", "-view")


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_statuses_of_actors_are_fenced_and_the_operator_may_pass(render: Render, words: tuple[str, ...]) -> None:
    documents = render(*words)

    policy, binding = the(documents, "ValidatingAdmissionPolicy"), the(documents, "ValidatingAdmissionPolicyBinding")
    assert (binding["spec"]["policyName"], binding["spec"]["validationActions"]) == (policy["metadata"]["name"], ["Deny"])
    assert [rule["resources"] for rule in policy["spec"]["matchConstraints"]["resourceRules"]] == [["actors/status"]]
    assert {validation["reason"] for validation in policy["spec"]["validations"]} == {"Forbidden"}, "a pod tries only this one again"
    assert [rule["resources"] for rule in rules_of(documents, "aether-operator") if "place" in rule["verbs"]] == [["actors/status"]] * (2 if "watchNamespaces" in str(words) else 1)
    assert "place" not in json.dumps(rules_of(documents, "aether-runtime"))


def test_the_fence_stands_where_the_operator_works_and_nowhere_else(render: Render) -> None:
    assert "matchResources" not in the(render(), "ValidatingAdmissionPolicyBinding")["spec"]

    narrowed = the(render("--set", "watchNamespaces={shop,bank},pool.namespaces={shop}"), "ValidatingAdmissionPolicyBinding")["spec"]

    names = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["shop", "bank"]}
    assert narrowed["matchResources"] == {"namespaceSelector": {"matchExpressions": [names]}}


def test_the_fence_can_be_left_out(render: Render) -> None:
    documents = render("--set", "fencing.enabled=false")

    assert not [document for document in documents if document["kind"].startswith("ValidatingAdmission")]
    assert not of_kind(documents, "ClusterRole", "-repair")


def test_a_repair_by_hand_is_a_role_that_the_refusals_name_and_nobody_has(render: Render) -> None:
    documents = render()
    role = the(documents, "ClusterRole", "-repair")["metadata"]

    ways_out = [variable["expression"] for variable in the(documents, "ValidatingAdmissionPolicy")["spec"]["variables"] if variable["name"] == "wayOut"]
    assert f"ClusterRole {role['name']}" in ways_out[0]
    assert not [label for label in role["labels"] if "aggregate" in label]
    assert role["name"] not in [document["roleRef"]["name"] for document in documents if "roleRef" in document]


def test_an_upgrade_leaves_an_autoscaled_pool_its_replicas(render: Render) -> None:
    assert "replicas" not in the(render("--set", "pool.autoscaled=true"), "ActorPool")["spec"]


def test_each_namespace_that_is_named_gets_a_pool(render: Render) -> None:
    assert the(render(), "ActorPool")["metadata"]["namespace"] == "aether-system"

    documents = render("--set", "pool.namespaces={shop,bank}")

    assert [pool["metadata"]["namespace"] for pool in of_kind(documents, "ActorPool")] == ["shop", "bank"]
    assert not of_kind(render("--set", "pool.enabled=false"), "ActorPool")


def test_every_object_carries_the_common_labels(render: Render) -> None:
    for document in render("--set", "commonLabels.team=bank", *THREE):
        assert document["metadata"]["labels"]["team"] == "bank"
        assert "team" not in document.get("spec", {}).get("selector", {}).get("matchLabels", {})


@pytest.mark.parametrize(("setting", "allowed"), [("true", True), ("false", False)])
def test_the_operator_may_patch_pods_only_to_say_what_their_deletion_costs(render: Render, setting: str, allowed: bool) -> None:
    documents = render("--set", f"operator.podDeletionCosts={setting}")

    verbs = {verb for rule in rules_of(documents, "aether-operator") for verb in rule["verbs"] if "pods" in rule["resources"]}
    told = next(item["value"] for pod in pods_of(documents) for item in pod["containers"][0].get("env", []) if item["name"] == "AETHER_DELETION_COSTS")
    assert (verbs - {"get", "list", "watch"}, told) == ({"patch"} if allowed else set(), setting)


@pytest.mark.parametrize("words", [("--set", "operator.podLabels.app=x,nats.podLabels.app=x"), ("--set", "operator.affinity.nodeAffinity.x=y,nats.nodeSelector.disk=ssd")])
def test_pods_can_be_labelled_and_placed(render: Render, words: tuple[str, ...]) -> None:
    assert json.dumps(render(*words)) != json.dumps(render())


def test_names_fit_with_the_longest_release_name(render: Render) -> None:
    for document in render(*THREE, release="a" * 53):
        longest = 52 if document["kind"] == "StatefulSet" else 63
        assert len(document["metadata"]["name"]) <= longest
