"""Run all parts, or those that are named, and print one table.

    python -m tests.prove_gpu [PART ...]

Status 1 where a part fails, or where a figure falls short.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from pipeline.commands._forked import answered
from pipeline.system import hardware
from tests.prove_gpu import PARTS, Row

_INSIDE = "--inside"  # a part's own process: NAME, folder, small or not
_MINUTES = 10  # on a device


def inside(name: str, folder: Path, small: bool) -> int:
    """Run a part and write its rows as they come; whatever it raises becomes a row."""
    found: list[Row] = []

    def note(row: Row) -> None:
        found.append(row)
        (folder / f"{name}.json").write_text(json.dumps([dataclasses.asdict(one) for one in found]), encoding="utf-8")
        print(f"{name}: {row.what}: {row.found}", flush=True)

    try:
        for row in importlib.import_module(f"tests.prove_gpu.{name}").rows(folder, small):
            note(row)
    except Exception as error:
        traceback.print_exc()
        note(Row(f"{name} did not end", " ".join(str(error).split())[-160:], "to its end", False))
    return 0


def machine() -> str:
    """Return the name of the device, asked in a child so that this process leaves it alone."""

    def name() -> str:
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""

    return str(answered(name) or f"{os.cpu_count()} CPU cores")


def main() -> int:
    """Run the parts and print the table."""
    if sys.argv[1:2] == [_INSIDE]:
        return inside(sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "small")
    names = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        print(f"prove-gpu: no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    small, began = answered(hardware.device) != "cuda", time.monotonic()
    lines: list[tuple[str, Row]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            started = time.monotonic()
            command = [sys.executable, "-m", "tests.prove_gpu", _INSIDE, name, scratch, "small" if small else "whole"]
            status = subprocess.run(command, check=False).returncode
            told = Path(scratch) / f"{name}.json"
            rows = [Row(**row) for row in json.loads(told.read_text(encoding="utf-8"))] if told.is_file() else []
            rows += [Row(f"{name} ended", f"status {status}", "status 0", False)] if status or not rows else []
            lines += [(name, row) for row in rows] + [(name, Row("seconds", f"{time.monotonic() - started:.0f}"))]
    seconds = time.monotonic() - began
    lines.append(
        (
            "all",
            Row("minutes", f"{seconds / 60:.1f}", *([f"at most {_MINUTES}", seconds <= 60 * _MINUTES] if not small else [])),
        )
    )
    print()
    for line in table(machine(), small, lines):
        print(line)
    return int(any(row.holds is False for _, row in lines))


def table(where: str, small: bool, lines: list[tuple[str, Row]]) -> list[str]:
    """Return the table as lines: part, figure, what was found, what is wanted."""
    kind = "a CPU with small sizes, which proves nothing of an accelerator" if small else "one CUDA device"
    part, what, found = (
        max(len(text) for text in column) for column in zip(*((name, row.what, row.found) for name, row in lines), strict=True)
    )
    verdicts = {None: "     ", True: "ok   ", False: "SHORT"}
    body = [
        f"{verdicts[row.holds]} {name:<{part}}  {row.what:<{what}}  {row.found:<{found}}  {f'wanted {row.wanted}' if row.wanted else ''}".rstrip()
        for name, row in lines
    ]
    return [f"prove-gpu on {where}: {kind}", *body]


if __name__ == "__main__":
    sys.exit(main())
