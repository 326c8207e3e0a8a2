"""Compare aligned models with the one that they all come from, in one table: better answers, kept knowledge, distance, cost.

    python -m pipeline.commands.compare_alignment --config stages/profiles/feedback/compare_alignment.yaml --runs runs

Nothing is trained. Every model answers the same questions and the same held-out prompts, each sampled with the same seeds.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import finished as chain
from pipeline.chain import manifest, profile
from pipeline.chain.finished import Finished
from pipeline.data import recipe as recipes
from pipeline.evaluation import metrics, table
from pipeline.evaluation.comparisons import block, collected
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import Options as Settings
from pipeline.evaluation.subject import StageModel, Subject
from pipeline.system import config, hashes, process
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"runs": "RUNS"}
SETTINGS = "compare_alignment.yaml"
RESULT = "compare_alignment"
_MEASURED = ("win_rate", "exact_match", "kl_to_parent")


@dataclasses.dataclass(frozen=True)
class Options:
    """Our own options of the comparison."""

    against: str = option("", "folder of the chat model that all others come from")
    nodes: list[str] = option([], "nodes of this profile, or folders of finished nodes, in the order of the table")  # noqa: RUF009
    recipe: str = option("world", "data recipe whose held-out prompts are answered for the divergence")
    prompts: int = option(400, "of those, at most", at_least=1)
    resamples: int = option(1000, "bootstrap resamples behind an interval", at_least=1)
    max_new_tokens: int = option(64, "longest answer", at_least=1)
    seed: int = option(42, "of the questions and the sampled answers")


class AnswerTokens(Evaluator):
    """Measures how long the sampled answers to the judge's questions are."""

    gives = ("causal",)
    metrics = (
        Metric("answer_tokens", "mean length of a sampled answer to the judge's questions, without its end", "tokens", ""),
    )

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield it of the node and of the model that it is held against."""
        questions = subject.judge.questions(subject.settings.seed) if subject.judge else ()
        turns = [[{"role": "user", "content": question.prompt}] for question in questions]
        for seed, model in enumerate(reversed(subject.compared), start=subject.settings.seed):  # the answers that are graded
            replies = model.replies(turns, subject.settings.max_new_tokens, seed)
            yield Measurement(model.label, "answer_tokens", share([float(reply.tokens) for reply in replies]))


class Compared(Subject):
    """A node whose rows are prompts that all nodes of a comparison have in common."""

    def __init__(self, node: Finished, model: StageModel, options: Options, parent: StageModel, rows: Sequence[Any]) -> None:
        settings = Settings(
            resamples=options.resamples, max_new_tokens=options.max_new_tokens, seed=options.seed, rows=options.prompts
        )
        super().__init__(node, model, settings, parent)
        self.__dict__["rows"] = list(rows)  # in place of those that the node held out


def row(
    node: Finished, options: Options, against: StageModel, rows: Sequence[Any], before: Sequence[Finished]
) -> dict[str, Any]:
    """Return what the table says of a node; `before`: what the model that it is held against descends from, itself included."""
    subject = Compared(node, StageModel(str(node.folder), node.name), options, against, rows)
    known = [one for one in map(metrics.load, metrics.known()) if {metric.name for metric in one.metrics} & set(_MEASURED)]
    evaluators = [*(one for one in known if one.applies(subject)), AnswerTokens()]
    described = [metric for one in evaluators for metric in one.metrics]
    found = collected(one for evaluator in evaluators for one in evaluator.measure(subject))
    subject.node.release()
    older = {other.folder.resolve() for other in before}
    seconds = sum(other.record["seconds"] for other in chain.lineage(node.folder) if other.folder.resolve() not in older)
    measured = block(node.name, subject.models, found, described, (), options.resamples)
    return {"node": node.name, "title": node.title, "minutes": seconds / 60, **measured}


def compared(options: Options, folder: Path) -> dict[str, Any]:
    """Return the table, measured anew where a model, the questions or the settings have changed."""
    nodes = {name: chain.read(Path(name) if "/" in name else folder / name) for name in options.nodes}
    done = [node for node in nodes.values() if node]
    reference = chain.named(Path(options.against).parent, Path(options.against).name)
    missing = [name for name, node in nodes.items() if node is None]
    if not done:
        raise UserError(f"{folder}: none of {', '.join(missing)} is finished; run make PROFILE={folder.name} first")
    recipe = recipes.load(options.recipe)
    identity = [[node.record["outputs"], node.record["seconds"]] for node in done]
    settings = dataclasses.asdict(options) | {"judge": recipe.judge_digest(), "prompts of": recipe.digest("prompts")}
    inputs = hashes.digest([reference.record["outputs"], identity, settings, missing])
    kept = manifest.read(folder, f"{RESULT}.json")
    if kept and kept["inputs"] == inputs:
        return kept
    every = recipe.rows("prompts", "held_out", options.seed).kept
    rows = every[:: -(-len(every) // options.prompts)]
    against, before = StageModel(options.against, reference.name), chain.lineage(reference.folder)
    found = []
    for node in done:
        say("compare", f"measures {node.name}")
        found.append(row(node, options, against, rows, before))
    result = {"inputs": inputs, "against": reference.name, "title": reference.title, "missing": missing, "rows": found}
    manifest.write_json(folder / f"{RESULT}.json", result)
    return result


_HEADINGS = (
    "",
    "win rate over {0}",
    "exact match",
    "exact match - {0}",
    "KL to {0}, nats an answer",
    "tokens an answer",
    "minutes",
)


def cells(summary: dict[str, Any]) -> list[list[str]]:
    """Return the table, its headings first and the model that all are held against last."""
    name = summary["against"]
    lines = [[heading.format(name) for heading in _HEADINGS]]
    for found in summary["rows"]:

        def figure(metric: str, label: str = "", found: dict[str, Any] = found) -> str:
            estimate = found["figures"].get(metric, {}).get(label or found["node"])
            return table.figure(found["metrics"][metric], estimate) if estimate else ""

        lost = next((one for one in found["comparisons"] if (one["metric"], one["against"]) == ("exact_match", name)), None)
        change = table.difference(found["metrics"]["exact_match"] | {"better": ""}, lost) if lost else ""
        lines.append([
            found["node"], figure("win_rate"), figure("exact_match"), change, figure("kl_to_parent"), figure("answer_tokens"),
            f"{found['minutes']:.1f}",
        ])  # fmt: skip
        last = [name, "", figure("exact_match", name), "", "", figure("answer_tokens", name), ""]
    return [*lines, last]


def asked(argv: Sequence[str]) -> tuple[Options, Path]:
    """Return options and the folder of the profile's runs; UserError with every fault."""
    flags, faults = config.read_flags(argv)
    values, file, folder, wrong = profile.settings(flags, SETTINGS, Options)
    faults += wrong
    faults += [f"{file}: {key}: is missing" for key in ("against", "nodes") if not values.get(key)]
    if faults:
        raise UserError(*faults)
    return Options(**values), folder


def main() -> int:
    """Read the settings, measure what has changed, print the table and leave it as Markdown."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(config.explain(RESULT, str(__doc__), Options, None))
        return 0
    options, folder = asked(sys.argv[1:])
    summary = compared(options, folder)
    lines = cells(summary)
    output = folder / f"{RESULT}.md"
    output.write_text("\n".join(table.markdown(lines)) + "\n", encoding="utf-8")
    print("\n".join(table.columns(lines)), flush=True)
    if summary["missing"]:
        print(f"not finished, so not measured: {', '.join(summary['missing'])}")
    say("compare", f"the same as Markdown: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))
