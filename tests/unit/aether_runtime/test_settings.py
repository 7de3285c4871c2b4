"""The settings of a runtime process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from aether_api.errors import SettingsInvalid
from aether_runtime import __main__ as main
from aether_runtime import process
from aether_runtime import settings as settings_module
from aether_runtime.settings import PREFIX, RuntimeSettings, read_settings

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"
FOLDER = {"AETHER_FOLDER": "/somewhere"}


def test_a_folder_is_all_that_a_person_must_name() -> None:
    settings = read_settings(FOLDER)
    assert (settings.source, settings.folder, settings.namespace, settings.pool, settings.nats_url) == ("folder", Path("/somewhere"), "default", "default", "nats://127.0.0.1:4222")


def test_what_the_command_line_says_wins_and_what_it_leaves_out_does_not() -> None:
    settings = read_settings(FOLDER | {"AETHER_NAMESPACE": "bank", "AETHER_HTTP_PORT": "9000"}, namespace="shop", http_port=None, nats_url="nats://n:1")
    assert (settings.namespace, settings.http_port, settings.nats_url) == ("shop", 9000, "nats://n:1")


def test_a_folder_of_the_command_line_wins_over_the_source_of_the_environment() -> None:
    kubernetes = FOLDER | {"AETHER_SOURCE": "kubernetes"}
    settings = read_settings(kubernetes, folder=Path("/mine"))
    assert (settings.source, settings.folder) == ("folder", Path("/mine"))
    assert read_settings(kubernetes, folder=None).source == "kubernetes"


def test_without_a_folder_it_says_what_to_do() -> None:
    with pytest.raises(SettingsInvalid, match="AETHER_FOLDER"):
        read_settings({})
    assert read_settings({"AETHER_SOURCE": "kubernetes"}).source == "kubernetes"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AETHER_SOURCE", "cloud"),
        ("AETHER_NAMESPACE", "a.b"),
        ("AETHER_NAMESPACE", "Bank"),
        ("AETHER_POOL", "*"),
        ("AETHER_POD_UID", "a b"),
        ("AETHER_POD_UID", "a.b"),
        ("AETHER_EVENT_PARTITIONS", "0"),
        ("AETHER_EVENT_PARTITIONS", "65"),
        ("AETHER_HTTP_PORT", "many"),
        ("AETHER_HTTP_PORT", "70000"),
        ("AETHER_STATUS_BUDGET", "0"),
        ("AETHER_LOG_LEVEL", "LOUD"),
        ("AETHER_STOP_TIMEOUT", "0" * 30 + "100s"),
        ("AETHER_ON_DEMAND_IDLE", "1s" * 17),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(SettingsInvalid, match=variable):
        read_settings(FOLDER | {variable: value})


def test_an_argument_that_does_not_exist_is_refused_and_variables_of_others_are_not() -> None:
    with pytest.raises(ValidationError, match="nats_urll"):
        RuntimeSettings.model_validate({"source": "none", "nats_urll": "nats://n:1"})
    assert read_settings(FOLDER | {"AETHER_NATS_URLL": "nats://n:1"}).nats_url == "nats://127.0.0.1:4222"


@pytest.mark.parametrize("url", ["", "http://somebody:secret@x", "nats://a:1,http://somebody:secret@x", "nats://somebody:secret@a:port"])
def test_an_address_of_no_nats_server_is_refused_by_a_sentence_without_its_password(url: str) -> None:
    with pytest.raises(ValidationError, match="is not the URL of a NATS server") as raised:
        RuntimeSettings(source="none", nats_url=url)
    assert "secret" not in str(raised.value)
    with pytest.raises(SettingsInvalid, match=r"AETHER_NATS_URL: .* is not the URL of a NATS server") as refused:
        read_settings(FOLDER, nats_url=url)
    assert "secret" not in str(refused.value)


def test_all_wrong_variables_are_named_at_once() -> None:
    with pytest.raises(SettingsInvalid) as caught:
        read_settings(FOLDER | {"AETHER_POOL": "*", "AETHER_HTTP_PORT": "x"})
    assert "AETHER_POOL" in str(caught.value)
    assert "AETHER_HTTP_PORT" in str(caught.value)


def test_every_process_has_a_boot_id_of_its_own() -> None:
    settings = read_settings(FOLDER | {"AETHER_POD_UID": "uid-1"})
    first, second = settings.build_identity(), settings.build_identity()
    assert first.uid == second.uid == "uid-1"
    assert first.boot_id != second.boot_id


def test_variables_of_others_are_ignored() -> None:
    assert read_settings(FOLDER | {"AETHER_FROM_THE_FUTURE": "1", "PATH": "/bin"}).pool == "default"


def test_the_page_lists_every_variable_with_its_default_and_meaning() -> None:
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in PAGE.read_text().splitlines() if line.startswith("| `AETHER_")]
    assert rows == [(f"`{PREFIX}{name.upper()}`", describe_default(field), field.description) for name, field in RuntimeSettings.model_fields.items()]


def describe_default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "made up"
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return "" if default is None else f"`{default}`"


def test_every_setting_of_the_runtime_reaches_it() -> None:
    """What the process does not read might as well not be there."""
    source = Path(process.__file__).read_text() + Path(settings_module.__file__).read_text() + Path(main.__file__).read_text()
    assert [name for name in RuntimeSettings.model_fields if not re.search(rf"(settings|self)\.{name}\b", source)] == []
