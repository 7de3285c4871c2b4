"""The CRDs follow the types, in the shape that the API server takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, Field

from aether_api.errors import InternalError
from aether_api.identity import NAME_PATTERN
from aether_api.v1alpha1 import Actor, ActorModel, ActorPool
from aether_kube.documents import JsonObject, JsonValue, object_at, value_at
from aether_operator.crd_kinds import ACTOR, KINDS, CustomKind
from aether_operator.crd_schema import RECURSION_DEPTH_MAX, build_schema
from aether_operator.crdgen import build_crd, build_files, main

REPOSITORY = Path(__file__).parents[3]
ANNOTATION_BYTES_MAX = 262_144
"""What all annotations of a resource may hold together: `kubectl apply` keeps the whole document in one."""


def walk(schema: JsonValue) -> Iterator[JsonObject]:
    """Yield every schema node below and including this one."""
    if isinstance(schema, dict):
        yield schema
        children = [*object_at(schema, "properties").values(), schema.get("additionalProperties"), schema.get("items")]
        for child in children:
            yield from walk(child)


def schema_of(crd: JsonObject) -> JsonValue:
    versions = value_at(crd, "spec", "versions")
    assert isinstance(versions, list)
    return value_at(versions[0], "schema", "openAPIV3Schema")


def test_the_files_in_the_repository_are_those_of_the_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)

    assert main(["--check"]) == 0


def test_check_names_the_file_that_drifted_and_shows_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--out", str(tmp_path / "crds"), "--chart", str(tmp_path / "chart")]
    assert main(folders) == 0
    drifted = tmp_path / "crds" / "aether.flowmade.one_actors.yaml"
    drifted.write_text(drifted.read_text().replace("maxLength: 200", "maxLength: 201"))

    assert main([*folders, "--check"]) == 1

    shown = capsys.readouterr().err
    assert str(drifted) in shown
    assert "maxLength: 201" in shown
    assert drifted.read_text().count("maxLength: 201") == 1


def test_a_generated_file_without_a_type_is_drift_and_is_removed(tmp_path: Path) -> None:
    folders = ["--out", str(tmp_path / "crds"), "--chart", str(tmp_path / "chart")]
    main(folders)
    orphan = tmp_path / "crds" / "aether.flowmade.one_widgets.yaml"
    orphan.write_text((tmp_path / "crds" / "aether.flowmade.one_actors.yaml").read_text())
    by_hand = tmp_path / "chart" / "notes.yaml"
    by_hand.write_text("# by hand\n")

    assert main([*folders, "--check"]) == 1
    assert main(folders) == 0

    assert not orphan.exists()
    assert by_hand.exists()


def test_kubectl_and_the_chart_get_the_same_crds_but_for_the_keep_policy() -> None:
    files = build_files(Path("crds"), Path("chart"))

    for kind in KINDS:
        plain = yaml.safe_load(files[Path(f"crds/aether.flowmade.one_{kind.plural}.yaml")])
        kept = yaml.safe_load(files[Path(f"chart/aether.flowmade.one_{kind.plural}.yaml")])
        assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert kept == plain


def test_kubectl_apply_on_the_folder_meets_nothing_but_crds() -> None:
    files = build_files(Path("crds"), Path("chart"))
    in_folder = [path for path in files if path.parent == Path("crds") and path.suffix in (".yaml", ".yml", ".json")]

    assert {yaml.safe_load(files[path])["kind"] for path in in_folder} == {"CustomResourceDefinition"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_every_node_of_a_schema_is_structural(kind: CustomKind) -> None:
    crd = build_crd(kind)

    for node in walk(schema_of(crd)):
        assert not {"$ref", "title", "const", "allOf"} & set(node)
        assert "type" in node or node.get("x-kubernetes-preserve-unknown-fields") or node.get("x-kubernetes-int-or-string")
        assert not ("properties" in node and "additionalProperties" in node)
        required = node.get("required") or []
        assert isinstance(required, list)
        assert all(name in object_at(node, "properties") for name in required)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_kubectl_apply_has_room_for_its_annotation(kind: CustomKind) -> None:
    crd = build_crd(kind)

    assert len(yaml.safe_dump(crd)) < ANNOTATION_BYTES_MAX / 2


def test_an_optional_field_may_be_absent_but_not_null() -> None:
    id_schema = object_at(build_schema(Actor), "properties", "spec", "properties", "id")

    assert id_schema["type"] == "string"
    assert "nullable" not in id_schema
    assert "default" not in id_schema


def test_a_default_of_the_spec_is_filled_in_by_the_api_server_unless_it_says_nothing() -> None:
    spec = object_at(build_schema(Actor), "properties", "spec", "properties")

    assert value_at(spec, "pool", "default") == "default"
    assert value_at(spec, "snapshot", "properties", "every", "default") == 500
    assert "default" not in object_at(spec, "suspend")


def test_nothing_in_status_has_a_default() -> None:
    for resource in (Actor, ActorModel, ActorPool):
        status = value_at(build_schema(resource), "properties", "status")
        assert not [node for node in walk(status) if "default" in node]


def test_a_pool_without_a_spec_has_one_replica_so_that_scale_works() -> None:
    schema = build_schema(ActorPool)

    assert "required" not in schema
    assert value_at(schema, "properties", "spec", "default") == {}
    assert value_at(schema, "properties", "spec", "properties", "replicas", "default") == 1


def test_conditions_merge_by_type() -> None:
    conditions = object_at(build_schema(Actor), "properties", "status", "properties", "conditions")

    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_a_schema_within_a_schema_is_written_out_and_then_anything_goes() -> None:
    node: JsonValue = value_at(build_schema(ActorModel), "properties", "spec", "properties", "state", "properties", "properties", "additionalProperties")
    for _ in range(RECURSION_DEPTH_MAX):
        assert value_at(node, "properties", "minLength", "type") == "integer"
        node = value_at(node, "properties", "items")

    assert isinstance(node, dict)
    assert node["x-kubernetes-preserve-unknown-fields"] is True
    assert "properties" not in node


def test_a_field_that_may_hold_anything_may_hold_null() -> None:
    field_schema = object_at(build_schema(ActorModel), "properties", "spec", "properties", "state", "properties", "properties", "additionalProperties")

    assert value_at(field_schema, "properties", "default") == {"x-kubernetes-preserve-unknown-fields": True, "nullable": True}


def test_a_constraint_that_cannot_be_translated_is_an_error() -> None:
    class Spec(BaseModel):
        size: int = Field(multiple_of=2)

    class Strange(BaseModel):
        spec: Spec
        status: dict[str, str] = Field(default_factory=dict)

    with pytest.raises(InternalError, match="multipleOf"):
        build_schema(Strange)


def test_a_form_is_told_in_words_and_not_as_a_regular_expression() -> None:
    for kind in KINDS:
        nodes = list(walk(schema_of(build_crd(kind))))
        assert not [node for node in nodes if "pattern" in node]

    pool = object_at(build_schema(Actor), "properties", "spec", "properties", "pool")
    rule = pool["x-kubernetes-validations"]
    assert rule == [{"rule": f"self.matches(r'{NAME_PATTERN}')", "message": "must be a DNS label: small letters, digits and inner hyphens, at most 63, such as account"}]


def test_a_form_without_words_is_an_error() -> None:
    class Spec(BaseModel):
        code: str = Field(pattern="^[A-Z]{3}$")

    class Strange(BaseModel):
        spec: Spec
        status: dict[str, str] = Field(default_factory=dict)

    with pytest.raises(InternalError, match=r"no words for the pattern \^\[A-Z\]\{3\}\$"):
        build_schema(Strange)


def test_rules_of_a_kind_stand_behind_those_of_its_types() -> None:
    model = value_at(schema_of(build_crd(ACTOR)), "properties", "spec", "properties", "model", "x-kubernetes-validations")
    assert isinstance(model, list)

    assert [str(value_at(rule, "message")).partition(":")[0] for rule in model] == ["must be a DNS label", "spec.model is immutable, since events are stored under it"]


def test_no_rule_stands_twice_in_one_place() -> None:
    for kind in KINDS:
        for node in walk(schema_of(build_crd(kind))):
            rules = node.get("x-kubernetes-validations", [])
            assert isinstance(rules, list)
            assert [rule for rule in rules if rules.count(rule) > 1] == []


def test_a_rule_for_a_field_that_is_gone_is_an_error() -> None:
    stray = replace(ACTOR, rules={("spec", "colour"): ()})

    with pytest.raises(InternalError, match=r"spec\.colour"):
        build_crd(stray)


def test_kubectl_shows_an_actor_in_the_order_in_which_people_ask() -> None:
    versions = value_at(build_crd(ACTOR), "spec", "versions")
    assert isinstance(versions, list)
    columns = value_at(versions[0], "additionalPrinterColumns")
    assert isinstance(columns, list)

    assert [value_at(column, "name") for column in columns if not value_at(column, "priority")] == ["Ready", "Phase", "Model", "Version", "Pod", "Age"]
    assert [value_at(column, "name") for column in columns if value_at(column, "priority")] == ["Reason", "Snapshot"]
