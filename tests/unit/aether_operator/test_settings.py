"""The environment: empty means not set, and what cannot work is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from aether_api.errors import SettingsInvalid
from aether_operator.planning.pace import Limits
from aether_operator.settings import OperatorSettings, read_settings, variable_of

PAGE = Path(__file__).parents[3] / "docs" / "operator-settings.md"


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = read_settings({"AETHER_NATS_CREDENTIALS": "", "AETHER_WATCH_NAMESPACES": ""})

    assert settings.nats_servers == ("nats://127.0.0.1:4222",)
    assert settings.nats_credentials is None
    assert settings.scopes == (None,)


def test_lists_are_separated_by_commas() -> None:
    settings = read_settings({"AETHER_WATCH_NAMESPACES": "shop, bank,shop", "AETHER_RUNTIME_IMAGE_PULL_SECRETS": "one,", "AETHER_NATS_URL": "nats://a, nats://b"})

    assert settings.scopes == ("shop", "bank")
    assert settings.runtime_image_pull_secrets == ("one",)
    assert settings.nats_servers == ("nats://a", "nats://b")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AETHER_EVENT_PARTITIONS", "65"),
        ("AETHER_EVENT_REPLICAS", "2"),
        ("AETHER_RUNTIME_IMAGE_PULL_POLICY", "Sometimes"),
        ("AETHER_LOG_LEVEL", "loud"),
        ("AETHER_WATCH_NAMESPACES", "Shop"),
        ("AETHER_SUSPECT_AFTER_S", "0"),
        ("AETHER_REBALANCE_PER_S", "inf"),
        ("AETHER_SUSPECT_AFTER_S", "inf"),
        ("AETHER_PING_TIMEOUT_S", "inf"),
        ("AETHER_DETECTION_WINDOW_S", "inf"),
        ("AETHER_MASS_MOVES_PER_S", "0"),
        ("AETHER_HAND_OVERS_AT_ONCE", "0"),
        ("AETHER_LEASE_S", "5"),
        ("AETHER_LEASE_RETRY_S", "soon"),
    ],
)
def test_a_setting_that_cannot_work_is_named(variable: str, value: str) -> None:
    with pytest.raises(SettingsInvalid, match=variable):
        read_settings({variable: value})


def test_how_fast_actors_move_is_set() -> None:
    settings = read_settings({"AETHER_REBALANCE_PER_S": "0", "AETHER_MASS_MOVES_PER_S": "50", "AETHER_HAND_OVERS_AT_ONCE": "4", "AETHER_DELETION_COSTS": "false"})

    assert (settings.limits, settings.deletion_costs) == (Limits(0, 50, 4), False)


def test_numbers_and_levels_are_read_as_people_write_them() -> None:
    settings = read_settings({"AETHER_EVENT_REPLICAS": "3", "AETHER_LOG_LEVEL": "debug"})

    assert (settings.event_replicas, settings.log_level) == (3, "DEBUG")


def test_the_page_of_the_docs_lists_every_setting_with_its_default_and_meaning() -> None:
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in PAGE.read_text().splitlines() if line.startswith("| `AETHER_")]
    assert rows == [(f"`{variable_of(name)}`", describe_default(field), field.description) for name, field in OperatorSettings.model_fields.items()]


def describe_default(field: FieldInfo) -> str:
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return "" if default in (None, ()) else f"`{default}`"
