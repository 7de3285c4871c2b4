"""Durations as people type them."""

from __future__ import annotations

import pytest

from aether_api.durations import parse_duration_s
from aether_api.v1alpha1.actor import PassivationSpec, SnapshotSpec


@pytest.mark.parametrize(("text", "seconds"), [("0s", 0), ("30s", 30), ("10m", 600), ("1h30m", 5400), ("1500ms", 1.5), ("1m500ms", 60.5)])
def test_a_duration_is_the_sum_of_its_parts(text: str, seconds: float) -> None:
    assert parse_duration_s(text, default_s=-1) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "1.5s", "10 m", "-1s", "1d", "s10", "9" * 40 + "s"])
def test_what_is_no_duration_is_the_default(text: str) -> None:
    assert parse_duration_s(text, default_s=7) == 7
    with pytest.raises(ValueError, match="idleAfter"):
        PassivationSpec.model_validate({"idleAfter": text})
    with pytest.raises(ValueError, match="recoveryTarget"):
        SnapshotSpec.model_validate({"recoveryTarget": text})


def test_the_fields_of_an_actor_give_seconds() -> None:
    assert (SnapshotSpec().recovery_target_s, PassivationSpec().idle_after_s) == (1.0, 0.0)
    assert (SnapshotSpec.model_validate({"recoveryTarget": "250ms"}).recovery_target_s, PassivationSpec.model_validate({"idleAfter": "2m"}).idle_after_s) == (0.25, 120.0)
