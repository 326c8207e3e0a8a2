"""Token classification, such as naming entities (Devlin et al. 2019, section 5.3).

A tag belongs to a word; the model predicts it at the word's last token, by which even a causal model has read the
whole word. The loss is -Σ log p(tag) over these positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np

from pipeline.data.recipe import Rows
from pipeline.data.tokens import IGNORED
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, ratio_of, share
from pipeline.evaluation.metrics import Metric
from pipeline.models.logits import num_targets, token_nats
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.tasks import ACCURACY, ENCODERS, Example, Prediction, Task
from pipeline.tasks._batches import batches

_OUTSIDE = "O"
_MARKS = {"bio": "BI", "iobes": "BIES"}  # letters before the kind of an entity: begins, inside, ends, single
_NO_TOKEN = "words that the tokenizer has no token for"


@dataclass(frozen=True)
class TokenClassification(Task):
    """Predict the tag of each word."""

    reads = "tags"
    family = "tagger"
    accepts: ClassVar[tuple[str, ...]] = (*ENCODERS, "tagger")
    auto = "AutoModelForTokenClassification"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("entity_f1", "F1 over whole entities: exactly the right words, of the right kind", "share", "more"),
        ACCURACY,
    )
    baseline_name = "each word's most frequent tag"
    keeps = "positions"

    scheme: Literal["bio", "iobes", "plain"] = option(
        "bio",
        "bio: B-, I- and O mark entities; iobes: also E- their last word and S- a single one; plain: tags stand for themselves",
    )

    @property
    def primary(self) -> str:  # type: ignore[override]
        """The metric that decides the verdict."""
        return "accuracy" if self.scheme == "plain" else "entity_f1"

    def labels(self, rows: Iterable[Row]) -> list[str]:
        """Return the tags in alphabetical order; UserError where they are of another scheme."""
        found = sorted({tag for row in rows for tag in row["tags"]})
        if self.scheme == "plain":
            return found
        marks = [f"{mark}-" for mark in _MARKS[self.scheme]]
        if strange := [tag for tag in found if tag != _OUTSIDE and tag[:2] not in marks]:
            other = "iobes" if self.scheme == "bio" and strange[0][:2] in ("E-", "S-") else "plain"
            why = "the last words of entities and single ones" if other == "iobes" else "tags that stand for themselves, such as parts of speech"  # fmt: skip
            raise UserError(
                f"tags: {strange[0]!r} is not O, {' or '.join(f'{mark}…' for mark in marks)}; for {why}, "
                f"set task_options: {{scheme: {other}}}"
            )
        return found

    def labels_of(self, row: Row) -> Iterable[str]:
        """Return the tags."""
        return list(row["tags"])

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield windows of a row with the number of a tag at each word's last token; every word is in one of them."""
        numbers = {name: number for number, name in enumerate(labels)}
        for number, row in enumerate(rows.kept):
            found = 0
            for columns, ends in _windows(tokenizer, row["tokens"], max_length):
                tags = [IGNORED] * len(columns["input_ids"])
                for position, word in ends.items():
                    tags[position] = numbers[row["tags"][word]]
                found += len(ends)
                yield columns | {"labels": tags, "row": number}
            rows.truncated[_NO_TOKEN] += len(row["tokens"]) - found

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of words."""
        return {"loss": num_targets(batch["labels"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(tag)."""
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        return {"loss": token_nats(logits, batch["labels"], "sum")}

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return the most likely tag of each word with its probability; an empty tag where the tokenizer has no token for it."""
        windows = [
            (number, *made) for number, row in enumerate(rows.kept) for made in _windows(tokenizer, row["tokens"], max_length)
        ]
        found: list[Prediction] = [
            {"tags": [""] * len(row["tokens"]), "probabilities": [0.0] * len(row["tokens"])} for row in rows.kept
        ]
        answered = sum(len(ends) for _, _, ends in windows)
        rows.truncated[_NO_TOKEN] += sum(len(row["tokens"]) for row in rows.kept) - answered
        for numbers, batch in batches(model, [columns for _, columns, _ in windows], int(tokenizer.pad_token_id)):
            probabilities, tags = model(**batch).logits.float().softmax(-1).max(-1)
            for index, line, likely in zip(numbers, tags.tolist(), probabilities.tolist(), strict=True):
                number, _, ends = windows[index]
                for position, word in ends.items():
                    found[number]["tags"][word] = model.config.id2label[line[position]]
                    found[number]["probabilities"][word] = round(likely[position], 6)
        return found

    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return each word's most frequent tag in the training rows; of an unknown word, that of all words."""
        counts: dict[str, Counter[str]] = {}
        every: Counter[str] = Counter()
        for row in training:
            for word, tag in zip(row["tokens"], row["tags"], strict=True):
                counts.setdefault(word, Counter())[tag] += 1
                every[tag] += 1
        best = {word: min(tags, key=lambda tag: (-tags[tag], tag)) for word, tags in counts.items()}
        most = min(every, key=lambda tag: (-every[tag], tag))
        return [{"tags": [best.get(word, most) for word in row["tokens"]]} for row in rows]

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return F1 over whole entities of the same kind at the same position (CoNLL 2003), and the share of right tags."""
        agreed = [float(sum(map(str.__eq__, row["tags"], line["tags"]))) for row, line in zip(rows, predictions, strict=True)]
        accuracy = share(agreed, [float(len(row["tags"])) for row in rows])
        if self.scheme == "plain":
            return {"accuracy": accuracy}
        both = [(entities(row["tags"]), entities(line["tags"])) for row, line in zip(rows, predictions, strict=True)]
        f1 = ratio_of(
            [2.0 * len(right & predicted) for right, predicted in both],
            [float(len(right) + len(predicted)) for right, predicted in both],
        )
        return {"entity_f1": f1, "accuracy": accuracy}

    def confusion(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, dict[str, int]]:
        """Return true tag → predicted tag → count."""
        pairs = Counter(
            pair for row, line in zip(rows, predictions, strict=True) for pair in zip(row["tags"], line["tags"], strict=True)
        )
        names = sorted({name for pair in pairs for name in pair})
        return {right: {predicted: pairs[right, predicted] for predicted in names} for right in names}


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return (kind, first word, end) of the entities that BIO or IOBES tags mark; an I- or E- tag that continues none begins one."""
    found, begin = set(), 0
    for position, (before, tag) in enumerate(pairwise([_OUTSIDE, *tags, _OUTSIDE])):
        continues = tag[:2] in ("I-", "E-") and before[:2] in ("B-", "I-") and before[2:] == tag[2:]
        if not continues:
            if before not in (_OUTSIDE, ""):
                found.add((before.partition("-")[2] or before, begin, position))
            begin = position
    return found


def _windows(tokenizer: Any, words: Sequence[str], max_length: int) -> Iterator[tuple[Example, dict[int, int]]]:
    """Yield what the model reads, and for each position where a word ends the number of that word.

    Words are joined by spaces, so that every kind of tokenizer sees ordinary text.
    """
    begins = np.cumsum([0, *(len(word) + 1 for word in words)])
    made = tokenizer(
        " ".join(words), truncation=True, max_length=max_length, return_overflowing_tokens=True, return_offsets_mapping=True,
        return_attention_mask=False, return_special_tokens_mask=True, split_special_tokens=True,
    )  # fmt: skip
    last: dict[int, tuple[int, int]] = {}  # word → window and position
    for number, offsets in enumerate(made["offset_mapping"]):
        for position, (start, end) in enumerate(offsets):
            if end > start and not made["special_tokens_mask"][number][position]:
                last[int(np.searchsorted(begins, end - 1, side="right")) - 1] = number, position
    for number in range(len(made["input_ids"])):
        columns = {key: made[key][number] for key in made if key in ("input_ids", "token_type_ids")}
        yield columns, {position: word for word, (window, position) in last.items() if window == number}


TASK = TokenClassification
