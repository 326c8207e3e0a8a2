"""Next-token prediction (GPT, Radford et al. 2018, eq. 1): maximise Σ log p(token | the tokens before it).

Every token of a document but its begin token is a target, the end token included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data.tokens import CausalCollator
from pipeline.data.tokens import encode_text as encode
from pipeline.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["FAMILY", "build_model", "collator", "encode"]
FAMILY = "causal"


def build_model(tokenizer: PreTrainedTokenizerBase, architecture: str, **sizes: int) -> PreTrainedModel:
    """Return a causal model with random weights and tied embeddings; UserError if the architecture has no such model."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.for_model(
            architecture, vocab_size=len(tokenizer), tie_word_embeddings=True, use_cache=False,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            **sizes,
        )  # fmt: skip
        return AutoModelForCausalLM.from_config(config)  # type: ignore[no-any-return]
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(
            f"architecture: {architecture}: transformers builds no causal model of it ({' '.join(str(error).split())[:160]})"
        ) from None


def collator(tokenizer: PreTrainedTokenizerBase) -> CausalCollator:
    """Return the collator of packed rows."""
    return CausalCollator(int(tokenizer.pad_token_id))
