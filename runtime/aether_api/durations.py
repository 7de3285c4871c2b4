"""Durations as people type them in resources: `30s`, `10m`, `1h30m`, as in Go and Kubernetes."""

from __future__ import annotations

import re
from typing import Final

DURATION_PATTERN: Final = r"^([0-9]+(ms|s|m|h))+$"
"""One or more whole numbers with a unit; a pattern that the API server's RE2 and Python's `re` read alike."""

DURATION_LENGTH_MAX: Final = 32
"""Characters: `999999h59m59s999ms` fits twice."""

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_WHOLE = re.compile(DURATION_PATTERN)
_PART = re.compile(r"([0-9]+)(ms|s|m|h)")


def parse_duration_s(text: str, *, default_s: float) -> float:
    """Return a duration in seconds, `default_s` for a text that is none: the API server has checked what people typed."""
    if len(text) > DURATION_LENGTH_MAX or not _WHOLE.fullmatch(text):
        return default_s
    return sum(int(count) * _UNITS_S[unit] for count, unit in _PART.findall(text))
