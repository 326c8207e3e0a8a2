"""Show how much of what can't be known each method refuses at each share of right answers kept, beside a threshold's curve.

    python -m pipeline.commands.compare_refusals --config stages/profiles/honest/compare_refusals.yaml --runs runs

Nothing is trained. A model refuses where a token of its `rows` is its likeliest, so adding a number to their logits moves it
along a curve; 0 is the model as it is. The threshold beside it answers with the first chat model of the descent and refuses
where that model's own probability of its answer is low (selective prediction, El-Yaniv and Wiener 2010).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.chain import finished as chain
from pipeline.chain import manifest, profile
from pipeline.chain.finished import Finished
from pipeline.data.judge import Judge, Question
from pipeline.evaluation import table
from pipeline.evaluation.metrics.refusals import KINDS, KNOWN
from pipeline.evaluation.subject import Options as Settings
from pipeline.evaluation.subject import StageModel
from pipeline.system import config, hashes, process
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"runs": "RUNS"}
SETTINGS = "compare_refusals.yaml"
RESULT = "compare_refusals"
_DRAWN = 0.2  # of the right answers: what a chart shows of the curves


@dataclasses.dataclass(frozen=True)
class Options:
    """Our own options of the comparison."""

    nodes: dict[str, str] = option({}, "nodes of this profile in the order of the table, each with what a reader calls it")  # noqa: RUF009
    kept: dict[str, float] = option({}, "kind of question: share of right answers kept at which the curves are read")  # noqa: RUF009
    max_new_tokens: int = option(32, "longest answer", at_least=1)
    seed: int = option(42, "of the judge's questions")


@dataclasses.dataclass(frozen=True)
class Scores:
    """How near each question is to being refused: it is refused where `refused`, and no longer answered where `lost`, is above a level."""

    kinds: np.ndarray  # (questions,) of str
    right: np.ndarray  # (questions,) whether what is said without a refusal is right
    lost: np.ndarray
    refused: np.ndarray

    def curve(self, before: np.ndarray) -> list[dict[str, float]]:
        """Return the shares refused of each kind at every share kept, from the model as it is most ready to answer on.

        `before`: (questions,) bool, what was answered right at first.
        """
        known = (self.kinds == KNOWN) & before
        levels = np.unique(np.append(self.lost[known & self.right], np.inf))[::-1]
        return [self.at(level, before) for level in levels]

    def at(self, level: float, before: np.ndarray) -> dict[str, float]:
        """Return what is kept and the shares refused of each kind at one level."""
        known = (self.kinds == KNOWN) & before
        kept = (known & self.right & (self.lost <= level)).sum() / max(1, known.sum())
        shares = {kind: float((self.refused > level)[self.kinds == kind].mean()) for kind in KINDS if kind in self.kinds}
        return {"kept": float(kept)} | shares


def refusing(node: Finished) -> list[str]:
    """Return the texts by which a node refuses: its own `rows`, or those of the nearest ancestor that has any."""
    older: Finished | None = node
    while older and not older.record["config"].get("rows"):
        where = older.parent()
        older = chain.read(Path(where)) if where else None
    if older is None:
        raise UserError(f"{node.folder}: neither it nor an ancestor has `rows`, the texts by which it refuses")
    return list(older.record["config"]["rows"])


def asked(model: StageModel, questions: Sequence[Question], most: int, barred: Sequence[int] = ()) -> list[Any]:
    """Return prompt and first sentence of each greedy reply as a row of ids and labels; `barred` tokens are not said."""
    from pipeline.data.tokens import answered
    from pipeline.evaluation import inference
    from pipeline.models.tokenization import render

    prompts = [render(model.tokenizer, [{"role": "user", "content": one.prompt}], answer_next=True) for one in questions]
    model.model.generation_config.suppress_tokens = list(barred) or None
    replies = inference.replies(model.model, model.tokenizer, prompts, most)
    model.model.generation_config.suppress_tokens = None

    def sentence(ids: Sequence[int]) -> list[int]:
        ends = (at for at in range(1, len(ids)) if "." in model.tokenizer.decode(ids[:at], skip_special_tokens=True))
        return list(ids[: next(ends, len(ids))])

    return [(reply, answered(prompt, sentence(reply.ids))) for prompt, reply in zip(prompts, replies, strict=True)]


def scored(model: StageModel, texts: Sequence[str], judge: Judge, questions: Sequence[Question], most: int) -> Scores:
    """Return how far each question is from being refused by a model's own tokens, in logits.

    Where such a token comes nearest, the model goes on from it, since what follows need not be a refusal.
    """
    from pipeline.data.tokens import IGNORED
    from pipeline.evaluation import inference

    tokenizer = model.tokenizer
    begins = {tokenizer.encode(text, add_special_tokens=False)[0]: text for text in texts}
    found = asked(model, questions, most, list(begins))
    margins = inference.margins(model.model, [row for _, row in found], int(tokenizer.pad_token_id), list(begins))
    nearest: list[tuple[float, list[int], list[int]]] = []  # margin, prompt, what is said up to the token, which is the last
    for (_, row), above in zip(found, margins, strict=True):
        said = [label for label in row["labels"] if label != IGNORED]
        prompt = row["input_ids"][: len(row["input_ids"]) - len(said)]
        unknowing = [
            (near, prompt, [*said[:at], token]) for at, (near, token) in enumerate(above)
            if judge.refused(f"{tokenizer.decode(said[:at], skip_special_tokens=True)}{begins[token]}.")
        ]  # fmt: skip
        nearest.append(max(unknowing, default=(-np.inf, prompt, said)))
    going_on = inference.replies(model.model, tokenizer, [prompt + said for _, prompt, said in nearest], most)
    refused = [
        near if judge.refused(tokenizer.decode([*said, *reply.ids], skip_special_tokens=True)) else -np.inf
        for (near, _, said), reply in zip(nearest, going_on, strict=True)
    ]
    by_other_words = [judge.refused(reply) for reply, _ in found]
    refused = [np.inf if said else near for near, said in zip(refused, by_other_words, strict=True)]
    right = [judge.right(reply, question) for (reply, _), question in zip(found, questions, strict=True)]
    kinds = np.array([question.kind for question in questions])
    return Scores(kinds, np.array(right), np.array([max(above)[0] for above in margins]), np.array(refused))


def by_threshold(model: StageModel, judge: Judge, questions: Sequence[Question], most: int) -> Scores:
    """Return how unlikely a model's own answer to each question is, in nats."""
    found = asked(model, questions, most)
    nats = np.array(model.nats([row for _, row in found]))
    right = [judge.right(reply, question) for (reply, _), question in zip(found, questions, strict=True)]
    return Scores(np.array([question.kind for question in questions]), np.array(right), nats, nats)


