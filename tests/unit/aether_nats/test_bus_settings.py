"""What cannot work is refused where it is written, not with every announcement."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aether_api.errors import SettingsInvalid
from aether_api.identity import parse_actor_id
from aether_nats.bus_settings import BusSettings, Start
from aether_nats.deliveries import ActorVersion

ALICE = parse_actor_id("shop", "account", "alice")


@pytest.mark.parametrize("name", ["queue_max", "queue_bytes_max", "actors_max"])
@pytest.mark.parametrize("value", [0, -1, "5", 1.5, None, True])
def test_a_bound_is_a_whole_number_above_zero(name: str, value: Any) -> None:
    with pytest.raises(SettingsInvalid, match=f"{name} of BusSettings must be a whole number"):
        BusSettings(**{name: value})


@pytest.mark.parametrize("value", [0, -1.0, "60", None, math.nan, True])
def test_the_time_between_comparisons_is_above_zero(value: Any) -> None:
    with pytest.raises(SettingsInvalid, match="compare_every_s of BusSettings must be seconds"):
        BusSettings(compare_every_s=value)


def test_what_can_work_is_taken() -> None:
    assert BusSettings(queue_max=1, queue_bytes_max=1, actors_max=1, compare_every_s=math.inf) != BusSettings()


@pytest.mark.parametrize("known", [{ALICE: 1}, {"shop/account/alice": ActorVersion(1)}, {ALICE: ActorVersion(-3)}, [ALICE], ALICE, {ALICE: None}])
def test_what_is_known_is_known_as_versions_of_actors(known: Any) -> None:
    with pytest.raises(SettingsInvalid, match="known must map"):
        Start(known)


@pytest.mark.parametrize("part", ["version", "sequence", "incarnation"])
@pytest.mark.parametrize("value", ["1", 1.5, True, None, -2])
def test_each_part_of_what_is_known_is_a_whole_number(part: str, value: Any) -> None:
    with pytest.raises(SettingsInvalid, match="known must map"):
        Start({ALICE: ActorVersion(**{"version": 1, part: value})})
