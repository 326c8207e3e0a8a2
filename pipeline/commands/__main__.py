"""Run a command with what make was given: `python -m pipeline.commands NAME`.

make hands its variables over in the environment, so that no shell ever reads what is in them.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType

from pipeline.chain import profile
from pipeline.system import process
from pipeline.system.errors import UserError

_SWITCHES = ("PUBLIC", "FORCE", "ADAPTER", "STRICT")
_OFF = ("", "0", "no", "false")


def words(text: str, name: str) -> list[str]:
    """Split a variable that holds several words, quotes as in a shell; UserError where a quote is not closed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{name}: {text!r} can't be split into words ({error})") from None


def flags(command: ModuleType) -> list[str]:
    """Return the command's flags: those of the make variables that it declares in `MAKE`, its settings file, ARGS."""
    named = os.environ.get("PROFILE", "tiny")
    given = {**os.environ, "OUT": str(Path(os.environ.get("RUNS", "runs")) / named)}
    found = []
    if settings := getattr(command, "SETTINGS", ""):
        file = profile.find(named) / settings
        found += [f"--config={file}"] if file.is_file() else []
    for flag, variable in command.MAKE.items():
        value = given.get(variable, "")
        if variable in _SWITCHES:
            value = "" if value.lower() in _OFF else "yes"
        found += [f"--{flag}={value}"] if value else []
    return found + words(given.get("ARGS", ""), "ARGS")


def main() -> int:
    """Run the command that was named."""
    name = sys.argv[1]
    command = importlib.import_module(f"pipeline.commands.{name.replace('-', '_')}")
    sys.argv = [name, *flags(command)]
    return int(command.main())


if __name__ == "__main__":
    sys.argv[0] = sys.argv[1]  # the name under which faults are told
    sys.exit(process.execute(main))
