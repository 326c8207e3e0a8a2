"""What the tests of models that see share: rows about pictures, a tower, and a model aligned on them."""

import shutil

import pytest

from tests.conftest import make_quietly
from tests.vision_language import COLOURS, cell, flags, flags_of_dpo, lines, place, png, reply, said, tower


@pytest.fixture(scope="session")
def picture_data(tmp_path_factory):
    """Conversations, pairs and prompts about pictures of one colour, and a vision transformer with random weights."""
    folder = tmp_path_factory.mktemp("picture_data")
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


@pytest.fixture(scope="session")
def made(chain, picture_data, tmp_path_factory):
    """A model that sees, by LoRA beside a frozen tower, and one aligned on pairs, in the folder of their parent."""
    folder = tmp_path_factory.mktemp("vision_language")
    shutil.copytree(chain / "pretrain", folder / "pretrain")
    make_quietly("sft", *flags(folder, picture_data))
    make_quietly("dpo", *flags_of_dpo(folder, picture_data, "--num_train_epochs", "1"))
    return folder
