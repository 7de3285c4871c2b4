"""Counts what a subscription hears of a stream, so that it learns of announcements that were lost without any sign.

A stream numbers its messages without holes and the server announces each, so of a stretch of sequences as many must have been heard as
were stored. That also tells of actors of which nothing was ever heard, whose heads nobody could compare. The count is taken in
stretches: each ends where the stream ended at one look and is judged at a later one, when nothing of it can be on its way any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Stretch(NamedTuple):
    """The sequences after `start`, up to `end`, and how many announcements of them were heard."""

    start: int
    end: int
    heard: int


@dataclass(slots=True)
class Hearing:
    """What was heard of one stream since a stretch began.

    Attributes:
        start, end: the stretch that is judged next.
        since_s: when its end was noted.
    """

    start: int = 0
    end: int = 0
    since_s: float = 0.0
    _heard: int = 0
    _heard_later: int = 0
    _highest: int = 0

    def note(self, sequence: int) -> None:
        """Count an announcement; each comes once."""
        self._highest = max(self._highest, sequence)
        if sequence > self.end:
            self._heard_later += 1
        elif sequence > self.start:
            self._heard += 1

    def begin(self, at: int, now_s: float) -> None:
        """Begin anew: everything up to `at` was read."""
        self.start = self.end = self._highest = at
        self.since_s = now_s
        self._heard = self._heard_later = 0

    def whole_to(self) -> int:
        """Return the sequence up to which everything after `start` was heard: the highest that was, if there is no hole before it, else `start`."""
        return self._highest if self._highest - self.start == self._heard + self._heard_later else self.start

    def turn(self, end: int, now_s: float) -> Stretch:
        """Return the stretch that can be judged now, and begin the next one.

        Args:
            end: where the stream ends at least: nothing beyond it was heard yet.
        """
        judged = Stretch(self.start, self.end, self._heard)
        self.start, self.end, self.since_s = self.end, end, now_s
        self._heard, self._heard_later = self._heard_later, 0
        return judged
