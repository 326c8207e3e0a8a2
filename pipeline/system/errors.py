"""What ends a stage with a plain line instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Faults in what the user gave: one plain line each, with where it stands and what to do; status 2."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class WorldError(Exception):
    """Something outside of the project failed, such as a network: one plain line; status 1."""


class Stopped(BaseException):
    """A signal asked the process to end, status 128 + its number; no library may swallow it as it may an Exception."""

    def __init__(self, signum: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = 128 + signum, text
