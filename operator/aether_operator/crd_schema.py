"""Turns a pydantic class into a structural schema, the part of OpenAPI that the API server takes. Pure.

Structural schemas know no references, no `anyOf` over types and no titles, so references are written out and the rest is
translated. What is decided here:

- An optional field may be absent, not null: `nullable` is for fields that may hold anything, null included.
- Defaults stand only under `spec`, and only where they differ from the empty value of their type. One in `status` would claim
  what nobody reported, and an empty one says what absence says, but is written into every stored object.
- A class that contains itself is written out to a depth, then any content is taken; `aether_model` checks it later.
- The form of a text is a rule with words instead of a `pattern` (`v1alpha1.words`).
- Conditions merge by `type`, so that two field managers can own one each.

Whatever is not known here is an error: a field that the API server does not check as the type does must not go unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from pydantic import BaseModel

from aether_api.errors import InternalError
from aether_api.v1alpha1.words import find_words
from aether_kube.documents import JsonObject, JsonValue, object_at, text_at

RECURSION_DEPTH_MAX: Final = 3
"""Levels of a class within itself: deeper fields are rare, and each level doubles the schema of an ActorModel."""

ANYTHING: Final = "x-kubernetes-preserve-unknown-fields"
RULES: Final = "x-kubernetes-validations"

_CONDITION: Final = "Condition"
_COPIED: Final = ("type", "format", "enum", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "minProperties", "maxProperties")
_TRANSLATED: Final = ("$ref", "anyOf", "const", "pattern", "title", "description", "default", "properties", "required", "items", "additionalProperties")
_HANDLED: Final = frozenset({*_COPIED, *_TRANSLATED})


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the schema we are: what references mean, which classes are being written out, and whether defaults count."""

    definitions: JsonObject
    classes: tuple[str, ...] = ()
    defaults: bool = True

    @property
    def is_too_deep(self) -> bool:
        """Whether the class that is being written out stands within itself too often."""
        return self.classes.count(self.classes[-1]) > RECURSION_DEPTH_MAX if self.classes else False


def build_schema(resource: type[BaseModel]) -> JsonObject:
    """Return the structural schema of a kind, with `apiVersion`, `kind` and `metadata` as the API server wants them."""
    source: JsonObject = resource.model_json_schema(by_alias=True, mode="validation")
    place = _Place(object_at(source, "$defs"))
    parts = object_at(source, "properties")
    spec = _translate(object_at(parts, "spec"), place)
    spec_is_required = "spec" in _items(source.get("required"))
    if not spec_is_required:
        spec["default"] = {}
    properties: JsonObject = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": spec,
        "status": _translate(object_at(parts, "status"), replace(place, defaults=False)),
    }
    schema: JsonObject = {"description": text_at(source, "description"), "type": "object", "properties": properties}
    if spec_is_required:
        schema["required"] = ["spec"]
    return schema


def _translate(source: JsonObject, place: _Place) -> JsonObject:
    """Return the structural form of one node, its parts included."""
    source, place = _resolve(source, place)
    _refuse_unknown(source)
    if "anyOf" in source:
        return _head(source) | {ANYTHING: True}
    if "type" not in source:
        return _head(source) | {ANYTHING: True, "nullable": True}
    if place.is_too_deep:
        return _head(source) | {"type": "object", ANYTHING: True}
    target = _head(source) | {name: source[name] for name in _COPIED if name in source}
    if "const" in source:
        target["enum"] = [source["const"]]
    if place.defaults and source.get("default"):
        target["default"] = source["default"]
    if "pattern" in source:
        target[RULES] = [_form_rule(text_at(source, "pattern"))]
    return target | _object_parts(source, place) | _array_parts(source, place)


def _form_rule(pattern: str) -> JsonObject:
    """Return the rule that a text has a form; a `pattern` would be told without a word."""
    words = find_words(pattern)
    if not words:
        raise InternalError(f"there are no words for the pattern {pattern}: add them to aether_api.v1alpha1.words")
    return {"rule": f"self.matches(r'{pattern}')", "message": words}


def _resolve(source: JsonObject, place: _Place) -> tuple[JsonObject, _Place]:
    """Replace references and `T or null` by what they stand for; what stands beside them wins."""
    while "$ref" in source or _optional(source) is not None:
        beside = {name: value for name, value in source.items() if name not in ("$ref", "anyOf")}
        if "$ref" in source:
            name = text_at(source, "$ref").removeprefix("#/$defs/")
            place = replace(place, classes=(*place.classes, name))
            source = object_at(place.definitions, name) | beside
        else:
            source = (_optional(source) or {}) | beside
    return source, place


def _optional(source: JsonObject) -> JsonObject | None:
    """Return T where the node is `T or null`, else nothing."""
    choices = source.get("anyOf")
    if not isinstance(choices, list):
        return None
    others = [choice for choice in choices if isinstance(choice, dict) and choice.get("type") != "null"]
    return others[0] if len(others) == 1 else None


def _object_parts(source: JsonObject, place: _Place) -> JsonObject:
    properties = object_at(source, "properties")
    additional = source.get("additionalProperties")
    required = _items(source.get("required"))
    parts: JsonObject = {}
    if properties:
        parts["properties"] = {name: _translate(object_at(properties, name), place) for name in properties}
    if isinstance(additional, dict) and additional:
        parts["additionalProperties"] = _translate(additional, place)
    elif additional is True or additional == {}:
        parts[ANYTHING] = True
    if required:
        parts["required"] = required
    return parts


def _array_parts(source: JsonObject, place: _Place) -> JsonObject:
    if source.get("type") != "array":
        return {}
    items = object_at(source, "items")
    parts: JsonObject = {"items": _translate(items, place)}
    if text_at(items, "$ref") == f"#/$defs/{_CONDITION}":
        parts |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return parts


def _head(source: JsonObject) -> JsonObject:
    description = " ".join(text_at(source, "description").split())
    return {"description": description} if description else {}


def _items(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _refuse_unknown(source: JsonObject) -> None:
    unknown = set(source) - _HANDLED
    if unknown:
        raise InternalError(f"crd_schema cannot translate {', '.join(sorted(unknown))}: teach it, or leave it out of the types")
