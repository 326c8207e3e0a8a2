"""Reward models: a causal model or an encoder with one output, that AutoModelForSequenceClassification loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.models.families import family_of
from pipeline.models.tokenization import stop_ids
from pipeline.system.errors import UserError

FAMILY = "reward"
PAD = "<|pad|>"
_HEADS = ("score", "classifier", "head", "classification_head")  # what models call the head that a reward is read from


def load(folder: str) -> Any:
    """Load a reward model in fp32; UserError where it can't be loaded, a weight is missing or it has several outputs."""
    model = _read(folder, ())
    if model.config.num_labels != 1:
        raise UserError(f"{folder}: no reward model: it has {model.config.num_labels} outputs")
    return model


def begin(parent: str, random: bool = False) -> Any:
    """Return a parent's body with a new head of one output, in fp32; UserError where part of the body would be random or left out.

    With `random` all weights are new ones in the same sizes, for a control.
    """
    model = _read(parent, _HEADS, num_labels=1, id2label={0: FAMILY}, label2id={FAMILY: 0})
    return type(model)(model.config).float() if random else model


def _read(folder: str, new: Sequence[str], **settings: Any) -> Any:
    """Return a model whose weights lie in the folder, except for modules that may be new."""
    from transformers import AutoModelForSequenceClassification

    from pipeline.models import loading

    try:
        model = loading.from_pretrained(AutoModelForSequenceClassification, folder, new, **settings)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no reward model can be made of it ({' '.join(str(error).split())[:300]})") from None
    model.config.use_cache = False
    return model


def is_causal(folder: str) -> bool:
    """Say whether a folder or hub id holds a causal model, by the name of its class."""
    from transformers import AutoConfig

    return family_of((AutoConfig.from_pretrained(folder, trust_remote_code=False).architectures or [""])[0]) == "causal"


def set_padding(tokenizer: Any, model: Any) -> str:
    """Let padding be a token that ends no answer, a new one if need be; return it where it is another than before.

    The library's models read the score at the last token that is not padding. Where padding is the token that ends an
    answer, as in many chat models, that would be the one before, and answers that ended would look like those cut off.
    """
    ends = set(stop_ids(tokenizer))
    before = tokenizer.pad_token
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        special = [token for token in tokenizer.all_special_tokens if tokenizer.convert_tokens_to_ids(token) not in ends]
        if special:
            tokenizer.pad_token = special[0]
        else:
            tokenizer.add_special_tokens({"pad_token": PAD})
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return "" if tokenizer.pad_token == before else str(tokenizer.pad_token)


def positions(model: Any) -> float:
    """Return how many tokens a model can read at once; infinite where nothing bounds it."""
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    embeddings = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    return float(places if padding is None else places - padding - 1)  # RoBERTa counts places from its padding token on


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint that AutoModelForSequenceClassification loads, with the tokenizer and its template."""
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
