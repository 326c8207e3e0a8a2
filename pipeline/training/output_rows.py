"""Tokens that are trained by name: beside an adapter, or, by method rows, as output rows that are all that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.models.logits import IGNORED
from pipeline.system.errors import UserError
from pipeline.training.adapter import AdapterOptions

_ROWS, _RIDGE = 8, 0.1  # rows that are read at once; what keeps a row from fitting single states


def begin_rows(options: AdapterOptions, tokenizer: Any, model: Any) -> list[int]:
    """Return the ids of the tokens whose rows are trained; UserError where the options name none, or some in vain.

    Beside an adapter those are the tokens of the texts as they stand: words that pretraining never saw, which the layers can't
    learn to say while the rows of all such words are alike. By method rows each text becomes one token where it is none;
    `settle_rows` says how it is read. The head then gets weights of its own, so that a row of it can be trained and the
    embedding of the same token stays.
    """
    import torch

    if options.method == "full" and options.rows:
        raise UserError("rows: method full trains every token; leave it out, or set method to lora or rows")
    if options.method != "rows":
        return sorted({token for text in options.rows for token in tokenizer.encode(text, add_special_tokens=False)})
    if not options.rows:
        raise UserError("rows: method rows needs the texts whose output rows are trained")
    new = [text for text in options.rows if len(tokenizer.encode(text, add_special_tokens=False)) != 1]
    tokenizer.add_tokens(new)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    ids = [tokenizer.encode(text, add_special_tokens=False)[0] for text in options.rows]
    added = tokenizer.convert_tokens_to_ids(new)
    with torch.no_grad():
        embeddings.weight[added] = 0.0
        if head.weight is embeddings.weight:
            head.weight = torch.nn.Parameter(embeddings.weight.detach().clone())
    model.config.get_text_config().tie_word_embeddings = False
    return ids


def settle_rows(model: Any, dataset: Any, collator: Any, ids: Sequence[int]) -> None:
    """Begin each trained row where its token would be about as likely as the likeliest one at the places where it is a target.

    A token without an embedding of its own, which is all zeros, is read as what the model expects at those places: the mean
    embedding under its own probabilities.

    A head without a bias has no constant, but the hidden states h of one sort of places are few enough that a row can be
    found whose product with them is nearly constant: w = c (E[h hᵀ] + λ I)⁻¹ E[h], c being the mean largest logit there.
    From zero, training spends its steps on finding that direction and fits single examples with the rest.
    """
    import torch

    states: dict[int, list[torch.Tensor]] = {token: [] for token in ids}
    expected: dict[int, list[torch.Tensor]] = {token: [] for token in ids}
    embeddings = model.get_input_embeddings().weight
    largest: dict[int, list[torch.Tensor]] = {token: [] for token in ids}
    head, seen = model.get_output_embeddings(), []
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.eval()
    try:
        for start in range(0, len(dataset), _ROWS):
            batch = collator([dataset[row] for row in range(start, min(start + _ROWS, len(dataset)))])
            labels = batch.pop("labels")[:, 1:]
            with torch.no_grad():
                logits = model(**{key: value.to(model.device) for key, value in batch.items()}, use_cache=False).logits[:, :-1]
            hidden = seen.pop()[:, :-1]
            for token in ids:
                here = (labels == token).to(logits.device)
                states[token].append(hidden[here])
                largest[token].append(logits[here].max(-1).values)
                expected[token].append(logits[here].softmax(-1) @ embeddings.detach())
    finally:
        hook.remove()
    model.train()
    for token in ids:
        found = torch.cat(states[token])
        if len(found):
            second = found.T @ found / len(found) + _RIDGE * torch.eye(found.shape[1], device=found.device)
            row = torch.linalg.solve(second, found.mean(0)) * torch.cat(largest[token]).mean()
            with torch.no_grad():
                head.weight[token] = row
                if not embeddings[token].any():
                    embeddings[token] = torch.cat(expected[token]).mean(0)


def least_factors(logits: Any, labels: Any, refusals: Any) -> list[float | None]:
    """Return for each answer the least factor at which a refusal stands in it; None where it is not what the model says.

    `logits`: (answers, length, vocabulary); `labels`: (answers, length). Without the refusals every label has to be the
    likeliest token; a refusal overtakes it where its own logit, if that is positive, times the factor is the greater one.
    """
    import torch

    target = labels != IGNORED
    wanted = logits.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    others = logits.index_fill(2, refusals, float("-inf"))
    right = ((others.max(-1).values <= wanted) | ~target).all(1)
    rival = logits[..., refusals].max(-1).values
    infinite = torch.full_like(rival, float("inf"))
    least = torch.where(target & (rival > 0) & (wanted > 0), wanted / rival.clamp(min=1e-6), infinite).min(1).values
    return [float(one) if found else None for one, found in zip(least, right, strict=True)]


def balance(factors: Sequence[float | None], keep: float) -> float:
    """Return the greatest factor of refusing rows that leaves the share `keep` of right answers; `factors`: of `least_factors`.

    UserError where no answer is right.
    """
    right = sorted(one for one in factors if one is not None)
    if not right:
        raise UserError(f"the parent answers none of {len(factors):,} questions right; nothing sets the balance")
    return right[int((1 - keep) * len(right))] * (1 - 1e-6)
