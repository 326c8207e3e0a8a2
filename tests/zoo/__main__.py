"""Plants every fault, runs every correct setup, and writes the table: python -m tests.zoo [--write] [--ours] [NAME]."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from pipeline import ROOT
from tests.zoo.plain import plain
from tests.zoo.runner import EARLY, LATE, SILENT, WARNED, Ended, Zoo, alarm, cases, ours, telling, verdict, verdict_plain

PAGE = ROOT / "docs" / "zoo.md"
_LONGEST = 160  # characters of a line that are shown
HEADINGS = {
    "weights": "Weights that don't fill the model", "tokens": "Tokenizers and weights that don't belong together",
    "templates": "Chat templates", "stuck": "Nothing can move, or all is wrecked", "rows": "Data",
    "arguments": "Arguments that are ignored or mean something else", "parents": "Parents and resumes", "pictures": "Pictures",
}  # fmt: skip
INTRODUCTION = """# Fault injection: which mistakes are detected

This page lists common mistakes in the set-up of a training run, and how many of them tristage detects, compared with plain scripts of the libraries. \
`make zoo` writes it. Each fault is planted into a small training run with tristage and, if it can occur there, into a plain script that uses \
`trl` or transformers' `Trainer` in the same versions and with their defaults; `tests/zoo` contains all of them. The faults come first, \
by kind, then the correct setups, on which a stop or one of these warnings would be a false alarm.

For tristage, a stop or a warning counts only if the printed line names that fault. The criterion for plain scripts is laxer: \
every stop counts, and so does every line that the same script does not print without the fault. A fault is *silent* if none of this happens.
"""
UNDETECTED = {
    "another number of heads": "All tensors have the shapes that `config.json` implies. For a finished node the digests in its record show that the file was changed; a folder without a record contains nothing that says which loss the model had before.",
    "another activation": "As above. The model's predictions also hardly change: the loss is 0.328 nats a token with either activation.",
    "a tokenizer of another text": "The rows split into single letters, which have the same ids in both tokenizers. So the parent's loss on the rows is 2.3 nats a token (5.1 standard deviations) below its loss on the same rows with their token ids permuted. Unusual text looks the same to a parent with its own tokenizer: among the correct setups, the difference is 2.6 nats (4.9 standard deviations) for questions in capitals and 2.5 nats for several scripts; the answers in several scripts have a loss of 8.48 nats, more than the 6.83 here. Text that the parent generates does not reveal the fault either: its own tokenizer splits 0.2% of the neighbouring tokens differently, and the other one also 0.2%. A warning for rows whose loss is above that of uniform guessing was tried; it was raised on 13 of 86 correct setups.",
    "shuffled labels": "Before training they can't be told from labels that are hard to learn. After training, `make evaluate` says that the model is no better than the most frequent label.",
}  # fmt: skip


def main() -> int:
    """Run the zoo; status 1 where a correct setup raised an alarm or a fault ended in a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("name", nargs="?", default="", help="only cases whose name or kind contains this")
    parser.add_argument("--ours", action="store_true", help="leave the plain scripts out")
    parser.add_argument("--write", action="store_true", help="write docs/zoo.md")
    parser.add_argument("--show", action="store_true", help="show what was printed")
    given = parser.parse_args()
    os.environ |= {"XDG_CACHE_HOME": tempfile.mkdtemp(), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        zoo = Zoo(Path(folder))
        zoo.build()
        faults, right = cases()
        if given.name:
            faults, right = (
                [one for one in found if given.name in f"{one.kind} {one.name} {one.stage}"] for found in (faults, right)
            )
        return report(zoo, faults, right, given, started)


_SETUP: dict[str, Any] = {}  # what the processes that carry out cases share: they are forked


def carried_out(number: int) -> tuple[Ended, str, str, Ended | None, str]:
    """Return how a fault ended with tristage, the line that told it, and how with a plain script, where it can be planted there."""
    zoo, case = _SETUP["zoo"], _SETUP["faults"][number]
    mine = zoo.run(case, ours)
    sound = zoo.clean(case, ours)
    how, line = verdict(case, mine, sound), telling(case, mine, sound)
    if not case.plain or _SETUP["given"].ours:
        return mine, how, line, None, "—"
    theirs = zoo.run(case, plain)
    return mine, how, line, theirs, verdict_plain(case, theirs, zoo.clean(case, plain))


def trained(number: int) -> Ended:
    """Return how a correct setup ended."""
    ended: Ended = _SETUP["zoo"].run(_SETUP["right"][number], ours)
    return ended


def report(zoo, faults, right, given, started) -> int:
    """Run the cases, on as many processes as there are cores, print a line for each, then the table."""
    _SETUP.update(zoo=zoo, faults=faults, right=right, given=given)
    found, traces, warnings, alarms = [], {"ours": 0, "plain": 0}, set(), []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("fork")) as pool:
        for case, (mine, how, line, ended, theirs) in zip(faults, pool.map(carried_out, range(len(faults))), strict=True):
            traces["ours"] += mine.traceback
            traces["plain"] += bool(ended and ended.traceback)
            if how == WARNED:
                warnings.add(case.says)
            found.append((case, how, theirs, _shown(line)))
            print(f"{case.kind:10} {case.stage:9} {case.name:42} {how:30} {theirs:30} {mine.seconds:5.1f} s{'  TRACEBACK' * mine.traceback}\n    {_shown(line)}", flush=True)  # fmt: skip
            if given.show or (how == SILENT and mine.status != 0) or mine.traceback:
                shown = mine.printed[-1500:].replace("\n", "\n    ")
                print(f"    status {mine.status}, {mine.steps} steps: ...{shown}", flush=True)
            if given.show and ended:
                print("    plain: " + " / ".join(sorted(ended.lines())[:4])[:600])
        for case, ended in zip(right, pool.map(trained, range(len(right))), strict=True):
            said = alarm(case, ended, warnings)
            if said:
                alarms.append((case, said))
            print(f"correct    {case.stage:9} {case.name:42} {f'FALSE ALARM: {said}' if said else 'trains'}", flush=True)
            if given.show:  # where faults are left out, their warnings are not known to be alarms
                print("    " + ended.printed[-1500:].replace("\n", "\n    "), flush=True)
    text = page(found, right, alarms, traces)
    print(text.partition("\n## ")[0])
    print(f"{time.monotonic() - started:.0f} s")
    if given.write:
        PAGE.write_text(text)
    return 1 if alarms or traces["ours"] else 0


