"""Load a causal parent, merge an adapter, save a complete checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models import parts, vision_language
from pipeline.models.tokenization import stop_ids
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_TOLERANCE = 1e-3  # of the largest logit, between a merged model and its adapter


def load(parent: str, role: str = "parent", **how: Any) -> Any:
    """Load a causal model, or one that sees, in fp32 from a folder or hub id; UserError, naming the role, if it can't be loaded, or not wholly.

    `how`: for the library, such as a quantization_config.
    """
    from pipeline.models import loading

    try:
        auto = writer(loading.configuration(parent, role))
        model = loading.from_pretrained(auto, parent, role=role, **how)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--{role} {parent}: no causal model can be loaded ({' '.join(str(error).split())[:300]})") from None
    model.config.use_cache = False  # a cache object makes packed documents see each other
    return model


def writer(config: Any) -> Any:
    """Return the library's class that loads or builds a model which writes: a causal one, or one that also sees."""
    from transformers import AutoModelForCausalLM

    return vision_language.of(config).model_class() if vision_language.reads_images(config) else AutoModelForCausalLM


def merge(model: Any, sample: Mapping[str, Sequence[int]]) -> tuple[PreTrainedModel, float]:
    """Merge an adapter into its base in fp32; return the model and by how much its logits moved, relative to the largest.

    `sample`: the columns of one row. Raises RuntimeError if the merged logits are not those of the adapter.
    """
    import torch

    model.float()
    before = _on(model, sample)
    with torch.no_grad():
        merged = model.merge_and_unload()
    moved = _moved(_on(merged, sample), before)
    if not moved <= _TOLERANCE:
        raise RuntimeError(f"the merged model is not the adapter's: logits differ by {moved:.1e} of the largest")
    return merged, moved


def apart(one: Any, other: Any, sample: Mapping[str, Sequence[int]]) -> float:
    """Return by how much the logits of two models differ on a row, relative to the largest of the second."""
    return _moved(_on(one, sample), _on(other, sample))


def _on(model: Any, sample: Mapping[str, Sequence[int]]) -> torch.Tensor:
    """Return what a model makes of a row, without dropout, in fp32."""
    import torch

    model.eval()
    row = {key: (ids if torch.is_tensor(ids) else torch.tensor([list(ids)])).to(model.device) for key, ids in sample.items()}
    with torch.no_grad():
        return _states(model(**row)).float()


def _moved(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp(min=1.0))


def _states(outputs: Any) -> torch.Tensor:
    """Return a model's logits, or else its first output: start logits of a reader, hidden states of an encoder."""
    return outputs["logits"] if "logits" in outputs else outputs[0]  # type: ignore[no-any-return]


def generation(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return generation settings for a tokenizer: greedy, up to the end of an answer or of the text.

    A model that sees never writes the token in whose place it reads a picture.
    """
    from transformers import GenerationConfig

    never = {} if (token := parts.token_of(tokenizer)) is None else {"suppress_tokens": [token]}
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=stop_ids(tokenizer), **never
    )


def ends_answers(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a model's own generation settings stop also where the template ends an answer, and pad where they don't say how."""
    own = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    settings.eos_token_id = sorted({token for token in own if token is not None} | set(stop_ids(tokenizer)))
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a complete checkpoint that `from_pretrained` loads: fp32 safetensors, tokenizer, template, generation settings.

    Generation stops at the template's end of an answer and at the end of text.
    """
    model.config.use_cache = True
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.bos_token_id = tokenizer.bos_token_id
    model.generation_config = generation(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
