"""Next-token prediction (GPT, Radford et al. 2018, eq. 1): maximise Σ log p(token | the tokens before it).

Every token of a document but its begin token is a target, the end token included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.data import tokens
from pipeline.system.errors import UserError
from pipeline.objectives import Example, Objective, Scores, Text
from pipeline.models.build import asked, token_nats, token_scores


@dataclass(frozen=True)
class Causal(Objective):
    """Predict each token from those before it."""

    family = "causal"
    accepts: ClassVar[tuple[str, ...]] = ("causal",)
    architectures: ClassVar[tuple[str, ...]] = ("llama", "qwen3", "gpt2")
    vocabulary = "bytes"
    packs = True

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return a causal model with tied embeddings."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            grouped = {
                "num_key_value_heads": sizes["num_attention_heads"],
                "head_dim": sizes["hidden_size"] // sizes["num_attention_heads"],
            }
            own = (
                grouped if hasattr(AutoConfig.for_model(architecture), "num_key_value_heads") else {}
            )  # Qwen3's defaults are for 4B
            config = AutoConfig.for_model(
                architecture, vocab_size=len(tokenizer), tie_word_embeddings=True, use_cache=False,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
                intermediate_size=_width(sizes["hidden_size"]), **sizes, **own,
            )  # fmt: skip
            return AutoModelForCausalLM.from_config(config)
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise UserError(
                f"architecture: {architecture}: transformers builds no causal model of it ({' '.join(str(error).split())[:160]})"
            ) from None

    def load_model(self, parent: str) -> Any:
        """Return a causal model without a cache, through which packed documents would see each other."""
        from pipeline.models import checkpoint

        return checkpoint.load(parent)

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield documents with their begin and end token; pieces of a long one share a token."""
        yield from tokens.pieces(
            text.rows, lambda row: tokens.encode_text(row, text.tokenizer), text.max_length, True, text.dropped
        )

    def collator(self, tokenizer: Any, dataset: Any, seed: int) -> tokens.CausalCollator:
        """Return the collator of packed rows."""
        return tokens.CausalCollator(int(tokenizer.pad_token_id))

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of targets."""
        return {"loss": asked(batch["labels"][:, 1:])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(token | before)."""
        return {"loss": token_nats(*_logits(model, batch), "sum")}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the nats of each row."""
        return {"loss": token_scores(*_logits(model, batch))}

    def save(self, model: Any, tokenizer: Any, folder: Any) -> None:
        """Write a model that generates and stops."""
        from pipeline.models import checkpoint

        checkpoint.save(model, tokenizer, folder)


def _logits(model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return logits and, for each place, the token that comes next; moving the labels saves a copy of the logits."""
    import torch

    inputs = {key: value for key, value in batch.items() if key != "labels"}
    following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=tokens.IGNORED)
    return model(**inputs, use_cache=False).logits, following


def _width(hidden_size: int) -> int:
    """Return the width of the feed-forward layer: 8/3 of the hidden size, as Llama has it, in steps of 32."""
    return -(-hidden_size * 8 // 3 // 32) * 32


OBJECTIVE = Causal
