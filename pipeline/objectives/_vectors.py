"""Static word vectors with negative sampling (word2vec, Mikolov et al. 2013b, eq. 4), shared by CBOW and skip-gram.

The loss is -log σ(u·v) - Σ log σ(-u'·v) over k = 5 words u' drawn from the unigram distribution to the power 3/4.
Frequent words are left out at random, with probability 1 - √(t / f) (eq. 5); each word draws its window's size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.evaluation.metrics import Metric
from pipeline.objectives import DETECTED, DETECTION, LOSS, Example, Objective, Scores, Text
from pipeline.objectives._documents import pieces
from pipeline.objectives.collator import Corrupting
from pipeline.system.config import option

if TYPE_CHECKING:
    import torch

VECTORS = "vectors.txt"


@dataclass(frozen=True)
class WordVectors(Objective):
    """Learn one vector for each word from its neighbours."""

    family = "vectors"
    note = "The model reads the words around a position and tells the real word, the first one, from randomly drawn ones."
    accepts: ClassVar[tuple[str, ...]] = ()
    architectures: ClassVar[tuple[str, ...]] = ("word2vec",)
    metrics: ClassVar[tuple[Metric, ...]] = (LOSS, DETECTION)
    judged_by = (*Objective.judged_by, *DETECTED)
    tokenizer_type = "words"

    window: int = option(5, "words on each side, at most", at_least=1)
    negatives: int = option(5, "random words drawn for each real one", at_least=1)
    threshold: float = option(1e-3, "t: words more frequent than this are left out at random", at_least=1e-6)

    @abstractmethod
    def predictions(self, words: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return contexts, (n, any) padded with -1, and the word to predict from each, (n,).

        `words`, (length,), are a text, `around`, (length, 2·window), the neighbours of each, -1 where there is none.
        """

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return two tables of vectors; the second starts at 0, so that the first loss is (1 + k) ln 2."""
        return table(len(tokenizer), sizes["hidden_size"])

    def load_model(self, parent: str) -> Any:
        """Return the two tables of a checkpoint."""
        from safetensors.torch import load_file

        weights = load_file(Path(parent) / "model.safetensors")
        model = table(*weights["words.weight"].shape)
        model.load_state_dict(weights)
        return model

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield texts without unknown words; those of fewer than two words are left out and counted."""
        unknown = text.tokenizer.unk_token_id
        for piece in pieces(text, text.max_length):
            words = [word for word in piece.ids if word != unknown]
            if len(words) > 1:
                yield {"input_ids": words, "row": piece.row}
            else:
                text.truncated["piece of fewer than two known words"] += 1

    def collator(self, tokenizer: Any, dataset: Any, seed: int) -> Windows:
        """Return the collator that makes windows, with word counts of the training text."""
        counts = np.ones(len(tokenizer))
        for batch in dataset.with_format("arrow").iter(1000):
            found = np.bincount(batch["input_ids"].combine_chunks().flatten().to_numpy(), minlength=len(counts))
            counts += found
        return Windows(self, tokenizer, seed, counts=counts)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of words to predict."""
        return {"loss": len(batch["input_ids"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sum over words of -log σ(u·v) - Σ log σ(-u'·v)."""
        return {"loss": _nats(*model(batch["contexts"], batch["input_ids"])).sum()}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the nats of each text's words, and how often a real word scores higher than a drawn one."""
        right, wrong = model(batch["contexts"], batch["input_ids"])
        wins = _by_text(_wins(right.unsqueeze(1), wrong), batch)
        return {"loss": _by_text(_nats(right, wrong), batch), "detection": wins}

    def fresh(self, model: Any) -> Any:
        """Return tables with initial weights."""
        return table(*model.words.weight.shape)

    def unigram_scores(self, collator: Any, batch: Mapping[str, torch.Tensor]) -> Scores:
        """Return how often the real word is more frequent than a drawn one."""
        counts = _counts(collator, batch["input_ids"])
        return {"detection": _by_text(_wins(counts[:, :1], counts[:, 1:]), batch)}

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write the vectors in word2vec's text format, beside weights and tokenizer."""
        super().save(model, tokenizer, folder)
        vectors = model.words.weight.detach().float().cpu().numpy()
        words = [(word, number) for number, word in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))]
        kept = [(word, number) for word, number in words if number not in tokenizer.all_special_ids]
        with (folder / VECTORS).open("w", encoding="utf-8") as file:
            file.write(f"{len(kept)} {vectors.shape[1]}\n")
            for word, number in kept:
                file.write(f"{word} {' '.join(f'{value:.6g}' for value in vectors[number])}\n")


