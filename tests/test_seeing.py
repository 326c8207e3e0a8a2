"""Models that see: pictures in conversations and pairs, their tokens, what is trained, resumed, kept and measured."""

import base64
import io
import json
import math
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from pipeline.chain import manifest, resume
from pipeline.chain.finished import read
from pipeline.data import doubts, recipe, shown, types
from pipeline.data.judge import Question
from pipeline.data.sight import PromptCollator, Sight, SightCollator
from pipeline.data.types import Malformed, recognise
from pipeline.evaluation.metrics.reply_loss import EVALUATOR, shuffled
from pipeline.evaluation.subject import StageModel
from pipeline.models import checkpoint, llava, parts, processors, tokenization, vision
from pipeline.models.logits import IGNORED
from pipeline.report import batches
from pipeline.system.errors import UserError
from pipeline.training import chat
from pipeline.training.policy import PolicyTrainer
from tests.conftest import Fails, make_quietly, mostly_slow, printed_by_card
from tests.forked import launched
from tests.images import looked_at
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


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Conversations, pairs and prompts about pictures of one colour, and a vision transformer with random weights."""
    folder = tmp_path_factory.mktemp("seen")
    chats, pairs, thumbs, prompts = [], [], [], []
    for number in range(24):
        one, other = (list(COLOURS)[at] for at in (number % 4, (number // 4 + number + 1) % 4))
        images = [cell(png(one, mark=number)), cell(png(other, mark=number))]
        turns = [said(place(), place(), "Which?"), reply(f"It is {one}, then {other}.")]
        chats.append({"group": str(number), "messages": turns, "images": images})
        sides = {"chosen": [reply(f"It is {one}.")], "rejected": [reply(f"It is {other}, no.")]}
        pairs.append({"group": str(number), "prompt": turns[:1], "images": images, **sides})
        rated = {"completion": sides["chosen"] if number % 3 else sides["rejected"], "label": bool(number % 3)}
        thumbs.append({"group": str(number), "prompt": turns[:1], "images": images, **rated})
        prompts.append({"group": str(number), "prompt": turns[:1], "images": images, "answer": f"It is {one}, then {other}."})
    chats += [{"messages": [{"role": "user", "content": f"{number}?"}, reply("It is red.")]} for number in range(3)]
    lines(folder / "chats.jsonl", chats)
    lines(folder / "pairs.jsonl", pairs)
    lines(folder / "thumbs.jsonl", thumbs)
    lines(folder / "prompts.jsonl", [*prompts, *({"prompt": f"{number}?", "answer": "It is red."} for number in range(4))])
    return tower(folder).parent


def tower(folder):
    """A vision transformer with random weights and its image processor, in a folder `tower`."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=SIDE, patch_size=8)).save_pretrained(folder / "tower")
    vision.new_processor(SIDE).save_pretrained(folder / "tower")
    return folder / "tower"


@pytest.fixture(scope="module")
def made(chain, seen, tmp_path_factory):
    """A model that sees, by LoRA beside a frozen tower, and one aligned on pairs, in the folder of their parent."""
    folder = tmp_path_factory.mktemp("seeing")
    shutil.copytree(chain / "pretrain", folder / "pretrain")
    make_quietly("sft", *flags(folder, seen))
    make_quietly("dpo", *flags_of_dpo(folder, seen, "--num_train_epochs", "1"))
    return folder


def speaks_of_colours(folder):
    """Make a small causal model that knows the words of which answers consist, in a folder `pretrain`, and a tower beside it."""
    texts = [{"text": f"It is {one}. Which? It is {other}, then {one}."} for one in COLOURS for other in COLOURS] * 20
    sizes = ["--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--vocab_size", "400"]
    more = ["--max_length", "64", "--max_steps", "40", "--per_device_train_batch_size", "4", "--learning_rate", "1e-2"]
    data = lines(folder / "text.jsonl", texts)
    make_quietly("pretrain", *sizes, *more, "--data", data, "--output", folder / "pretrain")
    tower(folder)


def flags(folder, seen, *more, output="sft", parent="pretrain"):
    tower = [] if "sft" in str(parent) else ["--vision", seen / "tower", "--chat_template", "chatml.jinja"]
    given = ["--parent", folder / parent, *tower, "--tower", "frozen", "--data", seen / "chats.jsonl", "--max_length", "64"]
    return [*given, "--per_device_train_batch_size", "4", "--max_steps", "3", "--output", folder / output, *more]


def flags_of_dpo(folder, seen, *more, output="dpo"):
    given = ["--parent", folder / "sft", "--tower", "frozen", "--data", seen / "pairs.jsonl", "--max_length", "64"]
    return [*given, "--per_device_train_batch_size", "4", "--output", folder / output, *more]


def flags_of_kto(folder, seen, *more, output="kto"):
    given = ["--parent", folder / "sft", "--tower", "frozen", "--data", seen / "thumbs.jsonl", "--max_length", "64"]
    return [*given, "--per_device_train_batch_size", "4", "--logging_steps", "1", "--output", folder / output, *more]


def flags_of_rlhf(folder, seen, *more, output="rlhf"):
    given = ["--parent", folder / "sft", "--tower", "frozen", "--data", seen / "prompts.jsonl", "--max_completion_length", "6"]
    size = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--learning_rate", "1e-3", "--logging_steps", "1"]
    return [*given, *size, "--rewards", "{regex: {pattern: '[aeo]'}}", "--output", folder / output, *more]


def weights(folder):
    return checkpoint.load(str(folder)).state_dict()


def part(folder, name):
    return {key: value for key, value in weights(folder).items() if f"model.{name}." in key}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def converted(row, kind="messages"):
    found = recognise(row, kind, "f:1").convert(row)
    return found, types.load(kind).fault(found)


