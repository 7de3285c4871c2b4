"""When a schedule is due next: the server's grammar, as far as `aether_model.schedule` checks it.

The check itself is used to tell what the server refuses; a test holds it against nats-server.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from aether_api.errors import InvalidEnvelope
from aether_api.messages import parse_time
from aether_model.schedule import check_cron, check_zone

MACROS: Final = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_NAMES: Final = {name: str(number) for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))} | {
    name: str(number) for number, name in enumerate(("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1)
}
_RANGES: Final = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_UNITS_S: Final = {"ms": 0.001, "h": 3600.0, "m": 60.0, "s": 1.0}
DAYS_MAX: Final = 366 * 9
"""Days that are looked at: the 29th of February comes at least every eight years."""


class BadSchedule(Exception):
    """The server cannot read the schedule."""


class BadZone(Exception):
    """The server knows no such time zone."""


def next_tick(text: str, zone: str, after_s: float) -> float:
    """Return the unix time of the first tick after a moment; a one-shot's is its own, however long ago.

    Raises:
        BadSchedule, BadZone: the server refuses it.
    """
    if text.startswith("@at "):
        try:
            return parse_time(text[4:]).timestamp()
        except InvalidEnvelope as exc:
            raise BadSchedule from exc
    if check_cron(text) is not None:
        raise BadSchedule(text)
    if check_zone(text, zone or "UTC") is not None:
        raise BadZone(zone)
    if text.startswith("@every"):
        return after_s + _parse_duration_s(text.partition(" ")[2])
    return _next_of_fields(MACROS.get(text, text).lower().split(), ZoneInfo(zone) if zone else UTC, after_s)


def _parse_duration_s(text: str) -> float:
    total, number = 0.0, ""
    while text:
        unit = next((unit for unit in _UNITS_S if text.startswith(unit)), "")
        if unit and number:
            total, number, text = total + float(number) * _UNITS_S[unit], "", text[len(unit) :]
        else:
            number, text = number + text[0], text[1:]
    return total


def _next_of_fields(fields: list[str], zone: tzinfo, after_s: float) -> float:
    second, minute, hour, day, month, weekday = (_values(field, *bounds) for field, bounds in zip(fields, _RANGES, strict=True))
    start = datetime.fromtimestamp(int(after_s) + 1, zone)
    is_day = _build_day_check(fields, day, weekday)
    date = start.date()
    for _ in range(DAYS_MAX):
        if date.month in month and is_day(date.day, date.isoweekday() % 7):
            for h in sorted(hour):
                for m in sorted(minute):
                    for s in sorted(second):
                        found = datetime(date.year, date.month, date.day, h, m, s, tzinfo=start.tzinfo)
                        if found >= start:
                            return found.timestamp()
        date += timedelta(days=1)
    raise BadSchedule("it never comes")


def _build_day_check(fields: list[str], days: set[int], weekdays: set[int]) -> Callable[[int, int], bool]:
    """Either of two restricted fields is enough, as in every cron."""
    if fields[3][0] in "*?" or fields[5][0] in "*?":
        return lambda day, weekday: day in days and weekday in weekdays
    return lambda day, weekday: day in days or weekday in weekdays


def _values(field: str, lowest: int, highest: int) -> set[int]:
    values: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, dash, last = (_NAMES.get(word, word) for word in span.partition("-"))
        if first in ("*", "?"):
            low, high = lowest, highest
        else:
            low, high = int(first), int(last) if dash else highest if step else int(first)
        values |= set(range(low, high + 1, int(step or 1)))
    return values
