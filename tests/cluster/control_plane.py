"""A bare control plane: etcd and kube-apiserver as plain processes, for what needs a real API server and no nodes.

No Docker, no root, no kubelet and no controllers: nothing runs a Pod and nothing follows a Deployment, so a caller says itself
what became of them. Everything lies in one temporary folder, ports are free ones of 127.0.0.1, and the API server makes its own
certificate. RBAC is on; the users of the token file are administrators, and tokens of service accounts are signed by a key made here.

It answers some five seconds after it was started, and ends with the block and with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import ssl
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from .folders import Folders
from .locks import exclusive
from .pins import ETCD_PROGRAM, KUBE_PROGRAM
from .processes import ClusterError, ask, end_process, ending_with_us, find_free_ports
from .programs import build_program, program_folder

START_TIMEOUT_S: Final = 120.0
"""Seconds until the API server is ready: five on an idle machine, a minute when two cores have other work."""

STOP_TIMEOUT_S: Final = 20.0
"""Seconds between SIGTERM and SIGKILL; an API server waits for its watches to end."""

POLL_S: Final = 0.1
"""Seconds between looks at whether another process is ready; it tells us nothing by itself."""

TAIL_LINES: Final = 10
"""Lines of a log in an error."""

ADMIN: Final = "admin"
"""The user of whoever starts the control plane."""

ISSUER: Final = "https://aether.test"
"""Who signs the tokens of service accounts."""

SERVICE_RANGE: Final = "10.0.0.0/24"
"""Addresses of Services, of which nobody makes any; the API server insists on a range."""

AUDIT_POLICY: Final = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}
"""Every answered request is one line."""

_KEY_HEAD: Final = bytes.fromhex("30310201010420")
_KEY_TAIL: Final = bytes.fromhex("a00a06082a8648ce3d030107")
"""What stands before and behind the number of a private key on P-256 (RFC 5915), without the public key, which readers compute."""


@dataclass(frozen=True, slots=True)
class Programs:
    """The two binaries."""

    etcd: Path
    kube: Path


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """A running API server.

    Attributes:
        folder: certificates, logs, kubeconfigs; removed with the control plane.
        process_ids: of the API server and of etcd.
        audit_log: one JSON object for each answered request; it stays empty unless an audit was asked for.
    """

    url: str
    folder: Path
    process_ids: tuple[int, int]
    audit_log: Path
    tokens: dict[str, str] = field(repr=False)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Return what kubectl says to an administrator; it blocks until then.

        Raises:
            ClusterError: it failed.
        """
        return ask(self.folder / "kubectl", f"--kubeconfig={self.kubeconfig()}", *arguments, stdin=stdin)

    def kubeconfig(self, user: str = ADMIN) -> Path:
        """Return a kubeconfig of one of the users that the control plane was started with."""
        return self.write_kubeconfig(user, self.tokens[user])

    def write_kubeconfig(self, name: str, token: str) -> Path:
        """Return a kubeconfig for whoever owns a token."""
        path = self.folder / f"{name}.kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": "bare", "cluster": {"server": self.url, "certificate-authority": str(_certificate(self.folder))}}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": "bare", "user": name}}],
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(document))
        return path


def find_programs(folders: Folders) -> Programs | None:
    """Return the binaries if they were built before; building them takes about ten minutes on two cores."""
    found = Programs(program_folder(ETCD_PROGRAM, folders) / "etcd", program_folder(KUBE_PROGRAM, folders) / "kube")
    return found if found.etcd.is_file() and found.kube.is_file() else None


def ensure_programs(folders: Folders, *, required: bool) -> Programs | None:
    """Return the binaries if they are there, else None, or what is built now if they are required.

    A cluster does not bring them along: where kind's node image can be pulled, nothing of Kubernetes is ever compiled. So nobody is made
    to compile it for ten minutes because of two tests of what the benches stand on; CI is, since a test that it skips is run by nobody.

    Raises:
        ClusterError: they are required, and Go is missing or a build failed.
    """
    return build_programs(folders) if required else find_programs(folders)


def build_programs(folders: Folders) -> Programs:
    """Return the binaries, built now unless they are there.

    Raises:
        ClusterError: Go is missing or a build failed.
    """
    # A node image that is made meanwhile holds the same lock and compiles the same programs.
    with exclusive(folders.lock("images"), "the images"):
        return Programs(build_program(ETCD_PROGRAM, folders) / "etcd", build_program(KUBE_PROGRAM, folders) / "kube")