RED, BLUE = cell(png("red")), cell(png("blue"))


@pytest.mark.parametrize(
    ("row", "content", "count"),
    [
        ({"messages": [said(place(), "Hi", place()), reply("Ho")], "images": [RED, BLUE]}, [place(), {"type": "text", "text": "Hi"}, place()], 2),
        ({"messages": [said("Hi", {"type": "image", "image": RED}), reply("Ho")]}, [{"type": "text", "text": "Hi"}, place()], 1),
        ({"messages": [said({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{RED['bytes']}"}}), reply("Ho")]}, [place()], 1),
        ({"conversations": [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Ho"}], "image": RED}, [place(), {"type": "text", "text": "\nHi"}], 1),
        ({"prompt": "Hi <image>", "completion": "Ho", "image": png("red")}, [{"type": "text", "text": "Hi "}, place()], 1),
        ({"image": RED, "caption": "Ho"}, [place()], 1),
    ],
)  # fmt: skip
def test_pictures_stand_in_conversations_as_data_sets_write_them(row, content, count):
    found, fault = converted(row)
    assert fault is None
    assert found["messages"] == [{"role": "user", "content": content}, reply("Ho")]
    assert [set(one) for one in found["images"]] == [{"bytes", "path", "hash"}] * count
    assert converted(found) == (found, None)  # what was kept is read again


def test_the_order_of_pictures_is_that_of_their_places():
    """A picture in a part and those of the column, in one conversation: each lies where its place stands."""
    inline = {"type": "image", "image": {"bytes": png("green")}}
    turns = [said(place()), reply("A"), said(inline, "and", place()), reply("B")]
    found, fault = converted({"messages": turns, "images": [{"bytes": png("red")}, {"bytes": png("blue")}]})
    assert fault is None
    wanted = [base64.b64encode(png(colour)).decode() for colour in ("red", "green", "blue")]
    assert [one["bytes"] for one in found["images"]] == wanted
    filled = parts.filled(found["messages"], found["images"])
    assert [one["bytes"] for one in parts.pictures(filled[2:])] == wanted[1:]
    assert parts.bare(filled) == found["messages"]
    assert parts.blind(filled)[2]["content"] == "and"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": [said(place(), place(), "Hi"), reply("Ho")], "images": [RED]}, "image tag without an image"),
        ({"messages": [said(place(), "Hi"), reply("Ho")]}, "image tag without an image"),
        ({"conversations": [{"from": "human", "value": "<image> Hi"}, {"from": "gpt", "value": "Ho"}], "image": None}, "image tag without an image"),
        ({"messages": [said(place(), "Hi"), reply("Ho")], "images": [RED, BLUE]}, "image without an image tag"),
        ({"messages": [said(place(), "Hi"), reply("Ho")], "images": [{"bytes": png("red", (1, 1))}]}, "image of a single pixel"),
        ({"messages": [said(place(), "Hi"), reply("Ho")], "images": [{"bytes": png("red")[:-40]}]}, "broken or truncated image"),
        ({"messages": [said("Hi"), {"role": "assistant", "content": [place(), {"type": "text", "text": "Ho"}]}], "images": [RED]}, "image in an answer"),
        ({"image": RED, "caption": " "}, "no assistant text"),
    ],
)  # fmt: skip
def test_what_can_not_be_shown_is_a_counted_drop(row, fault):
    assert converted(row)[1] == fault


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": [said("Hi"), reply("Ho")], "images": [RED]}, "images is what the text is about, but no text says where it stands"),
        ({"messages": [said({"type": "image_url", "image_url": {"url": "http://a.b/c.png"}}), reply("Ho")]}, "image: http://a.b/c.png can't be read here"),
        ({"messages": [said({"type": "video", "video": "a.mp4"}), reply("Ho")]}, "a part of type video; text alone is read"),
    ],
)  # fmt: skip
def test_what_is_the_users_fault_is_refused(row, fault):
    with pytest.raises(Malformed, match=fault):
        converted(row)


def test_texts_are_read_as_before():
    row = {"messages": [{"role": "user", "content": "What is <image>?"}, reply("Ho")]}
    assert converted(row) == (row, None)
    assert converted({**row, "images": []})[1] == "image tag without an image"
    plain = {"messages": [{"role": "user", "content": "Hi"}, reply("Ho")]}
    assert converted({**plain, "images": []}) == (plain, None)


def test_pictures_lie_beside_their_table_and_hold_rows_together(tmp_path):
    """A question about a picture is held out with all others about it; what looks the same is not trained on."""
    for number, colour in enumerate(COLOURS):
        (tmp_path / f"{number}.png").write_bytes(png(colour))
    asked = [f"{word}?" for word in ("Which", "What", "Is it", "Who", "How")]
    rows = [
        {"image": f"{number}.png", "conversations": [{"from": "human", "value": f"<image>{one}"}, {"from": "gpt", "value": "Ho"}]}
        for number in range(4) for one in asked
    ]  # fmt: skip
    lines(tmp_path / "rows.jsonl", [*rows, rows[0] | {"image": "gone.png"}])
    own = tmp_path / "own.yaml"
    own.write_text(f"type: messages\nheld_out: 0.4\nsources:\n  - files: {tmp_path}/rows.jsonl\n")
    found = [recipe.load(str(own)).rows("messages", split, 1) for split in ("train", "held_out")]
    sides = [{row["images"][0]["hash"] for row in one.kept} for one in found]
    assert not sides[0] & sides[1]
    assert [len(one.kept) for one in found] == [5 * len(side) for side in sides]
    assert all(sides)
    assert found[0].dropped["image file that is not there"] == 1
    with pytest.raises(UserError, match="lies outside of"):
        recipe.from_data(str(lines(tmp_path / "out.jsonl", [rows[0] | {"image": "../a.png"}])), "messages").rows(
            "messages", "train", 1
        )


def test_pairs_about_other_pictures_do_not_contradict_each_other(seen):
    rows = recipe.from_data(str(seen / "pairs.jsonl"), "preference").rows("preference", "train", 1).kept
    other = rows[0] | {"chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    kind = types.load("preference")
    assert kind.doubts([rows[0], other])[0].rows == 2
    assert kind.doubts([rows[0], other | {"images": rows[1]["images"]}])[0].rows == 0


def opened(folder):
    model = checkpoint.load(str(folder)).eval()
    tokenizer = tokenization.load(str(folder))
    return model, tokenizer, Sight.of(model.config, processors.image_processor(str(folder)))


def encoded(row, tokenizer, eyes):
    return eyes.seen(shown.conversation(row["messages"], tokenizer), row["images"])


def rows_of(seen, kind="messages"):
    name = "chats" if kind == "messages" else "pairs"
    return [row for row in recipe.from_data(str(seen / f"{name}.jsonl"), kind).rows(kind, "train", 1).kept if row.get("images")]


def test_training_reads_what_the_librarys_processor_makes(made, seen):
    from transformers import AutoProcessor

    _, tokenizer, eyes = opened(made / "sft")
    library = AutoProcessor.from_pretrained(made / "sft", backend="pil")
    row = rows_of(seen)[0]
    found = encoded(row, tokenizer, eyes)
    pictures = [Image.open(io.BytesIO(base64.b64decode(one["bytes"]))) for one in row["images"]]
    turns = [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]} if isinstance(turn["content"], str) else turn
        for turn in parts.filled(row["messages"], pictures)
    ]
    wanted = library.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    assert found["input_ids"] == wanted["input_ids"][0].tolist()
    assert found["input_ids"].count(eyes.token) == 2 * PATCHES
    assert torch.allclose(eyes.columns([found["pixels"]])["pixel_values"], wanted["pixel_values"], atol=1e-6)
    targets = [label for label in found["labels"] if label != IGNORED]
    assert tokenizer.decode(targets) == row["messages"][1]["content"] + "<|im_end|>"


def test_each_place_gets_the_patches_of_its_own_picture(made, seen):
    """Two pictures a row, two rows: what the language model reads in a place are the features of the picture that stands there."""
    model, tokenizer, eyes = opened(made / "sft")
    rows = rows_of(seen)[:2]
    batch = SightCollator(eyes, tokenizer.pad_token_id)([encoded(row, tokenizer, eyes) for row in rows])
    read = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, given, named: read.append(named["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch)
        for number, row in enumerate(rows):
            alone = [eyes.columns([eyes.look(one)])["pixel_values"] for one in row["images"]]
            features = torch.cat([model.get_image_features(one).pooler_output[0] for one in alone])
            places = batch["input_ids"][number] == eyes.token
            assert torch.allclose(read[0][number][places], features, atol=1e-5)


def test_a_text_that_says_image_stays_text(made):
    _, tokenizer, eyes = opened(made / "sft")
    told = shown.conversation([said(place(), "What is <image>?"), reply("<image> is a tag.")], tokenizer)
    assert told["input_ids"].count(eyes.token) == 1
    with pytest.raises(UserError, match="chat_template: writes 1 image tokens for 2 pictures"):
        eyes.seen(told, [RED, BLUE])


def test_other_templates_write_parts_too(chain):
    tokenizer = tokenization.load(str(chain / "pretrain"))
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim }}<|im_end|>{% endfor %}"
    assert llava.add_token(tokenizer)
    assert tokenization.templated_text(tokenizer, [said(place(), "Hi", place())]) == "user: <image>Hi<image><|im_end|>"
    assert tokenization.templated_text(tokenizer, [{"role": "user", "content": " Hi "}]) == "user: Hi<|im_end|>"
    assert not llava.add_token(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}<|im_end|>{% endfor %}"
    with pytest.raises(UserError, match="chat_template: writes no <image>"):
        llava.add_token(tokenizer)


def test_a_row_with_a_picture_is_dropped_and_never_cut(run, made, seen, tmp_path):
    _, tokenizer, eyes = opened(made / "sft")
    shortest = min(len(encoded(row, tokenizer, eyes)["input_ids"]) for row in rows_of(seen))
    status, _, err = run("sft", *flags(made, seen, "--max_length", str(shortest - 1), "--output", tmp_path / "short"))
    assert status == 0, err
    counted = manifest.read(tmp_path / "short")["recipe"]
    assert counted["dropped"] == {f"longer than max_length {shortest - 1}": len(rows_of(seen))}
    assert counted["kept"] in (2, 3)  # texts


def test_lora_trains_the_projector_and_leaves_the_tower(made, seen):
    before, after = vision.encoder(str(seen / "tower")).state_dict(), part(made / "sft", "vision_tower")
    assert all(torch.equal(value, after[f"model.vision_tower.{key}"]) for key, value in before.items() if "pooler" not in key)
    adapter = json.loads((made / "sft" / "adapter" / "adapter_config.json").read_text())
    assert adapter["modules_to_save"] == ["multi_modal_projector"]
    assert all("vision_tower" not in name and "projector" not in name for name in adapter["target_modules"])
    record = manifest.read(made / "sft")
    assert record["family"] == "vision_language"
    assert [entry["role"] for entry in record["parents"]] == ["parent", "vision"]


@pytest.mark.parametrize(
    ("more", "moved"),
    [
        (["--method", "projector"], {"multi_modal_projector"}),
        (["--method", "full"], {"multi_modal_projector", "language_model"}),
        (["--tower", "trained"], {"multi_modal_projector", "language_model", "vision_tower"}),
        (["--method", "full", "--tower", "trained"], {"multi_modal_projector", "language_model", "vision_tower"}),
    ],
)
def test_what_is_trained_is_configuration(run, made, seen, tmp_path, more, moved):
    status, _, err = run("sft", *flags(made, seen, *more, "--output", tmp_path / "next", parent="sft"))
    assert status == 0, err
    names = ("multi_modal_projector", "language_model", "vision_tower")
    assert {name for name in names if not same(part(made / "sft", name), part(tmp_path / "next", name))} == moved


@pytest.mark.parametrize("parent", mostly_slow(["pretrain", "sft"], "pretrain"))
def test_a_control_has_a_tower_with_random_weights(run, made, seen, tmp_path, parent):
    flagged = flags(made, seen, "--init", "random_tower", "--output", tmp_path / "control", parent=parent)
    assert run("sft", *flagged)[0] == 0
    assert not same(part(made / "sft", "vision_tower"), part(tmp_path / "control", "vision_tower"))


@pytest.mark.parametrize("method", mostly_slow(["lora", "projector"], "lora"))
def test_a_killed_stage_ends_with_the_same_weights(run, made, seen, tmp_path, monkeypatch, method):
    more = ["--method", method, "--save_steps", "1", "--max_steps", "3"]
    assert run("sft", *flags(made, seen, *more, "--output", tmp_path / "whole"))[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.lr_scheduler.LambdaLR, "step", Fails(torch.optim.lr_scheduler.LambdaLR.step, 4))
        assert run("sft", *flags(made, seen, *more, "--output", tmp_path / "killed"))[0] == 1
    assert resume.latest(tmp_path / "killed")
    status, out, _ = run("sft", *flags(made, seen, *more, "--output", tmp_path / "killed"))
    assert status == 0
    assert "goes on from checkpoint-" in out
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (tmp_path / "killed" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", mostly_slow(["lora", "full"], "full"))
def test_a_batch_without_pictures_trains_in_two_processes_as_in_one(run, made, seen, tmp_path, method):
    """A row a process: in most steps one process has no picture, or neither has, and the projector has no gradient there."""
    rows = [json.loads(line) for line in (seen / "chats.jsonl").read_text().splitlines()][:8]
    rows += [{"messages": [{"role": "user", "content": f"{number}?"}, reply("It is red.")]} for number in range(8)]
    more = ["--data", lines(tmp_path / "mixed.jsonl", rows), "--method", method, "--max_steps", "6", "--optim", "sgd"]
    more += ["--learning_rate", "0.1", "--lr_scheduler_type", "constant"]
    one = flags(made, seen, *more, "--per_device_train_batch_size", "2", "--output", tmp_path / "one", parent="sft")
    status, _, err = run("sft", *one)
    assert status == 0, err
    two = flags(made, seen, *more, "--per_device_train_batch_size", "1", "--output", tmp_path / "two", parent="sft")
    assert launched("sft", two, tmp_path).count("done in") == 1
    wanted, found, start = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(made / "sft")
    assert max(float((found[key] - wanted[key]).abs().max()) for key in wanted) < 1e-5
    assert not same(part(made / "sft", "multi_modal_projector"), part(tmp_path / "two", "multi_modal_projector"))
    assert max(float((wanted[key] - start[key]).abs().max()) for key in wanted) > 1e-3


def logged(folder):
    return json.loads((folder / "log.jsonl").read_text().partition("\n")[0])


def test_the_first_loss_of_pairs_is_that_of_a_coin_and_the_kept_reference_is_the_parent(run, made, seen, tmp_path):
    assert logged(made / "dpo")["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert "reference" in manifest.read(made / "dpo")
    more = ["--num_train_epochs", "1", "--precompute_ref_log_probs", "false", "--output", tmp_path / "asked"]
    assert run("dpo", *flags_of_dpo(made, seen, *more))[0] == 0
    kept, asked = weights(made / "dpo"), weights(tmp_path / "asked")
    assert all(torch.allclose(kept[key], asked[key], atol=2e-4) for key in kept)


@pytest.mark.slow
def test_the_kept_reference_is_of_its_own_pictures(run, made, seen, tmp_path):
    """The same words about other pictures: what was kept of the first is not read again."""
    rows = [json.loads(line) for line in (seen / "pairs.jsonl").read_text().splitlines()]
    changed = [row | {"images": row["images"][::-1]} for row in rows]
    first, again = ((manifest.read(made / "dpo") or {})["reference"], [])
    more = ["--num_train_epochs", "1", "--data", lines(tmp_path / "other.jsonl", changed), "--output", made / "dpo-other"]
    assert run("dpo", *flags_of_dpo(made, seen, *more))[0] == 0
    again = (manifest.read(made / "dpo-other") or {})["reference"]
    assert again["digest"] != first["digest"]
    assert not again["reused"]


def test_pairs_show_both_sides_the_same_pictures(made, seen):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    _, tokenizer, eyes = opened(made / "sft")
    pairs = [eyes.seen(shown.pair(row, tokenizer), row["images"]) for row in rows_of(seen, "preference")[:2]]
    batch = PromptCollator(eyes, DataCollatorForPreference(int(tokenizer.pad_token_id), 64), answers=2)(pairs)
    assert (batch["input_ids"] == eyes.token).sum(1).tolist() == [2 * PATCHES] * 4
    assert torch.equal(*batch[vision.PIXELS].chunk(2))
    assert torch.equal(batch[vision.PIXELS][:4], eyes.columns([pair["pixels"] for pair in pairs])["pixel_values"])


def test_rated_answers_begin_at_even_and_are_kept_and_killed_with_their_pictures(run, made, seen, tmp_path, monkeypatch):
    """Before a step the parent says of an answer what the model says, whether kept or asked; a kill changes nothing."""
    more = ["--num_train_epochs", "1", "--save_steps", "1"]
    status, _, err = run("kto", *flags_of_kto(made, seen, *more, "--output", tmp_path / "whole"))
    assert status == 0, err
    assert manifest.read(tmp_path / "whole")["family"] == "vision_language"
    asks = [*more, "--precompute_ref_log_probs", "false", "--output", tmp_path / "asked"]
    assert run("kto", *flags_of_kto(made, seen, *asks))[0] == 0
    for folder in ("whole", "asked"):
        first = logged(tmp_path / folder)
        apart = [first["kl"], *(value for key, value in first.items() if key.startswith("rewards/"))]
        assert len(apart) > 1
        assert apart == pytest.approx([0] * len(apart), abs=1e-4)
    kept, asked = weights(tmp_path / "whole"), weights(tmp_path / "asked")
    assert all(torch.allclose(kept[key], asked[key], atol=2e-4) for key in kept)
    assert same(part(made / "sft", "vision_tower"), part(tmp_path / "whole", "vision_tower"))
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.lr_scheduler.LambdaLR, "step", Fails(torch.optim.lr_scheduler.LambdaLR.step, 5))
        assert run("kto", *flags_of_kto(made, seen, *more, "--output", tmp_path / "killed"))[0] == 1
    status, out, err = run("kto", *flags_of_kto(made, seen, *more, "--output", tmp_path / "killed"))
    assert status == 0, err
    assert "goes on from checkpoint-" in out
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (tmp_path / "killed" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "steps"), [("kto", 1), ("apo_zero_unpaired", 3)])
def test_rated_answers_about_pictures_move_two_processes_as_one(run, made, seen, tmp_path, loss, steps):
    """At the parent the KL is 0, whichever rows it is estimated from; a loss without it is a mean over rows in each step."""
    more = ["--method", "full", "--loss_type", loss, "--max_steps", steps, "--optim", "sgd", "--learning_rate", "0.1"]
    more += ["--lr_scheduler_type", "constant", "--max_grad_norm", "0"]
    one, two = (flags_of_kto(made, seen, *more, "--output", tmp_path / name) for name in ("one", "two"))
    status, _, err = run("kto", *one)
    assert status == 0, err
    assert launched("kto", [*two, "--per_device_train_batch_size", "2"], tmp_path).count("done in") == 1
    wanted, found, start = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(made / "sft")
    assert max(float((found[key] - wanted[key]).abs().max()) for key in wanted) < 1e-5
    assert max(float((wanted[key] - start[key]).abs().max()) for key in wanted) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_two_processes_sample_answers_with_the_pictures_of_their_own_prompts(made, seen, tmp_path, algorithm):
    """Each process splits what it sampled into batches: at the parent an answer's KL is 0 only with the pictures that it was sampled with."""
    more = ["--algorithm", algorithm, "--method", "full", "--steps_per_generation", "2", "--gradient_accumulation_steps", "2"]
    given = flags_of_rlhf(made, seen, *more, "--max_steps", "3", "--output", tmp_path / "two")
    assert launched("rlhf", given, tmp_path).count("done in") == 1
    record = manifest.read(tmp_path / "two")
    assert record["rollouts"]["completions"] == 3 * 2 * 2 * 8
    assert logged(tmp_path / "two")["kl_per_answer"] == pytest.approx(0, abs=1e-4)
    assert same(part(made / "sft", "vision_tower"), part(tmp_path / "two", "vision_tower"))
    assert not same(part(made / "sft", "multi_modal_projector"), part(tmp_path / "two", "multi_modal_projector"))


@pytest.mark.parametrize(
    "more", [("--algorithm", "rloo"), ("--algorithm", "grpo", "--steps_per_generation", "2", "--method", "full")]
)
def test_rewards_killed_end_with_the_same_weights_and_leave_the_tower(run, made, seen, tmp_path, monkeypatch, more):
    more = [*more, "--save_steps", "1", "--max_steps", "4"]
    status, _, err = run("rlhf", *flags_of_rlhf(made, seen, *more, "--output", tmp_path / "whole"))
    assert status == 0, err
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.lr_scheduler.LambdaLR, "step", Fails(torch.optim.lr_scheduler.LambdaLR.step, 6))
        assert run("rlhf", *flags_of_rlhf(made, seen, *more, "--output", tmp_path / "killed"))[0] == 1
    assert resume.latest(tmp_path / "killed")
    status, out, _ = run("rlhf", *flags_of_rlhf(made, seen, *more, "--output", tmp_path / "killed"))
    assert status == 0
    assert "goes on from checkpoint-" in out
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (tmp_path / "killed" / "model.safetensors").read_bytes()
    assert logged(tmp_path / "whole")["kl_per_answer"] == pytest.approx(0, abs=1e-4)  # the reference is shown the pictures, too
    assert same(part(made / "sft", "vision_tower"), part(tmp_path / "whole", "vision_tower"))
    assert not same(part(made / "sft", "language_model"), part(tmp_path / "whole", "language_model"))
    record = manifest.read(tmp_path / "whole")
    assert record["family"] == "vision_language"
    assert record["rollouts"]["completions"] == 4 * 8


def test_answers_are_learned_from_with_the_pictures_that_they_were_sampled_with(run, made, seen, tmp_path, monkeypatch):
    """trl shuffles and splits what it sampled: before a step all log-probabilities are those of sampling, also of texts alone."""
    apart, counts = [], []

    def compare(self, model, inputs, *more, **named):
        if not self.state.global_step:
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            counts.extend(inputs["num_images"])
            for pixels in (inputs["pixel_values"], inputs["pixel_values"].roll(2, 0)):
                shown_ = {"pixel_values": pixels, "num_images": inputs["num_images"]}
                with torch.no_grad():
                    found = self._get_per_token_logps_and_entropies(
                        model, ids, mask, inputs["completion_ids"].shape[1], **shown_
                    )
                nats = (found[0] * inputs["completion_mask"]).sum(1)
                apart.append(float((nats - inputs["old_logps"]).abs().max()))
        return super(PolicyTrainer, self).compute_loss(model, inputs, *more, **named)

    monkeypatch.setattr(PolicyTrainer, "compute_loss", compare, raising=False)
    sizes = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "10", "--max_steps", "1"]
    status, _, err = run("rlhf", *flags_of_rlhf(made, seen, *sizes, "--output", tmp_path / "out"))
    assert status == 0, err
    assert batches.first(read(tmp_path / "out")).agrees  # the report reads the first step as it was
    assert set(counts) == {0, 2}
    assert max(apart[::2]) < 1e-4
    assert max(apart[1::2]) > 1e-2


@pytest.mark.slow
def test_rewards_raise_the_share_of_right_answers_about_unseen_pictures(run, tmp_path):
    """A parent that was stopped while it learned the colours goes on learning them from rewards alone."""
    names = list(COLOURS)

    def rows(first, count, *columns):
        for number in range(first, first + count):
            colour = names[number % 4]
            row = {"group": str(number), "prompt": [said(place(), "Which?")], "images": [cell(png(colour, mark=number))]}
            answer = f"It is {colour}."
            yield row | {"completion": [reply(answer)]} if "completion" in columns else row | {"answer": answer}

    speaks_of_colours(tmp_path)
    chats = lines(tmp_path / "chats.jsonl", list(rows(0, 160, "completion")))
    more = ["--method", "full", "--per_device_train_batch_size", "8", "--learning_rate", "1e-2", "--max_steps", "45"]
    assert run("sft", *flags(tmp_path, tmp_path, *more, "--data", chats))[0] == 0
    prompts = lines(tmp_path / "prompts.jsonl", list(rows(160, 160)))
    more = [
        "--method",
        "full",
        "--learning_rate",
        "3e-3",
        "--lr_scheduler_type",
        "constant",
        "--max_steps",
        "60",
        "--beta",
        "0",
    ]
    more += ["--per_device_train_batch_size", "64", "--num_generations", "8", "--max_completion_length", "10"]
    given = flags_of_rlhf(tmp_path, tmp_path, *more, "--data", prompts, "--rewards", "{exact_match: {of: whole}}")
    status, _, err = run("rlhf", *given)
    assert status == 0, err
    unseen = list(rows(320, 80))
    turns = [parts.filled(row["prompt"], row["images"]) for row in unseen]

    def right(name):
        found = StageModel(str(tmp_path / name), name).replies(turns, 10, seed=1)  # sampled, as what is rewarded
        return sum(text == row["answer"] for text, row in zip(found, unseen, strict=True)) / len(unseen)

    parent, node = right("sft"), right("rlhf")
    assert node > parent + 0.1, (parent, node)


def test_the_token_of_a_picture_is_never_sampled(run, made, seen, tmp_path, monkeypatch):
    """A parent that would say nothing else."""
    opened_ = chat.open_parent

    def tempted(run_):
        tokenizer, model = opened_(run_)
        head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
        head.weight = model.lm_head.weight
        head.bias.data.zero_()[model.config.image_token_id] = 50.0
        model.lm_head = head
        return chat.Opened(tokenizer, model)

    sampled = []
    rewarded = PolicyTrainer._calculate_rewards
    monkeypatch.setattr(chat, "open_parent", tempted)
    monkeypatch.setattr(PolicyTrainer, "_calculate_rewards", lambda *given: sampled.extend(given[4]) or rewarded(*given))
    token = parts.token_of(tokenization.load(str(made / "sft")))
    run("rlhf", *flags_of_rlhf(made, seen, "--max_steps", "1", "--output", tmp_path / "out"))
    assert len(sampled) == 8
    assert not any(token in ids for ids in sampled)


def test_rated_answers_and_rewards_are_measured_with_pictures_beside_the_parent(run, made, seen, tmp_path):
    runs = tmp_path / "runs"
    for name in ("pretrain", "sft"):
        shutil.copytree(made / name, runs / name)
    for name, kind, given in (("kto", "feedback", flags_of_kto), ("rlhf", "prompts", flags_of_rlhf)):
        words = list(map(str, given(runs, seen, "--max_steps", "1")))
        at = words.index("--data")
        recipe_ = tmp_path / f"{kind}.yaml"
        recipe_.write_text(f"type: {kind}\nheld_out: 0.5\nsources:\n  - files: {words[at + 1]}\n")
        status, _, err = run(name, *words[:at], "--recipe", recipe_, *words[at + 2 :])
        assert status == 0, err
    status, _, err = run("evaluate", "--runs", runs, "--resamples", "50", "--max_new_tokens", "4")
    assert status == 0, err
    nodes = json.loads((runs / "evaluate.json").read_text())["nodes"]
    wanted = {"kto": ("auc", "loss", "bits_per_byte"), "rlhf": ("sampled_reward", "ended")}
    for name, metrics in wanted.items():
        for metric in metrics:
            assert {name, "sft"} <= nodes[name]["figures"][metric].keys()
        assert "kl_to_parent" in nodes[name]["figures"]


def test_a_finished_model_is_asked_with_its_pictures(made):
    """Greedy answers are those of the library's own processor, in whatever batch."""
    from transformers import AutoProcessor

    node, library = StageModel(str(made / "sft"), "sft"), AutoProcessor.from_pretrained(made / "sft", backend="pil")
    questions = [Question("Which?", "", images=(png("red"),)), Question("Which of them is it, then?", "", images=(png("blue"), png("green")))]  # fmt: skip
    found = node.replies([question.turns for question in questions], 6)
    for question, text in zip(questions, found, strict=True):
        shown_ = [{"type": "image", "image": Image.open(io.BytesIO(data))} for data in question.images]
        turns = [{"role": "user", "content": [*shown_, {"type": "text", "text": question.prompt}]}]
        how = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        given = library.apply_chat_template(turns, **how)
        written = node.model.generate(**given, max_new_tokens=6)[0, given["input_ids"].shape[1] :]
        assert library.tokenizer.decode(written, skip_special_tokens=True).strip() == text
    blind = StageModel(str(made / "pretrain"), "pretrain", node.tokenizer.chat_template)
    assert "pixels" not in blind.prompt(questions[0].turns)


@pytest.mark.parametrize(
    "url",
    [f"data:image/png;base64,{RED['bytes']}", "http://a.b/c.png", "data:image/png;base64,!", "data:image/png;base64,QUJD"],
)
def test_the_server_reads_pictures_and_fetches_none(made, chain, url):
    pytest.importorskip("fastapi")
    from pipeline.commands._serve.answers import Model
    from pipeline.commands._serve.asked import AskedChat, Refused

    turns = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which?"}]}
    ]
    asked = AskedChat.model_validate({"model": "sft", "messages": turns})
    if len(url) > 60:
        ids, beside = Model("sft", str(made / "sft")).prompt(asked)
        node = StageModel(str(made / "sft"), "sft")
        assert ids == node.prompt(Question("Which?", "", images=(png("red"),)).turns)["input_ids"]
        assert beside[vision.PIXELS].shape == (1, 3, SIDE, SIDE)
        with pytest.raises(Refused, match="parts of type text; this model reads nothing else"):
            Model("text", str(chain / "sft")).prompt(asked)
        return
    with pytest.raises(Refused, match=r"no address is fetched|is not base64|not an image of a kind"):
        Model("sft", str(made / "sft")).prompt(asked)


