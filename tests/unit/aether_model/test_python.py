"""Models in Python: what an author may write, what is refused and in which words, and what a method can never break."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aether_api.envelope import Event
from aether_api.errors import CommandFailed, EventInvalid, InvalidEnvelope, ModelInvalid
from aether_api.v1alpha1 import ActorModelSpec
from aether_model.load import build_model
from aether_model.model import After, Cron, DomainEvent, Emitted, Model, NoOp, SetReminder, apply_each
from aether_model.model import CommandInput as Input
from aether_model.python import CancelReminder, CommandContext, CommandFields, EventContext, EventFields, PythonModel, Rejected, Remind, StateFields, applies, handles, upcasts
from aether_model.python_compile import compile_python

if TYPE_CHECKING:
    from decimal import Decimal as Missing

TIME = "2026-07-01T12:00:00.000000Z"


class Count(StateFields, frozen=True):
    total: int = 0
    seen: str = ""


class Add(CommandFields, frozen=True):
    by: int
    how: str = "once"


class Ring(CommandFields, frozen=True):
    pass


class Added(EventFields, frozen=True):
    schema_version: ClassVar[int] = 3
    by: int


class Rung(EventFields, frozen=True):
    at: str


class Unapplied(EventFields, frozen=True):
    pass


class Unhandled(CommandFields, frozen=True):
    pass


class Counter(PythonModel[Count]):
    """Does whatever its caller asks for, right or wrong."""

    name = "counter"

    @handles
    def add(self, state: Count, command: Add) -> Any:
        answers: dict[str, Callable[[], object]] = {
            "once": lambda: Added(command.by),
            "twice": lambda: [Added(command.by), Added(command.by)],
            "none": lambda: None,
            "empty": lambda: (),
            "noop": NoOp,
            "raise": lambda: 1 // 0,
            "typeless": lambda: Added("x"),  # type: ignore[arg-type]  # the test misbehaves on purpose
            "unapplied": Unapplied,
            "number": lambda: 7,
            "text": lambda: "Added",
            "busy": lambda: Rejected("Busy", "mine"),
            "wordy": lambda: Rejected("not a word", ""),
            "remind": lambda: (Added(1), Remind("tick", Ring(), After(1.5)), CancelReminder("tock")),
            "remind only": lambda: [Remind("tick", Ring(), After(1))],
            "remind unhandled": lambda: (Added(1), Remind("tick", Unhandled(), After(1))),
            "remind never": lambda: (Added(1), Remind("tick", Ring(), Cron("0 0 9 30 2 *"))),
            "remind nameless": lambda: (Added(1), Remind("a.b", Ring(), After(1))),
            "remind wrong": lambda: (Added(1), Remind("tick", Add("x"), After(1))),  # type: ignore[arg-type]  # likewise
        }
        return answers[command.how]()

    @handles("Ring", "RingTheBell")
    def ring(self, state: Count, command: Ring, context: CommandContext) -> Rung:
        return Rung(f"{context.actor_id} {context.version} {context.moment().isoformat()}")

    @applies("Added", "Increased")
    def added(self, state: Count, event: Added) -> Count:
        return replace(state, total=state.total + event.by)

    @applies
    def rung(self, state: Count, event: Rung, context: EventContext) -> Count:
        return replace(state, seen=f"{event.at} {context.version} {context.moment().isoformat()}")

    @upcasts("Added", 1)
    def added_1(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"amount": data["number"]}

    @upcasts("Added", 2)
    def added_2(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"by": data["amount"]}

    @upcasts("Increased", 1)
    def increased_1(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"amount": data["n"]}

    @upcasts("Increased", 2)
    def increased_2(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"by": data["amount"]}


@pytest.fixture(scope="module")
def counter() -> Model:
    return compile_python(Counter)


def ask(model: Model, name: str, payload: bytes = b"{}") -> object:
    return model.decide(model.initial_state(), Input(name, payload, "a-1", 4, TIME))


def add(model: Model, how: str) -> object:
    return ask(model, "Add", msgspec.json.encode({"by": 2, "how": how}))


def test_a_handler_returns_one_event_or_several_or_none(counter: Model) -> None:
    added = DomainEvent("Added", b'{"by":2}', 3)
    assert add(counter, "once") == Emitted((added,))
    assert add(counter, "twice") == Emitted((added, added))
    assert [add(counter, how) for how in ("none", "empty", "noop")] == [NoOp()] * 3


def test_a_handler_may_know_actor_version_and_time(counter: Model) -> None:
    decision = ask(counter, "Ring")
    assert decision == Emitted((DomainEvent("Rung", b'{"at":"a-1 4 2026-07-01T12:00:00+00:00"}'),))
    assert decision == ask(counter, "RingTheBell")
    assert counter.apply(counter.initial_state(), "Rung", b'{"at":"x"}', time=TIME, version=5) == Count(0, "x 5 2026-07-01T12:00:00+00:00")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", "command Add: add raised ZeroDivisionError: "),
        ("missing", "command Add: add raised KeyError: 'missing'"),
        ("unapplied", "command Add returned Unapplied, which no @applies method takes"),
        ("number", "command Add returned int, which no @applies method takes"),
        ("text", "command Add returned str, which no @applies method takes"),
        ("busy", "command Add was rejected with the reason 'Busy', which is Aether's own"),
        ("wordy", "command Add was rejected with the reason 'not a word'"),
        ("remind only", "command Add returned reminders without an event"),
        ("remind unhandled", "command Add, reminder tick: no @handles method takes Unhandled"),
        ("remind never", "command Add, reminder 'tick': cron '0 0 9 30 2 *' names a day that no such month has"),
        ("remind nameless", "command Add, reminder 'a.b': its name must be"),
        ("remind wrong", "command Add, reminder tick: Add: by: Expected `int`, got `str`"),
    ],
)
def test_what_a_handler_may_not_do_fails_its_command(counter: Model, how: str, words: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        add(counter, how)
    assert str(caught.value).startswith(words)


def test_an_event_that_does_not_fit_its_own_type_is_found_before_it_is_stored(counter: Model) -> None:
    decision = add(counter, "typeless")
    assert isinstance(decision, Emitted)
    with pytest.raises(EventInvalid, match="event Added, version 5: by: Expected `int`, got `str`"):
        counter.apply(counter.initial_state(), "Added", decision.events[0].data, time=TIME, version=5, schema_version=3)


def test_reminders_go_with_the_events_and_name_the_command_as_the_wire_does(counter: Model) -> None:
    decision = add(counter, "remind")
    assert isinstance(decision, Emitted)
    assert decision.reminders == (SetReminder("tick", "Ring", b"{}", After(1.5)), CancelReminder("tock"))


@pytest.mark.parametrize(
    ("event_type", "data", "schema_version", "total"),
    [("Added", b'{"by":5}', 3, 5), ("Added", b'{"amount":5}', 2, 5), ("Added", b'{"number":5}', 1, 5), ("Increased", b'{"n":5}', 1, 5), ("Increased", b'{"by":5}', 3, 5)],
)
def test_events_of_older_names_and_schemas_are_applied(counter: Model, event_type: str, data: bytes, schema_version: int, total: int) -> None:
    assert counter.apply(Count(), event_type, data, time=TIME, version=1, schema_version=schema_version) == Count(total)


@pytest.mark.parametrize(
    ("data", "schema_version", "words"),
    [
        (b'{"by":5}', 4, "its schema version is 4, this model knows 3"),
        (b"{}", 1, "raised KeyError: 'number'"),
        (b"[]", 1, "Expected `object`"),
        (b'{"number":"x"}', 1, "by: Expected `int`, got `str`"),
    ],
)
def test_an_event_that_cannot_be_read_is_invalid(counter: Model, data: bytes, schema_version: int, words: str) -> None:
    with pytest.raises(EventInvalid) as caught:
        counter.apply(Count(), "Added", data, time=TIME, version=1, schema_version=schema_version)
    assert str(caught.value).startswith("event Added, version 1: ")
    assert str(caught.value).removeprefix("event Added, version 1: ").removeprefix("added ").startswith(words)


class Below(StateFields, frozen=True):
    total: int = 0

    def __post_init__(self) -> None:
        assert self.total < 10, "ten is too much"


class Reach(CommandFields, frozen=True):
    total: int

    def __post_init__(self) -> None:
        if self.total < 0:
            raise ValueError("it must not be negative")
        {0: 1, 5: 6}[self.total]


class Reached(EventFields, frozen=True):
    total: int


class Careful(PythonModel[Below]):
    """Its structs look at themselves."""

    name = "careful"

    @handles
    def reach(self, state: Below, command: Reach) -> Reached:
        return Reached(command.total)

    @applies
    def reached(self, state: Below, event: Reached) -> Below:
        return Below(event.total)


def test_a_state_that_its_class_refuses_is_none_whatever_the_class_raises() -> None:
    model = compile_python(Careful)
    assert model.decode_state(b'{"total":9}') == Below(9)
    with pytest.raises(InvalidEnvelope, match=r"^not a state of model careful: reading it raised AssertionError: ten is too much"):
        model.decode_state(b'{"total":10}')


def test_a_command_whose_struct_raises_fails_and_one_that_its_struct_refuses_is_rejected() -> None:
    model = compile_python(Careful)
    assert ask(model, "Reach", b'{"total":5}') == Emitted((DomainEvent("Reached", b'{"total":5}'),))
    assert ask(model, "Reach", b'{"total":-1}') == Rejected("InvalidCommand", "Reach: it must not be negative")
    with pytest.raises(CommandFailed, match=r"^command Reach: reading its fields raised KeyError: 1$"):
        ask(model, "Reach", b'{"total":1}')


class Void(StateFields, frozen=True):
    total: int = 0

    def __post_init__(self) -> None:
        if not self.total:
            raise AssertionError("nothing is too little")


class Hollow(PythonModel[Void]):
    name = "hollow"

    @handles
    def ring(self, state: Void, command: Ring) -> None:
        return None


def test_a_class_whose_initial_state_cannot_be_made_is_refused() -> None:
    with pytest.raises(ModelInvalid) as caught:
        compile_python(Hollow)
    assert caught.value.problems == ("state Void: the initial state cannot be made of its defaults: AssertionError: nothing is too little",)


class Sloppy(PythonModel[Count]):
    name = "sloppy"

    @handles
    def ring(self, state: Count, command: Ring) -> Rung:
        return Rung("")

    @applies
    def rung(self, state: Count, event: Rung) -> Count:
        if event.at == "raise":
            raise LookupError("no such thing")
        return None if event.at == "nothing" else replace(state, seen={1, object()})  # type: ignore[return-value]  # likewise


Stored = tuple[str, bytes, int]
STORED: list[Stored] = [
    ("Added", b'{"by":1}', 3),
    ("Added", b'{"amount":10}', 2),
    ("Added", b'{"number":100}', 1),
    ("Increased", b'{"by":1000}', 3),
    ("Increased", b'{"n":10000}', 1),
    ("Rung", b'{"at":"noon"}', 1),
]
WRONG: list[Stored] = [("Added", b'{"by":"x"}', 3), ("Added", b"[]", 3), ("Added", b'{"by":1}', 4), ("Subtracted", b"{}", 1), ("Rung", b"{}", 1)]


def build_event(version: int, event_type: str, data: bytes, schema_version: int) -> Event:
    return Event("1.0", str(version), "/aether/d/counter/a", event_type, TIME, msgspec.Raw(data), schema_version=schema_version)


def apply_one_by_one(model: Model, events: Iterable[Event], version: int) -> object:
    try:
        return apply_each(model, model.initial_state(), events, version)
    except EventInvalid as exc:
        return str(exc)


def apply_at_once(model: Model, events: Iterable[Event], version: int) -> object:
    try:
        return model.apply_all(model.initial_state(), events, version)
    except EventInvalid as exc:
        return str(exc)


@given(st.lists(st.sampled_from(STORED), max_size=8), st.none() | st.sampled_from(WRONG), st.lists(st.sampled_from(STORED), max_size=3))
def test_events_in_a_row_give_what_they_give_one_by_one(before: list[Stored], wrong: Stored | None, after: list[Stored]) -> None:
    model = compile_python(Counter)
    stored = [*before, *([wrong] if wrong else []), *after]
    events = [build_event(version, *item) for version, item in enumerate(stored, start=8)]
    assert apply_at_once(model, events, 7) == apply_one_by_one(model, events, 7)
    assert isinstance(apply_at_once(model, events, 7), str if wrong else Count)


@pytest.mark.parametrize("at", ["raise", "nothing"])
def test_a_method_that_fails_is_told_the_same_in_a_row(at: str) -> None:
    model = compile_python(Sloppy)
    events = [build_event(version, "Rung", msgspec.json.encode({"at": text}), 1) for version, text in enumerate(["fine", at, "fine"], start=1)]
    assert apply_at_once(model, events, 0) == apply_one_by_one(model, events, 0)
    assert "version 2" in str(apply_at_once(model, events, 0))


class Leap(CommandFields, frozen=True):
    how: str


class Leapt(EventFields, frozen=True):
    how: str

    def __post_init__(self) -> None:
        leave(self.how, "made")


class Leaper(PythonModel[Below]):
    name = "leaper"

    @handles
    def leap(self, state: Below, command: Leap) -> Leapt | None:
        leave(command.how, "decided")
        return Leapt("nowhere")

    @applies
    def leapt(self, state: Below, event: Leapt) -> Below:
        leave(event.how, "applied")
        return Below(1)


def leave(how: str, where: str) -> None:
    """Do what ends a process or a task, if this is the place."""
    if how == f"exit when {where}":
        sys.exit(3)
    if how == f"cancel when {where}":
        raise asyncio.CancelledError("gone")


@pytest.mark.parametrize(("how", "raised"), [("exit", "SystemExit: 3"), ("cancel", "CancelledError: gone")])
def test_code_that_ends_processes_or_tasks_costs_its_command_or_its_actor(how: str, raised: str) -> None:
    model = compile_python(Leaper)
    with pytest.raises(CommandFailed, match=f"^command Leap: leap raised {raised}$"):
        ask(model, "Leap", msgspec.json.encode(Leap(f"{how} when decided")))
    for where in ("made", "applied"):
        event = build_event(7, "Leapt", msgspec.json.encode({"how": f"{how} when {where}"}), 1)
        with pytest.raises(EventInvalid, match=f"^event Leapt, version 7: leapt raised {raised}$"):
            model.apply_all(model.initial_state(), [event], 6)
        with pytest.raises(EventInvalid, match=f"^event Leapt, version 7: leapt raised {raised}$"):
            model.apply(model.initial_state(), "Leapt", bytes(event.data), time=TIME, version=7)


def test_a_method_that_fails_to_apply_makes_the_event_invalid() -> None:
    model = compile_python(Sloppy)
    for at, words in (("raise", "rung raised LookupError: no such thing"), ("nothing", "rung returned NoneType, not Count")):
        with pytest.raises(EventInvalid, match=words):
            model.apply(Count(), "Rung", msgspec.json.encode({"at": at}), time=TIME, version=1)


class Moved(EventFields, frozen=True):
    schema_version: ClassVar[int] = 2
    to: dict[int, dict[int, str]]


class Shelf(PythonModel[Count]):
    """Its events have numbers for keys, which JSON writes as texts."""

    name = "shelf"

    @handles
    def ring(self, state: Count, command: Ring) -> None:
        pass

    @applies
    def moved(self, state: Count, event: Moved) -> Count:
        return replace(state, total=sum(event.to), seen=event.to[3][4])

    @upcasts("Moved", 1)
    def moved_1(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"to": {**data["moved"], 2: {}}}


def test_an_older_event_with_numbers_for_keys_is_read_as_a_new_one() -> None:
    model = compile_python(Shelf)
    assert model.apply(Count(), "Moved", b'{"to":{"2":{},"3":{"4":"x"}}}', time=TIME, version=1, schema_version=2) == Count(5, "x")
    assert model.apply(Count(), "Moved", b'{"moved":{"3":{"4":"x"}}}', time=TIME, version=1, schema_version=1) == Count(5, "x")


def test_a_state_that_json_cannot_hold_is_an_error_and_no_crash() -> None:
    model = compile_python(Sloppy)
    with pytest.raises(InvalidEnvelope, match="the state of model sloppy cannot be written as JSON"):
        model.encode_state(model.apply(Count(), "Rung", b'{"at":""}', time=TIME, version=1))


class Needy(msgspec.Struct):
    size: int


class Loose(msgspec.Struct):
    by: int


class Row(EventFields, frozen=True, array_like=True):
    by: int


class Odd(CommandFields, frozen=True):
    what: complex


class Unclear(CommandFields, frozen=True):
    what: Add | Ring


class Broken(PythonModel[Count]):
    name = "Broken Model"

    @handles
    def loose(self, state: Count, command: Loose) -> Unapplied | list[Rung]:
        return []

    @handles("Loose")
    def again(self, state: Count, command: Add) -> None:
        return None

    @handles
    def odd(self, state: Count, command: Odd) -> None:
        return None

    @handles
    def tick(self, state: Count, command: Unhandled) -> Remind | tuple[CancelReminder, ...]:
        return ()

    @handles
    def unclear(self, state: Count, command: Unclear) -> None:
        return None

    @handles
    def short(self, command: Ring) -> None:
        return None

    @handles("no name")
    def silent(self, state: Count, command: Ring):  # type: ignore[no-untyped-def]  # the test misbehaves on purpose
        return None

    @handles
    def unread(self, state: Count, command: Missing) -> None:
        return None

    @handles("no name")
    def unnamed(self, state: Count, command: Ring) -> None:
        return None

    @applies
    def row(self, state: Count, event: Row) -> Row:
        return event

    @applies
    def rung(self, state: Count, event: Rung) -> Count:
        return state

    @applies("Pealed")
    def pealed(self, state: Count, event: Rung) -> Count:
        return state

    @upcasts("Pealed", 1)
    def pealed_1(self, data: dict[str, Any]) -> dict[str, Any]:
        return data

    @handles("Wait")
    async def waiting(self, state: Count, command: Ring) -> None:
        return None

    @applies("Waited")
    async def waited(self, state: Count, event: Added) -> Count:
        return state

    @handles("Yield")
    def yielding(self, state: Count, command: Ring) -> Iterator[Rung]:
        yield Rung("")

    @upcasts("Pealed", 2)
    async def pealed_2(self, data: dict[str, Any]) -> dict[str, Any]:
        return data

    @upcasts("Sung", 1)
    def sung_1(self, data: dict[str, Any]) -> dict[str, Any]:
        return data


def problems_of(definition: type[PythonModel[Any]]) -> tuple[str, ...]:
    with pytest.raises(ModelInvalid) as caught:
        compile_python(definition)
    return caught.value.problems


@pytest.mark.parametrize(
    "words",
    [
        "Broken: name 'Broken Model' must be",
        "command Loose: derive it from CommandFields, or make it frozen",
        "command Loose: derive it from CommandFields, so that fields that are not named are refused",
        "loose: it returns Unapplied, which no @applies method takes",
        "loose: again takes the command Loose already",
        "command Odd: its fields cannot be read from JSON",
        "command Unclear: its fields cannot be read from JSON",
        "tick: it sets or cancels a reminder without any event",
        "short: its parameters must be (self, state: Count, command: <a struct>[, context: CommandContext])",
        "silent: say what it returns",
        "unread: its annotations cannot be read, which must work without TYPE_CHECKING: NameError",
        "unnamed: the name 'no name' must be",
        "waiting: write def instead of async def",
        "waited: write def instead of async def",
        "pealed_2: write def instead of async def",
        "yielding: it must return its answer, a list for several events",
        "event Row: array_like gives no JSON object",
        "row: it must return the state, Count",
        "rung: another method applies Rung already",
        "event Pealed: its schema version is 1, so @upcasts methods must lead there without a gap",
        "@upcasts('Sung', 1): there is no event Sung",
    ],
)
def test_every_problem_of_a_class_is_named(words: str) -> None:
    problems = problems_of(Broken)
    assert [problem for problem in problems if problem.startswith(words)] != [], problems


class Stateless(PythonModel):  # type: ignore[type-arg]  # the test misbehaves on purpose
    name = "stateless"


class Unborn(PythonModel[Needy]):
    name = "unborn"


class Dependent(PythonModel[Count]):
    name = "dependent"

    def __init__(self, connection: object) -> None:
        self.connection = connection


class Silent(PythonModel[Count]):
    name = "silent"


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        (Stateless, "Stateless: write the struct of the state into the base class: PythonModel[AccountState]"),
        (Unborn, "state Needy: size must have defaults: all defaults together are the initial state"),
        (Unborn, "state Needy: derive it from StateFields, or make it frozen: it is shared"),
        (Dependent, "Dependent: it cannot be made without arguments: TypeError"),
        (Silent, "Silent: it has no @handles method, so nobody could send it a command"),
    ],
)
def test_a_class_that_could_never_run_is_refused(definition: type[PythonModel[Any]], words: str) -> None:
    assert [problem for problem in problems_of(definition) if problem.startswith(words)] != []


SOURCE = """
from aether_model.python import *
class S(StateFields, frozen=True):
    n: int = 0
