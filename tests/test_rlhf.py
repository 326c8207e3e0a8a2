"""Learning from rewards of sampled answers: exact resume, no dropout, and rewards that can't teach or fail."""

import json
import math

import pytest
import torch

from pipeline.chain import manifest, stages
from pipeline.rewards import Reward
from pipeline.system import hashes
from tests.conftest import make_quietly, mostly_slow

STEPS = 8
FLAGS = [
    "--max_completion_length", "6", "--per_device_train_batch_size", "4", "--num_generations", "4", "--max_steps", STEPS,
    "--save_steps", "1", "--logging_steps", "1", "--learning_rate", "1e-3", "--rewards", "{regex: {pattern: '[aeo]'}}",
]  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    animals = ["cat", "dog", "hen", "owl", "fox", "bee"]
    rows = [{"prompt": f"Who saw the {animal}?", "answer": f"The {other} did."} for animal in animals for other in animals]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def flags(chain, prompts, tmp_path):
    return ["--parent", chain / "sft", "--data", prompts, "--output", tmp_path / "rlhf", *FLAGS]


def weights(folder):
    return hashes.read(folder / "model.safetensors")


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class StopsAt:
    """Stand in for `pending_signal`: SIGTERM from the n-th step on."""

    def __init__(self, step):
        self.left = step

    def __call__(self):
        self.left -= 1
        return 15 if self.left <= 0 else 0


_MORE = [(), ("--num_iterations", "2"), ("--steps_per_generation", "2", "--method", "full")]
_RUNS = [(algorithm, more) for algorithm in ("rloo", "grpo") for more in _MORE]


@pytest.mark.parametrize("run_of", mostly_slow(_RUNS, ("rloo", ()), ("grpo", ("--num_iterations", "2"))), ids=str)
def test_a_run_that_goes_on_ends_with_the_same_bytes(run, flags, tmp_path, monkeypatch, run_of):
    """Killed and stopped in the second epoch of 36 prompts, 4 at a time; checkpoints lie between generations alone."""
    algorithm, more = run_of
    flags = [*flags, "--algorithm", algorithm, "--max_steps", "12" if not more else STEPS, *more]
    if not more:
        flags += ["--per_device_train_batch_size", "16"]  # nine steps an epoch
    assert run("rlhf", *flags)[0] == 0
    whole = tmp_path / "whole"
    (tmp_path / "rlhf").rename(whole)

    from pipeline.system import signals

    at = 10 if not more else 3
    with monkeypatch.context() as patch:
        patch.setattr(signals, "pending_signal", StopsAt(at))
        status, _, err = run("rlhf", *flags)
    assert status == 143, err
    saved = at if not more else 4  # the stop of step 3 waits for the next generation
    assert f"checkpoint-{saved} is saved" in err
    status, out, err = run("rlhf", *flags)
    assert status == 0, err
    assert f"goes on from checkpoint-{saved}" in out
    assert weights(tmp_path / "rlhf") == weights(whole)
    wanted = ("step", "tokens", "loss", "mean_reward", "completions", "truncated", "alike_groups", "kl_per_answer")
    assert [[entry.get(key) for key in wanted] for entry in log(tmp_path / "rlhf")] == [
        [entry.get(key) for key in wanted] for entry in log(whole)
    ]
    assert manifest.read(tmp_path / "rlhf")["rollouts"] == manifest.read(whole)["rollouts"]


def test_the_log_and_the_record_say_what_was_sampled(run, flags, tmp_path):
    status, out, err = run("rlhf", *flags)
    assert status == 0, err
    assert "mean reward 0." in out
    entries, record = log(tmp_path / "rlhf"), manifest.read(tmp_path / "rlhf")
    assert len(entries) == STEPS
    first = entries[0]
    assert first["completions"] == 4
    assert first["groups"] == 1
    assert 0 <= first["mean_reward"] <= 1
    assert first["kl_per_answer"] == pytest.approx(0, abs=1e-4)  # before the first update the policy is the parent
    assert record["rollouts"]["completions"] == 4 * STEPS
    assert 0 <= record["rollouts"]["truncated"] <= 4 * STEPS
    assert record["flops"] > 0
    assert record["tokens"] == entries[-1]["tokens"]


