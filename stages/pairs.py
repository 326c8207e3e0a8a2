"""A chat model, prompts and rewards in, pairs of its own answers out: rows for preference optimisation, and no model.

    python stages/pairs.py --config stages/profiles/rounds/pairs.yaml --parent runs/tiny/sft --output runs/rounds/pairs

Several answers to each prompt are sampled, without dropout, and scored by rules (`rewards: {judge: 1.0}`), by a trained
model (`reward: NODE`, a second parent), or by both, weighted. The best and the worst become the two sides of a pair, so
that a node with `data: pairs` learns from what its parent itself says (on-policy pairs, as in Guo et al. 2024).
Held-out prompts make held-out pairs. Answers are kept on disk in blocks; a kill loses one block at most.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import ROWS, Signature
from pipeline.data.types import Row
from pipeline.system.errors import UserError
from pipeline.training.pairing import MAKES, PairOptions
from pipeline.training.rewarded import RewardedStage


class Pairs(RewardedStage):
    """Hand on the best and the worst of several answers to each prompt."""

    title = "Pairs"
    about = "Pairs of a model's own answers to prompts, of which the one with the greater reward is chosen."
    gives, makes = ROWS, MAKES
    Options = PairOptions

    def signature(self, options: Any) -> Signature:
        """Return what goes in and comes out; UserError where a rule or the number of answers is at fault."""
        if options.answers < 2:
            raise UserError(f"answers: {options.answers} makes no pair; sample 2 or more")
        return super().signature(options)

    def train(self, run: Run) -> None:
        """Sample, score and write down the pairs of both splits."""
        from pipeline.chain import blocks
        from pipeline.data import rows as files
        from pipeline.models import checkpoint, tokenization
        from pipeline.system.hardware import device
        from pipeline.training import guards
        from pipeline.training.answers import Sampler, fitting
        from pipeline.training.chat import row_length
        from pipeline.training.pairing import Pairing, evaluation
        from pipeline.training.parents import known
        from pipeline.training.rewarded import scorable

        options: PairOptions = run.options
        tokenizer, model = tokenization.load(run.parent), checkpoint.load(run.parent).to(device()).eval()
        tokenization.set_template(tokenizer, "", run.parent)
        guards.ends(tokenizer)
        longest, sampler, found = row_length(run, model), Sampler(run, tokenizer), dict[str, Pairing]()
        limits = dict(zip(files.SPLITS, (options.prompts, options.held_out_prompts), strict=True))
        read = {split: run.rows(split) for split in limits}
        scorable(options, read["train"].kept)
        first = [
            {"input_ids": tokenization.render(tokenizer, row["prompt"], answer_next=True)[:longest]}
            for row in read["train"].kept[:8]
        ]
        known(run, model, first, tokenizer)
        run.unchanged()

        def pairs(split: str) -> Iterator[Row]:
            prompts, dropped = fitting(run, read[split].kept, tokenizer, longest, limits[split])
            run.say(f"{split}: samples {options.answers} answers to each of {len(prompts):,} prompts")
            found[split] = Pairing(options, read[split].dropped + dropped)
            yield from found[split].rows(sampler.groups(model, prompts, split, (run.seed, self.kind, split), "parent"))
            run.say(f"{split}: {found[split].told()}")

        if run.main:
            files.write(run.result, self.makes, {split: pairs(split) for split in limits})
        else:
            for split in limits:
                for _ in pairs(split):  # its share of the blocks
                    pass
        train, held_out = found.values()
        if not train.sides:
            blocks.forget(run.output)
            raise UserError(f"no prompt gave a pair ({train.told()}); look at rewards, margin and answers")
        run.record["rollouts"] = {split: one.record() for split, one in found.items()} | {"failures": dict(sampler.failures)}
        kept = len(train.sides)
        run.record["recipe"] |= {"rows": kept + train.dropped.total(), "kept": kept, "dropped": dict(train.dropped)}
        run.record["evaluation"] = evaluation(run, held_out)


STAGE = Pairs

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))
