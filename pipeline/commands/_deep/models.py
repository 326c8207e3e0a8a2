"""Identities of one finished causal model on rows of its own: packing, padding, the cache, and a copy on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_TEXTS, _TOKENS, _NEW = 6, 48, 12  # texts, tokens of each, tokens that are generated
_LOGITS = 1e-3  # of the largest logit


def texts(record: Mapping[str, Any]) -> list[str]:
    """Return what the first rows of a node say."""
    from pipeline.data import recipe, types

    kind = record["recipe"]["type"]
    rows = recipe.of(record).rows(kind, "train", int(record["seed"])).kept
    return [types.load(kind).document(rows[at]) for at in range(min(_TEXTS, len(rows)))]


def identities(folder: Path, said: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """Yield each identity's name, the deviation found and the one that is allowed; none where all texts are short."""
    import torch

    from pipeline.data import tokens
    from pipeline.models import checkpoint, tokenization
    from pipeline.training import attention

    tokenizer, model = tokenization.load(str(folder)), checkpoint.load(str(folder)).eval()
    ids = [found[: 8 + number * 6][:_TOKENS] for number, found in enumerate(tokens.text_ids(said, tokenizer)) if len(found) > 8]
    rows = [torch.tensor(row) for row in ids]
    if not rows:
        return
    with torch.no_grad():
        alone = [model(input_ids=row[None], use_cache=False).logits[0] for row in rows]
        largest = max(float(logits.abs().max()) for logits in alone)
        if attention.keeps_apart(model):
            yield "packed = unpacked", _packed(model, rows, alone) / largest, _LOGITS
        yield "left padding = right padding", _padded(model, rows, int(tokenizer.pad_token_id)) / largest, _LOGITS
        yield "greedy answers with cache = without (tokens that differ)", _cached(model, rows, int(tokenizer.pad_token_id)), 0.0
    with tempfile.TemporaryDirectory() as copy:
        checkpoint.save(model, tokenizer, Path(copy))
        again = checkpoint.load(copy).state_dict()
        moved = max(float((tensor - again[name]).abs().max()) for name, tensor in model.state_dict().items())
        same = tokens.text_ids(said, tokenization.load(copy)) == tokens.text_ids(said, tokenizer)
    yield "saved and loaded = itself", moved if same else float("inf"), 0.0


def _packed(model: Any, rows: Sequence[Any], alone: Sequence[Any]) -> float:
    """Return the largest difference of a logit between rows in one sequence, their positions beginning anew, and alone."""
    import torch

    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    together = model(input_ids=torch.cat(list(rows))[None], position_ids=positions, use_cache=False).logits[0]
    parts = together.split([len(row) for row in rows])
    return max(float((part - logits).abs().max()) for part, logits in zip(parts, alone, strict=True))


def _padded(model: Any, rows: Sequence[Any], pad: int) -> float:
    """Return the largest difference of a logit after the last token between padding on the left and on the right."""
    import torch

    longest = max(map(len, rows))
    last = []
    for left in (True, False):
        ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.long)
        for at, row in enumerate(rows):
            place = slice(longest - len(row), longest) if left else slice(len(row))
            ids[at, place], mask[at, place] = row, 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        last.append(torch.stack([logits[at, -1 if left else len(row) - 1] for at, row in enumerate(rows)]))
    return float((last[0] - last[1]).abs().max())


def _cached(model: Any, rows: Sequence[Any], pad: int) -> float:
    """Return how many tokens of greedy answers differ between generating with a cache and without."""
    differing = 0
    for row in rows:
        how = {"do_sample": False, "max_new_tokens": _NEW, "min_new_tokens": _NEW, "pad_token_id": pad}
        answers = [model.generate(row[None], attention_mask=row[None] * 0 + 1, use_cache=cached, **how)[0] for cached in (True, False)]  # fmt: skip
        differing += int((answers[0] != answers[1]).sum())
    return float(differing)
