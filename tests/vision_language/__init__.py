"""Models that see: the small pictures, rows, towers and command lines that their tests share."""

import base64
import io
import json
import shutil

import torch

from pipeline.chain import resume
from pipeline.data import recipe, shown
from pipeline.data.image_inputs import ImageInputs
from pipeline.models import checkpoint, processors, tokenization, vision
from tests.conftest import Fails, make_quietly, printed_by_card
from tests.forked import launched
from tests.images import Image
from tests.test_push import head

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 60, 220), "black": (10, 10, 10)}
SIDE, PATCHES = 16, 4


def png(colour, size=(20, 20), mark=0):
    """Draw a picture of one colour; `mark` makes a point that tells it from others of that colour."""
    image, held = Image.new("RGB", size, COLOURS[colour]), io.BytesIO()
    image.putpixel((mark % size[0], mark // size[0] % size[1]), (255, 255, 255))
    image.save(held, "PNG")
    return held.getvalue()


def place():
    return {"type": "image"}


def said(*given):
    return {"role": "user", "content": [one if isinstance(one, dict) else {"type": "text", "text": one} for one in given]}


def reply(text):
    return {"role": "assistant", "content": text}


def cell(data):
    return {"bytes": base64.b64encode(data).decode(), "path": ""}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tower(folder):
    """A vision transformer with random weights and its image processor, in a folder `tower`."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=SIDE, patch_size=8)).save_pretrained(folder / "tower")
    vision.new_processor(SIDE).save_pretrained(folder / "tower")
    return folder / "tower"


def speaks_of_colours(folder):
    """Make a small causal model that knows the words of which answers consist, in a folder `pretrain`, and a tower beside it."""
    texts = [{"text": f"It is {one}. Which? It is {other}, then {one}."} for one in COLOURS for other in COLOURS] * 20
    sizes = ["--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--vocab_size", "400"]
    more = ["--max_length", "64", "--max_steps", "40", "--per_device_train_batch_size", "4", "--learning_rate", "1e-2"]
    data = lines(folder / "text.jsonl", texts)
    make_quietly("pretrain", *sizes, *more, "--data", data, "--output", folder / "pretrain")
    tower(folder)


def flags(folder, picture_data, *more, output="sft", parent="pretrain"):
    tower = [] if "sft" in str(parent) else ["--vision", picture_data / "tower", "--chat_template", "chatml.jinja"]
    given = [
        "--parent",
        folder / parent,
        *tower,
        "--tower",
        "frozen",
        "--data",
        picture_data / "chats.jsonl",
        "--max_length",
        "64",
    ]
    return [*given, "--per_device_train_batch_size", "4", "--max_steps", "3", "--output", folder / output, *more]


def flags_of_dpo(folder, picture_data, *more, output="dpo"):
    given = ["--parent", folder / "sft", "--tower", "frozen", "--data", picture_data / "pairs.jsonl", "--max_length", "64"]
    return [*given, "--per_device_train_batch_size", "4", "--output", folder / output, *more]


def flags_of_kto(folder, picture_data, *more, output="kto"):
    given = ["--parent", folder / "sft", "--tower", "frozen", "--data", picture_data / "thumbs.jsonl", "--max_length", "64"]
    return [*given, "--per_device_train_batch_size", "4", "--logging_steps", "1", "--output", folder / output, *more]


def flags_of_rlhf(folder, picture_data, *more, output="rlhf"):
    given = [
        "--parent",
        folder / "sft",
        "--tower",
        "frozen",
        "--data",
        picture_data / "prompts.jsonl",
        "--max_completion_length",
        "6",
    ]
    size = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--learning_rate", "1e-3", "--logging_steps", "1"]
    return [*given, *size, "--rewards", "{regex: {pattern: '[aeo]'}}", "--output", folder / output, *more]


def weights(folder):
    return checkpoint.load(str(folder)).state_dict()


def part(folder, name):
    return {key: value for key, value in weights(folder).items() if f"model.{name}." in key}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def opened(folder):
    model = checkpoint.load(str(folder)).eval()
    tokenizer = tokenization.load(str(folder))
    return model, tokenizer, ImageInputs.for_config(model.config, processors.image_processor(str(folder)))


def encoded(row, tokenizer, image_inputs):
    return image_inputs.add_images(shown.conversation(row["messages"], tokenizer), row["images"])


def rows_of(picture_data, kind="messages"):
    name = "chats" if kind == "messages" else "pairs"
    return [
        row
        for row in recipe.from_data(str(picture_data / f"{name}.jsonl"), kind).rows(kind, "train", 1).kept
        if row.get("images")
    ]


def logged(folder):
    return json.loads((folder / "log.jsonl").read_text().partition("\n")[0])


def killed_ends_as(whole, run, monkeypatch, stage, flags, at):
    """Kill a stage at a step, start it again, and hold its weights against those of the run in `whole`, which was let alone."""
    killed = whole.with_name("killed")
    flags, step = [*flags, "--output", killed], torch.optim.lr_scheduler.LambdaLR.step
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.lr_scheduler.LambdaLR, "step", Fails(step, at))
        assert run(stage, *flags)[0] == 1
    assert resume.latest(killed)
    status, out, err = run(stage, *flags)
    assert status == 0, err
    assert "goes on from checkpoint-" in out
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()


def two_train_as_one(run, made, picture_data, folder, moves, *more):
    """Train in two processes, a row each, as in one on both: in most steps one has no picture, or neither, and a part has no gradient.

    `moves`: the part that pictures alone train.
    """
    rows = [json.loads(line) for line in (picture_data / "chats.jsonl").read_text().splitlines()][:8]
    rows += [{"messages": [{"role": "user", "content": f"{number}?"}, reply("It is red.")]} for number in range(8)]
    more = [*more, "--data", lines(folder / "mixed.jsonl", rows), "--max_steps", "6", "--optim", "sgd"]
    more += ["--learning_rate", "0.1", "--lr_scheduler_type", "constant"]
    one = flags(made, picture_data, *more, "--per_device_train_batch_size", "2", "--output", folder / "one", parent="sft")
    status, _, err = run("sft", *one)
    assert status == 0, err
    two = flags(made, picture_data, *more, "--per_device_train_batch_size", "1", "--output", folder / "two", parent="sft")
    assert launched("sft", two, folder).count("done in") == 1
    wanted, found, start = weights(folder / "one"), weights(folder / "two"), weights(made / "sft")
    assert max(float((found[key] - wanted[key]).abs().max()) for key in wanted) < 1e-5
    assert not same(part(made / "sft", moves), part(folder / "two", moves))
    assert max(float((wanted[key] - start[key]).abs().max()) for key in wanted) > 1e-3


def pushed(run, hub, made, folder):
    """Push the SFT, hold its card against what a stranger sees, and return the files on the hub."""
    shutil.copytree(made / "sft", folder / "runs" / "sft")
    flagged = ["--hub", "me/any", "--runs", folder / "runs", "--node", "sft", "--names", "{sft: me/any}", "--force", "yes"]
    status, out, err = run("push", *flagged)
    assert status == 0, err
    assert "logits and greedy answers of 3 prompts by AutoModelForImageTextToText" in out
    files = head(hub, "me/any")
    card = files["README.md"].data.decode()
    assert "pipeline_tag: image-text-to-text" in card
    assert len(printed_by_card(hub, card, folder / "cache")) > 1  # whatever so little training says, its blanks too
    return files


RED, BLUE = cell(png("red")), cell(png("blue"))
