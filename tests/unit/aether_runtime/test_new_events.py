"""The commit of a program: what is refused before anything is written."""

from __future__ import annotations

import pytest

from aether_api.errors import EventInvalid
from aether_api.identity import Epoch
from aether_runtime.core.history import History
from aether_runtime.core.new_events import ANY_EVENTS, NewEvent, PlannedCommit, Writer, plan_commit
from tests.histories.bank import ALICE

NOW_S = 1_800_000_000.0


def plan(*events: NewEvent) -> PlannedCommit:
    return plan_commit(ALICE, History(ANY_EVENTS), events, Writer("test", Epoch(0)), commit_id="c", now_s=NOW_S)


def test_a_commit_without_events_is_refused() -> None:
    with pytest.raises(EventInvalid, match="at least one event"):
        plan()
