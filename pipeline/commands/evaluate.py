"""Finished stages in, one table of held-out figures with intervals out (target `evaluate`).

    python stages/eval.py --config FILE --parent runs/tiny/pretrain --parent runs/tiny/sft --output runs/tiny/evaluate.json

Every stage is measured on rows that no stage trained on, against its parent and against the control.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pipeline.system.config import option
from pipeline.evaluation.run import Evaluation, run_evaluation


@dataclass(frozen=True)
class Options:
    """Our own options of evaluation."""

    rows: int = option(400, "held-out rows that losses are measured on, at most", at_least=1)
    pairs: int = option(400, "held-out pairs that accuracy is measured on, at most", at_least=1)
    resamples: int = option(1000, "bootstrap resamples behind an interval", at_least=1)
    max_new_tokens: int = option(64, "longest answer that is generated", at_least=1)
    samples: int = option(4, "prompts that every stage answers side by side", at_least=1)
    seed: int = option(42, "of the questions and the sampled answers")


def measure(run: Evaluation) -> None:
    """Measure every stage that was given and write the summary."""
    from pipeline.evaluation import measure as m
    from pipeline.evaluation import table

    options: Options = run.options
    findings = m.Findings()
    template = m.Judged(run.folders["sft"]).tokenizer.chat_template if "sft" in run.folders else None
    stages = {name: m.Judged(folder, template) for name, folder in run.folders.items()}
    base, sft, dpo = (stages.get(name) for name in ("pretrain", "sft", "dpo"))
    chats = [stage for stage in stages.values() if stage.tokenizer.chat_template and stage.record["family"] == "causal"]
    run.say(f"measures {', '.join(stages)} on held-out data")
    if base and base.record["recipe"]["name"] and (texts := m.held_out(base, options.rows, findings)):
        if base.record["config"].get("objective", "causal") == "causal":
            m.text_loss(base, texts, findings)
        else:
            m.objective_figures(base, texts, findings, options.samples)
    if sft and (rows := m.fitting(chats, m.held_out(sft, options.rows, findings), findings)):
        m.reply_loss([stage for stage in chats if stage.name != "dpo"], rows, findings)
        asked = [row["messages"][:-1] for row in rows[:: -(-len(rows) // options.samples)]]
        m.side_by_side(chats, asked, findings, options.max_new_tokens)
    if dpo and (pairs := m.fitting(chats, m.held_out(dpo, options.pairs, findings), findings)):
        m.pair_accuracy([stage for stage in (sft, dpo) if stage], base, pairs, findings)
    world = sft.recipe().module if sft else None
    if hasattr(world, "questions"):
        m.world_answers(chats, world, findings, options.max_new_tokens, options.seed)
    if base and hasattr(world, "completions"):
        m.completions(base, world, findings)
    run.finish(m.summarise(findings, options.resamples), table.render)


if __name__ == "__main__":
    sys.exit(run_evaluation(Options, measure, str(__doc__)))
