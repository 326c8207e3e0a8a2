"""RLHF of a model that sees: answers keep their pictures, rewards are learned from, and what a kill leaves."""

import pytest
import torch

from pipeline.chain import manifest
from pipeline.chain.finished import read
from pipeline.evaluation.subject import StageModel
from pipeline.models import parts, tokenization
from pipeline.report import batches
from pipeline.training import chat
from pipeline.training.policy import PolicyTrainer
from tests.forked import launched
from tests.vision_language import (
    COLOURS,
    cell,
    flags,
    flags_of_rlhf,
    killed_ends_as,
    lines,
    logged,
    part,
    place,
    png,
    reply,
    said,
    same,
    speaks_of_colours,
)


@pytest.mark.parametrize(
    "more", [("--algorithm", "rloo"), ("--algorithm", "grpo", "--steps_per_generation", "2", "--method", "full")]
)
def test_rewards_killed_end_with_the_same_weights_and_leave_the_tower(run, made, picture_data, tmp_path, monkeypatch, more):
    more = [*more, "--save_steps", "1", "--max_steps", "4"]
    status, _, err = run("rlhf", *flags_of_rlhf(made, picture_data, *more, "--output", tmp_path / "whole"))
    assert status == 0, err
    killed_ends_as(tmp_path / "whole", run, monkeypatch, "rlhf", flags_of_rlhf(made, picture_data, *more), 6)
    assert logged(tmp_path / "whole")["kl_per_answer"] == pytest.approx(0, abs=1e-4)  # the reference is shown the pictures, too
    assert same(part(made / "sft", "vision_tower"), part(tmp_path / "whole", "vision_tower"))
    assert not same(part(made / "sft", "language_model"), part(tmp_path / "whole", "language_model"))
    record = manifest.read(tmp_path / "whole")
    assert record["family"] == "vision_language"
    assert record["rollouts"]["completions"] == 4 * 8


def test_answers_are_learned_from_with_the_pictures_that_they_were_sampled_with(run, made, picture_data, tmp_path, monkeypatch):
    """trl shuffles and splits what it sampled: before a step all log-probabilities are those of sampling, also of texts alone."""
    apart, counts = [], []

    def compare(self, model, inputs, *more, **named):
        if not self.state.global_step:
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            counts.extend(inputs["num_images"])
            for pixels in (inputs["pixel_values"], inputs["pixel_values"].roll(2, 0)):
                shown_ = {"pixel_values": pixels, "num_images": inputs["num_images"]}
                with torch.no_grad():
                    found = self._get_per_token_logps_and_entropies(
                        model, ids, mask, inputs["completion_ids"].shape[1], **shown_
                    )
                nats = (found[0] * inputs["completion_mask"]).sum(1)
                apart.append(float((nats - inputs["old_logps"]).abs().max()))
        return super(PolicyTrainer, self).compute_loss(model, inputs, *more, **named)

    monkeypatch.setattr(PolicyTrainer, "compute_loss", compare, raising=False)
    sizes = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "10", "--max_steps", "1"]
    status, _, err = run("rlhf", *flags_of_rlhf(made, picture_data, *sizes, "--output", tmp_path / "out"))
    assert status == 0, err
    assert batches.first(read(tmp_path / "out")).agrees  # the report reads the first step as it was
    assert set(counts) == {0, 2}
    assert max(apart[::2]) < 1e-4
    assert max(apart[1::2]) > 1e-2


@pytest.mark.slow
def test_rewards_raise_the_share_of_right_answers_about_unseen_pictures(run, tmp_path):
    """A parent that was stopped while it learned the colours goes on learning them from rewards alone."""
    names = list(COLOURS)

    def rows(first, count, *columns):
        for number in range(first, first + count):
            colour = names[number % 4]
            row = {"group": str(number), "prompt": [said(place(), "Which?")], "images": [cell(png(colour, mark=number))]}
            answer = f"It is {colour}."
            yield row | {"completion": [reply(answer)]} if "completion" in columns else row | {"answer": answer}

    speaks_of_colours(tmp_path)
    chats = lines(tmp_path / "chats.jsonl", list(rows(0, 160, "completion")))
    more = ["--method", "full", "--per_device_train_batch_size", "8", "--learning_rate", "1e-2", "--max_steps", "45"]
    assert run("sft", *flags(tmp_path, tmp_path, *more, "--data", chats))[0] == 0
    prompts = lines(tmp_path / "prompts.jsonl", list(rows(160, 160)))
    more = [
        "--method",
        "full",
        "--learning_rate",
        "3e-3",
        "--lr_scheduler_type",
        "constant",
        "--max_steps",
        "60",
        "--beta",
        "0",
    ]
    more += ["--per_device_train_batch_size", "64", "--num_generations", "8", "--max_completion_length", "10"]
    given = flags_of_rlhf(tmp_path, tmp_path, *more, "--data", prompts, "--rewards", "{exact_match: {of: whole}}")
    status, _, err = run("rlhf", *given)
    assert status == 0, err
    unseen = list(rows(320, 80))
    turns = [parts.filled(row["prompt"], row["images"]) for row in unseen]

    def right(name):
        found = StageModel(str(tmp_path / name), name).replies(turns, 10, seed=1)  # sampled, as what is rewarded
        return sum(text == row["answer"] for text, row in zip(found, unseen, strict=True)) / len(unseen)

    parent, node = right("sft"), right("rlhf")
    assert node > parent + 0.1, (parent, node)


def test_the_token_of_a_picture_is_never_sampled(run, made, picture_data, tmp_path, monkeypatch):
    """A parent that would say nothing else."""
    opened_ = chat.open_parent

    def tempted(run_):
        tokenizer, model = opened_(run_)
        head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
        head.weight = model.lm_head.weight
        head.bias.data.zero_()[model.config.image_token_id] = 50.0
        model.lm_head = head
        return chat.Opened(tokenizer, model)

    sampled = []
    rewarded = PolicyTrainer._calculate_rewards
    monkeypatch.setattr(chat, "open_parent", tempted)
    monkeypatch.setattr(PolicyTrainer, "_calculate_rewards", lambda *given: sampled.extend(given[4]) or rewarded(*given))
    token = parts.token_of(tokenization.load(str(made / "sft")))
    run("rlhf", *flags_of_rlhf(made, picture_data, "--max_steps", "1", "--output", tmp_path / "out"))
    assert len(sampled) == 8
    assert not any(token in ids for ids in sampled)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_two_processes_sample_answers_with_the_pictures_of_their_own_prompts(made, picture_data, tmp_path, algorithm):
    """Each process splits what it sampled into batches: at the parent an answer's KL is 0 only with the pictures that it was sampled with."""
    more = ["--algorithm", algorithm, "--method", "full", "--steps_per_generation", "2", "--gradient_accumulation_steps", "2"]
    given = flags_of_rlhf(made, picture_data, *more, "--max_steps", "3", "--output", tmp_path / "two")
    assert launched("rlhf", given, tmp_path).count("done in") == 1
    record = manifest.read(tmp_path / "two")
    assert record["rollouts"]["completions"] == 3 * 2 * 2 * 8
    assert logged(tmp_path / "two")["kl_per_answer"] == pytest.approx(0, abs=1e-4)
    assert same(part(made / "sft", "vision_tower"), part(tmp_path / "two", "vision_tower"))
    assert not same(part(made / "sft", "multi_modal_projector"), part(tmp_path / "two", "multi_modal_projector"))
