"""Static word vectors with negative sampling (word2vec, Mikolov et al. 2013b, eq. 4), for both of its forms.

-log σ(u·v) - Σ log σ(-u'·v) over k = 5 words u' drawn from the unigram distribution to the power 3/4. Frequent
words are left out at random, with probability 1 - √(t / f) (eq. 5); a window's size is drawn for each word.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.system.config import option
from pipeline.objectives import Example, Objective, Scores, Text
from pipeline.objectives._batches import Corrupting
from pipeline.objectives._documents import pieces

if TYPE_CHECKING:
    import torch

VECTORS = "vectors.txt"


@dataclass(frozen=True)
class WordVectors(Objective):
    """Learn one vector a word from the words around it."""

    family = "vectors"
    accepts: ClassVar[tuple[str, ...]] = ()
    architectures: ClassVar[tuple[str, ...]] = ("word2vec",)
    vocabulary = "words"

    window: int = option(5, "words on each side, at most", at_least=1)
    negatives: int = option(5, "words drawn for each one that is there", at_least=1)
    threshold: float = option(1e-3, "t: words more frequent than this are left out now and then", at_least=1e-6)

    @abstractmethod
    def asks(self, words: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return contexts (n, any), padded with -1, and the words to tell from negatives (n,).

        `words` (length,) are a text, `around` (length, 2·window) the words beside each, -1 where there is none.
        """

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return two tables of vectors; the second begins at 0, so that the first loss is (1 + k) ln 2."""
        return table(len(tokenizer), sizes["hidden_size"])

    def load_model(self, parent: str) -> Any:
        """Return the two tables of a finished stage."""
        from safetensors.torch import load_file

        weights = load_file(Path(parent) / "model.safetensors")
        model = table(*weights["words.weight"].shape)
        model.load_state_dict(weights)
        return model

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield texts as known words; a text of fewer than two is counted."""
        unknown = text.tokenizer.unk_token_id
        for piece in pieces(text, text.max_length):
            words = [word for word in piece.ids if word != unknown]
            if len(words) > 1:
                yield {"input_ids": words, "row": piece.row}
            else:
                text.left_out["piece of fewer than two known words"] += 1

    def collator(self, tokenizer: Any, dataset: Any, seed: int) -> Windows:
        """Return what makes windows, with the frequencies of the training text."""
        counts = np.ones(len(tokenizer))
        for batch in dataset.with_format("arrow").iter(1000):
            found = np.bincount(batch["input_ids"].combine_chunks().flatten().to_numpy(), minlength=len(counts))
            counts += found
        return Windows(self, tokenizer, seed, counts=counts)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of words to tell from negatives."""
        return {"loss": len(batch["input_ids"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sum over words of -log σ(u·v) - Σ log σ(-u'·v)."""
        return {"loss": _nats(*model(batch["contexts"], batch["input_ids"])).sum()}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the nats of each text's words, and how often a word is likelier than one that was drawn."""
        right, wrong = model(batch["contexts"], batch["input_ids"])
        wins = _by_text(_wins(right.unsqueeze(1), wrong), batch)
        return {"loss": _by_text(_nats(right, wrong), batch), "detection": wins}

    def fresh(self, model: Any) -> Any:
        """Return tables as they begin."""
        return table(*model.words.weight.shape)

    def by_frequency(self, collator: Any, batch: Mapping[str, torch.Tensor]) -> Scores:
        """Return how often the word that is there is more frequent than one that was drawn."""
        often = _counts(collator, batch["input_ids"])
        return {"detection": _by_text(_wins(often[:, :1], often[:, 1:]), batch)}

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
    """Windows over texts: `contexts` (n, at most 2·window, padded with -1), `input_ids` (n, 1 + k): the word, then negatives.

    `sizes` (texts,) says how many of the n are of each text, `words` which words were read.
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

        asked = [self._asked(row) for row in rows]
        longest = max((contexts.shape[1] for contexts, _ in asked), default=1)
        contexts = [np.pad(found, ((0, 0), (0, longest - found.shape[1])), constant_values=-1) for found, _ in asked]
        read = torch.tensor([[word for row in rows for word in row["input_ids"]]])  # what the Trainer counts as tokens
        return {
            "contexts": torch.tensor(np.concatenate(contexts)),
            "input_ids": torch.tensor(np.concatenate([told for _, told in asked])),
            "words": read,
            "sizes": torch.tensor([len(told) for _, told in asked]),
        }

    def _asked(self, row: Example) -> tuple[np.ndarray, np.ndarray]:
        """Return contexts and told words of one text."""
        chance = self.chance(row)
        words = np.array(row["input_ids"])
        words = words[chance.random(len(words)) < self.keep[words]]
        reach = chance.integers(1, self.objective.window + 1, len(words))
        beside = np.delete(np.arange(-self.objective.window, self.objective.window + 1), self.objective.window)
        places = np.arange(len(words))[:, None] + beside
        there = (places >= 0) & (places < len(words)) & (abs(beside) <= reach[:, None])
        around = np.where(there, words[np.clip(places, 0, len(words) - 1)], -1) if len(words) else places
        contexts, told = self.objective.asks(words, around)
        drawn = np.searchsorted(self.drawn_below, chance.random((len(told), self.objective.negatives)))
        return contexts, np.column_stack([told, drawn])


def table(size: int, width: int) -> Any:
    """Return a model of two tables: forward gives u·v of the word that is there, (n,), and of the drawn ones, (n, k)."""
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
    """Return how often each word stands in the training text."""
    import torch

    return torch.tensor(collator.counts)[ids.cpu()]


def _wins(there: Any, drawn: Any) -> Any:
    """Return how often the one is larger than the others, a tie counting half."""
    return ((there > drawn).float() + 0.5 * (there == drawn).float()).mean(1)


def _by_text(values: Any, batch: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return the sum over each text, and of how many words it is: words beside each other are no independent items."""
    sizes = batch["sizes"].tolist()
    return [float(part.sum()) for part in values.split(sizes)], [float(size) for size in sizes]


def _nats(right: Any, wrong: Any) -> Any:
    import torch

    return -torch.nn.functional.logsigmoid(right) - torch.nn.functional.logsigmoid(-wrong).sum(1)
