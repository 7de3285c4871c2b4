"""A message to one actor, as a program hands it to the runtime that it embeds."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from aether_api.identity import ActorId
from aether_api.messages import TIMEOUT_DEFAULT_S, Command, build_command


@dataclass(frozen=True, slots=True)
class RuntimeMessage:
    """A command on its way to `Runtime.send_message`; `build` makes one from its parts."""

    command: Command

    @classmethod
    def build(
        cls,
        actor: ActorId,
        command: str,
        fields: Mapping[str, object] | bytes = b"{}",
        *,
        command_id: str | None = None,
        timeout_s: float = TIMEOUT_DEFAULT_S,
        expected_version: int | None = None,
        dry_run: bool = False,
    ) -> RuntimeMessage:
        """Return a message that is made now; the arguments are those of `CommandClient.send`.

        Raises:
            InvalidName: `command` could not be a subject's token.
        """
        id = command_id or secrets.token_hex(16)
        return cls(build_command(actor, command, fields, command_id=id, now_s=time.time(), timeout_s=timeout_s, expected_version=expected_version, dry_run=dry_run))
