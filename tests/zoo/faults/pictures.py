"""Pictures that a model does not see as they are."""

import base64
import io
import json
import random

from tests.zoo import Setup, correct, fault
from tests.zoo.faults.templates import CHATML
from tests.zoo.faults.weights import LACK

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 60, 220), "white": (250, 250, 250), "black": (10, 10, 10)}
SIDE, PATCH = 16, 8


def png(colour, at: int) -> str:
    """Draw a picture of a colour, with a point of its own, as base64."""
    from PIL import Image

    image, held = Image.new("RGB", (SIDE, SIDE), colour), io.BytesIO()
    image.putpixel((at % SIDE, at // SIDE % SIDE), (120, 120, 120))
    image.save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()


def shown(count: int = 90) -> list[tuple[str, str]]:
    """Return names of colours and pictures of them."""
    rng = random.Random(0)
    return [(name, png(COLOURS[name], at)) for at in range(count) for name in [rng.choice(list(COLOURS))]]


def vision_language(setup: Setup) -> None:
    """Conversations about pictures, and a vision transformer beside the parent."""
    import torch
    from transformers import ViTConfig, ViTModel

    from pipeline.models import vision

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    tower = setup.folder / "tower"
    ViTModel(ViTConfig(**sizes, image_size=SIDE, patch_size=PATCH)).save_pretrained(tower)
    vision.new_processor(SIDE).save_pretrained(tower)
    setup.options |= {"tower": "frozen", "vision": tower, "num_train_epochs": 10, "learning_rate": 1e-2}
    setup.rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What was the cow?"}]},
                {"role": "assistant", "content": f"The cow was {name}."},
            ],
            "images": [{"bytes": picture, "path": f"{at}.png"}],
            "group": str(at),
        }
        for at, (name, picture) in enumerate(shown())
    ]


def pictured(setup: Setup) -> None:
    """Pictures with captions, for CLIP."""
    setup.options |= {"objective": "clip", "objective_options": json.dumps({"image_size": SIDE, "patch_size": PATCH})}
    setup.rows = [
        {"image": {"bytes": picture, "path": f"{at}.png"}, "text": f"The {name} cow ran from {at} hens.", "group": str(at)}
        for at, (name, picture) in enumerate(shown())
    ]


def processor(setup: Setup, **changed: object) -> None:
    """Change the tower's image processor."""
    path = setup.folder / "tower" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def images(setup: Setup, change) -> None:
    """Change the pictures of each row, given its number and them."""
    for at, row in enumerate(setup.rows):
        row["images"] = change(at, row["images"])


@fault("sft", "writes no <image> where a message has a picture", plain=False, sound=vision_language)
def a_template_that_drops_pictures(setup):
    """A template was written for texts and cuts tags out of them."""
    setup.template = CHATML.replace("message['content']", "message['content'] | replace('<image>', '')")


@fault("sft", "writes no <image> where a message has a picture", plain=False, sound=vision_language)
def a_template_that_writes_pictures_twice(setup):
    """A template puts a picture's tag in front of a message that has it already."""
    setup.template = CHATML.replace("message['content']", "message['content'] | replace('<image>', '<image><image>')")


@fault("sft", "image tag without an image", plain=False, sound=vision_language)
def pictures_that_were_not_packed(setup):
    """The texts were copied to the machine that trains, and the pictures were not."""
    images(setup, lambda at, found: [])


@fault("sft", "image without an image tag|no text says where it stands", plain=False, sound=vision_language)
def no_place_for_the_picture(setup):
    """A conversion to plain messages lost the parts that stand for pictures."""
    for row in setup.rows:
        row["messages"][0]["content"] = "What was the cow?"


@fault("sft", "image file that is not there|no image|truncated", plain=False, sound=vision_language)
def pictures_that_are_cut_off(setup):
    """The disk was full while pictures were copied."""
    images(setup, lambda at, found: [found[0] | {"bytes": base64.b64encode(base64.b64decode(found[0]["bytes"])[:60]).decode()}])


@fault("sft", "have the same picture", plain=False, sound=vision_language)
def one_picture_for_all(setup):
    """A loop over rows kept the first picture it had opened."""
    first = setup.rows[0]["images"]
    images(setup, lambda at, found: first)


@fault("sft", "have the same picture|is all of one level|have the same answer", plain=False, sound=vision_language)
def pictures_that_are_black(setup):
    """Pictures of 16 bits were cast to 8, and all but the darkest levels were lost."""
    images(setup, lambda at, found: [found[0] | {"bytes": png((0, 0, 0), 0)}])


@fault("sft", "pictures make no clear difference", plain=False, sound=vision_language)
def pictures_in_another_order(setup):
    """A table of pictures was sorted by name, and that of the texts was not."""
    rng = random.Random(1)
    others = [row["images"] for row in setup.rows]
    rng.shuffle(others)
    images(setup, lambda at, found: others[at])


@fault("sft", "pictures make no clear difference", plain=False, sound=vision_language)
def answers_of_the_row_before(setup):
    """A header line was counted as a row, so each picture has the answer of the one before."""
    others = [row["messages"] for row in setup.rows]
    for at, row in enumerate(setup.rows):
        row["messages"] = others[at - 1]


