"""Run a command with what make was given: `python -m pipeline.commands NAME`.

make hands its variables over in the environment, so that no shell ever reads what is in them.
"""

from __future__ import annotations

import difflib
import importlib
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from pipeline.chain import profile
from pipeline.system import process
from pipeline.system.errors import UserError

_SWITCHES = ("PUBLIC", "FORCE", "ADAPTER", "STRICT", "DEEP")
_OFF = ("", "0", "no", "false")


def words(text: str, name: str) -> list[str]:
    """Split a variable that holds several words, quotes as in a shell; UserError where a quote is not closed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{name}: {text!r} can't be split into words ({error})") from None


def folder(environment: Mapping[str, str]) -> Path:
    """Return the folder that RUNS names; UserError where it is empty, which would be the current one."""
    runs = environment.get("RUNS", "runs")
    if not runs.strip():
        raise UserError("RUNS: is empty; name a folder, as in RUNS=runs, or leave it out")
    return Path(runs)


def misspelt(environment: Mapping[str, str]) -> list[str]:
    """Return the variables of make's command line that are nearly one which make knows; any other is a program's own."""
    known = environment.get("VARIABLES", "").split()
    faults = []
    for name in environment.get("GIVEN", "").split():
        close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.75)
        if close and name not in known:
            faults.append(f"{name}=: make has no such variable; did you mean {close[0]}=?")
    return faults


def goes_to(goal: str, environment: Mapping[str, str]) -> bool:
    """Say whether ARGS and DATA belong to a goal of make: to the first of those on its command line."""
    return goal == (environment.get("GOALS", "").split() or [goal])[0]


def flags(name: str, command: ModuleType) -> list[str]:
    """Return the command's flags: those of the make variables that it declares in `MAKE`, its settings file, ARGS."""
    named, runs = os.environ.get("PROFILE", "tiny"), folder(os.environ)
    given: dict[str, str] = {**os.environ, "RUNS": str(runs)}
    found = []
    if settings := getattr(command, "SETTINGS", ""):
        file = profile.find(named) / settings
        found += [f"--config={file}"] if file.is_file() else []
    if "OUT" in command.MAKE.values():
        given["OUT"] = str(runs / profile.find(named).name)
    if "CHOSEN" in command.MAKE.values():  # the profile, where somebody named it
        given["CHOSEN"] = named if os.environ.get("CHOSEN") else ""
    if "OUTS" in command.MAKE.values():  # RUNS may name several folders
        several = [str(runs)] if runs.is_dir() else words(str(runs), "RUNS")
        given["OUTS"] = shlex.join(str(Path(one) / profile.find(named).name) for one in several)
    for flag, variable in command.MAKE.items():
        value = given.get(variable, "")
        if variable in _SWITCHES:
            value = "" if value.lower() in _OFF else "yes"
        found += [f"--{flag}={value}"] if value else []
    return found + (words(given.get("ARGS", ""), "ARGS") if goes_to(name, os.environ) else [])


def main() -> int:
    """Run the command that was named."""
    name = sys.argv[1]
    if faults := misspelt(os.environ):
        raise UserError(*faults)
    command = importlib.import_module(f"pipeline.commands.{name.replace('-', '_')}")
    sys.argv = [name, *flags(name, command), *sys.argv[2:]]
    return int(command.main())


if __name__ == "__main__":
    sys.argv[0] = sys.argv[1]  # the name under which faults are told
    sys.exit(process.execute(main))
