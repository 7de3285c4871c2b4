"""Makes the model of a resource ready to run, whatever it is written in.

Only runtimes do this: a model in Python is imported from the environment that runs it, which is the image of its pool. The
import blocks the loop for as long as it takes, once for each version of the resource: models are small, and no actor of
it could start before.
"""

from __future__ import annotations

from dataclasses import replace

from aether_api.errors import ModelInvalid
from aether_api.v1alpha1.actor_model import ActorModelSpec
from aether_model.check import check_model
from aether_model.compile import compile_model
from aether_model.model import Model
from aether_model.python_compile import load_python_model


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