class Go(CommandFields, frozen=True):
    pass
class Gone(EventFields, frozen=True):
    pass
class Model(PythonModel[S]):
    name = "walker"
    state_version = 1
    @handles
    def go(self, state: S, command: Go) -> Gone:
        return Gone()
    @applies
    def gone(self, state: S, event: Gone) -> S:
        return S(state.n + 1)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Write the module `walker_model` anew, as another image would hold it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write_source(source: str) -> None:
        (tmp_path / "walker_model.py").write_text(source)
        sys.modules.pop("walker_model", None)
        importlib.invalidate_caches()
        import linecache

        linecache.clearcache()

    yield write_source
    sys.modules.pop("walker_model", None)


def load(name: str = "walker", handler: str = "walker_model:Model", **spec: Any) -> Model:
    return build_model(name, ActorModelSpec.model_validate({"python": {"handler": handler}, **spec}))


@pytest.mark.parametrize(
    ("before", "after", "content_kept", "fold_kept"),
    [
        ("", "", True, True),
        ("S(state.n + 1)", "S(state.n + 2)", False, True),
        ("state_version = 1", "state_version = 2", False, False),
        ("n: int = 0", "n: int = 1", False, False),
        ("n: int = 0", "n: int = 0; m: int = 0", False, False),
    ],
)
def test_what_changes_the_hashes(write: Callable[[str], None], before: str, after: str, content_kept: bool, fold_kept: bool) -> None:
    write(SOURCE)
    old = load()
    write(SOURCE.replace(before, after))
    new = load()
    assert (new.content_hash == old.content_hash, new.fold == old.fold) == (content_kept, fold_kept)


