"""What is checked before the first step, so that a stage never trains on nothing or on the wrong tokens."""

from __future__ import annotations

import inspect
import math
import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data.tokens import IGNORED, Tokens, answered
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
_KNOWN = 1.0  # nats a token below the same text with its tokens exchanged: a model with its own tokens on strange text is at 2
_NOTHING = 0.1  # the same of a model that knows nothing; one of a few steps is at 0.8
_PAIRS = 16  # that are looked at for swapped columns
_NAMED = 3  # tensors in a warning
_GAP_ROWS, _GAPS, _GAPS_FROM, _FEWEST_GAPS = (
    32,
    7,
    3,
    40,
)  # rows, every which token is hidden, from where on, and how many at least
_SAMPLED = 64  # numbers of a matrix that are compared before all of them are
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


def knows(model: Any, rows: Sequence[Any], special: Collection[int], say: Callable[[str], None], role: str = "parent") -> None:
    """Raise UserError where a causal parent learned other tokens than those of the rows; say where it learned none.

    `rows`: examples with `labels`, with `prompt_ids` and answers, or prompts alone. The first of them are scored as they are, and with their
    ids exchanged at random, save for the `special` ones: whoever knows the tokens finds the text likelier than that, however strange it is. Guessing
    costs ln(vocabulary) nats a token. What is no target may cost more than that, since no training was ever about it.
    """
    size = model.get_input_embeddings().weight.shape[0]
    ids = [one for one in range(size) if one not in special]
    drawn = random.Random(0).sample(ids, len(ids))
    real, exchanged = (_nats(model, rows, dict(zip(ids, by, strict=True))) for by in (ids, drawn))
    if real is None or exchanged is None:
        return
    if real.targets > math.log(size) + _WORSE and real.all > exchanged.all - _KNOWN:  # not finite is told at the first step
        raise UserError(
            f"--{role}: costs {real.targets:.2f} nats a token on the first rows, where guessing among its {size:,} tokens costs "
            f"{math.log(size):.2f}: weights and tokenizer don't belong together, or the weights are wrecked"
        )
    if real.all > exchanged.all - _NOTHING:
        say(
            f"the {role} finds the first rows no likelier ({real.all:.2f} nats a token) than the same rows with their tokens "
            f"exchanged at random ({exchanged.all:.2f}): its weights know nothing of these tokens, as if they were never trained"
        )


def fills_gaps(parent: str, rows: Sequence[Any], tokenizer: Any, say: Callable[[str], None]) -> None:
    """Raise UserError where a masked parent learned other tokens than those of the rows; say where it learned none.

    Every seventh token of the first rows is hidden. The parent finds what was there likelier than the tokens of the same rows
    exchanged at random, if it knows them.
    """
    import torch
    from transformers import AutoModelForMaskedLM

    from pipeline.models import loading
    from pipeline.models.logits import token_nats

    if tokenizer.mask_token_id is None or not rows or "input_ids" not in rows[0]:
        return
    model = loading.from_pretrained(AutoModelForMaskedLM, parent).eval()
    size, special = model.get_input_embeddings().weight.shape[0], set(tokenizer.all_special_ids)
    ids = [one for one in range(min(size, len(tokenizer))) if one not in special]
    exchange = dict(zip(ids, random.Random(0).sample(ids, len(ids)), strict=True))
    positions = int(getattr(model.config, "max_position_embeddings", 512)) - 2  # RoBERTa counts from 2 on
    sums, count = [0.0, 0.0], 0
    for row in (rows[at] for at in range(min(_GAP_ROWS, len(rows)))):
        told = [one for one in row["input_ids"] if one < size][
            : min(_KNOWN_TOKENS, positions)
        ]  # beyond are a prompt's own tokens
        hidden = [at for at, one in enumerate(told) if one in exchange][_GAPS_FROM::_GAPS]
        count += len(hidden)
        for side, table in enumerate(({}, exchange)):
            given = [table.get(one, one) for one in told]
            labels = [one if at in set(hidden) else IGNORED for at, one in enumerate(given)]
            for at in hidden:
                given[at] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([given])).logits.float()
            sums[side] += float(token_nats(logits, torch.tensor([labels])).sum())
    if count < _FEWEST_GAPS:
        return
    real, exchanged = sums[0] / count, sums[1] / count
    if real > math.log(size) + _WORSE and real > exchanged - _KNOWN:
        raise UserError(
            f"--parent: costs {real:.2f} nats a hidden token on the first rows, where guessing among its {size:,} tokens costs "
            f"{math.log(size):.2f}: weights and tokenizer don't belong together, or the weights are wrecked"
        )
    if real > exchanged - _NOTHING:
        say(
            f"the parent finds hidden tokens of the first rows no likelier ({real:.2f} nats) than those of the same rows with their tokens "
            f"exchanged at random ({exchanged:.2f}): its weights know nothing of these tokens, or belong to another tokenizer"
        )


class _Nats(NamedTuple):
    """Nats a token, over the targets and over all tokens that are exchanged."""

    targets: float
    all: float


