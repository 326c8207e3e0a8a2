"""A chat model and conversations, some about what it can't know, in; a model that withholds what it isn't sure of, out.

    python stages/abstain.py --config stages/profiles/honest/abstain-apart.yaml --parent runs/honest/sft \
        --output runs/honest/abstain-apart

The answers about what can't be known have one of the texts `rows` where the value would stand. Each becomes a token that is
about as likely there as the likeliest value, by its output row alone. A layer behind the last one then lowers those tokens
where the model is sure of a value (`pipeline/models/confidence_layer.py`). Nothing is trained by gradient: the rows are
solved for, and of the layer's settings those are taken by which most of the unknown is refused, while the share `keep` of
the other answers stays as it is; of both, the recipe's training rows alone are asked.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Stage
from pipeline.data.recipe import Rows
from pipeline.system.config import option
from pipeline.system.errors import UserError

_BATCH = 64  # answers that are read at once


class Abstention(Stage):
    """Let a model say that it does not know where no value is likely, and hand it on."""

    title = "Abstention"
    about = "A chat model that says where a value would stand that it does not know, unless it is sure of one."
    reads = "messages"
    takes: ClassVar[dict[str, tuple[str, ...]]] = {PARENT: ("causal",)}
    gives = "causal"
    primary = (Against("refused_apart", PARENT),)

    @dataclass(frozen=True)
    class Options:
        """Our own options of the abstention."""

        recipe: str = option("world", "data recipe that gives answers, those about what can't be known with a text of `rows`")
        rows: list[str] = option([], "texts that stand in the place of a value, each of which becomes a token")  # noqa: RUF009
        keep: float = option(0.96, "share of the other right answers that stay as they are", at_least=0.0, at_most=1.0)
        offsets: list[float] = option([12.0, 14.0, 16.0, 18.0], "logits above which the model counts as sure, to choose from")  # noqa: RUF009
        weights: list[float] = option([4.0, 8.0, 16.0, 32.0], "by how much sureness lowers the tokens, to choose from")  # noqa: RUF009

    def train(self, run: Run) -> None:
        """Solve for the rows, choose the layer and write the model."""
        import torch

        from pipeline.data.batches import CausalCollator
        from pipeline.models import checkpoint, confidence_layer, tokenization
        from pipeline.training.adapter import AdapterOptions
        from pipeline.training.output_rows import balance, begin_rows, settle_rows

        options: Abstention.Options = run.options
        if not options.offsets or not options.weights:
            raise UserError("offsets and weights: each needs a number at least, from which the layer's setting is chosen")
        rows = self.rows(run)
        tokenizer, model = tokenization.load(run.parent), checkpoint.load(run.parent).eval()
        ids = begin_rows(AdapterOptions(method="rows", rows=options.rows), tokenizer, model)
        dataset = _encoded(run, rows, tokenizer, model.config.max_position_embeddings)
        collator = CausalCollator(int(tokenizer.pad_token_id))
        settle_rows(model, dataset, collator, ids)
        model, refusals = confidence_layer.append(model).eval(), torch.tensor(ids)
        states, labels = _answers(model, dataset, collator)
        withheld = torch.isin(labels, refusals)
        if missing := [text for text, token in zip(options.rows, ids, strict=True) if not (labels == token).any()]:
            raise UserError(f"rows: {missing}: no answer of {run.recipe.name} has such a text where a value would stand")
        read = _likeliest(model, states[withheld], refusals)
        down = confidence_layer.lowering(model, refusals)
        right = _factors(model, states, labels, refusals)[0]
        found: list[tuple[float, float, float, float]] = []
        for offset, weight in itertools.product(options.offsets, options.weights):
            confidence_layer.write(model, read, offset, weight * down)
            known, unknown = _factors(model, states, labels, refusals)
            # an answer that the layer itself spoils is lost at any factor
            still = [None if before is None else now or 0.0 for before, now in zip(right, known, strict=True)]
            found.append((*_withheld(unknown, balance(still, options.keep)), offset, weight))
        share, factor, offset, weight = max(found)
        if not share:
            raise UserError(
                f"{run.recipe.name}: under no setting is anything withheld, if {options.keep:.1%} of the right answers stay; "
                "lower keep, or give other offsets and weights"
            )
        confidence_layer.write(model, read, offset, weight * down)
        with torch.no_grad():
            model.get_output_embeddings().weight[refusals] *= factor
        run.record |= {"offset": offset, "weight": weight, "factor": factor, "tokens_read": len(read)}
        run.say(
            f"a layer that reads {len(read):,} tokens: of {len(found)} settings offset {offset:g} and weight {weight:g} withhold "
            f"{share:.1%} of what can't be known, while {options.keep:.1%} of the right answers stay"
        )
        checkpoint.save(model, tokenizer, run.result)


def _encoded(run: Run, rows: Rows, tokenizer: Any, longest: int) -> Any:
    """Return conversations as the parent reads them, those that are too long counted and left out."""
    from pipeline.data import shown, tokens
    from pipeline.training import guards
    from pipeline.training.loop import prepare

    def examples(part: Rows) -> Iterator[dict[str, Any]]:
        return tokens.pieces(
            part.kept, lambda row: shown.conversation(row["messages"], tokenizer), longest, False, part.dropped_by_encoding, part.too_long
        )  # fmt: skip

    dataset = prepare(run, rows, examples, tokenizer, longest)
    guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
    return dataset


def _answers(model: Any, dataset: Any, collator: Any) -> tuple[Any, Any]:
    """Return what enters the last layer where a token of an answer is predicted, (answers, longest, hidden size), and the tokens."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from pipeline.models.logits import IGNORED

    states: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    hook = model.model.layers[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        for start in range(0, len(dataset), _BATCH):
            batch = collator([dataset[row] for row in range(start, min(start + _BATCH, len(dataset)))])
            labels = batch.pop("labels")[:, 1:]
            with torch.no_grad():
                model.model(**batch, use_cache=False)
            for hidden, wanted in zip(seen.pop()[:, :-1], labels, strict=True):
                states.append(hidden[wanted != IGNORED])
                targets.append(wanted[wanted != IGNORED])
    finally:
        hook.remove()
    return pad_sequence(states, batch_first=True), pad_sequence(targets, batch_first=True, padding_value=IGNORED)


def _likeliest(model: Any, states: Any, refusals: Any) -> Any:
    """Return the tokens that the model expects most where it is to withhold, as many as the last layer has units for."""
    import torch

    from pipeline.models import confidence_layer

    with torch.no_grad():
        expected = torch.stack([confidence_layer.logits(model, part).softmax(-1).sum(0) for part in states.split(_BATCH)]).sum(
            0
        )
    expected[refusals] = -1.0
    return expected.topk(min(model.config.intermediate_size, len(expected) - len(refusals))).indices


def _factors(model: Any, states: Any, labels: Any, refusals: Any) -> tuple[list[float | None], list[float]]:
    """Return by how much the refusing rows may be multiplied before a refusal stands in an answer, and must be to stand where it is to.

    The former is None of an answer that is not what the model says, the latter infinite where no factor is enough.
    """
    import torch

    from pipeline.models import confidence_layer
    from pipeline.training.output_rows import least_factors

    known: list[float | None] = []
    unknown: list[float] = []
    for start in range(0, len(states), _BATCH):
        wanted = labels[start : start + _BATCH]
        with torch.no_grad():
            logits = confidence_layer.logits(model, states[start : start + _BATCH])
        withheld = torch.isin(wanted, refusals)
        others = logits.index_fill(2, refusals, float("-inf")).max(-1).values
        rival = logits[..., refusals].max(-1).values
        unknown += torch.where(rival > 0, others / rival, float("inf"))[withheld].tolist()
        answers = ~withheld.any(1)
        known += least_factors(logits[answers], wanted[answers], refusals)
    return known, unknown


def _withheld(needed: Sequence[float], allowed: float) -> tuple[float, float]:
    """Return the share that is withheld at a factor, and the factor: no more than what withholds all that can be."""
    reachable = [one for one in needed if one < float("inf")]
    factor = min(allowed, 1.01 * max(reachable, default=0.0))
    return sum(one < factor for one in reachable) / len(needed), factor


STAGE = Abstention

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))
