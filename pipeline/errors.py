"""The one exception for what a person can mend."""

from __future__ import annotations


class UserError(Exception):
    """Faults in what the user gave: one plain line each, with where it stands and what to do; status 2."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
