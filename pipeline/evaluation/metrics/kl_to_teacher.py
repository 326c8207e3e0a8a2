"""How far a model is from a teacher: the KL divergence between their distributions over every next token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.data.tokens import Tokens, answered, encode_messages, encode_text, pieces
from pipeline.evaluation.inference import divergences, num_targets
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import StageModel, Subject
from pipeline.models.tokenization import render

_ROLE = "teacher"  # of a second parent, in any stage
_READS = ("text", "messages", "prompts")


class KLToTeacher(Evaluator):
    """Measures KL(teacher ‖ model) exactly, at each target of held-out rows; of prompts, at the teacher's own sampled answers."""

    gives = ("causal",)
    metrics = (
        Metric("kl_to_teacher", "KL divergence KL(teacher ‖ model) in nats a token, exact over the vocabulary, at the tokens of "
                                "held-out rows; of prompts, at an answer to each that the teacher sampled", "nats", "less"),
    )  # fmt: skip

    def applies(self, subject: Subject) -> bool:
        """Say whether there is a teacher with the node's own vocabulary."""
        teacher = subject.others.get(_ROLE)
        return super().applies(subject) and subject.reads in _READS and teacher is not None and _alike(teacher, subject.node)

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield it of every model with that vocabulary but the teacher."""
        teacher, rows = subject.others[_ROLE], subject.rows
        models = [model for model in subject.compared if model is not teacher and _alike(teacher, model)]
        if not rows:
            return
        encoded = self._targets(subject, teacher, int(min(1024, teacher.positions, *(model.positions for model in models))))
        tokens = [float(sum(num_targets(row))) for row in encoded]
        flat = [piece for row in encoded for piece in row]
        for model in models:
            found = iter(divergences(teacher.model, model.model, flat, int(model.tokenizer.pad_token_id), len(model.tokenizer)))
            nats = [sum(next(found) for _ in row) for row in encoded]
            yield Measurement(model.label, "kl_to_teacher", share(nats, tokens))

    @staticmethod
    def _targets(subject: Subject, teacher: StageModel, longest: int) -> Sequence[list[Tokens]]:
        """Return each row as pieces that every model can read."""
        rows, tokenizer = subject.rows, teacher.tokenizer
        if subject.reads == "text":
            return [list(pieces([row], lambda row: encode_text(row, tokenizer), longest, True, Counter())) for row in rows]
        if subject.reads == "messages":
            return [[encode_messages(row["messages"], tokenizer)] for row in rows]
        prompts = [render(tokenizer, row["prompt"], answer_next=True) for row in rows]
        replies = teacher.continued(prompts, subject.settings.max_new_tokens, subject.settings.seed)
        return [[answered(prompt, reply.ids)] for prompt, reply in zip(prompts, replies, strict=True)]


def _alike(one: StageModel, other: StageModel) -> bool:
    return one.family == other.family and one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


EVALUATOR = KLToTeacher()
