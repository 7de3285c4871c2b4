"""The Docker engine: the one that answers, else one started here from Debian's packages.

An engine that answers `docker version` is somebody's own: it is used and never stopped. Where none answers and we are root
on Debian, dockerd is started with its state in `ENGINE_STATE`; the process id that it writes there marks it as ours. Such an
engine lives as long as somebody needs it: it is stopped when its last lease is gone and no container runs in it. Its images
stay in the state folder and are there again after the next start; `remove_state` drops them.

Every run that uses the engine holds a lease, so that a run that ends does not stop it under another one.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import bounded_runc
from .folders import ENGINE_STATE, Folders
from .locks import Lease, exclusive, last_user, take_lease
from .processes import ClusterError, attempt, say, step, work
from .scratch import remove_tree

START_S: Final = 60.0
"""Seconds for dockerd to answer; it takes 2 on a quiet machine and up to 20 while it recovers containers."""

STOP_S: Final = 60.0
"""Seconds for dockerd to end; it gives containers 10 each, a few at a time."""

PACKAGES: Final = ("docker.io", "iptables", "runc", "debootstrap", "debian-archive-keyring")
"""Debian's engine and what it needs, and the tool that the images made from packages need."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker engine that answers, held by a lease until `release_engine`."""

    is_ours: bool
    lease: Lease


def ensure_engine(folders: Folders) -> Engine:
    """Return an engine that answers; start one where none does.

    Raises:
        ClusterError: none answers and none can be started here.
    """
    with exclusive(folders.lock("engine"), "the Docker engine"):
        lease = take_lease(folders.lock("engine.used"))
        if not is_answering():
            _start(folders)
    return Engine(is_ours=_own_process() is not None, lease=lease)


def release_engine(engine: Engine, folders: Folders) -> None:
    """Give the lease back; stop the engine if it is ours, this was the last lease and no container runs."""
    engine.lease.close()
    with exclusive(folders.lock("engine"), "the Docker engine"), last_user(folders.lock("engine.used")) as is_last:
        if is_last and engine.is_ours and not _running_containers():
            _stop()


def remove_state(folders: Folders) -> None:
    """Delete what a stopped engine of ours left: images, containers, logs.

    Raises:
        ClusterError: the engine still runs, because another run uses it or a container runs in it.
    """
    with exclusive(folders.lock("engine"), "the Docker engine"):
        if _own_process() is not None:
            raise ClusterError(f"the Docker engine with its state in {ENGINE_STATE} is in use: look at `docker ps`, stop what runs, repeat")
        if ENGINE_STATE.exists():
            say(f"removing {ENGINE_STATE}")
            remove_tree(ENGINE_STATE)


def is_answering() -> bool:
    """Tell whether an engine answers, whoever started it."""
    return attempt("docker", "version", "--format", "{{.Server.Version}}", timeout_s=20).returncode == 0


def _running_containers() -> bool:
    return attempt("docker", "ps", "--quiet").stdout.strip() != ""


def _start(folders: Folders) -> None:
    if os.geteuid() != 0:
        raise ClusterError("no Docker engine answers: start one (or install Docker: https://docs.docker.com/engine/install/), or name a cluster in KUBECONFIG")
    if shutil.which("dockerd") is None:
        install_packages(PACKAGES, folders)
    _prepare_state()
    with step("starting a Docker engine"):
        _run_dockerd()


def install_packages(packages: tuple[str, ...], folders: Folders) -> None:
    """Install Debian packages on this host.

    Raises:
        ClusterError: the host is not Debian-like, we are not root, or apt failed.
    """
    names = " ".join(packages)
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(f"these have to be installed first, and this is no Debian or we are not root: {names}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with step(f"installing {names} from Debian"):
        work("apt-get", "update", "-qq", log=folders.log("apt-update"), environment=quiet)
        work("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, log=folders.log("apt-install"), environment=quiet)


def _prepare_state() -> None:
    ENGINE_STATE.mkdir(mode=0o700, exist_ok=True)
    if ENGINE_STATE.is_symlink() or ENGINE_STATE.stat().st_uid != os.geteuid():
        raise ClusterError(f"{ENGINE_STATE} belongs to somebody else; remove it")
    wrapper = ENGINE_STATE / "runc-bounded"
    source = Path(bounded_runc.__file__).read_text()
    wrapper.write_text(f"#!{Path(sys.executable).resolve()} -I\n{source}")  # a copy: the engine may outlive this checkout
    wrapper.chmod(0o755)


def _command() -> list[str]:
    command = ["dockerd", "--data-root", str(ENGINE_STATE / "data"), "--exec-root", str(ENGINE_STATE / "exec"), "--pidfile", str(_pid_file())]
    granted = bounded_runc.read_bounding_set(Path("/proc/self/status").read_text())
    if bounded_runc.is_complete(granted):
        return command
    return [*command, "--add-runtime", f"bounded={ENGINE_STATE / 'runc-bounded'}", "--default-runtime", "bounded"]


def _run_dockerd() -> None:
    if _own_process() is None:
        _pid_file().unlink(missing_ok=True)  # of an engine that was killed: dockerd refuses to start while the number is in use
    log = ENGINE_STATE / "log"
    number = _spawn(_command(), log)
    try:
        _await_answer(number, log)
    except BaseException:
        with suppress(ProcessLookupError, ChildProcessError):  # it may have ended by itself
            os.kill(number, signal.SIGTERM)
            os.waitpid(number, 0)
        raise


def _spawn(command: list[str], log: Path) -> int:
    """Start a program that outlives this one, in a session of its own; returns its process id."""
    program = shutil.which(command[0])
    if program is None:
        raise ClusterError(f"{command[0]} is not installed")
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(os.devnull) as nothing:
        streams = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
        try:
            return os.posix_spawn(program, command, os.environ, file_actions=streams, setsid=True)
        finally:
            os.close(output)


def _await_answer(number: int, log: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while not is_answering():
        has_ended = os.waitpid(number, os.WNOHANG)[0] == number
        if has_ended or time.monotonic() > deadline_s:
            raise ClusterError(f"dockerd does not answer, its log is {log}:\n" + "\n".join(log.read_text().splitlines()[-20:]))
        time.sleep(0.2)


def _pid_file() -> Path:
    return ENGINE_STATE / "pid"


def _own_process() -> int | None:
    """Return the process id of the engine that we started, if it lives; a recycled id is told by its command line."""
    with suppress(OSError, ValueError):
        number = int(_pid_file().read_text())
        if str(_pid_file()).encode() in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
            return number
    return None


def _stop() -> None:
    number = _own_process()
    if number is None:
        return
    attempt("docker", "network", "prune", "--force")
    with step("stopping the Docker engine that was started here"):
        os.kill(number, signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_S
        while _own_process() is not None:
            if time.monotonic() > deadline_s:
                raise ClusterError(f"the Docker engine (process {number}) did not end within {STOP_S:.0f} s")
            time.sleep(0.2)
    with suppress(ChildProcessError):  # reap it if it was started by this very process
        os.waitpid(number, os.WNOHANG)
    attempt("ip", "link", "delete", "docker0")  # the bridge that it leaves behind