def test_chat_shows_a_picture_with_the_next_message(made, tmp_path, capsys):
    from pipeline.commands.chat import Chat

    (tmp_path / "red.png").write_bytes(png("red"))
    chat = Chat(made, "sft")
    chat.take(f"/image {tmp_path}/red.png")
    chat.take("/set max_new_tokens 6")
    chat.take("Which?")
    asked = [{"role": "user", "content": [place(), {"type": "text", "text": "Which?"}]}]
    assert parts.bare(chat.speakers[0].turns[:1]) == asked
    assert chat.speakers[0].turns[1]["content"] == str(
        StageModel(str(made / "sft"), "sft").replies([Question("Which?", "", images=(png("red"),)).turns], 6)[0]
    )
    chat.take("And now?")
    assert chat.speakers[0].turns[2] == {"role": "user", "content": "And now?"}
    for words, fault in {f"/image {tmp_path}/none.png": "No such file", f"/image {tmp_path}": "Is a directory"}.items():
        with pytest.raises(UserError, match=fault):
            chat.take(words)


def test_a_model_never_writes_the_token_of_a_picture(made):
    """A sampled answer with it would ask for a picture that is not there."""
    node = StageModel(str(made / "sft"), "sft")
    token = node.sight.token
    assert json.loads((made / "sft" / "generation_config.json").read_text())["suppress_tokens"] == [token]
    found = node.replies([[{"role": "user", "content": f"{number}?"}] for number in range(60)], 30, seed=1)
    assert sum(len(reply.ids) for reply in found) > 1000
    assert all(token not in reply.ids for reply in found)


