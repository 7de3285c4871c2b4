"""What a subscription to stored events is told when it begins: its bounds, and where it stands.

Both refuse what cannot work here, since it would come out with every announcement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aether_api.errors import SettingsInvalid
from aether_api.identity import ActorId
from aether_nats.deliveries import ActorVersion


@dataclass(frozen=True, slots=True)
class BusSettings:
    """The bounds of each subscription.

    Attributes:
        queue_max: commits that wait for the subscriber; a second of a busy namespace.
        queue_bytes_max: their bytes.
        actors_max: actors whose position is kept, some 400 bytes each; beyond, the one that was quiet longest is forgotten, and its events may come again later,
            after newer ones. Subscribers that may have more actors skip versions that they have seen.
        compare_every_s: seconds between comparisons with the log, a safety net: what a cut link lost is looked for at once.
    """

    queue_max: int = 4096
    queue_bytes_max: int = 64 << 20
    actors_max: int = 100_000
    compare_every_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what cannot work here, since it would come out with every announcement.

        Raises:
            SettingsInvalid: names the setting and what is allowed.
        """
        for name in ("queue_max", "queue_bytes_max", "actors_max"):
            _check_count(name, getattr(self, name))
        _check_seconds("compare_every_s", self.compare_every_s)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a subscription begins, see `EventBus.subscribe_to_event_stored`."""

    known: Mapping[ActorId, ActorVersion]
    from_beginning: bool = False

    def __post_init__(self) -> None:
        """Refuse bare numbers.

        Raises:
            SettingsInvalid: says what to write.
        """
        for actor, version in self.known.items():
            _check_known(actor, version)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingsInvalid(f"{name} of BusSettings must be a whole number, 1 or more, not {value!r}")


def _check_seconds(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise SettingsInvalid(f"{name} of BusSettings must be seconds, more than 0, not {value!r}")


def _check_known(actor: object, version: object) -> None:
    if not isinstance(actor, ActorId) or not isinstance(version, ActorVersion) or version.version < 0:
        raise SettingsInvalid(f"known must map an ActorId to an ActorVersion, as in {{actor: ActorVersion(5)}}, not {actor!r} to {version!r}")
