"""What people are told about a text that does not have its form.

The API server and pydantic answer a failed `pattern` with the regular expression alone. Nobody shall have to read one to correct a
manifest, so the CRDs say the same as a rule with these words, and so do conditions and logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pydantic_core import ErrorDetails

from aether_api.durations import DURATION_PATTERN
from aether_api.identity import ID_PATTERN, MEMBER_PATTERN, NAME_PATTERN
from aether_api.v1alpha1.actor_model import HANDLER_PATTERN
from aether_api.v1alpha1.actor_pool import IMAGE_PATTERN, NATS_URL_PATTERN, SECRET_PATTERN

_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        NAME_PATTERN: "must be a DNS label: small letters, digits and inner hyphens, at most 63, such as account",
        ID_PATTERN: "must be one token of a NATS subject: letters, digits, - and _, inside also : @ + = and ~, but no dot, blank, * or >",
        MEMBER_PATTERN: "must be a letter, then letters, digits and _, at most 63, such as MoneyDeposited",
        DURATION_PATTERN: "must be a duration of whole numbers with the units ms, s, m and h, such as 500ms, 30s or 1h30m",
        HANDLER_PATTERN: "must name a class as package.module:Class, such as bank.models:Account",
        IMAGE_PATTERN: "must be the reference of an image, such as registry.example/aether:1.2, without blanks, or empty",
        NATS_URL_PATTERN: "must be URLs of NATS servers (nats, tls, ws or wss) with commas and no blanks, such as nats://a:4222,nats://b:4222, or empty",
        SECRET_PATTERN: "must be the name of a Secret: small letters, digits and, inside, hyphens and dots, such as nats-credentials, or empty",
    }
)


def find_words(pattern: str) -> str:
    """Return what to tell people whose text does not have a form; empty where nothing is known."""
    return _WORDS.get(pattern, "")


def describe_problem(problem: ErrorDetails) -> str:
    """Return what pydantic found wrong with a value, with words in the place of a pattern."""
    return find_words(str(problem.get("ctx", {}).get("pattern", ""))) or problem["msg"]
