"""The local copy of a collection: whatever was missed, a list mends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_kube.documents import JsonObject, text_at
from aether_kube.store import Change, ObjectKey, ObjectStore, Unparsable
from aether_kube.watch import MalformedAnswer, WatchEvent, WatchEventKind

ALICE = ObjectKey("shop", "alice")


def document(name: str, resource_version: int, *, uid: str = "1", value: str = "good") -> JsonObject:
    return {"metadata": {"namespace": "shop", "name": name, "uid": uid, "resourceVersion": str(resource_version)}, "value": value}


def parse(source: JsonObject) -> str:
    if text_at(source, "value") == "bad":
        raise ValueError("bad value")
    return text_at(source, "value")


def event(kind: WatchEventKind, source: JsonObject) -> WatchEvent:
    return WatchEvent(kind, source)


def store_with(*documents: JsonObject, position: int = 10) -> ObjectStore[str]:
    store = ObjectStore(parse)
    replace(store, *documents, position=position)
    return store


def replace(store: ObjectStore[str], *documents: JsonObject, position: int) -> list[Change[str]]:
    return store.replace([store.read(source) for source in documents], position)


def test_an_added_object_is_told_and_kept() -> None:
    store = store_with()

    changes = store.apply_event(event("ADDED", document("alice", 11)))

    assert changes == [Change("added", ALICE, None, "good")]
    assert store.objects == {ALICE: "good"}
    assert store.position == 11


def test_a_modification_is_told_with_the_old_and_the_new_value() -> None:
    store = store_with(document("alice", 3))

    assert store.apply_event(event("MODIFIED", document("alice", 11, value="better"))) == [Change("modified", ALICE, "good", "better")]


def test_a_deletion_is_told_with_the_old_value() -> None:
    store = store_with(document("alice", 3))

    assert store.apply_event(event("DELETED", document("alice", 11))) == [Change("deleted", ALICE, "good", None)]
    assert store.objects == {}


def test_a_repeated_event_changes_nothing() -> None:
    store = store_with()
    store.apply_event(event("ADDED", document("alice", 11)))

    assert store.apply_event(event("ADDED", document("alice", 11))) == []


def test_an_old_event_does_not_bring_a_deleted_object_back() -> None:
    store = store_with(document("alice", 3))
    store.apply_event(event("DELETED", document("alice", 12)))

    assert store.apply_event(event("MODIFIED", document("alice", 11))) == []
    assert store.objects == {}


def test_an_old_deletion_does_not_remove_the_object_that_was_made_since() -> None:
    store = store_with(document("alice", 20, uid="2"), position=20)

    assert store.apply_event(event("DELETED", document("alice", 12, uid="1"))) == []
    assert store.objects == {ALICE: "good"}


def test_a_bookmark_moves_the_position_and_nothing_else() -> None:
    store = store_with(document("alice", 3))

    assert store.apply_event(event("BOOKMARK", {"metadata": {"resourceVersion": "40"}})) == []
    assert store.position == 40
    assert store.objects == {ALICE: "good"}


def test_an_object_that_is_missing_in_a_list_is_told_as_deleted() -> None:
    store = store_with(document("alice", 3), document("bob", 4))

    assert replace(store, document("bob", 4), position=20) == [Change("deleted", ALICE, "good", None)]


def test_a_list_of_what_is_known_changes_nothing_and_parses_nothing() -> None:
    parsed: list[str] = []

    def count(source: JsonObject) -> str:
        parsed.append(text_at(source, "metadata", "name"))
        return "good"

    store = ObjectStore(count)
    replace(store, document("alice", 3), position=10)

    assert replace(store, document("alice", 3), position=20) == []
    assert parsed == ["alice"]
    assert store.position == 20


def test_a_new_object_of_an_old_name_is_told_as_a_deletion_and_an_addition() -> None:
    store = store_with(document("alice", 3, uid="1"))

    changes = replace(store, document("alice", 15, uid="2", value="reborn"), position=20)

    assert changes == [Change("deleted", ALICE, "good", None), Change("added", ALICE, None, "reborn")]


def test_an_unparsable_change_keeps_the_last_good_value() -> None:
    store = store_with(document("alice", 3))

    assert store.apply_event(event("MODIFIED", document("alice", 11, value="bad"))) == []
    assert store.objects == {ALICE: "good"}
    assert store.unparsable_count == 1


def test_an_unparsable_new_object_is_left_out_and_the_others_are_kept() -> None:
    store = store_with(document("alice", 3, value="bad"), document("bob", 4))

    assert store.objects == {ObjectKey("shop", "bob"): "good"}


def test_an_unparsable_successor_of_a_deleted_object_does_not_inherit_its_value() -> None:
    store = store_with(document("alice", 3, uid="1"))

    changes = replace(store, document("alice", 15, uid="2", value="bad"), position=20)

    assert changes == [Change("deleted", ALICE, "good", None)]


def test_an_unparsable_object_is_reported_once_for_each_of_its_states() -> None:
    reports: list[Unparsable] = []
    store = ObjectStore(parse, reports.append)
    replace(store, document("alice", 3, value="bad"), position=10)
    replace(store, document("alice", 3, value="bad"), position=20)
    replace(store, document("alice", 25, value="bad"), position=30)

    assert [report.identity.resource_version for report in reports] == [3, 25]


def test_an_object_that_parses_again_is_told_and_no_longer_counted() -> None:
    store = store_with(document("alice", 3))
    store.apply_event(event("MODIFIED", document("alice", 11, value="bad")))

    assert store.apply_event(event("MODIFIED", document("alice", 12, value="better"))) == [Change("modified", ALICE, "good", "better")]
    assert store.unparsable_count == 0


def test_an_unparsable_object_can_be_deleted() -> None:
    store = store_with(document("alice", 3))
    store.apply_event(event("MODIFIED", document("alice", 11, value="bad")))

    assert store.apply_event(event("DELETED", document("alice", 12, value="bad"))) == [Change("deleted", ALICE, "good", None)]
    assert store.unparsable_count == 0


def test_an_unparsable_object_that_a_list_lacks_is_no_longer_counted() -> None:
    store = store_with(document("alice", 3, value="bad"))
    replace(store, position=20)

    assert store.unparsable_count == 0


def test_managed_fields_never_reach_the_parser() -> None:
    source = document("alice", 3)
    metadata = source["metadata"]
    assert isinstance(metadata, dict)
    metadata["managedFields"] = []
    store = ObjectStore(lambda seen: "managedFields" in str(seen))
    store.replace([store.read(source)], 10)

    assert store.objects == {ALICE: False}


@pytest.mark.parametrize("metadata", [{}, {"name": "alice"}, {"name": "alice", "resourceVersion": "x"}, {"resourceVersion": "3"}])
def test_a_document_that_is_no_object_is_refused_and_changes_nothing(metadata: JsonObject) -> None:
    store = store_with(document("bob", 3))

    with pytest.raises(MalformedAnswer):
        store.apply_event(event("ADDED", {"metadata": metadata}))

    assert store.objects == {ObjectKey("shop", "bob"): "good"}
    assert store.position == 10


Step = tuple[str, str, str, bool]
STEPS = st.lists(st.tuples(st.sampled_from(["put", "remove"]), st.sampled_from("abcd"), st.sampled_from(["one", "two", "bad"]), st.booleans()), max_size=40)


class Cluster:
    """What the API server would hold after some steps, and the events that it would send."""

    def __init__(self) -> None:
        self.objects: dict[str, JsonObject] = {}
        self.version = 10

    def step(self, step: Step) -> WatchEvent | None:
        action, name, value, _ = step
        self.version += 1
        known = self.objects.get(name)
        if action == "remove" and known is None:
            return None
        if action == "remove":
            self.objects.pop(name)
            return event("DELETED", document(name, self.version, uid=text_at(known, "metadata", "uid")))
        uid = text_at(known, "metadata", "uid") or f"born-{self.version}"
        self.objects[name] = document(name, self.version, uid=uid, value=value)
        return event("MODIFIED" if known else "ADDED", document(name, self.version, uid=uid, value=value))


@given(before=STEPS, after=STEPS, repeats=st.booleans())
def test_whatever_was_missed_a_list_ends_in_the_listed_state_and_the_changes_tell_the_way(before: list[Step], after: list[Step], repeats: bool) -> None:
    cluster, store, told = Cluster(), ObjectStore(parse), dict[ObjectKey, str]()

    def tell(changes: list[Change[str]]) -> None:
        for change in changes:
            assert told.get(change.key) == change.old
            assert (change.old is None, change.new is None) == (change.kind == "added", change.kind == "deleted")
            told.pop(change.key, None)
            if change.new is not None:
                told[change.key] = change.new

    def follow(steps: list[Step]) -> None:
        for step in steps:
            happened = cluster.step(step)
            if happened is not None and step[3]:
                tell(store.apply_event(happened))
                if repeats:
                    assert store.apply_event(happened) == []

    follow(before)
    tell(replace(store, *cluster.objects.values(), position=cluster.version))
    follow(after)
    tell(replace(store, *cluster.objects.values(), position=cluster.version))

    good = {ObjectKey("shop", name): text_at(source, "value") for name, source in cluster.objects.items() if text_at(source, "value") != "bad"}
    assert told == dict(store.objects)
    assert good.items() <= told.items()
    assert all(key.name in cluster.objects for key in told)
    assert store.unparsable_count == len(cluster.objects) - len(good)
