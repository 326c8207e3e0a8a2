"""What the stage costs: tokens a second against a bare PyTorch loop, and safety against the stock Trainer.

Same model, same batches, same optimizer, same run; the two sides take turns, and the median of the
pairs counts, since the machine is never quiet.
"""

import statistics
import time
from collections import Counter

import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from pipeline import ROOT, objectives
from pipeline.chain import manifest, stages
from pipeline.chain.run import Run
from pipeline.data import recipe, tokens
from pipeline.models import tokenization
from pipeline.objectives import Text
from pipeline.system.config import read_profile
from pipeline.training.loop import DEFAULTS, FORCED, decay, fit
from pipeline.training.trainer import ObjectiveTrainer

STEPS, WARM, PAIRS = 100, 10, 5
pytestmark = pytest.mark.slow


class Clock(TrainerCallback):
    """Seconds from the end of the warm steps to the end of training."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == WARM:
            self.start = time.perf_counter()
        self.seconds = time.perf_counter() - getattr(self, "start", 0)


class Material:
    """Rows, model and arguments of profile tiny's pretraining, at `STEPS` steps."""

    def __init__(self, folder):
        self.stage, self.folder = stages.load("pretrain"), folder
        self.profile = read_profile(ROOT / "stages" / "profiles" / "tiny" / "pretrain.yaml")
        rows = recipe.load("world").rows("text", "train", 42).kept[:4000]
        self.tokenizer = tokenization.train(
            (row["text"] for row in rows), self.profile["vocab_size"], self.profile["max_length"]
        )
        self.objective = objectives.load("causal")
        text = Text(rows, self.tokenizer, self.profile["max_length"], "en", 1, Counter(), Counter())
        encoded = self.objective.examples(text)
        packed = tokens.pack(tokens.write(encoded, folder / "rows.arrow"), self.profile["max_length"])
        packed = packed.shuffle(seed=0)  # packing leaves the shorter rows last, and both loops shall pad alike
        self.size = self.profile["per_device_train_batch_size"]
        self.rows = packed.select(range(STEPS * self.size))
        self.collate = self.objective.collator(self.tokenizer, packed, 1)

    def model(self):
        torch.manual_seed(0)
        sizes = {key: self.profile[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        return self.objective.build_model(self.tokenizer, "llama", max_position_embeddings=256, **sizes)

    def run(self, name, **keys):
        options, library = self.stage.split(self.profile)
        output = self.folder / name
        output.mkdir()
        record = {"stage": "pretrain", "seed": 1, "request": {"parents": {}}}
        run = Run(self.stage, name, options, library | {"max_steps": STEPS} | keys, {}, output, recipe.EMPTY, record)
        arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
        decay(arguments, STEPS * self.size)
        return run, arguments

    def ours(self, arguments, **more):
        return ObjectiveTrainer(
            self.objective, self.model(), arguments, self.collate, self.rows, processing_class=self.tokenizer, **more
        )

    def stock(self, arguments):
        def collate(rows):
            return self.collate([without(row) for row in rows])

        return Trainer(self.model(), arguments, collate, self.rows, processing_class=self.tokenizer)


def without(row):
    return {key: value for key, value in row.items() if key != "row"}


@pytest.fixture
def material(tmp_path):
    return Material(tmp_path)


def bare(model, batches, arguments):
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, fused=True)
    model.train()
    for step, batch in enumerate(batches):
        if step == WARM:
            start = time.perf_counter()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def compared(sides):
    """Return seconds of each side, pair by pair, in alternating order."""
    pairs = []
    for number in range(PAIRS):
        order = list(sides) if number % 2 else list(reversed(list(sides)))
        pairs.append({name: sides[name](f"{name}{number}") for name in order})
    return pairs


def told(capsys, title, ratios, more=""):
    with capsys.disabled():
        print(f"\n{title}: {statistics.median(ratios):.3f} (pairs: {', '.join(f'{ratio:.3f}' for ratio in ratios)}){more}")


def test_the_stage_keeps_up_with_a_bare_loop(material, capsys):
    size = material.size
    batches = [
        material.collate([without(material.rows[place]) for place in range(step * size, (step + 1) * size)])
        for step in range(STEPS)
    ]

    def ours(name):
        run, arguments = material.run(name)
        clock = Clock()
        fit(run, material.ours(arguments, callbacks=[clock]), recipe.Rows())
        return clock.seconds

    pairs = compared({"ours": ours, "bare": lambda name: bare(material.model(), batches, material.run(name)[1])})
    ratios = [pair["bare"] / pair["ours"] for pair in pairs]
    count = sum(len(row["input_ids"]) for row in material.rows.select(range(WARM * size, STEPS * size)))
    told(capsys, "throughput of a bare loop", ratios, f"; {count / pairs[-1]['bare']:,.0f} tokens/s bare")
    assert statistics.median(ratios) >= 0.85


def test_safety_costs_little_over_the_stock_trainer(material, capsys):
    """Seals, synced files, the look at every loss and the record at the end; a save every 25 steps, not every 500."""

    def ours(name):
        run, arguments = material.run(name, save_steps=25)
        trainer = material.ours(arguments)
        start = time.perf_counter()
        fit(run, trainer, recipe.Rows())
        (run.result).mkdir()
        trainer.save_model(str(run.result))
        manifest.seal(run.output, run.result, {"inputs": ""})
        return time.perf_counter() - start

    def stock(name):
        _, arguments = material.run(name, save_steps=25)
        arguments.logging_nan_inf_filter = True
        trainer = material.stock(arguments)
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        trainer.save_model(str(material.folder / name))
        return time.perf_counter() - start

    ratios = [pair["ours"] / pair["stock"] for pair in compared({"ours": ours, "stock": stock})]
    told(capsys, "time of the stock Trainer", ratios)
    assert statistics.median(ratios) <= 1.06  # 1.03 is wanted and printed; the rest is for a noisy machine
