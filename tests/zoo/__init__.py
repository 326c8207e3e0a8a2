"""Faults that people make, planted one by one into tristage and into plain scripts of the libraries: `make zoo`.

A fault is a function that changes a `Setup`, which both runners then carry out. `tests/zoo/faults` has a file for each kind,
`tests/zoo/right` the unusual setups that are right.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

ANIMALS = "cat dog hen owl fox bee ant cow elk eel".split()
PAIRS = [(a, b) for a in ANIMALS for b in ANIMALS if a != b]
ASKED = [{"role": "user", "content": f"Who saw the {b}?"} for _, b in PAIRS]
ROWS = {
    "pretrain": [{"text": f"The {a} saw the {b}. The {b} ran from the {a} and was glad of it."} for a, b in PAIRS],
    "sft": [
        {"messages": [question, {"role": "assistant", "content": f"The {a} did."}]}
        for question, (a, _) in zip(ASKED, PAIRS, strict=True)
    ],
    "dpo": [
        {"prompt": question["content"], "chosen": f"The {a} did.", "rejected": f"The {a} did. And so on."}
        for question, (a, _) in zip(ASKED, PAIRS, strict=True)
    ],
    "kto": [
        {"prompt": question["content"], "completion": f"The {a} did." + " And so on." * (at % 2), "label": at % 2 == 0}
        for at, (question, (a, _)) in enumerate(zip(ASKED, PAIRS, strict=True))
    ],
    "finetune": [
        {"text": f"The {a} saw the {b} and was {mood} of it.", "label": mood}
        for at, (a, b) in enumerate(PAIRS)
        for mood in [("glad", "sad", "fond")[at % 3]]
    ],
}
ROWS["reward"] = ROWS["dpo"]
ROWS["rlhf"] = ROWS["pairs"] = ROWS["self_train"] = [
    {"prompt": question["content"], "answer": f"The {a} did."} for question, (a, _) in zip(ASKED, PAIRS, strict=True)
]
ROWS["distill"] = ROWS["pretrain"]
READ = {"text": "pretrain", "messages": "sft", "prompts": "rlhf"}  # stages whose rows are of a type
PARENT = dict.fromkeys(("sft", "dpo", "kto", "reward", "rlhf", "pairs", "self_train"), "sft")
PARENT |= {"pretrain": "", "finetune": "encoder", "distill": "pretrain"}
REWARDED = {"rewards": {"regex": {"weight": 1, "pattern": "cat|dog|hen|owl|fox"}}}
OPTIONS = {
    "pretrain": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 400, "learning_rate": 1e-2},
    "sft": {"learning_rate": 1e-3}, "dpo": {"learning_rate": 1e-3}, "kto": {"learning_rate": 1e-3},
    "reward": {"learning_rate": 1e-3}, "finetune": {"learning_rate": 1e-3},
    "rlhf": REWARDED | {"learning_rate": 1e-4, "max_completion_length": 12, "num_generations": 4, "max_steps": 3},
    "pairs": REWARDED | {"answers": 4, "max_new_tokens": 12, "prompts": 12, "held_out_prompts": 4},
    "self_train": REWARDED | {"learning_rate": 1e-4, "answers": 4, "max_new_tokens": 12, "rounds": 1, "max_steps": 4, "threshold": 0.0, "prompts": 16},
    "distill": {"learning_rate": 1e-3, "student": {"hidden_size": 16, "intermediate_size": 32}},
}  # fmt: skip


@dataclass
class Setup:
    """One training as somebody set it up: a model, rows, options; a fault changes some of it."""

    folder: Path
    models: Path  # finished models that are copied and never changed
    stage: str = "sft"
    parent: str = ""  # name of one of the models
    rows: list[dict] = field(default_factory=list)
    options: dict[str, object] = field(default_factory=dict)
    template: str = ""  # text of a chat template
    text: str = ""  # of the file of rows, where it is not one row of JSON a line
    held_out: list[dict] = field(default_factory=list)  # rows of a file that is named as a split to hold out
    record: bool = False  # whether the model keeps the record of how it was made
    later: Callable[[Setup], None] | None = None  # what happens after the stage is done; it is then started again

    @property
    def model(self) -> Path:
        """The parent in a folder of this setup's own."""
        folder = self.folder / "parent"
        if not folder.exists():
            shutil.copytree(self.models / self.parent, folder)
            if not self.record:
                (folder / "manifest.json").unlink(missing_ok=True)
        return folder

    @property
    def data(self) -> Path:
        """The file of its rows, or the folder where some are held out."""
        path = self.folder / "rows.jsonl"
        path.write_text(self.text or _lines(self.rows))
        if self.held_out:
            (self.folder / "rows").mkdir(exist_ok=True)
            path = path.rename(self.folder / "rows" / "train.jsonl").parent
            (path / "test.jsonl").write_text(_lines(self.held_out))
        return path

    def settings(self, name: str = "config.json", **changed: object) -> None:
        """Change a JSON file of the model."""
        path = self.model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    def weights(self, change: Callable[[dict], dict]) -> None:
        """Change the tensors of the model, given by name."""
        from safetensors.torch import load_file, save_file

        path = self.model / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path, {"format": "pt"})

    def messages(self, change: Callable[[int, list[dict]], list[dict]]) -> None:
        """Change the conversation of each row, given its number."""
        self.rows = [{"messages": change(at, [dict(turn) for turn in row["messages"]])} for at, row in enumerate(self.rows)]


