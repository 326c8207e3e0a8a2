"""A finished model that sees: asked, served, chatted with and pushed."""

import io
import json

import pytest

from pipeline.data.judge import Question
from pipeline.evaluation.subject import StageModel
from pipeline.models import parts, vision
from pipeline.system.errors import UserError
from tests.images import Image
from tests.vision_language import RED, SIDE, place, png, pushed


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
    from pipeline.commands._serve.requests import ChatRequest, Refused

    turns = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which?"}]}
    ]
    request = ChatRequest.model_validate({"model": "sft", "messages": turns})
    if len(url) > 60:
        ids, beside = Model("sft", str(made / "sft")).prompt(request)
        node = StageModel(str(made / "sft"), "sft")
        assert ids == node.prompt(Question("Which?", "", images=(png("red"),)).turns)["input_ids"]
        assert beside[vision.PIXELS].shape == (1, 3, SIDE, SIDE)
        with pytest.raises(Refused, match="parts of type text; this model reads nothing else"):
            Model("text", str(chain / "sft")).prompt(request)
        return
    with pytest.raises(Refused, match=r"no address is fetched|is not base64|not an image of a kind"):
        Model("sft", str(made / "sft")).prompt(request)


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
    token = node.image_inputs.image_token_id
    assert json.loads((made / "sft" / "generation_config.json").read_text())["suppress_tokens"] == [token]
    found = node.replies([[{"role": "user", "content": f"{number}?"}] for number in range(60)], 30, seed=1)
    assert sum(len(reply.ids) for reply in found) > 1000
    assert all(token not in reply.ids for reply in found)


@pytest.mark.slow
def test_it_is_pushed_with_its_processor_and_the_code_on_its_card_runs(run, hub, made, tmp_path):
    assert {"processor_config.json", "tokenizer.json"} <= set(pushed(run, hub, made, tmp_path))
