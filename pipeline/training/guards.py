"""What is checked before the first step, so that a stage never trains on nothing or on the wrong tokens."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.data.tokens import IGNORED, Tokens, answered, encode_messages
from pipeline.data.types import Row
from pipeline.models.control import Unfit
from pipeline.models.tokenization import end_token
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from pipeline.objectives import Objective

_FIRST_ROWS = 64  # looked at before the first step
_KNOWN_ROWS, _KNOWN_TOKENS = 8, 2048  # by which it is measured whether a parent knows its tokenizer's tokens
_ADAPTERS = re.compile(r"lora_|modules_to_save|trainable_tokens_|\.adapter\.|prompt_encoder")
_WRAPPERS = re.compile(r"\.(base_layer|original_module|token_adapter)(?=\.)")
_WORSE = 2.0  # nats a token above guessing; a model that learned other tokens stands far higher, an untrained one below


def warms_up(arguments: Any, steps: int) -> str:
    """Return a warning where the rate is still rising when the last step is over, or ""."""
    given = arguments.warmup_steps
    warm = given if given >= 1 else given * steps
    if warm < steps:
        return ""
    return f"warmup_steps: {given:g} are not over within the {steps:,} steps of the run; the rate never reaches learning_rate"


def weights(model: Any) -> dict[str, int]:
    """Return a sum of the bytes of every tensor that a plain model has, by name; those of an adapter are left out."""
    import zlib

    import torch

    found = {}
    for name, tensor in model.state_dict().items():
        if _ADAPTERS.search(name):
            continue
        plain = _WRAPPERS.sub("", name).removeprefix("base_model.model.")
        found[plain] = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found


def knows(model: Any, rows: Sequence[Any]) -> None:
    """Raise UserError where a causal parent finds the first targets far less likely than guessing would: it learned other tokens.

    `rows`: examples with `labels`, or with `prompt_ids` and answers. Guessing costs ln(vocabulary) nats a token. What is no
    target may cost more, since no training was ever about it.
    """
    import torch

    from pipeline.models.logits import token_nats

    size = model.get_input_embeddings().weight.shape[0]
    total, count = 0.0, 0
    was_training = model.training
    model.eval()
    for row in (rows[at] for at in range(min(_KNOWN_ROWS, len(rows)))):
        columns = _targets(row)
        ids, labels = (torch.tensor([columns[name][:_KNOWN_TOKENS]]) for name in ("input_ids", "labels"))
        wanted = labels[:, 1:] != IGNORED
        if count > _KNOWN_TOKENS or not wanted.any():
            continue
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = model(input_ids=ids.to(device), use_cache=False).logits
        total += float(token_nats(logits[:, :-1].float(), labels[:, 1:].to(device)).sum())
        count += int(wanted.sum())
    model.train(was_training)
    if count and total / count > math.log(size) + _WORSE:  # what is not finite is told with its rows, at the first step
        raise UserError(
            f"--parent: costs {total / count:.2f} nats a token on the first rows, where guessing among its {size:,} tokens costs "
            f"{math.log(size):.2f}: weights and tokenizer don't belong together, or the weights are wrecked"
        )


def _targets(row: Any) -> Tokens:
    """Return ids and labels of an example, of pairs those of the chosen side; an example without targets has none."""
    if "labels" in row:
        return {name: row[name] for name in ("input_ids", "labels")}
    return answered(
        row.get("prompt_ids", []), next((row[name] for name in ("chosen_ids", "completion_ids") if name in row), [])
    )


def fits_parent(model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int | None, role: str = "parent") -> None:
    """Raise UserError, naming the role, where sequences or vocabulary are larger than the model has positions and embeddings for."""
    settings = model.config.get_text_config()
    faults = []
    positions = getattr(settings, "max_position_embeddings", None)
    embeddings = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    if positions and padding is not None:  # RoBERTa counts positions from its padding token on
        positions -= padding + 1
    if positions and max_length and max_length > positions:
        faults.append(f"max_length: {max_length} does not fit the {role}, which has {positions} positions")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        faults.append(
            f"--{role}: the tokenizer has {len(tokenizer)} tokens, but the model only {rows} embeddings; they don't belong together"
        )
    if faults:
        raise UserError(*faults)


def agree(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Let tokenizer and model agree on the padding token, which says where a text ends, and on the columns that are read.

    ModernBERT reads no token types, though a tokenizer like BERT's gives them.
    """
    read = inspect.signature(model.forward).parameters
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in read]
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def batches(objective: Objective, arguments: Any) -> None:
    """Raise UserError where an objective whose loss is over the batch would see only parts of it, or one row."""
    if objective.accumulates:
        return
    if arguments.gradient_accumulation_steps > 1:
        raise UserError(
            f"gradient_accumulation_steps: {arguments.gradient_accumulation_steps} would cut the batch, which holds the negatives; "
            "set it to 1 and per_device_train_batch_size to what fits"
        )
    if arguments.per_device_train_batch_size < 2:
        raise UserError("per_device_train_batch_size: 1 leaves no negative in the batch; set it to 2 or more")


def learns(dataset: Dataset, dropped: dict[str, int]) -> None:
    """Raise UserError where no row is left, or the first rows hold no target."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    if len(dataset) == 0:
        raise UserError(f"no row is left for training ({reasons or 'the recipe gave none'}); look at max_length and the recipe")
    first = dataset[:_FIRST_ROWS]
    targets = [column for name, column in first.items() if name.endswith("labels")]
    if any(all(label == IGNORED for row in column for label in row) for column in targets):
        raise UserError(
            "no token to learn from in the first rows: every label is masked; look at the chat template and max_length"
        )


def stops(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, end: int | None) -> None:
    """Raise UserError where the token that ends an answer is not among the targets of each of the first rows."""
    if end is None:
        raise UserError("chat_template: puts no special token after an answer, so the model would never learn to stop")
    for number, labels in enumerate(dataset[:_FIRST_ROWS]["labels"]):
        if end not in labels:
            token = tokenizer.convert_ids_to_tokens(end)
            raise UserError(
                f"row {number}: the answer's end token {token} is not a target; move it inside the template's generation tags"
            )


def ends(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where the template has no token by which a sampled answer could end."""
    if end_token(tokenizer) is None:
        raise UserError("chat_template: puts no special token after an answer, so no sampled answer would end")


def speaks(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where the template drops what the assistant says in one of the first rows."""
    for number, row in enumerate(rows[:_FIRST_ROWS]):
        answer = row["messages"][-1]["content"].strip()
        try:
            labels = encode_messages(row["messages"], tokenizer)["labels"]
        except Unfit:  # which is counted as dropped
            continue
        learned = str(tokenizer.decode([label for label in labels if label != IGNORED], skip_special_tokens=False))
        if _letters(answer) not in _letters(learned):
            raise UserError(
                f"chat_template: drops the assistant's text of row {number}: {answer[:60]!r} is not among the targets"
            )


def _letters(text: str) -> str:
    return "".join(text.split())


def differ(dataset: Dataset) -> None:
    """Raise UserError where the two sides of one of the first pairs are the same tokens."""
    first = dataset[:_FIRST_ROWS]
    for number, (chosen, rejected) in enumerate(zip(first["chosen_ids"], first["rejected_ids"], strict=True)):
        if chosen == rejected:
            raise UserError(f"pair {number}: chosen equals rejected after the chat template; there is nothing to prefer")
