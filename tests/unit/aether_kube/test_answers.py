"""What refusals of the API server mean to a caller."""

from __future__ import annotations

import orjson
import pytest

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
from aether_kube.answers import RETRY_S, RETRY_S_MAX, error_of_answer


def status(code: int, reason: str = "", **details: object) -> bytes:
    return orjson.dumps({"kind": "Status", "code": code, "reason": reason, "message": "the message", "details": details})


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", KubeInvalid),
        (401, "Unauthorized", KubeForbidden),
        (403, "Forbidden", KubeForbidden),
        (404, "NotFound", KubeNotFound),
        (409, "Conflict", KubeConflict),
        (409, "AlreadyExists", KubeAlreadyExists),
        (410, "Expired", KubeExpired),
        (422, "Invalid", KubeInvalid),
        (429, "TooManyRequests", KubeUnavailable),
        (500, "InternalError", KubeUnavailable),
        (504, "Timeout", KubeUnavailable),
    ],
)
def test_each_code_has_its_error_and_keeps_the_message(code: int, reason: str, kind: type[AetherError]) -> None:
    error = error_of_answer("GET /x", code, status(code, reason))

    assert type(error) is kind
    assert "GET /x" in str(error)
    assert "the message" in str(error)


def test_an_invalid_object_names_its_fields() -> None:
    causes = [{"reason": "FieldValueInvalid", "field": "spec.id", "message": "may not change"}]

    error = error_of_answer("PATCH /x", 422, status(422, "Invalid", causes=causes))

    assert isinstance(error, KubeInvalid)
    assert error.causes == ("spec.id: may not change",)


def test_an_apply_with_an_unknown_field_is_not_worth_another_try_though_the_server_says_500() -> None:
    message = "failed to create typed patch object (/y; /v1, Kind=ConfigMap): .bogus: field not declared in schema"
    payload = orjson.dumps({"kind": "Status", "code": 500, "message": message})

    assert isinstance(error_of_answer("PATCH /y", 500, payload), KubeInvalid)


@pytest.mark.parametrize(("header", "asked", "expected"), [("7", 0, 7.0), ("", 3, 3.0), ("", 0, RETRY_S), ("soon", 0, RETRY_S), ("9999", 0, RETRY_S_MAX)])
def test_the_server_says_when_to_come_back(header: str, asked: int, expected: float) -> None:
    error = error_of_answer("GET /x", 429, status(429, retryAfterSeconds=asked), header)

    assert isinstance(error, KubeUnavailable)
    assert error.retry_after_s == expected


@pytest.mark.parametrize("payload", [b"", b"<html>bad gateway</html>", b"[]", b"\xff\xfe"])
def test_an_answer_that_is_no_status_is_understood_by_its_code(payload: bytes) -> None:
    assert isinstance(error_of_answer("GET /x", 502, payload), KubeUnavailable)
