"""Fusion: one trunk under several objectives, whose gradients add up; killed, resumed, loaded and measured."""

import json
from collections import Counter

import pytest
import torch

from pipeline import objectives
from pipeline.chain import manifest
from pipeline.data import token_tables
from pipeline.models import tokenization, vision
from pipeline.objectives import Text
from pipeline.system.errors import UserError
from tests.conftest import gone_on_after_a_kill
from tests.objectives import write_rows
from tests.test_image_objectives import SIZES, examples
from tests.test_image_objectives import flags as of_pictures

IMAGES = {"parts": {"mae": 2.0, "simclr": 0.5}}
TEXTS = {"parts": {"mlm": 1.0, "contrastive": 0.3}, "options": {"contrastive": {"sentences": False, "crop": 0.5}}}


def of_images():
    objective, processor = objectives.load("fusion", IMAGES), vision.new_processor(32)
    return objective, processor, objective.build_model(processor, "vit_mae", **SIZES)


def of_texts():
    objective = objectives.load("fusion", TEXTS)
    tokenizer = tokenization.train(["the cat sat on the mat", "a dog ran far away"] * 20, 100, 32, "wordpiece")
    return objective, tokenizer, objective.build_model(tokenizer, "bert", max_position_embeddings=32, **SIZES)


def batch_of(kind, objective, processor, tmp_path):
    if kind == "images":
        made = examples(8)
    else:
        said = [{"text": f"the cat sat on mat {n} and a dog ran far away"} for n in range(8)]
        made = list(objective.examples(Text(said, processor, 32, "en", 1, Counter(), Counter())))
    dataset = token_tables.numbered(write_rows(made, tmp_path / "rows.arrow"))
    return objective.collator(processor, dataset, 1)([dataset[number] for number in range(8)])


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_the_gradient_of_the_trunk_is_the_weighted_sum_of_the_parts(tmp_path, kind):
    torch.manual_seed(1)
    objective, processor, model = of_images() if kind == "images" else of_texts()
    batch = batch_of(kind, objective, processor, tmp_path)
    model.eval()
    wanted = {}
    for name, part in objective.members.items():
        own = {key.removeprefix(f"{name}_"): value for key, value in batch.items() if key.startswith(f"{name}_")}
        model.zero_grad()
        torch.manual_seed(2)
        sum(part.losses(model.parts[name], own).values()).backward()
        for key, one in model.named_parameters():
            if one.grad is not None:
                wanted[key] = wanted.get(key, 0) + objective.parts[name] * one.grad.clone()
    model.zero_grad()
    torch.manual_seed(2)
    losses = objective.losses(model, batch)
    assert losses.keys() == objective.counts(batch).keys() == objective.weights.keys()
    sum(objective.weights[key] * value for key, value in losses.items()).backward()
    moved = {key for key, one in model.named_parameters() if one.grad is not None}
    assert moved == wanted.keys()
    for key, one in model.named_parameters():
        if key in moved:
            assert torch.allclose(one.grad, wanted[key], atol=1e-4, rtol=1e-3), key


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_the_trunk_is_one_and_heads_are_each_parts_own(kind):
    objective, _processor, model = of_images() if kind == "images" else of_texts()
    for made in (model, objective.fresh(model)):
        lead, other = made.parts.values()
        theirs = {name: one for name, one in lead.base_model.named_parameters() if not name.startswith("pooler.")}
        own = dict(other.base_model.named_parameters())
        assert theirs
        assert all(own[name] is one for name, one in theirs.items())
        shared = {id(one) for one in theirs.values()}
        heads = [[id(one) for one in part.parameters() if id(one) not in shared] for part in (lead, other)]
        assert not set(heads[0]) & set(heads[1])
        alone = sum(one.numel() for one in theirs.values()) + sum(
            one.numel() for part in made.parts.values() for one in part.parameters() if id(one) not in shared
        )
        assert made.num_parameters() == alone


def test_each_part_reads_the_rows_as_it_does_alone(tmp_path):
    objective, processor, _model = of_images()
    dataset = token_tables.numbered(write_rows(examples(8), tmp_path / "rows.arrow"))
    rows = [dataset[number] for number in range(4)]
    collator = objective.collator(processor, dataset, 1)
    collator.epoch = 3
    found = collator(rows)
    for name, part in objective.members.items():
        alone = part.collator(processor, dataset, 1)
        alone.epoch = 3
        for key, value in alone(rows).items():
            assert torch.equal(found[f"{name}_{key}"], value)


