"""A model in Python whose command ends the process that runs it."""

from __future__ import annotations

import os

from aether_model.python import CommandFields, EventFields, PythonModel, Rejected, StateFields, applies, handles


class BombState(StateFields, frozen=True):
    """Nothing is remembered."""


class Explode(CommandFields, frozen=True):
    """End the process."""


class Refuse(CommandFields, frozen=True):
    """Be refused."""


class Tick(CommandFields, frozen=True):
    """Do no harm."""


class Ticked(EventFields, frozen=True):
    """No harm was done."""


class Bomb(PythonModel[BombState]):
    """A bomb."""

    name = "bomb"
    version = "1"
    on_demand = True

    @handles
    def explode(self, state: BombState, command: Explode) -> Ticked:
        """Take the whole process away, as a crash of an extension would."""
        os._exit(1)

    @handles
    def refuse(self, state: BombState, command: Refuse) -> Rejected:
        """Say no, so that nothing is stored."""
        return Rejected("No", "never")

    @handles
    def tick(self, state: BombState, command: Tick) -> Ticked:
        """Decide Tick."""
        return Ticked()

    @applies
    def ticked(self, state: BombState, event: Ticked) -> BombState:
        """Fold Ticked."""
        return state
