"""Whether a parent knows the tokens that it is about to be trained on, and what its own likelihoods tell of the rows.

What a node hands on is whole, however strange the data is to it, and its record holds the digest of each of its files; so only
parents from elsewhere are asked.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.chain.stage import PARENT
from pipeline.data.tokens import IGNORED, Tokens, answered
from pipeline.system import hashes
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from pipeline.chain.run import Run

_KNOWN_ROWS, _KNOWN_TOKENS = 8, 2048  # by which it is measured whether a parent knows its tokenizer's tokens
_GAP_ROWS, _GAP, _FIRST_GAP = 32, 7, 3  # rows in which every seventh token is hidden, from the fourth on
_FEWEST_GAPS = 40  # below which nothing is said
_WORSE = 2.0  # nats a token above guessing; a model that learned other tokens stands far higher, an untrained one below
_KNOWN = 1.0  # nats a token below the same text with its tokens exchanged: a model with its own tokens on strange text is at 2
_NOTHING = 0.1  # the same of a model that knows nothing; one of a few steps is at 0.8
_PAIRS = 16  # that are looked at for swapped columns


def known(run: Run, model: Any, examples: Any, tokenizer: Any, role: str = PARENT) -> None:
    """Raise UserError, or warn, where a causal model from elsewhere does not know the tokens of the examples, or finds pairs swapped."""
    if (role == PARENT and run.record.get("starts_from") == "random") or not _asked(run, role):
        return
    knows(model, examples, set(tokenizer.all_special_ids), run.say, role)
    for warning in (swapped(lambda: model, examples), ends_answers(model, examples)):
        if warning:
            run.say(warning)


def known_by_gaps(run: Run, examples: Any, tokenizer: Any) -> None:
    """Raise UserError, or warn, where a masked model from elsewhere does not know the tokens of the examples."""
    settings = Path(run.parents[PARENT]) / "config.json"
    if not _asked(run, PARENT) or not settings.is_file():
        return
    named = json.loads(settings.read_text(encoding="utf-8")).get("architectures") or [""]
    if str(named[0]).endswith("ForMaskedLM"):
        fills_gaps(run.parents[PARENT], examples, tokenizer, run.say)


def _asked(run: Run, role: str) -> bool:
    return not run.quiet and not (Path(run.parents[role]) / hashes.RECORD).is_file()


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
        told = [one for one in row["input_ids"] if one < size]  # a soft prompt's own tokens lie beyond
        told = told[: min(_KNOWN_TOKENS, positions)]
        hidden = [at for at, one in enumerate(told) if one in exchange][_FIRST_GAP::_GAP]
        count += len(hidden)
        for side, table in enumerate(({}, exchange)):
            given = [table.get(one, one) for one in told]
            labels = [IGNORED] * len(given)
            for at in hidden:
                labels[at], given[at] = given[at], tokenizer.mask_token_id
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


def ends_answers(model: Any, rows: Sequence[Any]) -> str:
    """Return a warning where a chat model finds the token that ends the first rows' answers less likely than guessing, or ""."""
    answers = [_targets(row) for row in (rows[at] for at in range(min(_KNOWN_ROWS, len(rows)))) if "prompt_ids" in row]
    ends = [
        row | {"labels": [IGNORED] * (len(row["labels"]) - 1) + row["labels"][-1:]}
        for row in answers
        if len(row["labels"]) <= _KNOWN_TOKENS
    ]
    size, nats = model.get_input_embeddings().weight.shape[0], _nats(model, ends)
    if nats is None or nats.targets <= math.log(size):
        return ""
    return (
        f"the parent finds the token that ends an answer less likely ({nats.targets:.2f} nats) than guessing among its {size:,} tokens "
        f"({math.log(size):.2f}): it was trained to end its answers otherwise, or tokenizer and weights don't belong together"
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


def _targets(row: Any) -> Tokens:
    """Return ids and labels of an example, of pairs those of the chosen side; an example without targets has none."""
    if "labels" in row:
        return {name: row[name] for name in ("input_ids", "labels")}
    if "prompt_ids" not in row:
        ids = list(row.get("input_ids", []))
        return {"input_ids": ids, "labels": [IGNORED, *ids[1:]]}
    return answered(row["prompt_ids"], next((row[name] for name in ("chosen_ids", "completion_ids") if name in row), []))
