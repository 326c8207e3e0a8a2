"""CLIP: the loss and the recalls by hand, towers of parents, and the stage that trains it, killed, resumed and measured."""

import json
import math
from collections import Counter

import pytest
import torch

from pipeline import objectives
from pipeline.chain import manifest
from pipeline.data import pictures, recipe, types
from pipeline.models import processors, tokenization, vision
from pipeline.objectives import clip
from tests.conftest import gone_on_after_a_kill, printed_by_card
from tests.images import drawn, saved, scene
from tests.test_push import head

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS = {"max_position_embeddings": 24, **SIZES}


def captioned(path, count=80):
    """A folder of scenes with a table that says what each shows."""
    path.mkdir(exist_ok=True)
    lines = []
    for seed in range(count):
        image, label = scene(seed)
        (path / f"{seed}.png").write_bytes(saved(image))
        lines.append(json.dumps({"file_name": f"{seed}.png", "text": f"a {label}, number {seed}"}))
    (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return path


def flags(tmp_path, *more, options=""):
    data, recipe = tmp_path / "scenes", tmp_path / "scenes.yaml"
    recipe.write_text(f"type: image_text\nheld_out: 0.4\nsources:\n  - files: {data if data.exists() else captioned(data)}\n")
    small = [word for key, value in SIZES.items() for word in (f"--{key}", value)] + ["--max_length", "24"]
    common = ["--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--lr_scheduler_type", "constant"]
    where = ["--recipe", recipe, "--output", tmp_path / "out", "--vocab_size", "200"]
    return [*small, *common, *where, "--objective", "clip", "--objective_options", f"{{projection: 16, {options}}}", *more]


def learned():
    return tokenization.train([f"a circle, a square, number {n}" for n in range(99)], 200, 24, "wordpiece")


def opened(parents=None, **options):
    torch.manual_seed(1)
    objective = objectives.load("clip", {"projection": 16, **options})
    return objective, *objective.begin(parents or {}, learned, "bert", **TOWERS)


def batch_of(objective, processor, texts):
    rows = [{"image": pictures.held(saved(drawn(seed)), f"{seed}.png"), "text": text} for seed, text in enumerate(texts)]
    text = objectives.Text(rows, processor, 24, "", 1, Counter(), Counter())
    examples = [example | {"example": number} for number, example in enumerate(objective.examples(text))]
    return objective.held_out_collator(processor, None, 1)(examples)


def test_the_loss_is_that_of_the_library_where_all_texts_differ():
    objective, processor, model = opened()
    batch = batch_of(objective, processor, ["a circle", "a square", "number 7", "number 12"])
    with torch.no_grad():
        theirs = float(model.eval()(**batch, return_loss=True).loss)
        assert float(objective.losses(model, batch)["loss"]) / 4 == pytest.approx(theirs, rel=1e-5)
        assert sum(objective.scores(model, batch)["pair_loss"][0]) / 4 == pytest.approx(theirs, rel=1e-5)
    assert objective.counts(batch) == {"loss": 4}


def test_the_loss_by_hand_leaves_out_what_has_an_equal_text():
    logits = torch.tensor(
        [[2.0, 0.5, 1.0], [0.0, 1.0, -1.0], [1.5, 0.0, 3.0]]
    )  # texts × pictures; the first and last text are equal
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])

    def nat(own, *others):
        return -own + math.log(sum(math.exp(one) for one in (own, *others)))

    wanted = [
        (nat(2.0, 0.5) + nat(2.0, 0.0)) / 2,  # neither the last picture nor the last text is a candidate
        (nat(1.0, 0.0, -1.0) + nat(1.0, 0.5, 0.0)) / 2,
        (nat(3.0, 0.0) + nat(3.0, -1.0)) / 2,
    ]
    assert clip.nats(logits, same).tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_scale_is_at_most_a_hundred():
    objective, processor, model = opened()
    batch = batch_of(objective, processor, ["a circle", "a square"])
    losses = []
    for scale in (math.log(100.0), 9.0):
        with torch.no_grad():
            model.eval().logit_scale.fill_(scale)
            losses.append(float(objective.losses(model, batch)["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_recalls_by_hand():
    cosines = torch.tensor([[0.9, 0.1, 0.9], [0.8, 0.5, 0.7], [0.0, 0.1, 0.2]])  # texts × pictures
    found = clip.recalls(cosines, torch.eye(3, dtype=torch.bool))
    # the first text finds two pictures as near: an equal one counts as nearer
    assert found["text_to_image_at_1"][0] == [0.0, 0.0, 1.0]
    assert found["image_to_text_at_1"][0] == [1.0, 1.0, 0.0]
    assert found["text_to_image_at_5"][0] == [1.0, 1.0, 1.0]
    same = torch.eye(3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True  # of equal texts neither is a candidate of the other
    assert clip.recalls(cosines, same)["text_to_image_at_1"][0] == [1.0, 0.0, 1.0]
    assert clip.recalls(cosines, same)["image_to_text_at_1"][0] == [1.0, 1.0, 0.0]


def test_many_rows_are_ranked_among_all_of_them():
    objective, processor, model = opened()
    batch = batch_of(objective, processor, [f"number {n}" for n in range(clip._PART + 6)])
    with torch.no_grad():
        scores = objective.scores(model.eval(), batch)
        pictures_, texts = clip.embedded(model, batch)
    rows = clip._PART + 6
    assert len(scores["text_to_image_at_10"][0]) == rows
    ranks = ((texts @ pictures_.T) > (texts * pictures_).sum(1, keepdim=True) + 1e-6).sum(1)
    assert sum(scores["text_to_image_at_10"][0]) == pytest.approx(int((ranks < 10).sum()), abs=1)
    chance = objective.chance(scores)
    assert chance["text_to_image_at_10"][0][0] == 10 / rows
    assert chance["pair_loss"][0][0] == math.log(rows)


def saved_towers(tmp_path):
    """A ViT and an encoder of texts, each with what reads its rows."""
    _objective, processor, model = opened()
    model.vision_model.save_pretrained(tmp_path / "seen")
    processor.image_processor.save_pretrained(tmp_path / "seen")
    model.text_model.save_pretrained(tmp_path / "read")
    processor.tokenizer.save_pretrained(tmp_path / "read")
    return model, {"image_tower": str(tmp_path / "seen"), "text_tower": str(tmp_path / "read")}


def test_towers_begin_as_their_parents_are(tmp_path):
    theirs, parents = saved_towers(tmp_path)
    torch.manual_seed(2)
    _objective, _processor, model = opened(parents)
    for name, tower in (("vision_model", theirs.vision_model), ("text_model", theirs.text_model)):
        found = getattr(model, name).state_dict()
        assert all(torch.equal(found[key], value) for key, value in tower.state_dict().items())
        assert all(one.requires_grad for one in getattr(model, name).parameters())


def test_a_frozen_tower_learns_nothing_below_its_pooler(tmp_path):
    _, parents = saved_towers(tmp_path)
    objective, processor, model = opened(parents, freeze_images=True, freeze_texts=True)
    moves = {name for name, one in model.named_parameters() if one.requires_grad}
    assert moves == {
        "logit_scale", "visual_projection.weight", "text_projection.weight", "vision_model.pooler.dense.weight",
        "vision_model.pooler.dense.bias", "text_model.pooler.dense.weight", "text_model.pooler.dense.bias",
    }  # fmt: skip
    model.save_pretrained(tmp_path / "both")
    processor.save_pretrained(tmp_path / "both")
    again = objective.load_model(str(tmp_path / "both"))
    assert {name for name, one in again.named_parameters() if one.requires_grad} == moves


def test_the_picture_tower_of_a_dual_encoder_is_a_vit(tmp_path):
    _objective, processor, model = opened()
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    tower = vision.encoder(str(tmp_path))
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(tower(pixel_values=pixels).pooler_output, model.vision_model(pixel_values=pixels).pooler_output)
    both, alone = processors.load(str(tmp_path)), processors.image_processor(str(tmp_path))
    assert processors.of_pictures(both)
    assert processors.identity(both) == processors.identity(processor)
    assert alone.size["height"] == 32
    assert processors.tokenizer_of(both).get_vocab() == processor.tokenizer.get_vocab()
    assert processors.tokenizer_of(alone) is None


def test_a_model_gets_what_the_librarys_processor_gives(tmp_path):
    """So that whoever loads the folder asks what was trained."""
    from transformers import VisionTextDualEncoderProcessor

    objective, processor, _model = opened()
    processor.save_pretrained(tmp_path)
    theirs = VisionTextDualEncoderProcessor.from_pretrained(tmp_path)
    texts = ["a circle, number 7", "a square"]
    given = theirs(text=texts, images=[drawn(0), drawn(1)], return_tensors="pt", padding=True)
    ours = batch_of(objective, processor, texts)
    assert torch.equal(given["input_ids"], ours["input_ids"])
    assert torch.equal(given["attention_mask"], ours["attention_mask"])
    assert torch.allclose(given["pixel_values"], ours["pixel_values"], atol=1e-4)


def test_it_resumes_to_the_same_bytes_loads_and_is_measured(run, tmp_path):
    """Killed in its second epoch, in which views are other ones than in the first."""
    import transformers

    given = flags(tmp_path, "--max_steps", "17", "--save_steps", "5")
    status, said, err = run("pretrain", *given)
    assert status == 0, err
    assert "pictures of 32 × 32 pixels, texts of up to 24 tokens" in said
    expected = manifest.read(tmp_path / "out")["outputs"]
    assert manifest.read(tmp_path / "out")["family"] == "dual_encoder"
    assert gone_on_after_a_kill(run, given, tmp_path / "out") == expected
    _model, told = transformers.VisionTextDualEncoderModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "out").rename(tmp_path / "runs" / "pretrain")
    status, said, err = run("evaluate", "--runs", tmp_path / "runs")
    assert status == 0, err
    figures = json.loads((tmp_path / "runs" / "evaluate.json").read_text())["nodes"]["pretrain"]["figures"]
    assert set(figures) == {metric.name for metric in clip.CLIP.metrics}
    assert "untrained (baseline)" in said
    assert "chance (baseline)" in said
    status, said, err = run("report", "--runs", tmp_path / "runs")
    assert status == 0, err
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "Beside these texts the batch holds their pictures" in page
    assert "tokens in its first step: the same" in page
    assert 'alt="row 1, as the model is shown it"' in page
    block = json.loads((tmp_path / "runs" / "evaluate.json").read_text())["nodes"]["pretrain"]
    found, section = block["neighbours"], page.split('id="retrieval"')[1].split("<section", 1)[0]
    assert [(one["asked"], one["found"]) for one in found] == [("text", "image")] * 4 + [("image", "text")] * 4
    held_out = (
        recipe.load(str(tmp_path / "scenes.yaml"))
        .rows("image_text", "held_out", manifest.read(tmp_path / "runs" / "pretrain")["seed"])
        .kept
    )
    model, processor = vision.dual(str(tmp_path / "runs" / "pretrain")), processors.pair(str(tmp_path / "runs" / "pretrain"))
    rows = objectives.Text(list(held_out), processor, 24, "", 1, Counter(), Counter())
    with torch.no_grad():
        pictures_, texts = clip.embedded(model.eval(), clip.Pairing(processor)(list(objectives.load("clip").examples(rows))))
    for one in found:
        cosines = (texts @ pictures_.T if one["asked"] == "text" else pictures_ @ texts.T)[one["row"]]
        assert one["nearest"] == cosines.argsort(descending=True)[:5].tolist()
        assert (one["rank"], one["among"]) == (int((cosines >= cosines[one["row"]] - 1e-6).sum()), len(held_out))
        kind = types.load("image_text")
        shown = [
            held_out[row]["text"] if one["found"] == "text" else kind.thumbnails(held_out[row])[0] for row in one["nearest"]
        ]
        assert all(part in section for part in shown)
        assert f"number {one['rank']} of {one['among']}" in section
    assert section.count('class="own"') == len(found) + sum(one["row"] in one["nearest"] for one in found)
    (tmp_path / "scenes" / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "another"}\n')
    assert run("report", "--runs", tmp_path / "runs")[0] == 0
    assert (
        "is no longer what pretrain was made with" in (tmp_path / "runs" / "report.html").read_text().split('id="retrieval"')[1]
    )


def test_what_is_nearest_is_ranked_as_recalls_are():
    cosines = torch.tensor([0.9, 0.5, 0.9, 0.7, 0.1])
    same = torch.tensor([True, False, False, True, False])
    assert clip.nearest(cosines, same, 0) == [2, 0, 1, 4]  # an equal cosine is nearer, an equal text no candidate
    assert clip.nearest(cosines, torch.zeros(5, dtype=torch.bool), 3) == [0, 2, 3, 1, 4]


def test_towers_of_parents_are_recorded_and_stay(run, tmp_path):
    from safetensors.torch import load_file

    _, parents = saved_towers(tmp_path)
    given = flags(tmp_path, "--max_steps", "3", options="freeze_texts: yes")
    given += [word for role, where in parents.items() for word in (f"--{role}", where)]
    status, said, err = run("pretrain", *given)
    assert status == 0, err
    assert f"text tower from {parents['text_tower']}" in said
    before, after = load_file(tmp_path / "read" / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name, value in before.items():
        assert torch.equal(after[f"text_model.{name}"], value) == ("pooler" not in name), name
    assert {entry["role"] for entry in manifest.read(tmp_path / "out")["parents"]} == set(parents)
    (tmp_path / "out").rename(tmp_path / "clip")
    status, _, err = run("pretrain", *flags(tmp_path, "--max_steps", "2", "--parent", tmp_path / "clip")[6:])
    assert status == 0, err
    both = flags(tmp_path, "--max_steps", "2", "--parent", tmp_path / "clip", "--text_tower", parents["text_tower"])[6:]
    both[both.index("--output") + 1] = tmp_path / "other"
    status, _, err = run("pretrain", *both)
    assert (status, "text_tower: a model that goes on from a parent has its own" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ("freeze_texts: yes", [], "freeze_texts: a new tower would stay at random; give it a parent as text_tower"),
        ("patch_size: 7", [], "image_size: 32 is not a multiple of patch_size 7"),
        ("", ["--language", "de"], "language: is not read by the objective clip"),
        ("", ["--gradient_accumulation_steps", "2"], "would cut the batch, which holds the negatives"),
        (
            "",
            ["--architecture", "modernbert"],
            "no model of it can be built for this objective; known are bert, roberta, albert",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(run, tmp_path, options, more, said):
    status, _, err = run("pretrain", *flags(tmp_path, *more, options=options))
    assert status == 2
    assert said in err
    assert "Traceback" not in err


def test_a_text_tower_without_a_pooler_is_refused(run, tmp_path):
    from transformers import ModernBertConfig, ModernBertModel

    tokenizer = learned()
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, pad_token_id=0,
        bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    ModernBertModel(config).save_pretrained(tmp_path / "read")
    tokenizer.save_pretrained(tmp_path / "read")
    status, _, err = run("pretrain", *flags(tmp_path, "--max_steps", "2", "--text_tower", tmp_path / "read"))
    assert (status, "a modernbert has no pooler above its first token" in err) == (2, True)


def test_it_is_pushed_with_its_processor_and_the_code_on_its_card_runs(run, hub, tmp_path):
    assert run("pretrain", *flags(tmp_path, "--max_steps", "1"))[0] == 0
    (tmp_path / "runs").mkdir()
    (tmp_path / "out").rename(tmp_path / "runs" / "pretrain")
    status, out, err = run("push", "--hub", "me/any", "--runs", tmp_path / "runs", "--node", "pretrain",
                           "--names", "{pretrain: me/any}", "--force", "yes")  # fmt: skip
    assert status == 0, err
    assert "logits of 3 prompts by AutoModel" in out
    files = head(hub, "me/any")
    assert {"processor_config.json", "tokenizer.json"} <= set(files)
    card = files["README.md"].data.decode()
    assert "pipeline_tag: zero-shot-image-classification" in card
    assert printed_by_card(hub, card, tmp_path / "cache").startswith("tensor([[")
