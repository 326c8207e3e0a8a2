"""What of a model is trained in a supervised task: all of it, its head, its last layers, an adapter, or a prompt."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pipeline.system.errors import UserError

Strategy = Literal["full", "frozen", "last_n", "lora", "prompt"]
PROMPT = re.compile(r"<prompt_\d+>")  # tokens of the strategy of that name
_NO_LAYER = "dummy-target-modules"  # peft's word for an adapter of nothing but tokens and the head


def chosen(strategy: Strategy, model: Any, last_layers: int, rank: int, alpha: int, prompt: list[int]) -> Any:
    """Return the model with only that trainable; UserError where nothing would be.

    `full`: everything. `frozen`: the head alone reads features that stay. `last_n`: the head and the last
    layers. `lora`: the head and an adapter of every linear layer (Hu et al. 2021). `prompt`: the head and the
    embeddings of the tokens that stand before every text (Lester et al. 2021).
    """
    if strategy == "full":
        return model
    heads = _heads(model)
    if strategy in ("lora", "prompt"):
        from peft import LoraConfig, get_peft_model

        tokens = {_reader(model): prompt} if prompt else None
        target = "all-linear" if strategy == "lora" else _NO_LAYER
        return get_peft_model(
            model,
            LoraConfig(
                r=rank, lora_alpha=alpha, target_modules=target, modules_to_save=heads or None, trainable_token_indices=tokens
            ),
        )
    trained = [module for name, module in model.named_modules() if name.rpartition(".")[2] in heads]
    if strategy == "last_n":
        trained += [layer for stack in _stacks(model, last_layers) for layer in stack[-last_layers:]]
    if not trained:
        raise UserError(
            f"strategy: {strategy} leaves nothing to train: this task puts no new head on the model; try last_n or lora"
        )
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    return model


def _heads(model: Any) -> list[str]:
    """Return the names of what stands behind the layers: the task's head, and the pooler before it."""
    import torch
    from transformers import AutoModel

    body, words = model.base_model, model.get_output_embeddings()
    parts = {body}
    if body is model:  # as of T5 with a head for questions, whose encoder and decoder are its own
        with torch.device("meta"):
            named = {name for name, _ in AutoModel.from_config(model.config).named_children()}
        parts = {module for name, module in model.named_children() if name in named}
    found = [name for name, module in model.named_children() if module not in parts and module is not words]
    pooler = [name for name, module in body.named_children() if name == "pooler" and body is not model and module is not None]
    return [name for name in found if any(True for _ in getattr(model, name).parameters())] + pooler


def _reader(model: Any) -> str:
    """Return the name of the layer that reads a text's tokens; of an encoder-decoder, which has several, the encoder's."""
    from torch.nn import Embedding

    weight = model.get_input_embeddings().weight
    every = model.named_modules(remove_duplicate=False)
    names = [name for name, module in every if isinstance(module, Embedding) and module.weight is weight]
    return str(next((name for name in names if "encoder." in name), names[0]))


def _stacks(model: Any, last_layers: int) -> list[Any]:
    """Return the model's stacks of layers, the encoder's and the decoder's; UserError where they are not deep enough."""
    from torch.nn import ModuleList

    settings = model.config
    depths = {settings.num_hidden_layers, getattr(settings, "decoder_layers", 0), getattr(settings, "num_decoder_layers", 0)}
    stacks = [module for module in model.base_model.modules() if isinstance(module, ModuleList) and len(module) in depths - {1}]
    if not stacks or any(len(stack) < last_layers for stack in stacks):
        raise UserError(
            f"last_layers: {last_layers}: {type(model).__name__} has no {last_layers} layers of its own to choose from"
        )
    return stacks


def add_prompt(vocabulary: Any, model: Any, count: int) -> tuple[Any, list[int]]:
    """Return a tokenizer that puts `count` new tokens before every text, and their ids; the model gets their embeddings.

    As tokens of the vocabulary they are part of the plain checkpoint: whoever loads it gets them.
    Raises UserError where the tokenizer has no template for its special tokens.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    names = [f"<prompt_{number}>" for number in range(count)]
    vocabulary.add_special_tokens({"additional_special_tokens": names}, replace_extra_special_tokens=False)
    ids = vocabulary.convert_tokens_to_ids(names)
    whole = json.loads(vocabulary.backend_tokenizer.to_str())
    plain = {
        "type": "TemplateProcessing",
        "single": [_part("A", 0)],
        "pair": [_part("A", 0), _part("B", 1)],
        "special_tokens": {},
    }
    before: list[dict[str, Any]] = []
    template: dict[str, Any] = whole["post_processor"] or plain
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
        begin = next(place for place, part in enumerate(template[form]) if "Sequence" in part)
        template[form][begin:begin] = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    placed = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in zip(names, ids, strict=True)}
    template["special_tokens"] |= placed
    placing = {"type": "Sequence", "processors": [*before, template]} if before else template
    # A class of its own, such as BertTokenizer, would build its template anew when it is loaded.
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole | {"post_processor": placing})),
        model_max_length=vocabulary.model_max_length, model_input_names=vocabulary.model_input_names,
        clean_up_tokenization_spaces=False, additional_special_tokens=vocabulary.extra_special_tokens,
        **vocabulary.special_tokens_map,
    )  # fmt: skip
    model.resize_token_embeddings(max(len(wrapped), model.get_input_embeddings().weight.shape[0]), mean_resizing=False)
    return wrapped, ids


def _as_template(processor: dict[str, Any]) -> dict[str, Any]:
    """Return the template that does what BERT's or RoBERTa's processor does; RoBERTa has two marks between its texts."""
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