@asynccontextmanager
async def start_control_plane(programs: Programs, *, users: Sequence[str] = (), audit: bool = False) -> AsyncGenerator[ControlPlane, None]:
    """Run a control plane for the length of a `with` block.

    Args:
        users: administrators beside `admin`, each with a kubeconfig of its own, so that an audit tells them apart.
        audit: write a line for each request.

    Raises:
        ClusterError: a process ended or is not ready in time; the message holds the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="aether-control-plane-") as name:
        folder = Path(name)
        tokens = {user: secrets.token_hex(16) for user in (ADMIN, *users)}
        _write_files(folder, programs, tokens)
        client_port, peer_port, api_port = find_free_ports(3)
        async with AsyncExitStack() as stack:
            etcd = await stack.enter_async_context(_running(_etcd_command(programs, folder, client_port, peer_port), folder / "etcd.log"))
            api = await stack.enter_async_context(_running(_api_command(folder, client_port, api_port, audit=audit), folder / "kube-apiserver.log"))
            url = f"https://127.0.0.1:{api_port}"
            await _wait_ready(url, tokens[ADMIN], folder, (etcd, api))
            yield ControlPlane(url, folder, (api.pid, etcd.pid), folder / "audit.log", tokens)


def build_signing_key(number: int) -> str:
    """Return a private key on the curve P-256 as PEM.

    Args:
        number: secret, from 1 to 2**255.
    """
    encoded = base64.b64encode(_KEY_HEAD + number.to_bytes(32, "big") + _KEY_TAIL).decode()
    return f"-----BEGIN EC PRIVATE KEY-----\n{encoded[:64]}\n{encoded[64:]}\n-----END EC PRIVATE KEY-----\n"


def _write_files(folder: Path, programs: Programs, tokens: dict[str, str]) -> None:
    for program in ("kube-apiserver", "kubectl"):
        (folder / program).symlink_to(programs.kube)  # the binary is all of Kubernetes, and its name picks the program
    (folder / "tokens.csv").write_text("".join(f'{token},{user},{user},"system:masters"\n' for user, token in tokens.items()))
    (folder / "signing.key").write_text(build_signing_key(secrets.randbelow(2**255) + 1))
    (folder / "audit.json").write_text(json.dumps(AUDIT_POLICY))
    (folder / "audit.log").touch()


def _etcd_command(programs: Programs, folder: Path, client_port: int, peer_port: int) -> list[str]:
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        str(programs.etcd),
        f"--data-dir={folder / 'etcd'}",
        "--unsafe-no-fsync",  # nothing of it is kept, and a disk that others share would be most of each write
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
    ]


def _api_command(folder: Path, etcd_port: int, port: int, *, audit: bool) -> list[str]:
    return [
        str(folder / "kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-signing-key-file={folder / 'signing.key'}",
        f"--service-account-key-file={folder / 'signing.key'}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        *([f"--audit-policy-file={folder / 'audit.json'}", f"--audit-log-path={folder / 'audit.log'}"] if audit else []),
    ]


@asynccontextmanager
async def _running(command: list[str], log: Path) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    with log.open("wb") as output:
        # An API server that is asked to end waits for an etcd that is gone already, for ever: with us both are killed, as nothing of theirs is kept.
        process = await asyncio.create_subprocess_exec(*ending_with_us(command, "KILL"), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, process_group=0)
    try:
        yield process
    finally:
        await end_process(process, within_s=STOP_TIMEOUT_S)


async def _wait_ready(url: str, token: str, folder: Path, processes: tuple[asyncio.subprocess.Process, asyncio.subprocess.Process]) -> None:
    """Ask until the API server says that all of it is up, its own roles included."""
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await _is_ready(url, token, folder):
                for process, log in zip(processes, ("etcd.log", "kube-apiserver.log"), strict=True):
                    if process.returncode is not None:
                        raise ClusterError(f"{log.removesuffix('.log')} ended with code {process.returncode}:\n{_read_tail(folder / log)}")
                await asyncio.sleep(POLL_S)
    except TimeoutError as exc:
        raise ClusterError(f"the API server is not ready after {START_TIMEOUT_S:g} s:\n{_read_tail(folder / 'kube-apiserver.log')}") from exc


async def _is_ready(url: str, token: str, folder: Path) -> bool:
    if not _certificate(folder).is_file():
        return False
    try:
        context = ssl.create_default_context(cafile=_certificate(folder))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Go's self-made authority lacks what Python 3.13 wants of one
        async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz", ssl=context, headers={"Authorization": f"Bearer {token}"}) as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False


def _certificate(folder: Path) -> Path:
    """Return the file that holds the API server's certificate and the authority that signed it."""
    return folder / "apiserver.crt"


def _read_tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
