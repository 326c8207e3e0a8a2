"""One corpus, one budget of operations, every objective: what each learns, and what its frozen features know.

    python stages/compare.py --config stages/profiles/objectives/compare.yaml --output runs/objectives

Each objective is pretrained by stages/pretrain.py with the profile beside this one's file. Only the probe's
columns compare across objectives; losses are of other questions.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import objectives
from pipeline.chain import manifest, request
from pipeline.system import config, process
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.system.process import say

CONTROLS = 3  # models with random weights, whose mean is what a trained one is held against


@dataclasses.dataclass(frozen=True)
class Options:
    """Our own options of the comparison."""

    objectives: dict[str, Any] = option({}, "objectives, each with the flags that it alone gets")  # noqa: RUF009
    flops: float = option(2e13, "floating point operations that each may spend")
    epochs: float = option(0.0, "passes over the text, at most, in place of the profile's; 0 leaves them", at_least=0.0)
    probe: str = option("plays", "data recipe that gives labels")
    rows: int = option(300, "held-out rows that figures are measured on, at most", at_least=1)
    resamples: int = option(2000, "bootstrap resamples behind an interval", at_least=1)


def pretrained(name: str, options: Options, profile: Path, output: Path) -> Path:
    """Pretrain one objective, or find that it is done; return its folder. A parent may be another one of them by name."""
    passes = {"num_train_epochs": options.epochs} if options.epochs else {}
    given = {"flops": options.flops} | passes | (options.objectives[name] or {})
    if given.get("parent") in options.objectives:
        given["parent"] = str(output / given["parent"])
    own = [word for key, value in given.items() for word in (f"--{key}", value if key == "parent" else json.dumps(value))]
    script = [sys.executable, str(Path(__file__).with_name("pretrain.py")), "--config", str(profile)]
    flags = ["--objective", name, "--output", str(output / name)]
    if status := subprocess.run([*script, *flags, *own], check=False).returncode:
        raise UserError(f"objective {name}: pretraining ended with status {status}")
    return output / name


def figures(folder: Path, options: Options) -> list[dict[str, Any]]:
    """Return the held-out figures of a stage, each beside its unigram or chance."""
    from pipeline.data import recipe
    from pipeline.evaluation import intervals, objective

    record = manifest.read(folder) or {}
    data = recipe.load(record["config"]["recipe"])
    held_out = data.rows("text", "held_out", record["seed"]).kept
    found = objective.scores(
        folder, data.rows("text", "train", record["seed"]), held_out[:: max(1, len(held_out) // options.rows)]
    )
    rows = []
    for metric, (scores, weights) in found["pretrain"].items():
        rival = next(name for name in ("unigram", "chance", "untrained") if metric in found.get(name, {}))
        rows.append(
            {"metric": metric, **dataclasses.asdict(intervals.ratio(scores, weights, options.resamples)), "against": rival}
        )
        gain = intervals.difference(scores, found[rival][metric][0], weights, options.resamples)
        better = gain.high < 0 if metric.endswith("loss") else gain.low > 0
        rows[-1] |= {"rival": sum(found[rival][metric][0]) / sum(weights), "better": better}
    return rows


def compared(options: Options, profile: Path, output: Path) -> dict[str, Any]:
    """Pretrain, measure and probe every objective."""
    from pipeline.data import recipe
    from pipeline.evaluation import probe

    labelled = [row for split in recipe.SPLITS for row in recipe.load(options.probe).rows("labels", split, 0).kept]
    texts, labels, groups = ([row[key] for row in labelled] for key in ("text", "label", "group"))
    words = probe.classify(probe.bag_of_words(texts), labels, groups)
    most = max(labels.count(label) for label in set(labels)) / len(labels)
    table: dict[str, Any] = {
        "TF-IDF": {"probe": dataclasses.asdict(words.accuracy(resamples=options.resamples))},
        "majority": {"probe": {"value": most}},
    }
    for name in options.objectives:
        table[name] = row(pretrained(name, options, profile, output), options, labelled)
        say("compare", f"{name}: {line(name, table[name])}")
    return {"objectives": table, "flops": options.flops, "items": len(texts), "groups": len(set(groups))}


def row(folder: Path, options: Options, labelled: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the table says of one pretraining, measured once and kept beside it."""
    from pipeline.evaluation import probe

    record = manifest.read(folder) or {}
    kept = folder.with_suffix(".json")
    inputs = manifest.digest(
        [record["outputs"], labelled, options.rows, options.resamples, CONTROLS, probe.FOLDS, probe.REPEATS]
    )
    done = manifest.read(kept.parent, kept.name)
    if done and done["inputs"] == inputs:
        return done
    texts, labels, groups = ([row[key] for row in labelled] for key in ("text", "label", "group"))
    learned = probe.classify(probe.features(folder, record["family"], texts), labels, groups)
    fresh = [probe.features(folder, record["family"], texts, random=True, seed=seed) for seed in range(CONTROLS)]
    control = probe.mean([probe.classify(found, labels, groups) for found in fresh])
    found = {
        "inputs": inputs, "family": record["family"], "steps": record["steps"], "tokens": record["tokens"],
        "seconds": record["training_seconds"], "tokens_per_second": record["tokens"] / record["training_seconds"], "training_loss": record["metrics"], "held_out": figures(folder, options),
        "probe": dataclasses.asdict(learned.accuracy(resamples=options.resamples)),
        "random": dataclasses.asdict(control.accuracy(resamples=options.resamples)),
        "gain": dataclasses.asdict(learned.accuracy(control, options.resamples)),
    }  # fmt: skip
    manifest.write_json(kept, found)
    return found


