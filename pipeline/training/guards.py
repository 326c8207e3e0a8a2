"""What is checked before the first step, so that a stage never trains on nothing or on the wrong tokens."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.data.tokens import IGNORED
from pipeline.models import processors
from pipeline.models.tokenization import end_token
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from pipeline.objectives import Objective
    from pipeline.tasks import Task

_FIRST_ROWS = 64  # looked at before the first step
_ADAPTERS = re.compile(r"lora_|modules_to_save|trainable_tokens_|\.adapter\.|prompt_encoder")
_WRAPPERS = re.compile(r"\.(base_layer|original_module|token_adapter)(?=\.)")
_NAMED = 3  # tensors in a warning
_SAMPLED = 64  # numbers of a matrix that are compared before all of them are
_FEWEST_ROWS, _EMPTY = 8, 0.25  # rows below which a matrix tells nothing, and share of them that nothing was written into
_HUGE, _FEW, _SHARE = 1e3, 8, 1e-3  # times nearly all others, that a weight is broken; and how many, or which share, may be so
_LEAST = 10.0  # below which none is
_UNREADABLE, _STRANGE = 0.6, 0.2  # shares of tokens that a tokenizer does not know


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


def adapts(model: Any, given: str | Sequence[str]) -> None:
    """Raise UserError where a name among `target_modules` is that of no layer; peft passes over it without a word."""
    found = [f".{name}" for name, module in model.named_modules() if hasattr(module, "lora_A")]
    if isinstance(given, str) or not found:
        return
    lost = sorted(one for one in given if not any(name.endswith(f".{one}") for name in found))
    if lost:
        raise UserError(f"target_modules: no layer of the model is called {', '.join(lost)}")


def ends_text(model: Any, tokenizer: Any) -> str:
    """Return a warning where the model's configuration names a token that ends a text, and the tokenizer has none; or ""."""
    named = model.config.get_text_config().eos_token_id
    if named is None or tokenizer.eos_token_id is not None:
        return ""
    return f"config.json says that token {named} ends a text, but the tokenizer has no eos_token: texts will not end with one"


def empty(model: Any) -> str:
    """Return a warning naming the matrices and norms of a model that carry nothing, or ""; adapters begin so and are left out.

    A matrix carries nothing where all of its numbers are the same. A norm counts where it lets nothing through: some add one to
    their weights.
    """
    names = [name for name, one in model.named_parameters() if one.dim() > 1 and not _ADAPTERS.search(name) and _uniform(one)]
    names += [f"{name}.weight" for name, module in model.named_modules() if _is_shut(module)]
    return f"{len(names):,} matrices or norms hold nothing but zeros or one number: {_named(names)}" if names else ""


def half_filled(model: Any) -> str:
    """Return a warning naming matrices of which a large part was never filled or is there twice, as when a shard was lost, or "".

    Tables of embeddings are left out: tokens that nobody uses may well be zeros.
    """
    import torch

    tables = {
        id(weight) for module in model.modules() if isinstance(module, torch.nn.Embedding) for weight in module.parameters()
    }
    names = [
        name for name, one in model.named_parameters()
        if one.dim() == 2 and id(one) not in tables and not _ADAPTERS.search(name) and not _uniform(one) and _lacks_a_part(one.detach())
    ]  # fmt: skip
    return (
        f"{len(names):,} matrices are zeros in a quarter of their rows or columns, or hold one half twice: {_named(names)}; was a "
        "shard lost when they were joined?"
        if names
        else ""
    )