def page(found, right, alarms, traces) -> str:
    """Return the page of the docs."""
    lines = [
        *INTRODUCTION.splitlines(), "",
        "| | tristage | tristage, on faults that plain scripts can have | plain scripts |", "|---|---|---|---|",
    ]  # fmt: skip
    both = [(mine, theirs) for _, mine, theirs, _ in found if theirs != "—"]
    columns = [[mine for _, mine, *_ in found], [mine for mine, _ in both], [theirs for _, theirs in both]]
    lines += [
        f"| {how} | " + " | ".join(_share(column, (how,)) for column in columns) + " |" for how in (EARLY, LATE, WARNED, SILENT)
    ]
    lines.append("| **stopped or warned** | " + " | ".join(_share(column, (EARLY, LATE, WARNED)) for column in columns) + " |")
    lines += [f"| ended in a traceback | {traces['ours']} | | {traces['plain']} |", ""]
    lines += [
        f"False alarms: {len(alarms)} of {len(right)} correct setups. A line that counts dropped rows is not a warning.",
        "",
    ]
    lines += [f"- {case.stage}: {case.name}: {said}" for case, said in alarms] + [""] * bool(alarms)
    lines += ["## Faults that are not detected", "", "| fault | why it is not detected |", "|---|---|"]
    lines += [f"| {name} | {why} |" for name, why in UNDETECTED.items()] + [""]
    for kind, heading in HEADINGS.items():
        lines += [
            f"## {heading}",
            "",
            "| fault | stage | how it happens | tristage | what it says | plain script |",
            "|---|---|---|---|---|---|",
        ]
        lines += [f"| {case.name} | {case.stage} | {case.story} | {mine} | {line} | {theirs} |" for case, mine, theirs, line in found if case.kind == kind]  # fmt: skip
        lines.append("")
    lines += ["## Correct setups", "", "| setup | stages |", "|---|---|"]
    names = dict.fromkeys(case.name for case in right)
    lines += [f"| {name} | {', '.join(case.stage for case in right if case.name == name)} |" for name in names]
    return "\n".join(lines) + "\n"


def _shown(line: str) -> str:
    """Return the beginning of a line without folders, as a table can hold it."""
    text = " ".join(re.sub(r"/\S*/", "", line).replace("|", "\\|").split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _share(column, how) -> str:
    count = sum(one in how for one in column)
    return f"{count} of {len(column)} ({count / max(1, len(column)):.0%})"


if __name__ == "__main__":
    sys.exit(main())
