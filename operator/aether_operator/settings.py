"""What the environment says: every variable has the prefix `AETHER_`, and the chart sets them.

A setting that cannot work ends the process at once with the name of its variable, since an operator that runs on half of its
settings is worse than none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from aether_api.errors import InvalidName, SettingsInvalid
from aether_api.identity import check_name
from aether_api.subjects import PARTITIONS_MAX
from aether_api.v1alpha1.words import describe_problem
from aether_kube.lease import ABSENT_AFTER_S, LEASE_S, OUT_OF_SIGHT_S, RENEW_BY_S, RETRY_S, LeaseTiming
from aether_operator.planning.pace import HAND_OVERS_AT_ONCE, MASS_MOVES_PER_S, REBALANCE_PER_S, Limits

PREFIX: Final = "AETHER_"

NATS_URL_DEFAULT: Final = "nats://127.0.0.1:4222"
"""Where a nats-server on the developer's own machine listens."""

DETECTION_WINDOW_S: Final = 5.0
"""Seconds that our own links must have been up before silence counts against anybody: after a restart of NATS a pod is back
within 2 s (the longest wait between its attempts) and one heartbeat, and a slow machine takes twice that."""

SUSPECT_AFTER_S: Final = 1.0
"""Seconds without a heartbeat: three lost ones in a row, while one lost is noise."""

PING_TIMEOUT_S: Final = 1.0
"""Seconds for the answer to a ping. Of a process that has ended the server says at once that nobody listens; this is for one that is connected
and silent: frozen, cut off, or merely without a CPU, as next to a container that starts on a busy node (1.6 s seen)."""


class OperatorSettings(BaseModel):
    """All settings of the operator; attribute `nats_url` is variable `AETHER_NATS_URL`, and so on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nats_url: str = Field(default=NATS_URL_DEFAULT, min_length=1, description="Server URLs, comma separated.")
    nats_credentials: Path | None = Field(default=None, description="File with NATS credentials.")
    namespace: str = Field(default="aether-system", min_length=1, description="Namespace of the operator itself: its Lease is there.")
    lease_name: str = Field(default="aether-operator", min_length=1, description="Name of the Lease by which the leader is elected.")
    lease_s: float = Field(default=LEASE_S, description="Seconds for which a Lease that stands still belongs to its holder.")
    lease_renew_by_s: float = Field(default=RENEW_BY_S, description="Seconds after which a leader that could not renew stops acting.")
    lease_retry_s: float = Field(default=RETRY_S, description="Seconds between renewals, and between looks of a candidate.")
    lease_absent_after_s: float = Field(default=ABSENT_AFTER_S, description="Seconds without a renewal after which a holder that does not answer over NATS has lost the Lease.")
    lease_out_of_sight_s: float = Field(default=OUT_OF_SIGHT_S, description="Seconds after its last renewal at which a leader without NATS stops acting; less than the one before.")
    watch_namespaces: tuple[str, ...] = Field(default=(), description="Namespaces to look after, comma separated; empty for all.")
    runtime_image: str = Field(default="aether:latest", description="Image of runtime pods whose pool names none.")
    runtime_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(default="IfNotPresent", description="Pull policy of runtime pods.")
    runtime_image_pull_secrets: tuple[str, ...] = Field(default=(), description="Names of Secrets for pulling the image, comma separated; they must be in each pool's namespace.")
    runtime_cluster_role: str = Field(default="aether-runtime", description="ClusterRole that the operator binds to the runtime pods of a namespace.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level that is logged, by the operator and by runtime pods.")
    event_partitions: int = Field(default=4, ge=1, le=PARTITIONS_MAX, description="Event streams of a namespace; fixed once they exist.")
    event_replicas: Literal[1, 3, 5] = Field(default=1, description="Copies of each stream: 1, 3 or 5.")
    sync_always: bool = Field(default=False, description="Whether NATS fsyncs each write (sync_interval: always); passed on to runtime pods.")
    health_port: int = Field(default=8080, ge=0, le=65535, description="Port of the probe; 0 turns it off.")
    suspect_after_s: float = Field(default=SUSPECT_AFTER_S, gt=0, allow_inf_nan=False, description="Seconds without a heartbeat after which a pod is asked directly.")
    ping_timeout_s: float = Field(default=PING_TIMEOUT_S, gt=0, allow_inf_nan=False, description="Seconds that a pod may take to answer then.")
    detection_window_s: float = Field(
        default=DETECTION_WINDOW_S, ge=0, allow_inf_nan=False, description="Seconds that the operator's own links must have been up before silence counts against a pod."
    )
    rebalance_per_s: float = Field(default=REBALANCE_PER_S, ge=0, allow_inf_nan=False, description="Actors a second that move in a pool to even it out; 0 for none.")
    mass_moves_per_s: float = Field(default=MASS_MOVES_PER_S, ge=1, allow_inf_nan=False, description="Actors a second that move in a pool when several pods are lost at once.")
    hand_overs_at_once: int = Field(default=HAND_OVERS_AT_ONCE, ge=1, description="Actors that a pod which leaves hands over at once; a 64th of what it holds, if that is more.")
    deletion_costs: bool = Field(
        default=True, description="Whether pods are told what their deletion costs, so that scaling down takes the emptiest; needs the right to patch pods."
    )

    @property
    def nats_servers(self) -> tuple[str, ...]:
        """The NATS servers, one URL each."""
        return tuple(url.strip() for url in self.nats_url.split(",") if url.strip())

    @property
    def limits(self) -> Limits:
        """How fast actors may move."""
        return Limits(self.rebalance_per_s, self.mass_moves_per_s, self.hand_overs_at_once)

    @property
    def lease_timing(self) -> LeaseTiming:
        """How the leader is elected.

        Raises:
            SettingsInvalid: two could lead at once.
        """
        return LeaseTiming(self.lease_s, self.lease_renew_by_s, self.lease_retry_s, self.lease_absent_after_s, self.lease_out_of_sight_s)

    @property
    def scopes(self) -> tuple[str | None, ...]:
        """What is watched: namespaces, or None alone for all of them."""
        return self.watch_namespaces or (None,)

    @field_validator("watch_namespaces", "runtime_image_pull_secrets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value

    @field_validator("event_replicas", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.strip().isdigit() else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("watch_namespaces")
    @classmethod
    def _namespaces(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(dict.fromkeys(check_name("namespace", name) for name in value))
        except InvalidName as exc:
            raise ValueError(str(exc)) from exc


def read_settings(environment: Mapping[str, str] | None = None) -> OperatorSettings:
    """Read the settings from the environment; an empty variable counts as not set.

    Raises:
        SettingsInvalid: with every variable that cannot work.
    """
    source = os.environ if environment is None else environment
    found = {name: source.get(variable_of(name), "") for name in OperatorSettings.model_fields}
    try:
        settings = OperatorSettings.model_validate({name: text for name, text in found.items() if text.strip()})
    except ValidationError as exc:
        raise SettingsInvalid("; ".join(_describe(error) for error in exc.errors())) from exc
    _check_lease(settings)
    return settings


def variable_of(field: str) -> str:
    """Return the name of the variable that sets a field."""
    return PREFIX + field.upper()


def _check_lease(settings: OperatorSettings) -> None:
    try:
        _ = settings.lease_timing
    except SettingsInvalid as exc:
        raise SettingsInvalid(f"{variable_of('lease_s')} and those like it: {exc}") from exc


def _describe(error: ErrorDetails) -> str:
    return f"{variable_of(str(error['loc'][0]))}={error['input']!r}: {describe_problem(error)}"
