"""What can keep a bench from giving a figure."""

from __future__ import annotations


class BenchFailed(Exception):
    """A side broke: it ended, answered wrongly, or lost something; the figure would mean nothing."""


class PeerMissing(Exception):
    """A peer that the bench compares with is not installed; the message says how to get it."""
