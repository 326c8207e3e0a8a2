"""The objectives on pictures: views, losses and hidden patches by hand; the stage that trains them, killed, resumed and measured."""

import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch

from pipeline import objectives
from pipeline.chain import manifest
from pipeline.data import pictures, token_tables
from pipeline.models import processors, vision
from pipeline.objectives import Text, _views, mae, simclr
from pipeline.system.errors import UserError
from tests.conftest import gone_on_after_a_kill
from tests.images import drawn, folder, looked_at, rows
from tests.objectives import write_rows

NAMES = [name for name in objectives.known() if objectives.load(name).reads == "images"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
STRAIGHT = [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]  # a view of all of it, as it is


def flags(name, tmp_path, *more):
    data, recipe = tmp_path / "scenes", tmp_path / "scenes.yaml"
    recipe.write_text(f"type: images\nheld_out: 0.5\nsources:\n  - files: {data if data.exists() else folder(data)}\n")
    small = [word for key, value in SIZES.items() for word in (f"--{key}", value)]
    common = ["--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--lr_scheduler_type", "constant"]
    where = ["--recipe", recipe, "--output", tmp_path / "out"]
    return [*small, *common, *where, "--objective", name, *more]


def examples(count=24):
    text = Text(rows(count), vision.new_processor(32), 0, "", 1, Counter(), Counter())
    return list(objectives.load("simclr").examples(text))


def test_a_view_of_all_of_a_picture_is_the_picture():
    levels = torch.rand(2, 3, 8, 8)
    assert torch.allclose(_views.view(levels, torch.tensor([STRAIGHT] * 2)), levels, atol=1e-5)


def test_a_view_is_mirrored_cut_and_coloured_by_hand():
    levels = torch.rand(1, 3, 8, 8)

    def view(**changes):
        names = ("across", "down", "wide", "high", "bright", "contrast", "saturation", "hue", "grey")
        return _views.view(
            levels, torch.tensor([[changes.get(name, usual) for name, usual in zip(names, STRAIGHT, strict=True)]])
        )

    assert torch.allclose(view(wide=-1.0), levels.flip(3), atol=1e-5)
    quarter = view(across=-0.5, down=0.5, wide=0.5, high=0.5)  # the lower left
    assert torch.allclose(quarter.mean((2, 3)), levels[:, :, 4:, :4].mean((2, 3)), atol=0.05)
    assert torch.allclose(view(bright=0.5), levels / 2, atol=1e-5)
    bright = (levels * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    assert torch.allclose(view(grey=1.0), bright.expand_as(levels), atol=1e-5)
    assert torch.allclose(view(saturation=0.0), bright.expand_as(levels), atol=1e-5)
    assert torch.allclose(view(contrast=0.0), bright.mean().expand_as(levels), atol=1e-5)
    whole_turn, half = view(hue=1.0), view(hue=0.5)
    assert torch.allclose(whole_turn, levels, atol=1e-4)
    assert not torch.allclose(half, levels, atol=0.05)


def test_a_view_is_read_at_the_points_of_affine_grid():
    numbers = np.random.default_rng(0).random((50, _views.DRAWN))
    drawn = torch.from_numpy(_views.Drawing().draw(numbers).astype(np.float32))[:, :4]
    across, down, wide, high = drawn.T
    places = torch.stack([wide, wide * 0, across, wide * 0, high, down], 1).view(-1, 2, 3)
    wanted = torch.nn.functional.affine_grid(places, [50, 3, 24, 32], align_corners=False)
    assert torch.allclose(_views._grid(drawn, 24, 32), wanted, rtol=0, atol=1e-6)


def test_views_stay_within_the_picture_and_go_as_far_as_asked():
    drawing = _views.Drawing(area=0.25, mirror=0.5, colour=0.5)
    numbers = np.random.default_rng(0).random((500, _views.DRAWN))
    found = drawing.draw(numbers)
    across, down, wide, high = found[:, :4].T
    assert (np.abs(across) + np.abs(wide) <= 1 + 1e-9).all()
    assert (np.abs(down) + high <= 1 + 1e-9).all()
    areas = np.abs(wide) * high
    assert 0.2 < areas.min() < 0.3
    assert areas.max() > 0.9
    assert 0.4 < (wide < 0).mean() < 0.6
    assert 0.15 < found[:, 8].mean() < 0.25
    plain = _views.Drawing(colour=0.0, mirror=0.0).draw(numbers)
    assert (plain[:, 4:] == [1.0, 1.0, 1.0, 0.0, 0.0]).all()
    assert (plain[:, 2] > 0).all()


def test_the_loss_of_two_views_is_that_of_the_paper():
    """Equation 1 of Chen et al. 2020, written out: every view against all others, itself left out."""
    found = torch.nn.functional.normalize(torch.randn(6, 5), dim=-1)
    wanted = []
    for one in range(6):
        other = (one + 3) % 6
        exact = [math.exp(float(found[one] @ found[k]) / 0.5) for k in range(6)]
        wanted.append(-math.log(exact[other] / sum(exact[k] for k in range(6) if k != one)))
    assert simclr.nats(found / 0.5**0.5).tolist() == pytest.approx(wanted, rel=1e-4)


def test_views_find_each_other_by_hand():
    found = torch.tensor(
        [[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]]
    )  # the second picture is nearer to a view of the first
    assert simclr.retrieval(found)["retrieval"] == ([2.0, 1.0], [2.0, 2.0])
    same = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert simclr.retrieval(same)["retrieval"] == ([2.0, 2.0], [2.0, 2.0])


@pytest.mark.parametrize("name", NAMES)
def test_choices_depend_on_seed_epoch_and_example_alone(tmp_path, name):
    objective = objectives.load(name)
    dataset = token_tables.numbered(write_rows(examples(), tmp_path / "rows.arrow"))

    def made(*places, seed=1, epoch=0):
        collator = objective.collator(vision.new_processor(32), dataset, seed)
        collator.epoch = epoch
        return dict(collator([dataset[place] for place in places]))

    first, among = made(3, 1), made(1, 5, 3)
    count = len(first["pixel_values"]) // 2
    for number in range(count):  # each view of the picture, wherever it stands
        assert torch.equal(first["pixel_values"][2 * number], among["pixel_values"][3 * number + 2])
    for key, value in first.items():
        assert torch.equal(made(3, 1)[key], value)
        assert not torch.equal(made(3, 1, epoch=1)[key], value)
        assert not torch.equal(made(3, 1, seed=2)[key], value)
    if name == "simclr":
        assert not torch.equal(first["pixel_values"][0], first["pixel_values"][2])  # two views of one picture


def test_a_model_gets_the_pixels_that_its_processor_gives(tmp_path):
    vision.new_processor(32).save_pretrained(tmp_path)
    processor = processors.load(str(tmp_path))
    image = drawn(3, side=60, squares=5)
    ours = vision.normalised(pictures.pixels(image, vision.side(processor), int(processor.resample))[None], processor)
    assert torch.allclose(ours, processor(image, return_tensors="pt")["pixel_values"], atol=1e-6)
    assert processors.identity(processor)
    assert processors.identity(processor) != processors.identity(vision.new_processor(16))


def autoencoder(**options):
    objective = objectives.load("mae", options)
    torch.manual_seed(1)
    return objective, objective.build_model(None, "vit_mae", **SIZES)


def test_a_new_autoencoder_knows_where_its_patches_are():
    """transformers 5.23 leaves the positions of encoder and decoder at zero."""
    objective, model = autoencoder()
    for made in (model, objective.fresh(model)):
        for places in (made.vit.embeddings.position_embeddings, made.decoder.decoder_pos_embed):
            assert len({tuple(row) for row in places[0].tolist()}) == 17
            assert not places.requires_grad


def test_hidden_patches_and_their_targets_are_the_models_own(tmp_path):
    objective, model = autoencoder()
    dataset = token_tables.numbered(write_rows(examples(6), tmp_path / "rows.arrow"))
    batch = objective.collator(vision.new_processor(32), dataset, 1)([dataset[number] for number in range(6)])
    with torch.no_grad():
        found = model(**batch)
    mask = mae.hidden(batch, 0.75)
    assert torch.equal(mask, found.mask)
    assert mask.sum(1).tolist() == [12.0] * 6
    assert objective.counts(batch) == {"loss": 72}
    error, weights = objective.scores(model, batch)["patch_error"]
    assert sum(error) / sum(weights) == pytest.approx(float(found.loss), rel=1e-4)
    assert float(objective.losses(model, batch)["loss"]) / 72 == pytest.approx(float(found.loss), rel=1e-4)


def test_a_page_shows_the_views_that_a_model_is_shown():
    processor, made = vision.new_processor(32), examples(5)
    batch_maker = objectives.load("simclr").collator(processor, None, 3)
    batch = batch_maker([one | {"example": number} for number, one in enumerate(made)])
    shown = batch_maker.thumbnails(batch)
    assert [len(row) for row in shown] == [2] * 5
    wanted = ((batch[vision.PIXELS] / 2 + 0.5) * 255).permute(0, 2, 3, 1).numpy()
    for row, views in enumerate(shown):
        for view, url in enumerate(views):
            assert np.abs(looked_at(url) - wanted[row + 5 * view]).max() <= 0.51


def test_a_page_shows_which_patches_are_hidden():
    objective, processor = objectives.load("mae"), vision.new_processor(32)
    batch_maker = objective.collator(processor, None, 3)
    batch = batch_maker([one | {"example": number} for number, one in enumerate(examples(3))])
    mask = mae.hidden(batch, objective.mask_share).reshape(3, 4, 4).numpy().astype(bool)
    assert mask.sum() == 3 * 12
    for (whole, read), hidden in zip((map(looked_at, row) for row in batch_maker.thumbnails(batch)), mask, strict=True):
        wide = np.kron(hidden, np.ones((8, 8), bool))
        assert np.array_equal(whole[~wide], read[~wide])
        assert set(np.unique(read[wide])) == {128}
        assert set(np.unique(whole[wide])) != {128}


def test_what_patches_that_repeat_the_nearest_one_reach_by_hand():
    patches = torch.arange(16.0).view(1, 16, 1)
    mask = torch.ones(1, 16)
    mask[0, [0, 15]] = 0  # the upper left and the lower right are shown
    found = mae.repeated(patches, mask)[0, :, 0].tolist()
    assert {found[at] for at in (0, 1, 4, 5)} == {0.0}
    assert {found[at] for at in (10, 11, 14, 15)} == {15.0}


def test_hidden_patches_do_not_reach_the_encoder(tmp_path):
    _objective, model = autoencoder()
    pixels, noise = torch.rand(1, 3, 32, 32), torch.rand(1, 16)
    mask = mae.hidden({"noise": noise}, 0.75)[0]
    hidden, seen = int(mask.argmax()), int((1 - mask).argmax())

    def states(place):
        other = pixels.clone()
        other[:, :, place // 4 * 8 : place // 4 * 8 + 8, place % 4 * 8 : place % 4 * 8 + 8] = 0
        with torch.no_grad():
            return model.eval()(pixel_values=other, noise=noise).logits

    with torch.no_grad():
        whole = model.eval()(pixel_values=pixels, noise=noise).logits
    assert torch.equal(states(hidden), whole)
    assert not torch.equal(states(seen), whole)


def test_accumulation_is_exact(tmp_path, one_step):
    from transformers import set_seed

    from pipeline.training.trainer import ObjectiveTrainer

    dataset = token_tables.numbered(write_rows(examples(), tmp_path / "rows.arrow"))
    norms = []
    for size, parts in ((8, 1), (2, 4)):
        set_seed(1)
        objective, model = autoencoder()
        processor = vision.new_processor(32)
        collator = objective.collator(processor, dataset, 1)
        norms.append(one_step(ObjectiveTrainer, objective, model, collator, dataset, processor, size, parts))
    assert norms[1] / norms[0] == pytest.approx(1, abs=0.002)


def test_contrastive_batches_are_not_cut(run, tmp_path):
    status, _, err = run("pretrain", *flags("simclr", tmp_path, "--gradient_accumulation_steps", "2"))
    assert (status, "would cut the batch, which holds the negatives" in err) == (2, True)


def test_the_encoder_of_an_autoencoder_is_a_vit(tmp_path):
    _objective, model = autoencoder()
    model.save_pretrained(tmp_path)
    vision.new_processor(32).save_pretrained(tmp_path)
    found = vision.encoder(str(tmp_path), pooler=False).eval()
    pixels = torch.rand(2, 3, 32, 32)
    model.vit.config.mask_ratio = 0.0
    with torch.no_grad():
        ours = found(pixel_values=pixels).last_hidden_state
        theirs = model.eval().vit(pixels, noise=torch.arange(16.0).repeat(2, 1)).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_resumes_to_the_same_bytes_loads_and_is_measured(run, tmp_path, name):
    """Killed in its second epoch, in which views and hidden patches are other ones than in the first."""
    import transformers

    given = flags(name, tmp_path, "--max_steps", "17", "--save_steps", "5")
    status, said, err = run("pretrain", *given)
    assert status == 0, err
    assert "pictures of 32 × 32 pixels" in said
    record = manifest.read(tmp_path / "out")
    assert record["tokens"] == sum(entry["tokens"] for entry in _log(tmp_path / "out")[-1:])
    expected = record["outputs"]
    assert gone_on_after_a_kill(run, given, tmp_path / "out") == expected
    auto = "AutoModel" if name == "simclr" else "AutoModelForPreTraining"
    _model, told = getattr(transformers, auto).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path / "out").size["height"] == 32
    (tmp_path / "runs").mkdir()
    (tmp_path / "out").rename(tmp_path / "runs" / "pretrain")
    status, said, err = run("evaluate", "--runs", tmp_path / "runs")
    assert status == 0, err
    figures = json.loads((tmp_path / "runs" / "evaluate.json").read_text())["nodes"]["pretrain"]["figures"]
    assert "untrained (baseline)" in said
    assert set(figures) == {metric.name for metric in objectives.load(name).metrics}
    status, said, err = run("report", "--runs", tmp_path / "runs")
    assert status == 0, err
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "positions in its first step: the same" in page
    assert len(re.findall(r'<img src="data:image/png;base64,[^"]+" alt="row 1, as the model is shown it">', page)) == 2
    assert len(page) < 200_000


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    """The Trainer would go on from tensors at random, and write a line in its log."""
    from transformers import TrainingArguments

    from pipeline.training.trainer import ObjectiveTrainer

    objective, model = autoencoder()
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False)
    trainer = ObjectiveTrainer(objective, model, arguments, lambda rows: rows, [], processing_class=vision.new_processor(32))
    model.save_pretrained(tmp_path / "older")  # by the names that the library writes
    with pytest.raises(UserError, match=r"checkpoint: lacks \d+ tensors of the model, such as decoder"):
        trainer._load_from_checkpoint(str(tmp_path / "older"))
    trainer.save_model(str(tmp_path / "ours"))
    trainer._load_from_checkpoint(str(tmp_path / "ours"))


def test_too_few_held_out_pictures_are_told(run, tmp_path):
    given = flags("simclr", tmp_path, "--max_steps", "2")
    (tmp_path / "scenes.yaml").write_text((tmp_path / "scenes.yaml").read_text().replace("0.5", "0.1"))
    given[given.index("--output") + 1] = tmp_path / "runs" / "pretrain"
    assert run("pretrain", *given)[0] == 0
    status, said, err = run("evaluate", "--runs", tmp_path / "runs")
    assert status == 0, err
    assert "held-out rows fill no batch of 32" in said


def _log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_goes_on_from_an_autoencoder_and_from_its_own_kind(run, tmp_path):
    assert run("pretrain", *flags("mae", tmp_path, "--max_steps", "2"))[0] == 0
    (tmp_path / "out").rename(tmp_path / "mae")
    on = flags("simclr", tmp_path, "--max_steps", "2", "--parent", tmp_path / "mae")[6:]
    status, _, err = run("pretrain", *on)
    assert status == 0, err
    (tmp_path / "out").rename(tmp_path / "simclr")
    assert run("pretrain", *flags("simclr", tmp_path, "--max_steps", "2", "--parent", tmp_path / "simclr")[6:])[0] == 0
    status, _, err = run("pretrain", *flags("mae", tmp_path, "--max_steps", "2", "--parent", tmp_path / "simclr")[6:])
    assert status == 2
    assert "masked_vision" in err


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("simclr", ["--vocab_size", "300"], "vocab_size: is not read by the objective simclr"),
        ("mae", ["--max_length", "64"], "max_length: is not read by the objective mae"),
        ("simclr", ["--objective_options", "{patch_size: 7}"], "image_size: 32 is not a multiple of patch_size 7"),
        ("mae", ["--objective_options", "{mask_share: 0.99}"], "of 16 patches leaves none to read, or hides none"),
        ("mae", ["--architecture", "vit"], "known are vit_mae"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(run, tmp_path, name, more, said):
    status, _, err = run("pretrain", *flags(name, tmp_path, *more))
    assert status == 2
    assert said in err
    assert "Traceback" not in err


def test_a_parent_of_other_patches_is_refused(run, tmp_path):
    assert run("pretrain", *flags("mae", tmp_path, "--max_steps", "2"))[0] == 0
    (tmp_path / "out").rename(tmp_path / "mae")
    on = flags("mae", tmp_path, "--parent", tmp_path / "mae", "--objective_options", "{patch_size: 16}")[6:]
    status, _, err = run("pretrain", *on)
    assert (status, "patch_size: 16, but the parent has 8" in err) == (2, True)
