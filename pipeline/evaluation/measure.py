"""Measure finished nodes: each against the parent that it came from, against its controls and against baselines."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import finished as chain
from pipeline.chain.finished import Finished
from pipeline.chain.stage import DATA, PARENT, ROWS
from pipeline.data import types
from pipeline.data.tokens import encode_text
from pipeline.evaluation import benchmarks, metrics
from pipeline.evaluation.comparisons import block, collected
from pipeline.evaluation.metrics import Evaluator, Metric
from pipeline.evaluation.subject import Options, StageModel, Subject, Turns
from pipeline.models import parts
from pipeline.models.families import ANSWERING
from pipeline.system.errors import UserError


class Models:
    """The models of one evaluation, each loaded once however many nodes it is compared with."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str | None], StageModel] = {}

    def get(self, where: Path | str, label: str, template: str | None = None) -> StageModel:
        """Return the model in a folder or on a hub, asked by a template where it has none."""
        key = (str(where), template)
        self._known.setdefault(key, StageModel(str(where), label, template))
        return self._known[key]

    def release(self) -> None:
        """Let go of all weights."""
        for model in self._known.values():
            model.release()


def measured_nodes(nodes: Sequence[Finished]) -> list[Finished]:
    """Return the nodes that get figures of their own: those with a model that are no control."""
    return [node for node in nodes if node.family != ROWS and not node.control_of]


def evaluators(node: Finished) -> list[Evaluator]:
    """Return the registry's evaluators, those that the node's stage brings along, and the benchmarks that were run on it."""
    return [*map(metrics.load, metrics.known()), *node.stage.evaluators(node.options), *benchmarks.evaluators(node)]


