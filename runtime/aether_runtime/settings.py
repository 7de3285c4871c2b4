"""The runtime's settings, from environment variables with the prefix `AETHER_`.

The operator writes them into the pods of a pool; a person sets two of them to try the runtime from a folder.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from aether_api.durations import DURATION_LENGTH_MAX, DURATION_PATTERN, parse_duration_s
from aether_api.errors import SettingsInvalid
from aether_api.identity import ID_LENGTH_MAX, NAME_PATTERN, BootId, PodIdentity, PodUid
from aether_api.v1alpha1.words import describe_problem
from aether_nats.settings import check_url

PREFIX = "AETHER_"


class RuntimeSettings(BaseModel):
    """Everything a runtime process is told; field `nats_url` is the variable `AETHER_NATS_URL`, and so on.

    A wrong argument, or one that does not exist, is pydantic's `ValidationError`, which names it and keeps its value to itself: URLs may hold passwords.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    source: Literal["folder", "kubernetes", "none"] = Field(
        default="folder", description="Where actors come from: folder, kubernetes, or none, where each starts at its first command."
    )
    folder: Path | None = Field(default=None, description="Folder of manifests, for source folder.")
    namespace: str = Field(default="default", pattern=NAME_PATTERN, description="Namespace whose actors this process may hold.")
    pool: str = Field(default="default", pattern=NAME_PATTERN, description="ActorPool that this process belongs to.")
    pod_name: str = Field(default_factory=socket.gethostname, description="Name of the pod, for people.")
    pod_uid: str = Field(default_factory=lambda: secrets.token_hex(8), min_length=1, max_length=ID_LENGTH_MAX, pattern=r"^[A-Za-z0-9\-]+$", description="UID of the pod.")
    nats_url: str = Field(default="nats://127.0.0.1:4222", description="Server URLs, comma separated.")
    nats_credentials: Path | None = Field(default=None, description="File with NATS credentials (JWT and seed), or with one line user:password.")
    event_partitions: int = Field(default=4, ge=1, le=64, description="Event streams of a namespace; fixed once they exist.")
    event_replicas: int = Field(default=1, ge=1, le=5, description="Copies of each stream.")
    sync_always: bool = Field(default=False, description="Whether NATS fsyncs each write (sync_interval: always); then commits that wait are stored together.")
    actors_per_pod: int = Field(default=10_000, ge=1, description="Most actors that are awake at once; the least used of more sleep until their next command.")
    on_demand_idle: str = Field(
        default="10m",
        pattern=DURATION_PATTERN,
        max_length=DURATION_LENGTH_MAX,
        description="Time without a command after which an actor without a resource leaves memory; 0s is never.",
    )
    memory_limit_bytes: int = Field(default=0, ge=0, description="Memory at 80 % of which actors are put to sleep; 0 takes the limit of the container, if there is one.")
    stop_timeout: str = Field(
        default="100s",
        pattern=DURATION_PATTERN,
        max_length=DURATION_LENGTH_MAX,
        description="Time for leaving in order after SIGTERM, below the pod's grace period; then what is left is cut short.",
    )
    recovery_permits: int = Field(default=50, ge=1, le=10_000, description="Replays under way at once.")
    status_budget: float = Field(
        default=50.0, gt=0, description="Versions written into statuses a second, in the whole namespace; changes of phase may take four times as much beside it."
    )
    http_port: int = Field(default=8080, ge=0, le=65535, description="Port of the probes; 0 turns them off.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level that is logged.")

    @field_validator("nats_url")
    @classmethod
    def _check_servers(cls, nats_url: str) -> str:
        try:
            for url in nats_url.split(","):
                check_url(url)
        except SettingsInvalid as exc:
            raise PydanticCustomError("nats_url", "{why}", {"why": str(exc)}) from exc
        return nats_url

    @property
    def on_demand_idle_s(self) -> float:
        """`on_demand_idle` in seconds, 0 for never."""
        return parse_duration_s(self.on_demand_idle, default_s=0.0)

    @property
    def stop_timeout_s(self) -> float:
        """`stop_timeout` in seconds."""
        return parse_duration_s(self.stop_timeout, default_s=0.0)

    def build_identity(self) -> PodIdentity:
        """Return the identity of this process; each call makes a new boot id."""
        return PodIdentity(PodUid(self.pod_uid), BootId(secrets.token_hex(8)))


def read_settings(environment: Mapping[str, str] = os.environ, **overrides: object) -> RuntimeSettings:
    """Read the settings; `overrides` that are not None win over the environment, and a folder among them over the source named there.

    Raises:
        SettingsInvalid: names each wrong variable and what is allowed.
    """
    values: dict[str, object] = {name: environment[variable] for name in RuntimeSettings.model_fields if environment.get(variable := PREFIX + name.upper())}
    given = {name: value for name, value in overrides.items() if value is not None}
    values.update({"source": "folder", **given} if "folder" in given else given)
    try:
        settings = RuntimeSettings.model_validate(values)
    except ValidationError as exc:
        raise SettingsInvalid("; ".join(map(_describe_variable, exc.errors()))) from exc
    if settings.source == "folder" and settings.folder is None:
        raise SettingsInvalid("AETHER_FOLDER is not set: name a folder of manifests, or set AETHER_SOURCE=kubernetes")
    return settings


def _describe_variable(problem: ErrorDetails) -> str:
    name = str(problem["loc"][0])
    value = "" if name == "nats_url" else f"={problem['input']!r}"  # a URL may hold a password
    return f"{PREFIX}{name.upper()}{value}: {describe_problem(problem)}"
