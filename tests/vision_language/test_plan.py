"""`make plan` of a model that sees beside what its run takes, step by step: rows with pictures, and longer ones without."""

import json

import pytest
import yaml

from pipeline.chain import profile
from pipeline.commands import _plan
from pipeline.commands._plan import devices
from pipeline.training import footprint
from pipeline.training.trainer import StageTrainer
from tests.vision_language import lines, reply, weights

BRIDGE = {
    "projector": {},
    "cross_attention": {"resampler_n_latents": 3, "resampler_depth": 1},
}
NEW = {
    "projector": "model.multi_modal_projector.",
    "cross_attention": ("model.gated_cross_attn_layers.", "model.perceiver_resampler.", "model.vision_model.pre_layrnorm."),
}


def written(folder, made, picture_data, method):
    """Write a profile of one node; return its folder and the same as flags."""
    rows = [json.loads(line) for line in (picture_data / "chats.jsonl").read_text().splitlines()][:12]
    rows += [{"messages": [{"role": "user", "content": f"{number}? " * 8}, reply("It is red.")]} for number in range(10, 22)]
    lines(folder / "mixed.jsonl", rows)
    (folder / "mixed.yaml").write_text(f"type: messages\nsources:\n  - files: {folder / 'mixed.jsonl'}\n")
    settings = {
        "parent": str(made / "pretrain"), "vision": str(picture_data / "tower"), "tower": "frozen", "method": method, **BRIDGE[method],
        "recipe": str(folder / "mixed.yaml"), "chat_template": "chatml.jinja", "max_length": 64, "per_device_train_batch_size": 4,
        "max_steps": 5,
    }  # fmt: skip
    (folder / "nodes").mkdir()
    (folder / "nodes" / "sft.yaml").write_text(yaml.safe_dump(settings))
    return folder / "nodes", [word for key, value in settings.items() for word in (f"--{key}", str(value))]


@pytest.mark.parametrize("method", BRIDGE)
def test_what_is_planned_is_what_a_run_takes(run, made, picture_data, tmp_path, monkeypatch, method):
    nodes, flags = written(tmp_path, made, picture_data, method)
    monkeypatch.setattr(_plan, "STEPS", 2)
    (found,) = _plan.Planner(profile.load(nodes), tmp_path / "runs", tmp_path / "scratch", devices.this()).planned()
    assert not found.why
    plan, step, taken = found.found, StageTrainer.training_step, []

    def watched(self, model, inputs, items=None):
        given = []
        taken.append(
            footprint.followed(
                lambda: given.append(step(self, model, inputs, items)), model.config.get_text_config().vocab_size
            )
        )
        return given[0]

    monkeypatch.setattr(StageTrainer, "training_step", watched)
    status, _, err = run("sft", *flags, "--output", tmp_path / "out")
    assert status == 0, err
    assert plan["steps"] == len(taken)
    made_of = {name: one.numel() for name, one in weights(tmp_path / "out").items()}
    trained = sum(count for name, count in made_of.items() if name.startswith(NEW[method]))
    tied = made_of["lm_head.weight"]  # is the embedding
    assert (plan["trained"], plan["frozen"]) == (trained, sum(made_of.values()) - trained - tied)
    assert plan["flops"]["linear"] == pytest.approx(sum(one.linear for one in taken), rel=0.05)
    assert plan["flops"]["attention"] == pytest.approx(sum(one.attention for one in taken), rel=0.3)
    held = sum(plan["memory"][part] for part in ("gradients", "activations", "logits"))
    assert max(one.peak for one in taken) <= held <= 1.2 * max(one.peak for one in taken)
