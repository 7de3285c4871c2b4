"""Compare before write: no write without need, none left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_kube.apply import differs, fingerprint, is_applied, with_fingerprint
from aether_kube.documents import JsonObject, JsonValue

JSON_VALUES: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=10,
)


def condition(type_: str, status: str = "True", time: str = "2026-01-01T00:00:00Z") -> JsonObject:
    return {"type": type_, "status": status, "lastTransitionTime": time}


@given(JSON_VALUES)
def test_nothing_differs_from_itself(value: JsonValue) -> None:
    assert not differs(value, value)


@given(st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=3), st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=3))
def test_what_others_added_is_no_difference(desired: JsonObject, added: JsonObject) -> None:
    assert not differs(desired, {**added, **desired})


@pytest.mark.parametrize(
    ("desired", "observed"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {}),
        ({"a": 1}, None),
        ({"a": {"b": "c"}}, {"a": {}}),
        ({"a": True}, {"a": 1}),
        ({"a": None}, {"a": 1}),
        ({"a": [1]}, {"a": [1, 2]}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": []}, {"a": [1]}),
        ({"a": [{"name": "x", "image": "one"}]}, {"a": [{"name": "x", "image": "two"}]}),
    ],
)
def test_a_changed_or_missing_leaf_is_a_difference(desired: JsonObject, observed: JsonValue) -> None:
    assert differs(desired, observed)


@pytest.mark.parametrize(
    ("desired", "observed"),
    [({"a": None}, {}), ({"a": {}}, {}), ({"a": {"b": None}}, None), ({"a": []}, {}), ({"a": 1}, {"a": 1, "b": 2}), ({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}]})],
)
def test_absent_and_empty_are_the_same_and_additions_do_not_matter(desired: JsonObject, observed: JsonValue) -> None:
    assert not differs(desired, observed)


def test_conditions_are_compared_by_type_and_without_their_times() -> None:
    desired: JsonObject = {"conditions": [condition("Ready"), condition("Replayed")]}
    observed: JsonObject = {"conditions": [condition("Replayed", time="2020-01-01T00:00:00Z"), condition("Scheduled", "False"), condition("Ready")]}

    assert not differs(desired, observed)


def test_a_changed_condition_is_a_difference() -> None:
    assert differs({"conditions": [condition("Ready")]}, {"conditions": [condition("Ready", "False")]})


def test_a_missing_condition_is_a_difference() -> None:
    assert differs({"conditions": [condition("Ready")]}, {"conditions": []})


def test_a_condition_of_ours_that_is_no_longer_desired_is_a_difference() -> None:
    desired: JsonObject = {"conditions": [condition("Ready")]}
    observed: JsonObject = {"conditions": [condition("Ready"), condition("Fenced"), condition("Scheduled")]}

    assert not differs(desired, observed, owned_conditions=("Ready",))
    assert differs(desired, observed, owned_conditions=("Ready", "Fenced"))


def test_a_fingerprint_does_not_depend_on_the_order_of_names() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_a_field_that_was_dropped_is_seen_by_the_fingerprint() -> None:
    before = with_fingerprint({"metadata": {"name": "pool"}, "spec": {"replicas": 2, "paused": True}})
    after = with_fingerprint({"metadata": {"name": "pool"}, "spec": {"replicas": 2}})

    assert is_applied(before, before)
    assert not is_applied(after, before)
    assert not is_applied(after, {"metadata": {"name": "pool"}})
    assert differs(after, before)
