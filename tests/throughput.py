"""Two sides that train the same model on the same batches and take turns at each step, so that both meet the same machine."""

import threading
import time
from collections import Counter

import torch
from transformers import Trainer, TrainerCallback

from pipeline import ROOT, objectives
from pipeline.chain import stages
from pipeline.chain.run import Run
from pipeline.data import packing, recipe, token_tables
from pipeline.models import tokenization
from pipeline.objectives import Text
from pipeline.system import hardware
from pipeline.system.config import read_profile
from pipeline.training.loop import DEFAULTS, FORCED, decay, fit
from pipeline.training.trainer import ObjectiveTrainer

STEPS, WARM, PAIRS = 100, 10, 4


class Turns:
    """Two sides in two threads, of which one works at a time; each hands over to the other after a step.

    `clock`: what tells seconds; those of the processor (`time.process_time`) are what a busy machine disturbs least.
    """

    def __init__(self, sides, clock=time.perf_counter):
        self.clock = clock
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
            self.seconds[name][-1] += self.clock() - self.start
            self.left.remove(name)
            self.changed.notify_all()
            self.start = self.clock()

    def _hand_over(self, name):
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what was begun on the device is this side's
        with self.changed:
            self.seconds[name][-1] += self.clock() - self.start
            self.seconds[name].append(0.0)
            self.left.append(self.left.pop(0))
            self.changed.notify_all()
        self._wait(name)

    def _wait(self, name):
        with self.changed:
            self.changed.wait_for(lambda: self.left[0] == name)
            self.start = self.clock()


class Turn(TrainerCallback):
    """Hands over at the end of each step."""

    def __init__(self, turn):
        self.turn = turn

    def on_step_end(self, args, state, control, **_):
        self.turn()


class Material:
    """Rows, sizes and arguments of profile tiny's pretraining, as a Llama by AdamW: neither loop beside ours has Muon."""

    def __init__(self, folder, steps=STEPS):
        self.stage, self.folder, self.steps = stages.load("pretrain"), folder, steps
        self.profile = read_profile(ROOT / "stages" / "profiles" / "tiny" / "pretrain.yaml")
        self.profile |= {"architecture": "llama", "optim": "adamw_torch_fused", "learning_rate": 3e-3}
        rows = recipe.load("world").rows("text", "train", 42).kept[:4000]
        self.tokenizer = tokenization.train(
            (row["text"] for row in rows), self.profile["vocab_size"], self.profile["max_length"]
        )
        self.objective = objectives.load("causal")
        text = Text(rows, self.tokenizer, self.profile["max_length"], "en", 1, Counter(), Counter())
        encoded = self.objective.examples(text)
        packed = packing.pack(token_tables.write(encoded, folder / "rows.arrow"), self.profile["max_length"])
        packed = packed.shuffle(seed=0)  # packing leaves the shorter rows last, and both loops shall pad alike
        self.size = self.profile["per_device_train_batch_size"]
        self.rows = packed.select(range(steps * self.size))
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
        run = Run(self.stage, name, options, library | {"max_steps": self.steps} | keys, {}, output, recipe.EMPTY, record)
        arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
        decay(arguments, self.steps * self.size)
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


def bare(model, batches, rate, turn):
    """Train by a plain loop, on the device and in the precision that the stages choose."""
    device, bf16 = hardware.device(), bool(hardware.placement()["bf16"])
    model.to(device).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=rate, fused=True)
    for batch in batches:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(**{key: value.to(device) for key, value in batch.items()}, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turn()


def ours_and_a_bare_loop(material):
    """Return the stage's own training and a plain loop over the same batches, as sides of `compared`."""
    size = material.size
    batches = [
        material.collate([without(material.rows[place]) for place in range(step * size, (step + 1) * size)])
        for step in range(material.steps)
    ]
    rate = material.run("rate")[1].learning_rate

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

    return {"ours": ours, "bare": loop}


def compared(sides, stretches, pairs=PAIRS):
    """Return the seconds of each side in each of several runs; the sides begin by turns.

    `sides`: what prepares a side, since an Accelerator resets what it shares with others, and returns what does its work.
    """
    sums = []
    for number in range(pairs):
        order = list(sides) if number % 2 else list(reversed(sides))
        taken = Turns({name: sides[name](f"{name}{number}") for name in order})
        sums.append([sum(taken.seconds[name][stretches]) for name in sides])
    return sums


def ratio(sums):
    """Return the time of the first side over that of the second, all runs together."""
    first, second = (sum(column) for column in zip(*sums, strict=True))
    return first / second
