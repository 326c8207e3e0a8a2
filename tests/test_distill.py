"""Distillation: the divergence, its counts and memory, exact resuming, what the batches hold, and what is refused."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.chain import finished, manifest, stages
from pipeline.models import build, checkpoint, tokenization
from pipeline.training import distillation
from pipeline.training.distillation import SoftTargets, divergence
from tests.conftest import last, make_quietly
from tests.forked import launched
from tests.test_launch import same_step
from tests.test_rlhf import StopsAt, log, weights

TEXT = ["--max_length", "64", "--per_device_train_batch_size", "2", "--max_steps", "6", "--learning_rate", "1e-2"]
SMALL = "{hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1}"
SAMPLED = [
    "--reads", "prompts", "--max_length", "64", "--max_completion_length", "6", "--per_device_train_batch_size", "4",
    "--max_steps", "8", "--save_steps", "1", "--logging_steps", "1", "--learning_rate", "1e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    words = "cat dog hen owl fox bee ant cow elk eel".split()
    path.write_text("".join(json.dumps({"prompt": f"Who saw the {a} and the {b}?"}) + "\n" for a in words for b in words))
    return path


@pytest.fixture
def distill(run, chain, data, tmp_path):
    """Run the stage on text of the small chain; later flags replace earlier ones."""

    def call(*flags):
        given = ["--teacher", chain / "pretrain", "--output", tmp_path / "distill", "--data", data / "text.jsonl", *TEXT]
        return run("distill", *last([*given, *flags]))

    return call


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_and_its_gradient_are_those_of_trl(beta, temperature):
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    torch.manual_seed(0)
    student, teacher = torch.randn(7, 16, requires_grad=True), torch.randn(7, 16)
    found = divergence(student, teacher, beta, temperature)
    (mine,) = torch.autograd.grad(found, student)
    per_token, _ = ChunkedDivergenceFunction.apply(
        student, torch.eye(16), None, teacher, torch.eye(16), None, beta, temperature
    )  # fmt: skip
    (theirs,) = torch.autograd.grad(per_token.sum(), student)
    assert found.item() == pytest.approx(per_token.sum().item(), rel=1e-4)
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_the_divergence_by_hand():
    even, sure = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])  # (1/2, 1/2) and (3/4, 1/4)
    forward = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert divergence(even, sure, 0.0, 1.0).item() == pytest.approx(forward)
    assert divergence(even, sure, 1.0, 1.0).item() == pytest.approx(backward)
    assert divergence(sure, sure, 0.3, 2.0).item() == pytest.approx(0, abs=1e-6)


def batch_of(rows):
    from pipeline.data.batches import CausalCollator

    return CausalCollator(0)([{"input_ids": ids, "labels": [-100, *ids[1:]], "seq_lengths": [len(ids)]} for ids in rows])


def test_many_logits_are_compared_piece_by_piece_with_the_same_gradient(chain, monkeypatch):
    student, teacher = checkpoint.load(str(chain / "pretrain")), checkpoint.load(str(chain / "sft")).eval()
    for weights_ in teacher.parameters():
        weights_.data += 0.05 * torch.randn_like(weights_)
    batch = batch_of([list(range(3, 30)), list(range(40, 52))])
    loss = SoftTargets(teacher, 400, 0.5, 0.0, 2.0)
    assert loss.weights == {"teacher": 2.0, "text": 0.5}
    assert {name: int(count) for name, count in loss.counts(batch).items()} == {"teacher": 37, "text": 37}
    gradients = []
    for at_once in (distillation._AT_ONCE, 400 * 5):
        monkeypatch.setattr(distillation, "_AT_ONCE", at_once)
        student.zero_grad()
        parts = loss.losses(student, batch)
        (parts["teacher"] + parts["text"]).backward()
        gradients.append([one.grad.clone() for one in student.parameters()])
    assert all(torch.allclose(one, other, atol=1e-5, rtol=1e-4) for one, other in zip(*gradients, strict=True))
    assert all(one.grad is None for one in teacher.parameters())


def test_a_teacher_that_is_remembered_says_what_it_said_and_is_asked_once(chain):
    teacher, student = (checkpoint.load(str(chain / name)).eval() for name in ("pretrain", "sft"))
    asked = []
    teacher.register_forward_hook(lambda *_: asked.append(1))
    for weights_ in student.parameters():
        weights_.data += 0.05 * torch.randn_like(weights_)
    loss, other = (SoftTargets(teacher, 400, 1.0, 0.0, 1.0, keeps=keeps) for keeps in (True, False))
    rows = [list(range(3, 30)), list(range(40, 52)), [7, 8, 9]]
    batches = [batch_of(rows[:2]), batch_of([rows[1], rows[0], rows[2]])]
    mine = [loss.losses(student, batch)["teacher"].item() for batch in batches]
    assert len(asked) == 3
    assert mine == pytest.approx([other.losses(student, batch)["teacher"].item() for batch in batches], rel=1e-5)


def test_a_teacher_is_remembered_where_rows_are_read_again_and_memory_suffices(monkeypatch):
    from types import SimpleNamespace

    def keeps(steps, tokens=100, epochs=1.0):
        arguments = SimpleNamespace(
            train_batch_size=2, gradient_accumulation_steps=2, world_size=1, max_steps=steps, num_train_epochs=epochs
        )
        return distillation.kept({"labels": [[-100, 1, 2]] * 8} | dict.fromkeys(range(7), 0), tokens, arguments)

    assert [keeps(2), keeps(3), keeps(-1), keeps(-1, epochs=2.0)] == [False, True, False, True]
    monkeypatch.setattr(distillation, "_KEPT", 4 * 100 * 16)
    assert keeps(3)
    assert not keeps(3, tokens=101)


@pytest.mark.parametrize("flags", [(), ("--soft_weight", "0.3", "--beta", "0.5", "--temperature", "2")])
def test_accumulation_leaves_the_step_as_it_is(distill, tmp_path, flags):
    """Texts of different lengths, so that a mean of means would be another step."""
    rows = [{"text": "The cat" + " and the dog" * (n % 7) + f" ran {n}."} for n in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one_step = [
        "--data",
        tmp_path / "text.jsonl",
        "--optim",
        "sgd",
        "--learning_rate",
        "0.1",
        "--max_grad_norm",
        "0",
        "--max_steps",
        "1",
    ]
    made = []
    for size, parts in ((8, 1), (2, 4)):
        out = tmp_path / str(size)
        more = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", parts, "--output", out]
        assert distill("--student", SMALL, *one_step, *flags, *more)[0] == 0
        made.append(load_file(out / "model.safetensors"))
    assert max((made[0][name] - made[1][name]).abs().max().item() for name in made[0]) < 1e-6


def test_a_new_student_has_the_sizes_and_the_tokenizer_that_were_asked_for(distill, chain, tmp_path):
    status, out, err = distill("--student", SMALL)
    assert status == 0, err
    assert "of the teacher's" in out
    made = checkpoint.load(str(tmp_path / "distill"))
    config, teacher = made.config, checkpoint.load(str(chain / "pretrain")).config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (16, 32, 1)
    assert (config.head_dim, config.vocab_size) == (16 // config.num_attention_heads, teacher.vocab_size)
    mine, theirs = (tokenization.load(str(folder)) for folder in (tmp_path / "distill", chain / "pretrain"))
    assert mine.get_vocab() == theirs.get_vocab()
    record = manifest.read(tmp_path / "distill")
    assert [parent["role"] for parent in record["parents"]] == ["teacher"]
    assert record["starts_from"] == "nothing"
    assert finished.read(tmp_path / "distill").record["family"] == "causal"


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_student_with_fewer_heads_than_its_teacher_has_heads_of_equal_parts_of_its_width(architecture):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 50}
    teacher = AutoConfig.for_model(architecture, **sizes, num_key_value_heads=4, head_dim=8)
    made = build.resized(teacher, {"hidden_size": 24, "num_attention_heads": 2})
    assert (made.head_dim, made.num_key_value_heads) == (12, 2)
    assert AutoModelForCausalLM.from_config(made)(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 50)
    grouped = build.resized(
        AutoConfig.for_model(architecture, **sizes, num_key_value_heads=2, head_dim=16), {"hidden_size": 24}
    )
    assert (grouped.head_dim, grouped.num_key_value_heads) == (16, 2), "sizes that were chosen stay"


def test_a_parent_that_is_the_teacher_has_nothing_to_learn(distill, chain, tmp_path):
    assert distill("--parent", chain / "pretrain", "--logging_steps", "1")[0] == 0
    assert log(tmp_path / "distill")[0]["loss"] == pytest.approx(0, abs=1e-5)


def test_answers_alone_are_targets_and_the_first_batch_is_shown(distill, chain, data, tmp_path):
    from pipeline.report import batches

    chat = ["--teacher", chain / "sft", "--reads", "messages", "--data", data / "chats.jsonl"]
    status, _, err = distill(*chat, "--parent", chain / "pretrain", "--method", "lora")
    assert status == 0, err
    assert (tmp_path / "distill" / "adapter").is_dir()
    assert tokenization.load(str(tmp_path / "distill")).chat_template == tokenization.load(str(chain / "sft")).chat_template
    found = batches.first(finished.read(tmp_path / "distill"))
    assert found.agrees
    spoken = "".join(token.text for token in found.lines[0].tokens if token.counts)
    assert spoken.startswith("The ")
    assert "Who" not in spoken


@pytest.mark.parametrize("sampled", [False, True])
def test_a_run_that_goes_on_ends_with_the_same_bytes(distill, chain, prompts, tmp_path, monkeypatch, sampled):
    """Stopped in the second epoch."""
    from pipeline.system import signals

    if sampled:
        more = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"]
        flags = ["--teacher", chain / "dpo", "--parent", chain / "sft", "--data", prompts, *SAMPLED, *more]
    else:
        flags = ["--student", SMALL, "--per_device_train_batch_size", "16", "--max_steps", "8", "--logging_steps", "1"]
    assert distill(*flags)[0] == 0
    whole = tmp_path / "whole"
    (tmp_path / "distill").rename(whole)
    with monkeypatch.context() as patch:
        patch.setattr(signals, "pending_signal", StopsAt(5))
        status, _, err = distill(*flags)
    assert status == 143, err
    assert "checkpoint-5 is saved" in err
    status, out, err = distill(*flags)
    assert status == 0, err
    assert "goes on from checkpoint-5" in out
    assert weights(tmp_path / "distill") == weights(whole)
    wanted = ("step", "tokens", "loss", "completions", "truncated")
    assert [[entry.get(key) for key in wanted] for entry in log(tmp_path / "distill")] == [
        [entry.get(key) for key in wanted] for entry in log(whole)
    ]
    assert manifest.read(tmp_path / "distill").get("rollouts") == manifest.read(whole).get("rollouts")


def test_sampled_answers_are_counted_and_their_prompts_shown(distill, chain, prompts, tmp_path):
    from pipeline.report import batches

    status, _, err = distill("--teacher", chain / "dpo", "--parent", chain / "sft", "--data", prompts, *SAMPLED)
    assert status == 0, err
    record, entries = manifest.read(tmp_path / "distill"), log(tmp_path / "distill")
    assert record["rollouts"]["completions"] == 32
    assert 0 < record["rollouts"]["truncated"] <= 32
    assert record["tokens"] == entries[-1]["tokens"]
    assert record["flops"] > 0
    found = batches.first(finished.read(tmp_path / "distill"))
    assert found.agrees
    assert found.counted == 0


def test_held_out_rows_measure_the_divergence_from_the_teacher(chain, data, prompts, tmp_path):
    folder = shutil.copytree(chain, tmp_path / "runs")
    given = ["--teacher", folder / "pretrain", "--data", data / "text.jsonl", *TEXT, "--student", SMALL]
    make_quietly("distill", *given, "--output", folder / "distill")
    sampled = ["--teacher", folder / "dpo", "--parent", folder / "sft", "--data", prompts, *SAMPLED]
    make_quietly("distill", *sampled, "--output", folder / "distill-chat")
    make_quietly("evaluate", "--runs", folder, "--resamples", "50", "--max_new_tokens", "6", "--rows", "20")
    nodes = json.loads((folder / "evaluate.json").read_text())["nodes"]
    text, chat = nodes["distill"]["figures"], nodes["distill-chat"]["figures"]
    assert text["kl_to_teacher"].keys() == {"distill"}
    assert text["kl_to_teacher"]["distill"]["value"] > 0
    assert text["loss"].keys() == {"distill", "pretrain", "5-gram", "unigram"}
    assert chat["kl_to_teacher"].keys() == {"distill-chat", "sft"}
    assert nodes["distill-chat"]["primary"]["metric"] == "kl_to_teacher"


def test_the_divergence_of_a_model_from_itself_is_nothing(chain):
    from pipeline.evaluation.inference import divergences

    model, other = (checkpoint.load(str(chain / name)).eval() for name in ("sft", "pretrain"))
    rows = [{"input_ids": list(range(3, 20)), "labels": [-100, *range(4, 20)]}, {"input_ids": [5, 6], "labels": [-100, 6]}]
    assert divergences(model, model, rows, 0, 400) == pytest.approx([0.0, 0.0], abs=1e-6)
    assert all(value > 0 for value in divergences(model, other, rows, 0, 400))


@pytest.fixture(scope="module")
def strangers(chain, data, tmp_path_factory):
    """A teacher with another tokenizer, one of another family, and one with few positions."""
    folder = tmp_path_factory.mktemp("strangers")
    small = ["--data", data / "text.jsonl", "--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2",
             "--max_steps", "1", "--per_device_train_batch_size", "2"]  # fmt: skip
    make_quietly("pretrain", *small, "--vocab_size", "270", "--max_length", "64", "--output", folder / "words")
    make_quietly("pretrain", *small, "--vocab_size", "400", "--max_length", "32", "--output", folder / "short")
    make_quietly(
        "pretrain", *small, "--vocab_size", "330", "--objective", "mlm", "--max_length", "64", "--output", folder / "mlm"
    )
    return folder


def test_what_can_not_work_is_refused_in_one_line(distill, chain, data, prompts, strangers, tmp_path):
    def told(*flags):
        status, _, err = distill(*flags)
        assert status == 2, err
        assert "Traceback" not in err
        assert not (tmp_path / "distill" / manifest.NAME).exists()
        return err

    chats = ["--data", data / "chats.jsonl", "--reads", "messages"]
    assert "--teacher: its tokenizer is another: " in told("--teacher", strangers / "words", "--parent", chain / "pretrain")
    assert "mlm made a model of family masked, but distill takes causal as its teacher" in told("--teacher", strangers / "mlm")
    assert "max_length: 64 does not fit the teacher, which has 32 positions" in told("--teacher", strangers / "short")
    assert "--teacher: has no chat template, so it never learned to answer" in told(*chats)
    assert "student: hidden_szie is no key of llama" in told("--student", "{hidden_szie: 16}")
    assert "student: llama refuses it" in told("--student", "{hidden_size: 16, num_attention_heads: 3}")
    assert "student: --parent has its own sizes" in told("--student", SMALL, "--parent", chain / "pretrain")
    assert "max_length: 64 does not fit the student, which has 16 positions" in told(
        "--student", "{max_position_embeddings: 16}"
    )
    assert "method: lora would leave a new student's random weights" in told("--method", "lora")
    assert "max_completion_length: unknown key" in told("--max_completion_length", "8")
    assert "soft_weight: prompts have no answers" in told("--reads", "prompts", "--soft_weight", "0.5")
    assert "beta: " in told("--beta", "1.5")
    given = ["--teacher", chain / "dpo", "--parent", chain / "sft", "--data", prompts, *SAMPLED]
    assert "leaves no position for a prompt" in told(*given, "--max_completion_length", "64")
    assert "lora_dropout: answers are sampled" in told(*given, "--method", "lora", "--lora_dropout", "0.1")


def test_keys_are_those_of_the_class_that_trains():
    stage = stages.load("distill")
    assert stage.library_of({"reads": "text"}) == "transformers.TrainingArguments"
    assert stage.library_of({"reads": "prompts"}) == "trl.DistillationConfig"
    assert stage.split({"reads": "prompts"})[1]["max_completion_length"] == 256
    assert "max_completion_length" not in stage.split({"reads": "text"})[1]


@pytest.mark.slow
def test_two_processes_do_what_one_does(run, chain, data, tmp_path):
    """One step of plain gradient descent on texts of different lengths, and answers that two processes sample."""
    rows = [{"text": "The cat" + " and the dog" * (n % 7) + f" ran {n}."} for n in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--teacher", chain / "pretrain", "--data", tmp_path / "text.jsonl", *TEXT, "--student", SMALL, "--max_steps", "1"]
    given += ["--optim", "sgd", "--learning_rate", "1", "--max_grad_norm", "0", "--soft_weight", "0.5"]
    launched("distill", [*given, "--per_device_train_batch_size", "2", "--output", tmp_path / "two"], tmp_path)
    assert run("distill", *given, "--per_device_train_batch_size", "4", "--output", tmp_path / "one")[0] == 0
    same_step(tmp_path / "two", tmp_path / "one")
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Who ran {n}?"}) + "\n" for n in range(40)))
    sampled = [
        "--teacher",
        chain / "dpo",
        "--parent",
        chain / "sft",
        "--data",
        path,
        *SAMPLED,
        "--output",
        tmp_path / "sampled",
    ]
    launched("distill", sampled, tmp_path)
    record = manifest.read(tmp_path / "sampled")
    assert record["rollouts"]["completions"] == 2 * 4 * 8
    assert record["tokens"] == log(tmp_path / "sampled")[-1]["tokens"]
