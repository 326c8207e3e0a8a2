"""Hold a profile's evaluation against the figures that the project promises.

    python tests/figures.py tiny [runs]

Prints each figure beside its bound; status 1 if one falls short.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Figure = tuple[str, Callable[[dict[str, Any]], float], Callable[[float], bool], str]


def at(node: str, metric: str, model: str = "", part: str = "value") -> Callable[[dict[str, Any]], float]:
    """Return a reader of one figure: of a node, or of another model in the node's table."""
    return lambda found: float(found["nodes"][node]["figures"][metric][model or node][part])


def change(node: str, against: str, metric: str, part: str = "value") -> Callable[[dict[str, Any]], float]:
    """Return a reader of a paired difference."""
    return lambda found: float(
        next(
            item[part] for item in found["nodes"][node]["comparisons"] if (item["against"], item["metric"]) == (against, metric)
        )
    )


def known(node: str, model: str = "") -> Callable[[dict[str, Any]], float]:
    """Return a reader of the share of right answers about unseen scenes, the mean over kinds of questions, in a node's table."""
    kinds = ("colour", "count", "where", "at", "everything")
    return lambda found: sum(at(node, f"right_{kind}", model)(found) for kind in kinds) / len(kinds)


def real(base: str) -> list[Figure]:
    """Return what is promised of a chain on real text, whose base model is called so."""
    return [
        (
            "SFT lowers the replies' loss: upper end of the paired interval",
            change("sft", base, "loss", "high"),
            lambda x: x < 0,
            "< 0",
        ),
        (
            "SFT lowers the replies' bits per byte: upper end",
            change("sft", base, "bits_per_byte", "high"),
            lambda x: x < 0,
            "< 0",
        ),
        (
            "DPO tells the real reply better than SFT: lower end of the paired interval",
            change("dpo", "sft", "accuracy", "low"),
            lambda x: x > 0,
            "> 0",
        ),
        ("DPO's accuracy, lower end, over chance", at("dpo", "accuracy", part="low"), lambda x: x > 0.5, "> 0.5"),
        (
            "chosen replies' loss, nats a token, DPO - SFT: upper end",
            change("dpo", "sft", "loss", "high"),
            lambda x: x < 0.1,
            "< 0.1",
        ),
    ]


def aligned(node: str, parent: str = "sft") -> list[Figure]:
    """Return what is promised of a way of alignment in the world: better answers, and the knowledge kept."""
    lost = change(node, parent, "exact_match")
    return [
        (f"{node}: win rate over {parent}, lower end", at(node, "win_rate", part="low"), lambda x: x >= 0.8, ">= 0.8"),
        (f"{node}: exact match lost", lambda found: -lost(found), lambda x: x <= 0.02, "<= 0.02"),
    ]


def told_apart(node: str) -> list[Figure]:
    """Return what is promised of a reward model: right more often than chance, and than the shorter or the longer answer."""
    longer, shorter = (change(node, f"{which} answer", "reward_accuracy", "low") for which in ("longer", "shorter"))
    return [
        (f"{node}: right on held-out pairs, lower end", at(node, "reward_accuracy", part="low"), lambda x: x > 0.5, "> 0.5"),
        (f"{node}: over the longer answer, lower end", longer, lambda x: x > 0, "> 0"),
        (f"{node}: over the shorter answer, lower end", shorter, lambda x: x > 0, "> 0"),
    ]


def honest(node: str, kept: float, **refused: float) -> list[Figure]:
    """Return what is promised of a way to honesty: so much of each kind of the unknown is refused, so much of the known is kept."""
    return [
        (f"{node}: right answers of SFT kept", at(node, "kept"), lambda x: x >= kept, f">= {kept}"),
        *(
            (f"{node}: refused, {kind}", at(node, f"refused_{kind}"), lambda x, least=least: x >= least, f">= {least}")
            for kind, least in refused.items()
        ),
    ]