def test_the_proof_shows_the_prompts_of_the_first_step(run, flags, tmp_path):
    from pipeline.chain.finished import read
    from pipeline.report import batches

    assert run("rlhf", *flags, "--gradient_accumulation_steps", "2")[0] == 0
    found = batches.first(read(tmp_path / "rlhf"))
    assert found.agrees
    assert found.counted == 0
    assert "answers" in found.note
    texts = ["".join(token.text for token in line.tokens) for line in found.lines]
    assert texts[0] == texts[3]  # a prompt stands there for each of its answers
    assert "Who saw the" in texts[0]


def test_rewards_that_never_differ_stop_the_stage(run, flags, tmp_path):
    given = [*flags, "--rewards", "{regex: {pattern: '^'}}", "--per_device_train_batch_size", "32", "--max_steps", "40"]
    status, _, err = run("rlhf", *given)
    assert status == 2
    assert "rewards: within each of the first 64 groups all 4 answers got the same reward; there is nothing to learn" in err
    assert not (tmp_path / "rlhf" / manifest.NAME).exists()


class Moody(Reward):
    """Raises, gives nothing, NaN, infinity, and now and then a score."""

    calls = 0

    def scores(self, completions):
        if len(completions) > 1:
            raise RuntimeError("one at a time")
        Moody.calls += 1
        if Moody.calls % 8 == 0:
            raise RuntimeError("moody")
        return [[1.0, 0.0, None, math.nan, 2.0, math.inf, 0.5][Moody.calls % 7]]


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_rewards_that_fail_are_counted_and_end_nothing(run, flags, tmp_path, monkeypatch, algorithm):
    from pipeline import rewards

    monkeypatch.setattr(rewards, "load", lambda name, options=None: Moody())
    Moody.calls = 0
    status, _, err = run("rlhf", *flags, "--algorithm", algorithm)
    assert status == 0, err
    found = manifest.read(tmp_path / "rlhf")["rollouts"]
    assert found["unscored"] == sum(found[name] for name in found if name.startswith("regex: ")) > 0
    assert {"regex: NaN", "regex: infinity", "regex: no score", "regex: RuntimeError: moody"} <= found.keys()
    assert all(math.isfinite(entry["loss"]) for entry in log(tmp_path / "rlhf"))


def test_a_reward_model_is_a_second_parent_and_is_asked_about_the_sampled_tokens(
    run, flags, chain, data, tmp_path, monkeypatch
):
    from pipeline.rewards import model as reward_model

    made = tmp_path / "reward"
    given = [
        "--parent",
        chain / "sft",
        "--output",
        made,
        "--data",
        data / "pairs.jsonl",
        "--max_length",
        "64",
        "--max_steps",
        "2",
    ]
    assert run("reward", *given)[0] == 0
    asked = []
    row = reward_model._row
    monkeypatch.setattr(reward_model, "_row", lambda one, tokenizer: asked.append((one, row(one, tokenizer))) or asked[-1][1])
    status, _, err = run(
        "rlhf", *flags, "--reward", made, "--rewards", "{model: 2, length: {weight: 0.1, at_most: 4}}", "--max_steps", 2
    )
    assert status == 0, err
    assert len(asked) == 8
    assert all(tokens["input_ids"] == [*one.prompt_ids, *one.ids] for one, tokens in asked)
    record = manifest.read(tmp_path / "rlhf")
    assert [parent["role"] for parent in record["parents"]] == ["parent", "reward"]
    entry = log(tmp_path / "rlhf")[0]
    assert entry["mean_reward"] == pytest.approx(2 * entry["rewards/model"] + 0.1 * entry["rewards/length"], abs=1e-4)
    status, _, err = run("rlhf", *flags, "--rewards", "{model: 1}", "--output", tmp_path / "other")
    assert status == 2
    assert "--reward is missing; rlhf needs a reward model" in err


def test_faults_are_told_before_anything_is_loaded(run, flags, chain):
    def told(*more):
        status, _, err = run("rlhf", *flags, *more)
        assert status == 2
        return err

    assert "--reward is missing; rlhf needs a reward model" in told("--rewards", "{}")
    assert "jugde: no such reward" in told("--rewards", "{jugde: 1}")
    assert "rewards: length: expected a weight" in told("--rewards", "{length: much}")
    assert "at_mots: unknown key" in told("--rewards", "{length: {weight: 1, at_mots: 3}}")
    assert "lora_dropout: answers are sampled" in told("--lora_dropout", "0.1")
    assert "algorithm: expected rloo or grpo, found 'ppo'" in told("--algorithm", "ppo")
    assert "but rlhf takes reward as its reward" in told("--reward", chain / "sft")
    assert "leaves no position for a prompt; the parent has 64" in told("--max_completion_length", "64")