def broken(model: Any) -> None:
    """Raise UserError where a few weights of a tensor are thousands of times as large as all others, as a flipped bit makes them."""
    found = []
    for name, one in model.named_parameters():
        values = one.detach().abs()
        most = float(values.max()) if values.numel() else 0.0
        if most > _LEAST and not _ADAPTERS.search(name):
            used, near = int(values.count_nonzero()), int((values > most / _HUGE).sum())
            if near <= max(_FEW, _SHARE * used) and near < used / 2:
                found.append(
                    f"{_WRAPPERS.sub('', name).removeprefix('base_model.model.')} ({near:,} of {used:,}, up to {most:.0e})"
                )
    if found:
        raise UserError(
            f"--parent: a few weights are over a thousand times as large as all others of their tensor: {_named(found)}; it is broken: take an earlier checkpoint, or copy it again"
        )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _uniform(one: Any) -> bool:
    """Say whether all numbers of a tensor are the same; a few are compared before all of them are."""
    values = one.detach().flatten()
    return bool((values[:: max(1, len(values) // _SAMPLED)] == values[0]).all()) and bool((values == values[0]).all())


def _lacks_a_part(one: Any) -> bool:
    """Say whether a quarter of the rows or columns of a matrix are zeros, or its halves are the same."""
    import torch

    for matrix in (one, one.T):
        rows = len(matrix)
        if rows >= _FEWEST_ROWS and int((matrix != 0).any(1).sum()) <= (1 - _EMPTY) * rows:
            return True
        if (
            rows >= _FEWEST_ROWS
            and rows % 2 == 0
            and torch.equal(matrix[0], matrix[rows // 2])
            and torch.equal(*matrix.chunk(2))
        ):
            return True
    return False


def copied(model: Any) -> str:
    """Return a warning naming matrices of one layer that hold the same numbers as those of another, or ""; shared ones have one name."""
    import torch

    seen: dict[tuple[Any, ...], list[tuple[str, Any]]] = {}
    found = []
    for name, one in model.named_parameters():
        plain = re.sub(r"(^|\.)\d+(?=\.)", r"\1", name)
        if one.dim() < 2 or plain == name or _ADAPTERS.search(name) or not one.any():
            continue
        values = one.detach().flatten()
        alike = seen.setdefault((plain, *values[:: max(1, len(values) // _SAMPLED)].tolist()), [])
        found += [f"{name} and {other}" for other, held in alike[:1] if torch.equal(values, held)]
        alike.append((name, values))
    more = ", …" if len(found) > _NAMED else ""
    return (
        f"{len(found):,} matrices hold the same weights as those of another layer: {', '.join(found[:_NAMED])}{more}"
        if found
        else ""
    )


def own_code(model: Any) -> str:
    """Return a note that a model's configuration names Python code of its own, which is not run, or ""."""
    named = getattr(model.config, "auto_map", None)
    if not isinstance(named, dict) or not named:
        return ""
    code = ", ".join(sorted({str(one).partition(".")[0] + ".py" for one in named.values()})[:_NAMED])
    return f"config.json names code of the model's own ({code}), which is not run; the library's {type(model).__name__} is used instead"


def _is_shut(module: Any) -> bool:
    """Say whether a module whose weight is a row makes the same of whatever goes through it."""
    import torch

    weight = vars(module).get("_parameters", {}).get("weight")
    if weight is None or weight.dim() != 1 or len(weight) < 2 or not _uniform(weight):
        return False
    given = torch.linspace(-1, 1, len(weight), device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        return bool(torch.equal(module(given[None]), module(given.flip(0)[None])))


def framed(rows: Sequence[Any], tokenizer: Any, writes: bool) -> str:
    """Return a warning where no text begins with the token that a tokenizer names for that, or each does so twice; or "".

    `writes`: whether labels are texts. Raises UserError where none of them ends with the token that ends a text.
    """
    if processors.of_pictures(tokenizer):
        return ""
    first = [rows[at] for at in range(min(_FIRST_ROWS, len(rows)))]
    texts = [list(row["input_ids"]) for row in first if "input_ids" in row]
    begin, end = tokenizer.cls_token_id, tokenizer.eos_token_id
    if writes and end is not None and all(end not in row["labels"] for row in first):
        raise UserError(
            f"--parent: the tokenizer puts no {tokenizer.eos_token} at the end of a target, so the model would never learn to stop; "
            "the post_processor of tokenizer.json was lost"
        )
    if begin is not None and texts and all(begin not in text for text in texts):
        return (
            f"no text begins with {tokenizer.cls_token}, from which an encoder's answer is read, though the tokenizer names it: the "
            "post_processor of tokenizer.json was lost"
        )
    if begin is not None and texts and all(text[:2] == [begin, begin] for text in texts):
        return f"every text begins with {tokenizer.cls_token} twice, which no model was trained on"
    return ""


def reads(rows: Sequence[Any], tokenizer: Any) -> str:
    """Return a warning where the tokenizer knows few of the first rows' tokens, or ""; UserError where it knows hardly any."""
    tokenizer = processors.tokenizer_of(tokenizer)
    if tokenizer is None:
        return ""
    unknown, special = tokenizer.unk_token_id, set(tokenizer.all_special_ids)
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id):  # GPT-2 has one token for all roles
        return ""
    first = [rows[at] for at in range(min(_FIRST_ROWS, len(rows)))]
    ids = [
        one for row in first for name, column in row.items() if name.endswith("_ids") and "type" not in name for one in column
    ]
    lost = ids.count(unknown)
    share = lost / max(1, lost + sum(one not in special for one in ids))
    said = f"{share:.0%} of the first rows' tokens are unknown to the tokenizer ({tokenizer.unk_token}): it was made for another text"
    if share > _UNREADABLE:
        raise UserError(f"--parent: {said}")
    return said if share > _STRANGE else ""


def fills(trainer: Any) -> None:
    """Raise UserError where all rows together fill no batch, and what fills none is left out."""
    rows, arguments = trainer.train_dataset, trainer.args
    size = arguments.train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and hasattr(rows, "__len__") and len(rows) < size:
        raise UserError(
            f"dataloader_drop_last: {len(rows):,} rows fill no batch of {size:,}, so no step would be trained; lower "
            "per_device_train_batch_size, or leave it out"
        )


def accumulates(arguments: Any, rows: int) -> str:
    """Return a warning where a step would gather more batches than an epoch has, or ""."""
    batches, wanted = (
        math.ceil(rows / (arguments.train_batch_size * arguments.world_size)),
        arguments.gradient_accumulation_steps,
    )
    if not rows or wanted <= max(1, batches):
        return ""
    return (
        f"gradient_accumulation_steps: {wanted:,} batches are more than the {batches:,} of an epoch, so each epoch is one step"
    )


def fits_parent(model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int | None, role: str = "parent") -> None:
    """Raise UserError, naming the role, where sequences or vocabulary are larger than the model has positions and embeddings for."""
    settings, tokenizer = model.config.get_text_config(), processors.tokenizer_of(tokenizer)
    model = getattr(model, "text_model", model)  # of a model of pictures and texts
    faults = []
    positions = getattr(settings, "max_position_embeddings", None)
    embeddings = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    if positions and padding is not None:  # RoBERTa counts positions from its padding token on
        positions -= padding + 1
    if positions and max_length and max_length > positions:
        faults.append(f"max_length: {max_length} does not fit the {role}, which has {positions} positions")
    table = getattr(model.get_input_embeddings(), "weight", None) if tokenizer is not None else None
    rows = math.inf if table is None else table.shape[0]
    if table is not None and len(tokenizer) > rows:
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
    texts = processors.tokenizer_of(tokenizer)
    tokenizer = tokenizer if texts is None else texts
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in read]
    if texts is not None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def batches(objective: Objective | Task, arguments: Any) -> None:
    """Raise UserError where an objective or a task whose loss is over the batch would see only parts of it, or one row."""
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
