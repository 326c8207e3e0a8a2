"""SFT of a 1B-sized random Llama with LoRA and QLoRA: memory beside the plan, speed beside a bare loop and trl's defaults."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.chain import profile
from pipeline.commands import _plan
from pipeline.commands._forked import answered
from pipeline.commands._plan import devices
from tests.measured import taken
from tests.prove_gpu import Row
from tests.prove_gpu.speed import peak

SIZES = {
    "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 5632,
    "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip
FEW = SIZES | {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 256, "vocab_size": 1000, "max_position_embeddings": 512}  # fmt: skip
_NODE = "parent: {parent}\nrecipe: {recipe}\nchat_template: chatml.jinja\nmax_length: {length}\nper_device_train_batch_size: {batch}\nlogging_steps: 1\n"
_MEMORY = 0.10  # by which a prediction may be off


def rows(place: Path, small: bool) -> Iterator[Row]:
    """Plan, make and measure the nodes, then a bare loop on the same batches and trl's defaults on the same rows."""
    folder = place / "large"
    # By a child, since one that has computed with several threads can't be forked.
    whole = profile.load(Path(answered(lambda: str(_written(folder, FEW if small else SIZES, 2 if small else 8)))))
    steps = 6 if small else 30
    highest = float(answered(lambda: peak(1024 if small else 8192)))
    planner = _plan.Planner(whole, folder / "runs", folder / "scratch", devices.this())
    found: dict[str, dict[str, Any]] = {}
    for planned in planner.planned():
        if planned.why:
            missing = importlib.util.find_spec("bitsandbytes") is None and "4bit" in planned.why
            yield Row(f"{planned.name}: made", planned.why[:160], "a model", None if missing else False)
            continue
        node = whole.nodes[planned.name]
        found[planned.name] = one = taken(planner, node, folder, steps, hand_over=False)
        off = planned.peak / one["held"] - 1
        yield Row(f"{planned.name}: made, {planned.found['trained']:,} of {planned.found['trained'] + planned.found['frozen']:,} parameters trained", "merged and handed on", "a model", True)  # fmt: skip
        yield Row(f"{planned.name}: memory", f"{one['held'] / 1e9:.2f} GB, planned {planned.peak / 1e9:.2f} GB ({off:+.0%})", f"within {_MEMORY:.0%}", None if small else abs(off) <= _MEMORY)  # fmt: skip
        operations = sum(planned.found["flops"].values()) / planned.found["steps"]
        yield Row(f"{planned.name}: speed", f"{one['tokens'] / one['seconds']:,.0f} tokens/s, utilisation {operations / one['seconds'] / highest:.1%}")  # fmt: skip
    if "sft-lora" in found:
        ours = found["sft-lora"]["tokens"] / found["sft-lora"]["seconds"]
        loop = taken(planner, whole.nodes["sft-lora"], folder, steps, train=bare, hand_over=False)
        yield Row("sft-lora: tokens/s over a bare loop's", f"{ours * loop['seconds'] / loop['tokens']:.3f}", "at least 0.95", None if small else ours * loop["seconds"] / loop["tokens"] >= 0.95)  # fmt: skip
        theirs = _trl(folder, steps, 2 if small else 8)
        yield Row("sft-lora: tokens/s over trl's defaults", f"{ours / theirs:.2f}", "at least 2", None if small else ours / theirs >= 2)  # fmt: skip


def _written(folder: Path, sizes: dict[str, int], batch: int) -> Path:
    """Write a random model with a tokenizer, conversations of very different lengths, and the nodes; return the nodes' folder."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from pipeline.data import recipe
    from pipeline.models import tokenization

    chats = recipe.load("world").rows("messages", "train", 42).kept[:4000]
    tokenizer = tokenization.train((turn["content"] for row in chats for turn in row["messages"]), 768, 2048)
    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "parent")
    tokenizer.save_pretrained(folder / "parent")
    rng = random.Random(0)
    with (folder / "rows.jsonl").open("w") as out:
        for _ in range(2000):
            turns = [turn for row in rng.choices(chats, k=min(16, 1 + int(rng.paretovariate(1)))) for turn in row["messages"]]
            out.write(json.dumps({"messages": turns}) + "\n")
    (folder / "rows.yaml").write_text(f"type: messages\nsources:\n  - files: {folder / 'rows.jsonl'}\n")
    nodes = folder / "nodes"
    nodes.mkdir()
    text = _NODE.format(
        parent=folder / "parent", recipe=folder / "rows.yaml", batch=batch, length=sizes["max_position_embeddings"] // 2
    )
    (nodes / "sft-lora.yaml").write_text(text)
    (nodes / "sft-qlora.yaml").write_text(f"{text}load_in_4bit: true\n")
    return nodes


def bare(trainer: Any, clock: Any) -> None:
    """Train a trainer's model on its batches by a plain loop."""
    import torch

    from pipeline.training import frozen
    from pipeline.training.trainer import take_rows

    device, bf16 = trainer.args.device, bool(trainer.args.bf16)
    model = trainer.model.to(device).train()
    if bf16:
        frozen.halve(model)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-4, fused=True)
    clock.on_step_begin()
    loader = iter(trainer.get_train_dataloader())
    for _ in range(trainer.args.max_steps):
        batch = next(loader)
        take_rows(batch)
        batch = {key: value.to(device) for key, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        trainer.state.num_input_tokens_seen += int((batch["input_ids"] != trainer.processing_class.pad_token_id).sum())
        clock.on_step_end(None, None, trainer.control)


def _trl(folder: Path, steps: int, batch: int) -> float:
    """Return the tokens a second of trl's SFTTrainer with LoRA as it comes, in a process of its own."""
    words = [sys.executable, "-m", "tests.prove_gpu.large", str(folder), str(steps), str(batch)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"trl: {done.stderr[-300:]}")
    return float(done.stdout.strip().splitlines()[-1])


def defaults(folder: Path, steps: int, batch: int) -> float:
    """Train by trl's own defaults but for batch and steps; return tokens a second without padding, the first steps left out."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from pipeline import ROOT
    from pipeline.system import hardware
    from pipeline.training.planned import _mean

    tokenizer = AutoTokenizer.from_pretrained(folder / "parent")
    tokenizer.chat_template = (ROOT / "pipeline" / "models" / "templates" / "chatml.jinja").read_text(encoding="utf-8")
    cpu = {"use_cpu": True, "bf16": False} if hardware.device() == "cpu" else {}
    arguments = SFTConfig(
        str(folder / "trl"), max_steps=steps, per_device_train_batch_size=batch, report_to="none", save_strategy="no", disable_tqdm=True,
        include_num_input_tokens_seen="non_padding", **cpu,
    )  # fmt: skip
    data = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train")
    trainer = SFTTrainer(
        str(folder / "parent"), arguments, train_dataset=data, processing_class=tokenizer, peft_config=LoraConfig(task_type="CAUSAL_LM")
    )  # fmt: skip
    times: list[float] = []
    step = trainer.training_step

    def timed(*given: Any, **named: Any) -> Any:
        times.append(time.monotonic())
        return step(*given, **named)

    trainer.training_step = timed
    trainer.train()
    seconds = _mean([after - before for before, after in itertools.pairwise(times)])
    return float(trainer.state.num_input_tokens_seen) / steps / seconds


if __name__ == "__main__":
    print(defaults(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