def test_the_resource_or_the_class_may_allow_actors_on_demand(write: Callable[[str], None]) -> None:
    write(SOURCE)
    assert (load().on_demand, load(onDemand=True).on_demand) == (False, True)


@pytest.mark.parametrize(
    ("name", "handler", "words"),
    [
        ("walker", "walker_mudel:Model", "walker_mudel:Model cannot be imported here: ModuleNotFoundError: No module named 'walker_mudel'"),
        ("walker", "walker_model:Modle", "walker_model:Modle cannot be imported here: AttributeError"),
        ("walker", "walker_model:S", "walker_model:S is no subclass of aether_model.python.PythonModel"),
        ("runner", "walker_model:Model", "walker_model:Model is named 'walker'; its ActorModel must have the same name"),
    ],
)
def test_a_class_that_is_not_there_is_refused_with_the_reason(write: Callable[[str], None], name: str, handler: str, words: str) -> None:
    write(SOURCE)
    with pytest.raises(ModelInvalid) as caught:
        load(name, handler)
    assert caught.value.problems[0].startswith(f"spec.python.handler: {words}")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise RuntimeError('no database')", "cannot be imported here: RuntimeError: no database"),
        ("import sys; sys.exit(3)", "cannot be imported here: SystemExit: 3"),
        (SOURCE + "    def __init__(self): raise SystemExit(4)", "Model: it cannot be made without arguments: SystemExit: 4"),
    ],
)
def test_a_module_that_raises_or_exits_is_refused_with_its_error(write: Callable[[str], None], source: str, error: str) -> None:
    write(source)
    with pytest.raises(ModelInvalid, match=error):
        load()


def test_a_model_is_in_yaml_or_in_python_but_not_in_both(write: Callable[[str], None]) -> None:
    write(SOURCE)
    with pytest.raises(ModelInvalid) as caught:
        load(commands={"Go": {}}, state={"properties": {"n": {"type": "integer", "default": 0}}})
    assert caught.value.problems == (
        "spec.commands: a model is written in YAML or in Python: with spec.python, leave this out",
        "spec.state: a model is written in YAML or in Python: with spec.python, leave this out",
    )
