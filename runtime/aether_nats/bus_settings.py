"""What a subscription to stored events is told when it begins: its bounds, and where it stands.

Both refuse what cannot work here, since it would come out with every announcement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from aether_api.errors import SettingsInvalid, describe_value
from aether_api.identity import ActorId
from aether_nats.deliveries import ActorVersion
from aether_nats.settings import check_count, check_seconds, is_count


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
            check_count(f"{name} of BusSettings", getattr(self, name))
        check_seconds("compare_every_s of BusSettings", self.compare_every_s)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a subscription begins, see `EventBus.subscribe_to_event_stored`."""

    known: Mapping[ActorId, ActorVersion]
    from_beginning: bool = False

    def __post_init__(self) -> None:
        """Refuse bare numbers, and what maps nothing.

        Raises:
            SettingsInvalid: says what to write.
        """
        _check_known(self.known)


def _check_known(known: object) -> None:
    if not isinstance(known, Mapping):
        raise SettingsInvalid(f"known must map an ActorId to an ActorVersion, as in {{actor: ActorVersion(5)}}, not be {describe_value(known)}")
    for actor, version in cast("Mapping[object, object]", known).items():
        if not isinstance(actor, ActorId) or not isinstance(version, ActorVersion) or not _is_position(version):
            raise SettingsInvalid(f"known must map an ActorId to an ActorVersion, as in {{actor: ActorVersion(5)}}, not {actor!r} to {version!r}")


def _is_position(version: ActorVersion) -> bool:
    return all(map(is_count, (version.version, version.sequence, version.incarnation)))
