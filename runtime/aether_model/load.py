"""Makes the model of a resource ready to run, whatever it is written in.

Only runtimes do this: a model in Python is imported from the environment that runs it, which is the image of its pool. The
import blocks the loop for as long as it takes, once for each version of the resource: models are small, and no actor of
it could start before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import cast

from pydantic import BaseModel

from aether_api.errors import ModelInvalid
from aether_api.v1alpha1.actor_model import ActorModel, ActorModelSpec
from aether_model.check import check_model
from aether_model.compile import compile_model
from aether_model.model import Model
from aether_model.python_compile import load_python_model


def take_models(models: object) -> dict[str, Model]:
    """Return models by name, each a resource or ready to run; raises as `take_model`."""
    kind = type(models).__name__
    if isinstance(models, BaseModel | str | Mapping) or not isinstance(models, Iterable):
        raise ModelInvalid(kind, ("models must be a list of models, such as [model]",))
    taken = [take_model(model) for model in cast("Iterable[object]", models)]
    return {model.name: model for model in taken}


def take_model(model: object) -> Model:
    """Return a model ready to run, of a resource or of one that is.

    Raises:
        ModelInvalid: as `build_model`; or it is neither, and the message says how to make one of it.
    """
    if isinstance(model, ActorModel):
        return build_model(model.metadata.name, model.spec)
    if isinstance(model, type) or any(not hasattr(model, name) for name in ("name", "content_hash", "fold", "decide", "apply")):
        raise ModelInvalid(f"{model!r:.80}", (_suggest_model(model),))
    return cast("Model", model)


def _suggest_model(model: object) -> str:
    if isinstance(model, Mapping):
        return "it is a mapping; make a resource of a manifest by ActorModel.model_validate(manifest)"
    if isinstance(model, ActorModelSpec):
        return "it is a spec without a name; use its ActorModel, or build_model(name, spec)"
    if isinstance(model, type):
        return f"it is a class; make a model of a PythonModel by compile_python({model.__name__})"
    return f"it is of type {type(model).__name__}; give an ActorModel, or a Model as build_model and compile_python make"


def build_model(name: str, spec: ActorModelSpec) -> Model:
    """Compile a model in CEL, or import one in Python; class and resource may each allow actors on demand.

    Raises:
        ModelInvalid: with every problem of the model, one line each.
    """
    if spec.python is None:
        return compile_model(name, spec)
    problems = check_model(spec)
    if problems:
        raise ModelInvalid(name, tuple(map(str, problems)))
    model = load_python_model(name, spec.python.handler)
    return replace(model, on_demand=model.on_demand or spec.on_demand)
