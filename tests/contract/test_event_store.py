"""The contract of the event store for programs without a VM, on memory and on JetStream."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast
from uuid import UUID

import pytest
import yaml
from msgspec import Raw
from msgspec.structs import replace

from aether_api.envelope import Commit, encode_event, join_events
from aether_api.errors import Disconnected, EventInvalid, InvalidEnvelope, InvalidName, ModelInvalid, RequestTimeout, RetryableError, SettingsInvalid, VersionConflictError
from aether_api.identity import Epoch, parse_actor_id
from aether_api.messages import format_time
from aether_api.v1alpha1 import ActorModel
from aether_model.model import Model
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.streams import StreamPlan, ensure_streams
from aether_runtime.adapters.memory import MemoryCommitLog, MemorySnapshotStore
from aether_runtime.core.new_events import NewEvent
from aether_runtime.event_store import EventStore, EventStoreSettings
from aether_runtime.ports import CommitLog
from tests.histories.bank import ALICE, compile_account, load_python_account
from tests.histories.cluster import connected
from tests.histories.commits import build_events, build_next
from tests.histories.faults import Fate, FaultyCommitLog

BOB = parse_actor_id("default", "account", "bob")
ACCOUNT_MODEL = Path(__file__).parents[2] / "examples" / "bank" / "10-account-model.yaml"
OPENED = NewEvent("Opened", {"owner": "alice"})


def deposited(amount: int, **parts: str) -> NewEvent:
    return NewEvent("Deposited", {"amount": amount}, **parts)  # type: ignore[arg-type]  # the parts are texts


@dataclass
class Rig:
    """One log, and stores of several programs on it."""

    log: CommitLog

    def build(self, *models: Model, **settings: object) -> EventStore:
        return EventStore(self.log, MemorySnapshotStore(), "default", models=models, settings=EventStoreSettings(**settings))  # type: ignore[arg-type]  # the names are those of the fields


@pytest.fixture(params=["memory", "jetstream"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    if request.param == "memory":
        yield Rig(MemoryCommitLog())
        return
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        layout = await ensure_streams(connection, "default", StreamPlan(partitions=1))
        yield Rig(Journal(JetStream(connection), layout.partitions))


async def test_events_are_saved_and_read_back_with_their_versions(rig: Rig) -> None:
    store = rig.build()
    saved = await store.save_event(ALICE, OPENED)
    await store.save_events(ALICE, [deposited(5, command_id="c", correlation_id="flow"), deposited(7)])
    events = await store.get_events(ALICE)
    assert [(event.version, event.type, event.fields()) for event in events] == [
        (1, "Opened", {"owner": "alice"}),
        (2, "Deposited", {"amount": 5}),
        (3, "Deposited", {"amount": 7}),
    ]
    assert events[0] == saved
    assert (events[1].command_id, events[1].correlation_id) == ("c", "flow")
    assert [event.version for event in await store.get_events(ALICE, 3)] == [3]
    assert await store.get_events(ALICE, 4) == await store.get_events(BOB) == []
    assert await store.save_events(ALICE, []) == ()


async def test_all_events_of_one_call_are_one_commit(rig: Rig) -> None:
    await rig.build().save_events(ALICE, [OPENED, deposited(5), deposited(7)])
    head = await rig.log.read_head(ALICE)
    assert head is not None
    assert (head.n, head.first_version, head.last_version, head.pod, head.model) == (0, 1, 3, "/event-store", "")


@pytest.mark.parametrize("models", [(), (compile_account,)], ids=["without models", "with models"])
async def test_events_of_a_generator_are_all_saved_though_another_writer_comes_first(rig: Rig, models: tuple[Callable[[], Model], ...]) -> None:
    mine, theirs = (rig.build(*(model() for model in models)) for _ in range(2))
    await mine.save_event(ALICE, OPENED)
    await theirs.save_event(ALICE, deposited(1))
    saved = await mine.save_events(ALICE, (deposited(amount) for amount in (2, 3, 4)))
    assert [event.version for event in saved] == [3, 4, 5]
    assert await mine.save_events(ALICE, iter(())) == ()
    assert [event.fields().get("amount") for event in await theirs.get_events(ALICE)] == [None, 1, 2, 3, 4]
    await theirs.save_event(ALICE, deposited(5))


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([OPENED, {"type": "Deposited"}], r"events\[1\] must be a NewEvent, not .*dict"),
        ("Opened", r"events\[0\] must be a NewEvent, not 'O'"),
        (OPENED, "must be a list of NewEvent, .*save_event saves one"),
        (None, "must be a list of NewEvent"),
    ],
    ids=["a dict", "a text", "one event", "nothing"],
)
async def test_what_is_no_new_event_is_refused(rig: Rig, events: Any, why: str) -> None:
    with pytest.raises(EventInvalid, match=rf"{why}.*Nothing was saved"):
        await rig.build().save_events(ALICE, events)
    assert await rig.log.read_head(ALICE) is None


WRONG_PARTS: list[tuple[dict[str, Any], str]] = [
    ({"type": 5}, "its type must be a text, not 5"),
    ({"schema_version": "2"}, "its schema_version must be a whole number"),
    ({"schema_version": 1.5}, "its schema_version must be a whole number"),
    ({"schema_version": True}, "its schema_version must be a whole number"),
    ({"schema_version": 0}, "its schema_version must be a whole number of at least 1"),
    ({"metadata": {"a": 1}}, "its metadata must be a mapping of texts, but holds 'a' .*: 1 .*; write a='1'"),
    ({"metadata": None}, "its metadata must be a mapping"),
    ({"command_id": 5}, "its command_id must be a text, not 5 .*; write command_id='5'"),
    ({"command_id": UUID(int=7)}, "its command_id must be a text, not UUID.*; write command_id='00000000-0000-0000-0000-000000000007'"),
    ({"command_id": "\ud800"}, "cannot be written"),
    ({"correlation_id": 7}, "its correlation_id must be a text"),
    ({"causation_id": None}, 'its causation_id must be a text, not None .*; write causation_id="", or leave it out'),
    ({"time": datetime(2026, 1, 1, tzinfo=UTC)}, r"its time must be a text, not datetime.*; write time=moment.isoformat\(\)"),
    ({"time": "1960-01-01T00:00:00Z"}, "not a time of this age"),
]


@pytest.mark.parametrize("models", [(), (compile_account,)], ids=["without models", "with models"])
@pytest.mark.parametrize(("parts", "why"), WRONG_PARTS, ids=[str(parts) for parts, _ in WRONG_PARTS])
async def test_a_part_of_a_wrong_type_is_refused_before_anything_is_stored(parts: dict[str, Any], why: str, models: tuple[Callable[[], Model], ...]) -> None:
    log = FaultyCommitLog(MemoryCommitLog())
    store = EventStore(log, MemorySnapshotStore(), "default", models=[model() for model in models])
    with pytest.raises(EventInvalid, match=rf"version 1, is refused: .*{why}.*Nothing was saved"):
        await store.save_event(ALICE, NewEvent(**{"type": "Opened", "fields": {"owner": "a"}, **parts}))
    assert log.appends == []
    await store.save_event(ALICE, OPENED, expected_version=0)


WRONG_FIELDS: list[tuple[Any, str]] = [
    ([1], r"fields must be an object, .* not \[1\] \(list\)"),
    (None, r"fields must be an object, .* not None"),
    ("abc", r"fields must be an object, .* not 'abc'"),
    (Raw(b'{"amount":]}'), "cannot be written"),
    ({"amount": math.nan}, "field amount is nan"),
    ({"amount": 1, "parts": [{"share": -math.inf}]}, r"field parts\[0\].share is -inf"),
    ({"amount": 1, "deep": Raw(b"[" * 512 + b"]" * 512)}, "nested 513 levels deep, more than 512"),
    ({"amount": 1, "when": object()}, "fields are no JSON: 'when': .*object"),
]


@pytest.mark.parametrize("models", [(), (compile_account,), (load_python_account,)], ids=["without models", "a model", "a model in Python"])
@pytest.mark.parametrize(("fields", "why"), WRONG_FIELDS, ids=["list", "none", "text", "raw", "nan", "inf", "deep", "object"])
async def test_fields_that_are_no_json_object_are_refused_before_anything_is_stored(fields: Any, why: str, models: tuple[Callable[[], Model], ...]) -> None:
    log = FaultyCommitLog(MemoryCommitLog())
    store = EventStore(log, MemorySnapshotStore(), "default", models=[model() for model in models])
    await store.save_event(ALICE, OPENED)
    with pytest.raises(EventInvalid, match=rf"version 2, is refused: .*{why}.*Nothing was saved"):
        await store.save_event(ALICE, NewEvent("Deposited", fields))
    assert len(log.appends) == 1
    await store.save_event(ALICE, deposited(1), expected_version=1)


async def test_fields_may_be_any_mapping_and_hold_null() -> None:
    store = EventStore(MemoryCommitLog(), MemorySnapshotStore(), "default")
    fields = {"amount": 1.5, "note": None, "nested": {"null": ["null", None, 0.0]}, "raw": {"a": None}}
    saved = await store.save_events(
        ALICE, [NewEvent("Deposited", {**fields, "raw": Raw(b'{"a": null}')}), NewEvent("Deposited", MappingProxyType(fields)), NewEvent("Deposited", OrderedDict(fields))]
    )
    assert [event.fields() for event in saved] == [fields] * 3


async def test_an_expected_version_is_kept(rig: Rig) -> None:
    store = rig.build()
    await store.save_events(ALICE, [OPENED, deposited(5)], expected_version=0)
    await store.save_event(ALICE, deposited(7), expected_version=2)
    assert await store.get_latest_version(ALICE, fresh=True) == 3


@pytest.mark.parametrize("expected", [0, 1, 3])
async def test_a_conflict_names_actor_attempted_and_current_version_and_saves_nothing(rig: Rig, expected: int) -> None:
    await rig.build().save_events(ALICE, [OPENED, deposited(5)])
    for store in (rig.build(), rig.build(compile_account())):
        with pytest.raises(VersionConflictError, match=f"after version {expected} was refused, the log is at version 2") as raised:
            await store.save_event(ALICE, deposited(7), expected_version=expected)
        assert (raised.value.actor, raised.value.attempted, raised.value.current) == ("default/account/alice", expected, 2)
        assert await store.get_latest_version(ALICE) == 2


async def test_a_writer_whose_version_is_old_is_refused_with_the_version_that_is_there(rig: Rig) -> None:
    mine, theirs = rig.build(), rig.build()
    await mine.save_event(ALICE, OPENED)
    await theirs.save_events(ALICE, [deposited(1), deposited(2)])
    with pytest.raises(VersionConflictError) as raised:
        await mine.save_event(ALICE, deposited(7), expected_version=1)
    assert (raised.value.attempted, raised.value.current) == (1, 3)
    await mine.save_event(ALICE, deposited(7), expected_version=3)
    assert len(await mine.get_events(ALICE)) == 4


async def test_without_an_expected_version_events_follow_whatever_is_there(rig: Rig) -> None:
    mine, theirs = rig.build(), rig.build(compile_account())
    await mine.save_event(ALICE, OPENED)
    for amount in range(1, 6):
        await theirs.save_event(ALICE, deposited(amount))
        await mine.save_event(ALICE, deposited(amount))
    assert [event.version for event in await mine.get_events(ALICE)] == list(range(1, 12))


@pytest.mark.parametrize("models", [(), (compile_account,)], ids=["without models", "with models"])
async def test_saves_of_many_tasks_and_programs_at_once_are_all_kept(rig: Rig, models: tuple[Callable[[], Model], ...]) -> None:
    stores = [rig.build(*(model() for model in models)) for _ in range(3)]
    await stores[0].save_event(ALICE, OPENED)
    async with asyncio.TaskGroup() as tasks:
        for number in range(30):
            tasks.create_task(stores[number % 3].save_event(ALICE, deposited(number + 1)))
    events = await stores[0].get_events(ALICE)
    assert [event.version for event in events] == list(range(1, 32))
    assert sorted(event.fields()["amount"] for event in events[1:]) == list(range(1, 31))


def lose_races(log: FaultyCommitLog, count: float) -> None:
    """Let somebody else store the same just before each of the next appends."""

    def choose(commit: Commit) -> Fate:
        if len(log.appends) <= count:
            log.inner.append(replace(commit, id=f"rival-{len(log.appends)}"))
        return Fate.STORED

    log.choose = choose


async def test_a_save_that_may_follow_anything_is_tried_until_it_comes_first() -> None:
    log = FaultyCommitLog(MemoryCommitLog())
    store = EventStore(log, MemorySnapshotStore(), "default")
    lose_races(log, 40)
    saved = await store.save_event(ALICE, deposited(1))
    assert (saved.version, len(log.appends)) == (41, 41)
    lose_races(log, math.inf)
    with pytest.raises(VersionConflictError) as raised:
        await store.save_event(ALICE, deposited(2), expected_version=41)
    assert (raised.value.attempted, raised.value.current, len(log.appends)) == (41, 42, 42)


async def test_a_save_that_never_comes_first_says_so_after_its_time_out() -> None:
    log = FaultyCommitLog(MemoryCommitLog())
    store = EventStore(log, MemorySnapshotStore(), "default", settings=EventStoreSettings(timeout_s=0.1))
    lose_races(log, math.inf)
    with pytest.raises(RetryableError, match=r"alice: nothing was saved: other writers came first for 0\.1 s, \d+ times") as raised:
        await store.save_event(ALICE, deposited(1))
    assert type(raised.value) is RetryableError
    assert len(log.appends) < 60, "it paused between its tries"


@pytest.mark.parametrize("model", [compile_account, load_python_account])
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (NewEvent("Robbed", {"amount": 1}), "Robbed"),
        (deposited("five"), "amount"),  # type: ignore[arg-type]  # what is wrong with it
        (NewEvent("Deposited", {}), "amount"),
        (NewEvent("no event", {}), "name of an event"),
        (NewEvent("Deposited", {"amount": {1, 2}.__iter__()}), "no JSON"),
    ],
    ids=["unknown", "type", "missing", "name", "no json"],
)
async def test_what_does_not_fit_the_model_is_refused_before_anything_is_written(rig: Rig, model: Callable[[], Model], wrong: NewEvent, why: str) -> None:
    store = rig.build(model())
    with pytest.raises(EventInvalid, match=rf"version 3, is refused: .*{why}.* Nothing was saved"):
        await store.save_events(ALICE, [OPENED, deposited(5), wrong])
    assert await rig.log.read_head(ALICE) is None
    await store.save_event(ALICE, OPENED, expected_version=0)


async def test_a_store_takes_the_resource_of_a_model(rig: Rig) -> None:
    store = EventStore(rig.log, MemorySnapshotStore(), "default", models=[ActorModel.model_validate(yaml.safe_load(ACCOUNT_MODEL.read_text()))])
    await store.save_event(ALICE, OPENED)
    with pytest.raises(EventInvalid, match="amount"):
        await store.save_event(ALICE, deposited("five"))  # type: ignore[arg-type]  # what is wrong with it
    with pytest.raises(ModelInvalid, match="compile_python"):
        EventStore(rig.log, MemorySnapshotStore(), "default", models=cast("Any", [None]))


async def test_events_are_applied_to_the_state_that_others_left(rig: Rig) -> None:
    """An overflow shows that the state was followed: only together the two deposits are too large."""
    mine, theirs = rig.build(compile_account()), rig.build()
    await mine.save_event(ALICE, OPENED)
    await theirs.save_event(ALICE, deposited(2**63 - 10))
    with pytest.raises(EventInvalid, match="version 3"):
        await mine.save_event(ALICE, deposited(100))
    assert await mine.get_latest_version(ALICE, fresh=True) == 2


async def test_a_store_with_models_takes_no_other_actors(rig: Rig) -> None:
    stranger = parse_actor_id("default", "acount", "alice")
    with pytest.raises(ModelInvalid, match=r"acount.*only account"):
        await rig.build(compile_account()).save_event(stranger, OPENED)


async def test_a_store_is_of_one_namespace(rig: Rig) -> None:
    store, elsewhere = rig.build(), parse_actor_id("shop", "account", "alice")
    with pytest.raises(InvalidName, match="namespace shop"):
        await store.save_event(elsewhere, OPENED)
    with pytest.raises(InvalidName):
        await store.get_events(elsewhere)
    with pytest.raises(InvalidName):
        await store.get_latest_version(elsewhere)
    with pytest.raises(InvalidName):
        store.update_version_cache(elsewhere, 1)


@pytest.mark.parametrize("wrong", ["2", -1, True, 1.5])
async def test_what_is_no_version_is_refused_by_the_name_of_its_argument(rig: Rig, wrong: Any) -> None:
    store = rig.build()
    await store.save_events(ALICE, [OPENED, deposited(5)])
    with pytest.raises(InvalidEnvelope, match="expected_version must be a whole number of at least 0"):
        await store.save_event(ALICE, deposited(1), expected_version=wrong)
    with pytest.raises(InvalidEnvelope, match="from_version must be a whole number of at least 0"):
        await store.get_events(ALICE, wrong)
    with pytest.raises(InvalidEnvelope, match=r"^version must be a whole number of at least 0"):
        store.update_version_cache(ALICE, wrong)
    assert await store.get_latest_version(ALICE) == 2


async def test_a_text_is_no_actor(rig: Rig) -> None:
    store, name = rig.build(), cast("Any", "default/account/alice")
    for call in (store.save_event(name, OPENED), store.get_events(name), store.get_latest_version(name)):
        with pytest.raises(InvalidName, match="actor must be an ActorId"):
            await call


@pytest.mark.parametrize("setting", [{"timeout_s": "3"}, {"timeout_s": 0}, {"timeout_s": None}, {"timeout_s": math.nan}, {"actors_max": "10"}, {"actors_max": 0}])
def test_a_setting_that_cannot_work_is_refused_before_there_is_a_store(setting: dict[str, Any]) -> None:
    with pytest.raises(SettingsInvalid, match=f"{next(iter(setting))} of EventStoreSettings must be"):
        EventStoreSettings(**setting)


@pytest.mark.parametrize("with_model", [False, True])
async def test_the_time_of_a_foreign_event_is_compared_as_a_moment(rig: Rig, with_model: bool) -> None:
    """In another form than ours its text says nothing about what lies before it."""
    event = replace(build_events(ALICE, 1, 1)[0], time="2026-07-01T14:00:00+02:00")
    await rig.log.append(replace(build_next(ALICE, None), payload=join_events([encode_event(event)])))
    store = rig.build(*[compile_account()] if with_model else [])
    saved = await store.save_event(ALICE, deposited(1, time="2026-07-01T12:30:00Z"))
    assert saved.time == "2026-07-01T12:30:00.000000Z"
    with pytest.raises(EventInvalid, match="lies before"):
        await store.save_event(ALICE, deposited(1, time="2026-07-01T12:29:00Z"))


async def test_events_keep_their_own_times_in_order(rig: Rig) -> None:
    store = rig.build()
    await store.save_events(ALICE, [NewEvent("Opened", {}, time="2020-01-01T01:00:00+01:00"), NewEvent("Deposited", {}, time="2020-01-02T00:00:00Z")])
    with pytest.raises(EventInvalid, match="lies before 2020-01-02"):
        await store.save_event(ALICE, NewEvent("Deposited", {}, time="2020-01-01T12:00:00Z"))
    with pytest.raises(EventInvalid, match="future"):
        await store.save_event(ALICE, NewEvent("Deposited", {}, time="2999-01-01T12:00:00Z"))
    with pytest.raises(EventInvalid, match="RFC 3339"):
        await store.save_event(ALICE, NewEvent("Deposited", {}, time="yesterday"))
    for moment in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"):
        with pytest.raises(EventInvalid, match="outside of the years 1 to 9999 in UTC"):
            await store.save_event(ALICE, NewEvent("Deposited", {}, time=moment))
    before = format_time(time.time())
    await store.save_event(ALICE, deposited(1))
    times = [event.time for event in await store.get_events(ALICE)]
    assert times[:2] == ["2020-01-01T00:00:00.000000Z", "2020-01-02T00:00:00.000000Z"]
    assert before <= times[2] <= format_time(time.time())


async def test_what_a_store_saves_passes_the_epoch_of_the_owner_on(rig: Rig) -> None:
    first = replace(build_next(ALICE, None), epoch=Epoch(7))
    await rig.log.append(first)
    await rig.build().save_event(ALICE, deposited(1))
    head = await rig.log.read_head(ALICE)
    assert head is not None
    assert (head.epoch, head.pod) == (7, "/event-store")


async def test_after_a_purge_versions_count_from_one_again(rig: Rig) -> None:
    stores = [rig.build(), rig.build(compile_account())]
    await stores[0].save_events(ALICE, [OPENED, deposited(5)])
    assert [await store.get_latest_version(ALICE) for store in stores] == [2, 2]
    await stores[1].save_event(ALICE, deposited(5))
    await rig.log.purge(ALICE, epoch=Epoch(2), writer="operator")
    with pytest.raises(VersionConflictError) as raised:
        await stores[0].save_event(ALICE, deposited(1), expected_version=2)
    assert raised.value.current == 0
    await stores[1].save_event(ALICE, OPENED)
    assert [(event.id, event.version) for event in await stores[0].get_events(ALICE)] == [("1.1", 1)]
    assert [await store.get_latest_version(ALICE, fresh=True) for store in stores] == [1, 1]


# The version cache.


async def test_the_version_comes_from_the_cache_where_it_can(rig: Rig) -> None:
    mine, theirs = rig.build(), rig.build()
    assert await mine.get_latest_version(ALICE) == 0
    await mine.save_event(ALICE, OPENED)
    assert await mine.get_latest_version(ALICE) == 1
    await theirs.save_event(ALICE, deposited(1))
    assert await mine.get_latest_version(ALICE) == 1, "nobody has told it"
    mine.update_version_cache(ALICE, 2)
    assert await mine.get_latest_version(ALICE) == 2
    mine.update_version_cache(ALICE, 1)
    assert await mine.get_latest_version(ALICE) == 2, "a lower one tells nothing"
    mine.forget_version(ALICE)
    assert await mine.get_latest_version(ALICE) == 2


async def test_a_told_version_saves_a_refused_append_and_never_lets_a_wrong_one_through(rig: Rig) -> None:
    log = FaultyCommitLog(rig.log)
    mine, theirs = EventStore(log, MemorySnapshotStore(), "default"), rig.build()
    await mine.save_event(ALICE, OPENED)
    await theirs.save_event(ALICE, deposited(1))
    mine.update_version_cache(ALICE, 2)
    await mine.save_event(ALICE, deposited(2), expected_version=2)
    assert len(log.appends) == 2, "none was refused"
    mine.update_version_cache(ALICE, 99)
    with pytest.raises(VersionConflictError) as raised:
        await mine.save_event(ALICE, deposited(3), expected_version=99)
    assert raised.value.current == 3
    await mine.save_event(ALICE, deposited(3))
    assert await mine.get_latest_version(ALICE) == 4


async def test_the_cache_is_bounded(rig: Rig) -> None:
    log = FaultyCommitLog(rig.log)
    store = EventStore(log, MemorySnapshotStore(), "default", settings=EventStoreSettings(actors_max=2))
    for id in ("a", "b", "c"):
        store.update_version_cache(parse_actor_id("default", "account", id), 5)
    assert [await store.get_latest_version(parse_actor_id("default", "account", id)) for id in ("b", "c")] == [5, 5]
    assert await store.get_latest_version(parse_actor_id("default", "account", "a")) == 0, "it was forgotten, and the log asked"


# Lost acks.


@pytest.mark.parametrize("models", [(), (compile_account,)], ids=["without models", "with models"])
@pytest.mark.parametrize("fate", [Fate.STORED_ACK_LOST, Fate.REFUSED])
async def test_whatever_becomes_of_an_append_its_events_are_saved_once(models: tuple[Callable[[], Model], ...], fate: Fate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.vm_reading.RETRY_S", 0.0)
    fates = [Fate.STORED, fate]
    log = FaultyCommitLog(MemoryCommitLog(), lambda commit: fates.pop(0) if fates else Fate.STORED)
    store = EventStore(log, MemorySnapshotStore(), "default", models=[model() for model in models])
    await store.save_event(ALICE, OPENED)
    await store.save_event(ALICE, deposited(1), expected_version=1)
    await store.save_event(ALICE, deposited(2), expected_version=2)
    assert [event.version for event in await store.get_events(ALICE)] == [1, 2, 3]


async def test_an_ack_that_never_comes_leaves_the_outcome_unknown_and_the_store_usable(rig: Rig) -> None:
    log = FaultyCommitLog(rig.log, lambda commit: Fate.HELD)
    store = EventStore(log, MemorySnapshotStore(), "default", settings=EventStoreSettings(timeout_s=0.05))
    with pytest.raises(RequestTimeout, match="may or may not be saved"):
        await store.save_event(ALICE, OPENED)
    log.choose = lambda commit: Fate.STORED
    await store.save_event(ALICE, OPENED, expected_version=0)
    assert await store.get_latest_version(ALICE) == 1


async def test_a_save_that_could_not_even_read_the_log_says_that_nothing_was_saved(rig: Rig) -> None:
    log = FaultyCommitLog(rig.log)
    log.away = True
    store = EventStore(log, MemorySnapshotStore(), "default", settings=EventStoreSettings(timeout_s=0.05))
    with pytest.raises(RequestTimeout, match="nothing was saved: no answer within"):
        await store.save_event(ALICE, OPENED)
    assert log.appends == []


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_save_on_a_closed_connection_fails_at_once(is_known: bool, rig: Rig) -> None:
    log, closed = FaultyCommitLog(rig.log), asyncio.Event()
    store = EventStore(log, MemorySnapshotStore(), "default", is_closed=closed.is_set)
    if is_known:
        await store.save_event(ALICE, OPENED)
    closed.set()
    log.away = True
    async with asyncio.timeout(5):
        for expected_version in (None, 1):
            with pytest.raises(Disconnected, match="nothing was saved: the connection is closed"):
                await store.save_event(ALICE, deposited(1), expected_version=expected_version)
    assert len(log.appends) == is_known


async def test_a_connection_that_is_closed_after_a_refusal_leaves_the_outcome_unknown() -> None:
    def choose(commit: Commit) -> Fate:
        closed.set()
        log.away = True
        return Fate.STORED_ACK_LOST

    log, closed = FaultyCommitLog(MemoryCommitLog(), choose), asyncio.Event()
    store = EventStore(log, MemorySnapshotStore(), "default", is_closed=closed.is_set)
    async with asyncio.timeout(5):
        with pytest.raises(Disconnected, match="may or may not be saved: the connection is closed"):
            await store.save_event(ALICE, OPENED)


# Reading what is broken.


async def test_a_long_history_is_read_in_batches_from_any_version(rig: Rig) -> None:
    store = rig.build()
    for _ in range(650):
        await store.save_events(ALICE, [deposited(1), deposited(2)])
    for from_version in (0, 1, 2, 599, 600, 1300, 1301):
        results = [result async for result in store.read_results(ALICE, from_version)]
        assert [event.version for result in results for event in result.events] == list(range(max(1, from_version), 1301))
        assert max((len(result.events) for result in results), default=0) <= 1024
        whole = await store.get_events_with_errors(ALICE, from_version)
        assert (len(whole.events), whole.is_whole) == (1301 - max(1, from_version), True)


async def test_a_commit_that_cannot_be_read_is_told_with_its_place_and_the_rest_is_read(rig: Rig) -> None:
    store = rig.build()
    await store.save_events(ALICE, [OPENED, deposited(1)])
    broken = build_next(ALICE, await rig.log.read_head(ALICE))
    await rig.log.append(replace(broken, payload=b"no events"))
    await rig.log.append(build_next(ALICE, await rig.log.read_head(ALICE)))
    result = await store.get_events_with_errors(ALICE)
    assert [event.version for event in result.events] == [1, 2, 4]
    assert [(error.actor, error.sequence) for error in result.errors] == [(ALICE, 2)]
    assert "not a batch of events" in result.errors[0].reason
    assert (await store.get_events_with_errors(ALICE, 4)).is_whole
    with pytest.raises(InvalidEnvelope, match=r"sequence 2 .*get_events_with_errors"):
        await store.get_events(ALICE)


async def test_a_gap_in_the_versions_is_told(rig: Rig) -> None:
    store = rig.build()
    await store.save_event(ALICE, OPENED)
    payload = join_events([encode_event(event) for event in build_events(ALICE, 3, 1)])
    await rig.log.append(replace(build_next(ALICE, await rig.log.read_head(ALICE)), first_version=3, last_version=3, payload=payload))
    result = await store.get_events_with_errors(ALICE)
    assert [event.version for event in result.events] == [1, 3]
    assert [(error.sequence, error.reason) for error in result.errors] == [(2, "versions 2 to 2, which should come before it, are missing")]


async def test_a_broken_end_of_the_log_refuses_saves(rig: Rig) -> None:
    store = rig.build()
    await store.save_event(ALICE, OPENED)
    await rig.log.append(replace(build_next(ALICE, await rig.log.read_head(ALICE)), payload=b"no events"))
    for fresh in (rig.build(), rig.build(compile_account())):
        with pytest.raises(EventInvalid):
            await fresh.save_event(ALICE, deposited(1))
