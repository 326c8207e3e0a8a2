"""A causal model and text in, the texts that it finds likeliest out: rows and no model.

python stages/choose.py --parent runs/mine/pretrain --data mine.jsonl --output runs/mine/choose
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import ROWS, Stage
from pipeline.data.types import Row
from pipeline.system.config import option


class Choice(Stage):
    """Hand on the texts with the least loss a token under the parent; those that are held out stay whole."""

    title = "Choice"
    about = "The texts that a model finds likeliest."
    reads = "text"
    gives = ROWS
    makes = "text"

    @dataclass(frozen=True)
    class Options:
        """Our own options of the choice."""

        recipe: str = option("world", "data recipe that gives text")
        share: float = option(0.5, "of the texts, to be handed on", at_least=0.01, at_most=1.0)
        seed: int = option(42, "of the recipe")

    def train(self, run: Run) -> None:
        """Score every text and write down the chosen ones."""
        from pipeline.data import rows as files

        read = run.rows()
        scores = _nats(run.parent, read.kept)
        order = sorted(range(len(scores)), key=scores.__getitem__)[: max(1, round(run.options.share * len(scores)))]
        chosen = [read.kept[number] for number in sorted(order)]
        files.write(run.result, self.makes, {"train": chosen, "held_out": run.rows("held_out").kept})
        dropped = dict(read.dropped) | {"less likely than the others": len(read.kept) - len(chosen)}
        run.record["recipe"] |= {"rows": len(read.kept) + read.dropped.total(), "kept": len(chosen), "dropped": dropped}
        run.say(f"hands on {len(chosen):,} of {len(read.kept):,} texts")


def _nats(parent: str, rows: Sequence[Row]) -> list[float]:
    """Return the loss a token of each text, in nats."""
    import torch

    from pipeline.data.tokens import encode_text
    from pipeline.models import checkpoint, tokenization
    from pipeline.models.logits import token_nats

    tokenizer, model = tokenization.load(parent), checkpoint.load(parent).eval()
    found: list[float] = []
    with torch.no_grad():
        for row in rows:
            encoded: dict[str, Any] = {key: torch.tensor([ids]) for key, ids in encode_text(row, tokenizer).items()}
            logits = model(input_ids=encoded["input_ids"], use_cache=False).logits
            found.append(token_nats(logits[:, :-1], encoded["labels"][:, 1:]).mean().item())
    return found


STAGE = Choice

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))
