"""Tokenizers: train a byte-level BPE, load a parent's, give it a chat template, find what ends an answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.request import template_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")  # reserved in pretraining, learned in SFT


def train(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE with the chat tokens reserved; any text in any script can be encoded.

    The end-of-text token also begins a document, so that its first word is predicted from something.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    reserved = [END_OF_TEXT, PAD, *CHAT_TOKENS]
    if vocab_size < len(alphabet) + len(reserved):
        raise UserError(
            f"vocab_size: {vocab_size} does not even hold the {len(alphabet)} bytes and {len(reserved)} special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=reserved, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=PAD,
        additional_special_tokens=list(CHAT_TOKENS), model_max_length=max_length, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def load(folder: str) -> PreTrainedTokenizerBase:
    """Load a parent's tokenizer, with a padding token if it has none; UserError if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"--parent {folder}: no tokenizer can be loaded ({' '.join(str(error).split())[:200]})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def set_template(tokenizer: PreTrainedTokenizerBase, chat_template: str, parent: str) -> list[str]:
    """Give the tokenizer the chosen chat template, or keep its own; return special tokens it had to add.

    Raises UserError, naming `chat_template:` as the remedy, where there is neither.
    """
    if not chat_template:
        if not tokenizer.chat_template:
            raise UserError(
                f"--parent {parent}: its tokenizer has no chat template; set `chat_template: chatml.jinja` or your own file in the profile"
            )
        return []
    text = template_path(chat_template).read_text(encoding="utf-8")
    tokenizer.chat_template = text
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in dict.fromkeys(re.findall(r"<\|[^|'\"\s]+\|>", text)) if token not in vocabulary]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    return missing


def templated(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **how: Any) -> dict[str, list[int]]:
    """Put a conversation through the chat template, which is the only path to the model; UserError if it is broken."""
    import jinja2

    try:
        made: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **how)
    except jinja2.TemplateError as error:
        raise UserError(f"chat_template: {error}") from None
    return dict(made)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], answer_next: bool = False) -> list[int]:
    """Return the ids of a conversation."""
    return list(templated(tokenizer, messages, add_generation_prompt=answer_next)["input_ids"])


def end_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the special token that the template puts after an answer, or None if it puts none."""
    question = [{"role": "user", "content": "a"}]
    prompt = render(tokenizer, question, answer_next=True)
    whole = render(tokenizer, [*question, {"role": "assistant", "content": "b"}])
    special = set(tokenizer.all_special_ids)
    return next((token for token in reversed(whole[len(prompt) :]) if token in special), None)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end generation: the template's end of an answer and the end of text."""
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        ends.add(end_token(tokenizer))
    return sorted(token for token in ends if token is not None)