def test_keys_are_those_of_the_algorithm_s_class(run, flags):
    stage = stages.load("rlhf")
    assert stage.library_of({}) == "trl.RLOOConfig"
    assert stage.library_of({"algorithm": "grpo"}) == "trl.GRPOConfig"
    status, _, err = run("rlhf", *flags, "--scale_rewards", "none")
    assert status == 2
    assert "scale_rewards: unknown key" in err
    assert run("rlhf", *flags, "--scale_rewards", "none", "--algorithm", "grpo")[0] == 0


def tiny(dropout=0.0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 400}
    return LlamaForCausalLM(LlamaConfig(**sizes, attention_dropout=dropout))


def test_no_dropout_reaches_attention_and_puts_everything_back():
    from pipeline.training.rollouts import no_dropout

    model, ids = tiny(dropout=0.5).train(), torch.arange(12).view(1, 12)
    model.extra = torch.nn.Dropout(0.3)
    plain = model.eval()(ids).logits
    model.train()
    assert not torch.allclose(model(ids).logits, plain)
    with no_dropout(model):
        assert torch.allclose(model(ids).logits, plain)
        assert model.extra.p == 0
    assert (model.extra.p, model.config.attention_dropout) == (0.3, 0.5)
    assert not torch.allclose(model(ids).logits, plain)


@pytest.fixture
def spoken(chain):
    from pipeline.models import tokenization

    return tokenization.load(str(chain / "sft"))


def test_what_is_sampled_depends_on_the_example_alone(spoken):
    from pipeline.training.rollouts import sample

    model = tiny(dropout=0.5).train()
    rows = [
        {"prompt": [{"role": "user", "content": text}]}
        for text in ("Who saw the cat?", "Who?", "The cow ran from the eel and the elk.")
    ]
    found = sample(model, spoken, rows, (1, "rlhf", 0), 3, 8)
    assert model.training
    assert [len(answers) for answers in found] == [3, 3, 3]
    again = sample(model, spoken, rows[1:], (1, "rlhf", 0), 3, 8, numbers=[1, 2])
    assert [[one.ids for one in answers] for answers in again] == [[one.ids for one in answers] for answers in found[1:]]
    assert sample(model, spoken, rows, (1, "rlhf", 1), 3, 8) != found
    assert len({one.ids for one in found[0]}) == 3
    model.eval()
    for one in (one for answers in found for one in answers):
        with torch.no_grad():
            logits = model(torch.tensor([[*one.prompt_ids, *one.ids]])).logits[0, len(one.prompt_ids) - 1 : -1]
        mine = torch.log_softmax(logits.double(), -1).gather(-1, torch.tensor(one.ids)[:, None])[:, 0]
        assert one.logps == pytest.approx(mine.tolist(), abs=1e-4)
        assert len(one.ids) == 8 or one.ended


def test_a_sampled_answer_ends_with_the_token_that_ends_it(spoken):
    from pipeline.models.tokenization import end_token
    from pipeline.training.rollouts import sample

    end, model = end_token(spoken), tiny()
    with torch.no_grad():
        model.lm_head.weight[:] = 0  # every token is as likely as any other
        model.resize_token_embeddings(len(spoken))
    rows = [{"prompt": [{"role": "user", "content": "Who?"}]}] * 64
    answers = [one for found in sample(model, spoken, rows, (1, "x"), 4, 64) for one in found]
    ended = [one for one in answers if one.ended]
    assert 0 < len(ended) < len(answers)
    assert {one.ids[-1] for one in ended} <= {end, spoken.eos_token_id}
    assert not any({end, spoken.eos_token_id} & set(one.ids[:-1]) for one in answers)


def test_held_out_prompts_measure_kl_and_the_node_s_own_rewards(chain, prompts, tmp_path):
    import shutil

    folder = shutil.copytree(chain, tmp_path / "runs")
    make_quietly("rlhf", "--parent", folder / "sft", "--data", prompts, "--output", folder / "rlhf", *FLAGS)
    make_quietly("evaluate", "--runs", folder, "--resamples", "50", "--max_new_tokens", "6", "--rows", "20")
    found = json.loads((folder / "evaluate.json").read_text())
    assert {"kl_to_parent", "sampled_reward", "ended"} <= found["nodes"]["rlhf"]["figures"].keys()
    assert found["nodes"]["rlhf"]["primary"]["metric"] == "sampled_reward"
    assert found["nodes"]["rlhf"]["metrics"]["kl_to_parent"]["unit"] == "nats"
