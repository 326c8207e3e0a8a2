"""Token classification, such as naming entities (Devlin et al. 2019, section 5.3).

A tag belongs to a word; the model says it at the word's last piece, by which a causal model, too, has read it. The
loss is -Σ log p(tag) over those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np

from pipeline.system.config import option
from pipeline.data.recipe import Rows
from pipeline.data.shapes import Row
from pipeline.data.tokens import IGNORED
from pipeline.system.errors import UserError
from pipeline.evaluation.intervals import Figure, ratio_of, share
from pipeline.models.build import asked, token_nats
from pipeline.tasks import ENCODERS, Example, Prediction, Task
from pipeline.tasks._batches import batches

_OUTSIDE = "O"
_NO_PIECE = "words that the tokenizer has no piece for"


@dataclass(frozen=True)
class TokenClassification(Task):
    """Tell the tag of each word."""

    shape = "tags"
    family = "tagger"
    accepts: ClassVar[tuple[str, ...]] = (*ENCODERS, "tagger")
    auto = "AutoModelForTokenClassification"
    rival = "each word's most frequent tag"

    scheme: Literal["bio", "plain"] = option(
        "bio", "bio: entities are marked by B-, I- and O; plain: tags stand for themselves"
    )

    @property
    def primary(self) -> str:  # type: ignore[override]
        """The figure that the verdict goes by."""
        return "entity_f1" if self.scheme == "bio" else "accuracy"

    def labels(self, rows: Sequence[Row]) -> list[str]:
        """Return the tags in the order of the alphabet; UserError where they are of another scheme."""
        found = sorted({tag for row in rows for tag in row["tags"]})
        strange = [tag for tag in found if tag != _OUTSIDE and not tag.startswith(("B-", "I-"))]
        if self.scheme == "bio" and strange:
            raise UserError(
                f"tags: {strange[0]!r} is not O, B-… or I-…; for tags that stand for themselves, such as parts of speech, "
                "set task_options: {scheme: plain}"
            )
        return found

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield windows of a row with the number of a tag at each word's last piece; every word is in one of them."""
        numbers = {name: number for number, name in enumerate(labels)}
        for number, row in enumerate(rows.kept):
            found = 0
            for columns, ends in _windows(tokenizer, row["tokens"], max_length):
                tags = [IGNORED] * len(columns["input_ids"])
                for place, word in ends.items():
                    tags[place] = numbers[row["tags"][word]]
                found += len(ends)
                yield columns | {"labels": tags, "row": number}
            rows.left_out[_NO_PIECE] += len(row["tokens"]) - found

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of words."""
        return {"loss": asked(batch["labels"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(tag)."""
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        return {"loss": token_nats(logits, batch["labels"], "sum")}

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return the likeliest tag of each word with its probability; none of a word that the tokenizer has no piece for."""
        windows = [
            (number, *made) for number, row in enumerate(rows.kept) for made in _windows(tokenizer, row["tokens"], max_length)
        ]
        found: list[Prediction] = [
            {"tags": [""] * len(row["tokens"]), "probabilities": [0.0] * len(row["tokens"])} for row in rows.kept
        ]
        answered = sum(len(ends) for _, _, ends in windows)
        rows.left_out[_NO_PIECE] += sum(len(row["tokens"]) for row in rows.kept) - answered
        for places, batch in batches(model, [columns for _, columns, _ in windows], int(tokenizer.pad_token_id)):
            chances, tags = model(**batch).logits.float().softmax(-1).max(-1)
            for place, line, chance in zip(places, tags.tolist(), chances.tolist(), strict=True):
                number, _, ends = windows[place]
                for where, word in ends.items():
                    found[number]["tags"][word] = model.config.id2label[line[where]]
                    found[number]["probabilities"][word] = round(chance[where], 6)
        return found

    def guess(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return each word's most frequent tag in the training rows; of a word that is not there, of all words."""
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
        """Return F1 over whole entities, of the same kind at the same place (CoNLL 2003), and the share of right tags."""
        agreed = [float(sum(map(str.__eq__, row["tags"], said["tags"]))) for row, said in zip(rows, predictions, strict=True)]
        accuracy = share(agreed, [float(len(row["tags"])) for row in rows])
        if self.scheme == "plain":
            return {"accuracy": accuracy}
        both = [(entities(row["tags"]), entities(said["tags"])) for row, said in zip(rows, predictions, strict=True)]
        f1 = ratio_of(
            [2.0 * len(right & told) for right, told in both], [float(len(right) + len(told)) for right, told in both]
        )
        return {"entity_f1": f1, "accuracy": accuracy}

    def confusion(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, dict[str, int]]:
        """Return true tag → predicted tag → count."""
        pairs = Counter(
            pair for row, said in zip(rows, predictions, strict=True) for pair in zip(row["tags"], said["tags"], strict=True)
        )
        names = sorted({name for pair in pairs for name in pair})
        return {right: {told: pairs[right, told] for told in names} for right in names}


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return (kind, first word, end) of the entities that BIO tags mark; an I that follows nothing of its kind begins one."""
    found, begin = set(), 0
    for place, (before, tag) in enumerate(pairwise([_OUTSIDE, *tags, _OUTSIDE])):
        goes_on = tag.startswith("I-") and before[2:] == tag[2:]
        if not goes_on:
            if before not in (_OUTSIDE, ""):
                found.add((before.partition("-")[2] or before, begin, place))
            begin = place
    return found


def _windows(tokenizer: Any, words: Sequence[str], max_length: int) -> Iterator[tuple[Example, dict[int, int]]]:
    """Yield what the model reads, and at which places of it which word ends.

    Words are joined by spaces, so that every kind of tokenizer sees text.
    """
    begins = np.cumsum([0, *(len(word) + 1 for word in words)])
    made = tokenizer(
        " ".join(words), truncation=True, max_length=max_length, return_overflowing_tokens=True, return_offsets_mapping=True,
        return_attention_mask=False, return_special_tokens_mask=True, split_special_tokens=True,
    )  # fmt: skip
    last: dict[int, tuple[int, int]] = {}  # word → window and place
    for number, offsets in enumerate(made["offset_mapping"]):
        for place, (start, end) in enumerate(offsets):
            if end > start and not made["special_tokens_mask"][number][place]:
                last[int(np.searchsorted(begins, end - 1, side="right")) - 1] = number, place
    for number in range(len(made["input_ids"])):
        columns = {key: made[key][number] for key in made if key in ("input_ids", "token_type_ids")}
        yield columns, {place: word for word, (window, place) in last.items() if window == number}


TASK = TokenClassification
