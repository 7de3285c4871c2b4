"""Schedules: what the server would keep is let pass, what it would refuse is refused first, in words."""

from __future__ import annotations

import math

import pytest

from aether_model.model import After, At, Cron, Schedule
from aether_model.schedule import check_schedule


@pytest.mark.parametrize(
    "schedule",
    [
        At("2026-07-01T12:00:00Z"),
        At("2262-04-11T23:47:16Z"),
        At("1999-01-01T00:00:00.5+02:00"),
        After(0),
        After(3600.5),
        Cron("0 0 9 * * *"),
        Cron("0 0 9 * * MON-FRI", "Europe/Berlin"),
        Cron("*/5 * * * * *"),
        Cron("5/10 1-30/5 1,2,3 ? jan-Mar sun,wed"),
        Cron("0 0 0 29 2 *"),
        Cron("0 0 0 31 2 MON"),
        Cron("@daily", "America/New_York"),
        Cron("@every 1h30m"),
        Cron("@every 1500ms"),
    ],
)
def test_a_schedule_that_can_be_kept_passes(schedule: Schedule) -> None:
    assert check_schedule(schedule) is None


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (At("tomorrow"), "'tomorrow' is no RFC 3339 time"),
        (At("2026-02-30T12:00:00Z"), "day is out of range"),
        (At("2262-04-11T23:47:17Z"), "at '2262-04-11T23:47:17Z' is too late, the latest is 2262-04-11T23:47:16Z"),
        (At("9999-12-31T23:59:59Z"), "is too late, the latest is 2262-04-11T23:47:16Z"),
        (At("9999-12-31T23:59:59-01:00"), "at '9999-12-31T23:59:59-01:00' lies outside of the years 1 to 9999; the latest is 2262-04-11T23:47:16Z"),
        (After(-1), "after -1 s is not between 0 and"),
        (After(math.inf), "after inf s is not between 0 and"),
        (After(math.nan), "after nan s is not between 0 and"),
        (Cron("0 9 * * *"), "has 5 fields instead of six: second, minute, hour"),
        (Cron(""), "has 0 fields instead of six"),
        (Cron("60 0 9 * * *"), "second '60': values are 0 to 59"),
        (Cron("0 0 24 * * *"), "hour '24': values are 0 to 23"),
        (Cron("0 0 9 0 * *"), "day of the month '0': values are 1 to 31"),
        (Cron("0 0 9 * 13 *"), "month '13': values are 1 to 12, or JAN"),
        (Cron("0 0 9 * * 7"), "day of the week '7': values are 0 to 6, or SUN"),
        (Cron("0 0 9 * * monday"), "day of the week 'monday': is no list of values"),
        (Cron("0 0 9 L * *"), "day of the month 'L': is no list of values"),
        (Cron("0 0 9 * * mon#1"), "is no list of values"),
        (Cron("30-1 * * * * *"), "a range runs upwards"),
        (Cron("*/0 * * * * *"), "its step is not zero"),
        (Cron("1- * * * * *"), "is no list of values"),
        (Cron("0 0 9 30 2 *"), "names a day that no such month has"),
        (Cron("0 0 9 31 4,6 *"), "names a day that no such month has"),
        (Cron("@fortnightly"), "there is no schedule '@fortnightly'; known are @annually"),
        (Cron("@every"), "'' is no duration such as 90s"),
        (Cron("@every soon"), "'soon' is no duration such as 90s"),
        (Cron("@every 500ms"), "@every 500ms is not between a second and a century"),
        (Cron("@every 1h", "Europe/Berlin"), "@every counts seconds and has no time zone"),
        (Cron("@at 2030-01-01T00:00:00Z"), "there is no schedule"),
        (Cron("0 0 9 * * *", "Mars/Olympus"), "there is no time zone 'Mars/Olympus'"),
        (Cron("0 0 9 * * *", "../etc/passwd"), "there is no time zone '../etc/passwd'"),
        (Cron("0 0 9 * * *", ""), "there is no time zone ''"),
        (Cron("0 0 9 * * *", " "), "there is no time zone ' '"),
        (Cron("0 0 9 * * *", "Local"), "time zone 'Local' is whatever the server's machine is set to; name the zone"),
        (Cron("0 0 9 * *\r\n*"), "is not one line"),
    ],
)
def test_a_schedule_that_the_server_would_refuse_is_refused_in_words(schedule: Schedule, words: str) -> None:
    assert words in str(check_schedule(schedule))
