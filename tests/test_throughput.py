"""Pretraining's tokens a second against a bare PyTorch loop: same model, same batches, same optimizer, same run."""

import statistics
import time
from collections import Counter

import pytest
import torch
from transformers import TrainerCallback

from pipeline import ROOT, objectives, tokenizer
from pipeline.config import read_profile
from pipeline.data import recipe, tokens
from pipeline.finite import FiniteTrainer
from pipeline.stage import Run
from pipeline.training import DEFAULTS, FORCED, decay, fit
from tests.conftest import script

STEPS, WARM, PAIRS = 100, 10, 5


class Clock(TrainerCallback):
    """Seconds from the end of the warm steps to the end of training."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == WARM:
            self.start = time.perf_counter()
        self.seconds = time.perf_counter() - getattr(self, "start", 0)


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


@pytest.mark.slow
def test_the_stage_keeps_up_with_a_bare_loop(tmp_path, capsys):
    stage = script("pretrain").STAGE
    profile = read_profile(ROOT / "stages" / "profiles" / "tiny" / "pretrain.yaml")
    sizes = {key: profile[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    library = {key: value for key, value in profile.items() if key not in stage.options.__dataclass_fields__}
    rows = recipe.load("world").rows("text", "train", 42).kept[:4000]
    vocabulary = tokenizer.train((row["text"] for row in rows), profile["vocab_size"], profile["max_length"])
    objective = objectives.load("causal")
    encoded = tokens.pieces(rows, lambda row: objective.encode(row, vocabulary), None, False, Counter())
    packed = tokens.pack(tokens.write(encoded, tmp_path / "rows.arrow"), profile["max_length"])
    packed = packed.shuffle(seed=0)  # packing leaves the shorter rows last, and both loops shall pad alike
    size = profile["per_device_train_batch_size"]
    collate = objective.collator(vocabulary)
    batches = [collate([packed[place] for place in range(step * size, (step + 1) * size)]) for step in range(STEPS)]
    ratios = []
    for number in range(PAIRS):
        seconds = {}
        for kind in ("ours", "bare") if number % 2 else ("bare", "ours"):
            torch.manual_seed(0)
            model = objective.build_model(vocabulary, "llama", intermediate_size=352, max_position_embeddings=256, **sizes)
            run = Run(
                stage,
                None,
                library | {"max_steps": STEPS},
                "",
                tmp_path / str(number),
                recipe.EMPTY,
                {"stage": "pretrain", "seed": 1},
            )
            arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
            decay(arguments, STEPS * size)
            if kind == "bare":
                seconds[kind] = bare(model, batches, arguments)
                continue
            (tmp_path / str(number)).mkdir()
            clock = Clock()
            trainer = FiniteTrainer(
                model, arguments, collate, packed.select(range(STEPS * size)), processing_class=vocabulary, callbacks=[clock]
            )
            fit(run, trainer, recipe.Rows())
            seconds[kind] = clock.seconds
        ratios.append(seconds["bare"] / seconds["ours"])
    median = statistics.median(ratios)
    with capsys.disabled():
        count = sum(len(row["input_ids"]) for row in packed.select(range(WARM * size, STEPS * size)))
        print(
            f"\nthroughput: {median:.3f} of a bare loop (pairs: {', '.join(f'{ratio:.3f}' for ratio in ratios)}); {count / seconds['bare']:,.0f} tokens/s bare"
        )
    assert median >= 0.85