def measure(nodes: Sequence[Finished], options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Return figures, paired differences and samples of all nodes; `nodes` are those of a folder, parents first."""
    models, blocks = Models(), dict[str, Any]()
    samples: list[dict[str, Any]] = []
    chatting: list[Subject] = []
    for node in measured_nodes(nodes):
        subject = subject_of(node, nodes, models, options)
        found = _block(subject, say)
        if not found["figures"] and not found["skipped"]:
            continue
        blocks[node.name] = found
        samples += subject.samples
        chatting += [subject] if subject.node.chats and subject.reads else []
        models.release()
    asked = list(side_by_side(chatting, options))
    models.release()
    return {"nodes": blocks, "samples": asked + samples}


def subject_of(node: Finished, nodes: Sequence[Finished], models: Models, options: Options) -> Subject:
    """Return a node with its parents, controls and base model; what can't be read any more is left out."""
    own = models.get(node.folder, node.name)
    template = own.tokenizer.chat_template if own.family in ANSWERING else None
    gone: list[str] = []

    def opened(role: str, where: str, taken: Collection[str]) -> StageModel | None:
        try:
            model = models.get(where, label_of(where, taken), template)
            _ = model.family, model.tokenizer
        except (UserError, OSError, ValueError):
            gone.append(f"figures of its {role}: {where} can't be loaded any more")
            return None
        return model

    where = node.parent()
    parent = opened(PARENT, where, {node.name}) if where else None
    others: dict[str, StageModel] = {}
    for role, place in node.parents.items():
        taken = {node.name, *(model.label for model in [parent, *others.values()] if model)}
        other = opened(role, place, taken) if role not in (PARENT, DATA) and place != where else None
        if other and other.family == own.family:
            others[role] = other
    controls = [models.get(one.folder, one.name, template) for one in chain.controls(nodes, node.name)]
    older = causal_ancestors(node) if parent else []

    def ancestor(role: str, place: str) -> StageModel | None:
        return parent if place == where else opened(role, place, ())

    base = ancestor("base model", older[0]) if older else None
    chats = (model for place in older[1:] if (model := ancestor("first chat model", place)) and model.chats)
    first_chat = base if base and base.chats else next(chats, None)
    subject = Subject(node, own, options, parent, others, controls, base, first_chat)
    subject.skipped.update(gone)
    return subject


def label_of(where: str, taken: Collection[str] = ()) -> str:
    """Return what a parent is called: its node's name, its folder's or its hub id; where that is taken, its path."""
    if not Path(where).is_dir():
        return where
    name = Path(where).name
    return where if name in taken else name


def causal_ancestors(node: Finished) -> list[str]:
    """Return the causal models that a node descends from, in folders or on a hub, the oldest first."""
    found: list[str] = []
    where = node.parent()
    while where:
        before = chain.read(Path(where)) if Path(where).is_dir() else None
        if before and before.family not in ANSWERING:
            break
        found.append(where)
        where = before.parent() if before else ""
    return found[::-1]


def _block(subject: Subject, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure one node with every evaluator that fits it."""
    node = subject.finished
    known = evaluators(node)
    fitting = [evaluator for evaluator in known if evaluator.applies(subject)]
    judged_by = node.stage.judged_by(node.options)
    _check(node, known)
    say(f"{node.name}: measures {', '.join(metric.name for one in fitting for metric in one.metrics) or 'nothing'}")
    found = collected(one for evaluator in fitting for one in evaluator.measure(subject))
    described: list[Metric] = [metric for evaluator in fitting for metric in evaluator.metrics]
    for model in subject.compared[1:]:
        if getattr(model, "borrows", False):
            subject.models[model.label]["asked"] = f"prompted through the chat template of {node.name}"
    return {
        "stage": node.kind, "title": node.title, "of": subject.about,
        "rows": subject.count,
        **block(node.name, subject.models, found, described, judged_by, subject.settings.resamples),
        "skipped": dict(subject.skipped), **({"neighbours": subject.neighbours} if subject.neighbours else {}),
    }  # fmt: skip


def _check(node: Finished, known: Sequence[Evaluator]) -> None:
    """Raise UserError where a stage is judged only by metrics that nothing measures, as after a slip of the pen."""
    names = {metric.name for evaluator in known for metric in evaluator.metrics}
    judged_by = [against.metric for against in node.stage.judged_by(node.options)]
    if judged_by and not names.intersection(judged_by):
        raise UserError(
            f"{node.record['script']}: judged by {', '.join(judged_by)}, which no evaluator measures; known are {', '.join(sorted(names))}"
        )


def side_by_side(subjects: Sequence[Subject], options: Options) -> Iterator[dict[str, Any]]:
    """Have all chat models of one descent and their base model answer the same few held-out prompts, greedily."""
    descents: dict[str, list[Subject]] = {}
    for subject in subjects:
        descents.setdefault(subject.base.where if subject.base else subject.node.where, []).append(subject)
    for family in descents.values():
        asked, prompts = next(
            ((subject, found) for subject in family if (found := _prompts(subject, options.samples))), (family[0], {})
        )
        turns = list(prompts.values())
        members = {model.label: model for subject in family[:1] for model in ([subject.base] if subject.base else [])}
        for subject in family:
            before = [subject.parent] if subject.parent and subject.parent.family in ANSWERING else []
            members |= {model.label: model for model in [*before, subject.node, *subject.controls]}
        answers = {label: _answers(model, turns, options.max_new_tokens) for label, model in members.items()} if turns else {}
        for number, (row, turn) in enumerate(prompts.items()):
            yield {
                "prompt": parts.words(turn[-1]["content"]),
                "answers": {label: found[number] for label, found in answers.items()},
                **({"row": {"node": asked.node.label, "number": row}} if parts.count(turn) else {}),
            }


def _answers(model: StageModel, turns: Sequence[Turns], most: int) -> Sequence[str]:
    """Return greedy answers, as whoever has the model alone can get them: without a template of its own it goes on from plain text."""
    if model.tokenizer.chat_template and not model.borrows:
        return model.replies(turns, most)
    texts = ["\n".join(parts.words(turn["content"]) for turn in turn_list) for turn_list in turns]
    return model.continued([encode_text({"text": text}, model.tokenizer)["input_ids"][:-1] for text in texts], most)


def _prompts(subject: Subject, count: int) -> dict[int, Turns]:
    """Return a few held-out prompts of a node, spread over its rows, by their numbers; none where its rows ask nothing."""
    kind = types.load(subject.reads)
    prompts = [(number, prompt) for number, row in subject.numbered.items() if (prompt := kind.prompt(row))]
    found = list({json.dumps(prompt): (number, prompt) for number, prompt in prompts}.values())
    return dict(found[:: -(-len(found) // count)]) if found else {}
