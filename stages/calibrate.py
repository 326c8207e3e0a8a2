r"""A chat model that can refuse by a token of its own, and questions about what is known, in; the same model in balance out.

    python stages/calibrate.py --config stages/profiles/honest/calibrate-apart.yaml --parent runs/honest/sft-apart \
        --output runs/honest/calibrate-apart

The output rows of the texts `rows` are multiplied by one number, the greatest that leaves the share `keep` of the right
answers as they are: a token is predicted where its logit is the greatest, and a logit is linear in its row, so the number
is where a bias would be. The rows of the recipe should be about others than those that the parent was trained on, of whom
it is surer than of the rest.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Stage
from pipeline.system.config import option
from pipeline.system.errors import UserError

_BATCH = 64  # answers that are read at once


class Calibration(Stage):
    """Set how readily a model refuses, and hand it on."""

    title = "Calibration"
    about = "A chat model whose readiness to refuse was set on questions that it can answer."
    reads = "prompts"
    takes: ClassVar[dict[str, tuple[str, ...]]] = {PARENT: ("causal",)}
    gives = "causal"
    primary = (Against("refused_apart", PARENT),)

    @dataclass(frozen=True)
    class Options:
        """Our own options of the balance."""

        recipe: str = option("world", "data recipe that gives questions and right answers")
        rows: list[str] = option([], "texts of the tokens by which the model refuses")  # noqa: RUF009
        keep: float = option(0.96, "share of the right answers that stay as they are", at_least=0.0, at_most=1.0)

    def train(self, run: Run) -> None:
        """Find the factor and write the model."""
        import torch

        from pipeline.data import tokens
        from pipeline.data.batches import CausalCollator
        from pipeline.models import checkpoint, tokenization
        from pipeline.training.output_rows import balance, least_factors

        options: Calibration.Options = run.options
        tokenizer, model = tokenization.load(run.parent), checkpoint.load(run.parent).eval()
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in options.rows]
        if not ids or any(len(one) != 1 for one in ids):
            raise UserError(f"rows: {options.rows}: each must be one token of the parent, as method rows makes it")
        refusals = torch.tensor([one[0] for one in ids])
        head = model.get_output_embeddings().weight
        if head is model.get_input_embeddings().weight:
            raise UserError(f"--parent {run.parent}: its head is tied to its embeddings; train it with method rows first")
        rows = self.rows(run).kept
        answers = [row["prompt"] + [{"role": "assistant", "content": row["answer"]}] for row in rows]
        encoded = [tokens.encode_messages(turns, tokenizer) for turns in answers]
        found: list[float | None] = []
        for start in range(0, len(encoded), _BATCH):
            batch = CausalCollator(int(tokenizer.pad_token_id))(encoded[start : start + _BATCH])
            labels = batch.pop("labels")[:, 1:]
            with torch.no_grad():
                logits = model(**batch, use_cache=False).logits[:, :-1]
            found += least_factors(logits, labels, refusals)
        factor = balance(found, options.keep)
        if factor == float("inf"):
            raise UserError(
                f"rows: {options.rows}: so many right answers stay at any factor, since these tokens are nowhere near; raise keep"
            )
        answered = sum(one is not None for one in found)
        with torch.no_grad():
            head[refusals] *= factor
        lost = len(encoded) - answered
        run.record["recipe"] |= {
            "rows": len(encoded),
            "kept": answered,
            "dropped": {"not answered right": lost} if lost else {},
        }
        run.record["factor"] = factor
        run.say(f"rows of {len(ids)} tokens times {factor:.4f}, so that {options.keep:.1%} of {answered:,} right answers stay")
        checkpoint.save(model, tokenizer, run.result)


STAGE = Calibration

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))