def interval(found: dict[str, float], scale: float = 100, digits: int = 1) -> str:
    """Return a figure with its interval."""
    return f"{scale * found['value']:.{digits}f} [{scale * found['low']:.{digits}f}, {scale * found['high']:.{digits}f}]"


def line(name: str, found: dict[str, Any]) -> str:
    """Return one row of the table."""
    if name == "majority":
        return f"| {name} | | | | | | {100 * found['probe']['value']:.1f} | |"
    if name == "TF-IDF":
        return f"| {name} | | | | | | {interval(found['probe'])} | |"
    held_out = "; ".join(
        f"{row['metric']} {interval(row, 1, 3)}"
        + f" ({row['against']} {row['rival']:.3f}{'' if row['better'] else ', not clearly worse'})"
        for row in found["held_out"]
    )
    loss = found["training_loss"]
    return (
        f"| `{name}` | {found['steps']:,} | {found['seconds']:.0f} | {found['tokens_per_second']:,.0f} | {loss['first_loss']:.2f} -> {loss['last_loss']:.2f} "
        f"| {held_out} | {interval(found['probe'])} | {interval(found['gain'])} |"
    )


def rendered(summary: dict[str, Any]) -> Iterable[str]:
    """Yield the table as Markdown."""
    yield "| objective | steps | seconds | tokens/s | training loss | held out | probe, % right | over random weights, points |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, found in summary["objectives"].items():
        yield line(name, found)


def main() -> int:
    """Read the profile, compare, write and print."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(config.explain("compare", str(__doc__), Options, None))
        return 0
    asked = request.read("compare", sys.argv[1:])
    asked.faults += config.check(asked.asked, asked.origins, Options, None)
    asked.faults += [
        f"objectives: {name}: no such objective" for name in asked.asked.get("objectives", {}) if name not in objectives.known()
    ]
    if asked.file is None:
        asked.faults.append("command line: --config is missing; beside it lies the pretrain.yaml of all objectives")
    asked.settle()
    assert asked.output
    assert asked.file
    options, _ = request.split(asked, Options, {})
    summary = compared(options, asked.file.with_name("pretrain.yaml"), asked.output)
    manifest.write_json(asked.output / "compare.json", {"inputs": manifest.digest(dataclasses.asdict(options)), **summary})
    print("\n".join(rendered(summary)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))
