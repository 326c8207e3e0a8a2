"""Pictures by gated cross-attention: the library's Idefics around a causal model, what of it is trained, and what plain transformers makes of it."""

import io
import json
import shutil

import pytest
import torch
from PIL import Image

from pipeline.chain import manifest
from pipeline.data.image_inputs import ImageCollator, ImageInputs
from pipeline.data.judge import Question
from pipeline.evaluation.subject import StageModel
from pipeline.models import checkpoint, idefics, parts, tokenization, vision, vision_language
from pipeline.system.errors import UserError
from tests.conftest import make_quietly, mostly_slow
from tests.vision_language import (
    SIDE,
    encoded,
    flags,
    flags_of_dpo,
    flags_of_kto,
    flags_of_rlhf,
    killed_ends_as,
    png,
    pushed,
    reply,
    rows_of,
    said,
    same,
    two_train_as_one,
    weights,
)

CROSSES = ["--method", "cross_attention", "--resampler_n_latents", "3", "--resampler_depth", "1"]
NEW = (*idefics.NEW, f"vision_model.{idefics.FIRST_NORM}")


@pytest.fixture(scope="module")
def made(chain, picture_data, tmp_path_factory):
    """A model that sees by cross-attention, in the folder of its parent."""
    folder = tmp_path_factory.mktemp("crossing")
    shutil.copytree(chain / "pretrain", folder / "pretrain")
    make_quietly("sft", *flags(folder, picture_data, *CROSSES, "--learning_rate", "1e-2"))
    return folder


