"""How likely a pretrained model of any family finds rows, and whether it finds them likelier than rows of other tokens.

If a tokenizer doesn't belong to a model, its ids are as good as drawn by lot, and the rows cost what the same rows cost with
their ids exchanged at random: a permutation test (Fisher 1935, section 21), in which the rows keep their repetitions and so
everything that a model can copy. What "cost" means is the family's own: the next token of a causal model, the hidden one of a
masked model, what an encoder-decoder writes for a text with gaps, whether a discriminator takes a token for replaced.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from pipeline.data.batches import pad
from pipeline.data.tokens import IGNORED, Tokens, answered

KNOWN_ROWS, KNOWN_TOKENS = 8, 2048  # of a causal model's rows, by which it is measured
_GAP_ROWS, _GAP, _FIRST_GAP = 32, 7, 3  # rows of the others; in masked ones every seventh token is hidden, from the fourth on
_AT_ONCE = 1024  # tokens of them in a forward pass, padding included, or one text
_FEWEST = 40  # tokens below which the others say nothing
_SURE, _MARGIN = 3.0, 1.0  # nats a token: below exchanged rows, and below guessing, where one exchange is enough
_EXCHANGES, _MOVES = 15, (1, -1, 2, -2, 3, -3)  # more exchanges, and by how much ids may have moved, where it is not
_ERRORS = 2.0  # standard deviations of exchanged rows that rows with moved numbers are below the real ones

Exchange = Mapping[int, int]
Cost = Callable[[Exchange], "Nats | None"]
Texts = Sequence[tuple[int, Sequence[int]]]  # ids, each with its number among the first rows


class Nats(NamedTuple):
    """Nats a token: over the targets and over all tokens that are exchanged, the number of the latter, and over those that are no target."""

    targets: float
    all: float
    tokens: int
    context: float = 0.0


class Familiarity(NamedTuple):
    """What rows cost a model, what they cost with other tokens in their places, and what the closest exchange would tell."""

    real: Nats
    exchanged: float  # mean over the exchanges
    deviation: float  # of them; 0 where one was enough
    asked: float  # by how many nats a token what is no target is likelier than one exchange of it
    moved: int  # by which ids have to be moved for the rows to be far likelier; 0 where none does that

    @property
    def errors(self) -> float:
        """By how many standard deviations the rows are likelier than exchanged ones; without end where one exchange was enough."""
        return (self.exchanged - self.real.all) / self.deviation if self.deviation else float("inf")


def measured(cost: Cost, ids: Sequence[int], guessing: float) -> Familiarity | None:
    """Return what rows cost with and without exchanges among `ids`; None where there is too little to measure.

    `guessing`: nats of a guess. Rows that are far likelier than both a guess and one exchange need no more than that one.
    """
    real, rng = cost({}), random.Random(0)
    drawn = cost(_exchange(ids, rng)) if real else None
    if real is None or drawn is None:
        return None
    if real.all < min(drawn.all - _SURE, guessing - _MARGIN):
        return Familiarity(real, drawn.all, 0.0, drawn.context - real.context, 0)
    costs = [drawn.all, *(one.all for _ in range(_EXCHANGES) if (one := cost(_exchange(ids, rng))))]
    mean = sum(costs) / len(costs)
    deviation = float(sum((one - mean) ** 2 for one in costs) / max(1, len(costs) - 1)) ** 0.5
    by = {move: found.all for move in _MOVES if (found := cost(dict(zip(ids, [*ids[move:], *ids[:move]], strict=True))))}
    best = min(by, key=lambda move: by[move], default=0)
    far = bool(best) and by[best] < min(real.all, guessing) - max(_MARGIN, _ERRORS * deviation)
    return Familiarity(real, mean, deviation, drawn.context - real.context, best if far else 0)


def _exchange(ids: Sequence[int], rng: random.Random) -> Exchange:
    return dict(zip(ids, rng.sample(ids, len(ids)), strict=True))


def cost_of(family: str, model: Any, rows: Sequence[Any], tokenizer: Any, ids: Sequence[int]) -> Cost | None:
    """Return what tells the cost of the first rows with an exchange among `ids`; None for a family that can't be asked."""
    if family == "causal":
        return lambda exchange: next_tokens(model, rows, exchange, ids)
    ask = {"masked": _gaps, "discriminator": _replaced, "seq2seq": _written}.get(family)
    if ask is None or not rows:
        return None
    first = [targets(rows[at])["input_ids"] for at in range(min(_GAP_ROWS, len(rows)))]
    longest = min(KNOWN_TOKENS, int(getattr(model.config, "max_position_embeddings", 512)) - 2)  # RoBERTa counts from 2 on
    known = set(ids)
    texts = [told for row in first if (told := [one for one in row if one < max(ids, default=0) + 1][:longest])]
    return partial(_over, partial(ask, model, tokenizer, known), texts, known)