def compared(options: Options, folder: Path) -> dict[str, Any]:
    """Return every method's curve and where it stands on it, measured anew where a model, the questions or the settings changed."""
    from pipeline.evaluation import measure

    nodes = {name: chain.read(folder / name) for name in options.nodes}
    missing = [name for name, node in nodes.items() if node is None]
    done = [node for node in nodes.values() if node]
    if not done:
        raise UserError(f"{folder}: none of {', '.join(missing)} is finished; run make PROFILE={folder.name} first")
    models, settings = measure.Models(), Settings(seed=options.seed, max_new_tokens=options.max_new_tokens)
    subjects = [measure.subject_of(node, done, models, settings) for node in done]
    identity = [[subject.record["outputs"], subject.recipe.judge_digest()] for subject in subjects]
    inputs = hashes.digest([identity, dataclasses.asdict(options), missing, hashes.sha256(Path(__file__))])
    kept = manifest.read(folder, f"{RESULT}.json")
    if kept and kept["inputs"] == inputs:
        return kept
    rows: list[dict[str, Any]] = []
    # Digest of the questions → the threshold on them, and the first recipe that asks them.
    thresholds: dict[str, tuple[Scores, str]] = {}
    for subject in subjects:
        first, judge = subject.first_chat, subject.judge
        if first is None or judge is None:
            raise UserError(
                f"{subject.node.where}: nothing to compare; it needs a chat model before it and a recipe with a judge"
            )
        questions = list(judge.questions(options.seed))
        say("compare", f"measures {subject.node.label}")
        same = hashes.digest([question.prompt for question in questions])
        if same not in thresholds:
            scores = by_threshold(first, judge, questions, options.max_new_tokens)
            thresholds[same] = scores, str(subject.record["recipe"]["name"])
        rival, recipe = thresholds[same]
        scores = scored(subject.node, refusing(subject.finished), judge, questions, options.max_new_tokens)
        rows.append({
            "node": subject.node.label, "name": options.nodes[subject.node.label], "questions": recipe,
            "as it is": scores.at(0.0, rival.right), "curve": scores.curve(rival.right), "threshold": rival.curve(rival.right),
        })  # fmt: skip
        subject.node.release()
    result = {"inputs": inputs, "missing": missing, "rows": rows}
    manifest.write_json(folder / f"{RESULT}.json", result)
    return result


