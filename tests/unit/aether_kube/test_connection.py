"""Where the API server is: kubeconfig first, then the pod's service account, then the home folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_api.errors import SettingsInvalid
from aether_kube.connection import find_proxy, open_connection
from tests.fake_apiserver.kubeconfig import write_kubeconfig


@pytest.fixture(autouse=True)
def no_configuration_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


async def test_a_named_kubeconfig_is_read(tmp_path: Path) -> None:
    connection = await open_connection(str(write_kubeconfig(tmp_path)))

    assert connection.url == "http://127.0.0.1:1234"
    assert await connection.authorize(False) == "Bearer secret"
    assert connection.ssl_context is None


async def test_a_context_can_be_chosen(tmp_path: Path) -> None:
    connection = await open_connection(str(write_kubeconfig(tmp_path)), "two")

    assert connection.url == "http://two:80"


async def test_the_environment_names_a_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path)))

    assert (await open_connection()).url == "http://127.0.0.1:1234"


async def test_fresh_credentials_are_read_from_the_file_again(tmp_path: Path) -> None:
    connection = await open_connection(str(write_kubeconfig(tmp_path)))
    write_kubeconfig(tmp_path, token="renewed")

    assert await connection.authorize(False) == "Bearer secret"
    assert await connection.authorize(True) == "Bearer renewed"


async def test_a_missing_configuration_is_told_with_the_places_to_put_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="KUBECONFIG"):
        await open_connection(str(tmp_path / "none"))


@pytest.mark.parametrize("content", ["", "[]", "{", "current-context: none", "apiVersion: v1\nclusters: 7\n"])
async def test_a_broken_kubeconfig_is_told_by_its_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "broken"
    file.write_text(content)

    with pytest.raises(SettingsInvalid, match="broken"):
        await open_connection(str(file))


async def test_a_pod_without_a_token_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")

    with pytest.raises(SettingsInvalid, match="this pod"):
        await open_connection()


def test_the_environment_names_a_proxy_for_some_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "https_proxy", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.1,.svc")

    assert find_proxy("https://kube.example:6443") == "http://proxy:3128"
    assert [find_proxy(url) for url in ("https://10.0.0.1", "https://kubernetes.default.svc", "http://kube.example")] == [None, None, None]
