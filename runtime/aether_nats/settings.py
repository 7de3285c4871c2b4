"""How to reach a NATS server, and the limits of one connection."""

from __future__ import annotations

import ssl
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast
from urllib.parse import SplitResult, urlsplit

from aether_api.errors import SettingsInvalid, describe_value

PING_INTERVAL_S: Final = 5
"""Seconds between pings: with two missed ones a dead server is noticed in about 15 s; the default of 120 s would leave callers hanging."""

PINGS_OUTSTANDING_MAX: Final = 2
"""Unanswered pings before the link counts as dead: one lost in a hiccup of the network is forgiven."""

CONNECT_TIMEOUT_S: Final = 10.0
"""Seconds until opening a connection fails: a server that starts together with us is ready by then."""

PENDING_BYTES_MAX: Final = 64 << 20
"""Bytes that may wait for the socket: several of the largest messages, and small against a pod's memory."""


SCHEMES: Final = ("nats", "tls", "ws", "wss")
"""What nats-py can speak."""


MISREAD: Final = "its host or port is none, as in nats://127.0.0.1:4222; in a user or password write / as %2F, # as %23, ? as %3F, @ as %40, : as %3A, [ as %5B, ] as %5D"
"""What is wrong with a URL that cannot be taken apart; it is not shown, since nobody knows where in it a password ends."""


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """Servers, identity and limits of a connection.

    Attributes:
        servers: URLs such as `nats://host:4222` or `tls://host:4222`; user and password may be part of them.
        name: shown in the server's monitoring.
        credentials_path: file with JWT and seed (`.creds`), or with one line `user:password`.
        nkey_seed_path: file with an nkey seed.
        tls_ca_path: certificate authority to trust instead of the system's; demands TLS.
        tls_first: shake hands before the server's first line, for servers set up so.
        fast: use the fast layer where nats-py's version allows it.
    """

    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    name: str = "aether"
    user: str = ""
    password: str = ""
    token: str = ""
    credentials_path: Path | str | None = None
    nkey_seed_path: Path | str | None = None
    tls_ca_path: Path | str | None = None
    tls_certificate_path: Path | str | None = None
    tls_key_path: Path | str | None = None
    tls_hostname: str = ""
    tls_first: bool = False
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    pending_bytes_max: int = PENDING_BYTES_MAX
    fast: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot work, such as URLs that could never be reached, before anybody waits for it.

        Raises:
            SettingsInvalid: a URL is malformed, `servers` is no collection of URLs, or a path, a time or a bound is none.
        """
        _check_servers(self.servers)
        for name in ("credentials_path", "nkey_seed_path", "tls_ca_path", "tls_certificate_path", "tls_key_path"):
            _check_path(name, getattr(self, name))
        check_seconds("connect_timeout_s of NatsSettings", self.connect_timeout_s)
        check_count("pending_bytes_max of NatsSettings", self.pending_bytes_max)

    @property
    def demands_tls(self) -> bool:
        """Whether an unencrypted link must be refused."""
        return self.tls_ca_path is not None or self.tls_certificate_path is not None or any(url.startswith("tls://") for url in self.servers)

    @property
    def uses_websocket(self) -> bool:
        """Whether the servers are reached through WebSocket."""
        return any(url.startswith(("ws://", "wss://")) for url in self.servers)

    def describe_servers(self) -> str:
        """Return the servers' URLs without user and password, for messages and logs."""
        return ", ".join(_without_user(url) for url in self.servers)

    def describe_login(self) -> str:
        """Return as whom we come, without secrets: for the message when the server refuses us."""
        if self.credentials_path is not None:
            return f"with the credentials in {self.credentials_path}"
        if self.nkey_seed_path is not None:
            return f"with the nkey in {self.nkey_seed_path}"
        if self.token:
            return "with a token"
        if self.user:
            return f"as user {self.user} with a password"
        return " or ".join(sorted({login for url in self.servers if (login := _describe_login_of(url))})) or "without a user"


@dataclass(frozen=True, slots=True)
class Login:
    """Who we are to the server; empty parts are not used."""

    user: str = ""
    password: str = ""
    credentials_path: Path | None = None


