"""The tokens of pictures: those that the library's processor makes, each place with its own picture, templates and levels."""

import base64
import io
import json
import shutil

import pytest
import torch

from pipeline.data import shown
from pipeline.data.image_inputs import ImageCollator, ImagePromptCollator
from pipeline.models import parts, processors, tokenization, vision, vision_language
from pipeline.models.logits import IGNORED
from pipeline.system.errors import UserError
from tests.images import Image
from tests.vision_language import BLUE, PATCHES, RED, encoded, opened, place, reply, rows_of, said


def test_training_reads_what_the_librarys_processor_makes(made, picture_data):
    from transformers import AutoProcessor

    _, tokenizer, image_inputs = opened(made / "sft")
    library = AutoProcessor.from_pretrained(made / "sft", backend="pil")
    row = rows_of(picture_data)[0]
    found = encoded(row, tokenizer, image_inputs)
    pictures = [Image.open(io.BytesIO(base64.b64decode(one["bytes"]))) for one in row["images"]]
    turns = [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]} if isinstance(turn["content"], str) else turn
        for turn in parts.filled(row["messages"], pictures)
    ]
    wanted = library.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    assert found["input_ids"] == wanted["input_ids"][0].tolist()
    assert found["input_ids"].count(image_inputs.image_token_id) == 2 * PATCHES
    assert torch.allclose(image_inputs.columns([found["pixels"]])["pixel_values"], wanted["pixel_values"], atol=1e-6)
    targets = [label for label in found["labels"] if label != IGNORED]
    assert tokenizer.decode(targets) == row["messages"][1]["content"] + "<|im_end|>"


def test_each_place_gets_the_patches_of_its_own_picture(made, picture_data):
    """Two pictures a row, two rows: what the language model reads in a place are the features of the picture that stands there."""
    model, tokenizer, image_inputs = opened(made / "sft")
    rows = rows_of(picture_data)[:2]
    batch = ImageCollator(image_inputs, tokenizer.pad_token_id)([encoded(row, tokenizer, image_inputs) for row in rows])
    read = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, given, named: read.append(named["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch)
        for number, row in enumerate(rows):
            alone = [image_inputs.columns([image_inputs.resized(one)])["pixel_values"] for one in row["images"]]
            features = torch.cat([model.get_image_features(one).pooler_output[0] for one in alone])
            places = batch["input_ids"][number] == image_inputs.image_token_id
            assert torch.allclose(read[0][number][places], features, atol=1e-5)


def test_a_text_that_says_image_stays_text(made):
    _, tokenizer, image_inputs = opened(made / "sft")
    told = shown.conversation([said(place(), "What is <image>?"), reply("<image> is a tag.")], tokenizer)
    assert told["input_ids"].count(image_inputs.image_token_id) == 1
    with pytest.raises(UserError, match="chat_template: writes 1 image tokens for 2 pictures"):
        image_inputs.add_images(told, [RED, BLUE])


def test_other_templates_write_parts_too(chain):
    tokenizer = tokenization.load(str(chain / "pretrain"))
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim }}<|im_end|>{% endfor %}"
    assert vision_language.add_token(tokenizer)
    assert tokenization.templated_text(tokenizer, [said(place(), "Hi", place())]) == "user: <image>Hi<image><|im_end|>"
    assert tokenization.templated_text(tokenizer, [{"role": "user", "content": " Hi "}]) == "user: Hi<|im_end|>"
    assert not vision_language.add_token(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}<|im_end|>{% endfor %}"
    with pytest.raises(UserError, match="chat_template: writes no <image>"):
        vision_language.add_token(tokenizer)


def test_pairs_show_both_sides_the_same_pictures(made, picture_data):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    _, tokenizer, image_inputs = opened(made / "sft")
    pairs = [
        image_inputs.add_images(shown.pair(row, tokenizer), row["images"]) for row in rows_of(picture_data, "preference")[:2]
    ]
    batch = ImagePromptCollator(image_inputs, DataCollatorForPreference(int(tokenizer.pad_token_id), 64), answers=2)(pairs)
    assert (batch["input_ids"] == image_inputs.image_token_id).sum(1).tolist() == [2 * PATCHES] * 4
    assert torch.equal(*batch[vision.PIXELS].chunk(2))
    assert torch.equal(batch[vision.PIXELS][:4], image_inputs.columns([pair["pixels"] for pair in pairs])["pixel_values"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rescale_factor": 1 / 255**2}, "rescale_factor is 1.5"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"image_mean": [123.7, 116.3, 103.5]}, "image_mean is"),
        ({"image_std": [58.4, 57.1, 57.4]}, "image_std is"),
    ],
)
def test_levels_that_are_not_those_of_the_tower_are_refused(picture_data, tmp_path, changed, said):
    shutil.copytree(picture_data / "tower", tmp_path / "tower")
    path = tmp_path / "tower" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UserError, match=said):
        processors.image_processor(str(tmp_path / "tower"))
    assert processors.image_processor(str(picture_data / "tower")).rescale_factor == pytest.approx(1 / 255)
