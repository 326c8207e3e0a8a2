"""The reward model: what it reads of a pair, how it is handed on, and that it tells right from wrong."""

import contextlib
import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from pipeline import rewards
from pipeline.chain import manifest
from pipeline.data import sides
from pipeline.data.rows import Rows
from pipeline.evaluation import inference
from pipeline.evaluation.metrics.reward_accuracy import EVALUATOR, calibration
from pipeline.models import reward_model, tokenization
from pipeline.models.families import family_of
from pipeline.rewards import Completion
from tests.conftest import Fails, last, make_quietly
from tests.test_tasks import parent

SMALL = ["--max_length", "64", "--max_steps", "6", "--per_device_train_batch_size", "4", "--learning_rate", "1e-2"]
PAIR = {
    "prompt": [{"role": "user", "content": "Who saw the dog?"}],
    "chosen": [{"role": "assistant", "content": "The cat did."}],
    "rejected": [{"role": "assistant", "content": "The cat did. And so on."}],
}


def flags(source, data, output, *more):
    return ["--parent", source, "--output", output, "--data", data / "pairs.jsonl", *SMALL, *more]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return parent(tmp_path_factory.mktemp("encoder") / "mlm", "mlm")


@pytest.fixture(scope="module")
def made(chain, data, encoder, tmp_path_factory):
    """A folder of runs with reward models of both kinds, measured."""
    folder = shutil.copytree(chain, tmp_path_factory.mktemp("reward") / "runs")
    make_quietly("reward", *flags(folder / "sft", data, folder / "reward"))
    make_quietly("reward", *flags(encoder, data, folder / "reward-encoder", "--method", "full"))
    make_quietly("evaluate", "--runs", folder, "--resamples", "100", "--max_new_tokens", "8")
    return folder


def scored(folder, *rows):
    tokenizer, model = tokenization.load(str(folder)), reward_model.load(str(folder)).eval()
    return inference.rewards(model, list(rows), tokenizer.pad_token_id)


def test_a_conversation_ends_with_the_token_that_ends_the_answer(made):
    tokenizer = tokenization.load(str(made / "reward"))
    row = sides.whole(sides.encode(PAIR, tokenizer), "chosen")
    text = "<|endoftext|><|im_start|>user\nWho saw the dog?<|im_end|>\n<|im_start|>assistant\nThe cat did.<|im_end|>"
    assert tokenizer.decode(row["input_ids"]) == text
    assert tokenizer.decode(sides.encode_answer(PAIR["prompt"], "The cat did.", True, tokenizer)["input_ids"]) == text
    cut = sides.encode_answer(PAIR["prompt"], "The cat did.", False, tokenizer)["input_ids"]
    assert tokenizer.decode(cut) == text.removesuffix("<|im_end|>")


def test_an_encoder_reads_two_texts(encoder):
    tokenizer = tokenization.load(str(encoder))
    row = sides.whole(
        sides.encode({**PAIR, "chosen": [{"role": "assistant", "content": "the hen [SEP]"}]}, tokenizer), "chosen"
    )
    words = tokenizer.convert_ids_to_tokens(row["input_ids"])
    middle = words.index("[SEP]")
    assert (words[0], words[-1], words.count("[SEP]")) == ("[CLS]", "[SEP]", 2)  # what looks like a mark in a text is text
    assert row["token_type_ids"] == [0] * (middle + 1) + [1] * (len(words) - middle - 1)
    cut = sides.encode_answer(PAIR["prompt"], "the hen", False, tokenizer)
    assert cut["input_ids"][-1] != tokenizer.sep_token_id
    assert len(cut["token_type_ids"]) == len(cut["input_ids"])


