"""Measure finished stages on held-out rows: against the parent, against the control, with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.chain import manifest
from pipeline.models.checkpoint import generation
from pipeline.models.checkpoint import load as load_model
from pipeline.data import recipe as recipes
from pipeline.data.shapes import Row
from pipeline.data.tokens import IGNORED, Tokens, encode_messages, encode_pair, encode_text, pieces
from pipeline.evaluation import intervals, models
from pipeline.evaluation.metrics.exact_match import ExactMatch
from pipeline.evaluation.metrics.token_loss import TokenLoss
from pipeline.evaluation.metrics.win_rate import WinRate
from pipeline.models.tokenizer import load as load_tokenizer
from pipeline.models.tokenizer import render

SHAPES = {"pretrain": "text", "sft": "messages", "control": "messages", "dpo": "preference"}
_UNIGRAM_ROWS = 5000  # of the training text, for the unigram's counts


@dataclass
class Items:
    """One figure by item: what is summed, what it is divided by."""

    scores: list[float]
    weights: list[float] | None = None


@dataclass
class Findings:
    """Figures of all stages, item by item until the end, and the prompts that were answered side by side."""

    items: dict[str, dict[str, Items]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, stage: str, metric: str, scores: Sequence[float], weights: Sequence[float] | None = None) -> None:
        """Take note of one figure."""
        self.items.setdefault(stage, {})[metric] = Items(list(scores), None if weights is None else list(weights))


class Judged:
    """A finished stage with its record; model, tokenizer and recipe are loaded when they are first asked for."""

    def __init__(self, folder: Path, template: str | None = None) -> None:
        record = manifest.read(folder)
        assert record is not None
        self.folder, self.record, self.name = folder, record, str(record["stage"])
        self.template = template  # of SFT, for a base model that has none

    @cached_property
    def model(self) -> Any:
        """The model in fp32, ready to answer."""
        from pipeline.system.hardware import device

        model = load_model(str(self.folder)).to(device()).eval()
        model.generation_config = generation(self.tokenizer)  # a base model, too, stops at the end of an answer
        model.config.use_cache = True
        return model

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, with SFT's template where it has none."""
        tokenizer = load_tokenizer(str(self.folder))
        tokenizer.chat_template = tokenizer.chat_template or self.template
        return tokenizer

    def recipe(self) -> recipes.Recipe:
        """Return the recipe that the stage was trained on."""
        return recipes.of(self.record, SHAPES[self.name])

    def nats(self, rows: Sequence[Tokens]) -> list[float]:
        """Return −Σ log p of the rows' targets."""
        return models.nats(self.model, rows, int(self.tokenizer.pad_token_id))

    def replies(self, questions: Sequence[list[dict[str, str]]], max_new_tokens: int, seed: int | None = None) -> list[str]:
        """Return a reply to each conversation."""
        prompts = [render(self.tokenizer, turns, answer_next=True) for turns in questions]
        return models.replies(self.model, self.tokenizer, prompts, max_new_tokens, seed)


def held_out(stage: Judged, limit: int, findings: Findings) -> list[Row]:
    """Return at most `limit` held-out rows of the stage's shape, spread over all of them; say so if there is none."""
    seed = int(stage.record["seed"])
    rows = stage.recipe().rows(SHAPES[stage.name], "held_out", seed).kept
    if not rows:
        findings.left_out[f"figures of {stage.name}: its data is too small to hold any row out"] += 1
    step = max(1, math.ceil(len(rows) / limit))
    return rows[::step]


def fitting(stages: Sequence[Judged], rows: list[Row], findings: Findings) -> list[Row]:
    """Return the rows that every stage has positions for; count the others."""

    def longest(stage: Judged, row: Row) -> int:
        if "messages" in row:
            return len(render(stage.tokenizer, row["messages"]))
        return max(len(render(stage.tokenizer, row["prompt"] + row[side])) for side in ("chosen", "rejected"))

    places = {stage.name: getattr(stage.model.config, "max_position_embeddings", math.inf) for stage in stages}
    kept = [row for row in rows if all(longest(stage, row) <= places[stage.name] for stage in stages)]
    if len(kept) < len(rows):
        findings.left_out["held-out rows longer than a model has positions"] += len(rows) - len(kept)
    return kept


def text_loss(stage: Judged, rows: list[Row], findings: Findings) -> None:
    """Measure loss and bits per byte of held-out text, one document a row, against a unigram and the exact floor."""
    length = int(getattr(stage.model.config, "max_position_embeddings", 1024))
    documents = [list(pieces([row], lambda row: encode_text(row, stage.tokenizer), length, True, Counter())) for row in rows]
    flat = stage.nats([piece for document in documents for piece in document])
    found: Iterator[float] = iter(flat)
    nats = [sum(next(found) for _ in document) for document in documents]
    tokens = [sum(models.targets(document)) for document in documents]
    sizes = [len(row["text"].encode()) for row in rows]
    _losses(findings, "pretrain", nats, tokens, sizes)
    unigram = unigram_nats(stage, documents)
    _losses(findings, "unigram", unigram, tokens, sizes)
    floor: Callable[[str], float] | None = getattr(stage.recipe().module, "floor", None)
    if floor:
        floors = [floor(row["text"]) for row in rows]
        findings.add("pretrain", "floor", floors, tokens)
        findings.add("pretrain", "loss_over_floor", nats, floors)


