"""The simulation finds what it is there to find: each rule that is taken away breaks a promise in some seed."""

from __future__ import annotations

from typing import Final

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.runs import Failure, run_seed

pytestmark = pytest.mark.slow

SEEDS: Final = range(1, 41)
"""Tried, should a mutation's own seed find nothing any more, because chance has taken another turn."""


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.rule.replace(" ", "-"))
def test_a_rule_that_is_taken_away_is_missed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation.apply(monkeypatch)
    for seed in (mutation.seed, *SEEDS):
        try:
            run_seed(seed, worse=mutation.worse)
        except Failure as failure:
            if "TypeError(" in str(failure):
                pytest.fail(f"the mutation does not fit the code any more: {failure}")
            return
    pytest.fail(f"nobody noticed in {len(SEEDS) + 1} runs that this rule was gone: {mutation.rule}")
