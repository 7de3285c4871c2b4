"""Decides how long to wait after failures in a row. Pure: the random number is an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Doubling waits between two bounds, in seconds, spread by half so that many clients do not come back at once."""

    first_s: float = 0.1
    """A leader change of the API server is over in less; a person does not notice it."""

    max_s: float = 10.0
    """Two hundred pods that wait so long make 20 calls a second on a server that comes back."""

    def delay_s(self, failures: int, random: float, *, at_least_s: float = 0.0) -> float:
        """Return the wait after this many failures in a row (from 1), between half and all of the doubled wait.

        Args:
            random: from 0 to below 1.
            at_least_s: what the server asked for, followed up to `max_s` and spread upwards, since everybody was told the same.
        """
        exponent = min(max(failures, 1) - 1, 30)
        doubled_s = min(self.max_s, self.first_s * 2.0**exponent)
        return max(doubled_s * (0.5 + 0.5 * random), min(at_least_s, self.max_s) * (1.0 + 0.5 * random))
