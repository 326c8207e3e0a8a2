import contextlib

import pytest
from datasets import Dataset

from pipeline.data import shown
from pipeline.data.tokens import encode_messages
from pipeline.models import tokenization
from pipeline.system.errors import UserError
from pipeline.training import guards

TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n%s{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TAGGED = "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}<|im_end|>"


@pytest.fixture
def tokenizer():
    return tokenization.train(["x"], 260, 64)


def encoded(tokenizer, body):
    tokenizer.chat_template = CHATML.replace("%s", body)
    return Dataset.from_list([encode_messages(TALK["messages"], tokenizer)])


def test_nothing_to_learn_from_stops():
    with pytest.raises(UserError, match=r"no row is left for training \(3 longer than max_length 8\)"):
        guards.learns(Dataset.from_dict({"labels": []}), {"longer than max_length 8": 3})
    with pytest.raises(UserError, match="every label is masked"):
        guards.learns(Dataset.from_dict({"labels": [[-100, -100]]}), {})


def test_an_end_token_that_is_not_learned_stops(tokenizer):
    dataset = encoded(tokenizer, TAGGED)  # the end token stands outside of the generation tags
    with pytest.raises(UserError, match=r"row 0: the answer's end token <\|im_end\|> is not a target"):
        guards.stops(dataset, tokenizer, tokenization.end_token(tokenizer))
    with pytest.raises(UserError, match="puts no special token after an answer"):
        guards.stops(dataset, tokenizer, None)
    whole = encoded(tokenizer, TAGGED.replace("{% endgeneration %}{% else %}", "<|im_end|>{% endgeneration %}{% else %}"))
    guards.stops(whole, tokenizer, 3)


ASKED = [{"role": "user", "content": "Whom did they see?"}, {"role": "assistant", "content": "The owl."}]
WHOLE = "{{ m['content'] }}<|im_end|>"


def shown_by(tokenizer, template):
    tokenizer.chat_template = template
    return shown.conversation(ASKED, tokenizer)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML.replace("%s", "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}<|im_end|>"), "drops or changes what the assistant says: 'The owl.'"),
        (CHATML.replace("%s", "{% if m['role'] != 'user' %}{{ m['content'] }}{% endif %}<|im_end|>"), "drops or changes what the user says"),
        (CHATML.replace("%s", "{{ m['content'] | upper }}<|im_end|>"), "drops or changes"),
        (CHATML.replace("%s", WHOLE).replace("<|im_start|>assistant\n", "bot:"), "generation asks with"),
        (CHATML.replace("%s", WHOLE).partition("{% if add_")[0], "add_generation_prompt adds nothing"),
        (CHATML.replace("%s", "{% generation %}" + WHOLE + "{% endgeneration %}"), "makes targets of what the user says"),
        ("{{ bos_token }}{{ bos_token }}" + CHATML.replace("%s", WHOLE), "twice"),
    ],
)  # fmt: skip
def test_a_template_that_shows_what_is_not_asked_for_stops(tokenizer, template, said):
    with pytest.raises(UserError, match=f"chat_template: .*{said}"):
        shown_by(tokenizer, template)
    with pytest.raises(UserError, match="chat_template: ") if "targets" not in said else contextlib.nullcontext():
        shown.pair({"prompt": ASKED[:1], "chosen": ASKED[1:], "rejected": ASKED[1:]}, tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("%s", WHOLE),
        CHATML.replace("%s", "{{ m['content'] | trim }}<|im_end|>"),
        CHATML.replace("%s", "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}" + WHOLE),  # of a model that reasons
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}",
    ],
)  # fmt: skip
def test_templates_as_models_have_them_pass(tokenizer, template):
    assert shown_by(tokenizer, template) == encode_messages(ASKED, tokenizer)


def test_a_tokenizer_that_changes_letters_passes(tokenizer):
    """A decomposed letter is composed and lower-cased by the tokenizer, not by the template."""
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.chat_template = CHATML.replace("%s", WHOLE)
    said = [ASKED[0], {"role": "assistant", "content": "The cafe\u0301."}]
    assert "The" not in tokenizer.decode(shown.conversation(said, tokenizer)["input_ids"])


def test_a_template_that_does_not_end_or_repeat_stops(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenization, "_PATIENCE", 0.2)
    tokenizer.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + CHATML.replace(
        "%s", WHOLE
    )
    with pytest.raises(UserError, match="is not done with two short messages after"):
        tokenization.ends_in_time(tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%f') }}" + CHATML.replace("%s", WHOLE)
    with pytest.raises(UserError, match="differently each time"):
        tokenization.ends_in_time(tokenizer)


def test_a_tokenizer_that_is_not_the_parents_stops(tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
    )
    with pytest.raises(UserError) as error:
        guards.fits_parent(model, tokenizer, 64)
    assert error.value.faults == (
        "max_length: 64 does not fit the parent, which has 32 positions",
        "--parent: the tokenizer has 260 tokens, but the model only 100 embeddings; they don't belong together",
    )


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        ("messages", [[f"q{at}", "I do not know."] for at in range(30)], "30 of 30 rows have the same answer"),
        ("messages", [[f"q{at}", "nan" if at % 2 else f"a{at}"] for at in range(30)], "15 of 30 rows are answered by a placeholder"),
        ("messages", [[f"q{at}", f"a{at} \ufffd"] for at in range(30)], "30 of 30 rows hold the replacement character"),
        ("messages", [[f"q{at}", f"a{at} GrÃ¼ÃŸe"] for at in range(30)], "30 of 30 rows look like UTF-8"),
    ],
)  # fmt: skip
def test_rows_that_can_mean_nothing_are_refused(kind, rows, said):
    from pipeline.data import doubts, types

    roles = ("user", "assistant")
    made = [{"messages": [{"role": role, "content": text} for role, text in zip(roles, row, strict=True)]} for row in rows]
    with pytest.raises(UserError, match=said):
        doubts.of(made, types.load(kind))
    well = [{"messages": [{"role": role, "content": f"{role} {at}"} for role in roles]} for at in range(3000)]
    assert len(doubts.of(made + well, types.load(kind))) <= 1  # a few of many are told, or pass


def test_labels_in_another_case_are_told_however_many():
    from pipeline.data import doubts, types

    rows = [{"text": f"t{at}", "label": ("Glad", "glad", "sad")[at % 3]} for at in range(30)]
    assert doubts.of(rows, types.load("labels")) == ["10 of 30 rows have the label 'Glad', which looks like a slip in 'glad'"]


def test_one_name_stands_for_a_list_of_a_library_and_of_no_option_of_ours():
    from pipeline.system import config
    from pipeline.training.adapter import AdapterOptions

    assert config.check({"loss_type": "ipo"}, {}, AdapterOptions, "trl.DPOConfig") == []
    assert config.check({"loss_type": 3}, {}, AdapterOptions, "trl.DPOConfig")
