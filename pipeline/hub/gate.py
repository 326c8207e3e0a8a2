"""What may be pushed: stages that are as they were made, evaluated, not worse than their parent, and from a clean tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.chain import manifest, verify
from pipeline.evaluation import task

# A stage's own metric and what it is held against, the first that was measured; other stages: any figure against their parent.
PRIMARY = {
    "pretrain": (("unigram", "loss"), ("unigram", "generator_loss"), ("chance", "pair_accuracy"), ("chance", "detection"),
                 ("unigram", "detection"), ("untrained", "retrieval")),
    "sft": (("pretrain", "exact_match"), ("pretrain", "loss")),
    "dpo": (("sft", "win_rate"), ("sft", "accuracy"), ("sft", "likelier")),
}  # fmt: skip
_EVEN = 0.5  # a win rate's, where neither is better


def lineage(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return folder and record of a finished stage and of all finished stages that it descends from, the oldest first."""
    record = manifest.read(folder)
    if record is None:
        return []
    older = [entry for made in record["parents"] for entry in lineage(verify.parent_folder(folder, record, made))]
    return [*older, (folder, record)]


def primary(record: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a stage's own metric differs from what it is held against: metric, against, value, low, high, better.

    A win rate is held against even chances. None where nothing of that kind was measured.
    """
    stage = str(record["stage"])
    parents = [made.get("stage") for made in record["parents"]]
    compared = {(item["against"], item["metric"]): item for item in summary["comparisons"] if item["stage"] == stage}
    won = summary["stages"].get(stage, {}).get("win_rate")
    if won:
        less = {key: won[key] - _EVEN for key in ("value", "low", "high")}
        compared["sft", "win_rate"] = {"metric": "win_rate", "against": "even chances", **less, "better": less["low"] > 0}
    wanted = PRIMARY.get(stage) or [key for key in compared if key[0] in (*parents, "baseline")]
    return next((compared[key] for key in wanted if key in compared), None)


def _worth(record: Mapping[str, Any], summary: Mapping[str, Any] | None, path: Path) -> list[str]:
    """Return why the evaluation does not speak for a stage."""
    stage = record["stage"]
    if "steps" not in record:  # adopted as it is: nothing was trained that could be worse
        return []
    summary = task.summary(record) or summary
    measured = (summary or {}).get("measured", {})
    if summary is None or stage not in measured:
        return [f"{stage}: not evaluated: {path} {'has no figures of it' if summary else 'is missing'}; make evaluate"]
    if measured[stage] != record["outputs"]:
        return [f"{stage}: {path} measured another {stage}; make evaluate"]
    found = primary(record, summary)
    if found is None:
        return [f"{stage}: {path} has no figure that holds it against its parent or a baseline"]
    if not found["better"] and (found["low"] > 0 or found["high"] < 0):
        interval = f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
        return [f"{stage}: worse than {found['against']} by {found['metric']}, {interval}, clear of zero"]
    return []


def reasons(folders: Iterable[Path], summary: Mapping[str, Any] | None, path: Path) -> list[str]:
    """Return every reason not to push finished stages; `path` is where the summary of the evaluation lies or should lie."""
    found: dict[str, None] = {}  # ordered, each once: stages share their ancestors
    for folder in folders:
        line = lineage(folder)
        for older, record in line:
            dirty = f"{record['stage']}: made from a tree with changes that no commit holds; commit them and make it again"
            faults = [*verify.agrees(older, record), *verify.descends(older, record)[0], *([dirty] * record["code"]["dirty"])]
            found |= dict.fromkeys(faults)
        found |= dict.fromkeys(_worth(line[-1][1], summary, path))
    return list(found)
