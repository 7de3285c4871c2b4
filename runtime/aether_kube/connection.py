"""Decides where the API server is and how this process proves who it is.

Order: the kubeconfig that was named; the files of `KUBECONFIG`; the service account of the pod that we run in;
`~/.kube/config`. It is kubectl's order, but that a pod's own service account goes before a home folder, since an image may
carry a home and a laptop never has a service account.

The official `kubernetes` package reads the files, runs credential plugins and re-reads the pod's token every minute (the
kubelet renews it at 80 % of its life). An answer of 401 makes the client ask for fresh credentials once, which covers
plugins whose tokens live for minutes.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import yaml
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config  # pyright: ignore[reportUnknownVariableType]  # the package leaves its config module untyped
from kubernetes.aio.config.kube_config import load_kube_config  # pyright: ignore[reportUnknownVariableType]  # as above

from aether_api.errors import SettingsInvalid

HOME_KUBECONFIG: Final = "~/.kube/config"
IN_CLUSTER_VARIABLE: Final = "KUBERNETES_SERVICE_HOST"

Authorize = Callable[[bool], Awaitable[str]]
"""Return the Authorization header, empty when a certificate speaks for us; True asks for fresh credentials."""


@dataclass(frozen=True, slots=True)
class KubeConnection:
    """Where the API server is and how to get in.

    Attributes:
        url: scheme, host and port, without a slash at the end.
        ssl_context: None for plain HTTP (tests, `kubectl proxy`).
        server_name: the name that the server's certificate must carry, when it is not the host.
    """

    url: str
    authorize: Authorize
    ssl_context: ssl.SSLContext | None = None
    server_name: str | None = None
    proxy: str | None = None


async def open_connection(kubeconfig: str | None = None, context: str | None = None) -> KubeConnection:
    """Read the configuration and return the way to the API server; no call is made.

    Raises:
        SettingsInvalid: no usable configuration; the message names the place that was looked at.
    """
    place = _place_of(kubeconfig)
    configuration = await _load(place, context)

    async def authorize(renew: bool) -> str:
        nonlocal configuration
        if renew:
            configuration = await _load(place, context)
        return await _authorization(configuration, place)

    return KubeConnection(
        url=str(configuration.host).rstrip("/"),
        authorize=authorize,
        ssl_context=_ssl_context(configuration, place),
        server_name=configuration.tls_server_name,
        proxy=configuration.proxy,
    )


def find_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for a URL (`HTTPS_PROXY`, `NO_PROXY` and the like).

    It is asked once for a client. aiohttp would ask again, and read `.netrc`, in a thread for every request.
    """
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def anonymous_connection(url: str) -> KubeConnection:
    """Return a connection without credentials, as to `kubectl proxy`."""

    async def authorize(renew: bool) -> str:
        return ""

    return KubeConnection(url=url.rstrip("/"), authorize=authorize)


def _place_of(kubeconfig: str | None) -> str:
    """Return the kubeconfig files to read, joined as in KUBECONFIG, or an empty text for the pod's service account."""
    named = kubeconfig or os.environ.get("KUBECONFIG", "")
    if not named and os.environ.get(IN_CLUSTER_VARIABLE):
        return ""
    files = [Path(name).expanduser() for name in (named or HOME_KUBECONFIG).split(os.pathsep) if name]
    if not any(file.is_file() for file in files):
        raise SettingsInvalid(f"no Kubernetes configuration at {named or HOME_KUBECONFIG}: name a kubeconfig, set KUBECONFIG, or run inside a pod")
    return os.pathsep.join(str(file) for file in files)


async def _load(place: str, context: str | None) -> Configuration:
    configuration = Configuration()
    try:
        if place:
            await load_kube_config(place, context=context, client_configuration=configuration, persist_config=False)  # type: ignore[no-untyped-call]  # the package leaves its config module untyped
        else:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # as above
    except (ConfigException, OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as exc:
        raise SettingsInvalid(f"the Kubernetes configuration of {place or 'this pod'} cannot be used: {exc}") from exc
    return configuration


async def _authorization(configuration: Configuration, place: str) -> str:
    try:
        settings = await configuration.auth_settings()
    except (ConfigException, OSError) as exc:
        raise SettingsInvalid(f"the credentials of {place or 'this pod'} cannot be read: {exc}") from exc
    bearer = settings.get("BearerToken")
    return str(bearer["value"] or "").strip() if bearer else ""


def _ssl_context(configuration: Configuration, place: str) -> ssl.SSLContext | None:
    if not str(configuration.host).startswith("https"):
        return None
    try:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    except OSError as exc:
        raise SettingsInvalid(f"the certificates of {place or 'this pod'} cannot be used: {exc}") from exc
    # Python 3.13 refuses CAs without an Authority Key Identifier, which Go clients take and some providers issue.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
