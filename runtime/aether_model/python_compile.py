"""Checks a model in Python and makes it ready to run: everything is looked at once, here, and every problem is reported.

Checking reads annotations only and calls nothing, so it is safe for whatever imports. `content_hash` covers the source of every
module that the model's class and structs come from; `fold` covers the declared `state_version` and the schema of the state,
since no tool can tell whether changed code folds alike (so do Akka's and Orleans' versions): a comment drops no snapshot.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any, Final, TypeGuard, cast, get_args, get_origin, get_type_hints

import msgspec
import orjson

from aether_api.errors import InvalidName, ModelInvalid
from aether_api.identity import MEMBER_PATTERN, check_name
from aether_model.compile import HASH_LENGTH
from aether_model.model import CancelReminder, NoOp, Rejected
from aether_model.python import APPLIES, HANDLES, UPCASTS, CommandContext, EventContext, PythonModel, Remind
from aether_model.python_model import ANY_FAULT, Applier, Handler, PythonRuntimeModel, Upcast

FOLD_FORMAT: Final = 1
"""Raised when the same model would fold the same events into another state."""

HANDLER_PATH: Final = "spec.python.handler"
"""Field of an ActorModel that names the class; problems of importing it name this field."""

_ANSWERS: Final = frozenset[object]({Rejected, NoOp, Remind, CancelReminder, type(None), Any, object})
"""What a handler may say that it returns, beside events; of `Any` and `object` nothing is known before it runs."""

_MEMBER = re.compile(MEMBER_PATTERN)


@dataclass(slots=True)
class _Findings:
    """What checking collects."""

    problems: list[str] = field(default_factory=list[str])
    handlers: dict[str, Handler] = field(default_factory=dict[str, Handler])
    appliers: dict[str, Applier] = field(default_factory=dict[str, Applier])
    event_names: dict[type[object], tuple[str, int]] = field(default_factory=dict[type[object], tuple[str, int]])
    command_names: dict[type[object], str] = field(default_factory=dict[type[object], str])
    returned: dict[str, frozenset[type[object]]] = field(default_factory=dict[str, frozenset[type[object]]])


@dataclass(frozen=True, slots=True)
class _Method:
    """A marked method: what it takes beside the state, and what it returns."""

    name: str
    names: tuple[str, ...]
    takes: type[msgspec.Struct]
    run: Callable[..., Any]
    wants_context: bool
    returns: frozenset[type[object]]


def load_python_model(name: str, handler: str) -> PythonRuntimeModel:
    """Import the class `package.module:Class` and compile it as the model `name`.

    Raises:
        ModelInvalid: it cannot be imported, has another name, or has problems.
    """
    module_name, _, class_name = handler.partition(":")
    try:
        found: object = getattr(importlib.import_module(module_name), class_name)
    except ANY_FAULT as exc:  # importing runs whatever an author wrote, such as a script that ends with sys.exit
        raise ModelInvalid(name, (f"{HANDLER_PATH}: {handler} cannot be imported here: {type(exc).__name__}: {exc}",)) from exc
    if not _is_definition(found):
        raise ModelInvalid(name, (f"{HANDLER_PATH}: {handler} is no subclass of aether_model.python.PythonModel",))
    if found.name != name:
        raise ModelInvalid(name, (f"{HANDLER_PATH}: {handler} is named {found.name!r}; its ActorModel must have the same name",))
    return compile_python(found)


def compile_python(definition: type[PythonModel[Any]]) -> PythonRuntimeModel:
    """Check a class and make it a model that runs.

    Raises:
        ModelInvalid: with every problem of the class, one line each.
    """
    findings = _Findings()
    _check_name(definition, findings)
    state_type = _read_state_type(definition, findings)
    model = _instantiate(definition, findings)
    if state_type is not None and model is not None:
        _read_members(model, state_type, findings)
        _check_returns(findings)
    if findings.problems or state_type is None:
        raise ModelInvalid(definition.name or definition.__name__, tuple(sorted(findings.problems)))
    types = {definition, state_type, *findings.command_names, *(applier.type for applier in findings.appliers.values())}
    return PythonRuntimeModel(
        name=definition.name,
        version=definition.version,
        content_hash=_hash([definition.__qualname__, definition.version, _sources_of(types)]),
        fold=_hash([FOLD_FORMAT, definition.name, definition.state_version, msgspec.json.schema(state_type)]),
        on_demand=definition.on_demand,
        handlers=findings.handlers,
        appliers=findings.appliers,
        event_names=findings.event_names,
        command_names=findings.command_names,
        state_type=state_type,
        _decode_state=msgspec.json.Decoder(state_type).decode,
    )


def _check_name(definition: type[PythonModel[Any]], findings: _Findings) -> None:
    try:
        check_name("name", definition.name)
    except InvalidName as exc:
        findings.problems.append(f"{definition.__name__}: {exc}")


def _read_state_type(definition: type[PythonModel[Any]], findings: _Findings) -> type[msgspec.Struct] | None:
    """Return the struct in `PythonModel[...]`."""
    bases = [base for kind in definition.__mro__ for base in getattr(kind, "__orig_bases__", ()) if get_origin(base) is PythonModel]
    found = get_args(bases[0])[0] if bases else None
    if not (isinstance(found, type) and issubclass(found, msgspec.Struct)):
        findings.problems.append(f"{definition.__name__}: write the struct of the state into the base class: PythonModel[AccountState]")
        return None
    if not _check_struct(found, "state", findings):
        return None
    fields = msgspec.structs.fields(found)
    required = [item.name for item in fields if item.required]
    if required:
        findings.problems.append(f"state {found.__name__}: {', '.join(required)} must have defaults: all defaults together are the initial state")
        return None
    try:
        found()
    except ANY_FAULT as exc:  # its `__post_init__` is the author's
        findings.problems.append(f"state {found.__name__}: the initial state cannot be made of its defaults: {type(exc).__name__}: {exc}")
        return None
    return found


def _instantiate(definition: type[PythonModel[Any]], findings: _Findings) -> PythonModel[Any] | None:
    try:
        return definition()
    except ANY_FAULT as exc:  # making it runs whatever an author wrote
        findings.problems.append(f"{definition.__name__}: it cannot be made without arguments: {type(exc).__name__}: {exc}")
        return None


def _read_members(model: PythonModel[Any], state_type: type[msgspec.Struct], findings: _Findings) -> None:
    functions = [function for _, function in inspect.getmembers(type(model), inspect.isfunction)]
    upcasts = {mark: getattr(model, function.__name__) for function in functions if (mark := getattr(function, UPCASTS, None)) is not None}
    findings.problems += [f"{function.__name__}: {wrong}" for function in functions if (wrong := _why_not_plain(function))]
    for function in functions:
        if hasattr(function, HANDLES):
            method = _read_method(model, function, HANDLES, state_type, findings)
            if method is not None:
                _add_handler(method, findings)
        elif hasattr(function, APPLIES):
            method = _read_method(model, function, APPLIES, state_type, findings)
            if method is not None:
                _add_applier(method, upcasts, state_type, findings)
    if not findings.handlers:
        findings.problems.append(f"{type(model).__name__}: it has no @handles method, so nobody could send it a command")
    known = set(findings.appliers)
    findings.problems += [f"@upcasts({event!r}, {version}): there is no event {event}" for event, version in upcasts if event not in known]


def _read_method(model: PythonModel[Any], function: FunctionType, mark: str, state_type: type[msgspec.Struct], findings: _Findings) -> _Method | None:
    """Read a marked method's annotations."""
    context = CommandContext if mark == HANDLES else EventContext
    wanted = f"({'self, state: ' + state_type.__name__}, {'command' if mark == HANDLES else 'event'}: <a struct>[, context: {context.__name__}])"
    try:
        hints = get_type_hints(function)
    except ANY_FAULT as exc:  # annotations are expressions of the author's
        findings.problems.append(f"{function.__name__}: its annotations cannot be read, which must work without TYPE_CHECKING: {type(exc).__name__}: {exc}")
        return None
    parameters = list(inspect.signature(function).parameters)[1:]
    types = [hints.get(name) for name in parameters]
    if len(types) not in (2, 3) or types[0] is not state_type or types[2:] not in ([], [context]) or not _is_struct(types[1]):
        findings.problems.append(f"{function.__name__}: its parameters must be {wanted}")
        return None
    if "return" not in hints:
        findings.problems.append(f"{function.__name__}: say what it returns")
        return None
    taken = cast("type[msgspec.Struct]", types[1])
    names = cast("tuple[str, ...]", getattr(function, mark)) or (taken.__name__,)
    findings.problems += [f"{function.__name__}: the name {name!r} must be a letter, then letters, digits and '_', at most 63" for name in names if not _MEMBER.fullmatch(name)]
    return _Method(function.__name__, names, taken, getattr(model, function.__name__), len(types) == 3, frozenset(_classes_in(hints["return"])))


