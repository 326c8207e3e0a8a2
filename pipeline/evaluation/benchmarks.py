"""Public benchmarks by lm-evaluation-harness (Gao et al. 2024): what it said of each item is kept beside the nodes.

From what is kept, an evaluator measures each node against its parents and controls on the same items, so that a benchmark's
figures get intervals and paired differences like all others, in table, report and card.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import ROOT
from pipeline.chain import manifest
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.system import hashes
from pipeline.system.errors import UserError
from pipeline.system.words import meant

if TYPE_CHECKING:
    from pipeline.chain.finished import Finished
    from pipeline.evaluation.subject import StageModel, Subject

FOLDER = ROOT / "data_recipes" / "benchmarks"  # of the task files of our own
KEPT = "benchmarks.json"
_SHARES = {"acc", "acc_norm", "exact_match"}  # metrics of an item that are 0 or 1
_BATCH = 16
_OWN = "own"  # of the node's chat template
_CHANCE = "chance"  # the baseline that picks one of the answers by lot


def run(
    model: StageModel, tasks: Sequence[str], shots: int, include: Path | None, limit: int | None, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield what the harness said of a model on each task: `task`, `metric`, `shots`, `values` by item, and what they depend on.

    A model with a chat template of its own is asked by it, examples being turns of the conversation; any other by plain text.
    `include`: a folder of task files beside ours. `limit`: items of a task, at most.
    Raises UserError where a task is not known, or its data can't be read.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise UserError(
            f"benchmarks need lm-evaluation-harness, which is not installed ({error}); make setup-data brings it"
        ) from None
    manager = _tasks(tuple(tasks), include)
    try:
        with _silent():
            harness = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=_BATCH, max_length=_positions(model))
            found = simple_evaluate(
                model=harness, tasks=list(tasks), num_fewshot=shots, task_manager=manager, limit=limit, bootstrap_iters=0,
                apply_chat_template=model.chats, fewshot_as_multiturn=model.chats, log_samples=True, verbosity="ERROR",
                random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
            )  # fmt: skip
    except (OSError, ValueError, ConnectionError) as error:
        line = " ".join(str(error).split())[:300]
        if line.startswith("Sample larger than population"):  # of random.sample, by which the harness draws the examples
            raise UserError(f"SHOTS: {shots}: more examples than {', '.join(tasks)} can give") from None
        raise UserError(f"{', '.join(tasks)}: can't be measured: {line}; a task of the hub needs the network once") from None
    for task, samples in found["samples"].items():
        better = found["higher_is_better"][task]
        for metric, rises in better.items():
            values = [sample[metric] for sample in samples if isinstance(sample.get(metric), (int, float))]
            if len(values) == len(samples) and values:  # else a figure of the whole, of which no item has a share
                yield {
                    "task": task, "metric": metric, "shots": found["n-shot"][task], "version": found["versions"][task],
                    "better": "more" if rises else "less", "template": _OWN if model.chats else "", "values": values,
                    "items": hashes.digest([sample["doc_hash"] for sample in samples]), "harness": version("lm_eval"),
                    "groups": [str(sample["doc"]["group"]) for sample in samples if "group" in sample["doc"]],
                    "cut": sum(any(_longer(model, *given[:2]) for given in sample["arguments"]) for sample in samples),
                    "chance": [1 / len(sample["arguments"]) for sample in samples if metric == "acc"],
                }  # fmt: skip


@functools.cache
def _tasks(tasks: tuple[str, ...], include: Path | None) -> Any:
    """Return what finds the tasks: our own and those of a folder, and only where these don't do the harness's thousands."""
    from lm_eval.tasks import TaskManager

    folders = [str(FOLDER), *([str(include)] if include else [])]
    own = TaskManager(include_path=folders, include_defaults=False)
    if all(own.match_tasks([task]) for task in tasks):
        return own
    every = TaskManager(include_path=folders)
    unknown = [task for task in tasks if not every.match_tasks([task])]
    near = {task: meant(task, every.all_tasks, "") for task in unknown}
    if unknown:
        raise UserError(*(
            f"TASKS: {task}: no task of this name{f'; {near[task]}' if near[task] else ''}; the harness's "
            f"own are known, and here {', '.join(sorted(own.all_tasks))}"
            for task in unknown
        ))  # fmt: skip
    return every


def _longer(model: StageModel, prompt: str, answer: object) -> bool:
    """Say whether prompt and answer are more tokens than the model reads, so that the harness cuts the prompt's beginning."""
    text = prompt + answer if isinstance(answer, str) else prompt
    return len(model.tokenizer.encode(text, add_special_tokens=False)) > model.positions + 1


