"""Look at your own files, then write recipes and a profile that fit them.

    make new PROFILE=mine TEXT=books/*.txt CHATS=chats.jsonl PAIRS=pairs.jsonl BASE=some/model

Any of the four, each a file, a glob, a folder or a hub id: TEXT to pretrain on, CHATS to fine-tune on, PAIRS of answers
to align with, BASE to start from instead of from nothing. Nothing is trained and nothing overwritten; docs/your-own.md
explains what is written.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import ROOT
from pipeline.chain import directory, profile
from pipeline.commands._new import draft, survey
from pipeline.commands._new.chain import BASE, WORDS, Chain, fitting
from pipeline.commands._new.survey import Base, Given
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"profile": "PROFILE", "runs": "RUNS", **{word: word.upper() for word in (*WORDS, BASE)}}


def asked(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the flags, letter by letter, and what is wrong with them."""
    flags, faults = config.read_flags(argv, tuple(MAKE))
    faults += [
        f"command line: --{key}: unknown flag; known are {', '.join(f'--{known}' for known in MAKE)}"
        for key in flags
        if key not in MAKE
    ]
    name = str(flags.get("profile", ""))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        faults.append(f"PROFILE={name}: a name has letters, digits, - and _, as in PROFILE=mine")
    elif (profile.FOLDER / name).exists():
        faults.append(
            f"PROFILE={name}: stages/profiles/{name} is there already; nothing is overwritten, so give another name, as in PROFILE=mine, or move it away"
        )
    if not flags.keys() & set(WORDS):
        faults.append("nothing to train on: give TEXT, CHATS or PAIRS, each a file, a glob, a folder or a hub id")
    return flags, faults


def surveyed(flags: Mapping[str, str], faults: list[str]) -> tuple[dict[str, Given], Base | None]:
    """Return what the files and the model hold; UserError with the faults of all of them."""
    given: dict[str, Given] = {}
    base = None
    for word in WORDS:
        if word in flags:
            try:
                given[word] = survey.read(word, flags[word], [stage.reads for stage in fitting(word)])
            except UserError as error:
                faults += [f"{word.upper()}: {fault}" for fault in error.faults]
    if BASE in flags:
        try:
            base = survey.base(flags[BASE])
        except UserError as error:
            faults += error.faults
    draft.settle(faults)
    if not base and WORDS[0] not in given:
        given = {WORDS[0]: survey.retold(WORDS[0], list(given.values())), **given}
    return given, base


def tell(chain: Chain) -> None:
    """Say what the files hold and what is kept at these settings."""
    for word, rows in chain.given.items():
        facts = chain.facts[word]
        dropped = dict(rows.dropped)
        if long := facts.rows - facts.kept:
            dropped[f"longer than max_length {facts.max_length}"] = long
        lost = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "none"
        formats = ", ".join(f"{count:,} as {name}" for name, count in rows.train.formats.items())
        formats += f", long ones cut in parts of about {rows.recipe.cut:,} characters" * bool(rows.recipe.cut)
        say("new", f"{rows.text}: {facts.kept:,} {rows.items} kept ({formats}), {rows.held_out:,} held out; dropped: {lost}")
        if not rows.held_out:
            say("new", f"{rows.text}: too little to hold any out, so nothing is measured on it; give more rows")
    if chain.base and not chain.base.tokenizer:
        say(
            "new",
            f"{chain.base.where} could not be read from here: rows were measured with a tokenizer of our own, and it is taken to have a chat template",
        )
    sizes = (
        ""
        if chain.base
        else f" {chain.model.hidden_size} wide, {chain.model.layers} layers, vocabulary {chain.model.vocab_size:,},"
    )
    longest = next(iter(chain.facts.values())).max_length
    say("new", f"model of {chain.model.parameters / 1e6:.1f}M parameters,{sizes} rows of up to {longest} tokens")


def main() -> int:
    """Look, tell, write."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = asked(sys.argv[1:])
    given, base = surveyed(flags, faults)
    chain = Chain(flags["profile"], given, base)
    chain.build()
    files = chain.files()
    draft.settle(draft.obstacles(files, chain.folder))
    tell(chain)
    draft.write(profile.FOLDER.parent / f".new-{os.getpid()}", files, chain.folder)
    for path in files:
        say("new", f"wrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    say("new", f"next: {directory.make_line(chain.name, Path(flags.get('runs', 'runs')))}")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))
