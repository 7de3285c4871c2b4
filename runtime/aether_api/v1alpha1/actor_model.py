"""The `ActorModel` resource: an event-storming model that can be run.

State, commands with guards, and events with what they change, in YAML with CEL expressions; or the name of a Python class. The words are those of
Kubernetes' own validation rules (`rule`, `message`, `messageExpression`, `reason`). The classes below check the shape;
`aether_model` checks the meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from aether_api.identity import MEMBER_LENGTH_MAX, MEMBER_PATTERN
from aether_api.v1alpha1.meta import Condition, ResourceClass, ReturnedByCluster, TypedByPeople

EXPRESSION_LENGTH_MAX = 4096
"""Characters of one CEL expression: far above what people write, far below what could hide a bomb."""

HANDLER_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
"""`package.module:Class`, as setuptools and uvicorn write it."""

Expression = Annotated[str, Field(min_length=1, max_length=EXPRESSION_LENGTH_MAX)]
MemberName = Annotated[str, Field(pattern=MEMBER_PATTERN, max_length=MEMBER_LENGTH_MAX)]
SchemaType = Literal["string", "integer", "number", "boolean", "array", "object"]


class JsonSchema(TypedByPeople):
    """The part of JSON Schema that models may use; the same as Kubernetes' structural schemas, without references."""

    type: SchemaType
    description: str | None = None
    default: Any = None
    nullable: bool = False
    enum: tuple[Any, ...] | None = None
    format: Literal["date-time"] | None = None
    properties: dict[str, JsonSchema] | None = None
    required: tuple[str, ...] = ()
    additional_properties: bool | JsonSchema | None = None
    items: JsonSchema | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = Field(default=None, ge=0)
    max_length: int | None = Field(default=None, ge=0)
    pattern: str | None = None
    min_items: int | None = Field(default=None, ge=0)
    max_items: int | None = Field(default=None, ge=0)


class FieldsSchema(TypedByPeople):
    """The fields of a command or an event; fields that are not named are refused."""

    properties: dict[str, JsonSchema] = Field(default_factory=dict, description="Fields by name.")
    required: tuple[str, ...] = Field(default=(), description="Names of the fields that must be there.")


class StateSpec(TypedByPeople):
    """The state's fields; their defaults are the initial state."""

    properties: dict[str, JsonSchema] = Field(default_factory=dict, description="Fields of the state by name, each with a default.")


class GuardSpec(TypedByPeople):
    """A condition under which a command is allowed."""

    rule: Expression = Field(description="CEL expression; the command is rejected unless it is true.")
    reason: MemberName = Field(default="GuardFailed", description="One CamelCase word that programs can rely on.")
    message: str = Field(default="", description="Why the command was rejected, for people.", max_length=2048)
    message_expression: Expression | None = Field(default=None, description="CEL expression that gives the message.")


class EmitSpec(TypedByPeople):
    """An event that a command produces."""

    event: MemberName = Field(description="Name of the event.")
    when: Expression | None = Field(default=None, description="CEL expression; the event is left out unless it is true.")
    with_: dict[str, Expression] = Field(default_factory=dict, alias="with", description="CEL expressions that give the event's fields.")


class ReminderSpec(TypedByPeople):
    """A command that the actor sends to itself later, or the end of one; it takes effect with the commit of the command's events."""

    set: MemberName | None = Field(default=None, description="Name of the reminder to set; one of the same name is replaced.")
    cancel: MemberName | None = Field(default=None, description="Name of the reminder to end.")
    when: Expression | None = Field(default=None, description="CEL expression; nothing is set or ended unless it is true.")
    command: MemberName | None = Field(default=None, description="The command that the actor sends to itself.")
    with_: dict[str, Expression] = Field(default_factory=dict, alias="with", description="CEL expressions that give the command's fields.")
    at: Expression | None = Field(default=None, description="CEL expression that gives the moment (timestamp); one that has passed means at once.")
    after: Expression | None = Field(default=None, description="CEL expression that gives how long to wait (duration).")
    cron: str | None = Field(default=None, description="Six fields, seconds first, or @daily, @hourly, @every 5m and the like.", min_length=1, max_length=256)
    zone: str | None = Field(default=None, description="Time zone of cron, such as Europe/Berlin; UTC if left out.", min_length=1, max_length=64)
    missed: Literal["late", "collapse", "skip"] = Field(default="late", description="What becomes of ticks that passed while nothing ran: late, one for all, or none.")


class CommandSpec(TypedByPeople):
    """A wish that the actor may grant."""

    description: str = Field(default="", max_length=2048)
    fields: FieldsSchema = Field(default_factory=FieldsSchema, alias="schema", description="The command's fields.")
    guards: tuple[GuardSpec, ...] = Field(default=(), description="Checked in order on the state before; the first that fails rejects.", max_length=32)
    emits: tuple[EmitSpec, ...] = Field(default=(), description="Events that an allowed command produces, in order.", max_length=32)
    reminders: tuple[ReminderSpec, ...] = Field(default=(), description="Commands that an allowed command lets the actor send to itself later.", max_length=32)


class EventSpec(TypedByPeople):
    """A fact and what it changes in the state."""

    description: str = Field(default="", max_length=2048)
    fields: FieldsSchema = Field(default_factory=FieldsSchema, alias="schema", description="The event's fields.")
    set: dict[str, Expression] = Field(default_factory=dict, description="CEL expressions that give the new value of state fields.")


class PythonSpec(TypedByPeople):
    """A model in Python: a class that the pool's image holds."""

    handler: str = Field(description="The class as package.module:Class, imported by runtime pods from their own environment.", pattern=HANDLER_PATTERN, max_length=253)


class ActorModelSpec(TypedByPeople):
    """The model itself."""

    version: str = Field(default="1.0.0", description="The author's version, for people; the content hash is what counts.", min_length=1, max_length=63)
    description: str = Field(default="", max_length=2048)
    on_demand: bool = Field(default=False, description="True lets actors without an Actor resource start at their first command.")
    python: PythonSpec | None = Field(default=None, description="The model in Python; then state, commands and events are those of the class.")
    state: StateSpec = Field(default_factory=StateSpec, description="The actor's state.")
    commands: dict[str, CommandSpec] = Field(default_factory=dict, description="Commands by name.")
    events: dict[str, EventSpec] = Field(default_factory=dict, description="Events by name.")


class ActorModelStatus(ReturnedByCluster):
    """What the operator found."""

    observed_generation: int = Field(default=0, description="The generation that was checked.", json_schema_extra={"format": "int64"})
    content_hash: str = Field(default="", description="Hash of the accepted content; commits name it.")
    commands: int = Field(default=0, description="Number of commands.")
    events: int = Field(default=0, description="Number of events.")
    conditions: tuple[Condition, ...] = Field(default=(), description="Accepted: True, or False with every problem and its field.")


class ActorModel(ResourceClass):
    """An event-storming model."""

    kind: Literal["ActorModel"] = "ActorModel"
    spec: ActorModelSpec
    status: ActorModelStatus = Field(default_factory=ActorModelStatus)
