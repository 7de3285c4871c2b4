"""Says whether a schedule can be kept, before anything is stored: what the server refuses later is too late for the command.

The cron text is that of nats-server 2.14 and later (ADR-51), tried on 2.15: six fields (second, minute, hour, day of the month,
month, day of the week from Sunday, 0), each `*` or a list of values, ranges and steps; months and days of the week also by their
English names of three letters; or `@yearly`, `@monthly`, `@weekly`, `@daily`, `@hourly`, or `@every` and a duration of at least a
second. A little of what the server lets pass is refused here (`+1`, a step over the whole range): it never says what was meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, assert_never
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from aether_model.fields import parse_time
from aether_model.model import After, At, Cron, Schedule

AFTER_MAX_S: Final = 100 * 366 * 86_400.0
"""Seconds: a century, which keeps every moment before `AT_MAX`."""

AT_MAX: Final = datetime(2262, 4, 11, 23, 47, 16, tzinfo=UTC)
"""The last moment that the server can keep: it counts nanoseconds in 64 bits, and takes a later one for one that has passed."""

EVERY_MIN_S: Final = 1.0
"""Seconds: the server refuses to repeat faster."""

MACROS: Final = frozenset({"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"})
"""Names for common cron texts."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    lowest: int
    highest: int
    words: tuple[str, ...] = ()


_FIELDS: Final = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    _Field("day of the week", 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
_DAYS_OF_MONTH: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(?:(?P<all>[*?])|(?P<first>[0-9]{1,2}|[a-z]{3})(?:-(?P<last>[0-9]{1,2}|[a-z]{3}))?)(?:/(?P<step>[0-9]{1,2}))?")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|h|m|s)")
_DURATIONS = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|h|m|s))+")
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+\-]*(?:/[A-Za-z0-9_+\-]+)*")


def check_schedule(schedule: Schedule) -> str | None:
    """Return why a schedule cannot be kept; None if it can."""
    match schedule:
        case At(time=time):
            return _check_time(time)
        case After(seconds=seconds):
            return None if 0 <= seconds <= AFTER_MAX_S else f"after {seconds:g} s is not between 0 and {AFTER_MAX_S:.0f}, a century"
        case Cron(text=text, zone=zone):
            return check_cron(text) or check_zone(text, zone)
        case _:
            assert_never(schedule)


def check_cron(text: str) -> str | None:
    """Return what is wrong with a cron text; None if the server takes it."""
    if not text.isprintable():
        return f"cron {text!r} is not one line of text with blanks"
    if text.startswith("@"):
        return _check_macro(text)
    parts = text.split()
    if len(parts) != len(_FIELDS):
        return f"cron {text!r} has {len(parts)} fields instead of six: second, minute, hour, day of the month, month, day of the week"
    values: list[set[int]] = []
    for field, part in zip(_FIELDS, parts, strict=True):
        found = _values_of(field, part)
        if isinstance(found, str):
            return f"cron {text!r}, {field.name} {part!r}: {found}"
        values.append(found)
    any_weekday = parts[5][0] in "*?"
    if any_weekday and not any(day <= _DAYS_OF_MONTH[month - 1] for month in values[4] for day in values[3]):
        return f"cron {text!r} names a day that no such month has"
    return None


def check_zone(text: str, zone: str) -> str | None:
    """Return what is wrong with the time zone of a cron text; None if it has one that is known."""
    if text.startswith("@every") and zone != "UTC":
        return "@every counts seconds and has no time zone"
    if zone.lower() in ("local", "localtime"):
        return f"time zone {zone!r} is whatever the server's machine is set to; name the zone, such as Europe/Berlin"
    if _ZONE.fullmatch(zone):
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            # Images without the database of zones cannot say; the server has its own.
            return f"there is no time zone {zone!r}; names are those of IANA, such as Europe/Berlin" if available_timezones() else None
        return None
    return f"there is no time zone {zone!r}; names are those of IANA, such as Europe/Berlin"


def _check_time(time: str) -> str | None:
    latest = f"the latest is {AT_MAX:%Y-%m-%dT%H:%M:%SZ}"
    try:
        return f"at {time!r} is too late, {latest}" if parse_time(time) > AT_MAX else None
    except ValueError as exc:
        return f"at {exc}; {latest}"


def _check_macro(text: str) -> str | None:
    if text in MACROS:
        return None
    word, _, duration = text.partition(" ")
    if word != "@every":
        return f"there is no schedule {text!r}; known are {', '.join(sorted(MACROS))} and @every with a duration, such as @every 90m"
    if not _DURATIONS.fullmatch(duration):
        return f"{duration!r} is no duration such as 90s, 5m or 1h30m"
    seconds = sum(float(amount) * _UNITS_S[unit] for amount, unit in _DURATION.findall(duration))
    return None if EVERY_MIN_S <= seconds <= AFTER_MAX_S else f"@every {duration} is not between a second and a century"


def _values_of(field: _Field, text: str) -> set[int] | str:
    """Return the values that one field of a cron text means, or what is wrong with it."""
    values: set[int] = set()
    for part in text.lower().split(","):
        match = _PART.fullmatch(part)
        if match is None:
            return "is no list of values, ranges such as 1-5, and steps such as */10"
        bounds = [_value_of(field, word) for word in (match["first"], match["last"]) if word is not None]
        if None in bounds:
            return f"values are {field.lowest} to {field.highest}" + (f", or {', '.join(field.words).upper()}" if field.words else "")
        first, last = _range_of(field, [bound for bound in bounds if bound is not None], stepped=match["step"] is not None)
        step = int(match["step"] or 1)
        if first > last or not 1 <= step <= field.highest - field.lowest + 1:
            return "a range runs upwards, and its step is not zero and within it"
        values |= set(range(first, last + 1, step))
    return values


def _value_of(field: _Field, word: str) -> int | None:
    if word.isdigit():
        return int(word) if field.lowest <= int(word) <= field.highest else None
    return field.words.index(word) + field.lowest if word in field.words else None


def _range_of(field: _Field, bounds: list[int], *, stepped: bool) -> tuple[int, int]:
    if not bounds:
        return field.lowest, field.highest
    return bounds[0], bounds[1] if len(bounds) == 2 else field.highest if stepped else bounds[0]