def _lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@dataclass(frozen=True)
class Case:
    """A fault, or a setup that is right."""

    name: str
    kind: str
    story: str  # how it happens to people
    stage: str
    plant: Callable[[Setup], None]
    says: str = ""  # pattern of the line that tells it
    plain: bool = True  # whether plain scripts can have it
    parent: str = ""
    sound: Callable[[Setup], None] | None = None  # makes the setup that the fault is planted into, where it is no usual one

    def setup(self, folder: Path, models: Path) -> Setup:
        """Return the setup with the fault in it."""
        parent = self.parent or PARENT[self.stage]
        rows = [dict(row) for row in ROWS[self.stage]]
        made = Setup(folder, models, self.stage, parent, rows, dict(OPTIONS[self.stage]))
        if self.sound:
            self.sound(made)
        self.plant(made)
        return made


FAULTS: list[Case] = []
CORRECT: list[Case] = []


def fault(stages: str, says: str = "", plain: bool = True, parent: str = "", sound: Callable[[Setup], None] | None = None) -> Callable[[Callable[[Setup], None]], Callable[[Setup], None]]:  # fmt: skip
    """Register a function that plants a fault, once for each stage; its docstring says how it happens to people."""
    return _registered(FAULTS, stages.split(), says, plain, parent, sound)


def correct(
    stages: str, parent: str = "", sound: Callable[[Setup], None] | None = None
) -> Callable[[Callable[[Setup], None]], Callable[[Setup], None]]:
    """Register a function that makes an unusual setup which is right."""
    return _registered(CORRECT, stages.split(), "", False, parent, sound)


def _registered(cases: list[Case], stages: Iterable[str], says: str, plain: bool, parent: str, sound: Callable[[Setup], None] | None) -> Callable[[Callable[[Setup], None]], Callable[[Setup], None]]:  # fmt: skip
    def register(plant: Callable[[Setup], None]) -> Callable[[Setup], None]:
        kind = plant.__module__.rpartition(".")[2]
        story = " ".join(str(plant.__doc__).split())
        name = plant.__name__.strip("_").replace("_", " ")
        cases.extend(Case(name, kind, story, stage, plant, says, plain, parent, sound) for stage in stages)
        return plant

    return register


def named(module: str) -> Callable[..., None]:
    """Return what registers a fault that is a few words long; its kind is the name of the module."""

    def add(stages: str, says: str, name: str, story: str, plant: Callable[[Setup], None], sound: Callable[[Setup], None] | None = None, plain: bool = False) -> None:  # fmt: skip
        def planted(setup: Setup) -> None:
            plant(setup)

        planted.__doc__, planted.__name__, planted.__module__ = story, name, module
        fault(stages, says, plain, sound=sound)(planted)

    return add


def chosen(module: str) -> Callable[..., None]:
    """Return what registers a fault that is one option or a few."""
    add = named(module)

    def option(stages: str, says: str, story: str, name: str = "", plain: bool = True, **options: object) -> None:
        told = name or ", ".join(f"{key} {value}" for key, value in options.items())
        add(stages, says, told, story, lambda setup: setup.options.update(options), plain=plain)

    return option


def on(parent: str, **options: object) -> Callable[[Setup], None]:
    """Return what sets up another parent, task or options, into which a fault is then planted."""
    from tests.test_tasks import ROWS as TASKS

    def sound(setup: Setup) -> None:
        setup.parent = parent
        setup.options |= options
        if "task" in options:
            setup.rows = [dict(row) for row in TASKS[options["task"]]]
        if "reads" in options:
            setup.rows = [dict(row) for row in ROWS[READ[options["reads"]]]]

    return sound
