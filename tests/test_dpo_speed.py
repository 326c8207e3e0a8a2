"""What DPO costs beside trl's own trainer, on profile tiny's pairs, epochs, losses and batch: whole runs that take turns.

    WHOLE=1 python -m pytest -q tests/test_dpo_speed.py

Without WHOLE it takes a quarter of the pairs. Nothing is kept beforehand, so the parent's pass over the pairs is part of ours. Both sides are timed from the trainer's
construction to the end of training, on the same model, pairs and adapter.
"""

import json
import os
import statistics
import time

import pytest

from pipeline import ROOT
from pipeline.data import recipe, tokens
from pipeline.system.config import read_profile
from pipeline.training import loop, preference
from tests.conftest import make_quietly

pytestmark = pytest.mark.measured
ROUNDS = 3
SHARE = 1 if os.environ.get("WHOLE") else 4  # every how manieth pair
TINY = ROOT / "stages" / "profiles" / "tiny"


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A chat model of tiny's sizes; how well it is trained does not matter to the clock."""
    folder = tmp_path_factory.mktemp("speed")
    for name, *more in (["pretrain"], ["sft", "--parent", str(folder / "pretrain")]):
        make_quietly(name, "--config", TINY / f"{name}.yaml", "--output", folder / name, "--max_steps", "1", *more)
    return folder / "sft"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The pairs, as a file that the recipe takes whole."""
    found = recipe.load("world").rows("preference", "train", 42).kept[::SHARE]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return found, path


@pytest.fixture
def ours(parent, rows, tmp_path, monkeypatch):
    """Run the stage; return the seconds of its trainer."""
    seconds = []

    class Timed(preference.PreferenceTrainer):
        def __init__(self, *given, **named):
            self.began = time.perf_counter()
            super().__init__(*given, **named)

    def fit(run, trainer, rows):
        trained(run, trainer, rows)
        seconds.append(time.perf_counter() - trainer.began)

    trained = loop.fit
    monkeypatch.setattr(preference, "PreferenceTrainer", Timed)
    monkeypatch.setattr(loop, "fit", fit)

    def call(number):
        output = tmp_path / f"ours{number}" / "dpo"
        make_quietly("dpo", "--config", TINY / "dpo.yaml", "--parent", parent, "--output", output, "--data", rows[1])
        return seconds[-1]

    return call


@pytest.fixture
def stock(parent, rows, tmp_path):
    """Train by trl alone; return the seconds."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Encoded(DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset

    tokenizer = AutoTokenizer.from_pretrained(parent)
    encoded = Dataset.from_list([tokens.encode_pair(row, tokenizer) for row in rows[0]])
    profile = read_profile(TINY / "dpo.yaml")
    keys = {key: value for key, value in profile.items() if key not in ("parent", "recipe", "learning_rate")}
    adapter = {"task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}

    def call(**more):
        arguments = DPOConfig(
            str(tmp_path / "trl"), **keys, learning_rate=float(profile["learning_rate"]), use_cpu=True, bf16=False,
            report_to="none", disable_tqdm=True, **more,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(parent)
        start = time.perf_counter()
        Encoded(
            model, args=arguments, train_dataset=encoded, processing_class=tokenizer, peft_config=LoraConfig(**adapter)
        ).train()
        return time.perf_counter() - start

    return call


def test_the_stage_beats_trl(ours, stock, capsys):
    sides = {
        "ours": ours,
        "trl": lambda _: stock(),
        "trl without checkpointing": lambda _: stock(gradient_checkpointing=False),
    }
    found = []
    for number in range(ROUNDS):
        order = list(sides) if number % 2 else list(reversed(sides))
        found.append({name: sides[name](number) for name in order})
    ratios = {name: [turn[name] / turn["ours"] for turn in found] for name in sides}
    with capsys.disabled():
        for name, values in ratios.items():
            said = ", ".join(f"{value:.2f}" for value in values)
            print(f"\ntokens a second over those of {name}: {statistics.median(values):.2f} ({said})", end="")
    assert statistics.median(ratios["trl"]) >= 1.35
    assert statistics.median(ratios["trl without checkpointing"]) >= 1.0