def refused_at(curve: Sequence[Mapping[str, float]], kind: str, kept: float) -> float | None:
    """Return the greatest share refused of a kind where at least the share `kept` is kept; None where no point is."""
    return max((point[kind] for point in curve if point["kept"] >= kept), default=None)


def asked_of(summary: Mapping[str, Any]) -> list[str]:
    """Return the kinds of strangers whom every method was asked about."""
    return [kind for kind in KINDS if all(kind in row["as it is"] for row in summary["rows"])]


def cells(summary: Mapping[str, Any], wanted: Mapping[str, float]) -> Iterator[list[str]]:
    """Yield the table, its headings first: each method as it is and along its curve, and the threshold on each recipe's questions."""
    headings = [f"{kind} at {share:.0%} kept" for kind, share in wanted.items()]
    kinds = asked_of(summary)
    yield ["", "questions", "kept", *(f"refused, {kind}" for kind in kinds), *headings]

    def read(curve: Sequence[Mapping[str, float]]) -> list[str]:
        found = [refused_at(curve, kind, share) for kind, share in wanted.items()]
        return ["" if share is None else f"{share:.1%}" for share in found]

    for row in summary["rows"]:
        stands = row["as it is"]
        yield [
            row["name"],
            row["questions"],
            f"{stands['kept']:.1%}",
            *(f"{stands[kind]:.1%}" for kind in kinds),
            *read(row["curve"]),
        ]
    for recipe, curve in {row["questions"]: row["threshold"] for row in summary["rows"]}.items():
        yield ["threshold", recipe, *[""] * (1 + len(kinds)), *read(curve)]


def pictures(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each kind of question with a chart of the methods that were asked what the first was, and of the threshold."""
    from pipeline.report import charts, templates

    first = summary["rows"][0]
    curves = {row["name"]: row["curve"] for row in summary["rows"] if row["questions"] == first["questions"]}
    curves["threshold"] = first["threshold"]
    for kind in asked_of(summary):
        points = {
            name: [(100 * (1 - point["kept"]), 100 * point[kind]) for point in curve if 1 - point["kept"] <= _DRAWN]
            for name, curve in curves.items()
        }
        told = f"Questions about strangers, {KINDS[kind]}: share refused against share of right answers lost, for each method."
        chart = charts.selective(f"refused, {kind}", told, {name: found for name, found in points.items() if found})
        yield kind, templates.environment().get_template("selective.svg.jinja").render(chart=chart)


def requested(argv: Sequence[str]) -> tuple[Options, Path]:
    """Return options and the folder of the profile's runs; UserError with every fault."""
    flags, faults = config.read_flags(argv)
    values, file, folder, wrong = profile.settings(flags, SETTINGS, Options)
    faults += wrong
    if not values.get("nodes"):
        faults.append(f"{file}: nodes: is missing")
    kept = values.get("kept", {})
    if isinstance(kept, dict):  # what else it is has been told
        faults += [f"{file}: kept: {kind}: no such kind; known are {', '.join(KINDS)}" for kind in kept if kind not in KINDS]
    if faults:
        raise UserError(*faults)
    return Options(**values), folder


def main() -> int:
    """Read the settings, measure what has changed, print the table and leave it as Markdown, with a picture for each kind."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(config.explain(RESULT, str(__doc__), Options, None))
        return 0
    options, folder = requested(sys.argv[1:])
    summary = compared(options, folder)
    lines = list(cells(summary, options.kept))
    output = folder / f"{RESULT}.md"
    output.write_text("\n".join(table.markdown(lines)) + "\n", encoding="utf-8")
    for kind, picture in pictures(summary):
        (folder / f"refused-{kind}.svg").write_text(picture, encoding="utf-8")
    print("\n".join(table.columns(lines)), flush=True)
    if summary["missing"]:
        print(f"not finished, so not measured: {', '.join(summary['missing'])}")
    say("compare", f"the same as Markdown: {output}; curves: {folder / 'refused-*.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))
