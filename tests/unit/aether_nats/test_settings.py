"""Settings of a connection: what demands TLS, what may be shown, and when the fast layer is refused."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import nats.aio.client
import pytest
from nats.aio.client import Server

from aether_api.errors import SettingsInvalid
from aether_nats.fast import find_refusal
from aether_nats.link import RECONNECT_DELAY_FIRST_S, RECONNECT_DELAY_MAX_S, Backoff
from aether_nats.settings import Login, NatsSettings, build_tls_context, read_login


def test_servers_are_shown_without_their_passwords() -> None:
    settings = NatsSettings(servers=("nats://u:p@one:4222", "tls://token@two:4222", "three"))
    assert settings.describe_servers() == "nats://one:4222, tls://two:4222, three"


@pytest.mark.parametrize("servers", ["nats://n:4222", (), None, (5,)])
def test_servers_that_are_no_tuple_of_urls_are_refused(servers: Any) -> None:
    with pytest.raises(SettingsInvalid, match=r"servers of NatsSettings (is a tuple|holds URLs)"):
        NatsSettings(servers)


@pytest.mark.parametrize(
    ("settings", "demanded"),
    [(NatsSettings(), False), (NatsSettings(servers=("tls://a",)), True), (NatsSettings(tls_ca_path=Path("ca.pem")), True)],
)
def test_tls_is_demanded_by_scheme_or_files(settings: NatsSettings, demanded: bool) -> None:
    assert settings.demands_tls is demanded


def test_a_credentials_file_holds_a_user_with_a_password_or_what_the_nats_tools_make(tmp_path: Path) -> None:
    line, made = tmp_path / "line", tmp_path / "made"
    line.write_text("runtime:s3:cret\n")
    made.write_text("-----BEGIN NATS USER JWT-----\neyJ0:eXAi\n------END NATS USER JWT------\n")
    assert read_login(NatsSettings(credentials_path=line)) == Login("runtime", "s3:cret")
    assert read_login(NatsSettings(credentials_path=made)) == Login(credentials_path=made)
    assert read_login(NatsSettings(user="u", password="p")) == Login("u", "p")
    with pytest.raises(SettingsInvalid, match=r"credentials file .*AETHER_NATS_CREDENTIALS.*nowhere"):
        read_login(NatsSettings(credentials_path=tmp_path / "nowhere"))


def test_a_file_may_be_named_by_a_text(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_text("-----BEGIN NATS USER JWT-----\nabc\n")
    assert read_login(NatsSettings(credentials_path=str(made))) == Login(credentials_path=made)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("credentials_path", 5, "the path of a file"),
        ("tls_ca_path", b"ca.pem", "the path of a file"),
        ("connect_timeout_s", "1", "seconds, more than 0"),
        ("connect_timeout_s", 0, "seconds, more than 0"),
        ("pending_bytes_max", "1", "a whole number, 1 or more"),
        ("pending_bytes_max", 0, "a whole number, 1 or more"),
    ],
)
def test_a_setting_that_cannot_work_is_named_with_what_is_allowed(name: str, value: object, allowed: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"{name} of NatsSettings must be {allowed}"):
        NatsSettings(**{name: value})  # type: ignore[arg-type]  # that is the point


def test_an_unreadable_certificate_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsInvalid, match="TLS files"):
        build_tls_context(NatsSettings(tls_ca_path=Path("/nowhere/ca.pem")))


def test_the_fast_layer_serves_the_installed_version() -> None:
    assert find_refusal(NatsSettings()) == ""


def test_the_fast_layer_refuses_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "plain" in find_refusal(NatsSettings(fast=False))
    assert "WebSocket" in find_refusal(NatsSettings(servers=("ws://a",)))
    monkeypatch.setattr(nats.aio.client.Client, "_read_loop", None)
    assert "_read_loop" in find_refusal(NatsSettings())
    monkeypatch.setattr(nats.aio.client, "__version__", "3.0.0")
    assert "3.0.0" in find_refusal(NatsSettings())


def test_reconnects_try_the_least_tried_server_after_growing_bounded_delays() -> None:
    backoff = Backoff()
    servers = [Server(urlparse("nats://a:1"), reconnects=2), Server(urlparse("nats://b:1"), reconnects=1)]
    choices = [backoff.choose(servers, {}) for _ in range(40)]
    assert {server.uri.netloc for server, _ in choices if server} == {"b:1"}
    assert choices[0][1] <= RECONNECT_DELAY_FIRST_S
    assert all(RECONNECT_DELAY_MAX_S / 2 <= delay <= RECONNECT_DELAY_MAX_S for _, delay in choices[10:])
    backoff.reset()
    assert backoff.choose(servers, {})[1] <= RECONNECT_DELAY_FIRST_S


@pytest.mark.parametrize("url", ["nats://127.0.0.1:4222", "localhost", "localhost:4222", "tls://user:secret@a.example:4222", "wss://a.example", "nats://[::1]:4222"])
def test_urls_of_servers_are_taken_with_and_without_scheme_and_port(url: str) -> None:
    assert NatsSettings(servers=(url,)).servers == (url,)


@pytest.mark.parametrize("url", ["", "foo://bar", "nats://", "localhost:99999", "http://127.0.0.1:4222", "nats://a:port"])
def test_a_url_that_could_never_be_reached_is_refused_by_name(url: str) -> None:
    with pytest.raises(SettingsInvalid, match="not the URL of a NATS server"):
        NatsSettings(servers=(url,))


def test_a_refused_url_does_not_show_its_password() -> None:
    with pytest.raises(SettingsInvalid) as refused:
        NatsSettings(servers=("foo://user:secret@bar",))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("servers", "said"),
    [
        ("nats://u:secret@127.0.0.1:4222", r"write NatsSettings\(\('nats://127.0.0.1:4222',\)\)"),
        ((), "at least one URL"),
        (5, "not 5"),
        ((5,), "not 5"),
    ],
)
def test_servers_are_a_tuple_of_urls(servers: Any, said: str) -> None:
    with pytest.raises(SettingsInvalid, match=said) as caught:
        NatsSettings(servers)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("servers", "said"),
    [
        (("nats://tok3n@host",), "with a token"),
        (("tok3n@host:4222",), "with a token"),
        (("bob:pw@host:4222",), "as user bob with a password"),
        (("nats://bob:pw@a", "nats://eve:pw@b"), "as user bob with a password or as user eve with a password"),
        (("host:4222",), "without a user"),
    ],
)
def test_a_login_in_a_url_is_told_without_its_secrets(servers: tuple[str, ...], said: str) -> None:
    assert NatsSettings(servers).describe_login() == said


@pytest.mark.parametrize(
    "url",
    [
        "nats://u:s3cr/et@host:4222",
        "nats://u:s3cr#et@host",
        "nats://u:s3cr?et@host",
        "u:s3cr/et@host",
        "nats://u:s3cr[et@host",
        "nats://u:s3cret@host:s3cr",
        "nats://tok/s3cr@host",
    ],
)
def test_no_part_of_a_password_in_a_wrong_url_is_shown(url: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"not the URL of a NATS server: .* write / as %2F") as refused:
        NatsSettings((url,))
    assert "s3cr" not in "".join(traceback.format_exception(refused.value))
    assert "et@" not in str(refused.value)
