"""Sequence to sequence: translation, summarisation and any other task that turns one text into another (T5, BART).

The loss is -Σ log p(target token | source, the target tokens before it). Predictions are greedy, or the best of
`num_beams` beams, and otherwise follow the parent's own generation settings where it has some.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.data.recipe import Rows
from pipeline.data.scripts import UNSPACED
from pipeline.data.tokens import IGNORED
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, share
from pipeline.evaluation.metrics import Metric
from pipeline.models.logits import decoder_logits, num_targets, token_nats
from pipeline.models.prompt import prompt_ids
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.tasks import EXACT_MATCH, Example, Prediction, Task
from pipeline.tasks._batches import batches, encode, units

_ALONE = re.compile(f"[{UNSPACED}]")
_MARKS = re.compile(
    rf"_|[^\w\s\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0900-\u0dff{UNSPACED}]"
)  # accents and signs of vowels belong to words


@dataclass(frozen=True)
class SequenceToSequence(Task):
    """Turn a source into a target."""

    reads = "translation"
    family = "seq2seq"
    accepts: ClassVar[tuple[str, ...]] = ("seq2seq",)
    auto = "AutoModelForSeq2SeqLM"
    needs: ClassVar[Mapping[str, str]] = {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "chrf", "overlap of character n-grams with the target (chrF), the mean over rows; 1 is perfect", "score", "more"
        ),
        Metric(
            "bleu", "overlap of word n-grams with the targets (BLEU), over all rows together; 1 is perfect", "score", "more"
        ),
        Metric("rouge_l", "longest common subsequence with the target (ROUGE-L), as F1; 1 is perfect", "score", "more"),
        EXACT_MATCH,
    )
    primary = "chrf"
    baseline_name = "the beginning of the source"

    prefix: str = option("", "text before every source, such as `translate English to German: `")
    longest_target: int = option(128, "tokens of a target, at most", at_least=1)
    num_beams: int = option(1, "beams of the search for the likeliest target; 1 is greedy", at_least=1)
    length_penalty: float = option(
        1.0,
        "power of its length by which a beam's log-probability is divided: above 1 favours long targets, below 1 short ones",
    )

    def __post_init__(self) -> None:
        """Raise UserError where an option is not read."""
        if self.length_penalty != 1 and self.num_beams == 1:
            raise UserError("task_options: length_penalty: is read only with num_beams above 1; leave it out")

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield source and target ids; a long source loses its end, a row with a long target is dropped and counted."""
        prompt = prompt_ids(tokenizer)
        for number, row in enumerate(rows.kept):
            source = encode(tokenizer, self.prefix + row["source"], None, max_length, rows.truncated)
            target = tokenizer(text_target=row["target"], split_special_tokens=True)["input_ids"]
            target = [token for token in target if token not in prompt]  # it belongs before sources only
            if len(target) > self.longest_target:
                rows.dropped_by_encoding[f"target of more than {self.longest_target} tokens"] += 1
            else:
                yield {"input_ids": source["input_ids"], "labels": target, "row": number}

    def longest(self, max_length: int) -> int:
        """Return the tokens of the longest source or target."""
        return max(max_length, self.longest_target)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of target tokens."""
        return {"loss": num_targets(batch["labels"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(target token)."""
        return {"loss": token_nats(decoder_logits(model, batch), batch["labels"], "sum")}

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return the output for each row, and its probability under the model."""
        sources = [encode(tokenizer, self.prefix + row["source"], None, max_length, rows.truncated) for row in rows.kept]
        encoded = [{"input_ids": source["input_ids"]} for source in sources]
        found: list[Prediction] = [{}] * len(rows.kept)
        pad = int(tokenizer.pad_token_id)
        for numbers, batch in batches(model, encoded, pad, self.longest_target * self.num_beams):
            ids = model.generate(**batch, max_new_tokens=self.longest_target, **self._search)
            labels = ids[:, 1:].masked_fill(_after_end(ids[:, 1:], tokenizer.eos_token_id), IGNORED)
            nats = token_nats(model(**batch, decoder_input_ids=ids[:, :-1]).logits, labels).sum(-1).tolist()
            for number, text, nat in zip(numbers, tokenizer.batch_decode(ids, skip_special_tokens=True), nats, strict=True):
                found[number] = {"target": text.strip(), "probability": round(math.exp(-nat), 6), "nats": round(nat, 4)}
        return found

    @property
    def _search(self) -> dict[str, Any]:
        """The settings by which transformers looks for a target."""
        beams = {"length_penalty": self.length_penalty} if self.num_beams > 1 else {}
        return {"do_sample": False, "num_beams": self.num_beams, **beams}

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write a plain checkpoint, whose own generation settings are those of the predictions."""
        if self.num_beams > 1:
            model.generation_config.update(**self._search)
        super().save(model, tokenizer, folder)

    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the first words of the source, as many as a target has on average."""
        words = round(float(np.mean([len(row["target"].split()) for row in training])))
        return [{"target": " ".join(row["source"].split()[:words])} for row in rows]

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return chrF (mean over rows) and BLEU by sacrebleu, ROUGE-L by rouge-score, and exact match."""
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        predicted, right = [prediction["target"] for prediction in predictions], [row["target"] for row in rows]
        pairs = list(zip(predicted, right, strict=True))
        chrf, bleu = CHRF(), BLEU()
        rouge = RougeScorer(["rougeL"], tokenizer=_Words())
        parts = [bleu.corpus_score([_apart(text)], [[_apart(one)]]) for text, one in pairs]
        counted = np.array([[*part.counts, *part.totals, part.sys_len, part.ref_len] for part in parts], float)
        return {
            "chrf": share([chrf.sentence_score(text, [one]).score / 100 for text, one in pairs]),
            "bleu": Figure(counted, _bleu),
            "rouge_l": share([rouge.score(one, text)["rougeL"].fmeasure for text, one in pairs]),
            "exact_match": share([float(text == one) for text, one in pairs]),
        }


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Return BLEU between 0 and 1 of summed n-gram counts; (..., 10) → (...)."""
    from sacrebleu.metrics.bleu import BLEU

    def one(line: np.ndarray) -> float:
        matched, total = [int(value) for value in line[:4]], [int(value) for value in line[4:8]]
        # of texts of fewer than four words, the n-grams that there are
        return float(BLEU.compute_bleu(matched, total, int(line[8]), int(line[9]), effective_order=True).score / 100)

    return np.apply_along_axis(one, -1, sums)


class _Words:
    """How ROUGE tokenizes: as rouge-score does, which knows no letters but those of ASCII, and any others by their script."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text without marks, in lower case; without blanks between words each letter is one."""
        return units(_MARKS.sub(" ", text.lower())) or units(text)  # of marks alone, such as emoji, the marks


def _apart(text: str) -> str:
    """Return a text with blanks around the letters of scripts that write none between words, so that BLEU counts letters."""
    return _ALONE.sub(r" \g<0> ", text)


def _after_end(ids: Any, end: int) -> Any:
    """Return which positions come after the token that ends a target, (batch, length) bool."""
    is_end = (ids == end).long()
    return is_end.cumsum(-1) - is_end > 0


TASK = SequenceToSequence
