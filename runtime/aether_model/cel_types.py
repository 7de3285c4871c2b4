"""CEL's types as plain values, so that no other module needs the engine's own.

A type is known before anything runs: a variable's from its JSON Schema, an expression's from the checker. `dyn` means that
the checker knows nothing, and that the value is looked at when it is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_SIGNATURE_TOKEN = re.compile(r"[^<>,\s]+|[<>]")


@dataclass(frozen=True, slots=True)
class CelType:
    """A CEL type: its name in lower case and, for lists and maps, its parameters.

    Attributes:
        parameters: the element of a list; key and value of a map.
    """

    name: str
    parameters: tuple[CelType, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(map(str, self.parameters))}>" if self.parameters else self.name


BOOL: Final = CelType("bool")
BYTES: Final = CelType("bytes")
DOUBLE: Final = CelType("double")
DURATION: Final = CelType("duration")
DYN: Final = CelType("dyn")
INT: Final = CelType("int")
NULL: Final = CelType("null")
STRING: Final = CelType("string")
TIMESTAMP: Final = CelType("timestamp")
UINT: Final = CelType("uint")


def list_of(element: CelType) -> CelType:
    """Build the type of a list."""
    return CelType("list", (element,))


def map_of(value: CelType) -> CelType:
    """Build the type of a map with string keys, the only ones that JSON has."""
    return CelType("map", (STRING, value))


def parse_type(signature: str) -> CelType:
    """Read a signature such as `MAP<STRING, LIST<INT>>`, as the engine prints it."""
    stack: list[list[CelType]] = [[]]
    for token in _SIGNATURE_TOKEN.findall(signature):
        if token == "<":
            stack.append([])
        elif token == ">":
            parameters = tuple(stack.pop())
            stack[-1][-1] = CelType(stack[-1][-1].name, parameters)
        else:
            stack[-1].append(CelType(token.lower()))
    return stack[0][0]