def test_a_batch_by_hand():
    pairs = [
        {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]}, {"prompt_ids": [1, 5], "chosen_ids": [2], "rejected_ids": [4, 6, 7]},
    ]  # fmt: skip
    batch = sides.SidesCollator(0)(pairs)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0, 0], [1, 5, 2, 0, 0], [1, 4, 0, 0, 0], [1, 5, 4, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert sides.SidesCollator(0, 4)(pairs)["input_ids"].shape == (4, 8)


def test_long_and_equal_pairs_are_dropped_whole_and_counted(encoder):
    tokenizer = tokenization.load(str(encoder))
    long = {
        **PAIR,
        "chosen": [{"role": "assistant", "content": "cat " * 50}],
        "rejected": [{"role": "assistant", "content": "cat " * 51}],
    }
    equal = {**PAIR, "rejected": [{"role": "assistant", "content": " The  cat did. "}]}
    rows = Rows(kept=[long, PAIR, equal])
    found = list(sides.examples(rows, tokenizer, 40))
    assert [pair["row"] for pair in found] == [1]
    assert rows.dropped_by_encoding == {"longer than max_length 40": 1, "chosen equals rejected once encoded": 1}


@pytest.mark.parametrize("name", ["reward", "reward-encoder"])
def test_the_folder_stands_alone_and_padding_changes_nothing(made, name):
    tokenizer = AutoTokenizer.from_pretrained(made / name)
    model = AutoModelForSequenceClassification.from_pretrained(made / name).eval()
    assert model.config.num_labels == 1
    assert bool(tokenizer.chat_template) is (name == "reward")
    rows = [sides.whole(sides.encode(PAIR, tokenizer), side) for side in sides.SIDES]
    alone = [scored(made / name, row)[0] for row in rows]
    assert scored(made / name, *rows) == pytest.approx(alone, abs=1e-5)
    if name == "reward":
        pad, ids = tokenizer.pad_token_id, rows[0]["input_ids"]
        assert pad not in tokenization.stop_ids(tokenizer)
        for left, right in [(0, 5), (5, 0), (2, 3)]:
            batch = {
                "input_ids": [[pad] * left + ids + [pad] * right],
                "attention_mask": [[0] * left + [1] * len(ids) + [0] * right],
            }
            with torch.no_grad():
                found = float(model(**{key: torch.tensor(value) for key, value in batch.items()}).logits)
            assert found == pytest.approx(alone[0], abs=1e-5)


def test_padding_is_never_the_token_that_ends_an_answer(chain):
    """As in many chat models from elsewhere: the library would read the token before the end."""
    tokenizer = tokenization.load(str(chain / "sft"))
    tokenizer.pad_token = "<|im_end|>"
    model = reward_model.begin(str(chain / "sft"))
    assert reward_model.set_padding(tokenizer, model) != "<|im_end|>"
    assert tokenizer.pad_token_id not in tokenization.stop_ids(tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_it_is_recorded_and_merged(made):
    record = manifest.read(made / "reward")
    assert record["family"] == "reward"
    assert record["merge_error"] < 1e-4
    assert record["metrics"]["last_loss"] < record["metrics"]["first_loss"]
    assert (made / "reward" / "adapter" / "adapter_model.safetensors").exists()
    settings = json.loads((made / "reward" / "adapter" / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"
    assert not (made / "reward-encoder" / "adapter").exists()
    assert [family_of("LlamaForSequenceClassification", outputs) for outputs in (1, 3)] == ["reward", "classifier"]


def test_it_is_measured_against_chance_and_length(made):
    nodes = json.loads((made / "evaluate.json").read_text())["nodes"]
    for name in ("reward", "reward-encoder"):
        figures, primary = nodes[name]["figures"], nodes[name]["primary"]
        assert (primary["metric"], primary["against"]) == ("reward_accuracy", "even chances")
        assert figures["reward_accuracy"]["shorter answer"]["value"] == 1
        assert figures["reward_accuracy"]["longer answer"]["value"] == 0
        assert figures["reward_accuracy"][name]["value"] > 0.9  # the rejected side is always longer
        assert figures["margin"][name]["value"] > 0
        assert 0 <= figures["calibration_error"][name]["value"] <= 0.5


def test_the_mask_proof_shows_both_sides(made):
    from pipeline.chain import finished
    from pipeline.report import batches

    batch = batches.first(finished.read(made / "reward"))
    assert [line.name for line in batch.lines[:2]] == ["pair 1, chosen", "pair 1, rejected"]
    assert (batch.counted, batch.agrees, batch.paired) == (0, True, True)
    chosen, rejected = ("".join(token.text for token in line.tokens if "pad" not in token.text) for line in batch.lines[:2])
    assert chosen.endswith(" did.<|im_end|>")
    assert rejected == chosen.removesuffix("<|im_end|>") + " And so on.<|im_end|>"


def test_calibration_by_hand():
    even = np.log(0.75 / 0.25)  # 75% sure
    assert calibration(np.array([even, even, even, -even])).estimate().value == pytest.approx(0)
    assert calibration(np.array([even] * 4)).estimate().value == pytest.approx(0.25)
    assert calibration(np.array([-even, 20.0])).estimate().value == pytest.approx(0.375, abs=1e-6)


def test_the_curve_and_the_baselines_by_hand(made):
    """12 pairs of which it is 75% sure and gets nine right, three of which it is sure; two are too long to be read."""
    margins = [np.log(3)] * 9 + [-np.log(3)] * 3 + [9.0] * 3
    answers = [("short.", "much longer.")] * 14 + [("much longer.", "short.")] + [("short.", "long " * 99)] * 2
    tokenizer = tokenization.load(str(made / "reward"))

    def rewards(rows):
        assert len(rows) == 15
        return [margin + 1.0 for margin in margins] if "much" not in tokenizer.decode(rows[0]["input_ids"]) else [1.0] * 15

    model = SimpleNamespace(label="reward", family="reward", positions=64, tokenizer=tokenizer, rewards=rewards)
    rows = [{"prompt": PAIR["prompt"], **{side: [{"role": "assistant", "content": text}] for side, text in zip(sides.SIDES, both, strict=True)}}
            for both in answers]  # fmt: skip
    counted = Counter()
    subject = SimpleNamespace(
        compared=[model], rows=rows, skipped=counted, describe=lambda rows, _: counted.update({"kept": len(rows)})
    )
    found = {(one.metric, one.model): one.figure.estimate().value for one in EVALUATOR.measure(subject)}
    assert found["reward_accuracy", "reward"] == pytest.approx(12 / 15)
    assert found["reward_accuracy", "shorter answer"] == pytest.approx(14 / 15)
    assert found["reward_accuracy", "even chances"] == 0.5
    assert found["margin", "reward"] == pytest.approx(np.mean(margins))
    assert found["right_at_70_80", "reward"] == pytest.approx(0.75)
    assert ("right_at_90_100", "reward") not in found  # three pairs tell nothing
    assert found["calibration_error", "reward"] == pytest.approx(0, abs=1e-4)
    assert counted == {"held-out pairs longer than a model has positions": 2, "kept": 15}


def test_as_a_reward_it_reads_the_sampled_tokens_and_sees_truncation(made, encoder):
    for name in ("reward", "reward-encoder"):
        scorer = rewards.load("model", {"folder": str(made / name)})
        policy = tokenization.load(str(made / "sft"))
        prompt = tokenization.render(policy, PAIR["prompt"], answer_next=True)
        written = sides.encode(PAIR, policy)["chosen_ids"]
        whole = Completion(PAIR["prompt"], "The cat did.", tuple(written), tuple(prompt), True, {})
        cut = Completion(PAIR["prompt"], "The cat did.", tuple(written[:-1]), tuple(prompt), False, {})
        tokenizer = tokenization.load(str(made / name))
        rows = [sides.encode_answer(PAIR["prompt"], "The cat did.", ended, tokenizer) for ended in (True, False)]
        assert scorer.scores([whole, cut]) == pytest.approx(scored(made / name, *rows), abs=1e-5)
        assert scorer.scores([whole])[0] != scorer.scores([cut])[0]
    # another cutting of the same text into tokens is read as it was sampled
    letters = tuple(token for letter in "The cat did." for token in policy.encode(letter, add_special_tokens=False))
    odd = Completion(PAIR["prompt"], "The cat did.", (*letters, written[-1]), tuple(prompt), True, {})
    scorer = rewards.load("model", {"folder": str(made / "reward")})
    assert scorer.scores([odd]) == pytest.approx(scored(made / "reward", {"input_ids": [*prompt, *odd.ids]}), abs=1e-5)
    with pytest.raises(Exception, match="made a model of family causal, not reward"):
        rewards.load("model", {"folder": str(made / "sft")})


@pytest.mark.parametrize("name", ["reward", "reward-encoder"])
def test_it_is_pushed_and_the_code_on_its_card_scores(run, made, hub, tmp_path, name):
    source = shutil.copytree(made, tmp_path / "runs")
    if name == "reward":
        assert run("push", "--hub", "me/any", "--runs", source, "--node", "sft", "--force", "yes")[0] == 0
    more = ["--adapter", "yes"] if name == "reward" else []
    status, out, err = run("push", "--hub", "me/any", "--runs", source, "--node", name, "--force", "yes", *more)
    assert status == 0, err
    repo = f"me/any-{name}"
    assert f"{repo}: " in out
    assert "of 3 prompts by AutoModelForSequenceClassification" in out
    where = HfApi(endpoint=hub.url).snapshot_download(repo, cache_dir=tmp_path / "cache")
    card = (Path(where) / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    block = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(block.replace(f'"{repo}"', repr(where)), found := {})
    tokenizer = found["tokenizer"]
    if name == "reward":
        assert found["inputs"]["input_ids"][0, -1] == tokenization.end_token(tokenizer)
        assert "the adapter on its base" in out
    assert float(printed.getvalue()) == pytest.approx(
        scored(made / name, {key: value[0].tolist() for key, value in found["inputs"].items() if key != "attention_mask"})[0],
        abs=1e-5,
    )


def test_it_goes_on_to_the_same_bytes(run, made, chain, data, tmp_path, monkeypatch):
    from transformers import Trainer

    given = flags(made / "sft", data, tmp_path / "reward", "--save_steps", "2")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", Fails(Trainer.training_step, 4))
        assert run("reward", *given)[0] == 1
    status, out, err = run("reward", *given)
    assert status == 0, err
    assert "goes on from checkpoint-2" in out
    assert manifest.read(tmp_path / "reward")["outputs"] == manifest.read(made / "reward")["outputs"]


def test_an_encoder_with_an_adapter(run, encoder, data, tmp_path):
    status, _, err = run("reward", *flags(encoder, data, tmp_path / "reward"))
    assert status == 0, err
    assert manifest.read(tmp_path / "reward")["merge_error"] < 1e-4
    saved = json.loads((tmp_path / "reward" / "adapter" / "adapter_config.json").read_text())["modules_to_save"]
    assert {"classifier", "pooler"} <= set(saved)


def test_an_encoder_without_a_head_keeps_its_weights(run, encoder, data, tmp_path):
    bare = AutoModel.from_pretrained(encoder)
    bare.save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "bare")
    status, _, err = run("reward", *last([*flags(tmp_path / "bare", data, tmp_path / "reward"), "--max_steps", "1", "--learning_rate", "1e-9"]))  # fmt: skip
    assert status == 0, err
    body = reward_model.load(str(tmp_path / "reward")).base_model.state_dict()
    assert all(torch.allclose(body[name], weights, atol=1e-6) for name, weights in bare.state_dict().items())


def test_bad_input_is_told_in_one_line(run, made, encoder, data, tmp_path):
    out = tmp_path / "reward"
    for given, told in [
        (
            flags(made / "reward", data, out),
            "made a model of family reward, but reward takes causal or masked or embedder as its parent",
        ),
        (
            flags(encoder, data, out, "--chat_template", "chatml.jinja"),
            "chat_template: an encoder reads prompt and answer as two texts",
        ),
        (flags(made / "pretrain", data, out), "no chat template; set `chat_template: chatml.jinja`"),
        (flags(made / "sft", data, out, "--lora_dropout", "0.1"), "lora_dropout: disable_dropout, which is on"),
        (
            flags(made / "sft", data, out, "--max_length", "2000"),
            "max_length: 2000 does not fit the parent, which has 64 positions",
        ),
        (flags(made / "sft", data, out, "--max_length", "8"), "no row is left for training (81 longer than max_length 8)"),
    ]:
        status, _, err = run("reward", *given)
        assert (status, len(err.splitlines())) == (2, 1), err
        assert told in err
    equal = tmp_path / "pairs.jsonl"
    equal.write_text(json.dumps({"prompt": "Who?", "chosen": "The cat.", "rejected": "The cat."}) + "\n")
    status, _, err = run("reward", *flags(made / "sft", data, out, "--data", equal))
    assert (status, len(err.splitlines())) == (2, 1), err
    assert "chosen equals rejected in 1 of 1 pairs; nothing to prefer" in err
