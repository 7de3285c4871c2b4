"""Whoever writes a text in a wrong form is told the right one in words."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from aether_api.v1alpha1 import ActorModelSpec, ActorPoolSpec, ActorSpec
from aether_api.v1alpha1.words import describe_problem


def problems_of(spec: type[BaseModel], content: dict[str, object]) -> dict[str, str]:
    with pytest.raises(ValidationError) as error:
        spec.model_validate(content)
    return {".".join(map(str, problem["loc"])): describe_problem(problem) for problem in error.value.errors()}


@pytest.mark.parametrize(
    ("spec", "content", "field", "says"),
    [
        (ActorSpec, {"model": "Account"}, "model", "such as account"),
        (ActorSpec, {"model": "account", "id": "a.b"}, "id", "no dot, blank"),
        (ActorSpec, {"model": "account", "passivation": {"idleAfter": "5 minutes"}}, "passivation.idleAfter", "30s or 1h30m"),
        (ActorModelSpec, {"python": {"handler": "bank.Account"}}, "python.handler", "package.module:Class"),
        (ActorModelSpec, {"commands": {"Open": {"emits": [{"event": "is open"}]}}}, "commands.Open.emits.0.event", "such as MoneyDeposited"),
        (ActorPoolSpec, {"image": "a b"}, "image", "without blanks"),
        (ActorPoolSpec, {"nats": {"url": "http://a"}}, "nats.url", "nats://a:4222,nats://b:4222"),
        (ActorPoolSpec, {"nats": {"credentialsSecret": "A"}}, "nats.credentialsSecret", "the name of a Secret"),
        (ActorPoolSpec, {"replicas": -1}, "replicas", "greater than or equal to 0"),
    ],
)
def test_a_wrong_form_is_told_with_an_example(spec: type[BaseModel], content: dict[str, object], field: str, says: str) -> None:
    problems = problems_of(spec, content)

    assert says in problems[field]
    assert "pattern" not in problems[field]


@pytest.mark.parametrize("url", ["", "nats://a", "a:4222", "tls://u:p@a:4222,wss://b/path,c"])
def test_every_server_that_a_client_takes_may_be_named(url: str) -> None:
    assert ActorPoolSpec.model_validate({"nats": {"url": url}}).nats.url == url