FIGURES: dict[str, list[Figure]] = {
    "tiny": [
        ("held-out loss over the entropy floor", at("pretrain", "loss_over_floor"), lambda x: x <= 1.15, "<= 1.15"),
        ("facts completed by the base model", at("pretrain", "completion"), lambda x: x >= 0.97, ">= 0.97"),
        ("exact answers about unseen people, base", at("sft", "exact_match", "pretrain"), lambda x: x <= 0.02, "<= 0.02"),
        ("exact answers about unseen people, control", at("sft", "exact_match", "sft-control"), lambda x: x <= 0.05, "<= 0.05"),
        ("exact answers about unseen people, SFT", at("sft", "exact_match"), lambda x: x >= 0.90, ">= 0.90"),
        ("DPO's win rate over SFT", at("dpo", "win_rate"), lambda x: x >= 0.90, ">= 0.90"),
        ("DPO's win rate over SFT, lower end", at("dpo", "win_rate", part="low"), lambda x: x > 0.85, "> 0.85"),
        ("exact match lost by DPO", lambda found: -change("dpo", "sft", "exact_match")(found), lambda x: x <= 0.02, "<= 0.02"),
    ],
    "classics": [
        ("bits per byte, base - unigram: upper end", change("pretrain", "unigram", "bits_per_byte", "high"), lambda x: x < 0, "< 0"),
        ("bits per byte, 5-gram - base", lambda found: -change("pretrain", "5-gram", "bits_per_byte")(found), lambda x: x >= 0.08, ">= 0.08"),
        ("SFT's replies' loss against the control: upper end", change("sft", "sft-control", "loss", "high"), lambda x: x < 0, "< 0"),
        *real("pretrain"),
    ],
    "smollm2": real("adopt"),
    "feedback": [figure for node in ("kto", "rlhf", "rlhf-grpo", "self_train") for figure in aligned(node)],
    "classic": [*told_apart("reward"), *aligned("rlhf")],
    "plays": told_apart("reward"),
    "rounds": [
        *aligned("dpo-round1"),
        ("dpo-round2: win rate over dpo-round1, lower end", at("dpo-round2", "win_rate", part="low"), lambda x: x > 0.5, "> 0.5"),
        aligned("dpo-round2", "dpo-round1")[1],
    ],
    "reasoning": [
        ("solved, greedy, SFT: sometimes", at("sft", "exact_match"), lambda x: 0.1 < x < 0.7, "0.1 to 0.7"),
        *(
            (f"solved, {how}, RLOO - {other}: lower end", change("rlhf", other, metric, "low"), lambda x: x > 0, "> 0")
            for how, metric in (("greedy", "exact_match"), ("sampled", "sampled_reward")) for other in ("sft", "rlhf-format")
        ),
    ],
    "honest": [
        *honest("dpo", 0.97, new=0.95, first=0.95, last=0.95),  # sft-refuse is its rival
        *(figure for draw in ("", "2", "3") for figure in honest(f"calibrate-abstain{draw}", 0.95, apart=0.6)),
    ],
    "minutes": [
        (f"finetune-{task}: {metric}, pretrained - random weights: lower end", change(f"finetune-{task}", f"finetune-{task}-control", metric, "low"), lambda x: x > 0, "> 0")
        for task in ("genres", "verses") for metric in ("macro_f1", "accuracy")
    ],
    "emoji": [
        ("name to picture among unseen emoji, recall at 5 over chance", lambda found: at("pretrain-clip", "text_to_image_at_5")(found) / at("pretrain-clip", "text_to_image_at_5", "chance")(found), lambda x: x >= 15, ">= 15"),
        ("category by prompts - the most frequent one, accuracy: lower end", change("zero_shot", "best guess by frequency", "accuracy", "low"), lambda x: x > 0, "> 0"),
        ("category by prompts - random weights, accuracy: lower end", change("zero_shot", "zero_shot-control", "accuracy", "low"), lambda x: x > 0, "> 0"),
    ],
    "vision": [
        ("right about unseen scenes, mean of the kinds of questions", known("sft"), lambda x: x >= 0.9, ">= 0.9"),
        ("right about pairs that only pretraining has shown", at("sft", "right_reserved"), lambda x: x >= 0.7, ">= 0.7"),
        ("all questions, sft - control: lower end", change("sft", "sft-control", "exact_match", "low"), lambda x: x > 0, "> 0"),
        ("reserved pairs, sft - control: lower end", change("sft", "sft-control", "right_reserved", "low"), lambda x: x > 0, "> 0"),
        ("dpo says of what is not there that it is not", at("dpo", "right_absent"), lambda x: x >= 0.9, ">= 0.9"),
        ("dpo says so where colour and shape are apart", at("dpo", "right_apart"), lambda x: x >= 0.9, ">= 0.9"),
        ("others lost by dpo", lambda found: known("dpo", "sft")(found) - known("dpo")(found), lambda x: x <= 0.02, "<= 0.02"),
    ],
    "vlm": [
        ("loss of captions with their own pictures - with others': upper end", change("sft", "shuffled pictures", "loss", "high"), lambda x: x < 0, "< 0"),
    ],
    "distill": [
        ("held-out loss with the teacher - without it, as long: upper end", change("distill", "distill-alone", "loss", "high"), lambda x: x < 0, "< 0"),
        ("KL to the teacher, of it - without it: upper end", change("distill", "distill-alone", "kl_to_teacher", "high"), lambda x: x < 0, "< 0"),
        ("KL to the chat teacher after - before its own answers: upper end", change("distill-chat", "sft", "kl_to_teacher", "high"), lambda x: x < 0, "< 0"),
    ],
}  # fmt: skip


def of_tasks(folder: Path) -> list[Figure]:
    """Return that each fine-tuned model of a profile beats its trivial baseline by its task's own metric."""
    records = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/manifest.json"))
    }

    def gain(record: dict[str, Any]) -> Callable[[dict[str, Any]], float]:
        return lambda _: float(record["evaluation"]["primary"]["low"])

    return [
        (f"{name} over its baseline: lower end", gain(record), lambda x: x > 0, "> 0")
        for name, record in records.items()
        if (record.get("evaluation") or {}).get("primary") and not record["control_of"]
    ]


def main() -> int:
    """Print the figures and say whether all are reached."""
    profile, runs = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "runs")
    summary = runs / profile / "evaluate.json"
    found = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    wanted = [*FIGURES.get(profile, []), *of_tasks(runs / profile)]
    short = int(not wanted)
    for name, read, reached, bound in wanted:
        value = read(found)
        short += not reached(value)
        print(f"{'ok   ' if reached(value) else 'SHORT'} {name:<78} {value:8.3f}  wanted {bound}")
    return int(short > 0)


if __name__ == "__main__":
    sys.exit(main())
