"""What the server says of a missing permission is read with subject and permission."""

from __future__ import annotations

from typing import Literal

import pytest

from aether_nats.denials import read_denial


@pytest.mark.parametrize(
    ("text", "subject", "action"),
    [
        ('nats: Permissions Violation for Publish to "aether.shop.evt.1.account.Alice"', "aether.shop.evt.1.account.Alice", "publish"),
        ('nats: permissions violation for subscription to "aether.*.stored.>"', "aether.*.stored.>", "subscribe"),
        ('nats: Permissions Violation for Subscription to "a.b" using queue "q"', "a.b", "subscribe"),
    ],
)
def test_subject_and_permission_are_named(text: str, subject: str, action: Literal["publish", "subscribe"]) -> None:
    denied = read_denial(text)
    assert denied is not None
    assert (denied.subject, denied.action) == (subject, action)
    assert f'{action} to "{subject}"' in str(denied)


@pytest.mark.parametrize("text", ["nats: Authorization Violation", 'nats: Permissions Violation for Publish with Reply of "x"', ""])
def test_something_else_is_no_denial(text: str) -> None:
    assert read_denial(text) is None
