"""Soft prompts: trainable tokens that the tokenizer itself puts before every text (Lester et al. 2021)."""

from __future__ import annotations

import json
import re
from typing import Any

from pipeline.system.errors import UserError

_NAME = "<prompt_{}>"
_PROMPT = re.compile(r"<prompt_\d+>")


def prompt_ids(tokenizer: Any) -> set[int]:
    """Return the ids of a tokenizer's soft prompt; none where it has no such prompt."""
    return {number for token, number in tokenizer.get_added_vocab().items() if _PROMPT.fullmatch(token)}


def add_prompt(tokenizer: Any, model: Any, count: int) -> tuple[Any, list[int]]:
    """Return a tokenizer that puts `count` new tokens before every text, and their ids; the model gets their embeddings.

    They are ordinary tokens of the vocabulary and so part of the plain checkpoint: whoever loads it gets them.
    Raises UserError where the tokenizer has no template for its special tokens.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    names = [_NAME.format(number) for number in range(count)]
    tokenizer.add_special_tokens({"additional_special_tokens": names}, replace_extra_special_tokens=False)
    ids = tokenizer.convert_tokens_to_ids(names)
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    processor = _with_prompt(whole["post_processor"], names, ids)
    # A class of its own, such as BertTokenizer, would build its template anew when it is loaded.
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole | {"post_processor": processor})),
        model_max_length=tokenizer.model_max_length, model_input_names=tokenizer.model_input_names,
        clean_up_tokenization_spaces=False, additional_special_tokens=tokenizer.extra_special_tokens,
        **tokenizer.special_tokens_map,
    )  # fmt: skip
    model.resize_token_embeddings(max(len(wrapped), model.get_input_embeddings().weight.shape[0]), mean_resizing=False)
    return wrapped, ids


def _with_prompt(processor: dict[str, Any] | None, names: list[str], ids: list[int]) -> dict[str, Any]:
    """Return a tokenizer's post-processor that puts the prompt before the first text."""
    plain = {
        "type": "TemplateProcessing",
        "single": [_part("A", 0)],
        "pair": [_part("A", 0), _part("B", 1)],
        "special_tokens": {},
    }
    before: list[dict[str, Any]] = []
    template: dict[str, Any] = processor or plain
    if template["type"] == "Sequence":  # as of Llama 3: offsets first, then a template
        *before, template = template["processors"]
    if template["type"] == "ByteLevel":
        before, template = [*before, template], plain
    if template["type"] in ("BertProcessing", "RobertaProcessing"):
        template = _as_template(template)
    if template["type"] != "TemplateProcessing":
        raise UserError(
            f"strategy: prompt: the tokenizer places its special tokens by {template['type']}, which can't take more; "
            "choose another strategy"
        )
    for form in ("single", "pair"):
        begin = next(position for position, part in enumerate(template[form]) if "Sequence" in part)
        template[form][begin:begin] = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    placed = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in zip(names, ids, strict=True)}
    template["special_tokens"] |= placed
    return {"type": "Sequence", "processors": [*before, template]} if before else template


def _as_template(processor: dict[str, Any]) -> dict[str, Any]:
    """Return the template that does what BERT's or RoBERTa's processor does; RoBERTa puts two marks between texts."""
    roberta = processor["type"] == "RobertaProcessing"
    first, last = ({"SpecialToken": {"id": processor[mark][0], "type_id": 0}} for mark in ("cls", "sep"))
    between = [last, last] if roberta else [last]
    end = last if roberta else {"SpecialToken": {"id": processor["sep"][0], "type_id": 1}}
    special = {
        token: {"id": token, "ids": [number], "tokens": [token]} for token, number in (processor["cls"], processor["sep"])
    }
    return {
        "type": "TemplateProcessing", "single": [first, _part("A", 0), last],
        "pair": [first, _part("A", 0), *between, _part("B", int(not roberta)), end], "special_tokens": special,
    }  # fmt: skip


def _part(side: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": side, "type_id": kind}}
