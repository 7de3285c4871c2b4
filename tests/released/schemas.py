"""What resources can say, one line a field: `v1alpha1` changes only by addition, so no line of a release ever goes away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

CRDS: Final = Path(__file__).parents[2] / "crds"
LIMITS: Final = ("maxLength", "maxItems", "maximum", "minimum", "minLength", "minItems", "pattern")
"""What refuses values: a limit may be loosened, but a new one would refuse what was taken before."""


def read_schemas() -> dict[str, dict[str, Any]]:
    """Return the fields of all kinds: `Actor.spec.model` and the like, each with its type and what it demands."""
    fields: dict[str, dict[str, Any]] = {}
    for path in sorted(CRDS.glob("*.yaml")):
        document = yaml.safe_load(path.read_text())
        for version in document["spec"]["versions"]:
            fields |= _flatten(f"{version['name']} {document['spec']['names']['kind']}", version["schema"]["openAPIV3Schema"])
    return fields


def find_breaks(released: dict[str, dict[str, Any]], today: dict[str, dict[str, Any]]) -> list[str]:
    """Return what a client or a manifest of the release could not say or read any more."""
    return [f"{path}: {problem}" for path, field in released.items() for problem in _compare(field, today.get(path))]


def _compare(released: dict[str, Any], today: dict[str, Any] | None) -> Iterator[str]:
    if today is None:
        yield "is gone"
        return
    if today["type"] != released["type"]:
        yield f"was {released['type']} and is {today['type']}"
    if missing := sorted(set(today.get("required", ())) - set(released.get("required", ()))):
        yield f"demands {', '.join(missing)} now"
    if lost := sorted(set(map(str, released.get("enum", ()))) - set(map(str, today.get("enum", released.get("enum", ()))))):
        yield f"cannot be {', '.join(lost)} any more"
    yield from (f"has a new {limit}: {today[limit]}" for limit in LIMITS if limit in today and limit not in released)


def _flatten(path: str, schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the fields of a schema by their paths."""
    field = {"type": schema.get("type", "any")} | {key: schema[key] for key in ("required", "enum", *LIMITS) if key in schema}
    fields = {path: field}
    for name, inner in schema.get("properties", {}).items():
        fields |= _flatten(f"{path}.{name}", inner)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            fields |= _flatten(f"{path}.{'[]' if name == 'items' else '*'}", schema[name])
    return fields
