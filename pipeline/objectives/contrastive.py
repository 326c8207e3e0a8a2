"""Contrastive learning of text embeddings (SimCSE, Gao et al. 2021, eq. 4; the text form of SimCLR).

The model reads each text twice, with different dropout. The two embeddings (means over tokens) should be closer to
each other than to those of any other text in the batch: the loss is -log softmax of their cosine over τ = 0.05. With
`crop` each view reads a span of its own, as SimCLR crops pictures (Chen et al. 2020; for text Izacard et al. 2022,
section 3.2): two dropout views of a sentence share all of its words, two spans share little but their topic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.chain.stage import Against
from pipeline.data.negatives import gathered
from pipeline.evaluation.metrics import Metric
from pipeline.models.build import build, dropout, load
from pipeline.models.embedder import embeddings, save_embedder
from pipeline.objectives import Example, Objective, Scores, Text
from pipeline.objectives._documents import pieces, sentences
from pipeline.system.config import option
from pipeline.system.errors import UserError

_SHORTEST = 4  # tokens; shorter texts say too little


@dataclass(frozen=True)
class Contrastive(Objective):
    """Pull the two views of a text together, push the texts of a batch apart."""

    family = "embedder"
    note = "No single token is predicted: the loss is over whole texts, each read as two views with different dropout."
    accepts: ClassVar[tuple[str, ...]] = ("masked", "embedder")
    architectures: ClassVar[tuple[str, ...]] = ("bert", "modernbert", "roberta")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "retrieval",
            "share of texts whose first half lies nearest to their own second half, among all second halves of the batch",
            "share",
            "more",
        ),
        Metric(
            "view_loss",
            "mean −log p of which view belongs to the same text, among all texts of a batch, in nats",
            "nats",
            "less",
        ),
    )
    judged_by = (Against("retrieval", "untrained"),)
    accumulates = False  # a batch's texts are each other's negatives, so a part of it would be an easier task

    temperature: float = option(0.05, "τ, what cosines are divided by", at_least=0.001)
    dropout: float = option(0.1, "dropout rate, which makes the views differ", at_least=0.001, at_most=0.9)
    crop: float = option(1.0, "share of the text that each view reads, a span of its own", at_least=0.1, at_most=1.0)
    sentences: bool = option(True, "a text is one sentence; no: as much of a document as fits")

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return an encoder without a head."""
        return _checked(
            build("AutoModel", architecture, tokenizer, sizes, **dropout(architecture, self.dropout)), "architecture"
        )

    def load_model(self, parent: str) -> Any:
        """Return an encoder with the dropout of the options, without any head that the parent has."""
        return _checked(load("AutoModel", parent, self.dropout), f"--parent {parent}")

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield texts between their begin and end tokens; very short ones are left out and counted."""
        first, last, room = text.tokenizer.cls_token_id, text.tokenizer.sep_token_id, text.max_length - 2
        if self.sentences:
            texts = ((number, ids) for number, row in enumerate(text.rows) for ids in sentences(text, row["text"]))
        else:
            texts = ((piece.row, piece.ids) for piece in pieces(text, room))
        for number, ids in texts:
            if len(ids) < _SHORTEST:
                text.truncated[f"texts of fewer than {_SHORTEST} tokens"] += 1
                continue
            if len(ids) > room:
                text.truncated[f"ends of sentences of more than {text.max_length} tokens"] += 1
            yield {"input_ids": [first, *ids[:room], last], "row": number}

    def corrupt(self, example: Example, tokenizer: Any, rng: np.random.Generator) -> Example:
        """Return the text with the bounds of its two views."""
        length = len(example["input_ids"]) - 2
        size = max(1, round(self.crop * length))
        starts = rng.integers(0, length - size + 1, 2).tolist()
        return example | {"views": [bound for start in starts for bound in (start, start + size)]}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of texts."""
        return {"loss": len(batch["input_ids"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(a text's second view | its first), over the second views of the batch, on all processes."""
        return {"loss": self._nats(model, batch).sum()}

    def _nats(self, model: Any, batch: Mapping[str, Any]) -> Any:
        import torch

        one, two = embeddings(model, _cropped(batch, *batch["views"].chunk(2, 1))).chunk(2)
        every, first = gathered(two)
        likeness = one @ every.T / self.temperature
        own = torch.arange(first, first + len(one), device=likeness.device)
        return torch.nn.functional.cross_entropy(likeness, own, reduction="none")

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the loss of two views, and whether a text's first half is nearest to its own second half in the batch."""
        import torch

        ends = batch["attention_mask"].sum(1) - 2
        bounds = torch.stack([torch.zeros_like(ends), ends // 2, ends // 2, ends], 1)
        first, second = embeddings(model, _cropped(batch, *bounds.chunk(2, 1))).chunk(2)
        right = ((first @ second.T).argmax(-1) == torch.arange(len(first), device=first.device)).float().tolist()
        views = self._nats(model.train(), batch).tolist()  # dropout makes the views
        model.eval()
        return {"view_loss": (views, [1.0] * len(views)), "retrieval": (right, [1.0] * len(right))}

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write an encoder that both transformers and sentence-transformers load."""
        super().save(model, tokenizer, folder)
        save_embedder(model, folder)


def _checked(model: Any, given: str) -> Any:
    """Return the model with its unused pooler frozen; UserError where it has no dropout to tell two views apart."""
    import torch

    if getattr(model, "pooler", None) is not None:
        model.pooler.requires_grad_(False)  # no loss depends on it, so processes would wait for its gradient
    batch = _padded([torch.arange(5, 13)])
    with torch.random.fork_rng(), torch.no_grad():
        one, two = (embeddings(model.train(), batch) for _ in range(2))
    if torch.equal(one, two):
        raise UserError(f"{given}: the model has no dropout, so the two views of a text would be one")
    return model


def _cropped(batch: Mapping[str, Any], *bounds: Any) -> dict[str, Any]:
    """Return spans of texts as texts of their own, first all those of the first bounds.

    `bounds`: (batch, 2) each, not counting begin and end tokens.
    """
    import torch

    ids, lengths = batch["input_ids"], batch["attention_mask"].sum(1).tolist()
    return _padded(
        [
            torch.cat([row[:1], row[1 + start : 1 + end], row[length - 1 : length]])
            for each in bounds
            for row, length, (start, end) in zip(ids, lengths, each.tolist(), strict=True)
        ]
    )


def _padded(rows: list[Any]) -> dict[str, Any]:
    import torch

    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)).long()}


OBJECTIVE = Contrastive