def next_tokens(model: Any, rows: Sequence[Any], exchange: Exchange = {}, ids: Sequence[int] = ()) -> Nats | None:  # noqa: B006
    """Return what the first rows cost a causal model, exchanged by a table; None where they hold no target.

    `rows`: examples with `labels`, with `prompt_ids` and answers, or prompts alone.
    """
    import torch

    from pipeline.models.logits import token_nats

    device, known = next(model.parameters()).device, set(ids)
    sums, counts = [0.0, 0.0, 0.0], [0, 0, 0]
    was_training = model.training
    model.eval()
    for row in (rows[at] for at in range(min(KNOWN_ROWS, len(rows)))):
        columns = targets(row)
        plain, labels = (columns[name][:KNOWN_TOKENS] for name in ("input_ids", "labels"))
        if counts[0] > KNOWN_TOKENS or all(label == IGNORED for label in labels[1:]):
            continue
        given = [exchange.get(one, one) for one in plain]
        told = [one if label != IGNORED else IGNORED for one, label in zip(given[1:], labels[1:], strict=True)]
        every = [one if not known or old in known else IGNORED for one, old in zip(given[1:], plain[1:], strict=True)]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([given], device=device), use_cache=False).logits[:, :-1].float()
        context = [one if label == IGNORED else IGNORED for one, label in zip(every, labels[1:], strict=True)]
        for at, wanted in enumerate((told, every, context)):
            sums[at] += float(token_nats(logits, torch.tensor([wanted], device=device)).sum())
            counts[at] += sum(one != IGNORED for one in wanted)
    model.train(was_training)
    if not all(counts[:2]):
        return None
    return Nats(sums[0] / counts[0], sums[1] / counts[1], counts[1], sums[2] / max(1, counts[2]))


def _over(ask: Callable[[Texts], tuple[float, int]], texts: Sequence[Sequence[int]], known: set[int], exchange: Exchange) -> Nats | None:  # fmt: skip
    """Return the mean of what texts cost; `ask` returns the nats of some of them and the number of tokens that those are of."""
    found = [ask(part) for part in _parts([[exchange.get(one, one) for one in text] for text in texts])]
    count = sum(tokens for _, tokens in found)
    mean = sum(nats for nats, _ in found) / max(1, count)
    return Nats(mean, mean, count) if count >= _FEWEST else None


def _parts(texts: Sequence[Sequence[int]]) -> Iterator[Texts]:
    """Yield texts, each with its number, as many together as are read at once."""
    part: list[tuple[int, Sequence[int]]] = []
    for number, ids in enumerate(texts):
        if part and max(len(ids), *(len(one) for _, one in part)) * (len(part) + 1) > _AT_ONCE:
            yield part
            part = []
        part.append((number, ids))
    if part:
        yield part


def _gaps(model: Any, tokenizer: Any, known: set[int], texts: Texts) -> tuple[float, int]:
    """Hide every seventh token; return what the hidden ones cost."""
    rows = []
    for _, ids in texts:
        hidden = set([at for at, one in enumerate(ids) if one in known][_FIRST_GAP::_GAP])
        if hidden:
            given = [tokenizer.mask_token_id if at in hidden else one for at, one in enumerate(ids)]
            rows.append({"input_ids": given, "labels": [one if at in hidden else IGNORED for at, one in enumerate(ids)]})
    if tokenizer.mask_token_id is None or not rows:
        return 0.0, 0
    batch = pad(rows, tokenizer.pad_token_id or 0)
    return _nats(lambda given: model(**given).logits, batch, batch.pop("labels"))


def _replaced(model: Any, tokenizer: Any, known: set[int], texts: Texts) -> tuple[float, int]:
    """Return −Σ log p(original) of the tokens, none of which was replaced."""
    import torch

    rows = [{"input_ids": ids, "asked_mask": [int(one in known) for one in ids]} for _, ids in texts]
    batch = pad(rows, tokenizer.pad_token_id or 0)
    asked = batch.pop("asked_mask").bool()
    with torch.no_grad():
        logits = model(**batch).logits[asked]
    return float(torch.nn.functional.softplus(logits.float()).sum()), int(asked.sum())


def _written(model: Any, tokenizer: Any, known: set[int], texts: Texts) -> tuple[float, int]:
    """Return what an encoder-decoder's own writing costs: the spans that were taken out (T5), or the whole text (BART)."""
    import numpy as np

    from pipeline import objectives
    from pipeline.models.logits import decoder_logits

    spans = "<extra_id_1>" in tokenizer.get_vocab()
    read = [(number, [one for one in ids if one in known]) for number, ids in texts]
    read = [(number, ids) for number, ids in read if len(ids) >= _FIRST_GAP]
    if not read or not (spans or tokenizer.mask_token_id is not None):
        return 0.0, 0
    objective: Any = objectives.load("span_corruption" if spans else "denoising")
    asked = [
        objective.corrupt({"input_ids": ids, "ends": [len(ids)]}, tokenizer, np.random.default_rng(number))
        for number, ids in read
    ]
    batch = pad([{name: row[name] for name in ("input_ids", "labels")} for row in asked], tokenizer.pad_token_id or 0)
    labels = pad([{"labels": [one if one in known else IGNORED for one in row["labels"]]} for row in asked], 0)["labels"]
    return _nats(lambda given: decoder_logits(model, given), batch, labels)


def _nats(logits: Callable[[Mapping[str, Any]], Any], batch: Mapping[str, Any], labels: Any) -> tuple[float, int]:
    import torch

    from pipeline.models.logits import num_targets, token_nats

    with torch.no_grad():
        return float(token_nats(logits(batch), labels).sum()), int(num_targets(labels))


def targets(row: Any) -> Tokens:
    """Return ids and labels of an example, of pairs those of the chosen side; an example without targets has none."""
    if "prompt_ids" in row and "labels" not in row:
        return answered(row["prompt_ids"], next((row[name] for name in ("chosen_ids", "completion_ids") if name in row), []))
    ids = list(row.get("input_ids", []))
    return {
        "input_ids": ids,
        "labels": list(row["labels"]) if len(row.get("labels") or []) == len(ids) else [IGNORED, *ids[1:]],
    }
