"""Finished stages in, one table of held-out figures with intervals out (target `evaluate`).

    python stages/eval.py --config FILE --parent runs/tiny/pretrain --parent runs/tiny/sft --output runs/tiny/evaluate.json

Every stage is measured on rows that no stage trained on, against its parent and against the control.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pipeline.config import option
from pipeline.stage import Evaluation, run_evaluation


@dataclass(frozen=True)
class Options:
    """Our own options of evaluation."""

    rows: int = option(400, "held-out rows that losses are measured on, at most")
    pairs: int = option(400, "held-out pairs that accuracy is measured on, at most")
    resamples: int = option(1000, "bootstrap resamples behind an interval")
    max_new_tokens: int = option(64, "longest answer that is generated")
    samples: int = option(4, "prompts that every stage answers side by side")
    seed: int = option(42, "of the questions and the sampled answers")


def measure(run: Evaluation) -> None:
    """Measure every stage that was given and write the summary."""
    from pipeline.evaluation import measure as m
    from pipeline.evaluation import table

    options: Options = run.options
    findings = m.Findings()
    template = next((m.Judged(folder).tokenizer.chat_template for name, folder in run.folders.items() if name == "sft"), None)
    stages = {name: m.Judged(folder, template) for name, folder in run.folders.items()}
    chats = [stage for stage in stages.values() if stage.tokenizer.chat_template]
    if "pretrain" in stages and stages["pretrain"].record["recipe"]["name"]:
        m.text_loss(stages["pretrain"], m.held_out(stages["pretrain"], options.rows), findings)
    if "sft" in stages:
        rows = m.held_out(stages["sft"], options.rows)
        m.reply_loss([stage for stage in chats if stage.name != "dpo"], rows, findings)
        m.side_by_side(
            chats,
            [row["messages"][:-1] for row in rows[:: len(rows) // options.samples][: options.samples]],
            findings,
            options.max_new_tokens,
        )
    if "dpo" in stages:
        pairs = m.held_out(stages["dpo"], options.pairs)
        m.pair_accuracy([stage for stage in chats if stage.name in ("sft", "dpo")], pairs, findings)
    module = next((stage.recipe().module for name, stage in stages.items() if name == "sft"), None)
    if hasattr(module, "questions"):
        m.world_answers(chats, module, findings, options.max_new_tokens, options.seed)
    if "pretrain" in stages and hasattr(module, "completions"):
        m.completions(stages["pretrain"], module, findings)
    run.finish(m.summarise(findings, options.resamples), table.render)


if __name__ == "__main__":
    sys.exit(run_evaluation(Options, measure, str(__doc__)))
