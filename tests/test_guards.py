import pytest
from datasets import Dataset

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


def test_a_template_that_drops_the_assistant_stops(tokenizer):
    encoded(tokenizer, "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}<|im_end|>")
    with pytest.raises(UserError, match="drops the assistant's text of row 0: 'Ho'"):
        guards.speaks([TALK], tokenizer)
    encoded(tokenizer, "{{ m['content'] }}<|im_end|>")
    guards.speaks([TALK], tokenizer)


def test_pairs_that_are_equal_after_the_template_stop():
    with pytest.raises(UserError, match="pair 1: chosen equals rejected"):
        guards.differ(Dataset.from_dict({"chosen_ids": [[1], [2]], "rejected_ids": [[2], [2]]}))


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
