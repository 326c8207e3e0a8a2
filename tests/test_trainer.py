"""A loss or gradient that is not finite stops a stage before the optimizer moves, and its rows are named."""

import pytest
import torch

from pipeline.chain import resume
from tests.conftest import SMALL, flags_of


def poisoned_parent(folder, chain):
    """A model that overflows at one token, whose embedding is as large as a float can be; other rows stay well."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chain / "pretrain")
    model = AutoModelForCausalLM.from_pretrained(chain / "pretrain")
    model.config.tie_word_embeddings = False
    twin = AutoModelForCausalLM.from_config(model.config)
    (token,) = tokenizer.encode("Z", add_special_tokens=False)
    twin.get_input_embeddings().weight.data[token] = torch.finfo(torch.float32).max
    twin.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_a_poisoned_batch_is_stopped_and_named(run, chain, data, tmp_path, name):
    poisoned_parent(tmp_path / "parent", chain)
    rows = {"pretrain": "text", "sft": "chats"}[name]
    lines = (data / f"{rows}.jsonl").read_text().splitlines()
    lines[30] = lines[30].replace("The ", "The Z ")
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    flags = [*SMALL[name], "--parent", tmp_path / "parent", "--output", tmp_path / "out", "--data", tmp_path / "mine.jsonl"]
    status, _, err = run(name, *flags, "--save_steps", "1", "--max_steps", "100", "--per_device_train_batch_size", "1")
    assert status == 2, err
    assert "is not finite" in err
    assert f"{tmp_path / 'mine.jsonl'}:31" in err  # packed with others, and named
    assert f"{tmp_path / 'mine.jsonl'}:" in err
    assert err.count("mine.jsonl:") < 12  # the rows of that batch and not of all
    step = int(err.split("step ")[1].split(":")[0])
    assert step > 1, "the poisoned row came first; another seed would show more"
    assert resume.latest(tmp_path / "out").name == f"checkpoint-{step - 1}"
    assert resume.fault(resume.latest(tmp_path / "out")) == ""
    for path in resume.latest(tmp_path / "out").glob("*.safetensors"):
        from safetensors.torch import load_file

        weights = load_file(path)
        assert sum(int(torch.isnan(value).sum()) for value in weights.values()) <= 32  # those that came with the parent


def test_a_gradient_that_is_not_finite_is_stopped(run, chain, data, tmp_path, monkeypatch):
    from pipeline.training.trainer import StageTrainer

    training_step = StageTrainer.training_step

    def bursts(self, model, inputs, count=None):
        loss = training_step(self, model, inputs, count)
        if self.state.global_step == 2:
            next(parameter for parameter in model.parameters() if parameter.grad is not None).grad[0] = torch.inf
        return loss

    monkeypatch.setattr(StageTrainer, "training_step", bursts)
    status, _, err = run("dpo", *flags_of("dpo", chain, data, tmp_path / "dpo"), "--save_steps", "1")
    assert status == 2
    assert "step 3: the gradient is not finite" in err
    assert err.count("pairs.jsonl:") == 2
    assert resume.latest(tmp_path / "dpo").name == "checkpoint-2"


def test_numbers_of_rows_travel_with_columns_and_with_rows_that_stay_rows():
    from pipeline.training.trainer import Traced, take_rows

    rows = [{"prompt": "a", "row": 4}, {"prompt": "b", "row": [5, 6]}]
    columns = Traced(lambda rows: {"prompt": [row["prompt"] for row in rows]})(rows)
    assert take_rows(columns) == [4, 5, 6]
    assert columns == {"prompt": ["a", "b"]}
    batch = Traced(lambda rows: rows)(rows[:1])  # as a trainer that samples reads them
    assert take_rows(batch) == [4]
    assert batch == [{"prompt": "a"}]


def test_several_columns_of_ids_are_padded_and_counted():
    from pipeline.data import batches

    rows = [
        {"chosen_input_ids": [1, 2, 3], "chosen_labels": [-100, 2, 3], "rejected_input_ids": [1, 4], "weight": 1},
        {"chosen_input_ids": [1, 2], "chosen_labels": [-100, 2], "rejected_input_ids": [1, 4], "weight": 2},
    ]
    batch = batches.pad(rows, 9)
    assert batches.prefixes(batch) == ["chosen_", "rejected_"]
    assert batch["chosen_input_ids"].tolist() == [[1, 2, 3], [1, 2, 9]]
    assert batch["chosen_labels"].tolist() == [[-100, 2, 3], [-100, 2, -100]]
    assert batch["chosen_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batches.tokens_read(batch, 9) == 9
    assert batches.prefixes([{"prompt": "a"}]) == []
