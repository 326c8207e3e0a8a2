"""Print what was measured: one table, the paired differences, and a few prompts answered side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = {
    "pretrain": "base",
    "sft": "SFT",
    "dpo": "DPO",
    "control": "control",
    "unigram": "unigram",
    "untrained": "untrained",
    "chance": "chance",
    "finetune": "fine-tuned",
    "baseline": "baseline",
}
METRICS = (
    "loss", "bits_per_byte", "floor", "loss_over_floor", "completion", "reply_loss", "reply_bits_per_byte",
    "cloze", "cloze_loss", "generator_loss", "pair_accuracy", "detection", "view_loss", "retrieval", "chosen_loss", "chosen_bits_per_byte", "likelier", "accuracy", "exact_match", "win_rate",
)  # fmt: skip
SHARES = {"completion", "cloze", "exact_match", "win_rate", "likelier", "accuracy", "pair_accuracy", "detection", "retrieval",
          "macro_f1", "f1", "refused", "entity_f1"}  # fmt: skip


def figure(metric: str, estimate: Mapping[str, float]) -> str:
    """Return a figure with its interval: shares in per cent, the rest as they are."""
    if metric in SHARES:
        return f"{100 * estimate['value']:.1f}% [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def render(summary: Mapping[str, Any]) -> str:
    """Return the whole report as text, one line a row."""
    stages = summary["stages"]
    names = [name for name in COLUMNS if name in stages]
    width = 25
    lines = ["", " " * 22 + "".join(f"{COLUMNS[name]:<{width}}" for name in names).rstrip()]
    for metric in METRICS:
        cells = [figure(metric, stages[name][metric]) if metric in stages[name] else "" for name in names]
        if any(cells):
            lines.append(f"{metric:<22}" + "".join(f"{cell:<{width}}" for cell in cells).rstrip())
    lines += ["", "paired differences on the same held-out items, 95% intervals:"]
    for item in summary["comparisons"]:
        verdict = "better, clear of zero" if item["better"] else "not clearly better"
        lines.append(f"  {COLUMNS[item['stage']]} - {COLUMNS[item['against']]:<9}{item['metric']:<16}"
                     f"{item['value']:+.3f} [{item['low']:+.3f}, {item['high']:+.3f}]  {verdict}")  # fmt: skip
    lines += [f"left out: {count:,} {reason}" for reason, count in summary.get("left_out", {}).items()]
    for sample in summary["samples"]:
        lines += ["", f"> {' '.join(sample['prompt'].split())[:200]}"]
        lines += [f"  {COLUMNS[name]:<8} {' '.join(reply.split())[:160]}" for name, reply in sample["answers"].items()]
    return "\n".join(lines)