def _nats(model: Any, rows: Sequence[Any], exchange: Mapping[int, int] | None = None) -> _Nats | None:
    """Return what the first rows cost, their ids exchanged by a table where one is given; None where they hold no target."""
    import torch

    from pipeline.models.logits import token_nats

    device = next(model.parameters()).device
    sums, counts = [0.0, 0.0], [0, 0]
    was_training = model.training
    model.eval()
    for row in (rows[at] for at in range(min(_KNOWN_ROWS, len(rows)))):
        columns = _targets(row)
        ids, labels = (columns[name][:_KNOWN_TOKENS] for name in ("input_ids", "labels"))
        if counts[0] > _KNOWN_TOKENS or all(label == IGNORED for label in labels[1:]):
            continue
        given = [exchange.get(one, one) for one in ids] if exchange else ids
        told = [one if label != IGNORED else IGNORED for one, label in zip(given[1:], labels[1:], strict=True)]
        every = [one if not exchange or old in exchange else IGNORED for one, old in zip(given[1:], ids[1:], strict=True)]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([given], device=device), use_cache=False).logits[:, :-1].float()
        for at, wanted in enumerate((told, every)):
            sums[at] += float(token_nats(logits, torch.tensor([wanted], device=device)).sum())
            counts[at] += sum(one != IGNORED for one in wanted)
    model.train(was_training)
    return _Nats(sums[0] / counts[0], sums[1] / counts[1]) if all(counts) else None


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
    """Return a warning naming the matrices and norms of a model that are nothing but zeros, or ""; adapters begin so and are left out.

    A norm counts where it lets nothing through: some add one to their weights.
    """
    names = [name for name, one in model.named_parameters() if one.dim() > 1 and not _ADAPTERS.search(name) and not one.any()]
    names += [f"{name}.weight" for name, module in model.named_modules() if _is_shut(module)]
    more = ", …" if len(names) > _NAMED else ""
    return f"{len(names):,} matrices or norms hold nothing but zeros: {', '.join(names[:_NAMED])}{more}" if names else ""


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
    """Say whether a module whose weight is a row of zeros makes nothing but zeros of what goes through it."""
    import torch

    weight = vars(module).get("_parameters", {}).get("weight")
    if weight is None or weight.dim() != 1 or weight.any():
        return False
    with torch.no_grad():
        return not bool(module(torch.linspace(-1, 1, len(weight), device=weight.device, dtype=weight.dtype)[None]).any())


def reads(rows: Sequence[Any], tokenizer: Any) -> str:
    """Return a warning where the tokenizer knows few of the first rows' tokens, or ""; UserError where it knows hardly any."""
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


def ends_answers(model: Any, rows: Sequence[Any]) -> str:
    """Return a warning where a chat model finds the token that ends the first rows' answers less likely than guessing, or ""."""
    import torch

    from pipeline.models.logits import token_nats

    first = [rows[at] for at in range(min(_KNOWN_ROWS, len(rows)))]
    if not first or "prompt_ids" not in first[0]:
        return ""
    sides = [[*row["prompt_ids"], *row[name]] for row in first for name in ("chosen_ids", "completion_ids") if row.get(name)]
    sides = [ids for ids in sides if len(ids) <= _KNOWN_TOKENS]
    if not sides:
        return ""
    device, size, was_training = next(model.parameters()).device, model.get_input_embeddings().weight.shape[0], model.training
    model.eval()
    nats = []
    for ids in sides:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[:, -2:-1].float()
        nats.append(float(token_nats(logits, torch.tensor([ids[-1:]], device=device)).sum()))
    model.train(was_training)
    mean = sum(nats) / len(nats)
    if mean <= math.log(size):
        return ""
    return (
        f"the parent finds the token that ends an answer less likely ({mean:.2f} nats) than guessing among its {size:,} tokens "
        f"({math.log(size):.2f}): it was trained to end its answers otherwise, or tokenizer and weights don't belong together"
    )


def swapped(load: Callable[[], Any], rows: Sequence[Any]) -> str:
    """Return a warning where a causal model finds nearly all chosen sides of the first pairs short and unlikely, or "".

    `load`: returns the model; it is not called where the chosen sides are not shorter.
    """
    if len(rows) < _PAIRS or not {"prompt_ids", "chosen_ids", "rejected_ids"} <= rows[0].keys():
        return ""
    first = [rows[at] for at in range(_PAIRS)]
    shorter = [row for row in first if len(row["chosen_ids"]) < len(row["rejected_ids"])]
    if len(shorter) < 0.9 * _PAIRS:
        return ""
    model, unlikely = load(), 0
    for row in shorter:
        chosen, rejected = (_nats(model, [row | {"chosen_ids": row[side]}]) for side in ("chosen_ids", "rejected_ids"))
        unlikely += bool(chosen and rejected and chosen.targets > rejected.targets + _KNOWN)
    if unlikely < 0.9 * _PAIRS:
        return ""
    return (
        f"in {unlikely} of the first {_PAIRS} pairs the chosen side is the shorter one, and the parent finds it unlikely and the "
        "rejected side likely: are the columns swapped?"
    )


def _targets(row: Any) -> Tokens:
    """Return ids and labels of an example, of pairs those of the chosen side; an example without targets has none."""
    if "labels" in row:
        return {name: row[name] for name in ("input_ids", "labels")}
    if "prompt_ids" not in row:
        ids = list(row.get("input_ids", []))
        return {"input_ids": ids, "labels": [IGNORED, *ids[1:]]}
    return answered(row["prompt_ids"], next((row[name] for name in ("chosen_ids", "completion_ids") if name in row), []))


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
