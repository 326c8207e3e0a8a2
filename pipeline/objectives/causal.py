"""Next-token prediction (GPT, Radford et al. 2018, eq. 1): maximise Σ log p(token | the tokens before it).

Every token of a document except its begin token is a target, including the end token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.data import tokens
from pipeline.data.batches import CausalCollator
from pipeline.models.logits import num_targets, token_nats, token_scores
from pipeline.objectives import Example, Objective, Scores, Text
from pipeline.system.errors import UserError


@dataclass(frozen=True)
class Causal(Objective):
    """Predict each token from those before it."""

    family = "causal"
    accepts: ClassVar[tuple[str, ...]] = ("causal",)
    architectures: ClassVar[tuple[str, ...]] = ("llama", "qwen3", "gpt2")
    tokenizer_type = "bytes"
    packs = True

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return a causal model with tied embeddings."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            own = {}
            if hasattr(AutoConfig.for_model(architecture), "num_key_value_heads"):  # Qwen3's defaults are for 4B
                heads = sizes["num_attention_heads"]
                own = {"num_key_value_heads": heads, "head_dim": sizes["hidden_size"] // heads}
            config = AutoConfig.for_model(
                architecture, vocab_size=len(tokenizer), tie_word_embeddings=True, use_cache=False,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
                intermediate_size=_width(sizes["hidden_size"]), **sizes, **own,
            )  # fmt: skip
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise UserError(
                f"architecture: {architecture}: transformers builds no causal model of it ({' '.join(str(error).split())[:160]})"
            ) from None

    def load_model(self, parent: str) -> Any:
        """Return a causal model without a cache, since packed documents would see each other through it."""
        from pipeline.models import checkpoint

        return checkpoint.load(parent)

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield documents with their begin and end tokens; the pieces of a long one overlap by a token."""
        yield from tokens.text_pieces(text.rows, text.tokenizer, text.max_length)

    def collator(self, tokenizer: Any, dataset: Any, seed: int) -> CausalCollator:
        """Return the collator for packed rows."""
        return CausalCollator(int(tokenizer.pad_token_id))

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of targets."""
        return {"loss": num_targets(batch["labels"][:, 1:])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(token | the tokens before it)."""
        return {"loss": token_nats(*_logits(model, batch), "sum")}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the nats of each row."""
        return {"loss": token_scores(*_logits(model, batch))}

    def save(self, model: Any, tokenizer: Any, folder: Any) -> None:
        """Write a checkpoint with settings for generation, so that it knows where to stop."""
        from pipeline.models import checkpoint

        checkpoint.save(model, tokenizer, folder)


def _logits(model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return logits and, for each position, the token that follows; shifting the labels saves a copy of the logits."""
    import torch

    inputs = {key: value for key, value in batch.items() if key != "labels"}
    following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=tokens.IGNORED)
    return model(**inputs, use_cache=False).logits, following


def _width(hidden_size: int) -> int:
    """Return the width of the feed-forward layer: 8/3 of the hidden size, as Llama has it, in steps of 32."""
    return -(-hidden_size * 8 // 3 // 32) * 32


OBJECTIVE = Causal