def objective_figures(stage: Judged, rows: list[Row], findings: Findings, samples: int) -> None:
    """Measure a base model that is not causal by what its objective asks, against a unigram and against chance.

    A masked one fills gaps in sentences, too.
    """
    from pipeline.evaluation import cloze, objective

    training = stage.recipe().rows("text", "train", int(stage.record["seed"]))
    for name, metrics in objective.scores(stage.folder, training, rows).items():
        for metric, (scores, weights) in metrics.items():
            findings.add(name, metric, scores, weights)
    if stage.record["family"] != "masked":
        return
    config = stage.record["config"]
    asked = cloze.questions(rows, stage.tokenizer, config["language"], config["max_length"], int(stage.record["seed"]))
    if not asked:
        findings.left_out["cloze: no held-out sentence is long enough"] += 1
        return
    found, findings.samples = cloze.figures(stage.folder, stage.tokenizer, asked, training.kept, samples)
    for name, metrics in found.items():
        for metric, (scores, weights) in metrics.items():
            findings.add(name, metric, scores, weights)


def _losses(
    findings: Findings, stage: str, nats: list[float], tokens: Sequence[int], sizes: Sequence[int], prefix: str = ""
) -> None:
    metric = TokenLoss()
    loss = metric.compute(predictions=nats, references=tokens)
    bits = metric.compute(predictions=nats, references=sizes, unit="byte")
    findings.add(stage, f"{prefix}loss", loss["scores"], loss["weights"])
    findings.add(stage, f"{prefix}bits_per_byte", bits["scores"], bits["weights"])


def unigram_nats(stage: Judged, documents: Sequence[Sequence[Tokens]]) -> list[float]:
    """Return −Σ log p of documents under token frequencies of the training text, one added to each count."""
    rows = stage.recipe().rows("text", "train", int(stage.record["seed"])).kept[:_UNIGRAM_ROWS]
    counts: Counter[int] = Counter()
    for row in rows:
        counts.update(encode_text(row, stage.tokenizer)["input_ids"][1:])
    total = math.log(sum(counts.values()) + len(stage.tokenizer))
    return [
        sum(total - math.log(counts[label] + 1) for piece in document for label in piece["labels"] if label != IGNORED)
        for document in documents
    ]


def reply_loss(stages: Sequence[Judged], rows: list[Row], findings: Findings) -> None:
    """Measure the loss of held-out answers under each model, given the conversation before them."""
    for stage in stages:
        encoded = [encode_messages(row["messages"], stage.tokenizer) for row in rows]
        sizes = [sum(len(turn["content"].encode()) for turn in row["messages"] if turn["role"] == "assistant") for row in rows]
        prefix = "" if SHAPES[stage.name] == "messages" else "reply_"
        _losses(findings, stage.name, stage.nats(encoded), models.targets(encoded), sizes, prefix)


def pair_accuracy(stages: Sequence[Judged], base: Judged | None, rows: list[Row], findings: Findings) -> None:
    """Measure how often a model tells the chosen side from the rejected one, and the chosen side's loss.

    `likelier`: the chosen side's log-probability is the higher one. `accuracy`: it is after the base's is
    taken off, log p(answer) - log p_base(answer), which is DPO's implicit reward (Rafailov et al. 2023,
    section 4) with the base as reference for every stage: how rare an answer's words are cancels.
    """
    reference = _sides(base, rows) if base else None
    for stage in stages:
        chosen, rejected = _sides(stage, rows)
        findings.add(stage.name, "likelier", [float(a.nats < b.nats) for a, b in zip(chosen, rejected, strict=True)])
        if reference:
            gains = zip(chosen, rejected, *reference, strict=True)
            findings.add(stage.name, "accuracy", [float(c.nats - cb.nats < r.nats - rb.nats) for c, r, cb, rb in gains])
        sizes = [sum(len(turn["content"].encode()) for turn in row["chosen"]) for row in rows]
        nats, tokens = [side.nats for side in chosen], [side.tokens for side in chosen]
        _losses(findings, stage.name, nats, tokens, sizes, "" if stage.name == "dpo" else "chosen_")


class _Side(NamedTuple):
    """One side of a pair under one model."""

    nats: float
    tokens: int


