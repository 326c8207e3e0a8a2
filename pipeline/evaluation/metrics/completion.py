"""Sentences of the recipe's judge that a base model completes."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.data.tokens import encode_text
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import Subject

_LEAST = 8  # new tokens


class Completion(Evaluator):
    """Measures how many facts a causal model knows, asked in the way in which it was trained."""

    reads, gives = "text", ("causal",)
    metrics = (
        Metric("completion", "share of the judge's sentences that are completed right, from their beginnings", "share", "more"),
    )

    def applies(self, subject: Subject) -> bool:
        """Say whether the recipe's judge may have sentences to complete."""
        return super().applies(subject) and subject.judge is not None

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield the share of sentences that the node, its parent and its controls complete right, greedily."""
        facts = list(subject.judge.completions()) if subject.judge else []
        for model in subject.compared if facts else ():
            if model.family != "causal":
                continue
            prompts = [encode_text({"text": start}, model.tokenizer)["input_ids"][:-1] for start, _ in facts]
            longest = max(len(model.tokenizer.encode(value, add_special_tokens=False)) for _, value in facts)
            written = model.continued(prompts, max(_LEAST, longest))
            right = [float(text.startswith(value.strip())) for text, (_, value) in zip(written, facts, strict=True)]
            yield Measurement(model.label, "completion", share(right))


EVALUATOR = Completion()