def llama(**sizes):
    """A small causal model of Llama's kind with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4} | sizes
    return LlamaForCausalLM(LlamaConfig(vocab_size=700, **sizes)).eval()


def tokenizer_of(folder):
    tokenizer = tokenization.load(str(folder))
    tokenization.set_template(tokenizer, "chatml.jinja", str(folder))
    vision_language.add_token(tokenizer, idefics.MARK)
    return tokenizer


def build(causal, picture_data, tokenizer, layer=-1, interval=2):
    sizes = {"cross_layer_interval": interval, "resampler_n_latents": 3, "resampler_depth": 2}
    return idefics.joined(causal, vision.encoder(str(picture_data / "tower")), tokenizer, layer, sizes).eval()


def open_gates(model):
    """Let what is attended to reach the texts, by weights that are no longer small."""
    with torch.no_grad():
        for name, one in model.named_parameters():
            if name.startswith(tuple(f"model.{part}." for part in idefics.NEW)):
                one.fill_(1.0) if ".alpha_" in name else one.mul_(8.0 if one.dim() > 1 else 1.0)


def ids_with_pictures(tokenizer, *places):
    ids = torch.randint(300, 600, (len(places), 30), generator=torch.Generator().manual_seed(3))
    for row, where in enumerate(places):
        ids[row, list(where)] = parts.token_of(tokenizer)
    return ids


@pytest.mark.parametrize(
    "sizes",
    [
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ],
)
def test_with_shut_gates_it_says_what_its_parent_says(chain, picture_data, sizes):
    tokenizer, causal = tokenizer_of(chain / "pretrain"), llama(**sizes)
    model = build(causal, picture_data, tokenizer)
    ids, pixels = ids_with_pictures(tokenizer, [2, 9], [4]), torch.randn(3, 3, SIDE, SIDE)
    texts = ids_with_pictures(tokenizer, [], [])
    with torch.no_grad():
        assert torch.allclose(model(input_ids=texts).logits, causal(texts).logits, atol=1e-6)
        assert torch.allclose(model(input_ids=ids, pixel_values=pixels).logits, causal(ids).logits, atol=1e-6)
        open_gates(model)
        assert not torch.allclose(model(input_ids=ids, pixel_values=pixels).logits, causal(ids).logits, atol=1e-2)


@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_the_tower_is_carried_over_but_for_a_norm_that_a_vit_has_not(chain, picture_data, layer):
    tower = vision.encoder(str(picture_data / "tower"))
    with torch.no_grad():
        tower.embeddings.patch_embeddings.projection.bias.normal_()
    sizes = {"cross_layer_interval": 1, "resampler_n_latents": 3, "resampler_depth": 1}
    model = idefics.joined(llama(), tower, tokenizer_of(chain / "pretrain"), layer, sizes)
    own, pixels = model.model.vision_model.eval(), torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        wanted = tower(pixels, output_hidden_states=True).hidden_states[layer]
        assert not torch.allclose(own(pixels).last_hidden_state, wanted, atol=1e-3)
        setattr(own, idefics.FIRST_NORM, torch.nn.Identity())
        assert torch.allclose(own(pixels).last_hidden_state, wanted, atol=1e-5)


def test_a_token_sees_the_last_picture_before_it():
    config = type("Config", (), {"image_token_id": 9, "eos_token_id": 1})
    ids = torch.tensor([[1, 5, 9, 5, 9, 9, 5], [5, 9, 5, 1, 5, 9, 5], [5, 5, 5, 5, 5, 5, 5]])
    number = [[0, 0, 1, 1, 2, 3, 3], [0, 1, 1, 1, 0, 2, 2], [0, 0, 0, 0, 0, 0, 0]]  # after the end of a text none
    wanted = torch.nn.functional.one_hot(torch.tensor(number), 4)[:, :, 1:]
    assert torch.equal(idefics.attended(ids, config), wanted)


def test_rows_of_a_batch_have_their_own_pictures(chain, picture_data):
    """Two pictures, one and none: what a row says is what it says alone."""
    tokenizer = tokenizer_of(chain / "pretrain")
    model = build(llama(), picture_data, tokenizer)
    open_gates(model)
    ids, pixels = ids_with_pictures(tokenizer, [2, 9], [4], []), torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        together = model(input_ids=ids, pixel_values=pixels).logits
        for row, own in enumerate((pixels[:2], pixels[2:], None)):
            alone = model(input_ids=ids[row : row + 1], pixel_values=own).logits
            assert torch.allclose(together[row], alone[0], atol=1e-5)
        other = model(input_ids=ids, pixel_values=pixels[[1, 0, 2]]).logits
    assert torch.equal(other[0, :2], together[0, :2])
    assert not torch.allclose(other[0, 2:], together[0, 2:], atol=1e-3)
    assert torch.allclose(other[1:], together[1:], atol=1e-6)


def test_nothing_but_cross_attention_is_trained(made, picture_data):
    """The language model is its parent's, bit for bit, and so is the tower but for the norm that is new."""
    found, parent = weights(made / "sft"), weights(made / "pretrain")
    assert all(torch.equal(value, found[name][: len(value)]) for name, value in parent.items())
    tower = vision.encoder(str(picture_data / "tower")).state_dict()
    for name in ("mlp.fc1.weight", "attention.o_proj.bias"):
        ours = name.replace("attention.o_proj", "self_attn.out_proj")
        assert torch.equal(tower[f"layers.0.{name}"], found[f"model.vision_model.encoder.layers.0.{ours}"])
    gates = [value for name, value in found.items() if ".alpha_" in name]
    assert len(gates) == 2 * checkpoint.load(str(made / "pretrain")).config.num_hidden_layers
    assert all(bool(gate.abs() > 1e-3) for gate in gates)
    record = manifest.read(made / "sft")
    assert record["family"] == "vision_language"
    assert [entry["role"] for entry in record["parents"]] == ["parent", "vision"]


@pytest.mark.parametrize(
    ("more", "moved"),
    [
        (CROSSES[:2], {"gated_cross_attn_layers", "perceiver_resampler", "vision_model"}),
        (["--method", "lora"], {"gated_cross_attn_layers", "perceiver_resampler", "layers"}),
        (["--method", "full"], {"gated_cross_attn_layers", "perceiver_resampler", "layers"}),
        (["--method", "full", "--tower", "trained"], {"gated_cross_attn_layers", "perceiver_resampler", "layers", "vision_model"}),
    ],
)  # fmt: skip
def test_what_is_trained_later_is_configuration(run, made, picture_data, tmp_path, more, moved):
    more = [*more, "--learning_rate", "1e-2"]
    status, _, err = run("sft", *flags(made, picture_data, *more, "--output", tmp_path / "next", parent="sft"))
    assert status == 0, err
    before, after = weights(made / "sft"), weights(tmp_path / "next")
    named = ("gated_cross_attn_layers", "perceiver_resampler", "layers", "vision_model")
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {part for part in named if any(name.startswith(f"model.{part}.") for name in changed)} == moved
    if more[1] == "cross_attention":
        assert all(name.startswith(tuple(f"model.{part}" for part in NEW)) for name in changed)


