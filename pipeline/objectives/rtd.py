"""Replaced token detection (ELECTRA, Clark et al. 2020, eq. 1-2).

A small generator fills the chosen places with samples of its own; the discriminator says for every token
whether it was replaced. The loss is the generator's -log p, the mean over chosen tokens, plus λ = 50 times the
discriminator's binary cross-entropy, the mean over all tokens. The samples carry no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.system.config import option
from pipeline.data.tokens import IGNORED
from pipeline.objectives import Example, Scores
from pipeline.models.build import asked, at, build, load, one_of, summed
from pipeline.objectives.mlm import MaskedLanguageModel, choose

if TYPE_CHECKING:
    import torch

GENERATOR = "generator"
_MASKED = 0.85  # of the chosen tokens
_HEAD = {
    "electra": "AutoModelForPreTraining",
    "modernbert": "AutoModelForTokenClassification",
}  # that says yes or no of a token
# Where a model type has what both halves share.
_SHARED = {
    "electra": ("electra.embeddings", ("word_embeddings", "position_embeddings", "token_type_embeddings"), "generator_lm_head"),
    "modernbert": ("model.embeddings", ("tok_embeddings",), "decoder"),
}


@dataclass(frozen=True)
class ReplacedTokenDetection(MaskedLanguageModel):
    """Find the tokens that a small model put in."""

    family = "discriminator"
    accepts: ClassVar[tuple[str, ...]] = ("discriminator",)
    architectures: ClassVar[tuple[str, ...]] = ("electra", "modernbert")
    chance: ClassVar[Mapping[str, float]] = {"detection": 0.5}

    generator_share: float = option(
        0.25,
        "size of the generator over the discriminator's: its width, or for ModernBERT its depth",
        at_least=0.01,
        at_most=1.0,
    )
    discriminator_weight: float = option(50.0, "λ, what the discriminator's loss is multiplied by", at_least=0.0)

    @property
    def weights(self) -> Mapping[str, float]:
        """The generator's loss counts once, the discriminator's λ times."""
        return {"generator": 1.0, "discriminator": self.discriminator_weight}

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return generator and discriminator, which share their embeddings.

        ELECTRA's generator is narrower. ModernBERT projects no embeddings, so its generator is as wide and less deep, as
        that of DeBERTaV3 (He et al. 2021).
        """
        one_of(self.architectures, architecture)
        if architecture == "modernbert":
            small, more = {"num_hidden_layers": max(1, int(sizes["num_hidden_layers"] * self.generator_share))}, {}
            own: dict[str, Any] = {"num_labels": 1}
        else:
            heads = max(1, int(sizes["num_attention_heads"] * self.generator_share))
            width = max(heads, int(sizes["hidden_size"] * self.generator_share) // heads * heads)
            small = {"hidden_size": width, "num_attention_heads": heads}
            more = {"embedding_size": sizes["hidden_size"], "initializer_range": _first(width)}
            own = {"initializer_range": _first(sizes["hidden_size"])}
        discriminator = build(_HEAD[architecture], architecture, tokenizer, sizes, **own)
        return _joined(build("AutoModelForMaskedLM", architecture, tokenizer, sizes | small, **more), discriminator)

    def load_model(self, parent: str) -> Any:
        """Return a discriminator with the generator that lies beside it."""
        generator = load("AutoModelForMaskedLM", str(Path(parent) / GENERATOR))
        kind = generator.config.model_type
        one_of(self.architectures, kind)
        return _joined(generator, load(_HEAD[kind], parent))

    def corrupt(self, example: Example, tokenizer: Any, chance: np.random.Generator) -> Example:
        """Return the text with 85% of its chosen tokens masked, and labels where the chosen ones were.

        The rest stays for the generator to see, as in ELECTRA's own code: what can be copied is what it learns first.
        """
        ids = np.array(example["input_ids"])
        chosen = choose(ids, tokenizer, self.mask_share, self.whole_words, chance)
        hidden = chosen & (chance.random(len(ids)) < _MASKED)
        masked, labels = np.where(hidden, tokenizer.mask_token_id, ids), np.where(chosen, ids, IGNORED)
        return example | {"input_ids": masked.tolist(), "labels": labels.tolist()}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of chosen tokens, and of all."""
        return {"generator": asked(batch["labels"]), "discriminator": batch["attention_mask"].sum()}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the generator's -Σ log p and the discriminator's Σ binary cross-entropy."""
        import torch

        generated, found, replaced = model(**batch)
        each = torch.nn.functional.binary_cross_entropy_with_logits(found.float(), replaced.float(), reduction="none")
        return {
            "generator": summed(generated, batch["labels"][batch["labels"] != IGNORED]),
            "discriminator": (each * batch["attention_mask"]).sum(),
        }

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the generator's nats, and how often a replaced token looks more so than an original one of its text."""
        import torch

        generated, found, replaced = model(**batch)
        hidden = batch["labels"] != IGNORED
        each = torch.nn.functional.cross_entropy(generated.float(), batch["labels"][hidden], reduction="none")
        nats = torch.zeros(hidden.shape, device=each.device).masked_scatter(hidden, each).sum(-1).tolist()
        wins, pairs = [], []
        for logits, flags, mask in zip(found, replaced, batch["attention_mask"].bool(), strict=True):
            fake, real = logits[flags & mask], logits[~flags & mask]
            better = (fake.unsqueeze(1) > real).float() + 0.5 * (fake.unsqueeze(1) == real).float()
            wins.append(float(better.sum()))
            pairs.append(float(better.numel()))
        targets = hidden.sum(-1).float().tolist()
        return {"generator_loss": (nats, targets), "detection": (wins, pairs)}

    def fresh(self, model: Any) -> Any:
        """Return both halves with random weights."""
        generator, discriminator = (type(half)(half.config) for half in (model.generator, model.discriminator))
        return _joined(generator, discriminator)

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write the discriminator as the model, and the generator beside it."""
        super().save(model.discriminator, tokenizer, folder)
        model.generator.save_pretrained(folder / GENERATOR)


def _first(width: int) -> float:
    """Return the spread of first weights: as much of a signal goes through as with ELECTRA's 0.02 at a width of 768.

    At 32 or 64, 0.02 leaves attention so little to say that the generator stays a unigram for a thousand steps.
    """
    return float(0.02 * math.sqrt(768 / width))


def _joined(generator: Any, discriminator: Any) -> Any:
    """Return both as one model that the Trainer can save.

    forward gives the generator's logits at chosen places, (chosen, vocabulary), and for all (batch, length) the
    discriminator's logits and what was replaced.
    """
    import torch
    from transformers import PreTrainedModel

    place, tables, head = _SHARED[discriminator.config.model_type]
    first = f"discriminator.{place}.{tables[0]}.weight"

    class Pair(PreTrainedModel):
        base_model_prefix = "discriminator"
        main_input_name = "input_ids"
        _supports_sdpa = _supports_flash_attn = True  # as both of its halves do
        _tied_weights_keys = {f"generator.{place}.{name}.weight": f"discriminator.{place}.{name}.weight" for name in tables} | {
            f"generator.{head}.weight": first
        }

        def __init__(self) -> None:
            super().__init__(discriminator.config)
            self.generator, self.discriminator = generator, discriminator
            for name in tables:
                setattr(generator.get_submodule(place), name, discriminator.get_submodule(f"{place}.{name}"))
            generator.get_submodule(head).weight = discriminator.get_input_embeddings().weight

        def get_input_embeddings(self) -> Any:
            return self.discriminator.get_input_embeddings()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Any:
            hidden = labels != IGNORED
            with at(self.generator, hidden):
                generated = self.generator(input_ids=input_ids, attention_mask=attention_mask).logits
            with torch.no_grad():
                drawn = torch.distributions.Categorical(logits=generated.float()).sample()
            filled = input_ids.masked_scatter(hidden, drawn)
            replaced = hidden & (filled != labels)
            found = self.discriminator(input_ids=filled, attention_mask=attention_mask).logits.view(input_ids.shape)
            return generated, found, replaced

    return Pair()


OBJECTIVE = ReplacedTokenDetection
