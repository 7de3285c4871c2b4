"""What a program may give for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aether_api.errors import ModelInvalid
from aether_api.v1alpha1 import ActorModel
from aether_model.load import build_model, take_model, take_models
from aether_model.python import PythonModel, StateFields

MANIFEST = yaml.safe_load((Path(__file__).parents[3] / "examples" / "bank" / "10-account-model.yaml").read_text())
ACCOUNT = ActorModel.model_validate(MANIFEST)


class Counter(StateFields, frozen=True):
    """A state."""


class Counting(PythonModel[Counter]):
    """A model that nobody compiled."""

    name = "counting"


def test_a_resource_and_what_is_made_of_it_are_the_same_model() -> None:
    built = build_model("account", ACCOUNT.spec)
    assert take_model(built) is built
    assert take_model(ACCOUNT).content_hash == built.content_hash
    assert set(take_models([ACCOUNT])) == set(take_models(iter([built]))) == {"account"}
    assert take_models(()) == {}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (None, "it is of type NoneType; give an ActorModel"),
        ("account", "it is of type str"),
        (MANIFEST, r"it is a mapping; make a resource of a manifest by ActorModel.model_validate\(manifest\)"),
        (ACCOUNT.spec, r"it is a spec without a name; use its ActorModel, or build_model\(name, spec\)"),
        (Counting, r"it is a class; make a model of a PythonModel by compile_python\(Counting\)"),
    ],
    ids=["nothing", "a name", "a manifest", "a spec", "a class"],
)
def test_what_is_no_model_is_refused_with_the_way_to_make_one(wrong: Any, why: str) -> None:
    with pytest.raises(ModelInvalid, match=why):
        take_model(wrong)
    with pytest.raises(ModelInvalid, match=why):
        take_models([wrong])


@pytest.mark.parametrize("wrong", [None, ACCOUNT, MANIFEST, "account", 5], ids=["nothing", "a model", "a manifest", "a name", "a number"])
def test_models_are_a_list(wrong: Any) -> None:
    with pytest.raises(ModelInvalid, match=r"models must be a list of models, such as \[model\]"):
        take_models(wrong)