def _why_not_plain(function: FunctionType) -> str:
    """Return why a marked method gives no answer when it is called: it would fail with every command or event."""
    if not any(hasattr(function, mark) for mark in (HANDLES, APPLIES, UPCASTS)):
        return ""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return "write def instead of async def: a method of a model is called once and waits for nothing"
    return "it must return its answer, a list for several events, instead of yielding it" if inspect.isgeneratorfunction(function) else ""


def _add_handler(method: _Method, findings: _Findings) -> None:
    if not _check_struct(method.takes, "command", findings):
        return
    if not method.takes.__struct_config__.forbid_unknown_fields:
        findings.problems.append(f"command {method.takes.__name__}: derive it from CommandFields, so that fields that are not named are refused")
    decode = msgspec.json.Decoder(method.takes).decode
    fields = method.takes.__struct_encode_fields__
    for name in method.names:
        if name in findings.handlers:
            findings.problems.append(f"{method.name}: {findings.handlers[name].method} takes the command {name} already")
        findings.handlers[name] = Handler(name, method.name, fields, decode, method.run, method.wants_context)
        findings.returned[method.name] = method.returns
    findings.command_names.setdefault(method.takes, method.names[0])


def _add_applier(method: _Method, upcasts: dict[tuple[str, int], Upcast], state_type: type[msgspec.Struct], findings: _Findings) -> None:
    if not _check_struct(method.takes, "event", findings):
        return
    if method.returns != frozenset[object]({state_type}):
        findings.problems.append(f"{method.name}: it must return the state, {state_type.__name__}")
    decode = msgspec.json.Decoder(method.takes).decode
    current: int = getattr(method.takes, "schema_version", 1)
    for name in method.names:
        if name in findings.appliers:
            findings.problems.append(f"{method.name}: {findings.appliers[name].method} takes the event {name} already")
        steps = {version: upcast for (event, version), upcast in upcasts.items() if event == name}
        if steps.keys() != set(range(min(steps, default=current), current)):
            findings.problems.append(f"event {name}: its schema version is {current}, so @upcasts methods must lead there without a gap, and no further")
        findings.appliers[name] = Applier(method.name, method.takes, current, steps, decode, method.run, method.wants_context)
    if method.takes in findings.event_names:
        findings.problems.append(f"{method.name}: another method applies {method.takes.__name__} already")
    findings.event_names[method.takes] = (method.names[0], current)