@pytest.mark.slow
def test_it_is_pushed_with_its_processor_and_the_code_on_its_card_runs(run, hub, made, tmp_path):
    shutil.copytree(made / "sft", tmp_path / "runs" / "sft")
    flagged = ["--hub", "me/any", "--runs", tmp_path / "runs", "--node", "sft", "--names", "{sft: me/any}", "--force", "yes"]
    status, out, err = run("push", *flagged)
    assert status == 0, err
    assert "logits and greedy answers of 3 prompts by AutoModelForImageTextToText" in out
    files = head(hub, "me/any")
    assert {"processor_config.json", "tokenizer.json"} <= set(files)
    card = files["README.md"].data.decode()
    assert "pipeline_tag: image-text-to-text" in card
    assert len(printed_by_card(hub, card, tmp_path / "cache")) > 1  # whatever so little training says, its blanks too


def test_shuffled_pictures_are_those_of_another_row(seen):
    rows = rows_of(seen)[:5]
    mixed = [*rows, {"messages": [said("Hi"), reply("Ho")]}, rows[0] | {"images": rows[0]["images"][:1]}]
    found = shuffled(mixed)
    assert [row["messages"] for row in found] == [row["messages"] for row in mixed]
    assert [row["images"] for row in found[:5]] == [row["images"] for row in [*rows[1:], rows[0]]]
    assert found[5:] == mixed[5:]  # texts, and what can be exchanged with no other, stay
    assert shuffled([rows[0], rows[0]]) == []
    twice = [row for row in rows for _ in range(3)]  # several rows about a picture, one after another
    assert [row["images"] for row in shuffled(twice)] == [row["images"] for row in found[:5] for _ in range(3)]


