"""What a server says when it refuses a user, or when a user lacks a permission, and what that means for who waits.

Of a permission it says so once for each message or subscription that it drops, `-ERR 'Permissions Violation for Publish to "subject"'`, and who published waits in
vain. The line comes before the answer to anything that was sent later. It names no request, so all that wait on the subject are ended by it.
"""

from __future__ import annotations

import re
from typing import Final

from aether_api.errors import PermissionDenied

_DENIAL: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)


_REFUSAL: Final = re.compile(r"authorization violation|authentication (?!timeout)", re.IGNORECASE)


def is_refusal(text: str) -> bool:
    """Tell whether a server says that it does not know the user, or not any more."""
    return _REFUSAL.search(text) is not None


def read_denial(text: str) -> PermissionDenied | None:
    """Return the error for what a server says; None if it says something else."""
    found = _DENIAL.search(text)
    if found is None:
        return None
    return PermissionDenied(found[2], "publish" if found[1].lower() == "publish" else "subscribe")
