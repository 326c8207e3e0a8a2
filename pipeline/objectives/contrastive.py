"""Contrastive learning of text embeddings (SimCSE, Gao et al. 2021, eq. 4; the text form of SimCLR).

A text is read twice, with other dropout. Its two embeddings, means over its tokens, shall be nearer to each
other than to those of any other text of the batch: -log softmax of their cosine over τ = 0.05. With `crop` each
view reads a stretch of its own, as SimCLR crops pictures (Chen et al. 2020; for text Izacard et al. 2022, section
3.2): two dropout views of one sentence share all of its words, two stretches little but what they are about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.objectives import Example, Objective, Scores, Text
from pipeline.objectives._documents import pieces, sentences
from pipeline.models.build import build, dropout, load, save_embedder

_SHORTEST = 4  # tokens of a text that says something


@dataclass(frozen=True)
class Contrastive(Objective):
    """Pull two views of a text together, push the batch apart."""

    family = "embedder"
    accepts: ClassVar[tuple[str, ...]] = ("masked", "embedder")
    architectures: ClassVar[tuple[str, ...]] = ("bert", "modernbert", "roberta")
    accumulates = False  # the negatives are the batch: parts of it would be another task

    temperature: float = option(0.05, "τ, what cosines are divided by", at_least=0.001)
    dropout: float = option(0.1, "share of the states that each view lacks", at_least=0.001, at_most=0.9)
    crop: float = option(1.0, "share of the text that each view reads, a stretch of its own", at_least=0.1, at_most=1.0)
    sentences: bool = option(True, "a text is a sentence; no: as much of a document as fits")

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return an encoder without a head."""
        return _viewed(
            build("AutoModel", architecture, tokenizer, sizes, **dropout(architecture, self.dropout)), "architecture"
        )

    def load_model(self, parent: str) -> Any:
        """Return an encoder, its dropout the one of the options; a head that the parent has is left behind."""
        return _viewed(load("AutoModel", parent, self.dropout), f"--parent {parent}")

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield texts between the tokens that begin and end one; very short ones are counted."""
        first, last, room = text.tokenizer.cls_token_id, text.tokenizer.sep_token_id, text.max_length - 2
        if self.sentences:
            texts = ((number, ids) for number, row in enumerate(text.rows) for ids in sentences(text, row["text"]))
        else:
            texts = ((piece.row, piece.ids) for piece in pieces(text, room))
        for number, ids in texts:
            if len(ids) < _SHORTEST:
                text.left_out[f"texts of fewer than {_SHORTEST} tokens"] += 1
                continue
            if len(ids) > room:
                text.left_out[f"ends of sentences of more than {text.max_length} tokens"] += 1
            yield {"input_ids": [first, *ids[:room], last], "row": number}

    def corrupt(self, example: Example, tokenizer: Any, chance: np.random.Generator) -> Example:
        """Return the text with the two stretches of it that are read: where each begins and ends."""
        length = len(example["input_ids"]) - 2
        size = max(1, round(self.crop * length))
        starts = chance.integers(0, length - size + 1, 2).tolist()
        return example | {"views": [place for start in starts for place in (start, start + size)]}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of texts."""
        return {"loss": len(batch["input_ids"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(a text's second view | its first), over the second views of the batch."""
        return {"loss": self._nats(model, batch).sum()}

    def _nats(self, model: Any, batch: Mapping[str, Any]) -> Any:
        import torch

        one, two = embeddings(model, _stretches(batch, *batch["views"].chunk(2, 1))).chunk(2)
        likeness = one @ two.T / self.temperature
        return torch.nn.functional.cross_entropy(likeness, torch.arange(len(one), device=likeness.device), reduction="none")

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the loss of two views, and how often a text's first half is nearest to its own second half, of all in the batch."""
        import torch

        ends = batch["attention_mask"].sum(1) - 2
        bounds = torch.stack([torch.zeros_like(ends), ends // 2, ends // 2, ends], 1)
        first, second = embeddings(model, _stretches(batch, *bounds.chunk(2, 1))).chunk(2)
        right = ((first @ second.T).argmax(-1) == torch.arange(len(first), device=first.device)).float().tolist()
        views = self._nats(model.train(), batch).tolist()  # dropout makes the views
        model.eval()
        return {"view_loss": (views, [1.0] * len(views)), "retrieval": (right, [1.0] * len(right))}

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write an encoder that transformers loads, and sentence-transformers too."""
        super().save(model, tokenizer, folder)
        save_embedder(model, folder)


def embeddings(model: Any, batch: Mapping[str, Any]) -> Any:
    """Return the mean over the tokens of each row, of length 1; (batch, hidden) float32."""
    import torch

    states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state.float()
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def _viewed(model: Any, given: str) -> Any:
    """Return the model, its unused pooler frozen; UserError where it reads a text the same way twice."""
    import torch

    if getattr(model, "pooler", None) is not None:
        model.pooler.requires_grad_(False)  # it is in no loss: processes would wait for its gradient
    batch = _padded([torch.arange(5, 13)])
    with torch.random.fork_rng(), torch.no_grad():
        one, two = (embeddings(model.train(), batch) for _ in range(2))
    if torch.equal(one, two):
        raise UserError(f"{given}: the model has no dropout, so the two views of a text would be one")
    return model


def _stretches(batch: Mapping[str, Any], *bounds: Any) -> dict[str, Any]:
    """Return stretches of texts as texts of their own, first all of the first bounds; (batch, 2) each, marks not counted."""
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
