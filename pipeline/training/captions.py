"""Captions: what a vision-language model writes about a picture alone, compared with held-out captions, or of new pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.chain.stage import Predictor
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.metrics.reply_loss import add_shuffled, shuffled
from pipeline.evaluation.subject import Options, StageModel, Subject
from pipeline.models import parts, vision_language
from pipeline.tasks.sequence_to_sequence import SequenceToSequence

FREQUENT = "most frequent caption"
_FIGURES = {"rouge_l": "caption_rouge_l", "exact_match": "caption_match"}  # of texts for texts → our name


class Captions(Evaluator):
    """Compares greedy captions with those of held-out rows in which nothing but a caption follows pictures."""

    reads, gives = "messages", (vision_language.FAMILY,)
    metrics = (
        Metric("caption_rouge_l", "longest common subsequence of a written caption with that of the held-out row (ROUGE-L, Lin 2004), "
                                  "as F1; 1 is perfect", "score", "more"),
        Metric("caption_match", "share of written captions that are exactly that of the held-out row", "share", "more"),
    )  # fmt: skip

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield both figures of every model that sees, of the node shown other rows' pictures, and of the most frequent caption."""
        rows, longest = [row for row in subject.rows if is_caption(row)], subject.settings.max_new_tokens
        if not rows:
            return
        said = {model.label: _written(model, rows, longest) for model in subject.chatting if model.sees}
        if others := shuffled(rows):
            said[add_shuffled(subject)] = _written(subject.node, others, longest)
        known = Counter(_caption(row) for row in subject.training() if is_caption(row))
        if known:
            subject.add_model(FREQUENT, "baseline", "of the training rows")
            said[FREQUENT] = [known.most_common(1)[0][0]] * len(rows)
        right = [{"target": _caption(row)} for row in rows]
        shown = [" ".join(one["hash"] for one in row["images"]) for row in rows]  # captions of one picture are not independent
        try:
            for label, texts in said.items():
                found = SequenceToSequence().figures(right, [{"target": text} for text in texts])
                for name, ours in _FIGURES.items():
                    yield Measurement(label, ours, found[name], shown if len(set(shown)) < len(shown) else None)
        except ModuleNotFoundError as error:
            subject.skipped[f"captions: {error.name} is not installed; `make setup-data` installs it"] += len(rows)


def is_caption(row: Row) -> bool:
    """Say whether a conversation is pictures alone and what is said of them."""
    turns = row["messages"]
    return len(turns) == 2 and parts.count(turns[:1]) > 0 and not parts.words(turns[0]["content"]).strip()


def _caption(row: Row) -> str:
    return str(row["messages"][-1]["content"]).strip()


def _written(model: StageModel, rows: Sequence[Row], longest: int) -> list[str]:
    return [str(reply) for reply in model.replies([parts.filled(row["messages"][:-1], row["images"]) for row in rows], longest)]


def predictor(folder: str) -> Predictor:
    """Return what writes a caption for each picture, under `text`."""

    def load() -> Callable[[Rows], list[dict[str, Any]]]:
        model = StageModel(folder, folder)

        def written(rows: Rows) -> list[dict[str, Any]]:
            shown = [[{"role": "user", "content": [{"type": parts.PICTURE, parts.PICTURE: row["image"]}]}] for row in rows.kept]
            return [{"text": str(reply)} for reply in model.replies(shown, Options().max_new_tokens)]

        return written

    return Predictor("images", load)
