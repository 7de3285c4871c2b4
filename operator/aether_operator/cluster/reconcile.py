"""The loop: observe, plan, check, execute. Level-based: it decides by what is, not by what happened.

It runs on every change, gathered for a moment, and at least every `RESYNC_S`; one task owns it, so no two plans are ever made
side by side. It rests three times as long as its last turn took, so that planning never takes more than a quarter of the process.
A plan that breaks a rule ends the process rather than being carried out. Where only moves for the sake of balance are to blame, it is
carried out without them: no balance is worth an operator that ends, and whose standby makes the same plan and ends as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from aether_api import logs
from aether_api.errors import InternalError
from aether_operator.cluster.execute import Executor
from aether_operator.cluster.observe import Observer
from aether_operator.cluster.survey import Survey
from aether_operator.planning.checker import check_plan
from aether_operator.planning.plan import Plan
from aether_operator.planning.planner import make_plan
from aether_operator.planning.render import render_plan
from aether_operator.planning.snapshot import Snapshot

logger = logging.getLogger(__name__)

RESYNC_S: Final = 30.0
"""Seconds after which a plan is made even if nothing was heard: bounds how long a missed change can matter."""

GATHER_S: Final = 0.02
"""Seconds to wait for more after the first change: an apply of many Actors becomes few plans, and nobody notices the delay."""


REST_TURNS: Final = 3.0
"""Times its own length that a turn is followed by rest. While Actors are applied in thousands every moment brings a change, and a plan looks at all of
them: at 10,000 a turn takes 0.1 s, so a lost pod waits 0.3 s longer at worst, and the writes of the plans before get the time."""


class Reconciler:
    """Makes plans and has them carried out."""

    def __init__(self, observer: Observer, survey: Survey, executor: Executor, wanted: asyncio.Event, *, check: Callable[[], None]) -> None:
        """Make the loop; `run` starts it.

        Args:
            wanted: set by whoever wants a plan soon.
            check: raises once this process leads no longer. It is asked before each turn, as the parts that a turn gives work to may have
                heard of it and ended.
        """
        self._observer = observer
        self._survey = survey
        self._executor = executor
        self._wanted = wanted
        self._check = check
        self.last_turn_s = time.monotonic()
        self.plans = 0

    async def run(self) -> None:
        """Plan until cancelled, from the moment at which everything was listed once and the pods were asked what they hold.

        Raises:
            InternalError: a plan breaks a rule.
            LeadershipLost: nothing more may be planned.
        """
        await self._observer.wait_synced()
        await self._survey.ask_all()
        while True:
            self._wanted.clear()
            begun_s = time.monotonic()
            plan = self.turn()
            self.last_turn_s = time.monotonic()
            await asyncio.sleep(max(GATHER_S, REST_TURNS * (self.last_turn_s - begun_s)))
            await self._wait(RESYNC_S if plan.again_after_s is None else plan.again_after_s)

    def turn(self) -> Plan:
        """Make one plan and begin to carry it out."""
        self._check()
        begun_s = time.monotonic()
        snapshot = self._observer.snapshot(int(time.time() * 1000))
        self._survey.look(snapshot.pods.values())
        plan = make_sound_plan(snapshot)
        self._executor.execute(snapshot, plan)
        self.plans += 1
        _log(plan, time.monotonic() - begun_s)
        return plan

    async def _wait(self, at_most_s: float) -> None:
        try:
            async with asyncio.timeout(at_most_s):
                await self._wanted.wait()
        except TimeoutError:
            return


def make_sound_plan(snapshot: Snapshot) -> Plan:
    """Return a plan that breaks no rule: without rebalancing, if it breaks one with it.

    Raises:
        InternalError: it breaks a rule all the same.
    """
    plan = make_plan(snapshot)
    try:
        check_plan(snapshot, plan)
    except InternalError as exc:
        if not any(change.cause == "Rebalanced" for change in plan.changes):
            raise
        # Made anew rather than cut down: budgets, deletion costs and the time of the next plan follow from the moves.
        plan = make_plan(replace(snapshot, limits=replace(snapshot.limits, rebalance_per_s=0)))
        check_plan(snapshot, plan)
        logger.error("nobody is rebalanced, since a plan with it breaks rules that the same plan without it keeps; please report this", extra={logs.REASON: str(exc)})
    return plan


def _log(plan: Plan, duration_s: float) -> None:
    causes = sorted({change.cause for change in plan.changes})
    level = logging.INFO if plan.changes else logging.DEBUG
    if not plan.is_empty and logger.isEnabledFor(logging.DEBUG):
        logger.debug("the plan:\n%s", render_plan(plan))
    logger.log(level, "planned", extra={logs.COUNT: len(plan.changes), logs.REASON: ", ".join(causes), logs.DURATION_S: round(duration_s, 4)})