def _check_struct(kind: type[msgspec.Struct], what: str, findings: _Findings) -> bool:
    """Note what is wrong with a struct; False if JSON cannot hold it."""
    try:
        msgspec.json.schema(kind)
        msgspec.json.Decoder(kind)
    except TypeError as exc:
        findings.problems.append(f"{what} {kind.__name__}: its fields cannot be read from JSON: {exc}")
        return False
    base = {"command": "CommandFields", "event": "EventFields", "state": "StateFields"}[what]
    if not kind.__struct_config__.frozen:
        findings.problems.append(f"{what} {kind.__name__}: derive it from {base}, or make it frozen: it is shared")
    if kind.__struct_config__.array_like:
        findings.problems.append(f"{what} {kind.__name__}: array_like gives no JSON object")
    return True


def _check_returns(findings: _Findings) -> None:
    """What a handler says that it returns must be something that becomes a decision."""
    known = set(findings.event_names) | _ANSWERS
    for method, returned in sorted(findings.returned.items()):
        findings.problems += [f"{method}: it returns {kind.__name__}, which no @applies method takes" for kind in returned - known]
        if returned & {Remind, CancelReminder} and not returned & set(findings.event_names):
            findings.problems.append(f"{method}: it sets or cancels a reminder without any event; reminders take effect with the commit of one")


def _classes_in(hint: object) -> Iterator[type[object]]:
    """Yield the classes that an annotation is made of, containers aside."""
    arguments = get_args(hint)
    if arguments:
        for argument in arguments:
            yield from _classes_in(argument)
    elif isinstance(hint, type):
        yield hint


def _is_definition(found: object) -> TypeGuard[type[PythonModel[Any]]]:
    return isinstance(found, type) and issubclass(found, PythonModel)


def _is_struct(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def _sources_of(types: set[type[Any]]) -> list[str]:
    """Return the source of every module that the types come from; a model that has none (a console) is named only."""
    modules = {module for kind in types if (module := sys.modules.get(kind.__module__)) is not None}
    return [source for module in sorted(modules, key=lambda module: module.__name__) if (source := _source_of(module))]


def _source_of(module: ModuleType) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return ""


def _hash(content: object) -> str:
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:HASH_LENGTH]
