"""What releases sent still means what it meant, and what they could say can still be said: `v1alpha1` changes only by addition."""

from __future__ import annotations

import json
from typing import Any, get_args, get_type_hints

import pytest

from aether_api import control
from aether_api.headers import FIRST_LINE, MESSAGE_ID, decode_headers
from tests.released.recording import FOLDER, find_versions
from tests.released.schemas import find_breaks, read_schemas
from tests.released.wire import KINDS, MESSAGES, Wire, build_samples, build_subjects, parse_sample, show


def read(version: str, name: str) -> Any:
    return json.loads((FOLDER / version / name).read_text())


SAMPLES: dict[str, dict[str, Any]] = {
    f"{version} {sample['kind']} {number}": sample for version in find_versions() for number, sample in enumerate(read(version, "wire.json")["messages"])
}
"""By version, kind and number."""


def holds(newer: Any, older: Any) -> bool:
    """Tell whether everything that was there is there still, with whatever was added beside it."""
    if isinstance(older, dict) and isinstance(newer, dict):
        return all(key in newer and holds(newer[key], value) for key, value in older.items())
    if isinstance(older, list) and isinstance(newer, list):
        return len(older) == len(newer) and all(map(holds, newer, older))
    return bool(newer == older)


def payload_of(wire: Wire) -> Any:
    return json.loads(wire.payload) if wire.payload else None


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_what_a_release_sent_means_what_it_meant(sample: dict[str, Any]) -> None:
    assert holds(show(KINDS[sample["kind"]].read(parse_sample(sample))), sample["means"])


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_a_release_would_find_in_todays_message_all_that_it_looks_for(sample: dict[str, Any]) -> None:
    kind, wire = KINDS[sample["kind"]], parse_sample(sample)
    again = kind.send(kind.read(wire))
    looked_for = decode_headers(FIRST_LINE + b"\r\n" + wire.headers + b"\r\n")
    looked_for.pop(MESSAGE_ID, None)  # read by the server alone; a repeat that it lets pass is known by its `Aether-Command`
    assert holds(decode_headers(again.block), looked_for)
    assert holds(payload_of(again), payload_of(wire))


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if sample["payload"].startswith("{") and not sample["headers"]])
def test_fields_that_a_newer_release_adds_are_passed_over(name: str) -> None:
    kind, wire = KINDS[SAMPLES[name]["kind"]], parse_sample(SAMPLES[name])
    newer = Wire(wire.headers + b"Aether-Newer: 1\r\n", wire.payload.replace(b"{", b'{"newer":{"deep":[1]},', 1))
    assert show(kind.read(newer)) == show(kind.read(wire))


@pytest.mark.parametrize("version", find_versions())
def test_subjects_and_partitions_stay_what_they_are(version: str) -> None:
    assert holds(build_subjects(), read(version, "wire.json")["subjects"])


@pytest.mark.parametrize("version", find_versions())
def test_resources_can_say_all_that_they_could(version: str) -> None:
    assert find_breaks(read(version, "schemas.json"), read_schemas()) == []


def test_a_field_that_is_taken_away_or_demanded_anew_is_noticed() -> None:
    old: dict[str, dict[str, Any]] = {"Actor.spec": {"type": "object", "required": ["model"]}, "Actor.spec.pool": {"type": "string", "enum": ["a", "b"]}}
    new: dict[str, dict[str, Any]] = {"Actor.spec": {"type": "object", "required": ["id", "model"]}, "Actor.spec.pool": {"type": "string", "enum": ["a"], "maxLength": 3}}
    assert find_breaks(old, old) == []
    assert find_breaks(old, new) == ["Actor.spec: demands id now", "Actor.spec.pool: cannot be b any more", "Actor.spec.pool: has a new maxLength: 3"]
    assert find_breaks(old, {"Actor.spec": {"type": "string"}}) == ["Actor.spec: was object and is string", "Actor.spec.pool: is gone"]


def test_the_samples_hold_every_kind_of_message() -> None:
    assert {sample["kind"] for sample in build_samples()["messages"]} == set(KINDS)


def test_the_samples_hold_all_that_operator_and_pods_say_to_each_other() -> None:
    """Whoever adds a message to `control` adds it to the samples."""
    said = {type(message) for _, message in MESSAGES}
    assert [message.__name__ for message in get_args(get_type_hints(control.encode)["message"]) if message not in said] == []