def read_login(settings: NatsSettings) -> Login:
    """Return user and password, or the file that holds JWT and seed.

    Raises:
        SettingsInvalid: the credentials file cannot be read.
    """
    if settings.credentials_path is None:
        return Login(settings.user, settings.password)
    path = Path(settings.credentials_path)
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsInvalid(f"the credentials file for NATS (AETHER_NATS_CREDENTIALS, --credentials or credentials_path) cannot be read: {exc}") from exc
    user, colon, password = lines[0].partition(":") if len(lines) == 1 else ("", "", "")
    return Login(user, password) if colon else Login(credentials_path=path)


def build_tls_context(settings: NatsSettings) -> ssl.SSLContext | None:
    """Return the TLS context that the settings ask for, or None to leave it to the scheme of the URL.

    Raises:
        SettingsInvalid: a certificate or key cannot be read.
    """
    if not settings.demands_tls and not settings.tls_first:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_path)
        if settings.tls_certificate_path is not None:
            context.load_cert_chain(settings.tls_certificate_path, settings.tls_key_path)
    except (OSError, ssl.SSLError) as exc:
        raise SettingsInvalid(f"the TLS files for NATS cannot be used: {exc}") from exc
    return context


def is_count(value: object) -> bool:
    """Whether something is a whole number, 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_count(setting: str, value: object) -> None:
    """Raise `SettingsInvalid` for a bound that is no whole number above 0; `setting` names it and what it belongs to."""
    if not is_count(value) or not value:
        raise SettingsInvalid(f"{setting} must be a whole number, 1 or more, not {describe_value(value)}")


def check_seconds(setting: str, value: object) -> None:
    """Raise `SettingsInvalid` for what is no time above 0, as `check_count`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise SettingsInvalid(f"{setting} must be seconds, more than 0, not {describe_value(value)}")


def _check_path(name: str, value: object) -> None:
    if value is not None and not isinstance(value, Path | str):
        raise SettingsInvalid(f"{name} of NatsSettings must be the path of a file, not {describe_value(value)}")


def _check_servers(servers: object) -> None:
    if isinstance(servers, str):
        raise SettingsInvalid(f"servers of NatsSettings is a tuple of URLs: write NatsSettings(({_without_user(servers)!r},)), with a comma behind it")
    if not isinstance(servers, Collection) or not servers:
        raise SettingsInvalid(f"servers of NatsSettings is a tuple of at least one URL, not {servers!r}")
    for url in cast("Collection[object]", servers):
        if not isinstance(url, str):
            raise SettingsInvalid(f"servers of NatsSettings holds URLs such as 'nats://127.0.0.1:4222', not {url!r}")
        check_url(url)


def check_url(url: str) -> None:
    """Check scheme, host and port of a server's URL; without a scheme it is `nats://`.

    Raises:
        SettingsInvalid: says what is wrong with it; names the URL where no password can be in what is shown.
    """
    try:
        parsed = _split(url)
        has_port = parsed.port != 0
    except ValueError:  # its text holds parts of the URL, and so perhaps of a password
        raise SettingsInvalid(f"a text is not the URL of a NATS server: {MISREAD}") from None
    if "@" not in parsed.netloc and "@" in url:
        raise SettingsInvalid(f"a text is not the URL of a NATS server: {MISREAD}")
    if parsed.scheme not in SCHEMES or not parsed.hostname or not has_port:
        raise SettingsInvalid(f"{_without_user(url)!r} is not the URL of a NATS server; write one such as nats://127.0.0.1:4222 ({', '.join(SCHEMES)})")


def _split(url: str) -> SplitResult:
    """Take a URL apart as nats-py does, which takes `nats://` where there is no scheme."""
    return urlsplit(url if "://" in url else f"nats://{url}")


def _describe_login_of(url: str) -> str:
    """Return as whom one comes by a URL; a user without a password is a token, which is a secret."""
    parsed = _split(url)
    if not parsed.username:
        return ""
    return "with a token" if parsed.password is None else f"as user {parsed.username} with a password"


def _without_user(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
