"""Who is who: actors, pods and their epochs.

An id becomes one token of a NATS subject and may name a Kubernetes resource, so it is validated where it is born and
trusted everywhere else (Pekko's `PersistenceId` does the same with its separator). A pod is identified by its UID and
the boot id of its process, never by its name: after a delete without grace two processes of one name may live at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NewType

import msgspec

from aether_api.errors import InvalidName, describe_value

Namespace = NewType("Namespace", str)
ModelName = NewType("ModelName", str)
PoolName = NewType("PoolName", str)
PodUid = NewType("PodUid", str)
BootId = NewType("BootId", str)
CommandId = NewType("CommandId", str)
Epoch = NewType("Epoch", int)
Version = NewType("Version", int)
Sequence = NewType("Sequence", int)

NO_EPOCH: Final = Epoch(0)
"""The epoch of an actor without a resource."""

ID_LENGTH_MAX: Final = 200
"""Characters: subject, stream name and headers of the longest actor still fit in one 4 KiB control line."""

ID_PATTERN: Final = r"^[A-Za-z0-9_\-]([A-Za-z0-9_\-:@+=~]*[A-Za-z0-9_\-])?$"
"""Safe as one subject token (no `.`, `*`, `>`, blanks), in a header, a URL path and a file name of every system."""

NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?$"
"""A DNS label (RFC 1123): names of namespaces, models and pools, which hold no dot."""

MEMBER_LENGTH_MAX: Final = 63
"""Characters of a name of a command or an event, as the pattern says."""

MEMBER_PATTERN: Final = r"^[A-Za-z][A-Za-z0-9_]{0,62}$"
"""Names of commands and events: one subject token and an identifier in most languages."""

_ID = re.compile(ID_PATTERN)
_NAME = re.compile(NAME_PATTERN)
_MEMBER = re.compile(MEMBER_PATTERN)


class ActorId(msgspec.Struct, frozen=True, order=True, gc=False):
    """The full name of an actor: Kubernetes namespace, model and id within the model. It is the key of most tables, so hash and equality are C's."""

    namespace: Namespace
    model: ModelName
    id: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.model}/{self.id}"


@dataclass(frozen=True, slots=True, order=True)
class PodIdentity:
    """One process of one pod: a restarted container has the same UID and another boot id."""

    uid: PodUid
    boot_id: BootId

    def __str__(self) -> str:
        return f"{self.uid}/{self.boot_id}"


def parse_actor_id(namespace: str, model: str, id: str) -> ActorId:
    """Check the three names and build an `ActorId`.

    Raises:
        InvalidName: one of them could not be a subject token; the message names the field and the rule.
    """
    return ActorId(Namespace(check_name("namespace", namespace)), ModelName(check_name("model", model)), check_id(id))


def check_actor(value: object, argument: str = "actor") -> ActorId:
    """Return an `ActorId` unchanged or raise `InvalidName` for `argument`."""
    if not isinstance(value, ActorId):
        raise InvalidName(f"{argument} must be an ActorId, as parse_actor_id(namespace, model, id) gives, not {describe_value(value)}")
    return value


def check_name(field: str, value: str) -> str:
    """Return a DNS label unchanged or raise `InvalidName` for `field`."""
    if _NAME.fullmatch(_text_of(value)):
        return value
    raise InvalidName(f"{field} {value!r} must be lower case letters, digits and '-', at most 63 characters, beginning and ending with a letter or digit")


def check_id(value: str) -> str:
    """Return an actor's id unchanged or raise `InvalidName`."""
    text = _text_of(value)
    if len(text) > ID_LENGTH_MAX:
        raise InvalidName(f"id of {len(text)} characters is longer than {ID_LENGTH_MAX}")
    if _ID.fullmatch(text):
        return value
    raise InvalidName(f"id {value!r} must be letters, digits and -_:@+=~ (no dots, '*', '>' or blanks), beginning and ending with a letter, digit, '-' or '_'")


def check_member(field: str, value: str) -> str:
    """Return the name of a command or event unchanged or raise `InvalidName` for `field`."""
    if _MEMBER.fullmatch(_text_of(value)):
        return value
    raise InvalidName(f"{field} {value!r} must begin with a letter and hold letters, digits and '_', at most 63 characters")


def _text_of(value: object) -> str:
    """Return a text, and of what is none an empty one, which no name may be."""
    return value if isinstance(value, str) else ""