def test_a_model_that_does_not_look_loses_nothing_by_other_pictures(made, seen):
    """One that looks does: a projector that says the same of whatever patch makes the difference zero."""
    node = StageModel(str(made / "sft"), "sft")
    subject = SimpleNamespace(rows=rows_of(seen), chatting=[node], node=node, add_model=lambda *_: None)

    def apart():
        own, other = (one.figure.items[:, 0] for one in EVALUATOR.measure(subject) if one.metric == "loss")
        return abs(other - own).max()

    assert apart() > 1e-3
    node.model.model.multi_modal_projector.linear_2.weight.data.zero_()
    assert apart() < 1e-5


def test_the_loss_is_shown_beside_that_of_shuffled_pictures(run, made, tmp_path):
    shutil.copytree(made / "pretrain", tmp_path / "runs" / "pretrain")
    shutil.copytree(made / "sft", tmp_path / "runs" / "sft")
    status, out, err = run("evaluate", "--runs", tmp_path / "runs", "--resamples", "50", "--max_new_tokens", "4")
    assert status == 0, err
    assert "sft, shown the pictures of other rows" in out
    assert "against shuffled pictures (baseline)" in out


def test_the_report_shows_what_is_asked_about(run, made, seen, tmp_path):
    for name in ("pretrain", "sft", "dpo"):
        shutil.copytree(made / name, tmp_path / "runs" / name)
    status, _, err = run("evaluate", "--runs", tmp_path / "runs", "--resamples", "50", "--max_new_tokens", "4")
    assert status == 0, err
    assert run("report", "--runs", tmp_path / "runs")[0] == 0
    page = (tmp_path / "runs" / "report.html").read_text()
    samples = json.loads((tmp_path / "runs" / "evaluate.json").read_text())["samples"]
    held_out = (
        recipe.of(manifest.read(tmp_path / "runs" / "sft"))
        .rows("messages", "held_out", manifest.read(made / "sft")["seed"])
        .kept
    )
    asked = [sample for sample in samples if "row" in sample]
    assert asked
    answers = page.split('id="answers"')[1].split("<section", 1)[0]
    for sample in asked:
        assert set(sample["answers"]) == {"pretrain", "sft", "dpo"}
        urls = types.load("messages").thumbnails(held_out[sample["row"]["number"]])
        assert len(urls) == 2
        assert all(f'<img src="{url}" alt="what is asked about">' in answers for url in urls)
        assert looked_at(urls[0]).shape == (20, 20, 3)
    tags = re.findall("<img [^>]*>", page)
    assert all(re.fullmatch(r'<img src="data:image/png;base64,[\w+/=]+" alt="[^"]+">', tag) for tag in tags), (
        "within the page, and told"
    )
    masks = page.split('id="masks"')[1]
    for name in ("sft", "dpo"):
        batch = masks.split(f">{name}</h3>")[1].split("<h3")[0]
        for line in re.split("<div><h4>", batch)[1:]:
            places = line.count("<b>&lt;image&gt;</b>") // PATCHES
            assert line.count("<img ") == (0 if "rejected</h4>" in line else places), line[:60]
        assert "<img " in batch


