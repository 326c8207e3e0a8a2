"""Extractive question answering (SQuAD 2.0, Rajpurkar et al. 2018; the head of Devlin et al. 2019, section 4.3).

The answer is a span of the context; the loss is -½ Σ (log p(start) + log p(end)). A context too long for the model is
read in windows that overlap by `stride` tokens. Where a window does not contain the answer, start and end are its
first token, which also stands for no answer.

A question gets no answer where the log-probability of none exceeds that of the best span by more than
`null_score_diff_threshold`, as in the evaluation of SQuAD 2.0; `tuned` chooses it by F1 on rows that were held back.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, share
from pipeline.evaluation.metrics import Metric
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.tasks import ENCODERS, EXACT_MATCH, Example, Prediction, Task
from pipeline.tasks._batches import batches, units

_COLUMNS = ("start", "end")
_NONE = (0, 0)  # start and end of no answer
_LEAST = -100.0  # log-odds of a span against no answer, at least


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Find the answer to a question in a text, or tell that the text has none."""

    reads = "answers"
    family = "reader"
    accepts: ClassVar[tuple[str, ...]] = (*ENCODERS, "reader")
    auto = "AutoModelForQuestionAnswering"
    outputs = 2
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("f1", "overlap of the words of the predicted and the right answer, as F1", "share", "more"),
        EXACT_MATCH,
        Metric("refused", "share of the questions without an answer that the model left unanswered", "share", "more"),
    )
    primary = "f1"
    keeps = "positions"
    tunes = "null_score_diff_threshold"
    baseline_name = "most frequent answer"

    stride: int = option(64, "tokens by which the windows of a long context overlap", at_least=0)
    longest_answer: int = option(30, "tokens of an answer, at most", at_least=1)
    n_best_size: int = option(1, "different answers that a prediction lists, the likeliest first", at_least=1)
    null_score_diff_threshold: float = option(
        0.0, "by how many nats no answer must be likelier than the best span to be given", needs=("tuned", False)
    )
    tuned: bool = option(False, "choose that threshold by F1 on the validation rows")

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield windows with the positions of the first answer's first and last token; a row may give several windows."""
        for number, row in enumerate(rows.kept):
            windows = list(self._windows(tokenizer, row, max_length))
            spans = [window.locate(row["answers"][0]) if row["answers"] else _NONE for window in windows]
            if not windows:
                rows.dropped_by_encoding[self._no_room(max_length)] += 1
            elif row["answers"] and set(spans) == {_NONE}:
                rows.dropped_by_encoding["answer that no window holds"] += 1
            else:
                for window, (start, end) in zip(windows, spans, strict=True):
                    yield window.columns | {"start": start, "end": end, "row": number}

    def _no_room(self, max_length: int) -> str:
        return f"question that leaves no more than {self.stride} of {max_length} tokens for the context"

    def _windows(self, tokenizer: Any, row: Row, max_length: int) -> Iterator[_Window]:
        """Yield what the model reads; nothing where the question is so long that windows would not advance."""
        question = tokenizer(row["question"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if max_length - len(question) - tokenizer.num_special_tokens_to_add(pair=True) <= self.stride:
            return
        made = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=max_length, stride=self.stride,
            return_overflowing_tokens=True, return_offsets_mapping=True, return_attention_mask=False, split_special_tokens=True,
        )  # fmt: skip
        for number, offsets in enumerate(made["offset_mapping"]):
            sides = made.sequence_ids(number)
            columns = {key: made[key][number] for key in made if key in ("input_ids", "token_type_ids")}
            yield _Window(
                columns, {index: both for index, both in enumerate(offsets) if sides[index] == 1 and both[1] > both[0]}
            )

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of windows."""
        return {"loss": len(batch["start"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -½ Σ (log p(start) + log p(end))."""
        import torch

        logs = _positions(model, {key: value for key, value in batch.items() if key not in _COLUMNS})
        return {
            "loss": sum(
                torch.nn.functional.nll_loss(each, batch[side], reduction="sum") / 2
                for each, side in zip(logs, _COLUMNS, strict=True)
            )
        }

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return each row's best span in any window and its probability against no answer, σ of their log-odds.

        `answer` is that span, or empty by the threshold; `score_diff` is the log-odds of no answer; `n_best` lists spans with
        different texts, with their probabilities among these and no answer.
        """
        windows = [
            (number, window) for number, row in enumerate(rows.kept) for window in self._windows(tokenizer, row, max_length)
        ]
        if unread := len(rows.kept) - len({number for number, _ in windows}):
            rows.truncated[self._no_room(max_length)] += unread
        found: list[dict[str, float]] = [{} for _ in rows.kept]  # text → log-odds against no answer
        for numbers, batch in batches(model, [window.columns for _, window in windows], int(tokenizer.pad_token_id)):
            starts, ends = (logs.cpu().numpy() for logs in _positions(model, batch))
            for index, start, end in zip(numbers, starts, ends, strict=True):
                number, window = windows[index]
                for margin, text in window.spans(
                    start, end, self.longest_answer, rows.kept[number]["context"], self.n_best_size
                ):
                    found[number][text] = max(margin, found[number].get(text, -np.inf))
        return [self._said(margins, self._threshold(model)) for margins in found]

    def _threshold(self, model: Any) -> float:
        """Return the threshold that was chosen for a model, or else the one that is given."""
        return float(getattr(model.config, self.tunes, 0.0) if self.tuned else self.null_score_diff_threshold)

    def _said(self, margins: Mapping[str, float], threshold: float) -> Prediction:
        """Return a prediction by the log-odds of spans against no answer."""
        best = sorted(margins.items(), key=lambda item: (-item[1], item[0]))[: self.n_best_size] or [("", _LEAST)]
        text, margin = best[0][0], round(best[0][1], 6)
        said = {
            "answer": text if -margin <= threshold else "",
            "probability": round(float(1 / (1 + np.exp(-margin))), 6),
            "span": text,
            "score_diff": round(-margin, 6),
        }
        if self.n_best_size == 1:
            return said
        weights = np.exp(np.array([0.0, *(one for _, one in best)]) - max(0.0, margin))
        likely = (weights / weights.sum()).tolist()
        return said | {
            "n_best": [{"text": text, "probability": round(one, 6)} for (text, _), one in zip(best, likely[1:], strict=True)]
        }

    def tunable(self, rows: Sequence[Row]) -> None:
        """Raise UserError unless some rows have an answer and some have none."""
        answered = sum(bool(row["answers"]) for row in rows)
        if self.tuned and answered in (0, len(rows)):
            raise UserError(
                f"tuned: of {len(rows):,} validation rows {'every' if answered else 'no'} one has an answer, which leaves no "
                "threshold to choose; take it out, or hold more rows back (validation)"
            )

    def tune(self, model: Any, rows: Sequence[Row], predictions: Sequence[Prediction]) -> list[Prediction]:
        """Choose the threshold with the best F1, half-way between the score differences of two rows."""
        if not self.tuned:
            return list(predictions)
        gains = [_f1(row, line["span"]) - _f1(row, "") for row, line in zip(rows, predictions, strict=True)]
        order = sorted(range(len(rows)), key=lambda number: predictions[number]["score_diff"])
        sorted_by = [predictions[number]["score_diff"] for number in order]
        reached = np.concatenate([[0.0], np.cumsum([gains[number] for number in order])])  # F1 gained by answering the first n
        cuts = [0, *(n for n in range(1, len(order)) if sorted_by[n - 1] < sorted_by[n]), len(order)]
        best = max(cuts, key=lambda n: (round(float(reached[n]), 9), -n))
        ends = [sorted_by[0] - 1, *sorted_by, sorted_by[-1] + 1]
        threshold = (ends[best] + ends[best + 1]) / 2
        setattr(model.config, self.tunes, threshold)
        return [line | {"answer": line["span"] if line["score_diff"] <= threshold else ""} for line in predictions]

    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the most frequent answer of the training rows, which may be that there is none."""
        counts = Counter(row["answers"][0]["text"] if row["answers"] else "" for row in training)
        answer, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        return [{"answer": answer, "probability": round(count / len(training), 6), "span": answer}] * len(rows)

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return F1 over words, exact match, and the share of unanswerable questions that got no answer."""
        right = [_right(row) for row in rows]
        predicted = [prediction["answer"] for prediction in predictions]
        f1 = [_f1(row, text) for row, text in zip(rows, predicted, strict=True)]
        exact = [
            max(float(_plain(text) == _plain(one)) for one in answers) for text, answers in zip(predicted, right, strict=True)
        ]
        found = {"f1": share(f1), "exact_match": share(exact)}
        none = [float(answers == [""]) for answers in right]
        if any(none):
            found["refused"] = share([float(not text) * without for text, without in zip(predicted, none, strict=True)], none)
        return found


@dataclass
class _Window:
    """One window: what the model reads, and the characters of the context that each of its tokens covers."""

    columns: Example
    offsets: dict[int, tuple[int, int]]

    def locate(self, answer: Mapping[str, Any]) -> tuple[int, int]:
        """Return the positions of an answer's first and last token, or those of no answer where the window cuts it."""
        first, last = answer["start"], answer["start"] + len(answer["text"])
        held = [index for index, (start, end) in self.offsets.items() if start < last and end > first]
        whole = held and self.offsets[held[0]][0] <= first and self.offsets[held[-1]][1] >= last
        return (held[0], held[-1]) if whole else _NONE

    def spans(self, start: np.ndarray, end: np.ndarray, longest: int, context: str, most: int) -> Iterator[tuple[float, str]]:
        """Yield the likeliest spans, at most so many: log-probability minus that of no answer, and text."""
        positions = np.array(list(self.offsets))
        if not len(positions):
            return
        pairs = start[positions][:, None] + end[positions][None, :]
        apart = np.arange(len(positions))[None, :] - np.arange(len(positions))[:, None]
        margins = np.where((apart >= 0) & (apart < longest), pairs - start[0] - end[0], -np.inf).ravel()
        likeliest = np.argpartition(-margins, most)[:most] if most < len(margins) else np.arange(len(margins))
        for place in sorted(likeliest, key=lambda place: (-margins[place], place)):
            if margins[place] == -np.inf:
                return
            first, last = (int(positions[one]) for one in np.unravel_index(place, pairs.shape))
            yield max(float(margins[place]), _LEAST), context[self.offsets[first][0] : self.offsets[last][1]].strip()


def _positions(model: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return log p(start) and log p(end) over the positions of each row, (batch, length); padding is left out."""
    outputs = model(**inputs)
    padding = inputs["attention_mask"] == 0
    start, end = (
        logits.float().masked_fill(padding, -1e4).log_softmax(-1) for logits in (outputs.start_logits, outputs.end_logits)
    )
    return start, end


def _right(row: Row) -> list[str]:
    """Return the right answers to a row's question, an empty one where there is none."""
    return [answer["text"] for answer in row["answers"]] or [""]


def _f1(row: Row, predicted: str) -> float:
    """Return F1 over the words of an answer and the right one that is nearest to it."""
    return max(_overlap(predicted, one) for one in _right(row))


def _plain(text: str) -> str:
    """Return a text as SQuAD compares it: in lower case, without punctuation and articles, with single spaces."""
    kept = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _overlap(predicted: str, right: str) -> float:
    """Return F1 over the words of two answers; no answer agrees only with no answer."""
    mine, theirs = units(_plain(predicted)), units(_plain(right))
    if not mine or not theirs:
        return float(mine == theirs)
    common = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * common / (len(mine) + len(theirs))


TASK = QuestionAnswering
