"""The small texts that objectives are tested on, random numbers by hand, and the flags that pretrain on them."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from pipeline import objectives
from pipeline.data import token_tables
from pipeline.objectives import Text
from tests.conftest import SMALL

NAMES = [name for name in objectives.known() if objectives.load(name).reads == "text"]
WORDS = "The cat saw a dog and the hen ran to an owl while it was glad".split()
ROWS = [
    {"text": " ".join(f"The {a} saw the {b}. Then the {b} ran away! Was the {a} glad of {c}?" for a in ("cat", "dog", c))}
    for b in ("owl", "ant", "bee")
    for c in ("hen", "cow", "fox", "elk", "eel", "pig", "ram", "hare", "lynx", "newt")
]


class Scripted:
    """A generator of random numbers that says what the test tells it to."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __getattr__(self, name):
        return lambda *_, **__: np.array(self.answers.pop(0)) if isinstance(self.answers[0], list) else self.answers.pop(0)


def shown(found, *keys):
    return {key: list(found[key]) for key in keys}


def write_rows(rows, path=None):
    return token_tables.write(rows, path or Path(tempfile.mkdtemp()) / "rows.arrow")


def text_of(tokenizer, rows=ROWS, max_length=64):
    return Text(rows, tokenizer, max_length, "en", 1, Counter(), Counter())


def corpus(folder, rows=ROWS):
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(name, folder, *more):
    small = [*SMALL["pretrain"]]
    small[small.index("--vocab_size") + 1] = "350"
    return [*small, "--data", corpus(folder), "--output", folder / "out", "--objective", name, *more]