def asked(folder):
    """A conversation about three pictures, its pictures as files, and the library's model and processor of a folder."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    files = [png("red"), png("blue", (30, 20)), png("green")]
    shown = [{"type": "image", "image": Image.open(io.BytesIO(one))} for one in files]
    turns = [said(shown[0], "Which?"), reply("It is red."), said("And:", shown[1], shown[2], "these?")]
    library = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert type(library).__module__ == "transformers.models.idefics.modeling_idefics"
    return turns, files, library, AutoProcessor.from_pretrained(folder, backend="pil")


def test_the_library_alone_reads_and_says_the_same(made):
    turns, files, library, processor = asked(made / "sft")
    given = processor(text=[idefics.prompt(processor, turns)], return_tensors="pt")
    node = StageModel(str(made / "sft"), "sft")
    held = iter(files)
    own = node.prompt(
        [{**turn, "content": [{**part, "image": cell_of(next(held))} if part["type"] == "image" else part for part in turn["content"]]}
         if not isinstance(turn["content"], str) else turn for turn in turns]
    )  # fmt: skip
    columns = node.image_inputs.columns([own["pixels"]])
    assert own["input_ids"] == given["input_ids"][0].tolist()
    assert torch.allclose(columns["pixel_values"], given["pixel_values"][0], atol=1e-6)
    ids = given["input_ids"]
    assert torch.equal(idefics.attended(ids, node.model.config), given["image_attention_mask"])
    with torch.no_grad():
        assert torch.allclose(library(**given).logits, node.model(input_ids=ids, **columns).logits, atol=1e-5)
    written = library.generate(**given, max_new_tokens=6)[0, ids.shape[1] :]
    (found,) = node.continued([own["input_ids"]], 6, None, [own["pixels"]])
    assert found == processor.tokenizer.decode(written, skip_special_tokens=True).strip()


def cell_of(data):
    from pipeline.data import pictures

    return pictures.held(data, "a.png")


def test_answers_do_not_depend_on_the_batch_or_the_cache(made):
    node = StageModel(str(made / "sft"), "sft")
    open_gates(node.model)
    several = [(png("red"), png("blue")), (png("green"),), ()]
    turns = [Question("Which of them is it, then?"[: 7 + 9 * len(files)], "", images=files).turns for files in several]
    together = node.replies(turns, 6)
    for one, text in zip(turns, together, strict=True):
        assert node.replies([one], 6) == [text]
    given = node.prompt(turns[0])
    ids = torch.tensor([given["input_ids"]])
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, **node.image_inputs.columns([given["pixels"]])}
    with torch.no_grad():
        assert torch.equal(node.model.generate(ids, **how), node.model.generate(ids, use_cache=False, **how))


def test_training_counts_the_loss_that_the_model_has(made, picture_data):
    """The loss of labels is that of the library, whose vocabulary is one, and batches have as many pictures as tokens."""
    model = checkpoint.load(str(made / "sft")).eval()
    tokenizer = tokenization.load(str(made / "sft"))
    image_inputs = ImageInputs.from_folder(str(made / "sft"), model.config)
    assert image_inputs.tokens_per_image == 1
    batch = ImageCollator(image_inputs, tokenizer.pad_token_id)(
        [encoded(row, tokenizer, image_inputs) for row in rows_of(picture_data)[:3]]
    )
    assert batch[vision.PIXELS].shape[0] == int((batch["input_ids"] == image_inputs.image_token_id).sum()) == 6
    with torch.no_grad():
        found = model(**batch)
    logits, labels = found.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    assert float(found.loss) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-5)


def test_a_killed_stage_ends_with_the_same_weights(run, made, picture_data, tmp_path, monkeypatch):
    more = [*CROSSES, "--save_steps", "1", "--max_steps", "3"]
    assert run("sft", *flags(made, picture_data, *more, "--output", tmp_path / "whole"))[0] == 0
    killed_ends_as(tmp_path / "whole", run, monkeypatch, "sft", flags(made, picture_data, *more), 4)


@pytest.mark.parametrize("method", mostly_slow(["cross_attention", "lora"], "cross_attention"))
def test_a_batch_without_pictures_trains_in_two_processes_as_in_one(run, made, picture_data, tmp_path, method):
    two_train_as_one(run, made, picture_data, tmp_path, "perceiver_resampler", "--method", method)


@pytest.mark.parametrize("method", ["cross_attention", "lora"])
def test_a_step_in_bf16_is_that_in_fp32_but_for_rounding(run, made, picture_data, tmp_path, method):
    """Tokens before the first picture see none, and the library masks all of their latents."""
    losses = {}
    for name, more in (("fp32", []), ("bf16", ["--bf16", "true", "--use_cpu", "true"])):
        more = [*more, "--method", method, "--logging_steps", "1", "--output", tmp_path / name]
        status, _, err = run("sft", *flags(made, picture_data, *more, parent="sft"))
        assert status == 0, err
        losses[name] = [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert all(bool(torch.isfinite(one).all()) for one in weights(tmp_path / name).values())
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.02)


@pytest.mark.parametrize("stage", mostly_slow(["dpo", "kto", "rlhf"], "dpo"))
def test_stages_after_it_read_its_pictures(run, made, picture_data, tmp_path, stage):
    given = {"dpo": flags_of_dpo, "kto": flags_of_kto, "rlhf": flags_of_rlhf}[stage]
    status, _, err = run(
        stage, *given(made, picture_data, "--max_steps", "1", "--logging_steps", "1", "--output", tmp_path / "out")
    )
    assert status == 0, err
    assert manifest.read(tmp_path / "out")["family"] == "vision_language"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["IdeficsForVisionText2Text"]
    assert not same(weights(made / "sft"), weights(tmp_path / "out"))


def test_chat_and_server_show_it_pictures(made, tmp_path):
    pytest.importorskip("fastapi")
    from pipeline.commands._serve.answers import Model
    from pipeline.commands._serve.requests import ChatRequest
    from pipeline.commands.chat import Chat

    (tmp_path / "red.png").write_bytes(png("red"))
    chat = Chat(made, "sft")
    chat.take(f"/image {tmp_path}/red.png")
    chat.take("/set max_new_tokens 6")
    chat.take("Which?")
    wanted = StageModel(str(made / "sft"), "sft")
    turns = Question("Which?", "", images=(png("red"),)).turns
    assert chat.speakers[0].turns[1]["content"] == str(wanted.replies([turns], 6)[0])
    url = f"data:image/png;base64,{cell_of(png('red'))['bytes']}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which?"}]
    ids, beside = Model("sft", str(made / "sft")).prompt(
        ChatRequest.model_validate({"model": "sft", "messages": [{"role": "user", "content": content}]})
    )
    assert ids == wanted.prompt(turns)["input_ids"]
    assert beside[vision.PIXELS].shape == (1, 3, SIDE, SIDE)


def test_it_is_measured_with_other_pictures_and_reported(run, made, tmp_path):
    for name in ("pretrain", "sft"):
        shutil.copytree(made / name, tmp_path / "runs" / name)
    status, out, err = run("evaluate", "--runs", tmp_path / "runs", "--resamples", "50", "--max_new_tokens", "4")
    assert status == 0, err
    assert "against shuffled pictures (baseline)" in out
    assert run("report", "--runs", tmp_path / "runs")[0] == 0
    assert '<img src="data:image/png' in (tmp_path / "runs" / "report.html").read_text()


@pytest.mark.slow
def test_it_is_pushed_with_its_processor_and_the_code_on_its_card_runs(run, hub, made, tmp_path):
    pushed(run, hub, made, tmp_path)


@pytest.mark.parametrize(
    ("parent", "more", "fault"),
    [
        ("sft", ["--method", "projector"], "what reads its pictures is trained by method: cross_attention"),
        ("sft", ["--vision", "{picture_data}/tower"], "the parent has a tower already; leave it out"),
        ("pretrain", ["--cross_layer_interval", "3"], "cross_layer_interval: 3 does not divide the parent's 2 layers"),
        ("pretrain", ["--vision_feature_layer", "-9"], "vision_feature_layer: -9: the tower has 2 layers"),
        ("pretrain", ["--tower", ""], "method: cross_attention is about a model that reads pictures"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(run, made, picture_data, tmp_path, parent, more, fault):
    words = [str(word).format(picture_data=picture_data) for word in more]
    status, out, err = run("sft", *flags(made, picture_data, *CROSSES[:2], *words, "--output", tmp_path / "out", parent=parent))
    assert status == 2
    assert fault in out + err


def test_options_that_nothing_would_read_are_told_at_once(run, made, picture_data, tmp_path):
    more = [*CROSSES, "--tower", "trained", "--vision_feature_layer", "-1", "--output", tmp_path / "out"]
    status, out, err = run("sft", *flags(made, picture_data, *more, parent="sft"))
    assert status == 2
    assert "tower: trained: method: cross_attention trains nothing but what lies between" in out + err
    for key in ("resampler_n_latents", "resampler_depth", "vision_feature_layer"):
        assert f"command line: {key}: is read only with --vision; leave it out" in out + err


def test_a_causal_model_that_idefics_can_not_hold_is_refused(chain, picture_data):
    from transformers import GraniteConfig, GraniteForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

    tokenizer = tokenizer_of(chain / "pretrain")
    sizes = {"vocab_size": 700, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    named = {
        "a qwen3 can't be held": Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8)),
        "a mistral can't be held": MistralForCausalLM(MistralConfig(**sizes, sliding_window=16)),
        "a granite can't be held": GraniteForCausalLM(
            GraniteConfig(**sizes, attention_multiplier=0.7, residual_multiplier=0.5)
        ),
        "a llama can't be held": llama(attention_bias=True),
    }
    for fault, causal in named.items():
        with pytest.raises(UserError, match=fault):
            build(causal.eval(), picture_data, tokenizer)


def test_a_template_that_the_librarys_processor_would_not_write_is_refused(chain, picture_data):
    tokenizer = tokenizer_of(chain / "pretrain")
    tokenizer.eos_token = "<|im_end|>"
    with pytest.raises(UserError, match=r"eos_token \(<\|im_end\|>\) also ends each answer"):
        build(llama(), picture_data, tokenizer)
    tokenizer = tokenizer_of(chain / "pretrain")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    vision_language.add_token(tokenizer, idefics.MARK)
    with pytest.raises(UserError, match="does not begin with the tokenizer's bos_token"):
        build(llama(), picture_data, tokenizer)


def library(**more):
    """The library's own model with random weights, 4 layers, 50 tokens and no resampler."""
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    sizes = {
        "embed_dim": 8,
        "image_size": 16,
        "patch_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    return IdeficsForVisionText2Text(IdeficsConfig(vocab_size=50, **text, vision_config=sizes, **more)).eval()


def test_what_the_library_alone_can_not_do():
    """Three pitfalls of docs/facts.md: texts without pictures, layers that the interval does not divide, tokens beside the vocabulary."""
    ids, pixels = torch.arange(8, 16)[None], torch.zeros(1, 1, 3, 16, 16)
    given = {"input_ids": ids, "pixel_values": pixels, "image_attention_mask": torch.ones(1, 8, 1)}
    assert float(library()(**given, labels=ids).loss) > 0
    with pytest.raises(ValueError, match="Exactly 1 of pixel_values"):
        library()(input_ids=ids)
    with pytest.raises(IndexError):
        library(cross_layer_interval=3)(**given)
    with pytest.raises(RuntimeError):
        library(additional_vocab_size=2)(**given, labels=ids)


def test_an_idefics_from_elsewhere_is_refused(run, picture_data, tmp_path, chain):
    library().save_pretrained(tmp_path / "other")
    tokenization.load(str(chain / "pretrain")).save_pretrained(tmp_path / "other")
    given = [
        "--parent",
        tmp_path / "other",
        "--tower",
        "frozen",
        "--data",
        picture_data / "chats.jsonl",
        "--output",
        tmp_path / "out",
    ]
    status, out, err = run("sft", *given, "--chat_template", "chatml.jinja")
    assert status == 2
    assert "is an Idefics whose config.json has no image_token_id" in out + err


def test_the_librarys_chat_template_shows_no_picture_in_its_place(made):
    turns, _, _, processor = asked(made / "sft")
    how = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    found = processor.apply_chat_template(turns[:1], chat_template=processor.tokenizer.chat_template, **how)
    token = processor.tokenizer.convert_tokens_to_ids(parts.TOKEN)
    assert (found["input_ids"] == token).sum() == 2
    assert found["input_ids"][0, -2] == token  # behind all that was said
    processor.tokenizer.bos_token = None
    assert processor.tokenizer.decode(processor(text=[["a"]])["input_ids"][0]) == "Nonea"


def test_a_parent_from_elsewhere_is_asked_without_the_tokens_around_a_picture(run, made, picture_data, tmp_path):
    """It has no embedding for them, and no record says that it made its tokens."""
    shutil.copytree(made / "pretrain", tmp_path / "pretrain")
    (tmp_path / "pretrain" / "manifest.json").unlink()
    status, _, err = run("sft", *flags(tmp_path, picture_data, *CROSSES, "--max_steps", "1"))
    assert status == 0, err