def test_it_resumes_to_the_same_bytes_loads_and_is_measured(run, tmp_path):
    import transformers

    options = "{parts: {mae: 1, simclr: 1}}"
    given = of_pictures("fusion", tmp_path, "--max_steps", "17", "--save_steps", "5", "--objective_options", options)
    status, _, err = run("pretrain", *given)
    assert status == 0, err
    record = manifest.read(tmp_path / "out")
    assert record["family"] == "masked_vision"
    assert record["tokens"] == 17 * 8 * 16 * 3 - 16 * 3 * (8 * 17 - _rows_seen(tmp_path / "out"))
    assert gone_on_after_a_kill(run, given, tmp_path / "out") == record["outputs"]
    for auto, where in (("AutoModelForPreTraining", tmp_path / "out"), ("AutoModel", tmp_path / "out" / "simclr")):
        _model, told = getattr(transformers, auto).from_pretrained(where, output_loading_info=True)
        assert not told["missing_keys"]
        assert not told["unexpected_keys"]
    again = objectives.load("fusion", {"parts": {"mae": 1.0, "simclr": 1.0}}).load_model(str(tmp_path / "out"))
    pooler = transformers.AutoModel.from_pretrained(tmp_path / "out" / "simclr").pooler.dense.weight
    assert torch.equal(again.parts["simclr"].pooler.dense.weight, pooler)
    (tmp_path / "runs").mkdir()
    (tmp_path / "out").rename(tmp_path / "runs" / "pretrain")
    assert run("evaluate", "--runs", tmp_path / "runs")[0] == 0
    figures = json.loads((tmp_path / "runs" / "evaluate.json").read_text())["nodes"]["pretrain"]["figures"]
    assert set(figures) == {"patch_error", "retrieval", "view_loss"}
    assert run("report", "--runs", tmp_path / "runs")[0] == 0


def _rows_seen(folder):
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["tokens"] // 48


def test_it_goes_on_from_a_part_and_from_itself(run, tmp_path):
    assert run("pretrain", *of_pictures("mae", tmp_path, "--max_steps", "2"))[0] == 0
    (tmp_path / "out").rename(tmp_path / "mae")
    options = ["--objective_options", "{parts: {mae: 1, simclr: 1}}"]
    on = of_pictures("fusion", tmp_path, "--max_steps", "2", "--parent", tmp_path / "mae", *options)[6:]
    status, _, err = run("pretrain", *on)
    assert status == 0, err
    (tmp_path / "out").rename(tmp_path / "both")
    on = of_pictures("fusion", tmp_path, "--max_steps", "2", "--parent", tmp_path / "both", *options)[6:]
    assert run("pretrain", *on)[0] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": {"mae": 1.0}}, "name two objectives at least"),
        ({"parts": {"mae": 1.0, "mlm": 1.0}}, "read rows of type images and text, so they share no trunk"),
        ({"parts": {"mae": 1.0, "simclr": 0.0}}, "parts: simclr: expected a number above 0"),
        ({"parts": {"mlm": 1.0, "mlm_nsp": 1.0}}, "have the same figures, loss"),
        ({"parts": {"mae": 1.0, "simclr": 1.0}, "lead": "mlm"}, "lead: mlm: is none of the parts"),
        ({"parts": {"mae": 1.0, "simclr": 1.0}, "options": {"rtd": {}}}, "options: rtd: is none of the parts"),
        ({"parts": {"mae": 1.0, "simclr": 1.0}, "shared": {"mask_share": 0.5}}, "mask_share"),
        ({"parts": {"mae": 1.0, "fusion": 1.0}}, "can't be a part of itself"),
        ({"parts": {"mae": 1.0, "nothing": 1.0}}, "nothing"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options, said):
    with pytest.raises(UserError) as told:
        objectives.load("fusion", options)
    assert said in " ".join(told.value.faults)


def test_parts_of_other_sizes_share_no_trunk():
    objective = objectives.load("fusion", IMAGES | {"options": {"mae": {"patch_size": 8}, "simclr": {"patch_size": 16}}})
    with pytest.raises(UserError, match="mae and simclr share no trunk"):
        objective.build_model(vision.new_processor(32), "vit_mae", **SIZES)


def test_the_order_in_which_parts_are_named_changes_nothing():
    """The digest of a node knows no order of keys."""
    one, two = (
        objectives.load("fusion", {"parts": parts}) for parts in ({"mae": 1.0, "simclr": 1.0}, {"simclr": 1.0, "mae": 1.0})
    )
    assert list(one.members) == list(two.members) == ["mae", "simclr"]
    led = objectives.load("fusion", {"parts": {"mae": 1.0, "simclr": 1.0}, "lead": "simclr"})
    assert (list(led.members), led.family) == (["simclr", "mae"], "vision")


def test_accumulation_is_refused_where_a_part_has_negatives(run, tmp_path):
    given = of_pictures(
        "fusion", tmp_path, "--objective_options", "{parts: {mae: 1, simclr: 1}}", "--gradient_accumulation_steps", "2"
    )
    status, _, err = run("pretrain", *given)
    assert (status, "would cut the batch, which holds the negatives" in err) == (2, True)
