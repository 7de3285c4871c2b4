"""The resource types: strict where people type, lenient where the cluster answers."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from aether_api.errors import InvalidName
from aether_api.v1alpha1 import Actor, ActorModel, ActorPool


def actor(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "aether.flowmade.one/v1alpha1", "kind": "Actor", "metadata": {"name": "alice"}, "spec": {"model": "account", **spec}}


def fields_of(error: pytest.ExceptionInfo[ValidationError]) -> list[str]:
    return [".".join(map(str, problem["loc"])) for problem in error.value.errors()]


def test_an_actor_takes_its_id_from_its_name() -> None:
    assert str(Actor.model_validate(actor()).identity) == "default/account/alice"


def test_an_id_of_its_own_wins() -> None:
    assert str(Actor.model_validate(actor(id="Alice-1")).identity) == "default/account/Alice-1"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"modle": "account"}, "spec.modle"),
        ({"snapshot": {"evry": 1}}, "spec.snapshot.evry"),
        ({"snapshot": {"every": -1}}, "spec.snapshot.every"),
        ({"id": "a b"}, "spec.id"),
        ({"id": "a.b"}, "spec.id"),
        ({"id": ""}, "spec.id"),
        ({"id": "alice\n"}, "spec.id"),
        ({"model": "Account"}, "spec.model"),
        ({"pool": "a.b"}, "spec.pool"),
        ({"deletionPolicy": "Keep"}, "spec.deletionPolicy"),
        ({"suspend": "sometimes"}, "spec.suspend"),
    ],
)
def test_a_wrong_field_is_named(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Actor.model_validate(actor(**spec))
    assert fields_of(caught) == [field]


def test_a_name_with_a_dot_needs_an_id_of_its_own() -> None:
    document = actor()
    document["metadata"]["name"] = "alice.smith"
    with pytest.raises(InvalidName):
        _ = Actor.model_validate(document).identity
    document["spec"]["id"] = "alice-smith"
    assert Actor.model_validate(document).identity.id == "alice-smith"


def test_unknown_fields_of_metadata_and_status_are_ignored() -> None:
    document = actor() | {"status": {"phase": "Ready", "version": 3, "fromTheFuture": True, "placement": {"pod": "p", "podUID": "u", "epoch": 4, "zone": "a"}}}
    document["metadata"] |= {"managedFields": [], "generation": 2}
    found = Actor.model_validate(document)
    assert found.status.placement is not None
    assert (found.status.version, found.status.placement.pod_uid, found.status.placement.epoch) == (3, "u", 4)


def model(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "aether.flowmade.one/v1alpha1", "kind": "ActorModel", "metadata": {"name": "account"}, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"command": {}}, "spec.command"),
        ({"commands": {"Open": {"guard": []}}}, "spec.commands.Open.guard"),
        ({"commands": {"Open": {"guards": [{"rule": ""}]}}}, "spec.commands.Open.guards.0.rule"),
        ({"commands": {"Open": {"emits": [{"event": "Opened", "wiht": {}}]}}}, "spec.commands.Open.emits.0.wiht"),
        ({"events": {"Opened": {"set": {"open": 1}}}}, "spec.events.Opened.set.open"),
        ({"state": {"properties": {"balance": {"type": "money"}}}}, "spec.state.properties.balance.type"),
    ],
)
def test_a_wrong_field_of_a_model_is_named_with_its_path(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ActorModel.model_validate(model(**spec))
    assert fields_of(caught) == [field]


def test_a_pool_says_one_pod_of_the_operators_image_by_default() -> None:
    pool = ActorPool.model_validate({"metadata": {"name": "default"}})
    assert (pool.spec.replicas, pool.spec.image, pool.spec.nats.url) == (1, "", "")


def test_resources_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Actor.model_validate(actor()).spec.suspend = True  # type: ignore[misc]  # that is the point
