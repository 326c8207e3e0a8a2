"""Models of which each process holds a part: FSDP2 on two CPU processes (tests/fsdp_on_cpu.py), by torchrun."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from accelerate.commands import launch
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from pipeline import ROOT
from pipeline.chain import resume
from pipeline.training import sharded
from tests.conftest import CHAIN, flags_of, last
from tests.forked import launched

TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2"]
LAUNCH = ROOT / "stages" / "launch"
FULL = ["--method", "full"]


def fsdp():
    """The environment that `accelerate launch` makes of fsdp.yaml."""
    given = launch.launch_command_parser().parse_args(["--config_file", str(LAUNCH / "fsdp.yaml"), "script.py"])
    made = prepare_multi_gpu_env(launch._validate_launch_command(given)[0])
    return {key: value for key, value in made.items() if "FSDP" in key}


def zero(folder, stage):
    """The environment of DeepSpeed with the keys of a launch file; the rest it takes from the trainer."""
    pytest.importorskip("deepspeed", reason="pip install deepspeed")
    keys = yaml.safe_load((LAUNCH / f"zero{stage}.yaml").read_text())["deepspeed_config"]
    sizes = dict.fromkeys(
        ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"
    )
    config = folder / f"zero{stage}.json"
    config.write_text(
        json.dumps({"zero_optimization": {"stage": keys["zero_stage"]}, "zero_allow_untested_optimizer": True} | sizes)
    )
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(config), "DS_ACCELERATOR": "cpu"}


def start(around, name, *flags):
    environment = {**os.environ, **around, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    through = [str(ROOT / "tests" / "fsdp_on_cpu.py")] if "FSDP_VERSION" in around else []
    script = [*TORCHRUN, *through, str(ROOT / "stages" / f"{name}.py"), *last(flags)]
    return subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def train(around, name, *flags):
    with start(around, name, *flags) as process:
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def difference(one, other):
    found, wanted = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert found.keys() == wanted.keys()
    return max((found[key] - wanted[key]).abs().max().item() for key in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAIN)
def test_a_sharded_stage_hands_on_the_weights_of_one_that_is_not(chain, data, tmp_path, name):
    flags = [*flags_of(name, chain, data, tmp_path), "--max_steps", "4", "--save_steps", "2"]
    train(fsdp(), name, *flags, "--output", tmp_path / "sharded" / name)
    launched(name, [*flags, "--output", tmp_path / "whole" / name], tmp_path)
    assert difference(tmp_path / "sharded" / name, tmp_path / "whole" / name) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name", "more"), [(2, name, []) for name in CHAIN] + [(3, "pretrain", []), (3, "sft", FULL)])
def test_so_does_one_by_deepspeed(chain, data, tmp_path, stage, name, more):
    flags = [*flags_of(name, chain, data, tmp_path), "--max_steps", "4", "--save_steps", "2", *more]
    train(zero(tmp_path, stage), name, *flags, "--output", tmp_path / "sharded" / name)
    launched(name, [*flags, "--output", tmp_path / "whole" / name], tmp_path)
    assert difference(tmp_path / "sharded" / name, tmp_path / "whole" / name) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "zero2"])
def test_a_sharded_stage_that_lost_a_process_resumes_to_the_same_weights(chain, data, tmp_path, kind):
    around = fsdp() if kind == "fsdp" else zero(tmp_path, 2)
    flags = [*flags_of("sft", chain, data, tmp_path), "--max_steps", "40", "--save_steps", "4", "--logging_steps", "1"]
    folder = tmp_path / "killed" / "sft"
    with start(around, "sft", *flags, "--output", folder) as process:
        while not (folder / "checkpoint-8" / resume.SEAL).exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        (second,) = (one for one in psutil.Process(process.pid).children() if one.environ().get("RANK") == "1")
        second.kill()
        process.communicate(timeout=120)
    said = train(around, "sft", *flags, "--output", folder)
    assert "goes on from checkpoint-" in said
    train(around, "sft", *flags, "--output", tmp_path / "whole" / "sft")
    assert difference(folder, tmp_path / "whole" / "sft") == 0
    logs = [
        [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        for path in (folder, tmp_path / "whole" / "sft")
    ]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]


def test_an_outline_holds_no_weights_and_keeps_what_is_tied():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).eval()
    outlined = sharded.outline(model)
    assert all(parameter.is_meta for parameter in outlined.parameters())
    assert not any(buffer.is_meta for buffer in outlined.buffers())

    class Trainer:
        class accelerator:
            is_main_process = True
            unwrap_model = staticmethod(lambda one: one)

    Trainer.model = model
    whole = sharded.whole(Trainer, outlined)
    ids = torch.tensor([[1, 2, 3]])
    assert whole.lm_head.weight is whole.model.embed_tokens.weight
    assert torch.equal(whole(ids).logits, model(ids).logits)
