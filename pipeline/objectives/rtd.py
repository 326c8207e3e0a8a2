"""Replaced token detection (ELECTRA, Clark et al. 2020, eq. 1-2).

A small generator fills the chosen positions with its own samples; the discriminator classifies every token as
original or replaced. The loss is the generator's -log p, the mean over chosen tokens, plus λ = 50 times the
discriminator's binary cross-entropy, the mean over all tokens. No gradient passes through the samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.chain.stage import Against
from pipeline.data.tokens import IGNORED
from pipeline.evaluation.metrics import Metric
from pipeline.models.build import build, load, one_of
from pipeline.models.logits import at, num_targets, summed
from pipeline.objectives import DETECTED, DETECTION, Example, Scores
from pipeline.objectives._rivals import BIGRAMS
from pipeline.objectives.mlm import MaskedLanguageModel, choose
from pipeline.system.config import option

if TYPE_CHECKING:
    import torch

GENERATOR = "generator"
_MASKED = 0.85  # share of the chosen tokens
# The Auto class whose head classifies a token as original or replaced.
_HEAD = {"electra": "AutoModelForPreTraining", "modernbert": "AutoModelForTokenClassification"}
# For each model type: its embeddings, the tables in them that both halves share, and the head tied to the first.
_SHARED = {
    "electra": ("electra.embeddings", ("word_embeddings", "position_embeddings", "token_type_embeddings"), "generator_lm_head"),
    "modernbert": ("model.embeddings", ("tok_embeddings",), "decoder"),
}


@dataclass(frozen=True)
class ReplacedTokenDetection(MaskedLanguageModel):
    """Find the tokens that a small model replaced."""

    family = "discriminator"
    note = "The generator predicts the marked tokens; the discriminator classifies every token as original or replaced."
    accepts: ClassVar[tuple[str, ...]] = ("discriminator",)
    architectures: ClassVar[tuple[str, ...]] = ("electra", "modernbert")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "generator_loss",
            "mean −log p, under the generator, of the tokens hidden from it on held-out rows, in nats",
            "nats",
            "less",
        ),
        DETECTION,
    )
    judged_by = (Against("generator_loss", BIGRAMS), Against("generator_loss", "unigram"), *DETECTED)
    chance_level: ClassVar[Mapping[str, float]] = {"detection": 0.5}

    generator_share: float = option(
        0.25,
        "size of the generator relative to the discriminator: its width, or for ModernBERT its depth",
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

        ELECTRA's generator is narrower. ModernBERT has no projection of its embeddings, so its generator is as wide as the
        discriminator and less deep, like DeBERTaV3's (He et al. 2021).
        """
        one_of(self.architectures, architecture)
        if architecture == "modernbert":
            small, more = {"num_hidden_layers": max(1, int(sizes["num_hidden_layers"] * self.generator_share))}, {}
            own: dict[str, Any] = {"num_labels": 1}
        else:
            heads = max(1, int(sizes["num_attention_heads"] * self.generator_share))
            width = max(heads, int(sizes["hidden_size"] * self.generator_share) // heads * heads)
            small = {"hidden_size": width, "num_attention_heads": heads}
            more = {"embedding_size": sizes["hidden_size"], "initializer_range": _spread(width)}
            own = {"initializer_range": _spread(sizes["hidden_size"])}
        discriminator = build(_HEAD[architecture], architecture, tokenizer, sizes, **own)
        return _paired(build("AutoModelForMaskedLM", architecture, tokenizer, sizes | small, **more), discriminator)

    def load_model(self, parent: str) -> Any:
        """Return a discriminator with the generator saved beside it."""
        generator = load("AutoModelForMaskedLM", str(Path(parent) / GENERATOR))
        kind = generator.config.model_type
        one_of(self.architectures, kind)
        return _paired(generator, load(_HEAD[kind], parent))

    def corrupt(self, example: Example, tokenizer: Any, rng: np.random.Generator) -> Example:
        """Return the text with 85% of its chosen tokens masked, and labels at the positions of all chosen ones.

        The generator sees the other 15% as they are, as in ELECTRA's own code: it first learns to copy.
        """
        ids = np.array(example["input_ids"])
        chosen = choose(ids, tokenizer, self.mask_share, self.whole_words, rng)
        hidden = chosen & (rng.random(len(ids)) < _MASKED)
        masked, labels = np.where(hidden, tokenizer.mask_token_id, ids), np.where(chosen, ids, IGNORED)
        return example | {"input_ids": masked.tolist(), "labels": labels.tolist()}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of chosen tokens, and of all."""
        return {"generator": num_targets(batch["labels"]), "discriminator": batch["attention_mask"].sum()}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the generator's -Σ log p and the sum of the discriminator's binary cross-entropy."""
        import torch

        generated, found, replaced = model(**batch)
        each = torch.nn.functional.binary_cross_entropy_with_logits(found.float(), replaced.float(), reduction="none")
        return {
            "generator": summed(generated, batch["labels"][batch["labels"] != IGNORED]),
            "discriminator": (each * batch["attention_mask"]).sum(),
        }

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the generator's nats, and how often a replaced token scores higher than an original one of the same text."""
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
        return _paired(generator, discriminator)

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write the discriminator as the model, and the generator beside it."""
        super().save(model.discriminator, tokenizer, folder)
        model.generator.save_pretrained(folder / GENERATOR)


def _spread(width: int) -> float:
    """Return the standard deviation of initial weights that passes on as much signal as ELECTRA's 0.02 at a width of 768.

    At a width of 32 or 64, 0.02 makes attention so weak that the generator stays a unigram for a thousand steps.
    """
    return float(0.02 * math.sqrt(768 / width))


def _paired(generator: Any, discriminator: Any) -> Any:
    """Return both halves as one model that the Trainer can save.

    forward returns the generator's logits at chosen positions, (chosen, vocabulary), and for all positions,
    (batch, length), the discriminator's logits and whether the token was replaced.
    """
    import torch
    from transformers import PreTrainedModel

    embeddings, tables, head = _SHARED[discriminator.config.model_type]
    first = f"discriminator.{embeddings}.{tables[0]}.weight"

    class Pair(PreTrainedModel):
        base_model_prefix = "discriminator"
        main_input_name = "input_ids"
        _supports_sdpa = _supports_flash_attn = True  # as both of its halves do
        _tied_weights_keys = {
            f"generator.{embeddings}.{name}.weight": f"discriminator.{embeddings}.{name}.weight" for name in tables
        } | {f"generator.{head}.weight": first}

        def __init__(self) -> None:
            super().__init__(discriminator.config)
            self.generator, self.discriminator = generator, discriminator
            for name in tables:
                setattr(generator.get_submodule(embeddings), name, discriminator.get_submodule(f"{embeddings}.{name}"))
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
