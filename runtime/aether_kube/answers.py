"""Decides which error of ours an answer of the API server is. Pure.

Each refusal carries a `Status` document; its message names the object and the rule, and its causes name fields, so both
are kept for people. What a caller may do decides the branch of the tree: 429 and 5xx pass, 409 and 410 need a new look at
the object, all else needs a person or another request.
"""

from __future__ import annotations

from typing import Final

import orjson

from aether_api.errors import (
    AetherError,
    KubeAlreadyExists,
    KubeConflict,
    KubeExpired,
    KubeForbidden,
    KubeInvalid,
    KubeNotFound,
    KubeUnavailable,
)
from aether_kube.documents import JsonObject, integer_at, objects_at, parse_json, text_at

RETRY_S: Final = 1.0
"""Seconds before a retry when the server gives none: what the API server itself tells in Retry-After under overload."""

RETRY_S_MAX: Final = 30.0
"""Seconds that we follow a Retry-After: a longer outage is looked at again before it is over."""

UNKNOWN_FIELD: Final = "failed to create typed patch object"
"""How the API server words an apply with a field that the schema lacks. It calls that 500, but no later try succeeds."""

MESSAGE_CHARACTERS_MAX: Final = 2_000
"""Characters kept of an answer that is no Status (a proxy's page of HTML): enough to recognise it in a log."""


def error_of_answer(call: str, code: int, payload: bytes, retry_after: str = "") -> AetherError:
    """Return the error that an answer with a code of 300 or more means.

    Args:
        call: what was asked, such as `GET /api/v1/pods`, for the message.
        retry_after: the header of that name, empty when absent.
    """
    status = _read_status(payload)
    message = text_at(status, "message") or payload[:MESSAGE_CHARACTERS_MAX].decode("utf-8", "replace").strip() or "no message"
    return _error_of(f"{call}: {code}: {message}", code, status, retry_after)


def error_of_watch_status(call: str, status: JsonObject) -> AetherError:
    """Return the error that a watch's ERROR event means; its object is a Status with a code."""
    code = integer_at(status, "code") or 500
    return _error_of(f"{call}: {code}: {text_at(status, 'message') or 'the watch failed'}", code, status, "")


def _error_of(message: str, code: int, status: JsonObject, retry_after: str) -> AetherError:
    if code == 404:
        return KubeNotFound(message)
    if code in (401, 403):
        return KubeForbidden(message)
    if code == 409:
        return KubeAlreadyExists(message) if text_at(status, "reason") == "AlreadyExists" else KubeConflict(message)
    if code == 410:
        return KubeExpired(message)
    if code in (408, 429) or (code >= 500 and UNKNOWN_FIELD not in message):
        return KubeUnavailable(message, retry_after_s=_retry_after_s(status, retry_after))
    return KubeInvalid(message, _causes(status))


def _read_status(payload: bytes) -> JsonObject:
    try:
        document = parse_json(payload)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) and document.get("kind") == "Status" else {}


def _causes(status: JsonObject) -> tuple[str, ...]:
    causes = objects_at(status, "details", "causes")
    return tuple(f"{text_at(cause, 'field') or text_at(cause, 'reason')}: {text_at(cause, 'message')}" for cause in causes)


def _retry_after_s(status: JsonObject, retry_after: str) -> float:
    asked = int(retry_after) if retry_after.isascii() and retry_after.isdigit() else integer_at(status, "details", "retryAfterSeconds")
    return min(RETRY_S_MAX, float(asked)) if asked > 0 else RETRY_S
