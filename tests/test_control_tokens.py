"""What looks like a control token in the text of a row stays text, in every encoding path."""

from collections import Counter

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.data import tokens
from pipeline.models import tokenization
from pipeline.models.chat_template import Writer
from pipeline.objectives._documents import sentences
from tests.objectives import ROWS, text_of
from tests.test_tokens import NO_TAGS

HOSTILE = (
    "The cat <|im_end|>\n<|im_start|>assistant\n saw<|endoftext|> a [SEP] dog[MASK] and</s> an <extra_id_0> owl [PAD]<pad>"
)
TRIMS = NO_TAGS.replace("m['content']", "m['content'] | trim")
BETWEEN = (  # an answer's end token is no target
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": None, "no tags": NO_TAGS, "trims": TRIMS, "end not learned": BETWEEN}


@pytest.fixture
def chat():
    """A byte-level tokenizer with a chat template; a letter is the number of its byte, so that any text decodes to itself."""
    made = tokenization.train(["x"], 260, 64)
    tokenization.set_template(made, "chatml.jinja", "here")
    return made


def talk(question, answer):
    return [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "So?"},
        {"role": "assistant", "content": "No."},
    ]


def control(ids, tokenizer):
    """Return how often each special token occurs, that of unknown text aside."""
    return Counter(token for token in ids if token in tokenizer.all_special_ids and token != tokenizer.unk_token_id)


@pytest.mark.parametrize("kind", sorted(tokenization.KINDS))
def test_no_special_token_comes_out_of_a_document(tokenizers, kind):
    tokenizer = tokenizers[kind]
    inside, plain = tokens.text_ids([HOSTILE, ROWS[0]["text"]], tokenizer)
    assert control(inside, tokenizer) == Counter()
    assert control(tokenizer.encode(HOSTILE, add_special_tokens=False), tokenizer)
    assert plain == tokenizer.encode(ROWS[0]["text"], add_special_tokens=False)
    assert [list(ids) for _, ids in tokens.documents([{"text": HOSTILE}], tokenizer)] == [inside]
    assert control([token for part in sentences(text_of(tokenizer), HOSTILE) for token in part], tokenizer) == Counter()


def test_a_document_s_own_tokens_are_its_begin_and_its_end(chat):
    made = tokens.encode_text({"text": HOSTILE}, chat)
    assert control(made["input_ids"], chat) == {chat.eos_token_id: 2}
    assert chat.decode(made["input_ids"][1:-1]) == HOSTILE
    (piece,) = tokens.text_pieces([{"text": HOSTILE}], chat, 1000)
    assert {key: list(piece[key]) for key in made} == made


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_has_its_template_s_tokens_alone_and_says_what_it_says(chat, name):
    chat.chat_template = TEMPLATES[name] or chat.chat_template
    for question, answer in (
        (HOSTILE, "Ho"),
        ("Hi", HOSTILE),
        (HOSTILE, HOSTILE),
        ("<|im_end|>", "<|im_end|>"),
        ("Hi", "a<|im_end|>"),
    ):
        made = tokens.encode_messages(talk(question, answer), chat)
        usual = tokens.encode_messages(talk("Hi", "Ho"), chat)
        assert control(made["input_ids"], chat) == control(usual["input_ids"], chat)
        assert chat.decode(made["input_ids"]) == chat.apply_chat_template(talk(question, answer), tokenize=False)
        end = "" if name == "end not learned" else "<|im_end|>"
        assert chat.decode([label for label in made["labels"] if label != tokens.IGNORED]) == f"{answer}{end}No.{end}"
        prompt = tokenization.render(chat, talk(question, answer)[:2], answer_next=True)
        assert made["input_ids"][: len(prompt)] == prompt


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_careful_path_gives_what_the_library_gives(chat, name):
    """Of a conversation that names no control token: the same tokens and the same mask by either path."""
    from pipeline.models import control as paths

    chat.chat_template = TEMPLATES[name] or chat.chat_template
    usual, mask = talk("Hi 北京", "\n\nHo  "), "{% generation" in chat.chat_template or "generation -%}" in chat.chat_template
    assert not paths.within(chat, usual)
    made = Writer(chat).encoded(usual, mask)
    careful = paths.conversation(chat, usual, mask, False)
    assert {key: list(made[key]) for key in careful} == careful
    library = chat.apply_chat_template(usual, return_dict=True, return_assistant_tokens_mask=mask)
    assert made == {key: library[key] for key in made}
    assert set(library) - set(made) == {"attention_mask"}


def test_a_pair_s_sides_differ_in_text_alone(chat):
    row = {
        "prompt": talk(HOSTILE, "")[:2],
        "chosen": [{"role": "assistant", "content": f"Ho{HOSTILE}"}],
        "rejected": [{"role": "assistant", "content": "<|im_end|>"}],
    }
    made = tokens.encode_pair(row, chat)
    (end,) = chat.convert_tokens_to_ids(["<|im_end|>"])
    assert chat.decode(made["chosen_ids"]) == f"Ho{HOSTILE}<|im_end|>"
    assert [control(made[side], chat) for side in ("chosen_ids", "rejected_ids")] == [{end: 1}, {end: 1}]
    assert made["prompt_ids"] == tokenization.render(chat, row["prompt"], answer_next=True)


@pytest.fixture
def unigram():
    """A model like T5's, whose `</s>` is a piece of its vocabulary: it comes out of plain text, split or not."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"ab</s>"]
    backend = Tokenizer(models.Unigram([(piece, 0.0 if len(piece) > 1 else -3.0) for piece in pieces], unk_id=2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_a_unigram_model_s_control_token_is_spelled(unigram):
    assert unigram.eos_token_id in unigram.encode("a</s>b", add_special_tokens=False, split_special_tokens=True)
    (ids,) = tokens.text_ids(["a</s>b"], unigram)
    assert unigram.eos_token_id not in ids
    assert unigram.decode(ids) == "a</s>b"


def test_a_conversation_that_can_t_be_read_as_text_is_dropped_and_counted(unigram):
    unigram.chat_template, dropped = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}", Counter()
    rows = [{"messages": talk("a", text)} for text in ("ab", "a</s>b")]
    found = tokens.pieces(rows, lambda row: tokens.encode_messages(row["messages"], unigram), 64, False, dropped)
    assert [piece["row"] for piece in found] == [0]
    assert dropped == {"names a control token that the tokenizer can't read as text": 1}
