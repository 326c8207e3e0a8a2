"""How likely a pretrained model of any family finds rows, and whether it finds them likelier than rows of other tokens.

If a tokenizer doesn't belong to a model, its ids are as good as drawn by lot, and the rows cost what the same rows cost with
their ids exchanged at random: a permutation test (Fisher 1935, section 21), in which the rows keep their repetitions and so
everything that a model can copy. What "cost" means is the family's own: the next token of a causal model, the hidden one of a
masked model, what an encoder-decoder writes for a text with gaps, whether a discriminator takes a token for replaced.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data.tokens import IGNORED, Tokens, answered

if TYPE_CHECKING:
    import torch

KNOWN_ROWS, KNOWN_TOKENS = 8, 2048  # of a causal model's rows, by which it is measured
_GAP_ROWS, _GAP, _FIRST_GAP = 32, 7, 3  # rows of the others; in masked ones every seventh token is hidden, from the fourth on
_FEWEST = 40  # tokens below which the others say nothing
_SURE, _MARGIN = 3.0, 1.0  # nats a token: below exchanged rows, and below guessing, where one exchange is enough
_EXCHANGES, _MOVES = 15, (1, -1, 2, -2, 3, -3)  # more exchanges, and by how much ids may have moved, where it is not
_ERRORS = 2.0  # standard deviations of exchanged rows that rows with moved numbers are below the real ones

Exchange = Mapping[int, int]
Cost = Callable[[Exchange], "Nats | None"]


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


def _over(ask: Callable[[int, Sequence[int]], tuple[float, int]], texts: Sequence[Sequence[int]], known: set[int], exchange: Exchange) -> Nats | None:  # fmt: skip
    """Return the mean of what texts cost; `ask` returns the nats of one and the number of tokens that they are of."""
    found = [ask(at, [exchange.get(one, one) for one in text]) for at, text in enumerate(texts)]
    count = sum(tokens for _, tokens in found)
    mean = sum(nats for nats, _ in found) / max(1, count)
    return Nats(mean, mean, count) if count >= _FEWEST else None


def _gaps(model: Any, tokenizer: Any, known: set[int], _: int, ids: Sequence[int]) -> tuple[float, int]:
    """Hide every seventh token; return what the hidden ones cost."""
    import torch

    from pipeline.models.logits import token_nats

    hidden = set([at for at, one in enumerate(ids) if one in known][_FIRST_GAP::_GAP])
    labels = [one if at in hidden else IGNORED for at, one in enumerate(ids)]
    given = [tokenizer.mask_token_id if at in hidden else one for at, one in enumerate(ids)]
    if tokenizer.mask_token_id is None or not hidden:
        return 0.0, 0
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([given])).logits
    return float(token_nats(logits, torch.tensor([labels])).sum()), len(hidden)


def _replaced(model: Any, tokenizer: Any, known: set[int], _: int, ids: Sequence[int]) -> tuple[float, int]:
    """Return −Σ log p(original) of the tokens, none of which was replaced."""
    import torch

    asked = [at for at, one in enumerate(ids) if one in known]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, asked]
    return float(torch.nn.functional.softplus(logits.float()).sum()), len(asked)


def _written(model: Any, tokenizer: Any, known: set[int], number: int, ids: Sequence[int]) -> tuple[float, int]:
    """Return what an encoder-decoder's own writing costs: the spans that were taken out (T5), or the whole text (BART)."""
    import numpy as np
    import torch

    from pipeline import objectives
    from pipeline.models.logits import decoder_logits, token_nats

    spans = "<extra_id_1>" in tokenizer.get_vocab()
    text = [one for one in ids if one in known]
    if len(text) < _FIRST_GAP or not (spans or tokenizer.mask_token_id is not None):
        return 0.0, 0
    objective: Any = objectives.load("span_corruption" if spans else "denoising")
    asked = objective.corrupt({"input_ids": text, "ends": [len(text)]}, tokenizer, np.random.default_rng(number))
    batch = {name: torch.tensor([asked[name]]) for name in ("input_ids", "labels")}
    labels: torch.Tensor = torch.tensor([[one if one in known else IGNORED for one in asked["labels"]]])
    with torch.no_grad():
        logits = decoder_logits(model, batch)
    return float(token_nats(logits, labels).sum()), int((labels != IGNORED).sum())


def targets(row: Any) -> Tokens:
    """Return ids and labels of an example, of pairs those of the chosen side; an example without targets has none."""
    if "prompt_ids" in row and "labels" not in row:
        return answered(row["prompt_ids"], next((row[name] for name in ("chosen_ids", "completion_ids") if name in row), []))
    ids = list(row.get("input_ids", []))
    return {
        "input_ids": ids,
        "labels": list(row["labels"]) if len(row.get("labels") or []) == len(ids) else [IGNORED, *ids[1:]],
    }