@pytest.mark.parametrize(
    ("stage", "more", "fault"),
    [
        ("sft", ["--tower", ""], "is a model of family vision, but sft takes no vision here"),
        ("sft", ["--parent", "{made}/sft"], "the parent has a tower already; leave it out"),
        ("sft", ["--vision", "{made}/pretrain"], "but sft takes vision or masked_vision or dual_encoder as its vision"),
        ("sft", ["--vision_feature_layer", "-9"], "vision_feature_layer: -9: the tower has 2 layers"),
        ("sft", ["--method", "rows"], "method: rows trains tokens by name"),
        ("dpo", ["--parent", "{made}/pretrain", "--data", "{seen}/pairs.jsonl"], "but dpo takes vision_language as its parent"),
        ("rlhf", ["--tower", ""], "sft made a model of family vision_language, but rlhf takes causal as its parent"),
        ("rlhf", ["--use_vllm", "true"], "use_vllm: true: samples without the pictures of a prompt"),
        ("rlhf", ["--rewards", "{{}}"], "rewards: a reward model reads no pictures"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(run, made, seen, tmp_path, stage, more, fault):
    words = [str(word).format(made=made, seen=seen) for word in more]
    given = {"sft": flags, "dpo": flags_of_dpo, "rlhf": flags_of_rlhf}[stage](made, seen)
    status, out, err = run(stage, *given, *words, "--output", tmp_path / "out")
    assert status == 2
    assert fault in out + err


def test_pictures_for_a_model_that_sees_none_are_refused(run, made, seen, tmp_path):
    given = [
        "--parent",
        made / "pretrain",
        "--data",
        seen / "chats.jsonl",
        "--chat_template",
        "chatml.jinja",
        "--max_length",
        "64",
    ]
    status, out, err = run("sft", *given, "--output", tmp_path / "out")
    assert status == 2
    assert "rows hold pictures, and the model sees none" in out + err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rescale_factor": 1 / 255**2}, "rescale_factor is 1.5"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"image_mean": [123.7, 116.3, 103.5]}, "image_mean is"),
        ({"image_std": [58.4, 57.1, 57.4]}, "image_std is"),
    ],
)
def test_levels_that_are_not_those_of_the_tower_are_refused(seen, tmp_path, changed, said):
    shutil.copytree(seen / "tower", tmp_path / "tower")
    path = tmp_path / "tower" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UserError, match=said):
        processors.image_processor(str(tmp_path / "tower"))
    assert processors.image_processor(str(seen / "tower")).rescale_factor == pytest.approx(1 / 255)


def test_one_picture_for_all_rows_is_told_by_what_it_looks_like(seen):
    rows = recipe.from_data(str(seen / "chats.jsonl"), "messages").rows("messages", "train", 1).kept
    kind = types.load("messages")
    given = [row for row in rows if row.get("images")]
    assert kind.doubts(given)[0].rows < len(given)
    alike = [row | {"images": given[0]["images"]} for row in given]
    told = doubts.of(alike * 2, kind)
    assert any("have the same picture" in line for line in told), told