@dataclass
class Windows(Corrupting):
    """Windows over texts: `contexts` (n, at most 2·window) padded with -1, `input_ids` (n, 1 + k): a word, then its negatives.

    `sizes` (texts,) says how many of the n come from each text; `words` holds the words read.
    """

    objective: WordVectors
    counts: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.counts is not None
        share = self.counts / self.counts.sum()
        self.keep = np.minimum(1.0, np.sqrt(self.objective.threshold / share))
        noise = self.counts**0.75
        noise[self.tokenizer.all_special_ids] = 0
        self.drawn_below = np.cumsum(noise) / noise.sum()

    def __call__(self, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return the windows of all rows."""
        import torch

        windows = [self._windows(row) for row in rows]
        longest = max((contexts.shape[1] for contexts, _ in windows), default=1)
        contexts = [np.pad(found, ((0, 0), (0, longest - found.shape[1])), constant_values=-1) for found, _ in windows]
        read = torch.tensor([[word for row in rows for word in row["input_ids"]]])  # the Trainer counts these as tokens
        return {
            "contexts": torch.tensor(np.concatenate(contexts)),
            "input_ids": torch.tensor(np.concatenate([targets for _, targets in windows])),
            "words": read,
            "sizes": torch.tensor([len(targets) for _, targets in windows]),
        }

    def _windows(self, row: Example) -> tuple[np.ndarray, np.ndarray]:
        """Return the contexts of one text, and the word to predict from each with its negatives."""
        rng = self.rng(row)
        words = np.array(row["input_ids"])
        words = words[rng.random(len(words)) < self.keep[words]]
        reach = rng.integers(1, self.objective.window + 1, len(words))
        beside = np.delete(np.arange(-self.objective.window, self.objective.window + 1), self.objective.window)
        positions = np.arange(len(words))[:, None] + beside
        there = (positions >= 0) & (positions < len(words)) & (abs(beside) <= reach[:, None])
        around = np.where(there, words[np.clip(positions, 0, len(words) - 1)], -1) if len(words) else positions
        contexts, predicted = self.objective.predictions(words, around)
        drawn = np.searchsorted(self.drawn_below, rng.random((len(predicted), self.objective.negatives)))
        return contexts, np.column_stack([predicted, drawn])


def table(size: int, width: int) -> Any:
    """Return a model of two tables; forward returns u·v of the real word, (n,), and of the drawn ones, (n, k)."""
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    class Config(PretrainedConfig):
        model_type = "word2vec"

    class Table(PreTrainedModel):
        config_class = Config
        main_input_name = "words"

        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            self.words, self.others = torch.nn.Embedding(size, width), torch.nn.Embedding(size, width)
            torch.nn.init.uniform_(self.words.weight, -0.5 / width, 0.5 / width)
            torch.nn.init.zeros_(self.others.weight)

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.words

        def forward(self, contexts: torch.Tensor, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            there = (contexts >= 0).unsqueeze(-1)
            mean = (self.words(contexts.clamp(min=0)) * there).sum(1) / there.sum(1).clamp(min=1)
            likeness = torch.bmm(self.others(input_ids), mean.unsqueeze(-1)).squeeze(-1)
            return likeness[:, 0], likeness[:, 1:]

    config: Any = Config()
    config.vocab_size, config.hidden_size = size, width
    return Table(config)


def _counts(collator: Any, ids: Any) -> Any:
    """Return how often each word occurs in the training text."""
    import torch

    return torch.tensor(collator.counts)[ids.cpu()]


def _wins(there: Any, drawn: Any) -> Any:
    """Return the share of drawn values that are smaller than the real one, (n,); a tie counts half."""
    return ((there > drawn).float() + 0.5 * (there == drawn).float()).mean(1)


def _by_text(values: Any, batch: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return sum and number of values of each text: neighbouring words are no independent items for an interval."""
    sizes = batch["sizes"].tolist()
    return [float(part.sum()) for part in values.split(sizes)], [float(size) for size in sizes]


def _nats(right: Any, wrong: Any) -> Any:
    import torch

    return -torch.nn.functional.logsigmoid(right) - torch.nn.functional.logsigmoid(-wrong).sum(1)
