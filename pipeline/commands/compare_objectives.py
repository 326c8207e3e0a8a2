"""Compare all objectives on one corpus at equal operations: what each learns, and what its frozen features know.

    python -m pipeline.commands.compare_objectives --config stages/profiles/objectives/compare_objectives.yaml --runs runs

Each objective is trained by the node of the profile that the settings name. Only the probe's columns compare across
objectives, since each asks questions of its own.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import objectives
from pipeline.chain import manifest, profile
from pipeline.chain.profile import Node
from pipeline.system import config, hashes, process
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"runs": "RUNS"}
SETTINGS = "compare_objectives.yaml"
CONTROLS = 3  # models with random weights, whose mean is what a trained one is held against
BASELINES = ("lengths", "unigram", "chance", "untrained")  # the first that has a metric is what it is held against


@dataclasses.dataclass(frozen=True)
class Options:
    """Our own options of the comparison."""

    node: str = option("", "node of this profile that trains; each objective is a run of it")
    objectives: dict[str, Any] = option({}, "objectives, each with the flags that it alone gets")  # noqa: RUF009
    flops: float = option(2e13, "floating point operations that each may spend")
    epochs: float = option(0.0, "passes over the text, at most, in place of the profile's; 0 leaves them", at_least=0.0)
    probe: str = option("plays", "data recipe that gives labels")
    rows: int = option(300, "held-out rows that figures are measured on, at most", at_least=1)
    resamples: int = option(2000, "bootstrap resamples behind an interval", at_least=1)


def trained(name: str, options: Options, node: Node, output: Path) -> Path:
    """Train one objective, or find that it is done; return its folder. A parent may be another one of them by name."""
    passes = {"num_train_epochs": options.epochs} if options.epochs else {}
    given = {"flops": options.flops} | passes | (options.objectives[name] or {})
    if given.get("parent") in options.objectives:
        given["parent"] = str(output / given["parent"])
    own = [word for key, value in given.items() for word in (f"--{key}", value if key == "parent" else json.dumps(value))]
    script = [sys.executable, str(node.stage.script), "--config", str(node.file)]
    flags = ["--objective", name, "--output", str(output / name)]
    if status := subprocess.run([*script, *flags, *own], check=False).returncode:
        raise UserError(f"objective {name}: training ended with status {status}")
    return output / name


def figures(folder: Path, options: Options) -> list[dict[str, Any]]:
    """Return the held-out figures of a node, each beside that of a baseline."""
    from pipeline.data import recipe
    from pipeline.evaluation.intervals import FEW, share
    from pipeline.objectives.evaluator import HeldOut

    record = manifest.read(folder) or {}
    settings, data = record["config"], recipe.of(record)
    objective = objectives.load(settings["objective"], settings["objective_options"])
    training, held_out = (data.rows("text", split, record["seed"]).kept for split in ("train", "held_out"))
    found = HeldOut(objective, "trained", str(folder), settings, record["seed"]).scores(
        training, held_out[:: max(1, len(held_out) // options.rows)]
    )
    rows = []
    for metric in (metric for metric in objective.metrics if metric.name in found["trained"]):
        own = share(*found["trained"][metric.name])
        against = next(name for name in BASELINES if metric.name in found.get(name, {}))
        rival = share(*found[against][metric.name])
        gain = own.estimate(rival, resamples=options.resamples)
        rows.append({
            "metric": metric.name, **dataclasses.asdict(own.estimate(resamples=options.resamples)), "against": against,
            "rival": rival.estimate(resamples=1).value,
            "better": gain.n >= FEW and (gain.high < 0 if metric.better == "less" else gain.low > 0),
        })  # fmt: skip
    return rows


def features(folder: Path, record: Mapping[str, Any], texts: Sequence[str], random: bool = False, seed: int = 0) -> Any:
    """Return what a model knows of texts without being trained on them, or one with random weights; (texts, any) float32."""
    from pipeline.evaluation import probe
    from pipeline.models import tokenization

    if record["family"] != "vectors":
        return probe.features(folder, texts, random, seed)
    model = objectives.load(record["config"]["objective"]).load_model(str(folder))
    return probe.mean_vectors(model.words.weight, tokenization.load(str(folder)), texts, random, seed)


def compared(options: Options, node: Node, output: Path) -> dict[str, Any]:
    """Train, measure and probe every objective."""
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
        table[name] = row(trained(name, options, node, output), options, labelled)
        say("compare", f"{name}: {line(name, table[name])}")
    over = {name: over_parts(name, table, groups, options.resamples) for name in options.objectives}
    return {"objectives": table, "flops": options.flops, "items": len(texts), "groups": len(set(groups)), "over": over}


def over_parts(
    name: str, table: Mapping[str, Mapping[str, Any]], groups: Sequence[str], resamples: int
) -> dict[str, dict[str, Any]]:
    """Return by how much more often a sum of objectives is right in the probe than each of its parts that the table has."""
    from pipeline.evaluation.probe import Probe

    own, others = table[name], {part: table[part] for part in table[name]["parts"] if part in table}
    right = {part: Probe(np.array(found["right"]), np.array(groups)) for part, found in {name: own, **others}.items()}
    return {part: dataclasses.asdict(right[name].accuracy(right[part], resamples)) for part in others}


def row(folder: Path, options: Options, labelled: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the table says of one objective, measured once and kept beside it."""
    from pipeline.evaluation import probe

    record = manifest.read(folder) or {}
    kept = folder.with_suffix(".json")
    inputs = hashes.digest([record["outputs"], labelled, options.rows, options.resamples, CONTROLS, probe.FOLDS, probe.REPEATS])
    done = manifest.read(kept.parent, kept.name)
    if done and done["inputs"] == inputs and "right" in done:  # which older ones lack
        return done
    texts, labels, groups = ([row[key] for row in labelled] for key in ("text", "label", "group"))
    learned = probe.classify(features(folder, record, texts), labels, groups)
    fresh = [features(folder, record, texts, random=True, seed=seed) for seed in range(CONTROLS)]
    control = probe.mean([probe.classify(found, labels, groups) for found in fresh])
    found = {
        "inputs": inputs, "family": record["family"], "steps": record["steps"], "tokens": record["tokens"],
        "seconds": record["training_seconds"], "tokens_per_second": record["tokens"] / record["training_seconds"],
        "training_loss": record["metrics"], "held_out": figures(folder, options),
        "probe": dataclasses.asdict(learned.accuracy(resamples=options.resamples)),
        "random": dataclasses.asdict(control.accuracy(resamples=options.resamples)),
        "gain": dataclasses.asdict(learned.accuracy(control, options.resamples)),
        "right": learned.right.tolist(), "parts": list(record["config"]["objective_options"].get("parts", ())),
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
    """Yield the table as Markdown, and what sums of objectives have over their parts."""
    yield "| objective | steps | seconds | tokens/s | training loss | held out | probe, % right | over random weights, points |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, found in summary["objectives"].items():
        yield line(name, found)
    yield from (
        f"\n`{name}` over `{part}` alone, points of the probe, paired: {interval(gain)}"
        for name, parts in summary["over"].items()
        for part, gain in parts.items()
    )


def asked(argv: Sequence[str]) -> tuple[Options, Node, Path]:
    """Return options, the node that trains, and the folder of all runs; UserError with every fault."""
    flags, faults = config.read_flags(argv)
    output = flags.pop("output", None)
    values, file, runs, wrong = profile.settings(flags, SETTINGS, Options)
    faults += wrong
    wanted = values.get("objectives", {})
    if isinstance(wanted, dict):  # what else it is has been told
        faults += [f"{file}: objectives: {name}: no such objective" for name in wanted if name not in objectives.known()]
        faults += [
            f"{file}: objectives: {name}: expected flags as `key: value`, or nothing, found {flags!r}"
            for name, flags in wanted.items()
            if not isinstance(flags, dict | None)
        ]
    trains = file.parent / f"{values.get('node', '')}.yaml"
    if not trains.is_file():
        faults.append(f"{file}: node: names no file beside it; it says which node trains the objectives")
    if faults:
        raise UserError(*faults)
    return Options(**values), profile.read_node(trains), Path(str(output or runs))


def main() -> int:
    """Read the settings, compare, write and print."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(config.explain("compare_objectives", str(__doc__), Options, None))
        return 0
    options, node, output = asked(sys.argv[1:])
    summary = compared(options, node, output)
    manifest.write_json(output / "compare.json", {"inputs": hashes.digest(dataclasses.asdict(options)), **summary})
    print("\n".join(rendered(summary)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))
