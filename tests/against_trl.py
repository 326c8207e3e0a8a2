"""Conversations of very different lengths, trained with LoRA by our stage and by `trl sft` with its defaults, step by step in turns."""

import json
import time

import numpy as np
import torch

from tests.conftest import make_quietly
from tests.throughput import Turn, Turns

IGNORED, BATCH = -100, 8  # rows of a step, which is trl's default


def conversations(path, count=2000):
    """Write conversations most of which are short and a few of which are as long as a row of 512 tokens."""
    rng = np.random.default_rng(0)
    names = ["tennis", "Lorne", "Ister", "Elstow", "chess", "karate", "Wewund", "Wistor"]
    lines = []
    for length in np.clip(rng.lognormal(2.2, 1.1, count), 3, 110).astype(int).tolist():
        answer = " ".join(rng.choice(names, length))
        asked = {"role": "user", "content": f"Where was {rng.choice(names)} born?"}
        lines.append(json.dumps({"messages": [asked, {"role": "assistant", "content": answer}]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def theirs(parent, template, data, folder, steps):
    """Return a trainer as `trl sft` makes it with LoRA, in fp32 on a CPU; all else is its default."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(parent)
    tokenizer.chat_template = template
    config = SFTConfig(
        str(folder), max_steps=steps, max_length=512, per_device_train_batch_size=BATCH, bf16=False, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, assistant_only_loss=True,
        model_init_kwargs={"dtype": torch.float32},
    )  # fmt: skip
    rows = load_dataset("json", data_files=str(data), split="train")
    adapter = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    return SFTTrainer(str(parent), config, train_dataset=rows, processing_class=tokenizer, peft_config=adapter)


def ratio(parent, template, data, folder, steps=25, warm=3):
    """Return the target tokens a second of our stage over those of trl's trainer; also those of each side."""
    from pipeline.training.trainer import StageTrainer

    found = {}

    def watched(trainer, name, seen):
        step = trainer.training_step

        def count(model, inputs, *more):
            seen.append(int((inputs["labels"][:, 1:] != IGNORED).sum()))
            return step(model, inputs, *more)

        trainer.training_step = count

    def instead(trainer, **_):
        other, counts = theirs(parent, template, data, folder / "trl", steps), {"ours": [], "trl": []}
        for name, one in (("ours", trainer), ("trl", other)):
            watched(one, name, counts[name])

        def side(one, train):
            def work(turn):
                one.add_callback(Turn(turn))
                train()

            return work

        sides = {"ours": side(trainer, super(StageTrainer, trainer).train), "trl": side(other, other.train)}
        taken = Turns(sides, time.process_time).seconds
        found.update({name: sum(counts[name][warm:steps]) / sum(taken[name][warm:steps]) for name in sides})

    StageTrainer.train = instead
    try:
        flags = {"parent": parent, "data": data, "output": folder / "ours", "chat_template": "chatml.jinja", "max_length": 512}
        more = {"per_device_train_batch_size": BATCH, "max_steps": steps, "save_strategy": "'no'"}
        make_quietly("sft", *(word for key, value in (flags | more).items() for word in (f"--{key}", value)))
    finally:
        del StageTrainer.train
    return found["ours"] / found["trl"], found