@fault("sft", "pictures make no clear difference|carry nothing|hold the same number", plain=False, sound=vision_language)
def a_tower_of_zeros(setup):
    """The first layer of the tower was saved before it was filled."""
    from safetensors.torch import load_file, save_file

    path = setup.folder / "tower" / "model.safetensors"
    found = load_file(path)
    found = {name: value * 0 if "patch_embeddings" in name else value for name, value in found.items()}
    save_file(found, path, {"format": "pt"})


@fault("sft", "reads 16 by 16", plain=False, sound=vision_language)
def pictures_of_another_size(setup):
    """The image processor was taken from the larger model of a family."""
    processor(setup, size={"height": 32, "width": 32})


@fault("sft", "rescale_factor", plain=False, sound=vision_language)
def levels_that_are_divided_twice(setup):
    """Pictures were made levels of 0 to 1 by a data loader, and the factor was set so that both together fit."""
    processor(setup, rescale_factor=1 / 255**2)


@fault("sft", "do_rescale is false", plain=False, sound=vision_language)
def levels_that_are_never_divided(setup):
    """do_rescale was switched off for a data loader that did it, and that loader is not used here."""
    processor(setup, do_rescale=False)


@fault("sft", "image_mean is", plain=False, sound=vision_language)
def a_mean_of_levels_up_to_255(setup):
    """Mean and deviation were copied from a framework that counts levels from 0 to 255."""
    processor(setup, image_mean=[123.7, 116.3, 103.5], image_std=[58.4, 57.1, 57.4])


@fault("sft", "no image processor", plain=False, sound=vision_language)
def a_tower_without_a_processor(setup):
    """The weights were downloaded, and preprocessor_config.json was not."""
    (setup.folder / "tower" / "preprocessor_config.json").unlink()


@fault("sft", LACK, plain=False, sound=vision_language)
def a_tower_with_a_lost_tensor(setup):
    """A conversion script skipped the positions of the patches."""
    from safetensors.torch import load_file, save_file

    path = setup.folder / "tower" / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "position" not in name}, path, {"format": "pt"})


@fault("sft", "takes vision or masked_vision or dual_encoder as its vision", plain=False, sound=vision_language)
def a_tower_of_another_family(setup):
    """--vision names the language model."""
    setup.options["vision"] = setup.model


@fault("sft", "tower", plain=False, sound=vision_language)
def a_tower_without_a_say(setup):
    """--vision names a tower, and nothing says what becomes of it."""
    del setup.options["tower"]


@fault("sft", "the tower has 2 layers", plain=False, sound=vision_language)
def a_layer_that_is_not_there(setup):
    """The layer whose patches are read was copied from a model of 24 layers."""
    setup.options["vision_feature_layer"] = -12


@fault("sft", "more than|longer than|has more tokens|fit", plain=False, sound=vision_language)
def pictures_that_do_not_fit(setup):
    """max_length was chosen for texts alone, and a picture takes more."""
    setup.options["max_length"] = 6


@fault("pretrain", "have the same text", plain=False, sound=pictured)
def one_caption_for_all(setup):
    """A captioner failed, and its error message became every caption."""
    for row in setup.rows:
        row["text"] = "Something went wrong. Try again later."


@fault("pretrain", "empty text|no text", plain=False, sound=pictured)
def captions_that_are_empty(setup):
    """The column of captions was renamed, and the converter wrote blanks."""
    for row in setup.rows:
        row["text"] = " "


@fault("pretrain", "have the same picture", plain=False, sound=pictured)
def a_placeholder_for_all_pictures(setup):
    """A site served one picture in the place of all that could not be fetched."""
    for row in setup.rows:
        row["image"] = setup.rows[0]["image"]


@fault("pretrain", "multiple of patch_size", plain=False, sound=pictured)
def patches_that_do_not_fit(setup):
    """The size of the patches was copied from a model of larger pictures."""
    setup.options["objective_options"] = json.dumps({"image_size": SIDE, "patch_size": 7})


@fault("pretrain", "a batch's|accumulation|negatives", plain=False, sound=pictured)
def negatives_of_a_part_of_a_batch(setup):
    """Gradient accumulation was meant to make a large batch for CLIP."""
    setup.options["gradient_accumulation_steps"] = 4


@correct("sft", sound=vision_language)
def pictures_beside_texts(setup):
    """Some conversations have no picture."""
    setup.rows += [
        {
            "messages": [
                {"role": "user", "content": f"Who saw {at} hens?"},
                {"role": "assistant", "content": f"The cow saw {at}."},
            ]
        }
        for at in range(20)
    ]


@correct("sft", sound=vision_language)
def a_trained_tower(setup):
    """Every parameter is trained."""
    setup.options |= {"tower": "trained", "method": "full", "learning_rate": 3e-3}


@correct("sft", sound=vision_language)
def the_levels_of_another_tower(setup):
    """Means and deviations as ImageNet has them."""
    processor(setup, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])


@correct("pretrain", sound=pictured)
def captions_that_come_again(setup):
    """Several pictures have the same caption."""
    for at, row in enumerate(setup.rows):
        row["text"] = f"The cow ran from {at % 9} hens."