def _sides(stage: Judged, rows: list[Row]) -> tuple[list[_Side], list[_Side]]:
    """Return chosen and rejected sides under a model."""
    pairs = [encode_pair(row, stage.tokenizer) for row in rows]
    found = []
    for side in ("chosen_ids", "rejected_ids"):
        encoded: list[Tokens] = [
            {"input_ids": pair["prompt_ids"] + pair[side], "labels": [IGNORED] * len(pair["prompt_ids"]) + pair[side]}
            for pair in pairs
        ]
        found.append([_Side(*both) for both in zip(stage.nats(encoded), models.targets(encoded), strict=True)])
    return found[0], found[1]


def world_answers(stages: Sequence[Judged], module: Any, findings: Findings, max_new_tokens: int, seed: int) -> None:
    """Measure what only a recipe with questions and a judge can: exact answers, and DPO's win rate by the rule."""
    asked = list(module.questions(seed))
    turns = [[{"role": "user", "content": question}] for question, _ in asked]
    right = [answer for _, answer in asked]
    for stage in stages:
        found = ExactMatch().compute(predictions=stage.replies(turns, max_new_tokens), references=right)
        findings.add(stage.name, "exact_match", found["scores"])
    by_name = {stage.name: stage for stage in stages}
    if {"sft", "dpo"} <= by_name.keys():
        grades = {
            name: [
                module.grade(reply, answer)
                for reply, answer in zip(by_name[name].replies(turns, max_new_tokens, number), right, strict=True)
            ]
            for number, name in enumerate(("sft", "dpo"), start=seed)
        }
        findings.add("dpo", "win_rate", WinRate().compute(predictions=grades["dpo"], references=grades["sft"])["scores"])


def completions(stage: Judged, module: Any, findings: Findings) -> None:
    """Measure how many facts a base model completes right, greedily."""
    facts = list(module.completions())
    prompts = [encode_text({"text": start}, stage.tokenizer)["input_ids"][:-1] for start, _ in facts]
    said = models.replies(stage.model, stage.tokenizer, prompts, max_new_tokens=8)
    findings.add(
        "pretrain", "completion", [float(text.startswith(value.strip())) for text, (_, value) in zip(said, facts, strict=True)]
    )


def side_by_side(
    stages: Sequence[Judged], turns: Sequence[list[dict[str, str]]], findings: Findings, max_new_tokens: int
) -> None:
    """Have every stage answer the same few prompts, greedily."""
    answers = {stage.name: stage.replies(turns, max_new_tokens) for stage in stages}
    findings.samples = [
        {"prompt": turn[-1]["content"], "answers": {name: found[place] for name, found in answers.items()}}
        for place, turn in enumerate(turns)
    ]


# What is compared with what, over the same items: stage, its metric, rival, the rival's metric, and whether less is better.
_PAIRS = (
    ("pretrain", "bits_per_byte", "unigram", "bits_per_byte", True),
    ("pretrain", "loss", "unigram", "loss", True),
    ("pretrain", "cloze", "unigram", "cloze", False),
    ("pretrain", "cloze_loss", "unigram", "cloze_loss", True),
    ("pretrain", "generator_loss", "unigram", "generator_loss", True),
    ("pretrain", "pair_accuracy", "chance", "pair_accuracy", False),
    ("pretrain", "detection", "chance", "detection", False),
    ("pretrain", "detection", "unigram", "detection", False),
    ("pretrain", "view_loss", "untrained", "view_loss", True),
    ("pretrain", "retrieval", "untrained", "retrieval", False),
    ("sft", "loss", "pretrain", "reply_loss", True),
    ("sft", "loss", "control", "loss", True),
    ("sft", "bits_per_byte", "pretrain", "reply_bits_per_byte", True),
    ("sft", "exact_match", "pretrain", "exact_match", False),
    ("sft", "exact_match", "control", "exact_match", False),
    ("dpo", "accuracy", "sft", "accuracy", False),
    ("dpo", "likelier", "sft", "likelier", False),
    ("dpo", "loss", "sft", "chosen_loss", True),
    ("dpo", "exact_match", "sft", "exact_match", False),
)


def summarise(findings: Findings, resamples: int) -> dict[str, Any]:
    """Return figures with intervals by stage, paired differences, and the samples."""
    stages = {
        stage: {metric: asdict(intervals.ratio(item.scores, item.weights, resamples)) for metric, item in metrics.items()}
        for stage, metrics in findings.items.items()
    }
    comparisons = []
    for stage, metric, rival, theirs, less in _PAIRS:
        mine, other = findings.items.get(stage, {}).get(metric), findings.items.get(rival, {}).get(theirs)
        if mine and other:
            found = intervals.difference(mine.scores, other.scores, mine.weights, resamples)
            better = found.high < 0 if less else found.low > 0
            comparisons.append({"stage": stage, "against": rival, "metric": metric, **asdict(found), "better": better})
    return {"stages": stages, "comparisons": comparisons, "samples": findings.samples, "left_out": dict(findings.left_out)}
