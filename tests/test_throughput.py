"""What the stage costs: tokens a second against a bare PyTorch loop, and safety against the stock Trainer.

Same model, same batches, same optimizer, same process; the two sides take turns at each step, so that what
else the machine does slows both alike.
"""

import threading
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

STEPS, WARM, PAIRS = 100, 10, 4
pytestmark = pytest.mark.slow


class Turns:
    """Two sides in two threads, of which one works at a time; each hands over to the other after a step."""

    def __init__(self, sides):
        self.seconds = {name: [0.0] for name in sides}  # of each stretch
        self.left, self.changed, self.failed = list(sides), threading.Condition(), []
        threads = [threading.Thread(target=self._work, args=side) for side in sides.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failed:
            raise self.failed[0]

    def _work(self, name, side):
        self._wait(name)
        try:
            side(lambda: self._hand_over(name))
        except BaseException as error:
            self.failed.append(error)
        with self.changed:
            self.seconds[name][-1] += time.perf_counter() - self.start
            self.left.remove(name)
            self.changed.notify_all()
            self.start = time.perf_counter()

    def _hand_over(self, name):
        with self.changed:
            self.seconds[name][-1] += time.perf_counter() - self.start
            self.seconds[name].append(0.0)
            self.left.append(self.left.pop(0))
            self.changed.notify_all()
        self._wait(name)

    def _wait(self, name):
        with self.changed:
            self.changed.wait_for(lambda: self.left[0] == name)
            self.start = time.perf_counter()


class Turn(TrainerCallback):
    """Hands over at the end of each step."""

    def __init__(self, turn):
        self.turn = turn

    def on_step_end(self, args, state, control, **_):
        self.turn()


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

    def ours(self, arguments):
        return ObjectiveTrainer(
            self.objective, self.model(), arguments, self.collate, self.rows, processing_class=self.tokenizer
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


def bare(model, batches, rate, turn):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    model.train()
    for batch in batches:
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turn()


def compared(capsys, title, sides, stretches):
    """Return the seconds of the first side over those of the second, and print it; they begin by turns.

    `sides`: what prepares a side, since an Accelerator resets what it shares with others, and returns what does its work.
    """
    sums = []
    for number in range(PAIRS):
        order = list(sides) if number % 2 else list(reversed(sides))
        taken = Turns({name: sides[name](f"{name}{number}") for name in order})
        sums.append([sum(taken.seconds[name][stretches]) for name in sides])
    first, second = (sum(column) for column in zip(*sums, strict=True))
    with capsys.disabled():
        print(f"\n{title}: {first / second:.3f} (runs: {', '.join(f'{one / other:.3f}' for one, other in sums)})")
    return first / second


def test_the_stage_keeps_up_with_a_bare_loop(material, capsys):
    size = material.size
    batches = [
        material.collate([without(material.rows[place]) for place in range(step * size, (step + 1) * size)])
        for step in range(STEPS)
    ]

    rate = material.run("bare")[1].learning_rate

    def ours(name):
        run, arguments = material.run(name)
        trainer = material.ours(arguments)

        def work(turn):
            trainer.add_callback(Turn(turn))
            fit(run, trainer, recipe.Rows())

        return work

    def loop(name):
        model = material.model()
        return lambda turn: bare(model, batches, rate, turn)

    ratio = compared(capsys, "time of a bare loop", {"ours": ours, "bare": loop}, slice(WARM, STEPS))
    assert 1 / ratio >= 0.85


def test_safety_costs_little_over_the_stock_trainer(material, capsys):
    """Seals, synced files, the look at every loss and the record at the end; a save every 25 steps, not every 500."""

    def ours(name):
        run, arguments = material.run(name, save_steps=25)
        trainer = material.ours(arguments)

        def work(turn):
            trainer.add_callback(Turn(turn))
            fit(run, trainer, recipe.Rows())
            run.result.mkdir()
            trainer.save_model(str(run.result))
            manifest.seal(run.output, run.result, {"inputs": ""})

        return work

    def stock(name):
        _, arguments = material.run(name, save_steps=25)
        arguments.logging_nan_inf_filter = True
        trainer = material.stock(arguments)
        trainer.remove_callback(PrinterCallback)

        def work(turn):
            trainer.add_callback(Turn(turn))
            trainer.train()
            trainer.save_model(str(material.folder / name))

        return work

    ratio = compared(capsys, "time of the stock Trainer", {"ours": ours, "stock": stock}, slice(None))
    assert ratio <= 1.06  # 1.03 is wanted and printed