def _positions(model: StageModel) -> int | None:
    return int(model.positions) if model.positions < float("inf") else None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the harness's lines from people, and its bars where nobody sees them move."""
    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
        yield


def name_of(entry: Mapping[str, Any]) -> str:
    """Return the name of a metric in our tables: task, the harness's metric, and how many examples the prompt holds."""
    return f"{entry['task']}_{entry['metric']}_{entry['shots']}_shot"


def read(runs: Path) -> dict[str, Any]:
    """Return what is kept in a folder of nodes: name of a node → its outputs and its entries."""
    found: dict[str, Any] = (manifest.read(runs, KEPT) or {}).get("nodes", {})
    return found


def keep(runs: Path, node: Finished, entries: Sequence[Mapping[str, Any]]) -> None:
    """Put entries of a node beside those that are kept; those of the same name are replaced, those of other weights go."""
    known = read(runs)
    before = known.get(node.name, {})
    same = before.get("entries", []) if before.get("outputs") == node.record["outputs"] else []
    named = {name_of(entry): entry for entry in [*same, *entries]}
    known[node.name] = {"outputs": node.record["outputs"], "entries": list(named.values())}
    manifest.write_json(runs / KEPT, {"inputs": hashes.digest(known), "nodes": known})


def entries_of(node: Finished) -> dict[str, Any]:
    """Return what is kept of a node as it is now, by the name of the metric."""
    kept = read(node.folder.parent).get(node.name, {})
    return {name_of(entry): entry for entry in kept.get("entries", [])} if kept.get("outputs") == node.record["outputs"] else {}


class Benchmarks(Evaluator):
    """Measures what is kept of a node, and of its parents and controls on the same items."""

    def __init__(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self.entries = entries
        self.metrics = tuple(_described(name, entry) for name, entry in entries.items())

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield each metric of the node and of the others of which it is kept."""
        from pipeline.chain import finished

        others = {model.label: finished.read(Path(model.where)) for model in subject.compared[1:]}
        theirs = {label: entries_of(node) for label, node in others.items() if node}
        for name, entry in self.entries.items():
            groups = entry["groups"] or None
            yield Measurement(subject.node.label, name, share(entry["values"]), groups)
            for label, known in theirs.items():
                if (other := known.get(name)) and other["items"] == entry["items"]:
                    yield Measurement(label, name, share(other["values"]), groups)
            if entry["cut"]:
                reason = f"the beginning of prompts of {name} that are longer than what it reads, {subject.node.positions:.0f} tokens"
                subject.skipped[reason] += entry["cut"]
            if entry["chance"]:
                yield Measurement(_CHANCE, name, share(entry["chance"]), groups)


def _described(name: str, entry: Mapping[str, Any]) -> Metric:
    shots, own = entry["shots"], entry["template"] == _OWN
    examples = "no example" if not shots else "one example" if shots == 1 else f"{shots} examples"
    how = "asked by its chat template" if own else "as plain text"
    meaning = (
        f"{entry['metric']} of task {entry['task']}, version {entry['version']}, by lm-evaluation-harness {entry['harness']}, with {examples} in "
        f"the prompt; the node was {how}, others by their own template or as plain text"
    )
    return Metric(name, meaning, "share" if entry["metric"] in _SHARES else "score", entry["better"])


def evaluators(node: Finished) -> list[Evaluator]:
    """Return what measures the benchmarks that are kept of a node; nothing where there are none."""
    entries = entries_of(node)
    return [Benchmarks(entries)] if entries else []
