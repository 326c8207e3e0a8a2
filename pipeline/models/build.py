"""Build a model by its architecture's name and its sizes, or load one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WIDER = 4  # feed-forward layers over hidden size, of all but Llama-like models
# What each model type calls its dropout. Pretraining goes without, as ALBERT and T5 1.1 do: it reads a text once or a
# few times, and learns sooner. Contrastive learning needs it, since dropout is what makes two views of a text differ.
_BERT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_DROPOUT = {
    "bert": _BERT, "roberta": _BERT, "electra": _BERT, "albert": _BERT, "t5": ("dropout_rate",), "bart": ("dropout",),
    "modernbert": ("embedding_dropout", "mlp_dropout", "attention_dropout"),
}  # fmt: skip


def configuration(architecture: str, tokenizer: PreTrainedTokenizerBase, sizes: Mapping[str, int], **more: Any) -> Any:
    """Return the configuration of a model type at given sizes, whatever that type calls them.

    `sizes`: hidden_size, num_hidden_layers, num_attention_heads, max_position_embeddings.
    """
    from transformers import AutoConfig

    width, depth, heads, positions = (
        sizes[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    )
    names = {
        "t5": {"d_model": width, "num_layers": depth, "num_decoder_layers": depth, "num_heads": heads, "d_kv": width // heads, "d_ff": _WIDER * width},
        "bart": {
            "d_model": width, "max_position_embeddings": positions,
            **{f"{side}_{name}": value for side in ("encoder", "decoder")
               for name, value in {"layers": depth, "attention_heads": heads, "ffn_dim": _WIDER * width}.items()},
        },
        "roberta": {**sizes, "intermediate_size": _WIDER * width, "max_position_embeddings": positions + int(tokenizer.pad_token_id) + 1},
        "albert": {**sizes, "embedding_size": width, "intermediate_size": _WIDER * width},
        "electra": {**sizes, "embedding_size": width, "intermediate_size": _WIDER * width},
    }  # fmt: skip
    special = {
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id,
    }  # fmt: skip
    given = names.get(architecture, {**sizes, "intermediate_size": _WIDER * width}) | dropout(architecture, 0.0)
    return AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **special, **(given | more))


def dropout(architecture: str, rate: float) -> dict[str, float]:
    """Return a dropout rate under the names that a model type has for it."""
    return dict.fromkeys(_DROPOUT.get(architecture, ()), rate)


def build(auto: str, architecture: str, tokenizer: PreTrainedTokenizerBase, sizes: Mapping[str, int], **more: Any) -> Any:
    """Return a model of an Auto class with random weights; UserError if there is none of that architecture."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    try:
        return getattr(transformers, auto).from_config(
            configuration(architecture, tokenizer, sizes, **more), trust_remote_code=False
        )
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise UserError(
            f"architecture: {architecture}: no model of it can be built for this objective ({' '.join(str(error).split())[:160]})"
        ) from None


def one_of(architectures: Sequence[str], architecture: str) -> None:
    """Raise UserError for an architecture of which the Auto class builds a model, but not the one that the objective trains."""
    if architecture not in architectures:
        raise UserError(
            f"architecture: {architecture}: no model of it can be built for this objective; known are {', '.join(architectures)}"
        )


def load(auto: str, parent: str, dropout_rate: float | None = None) -> Any:
    """Return a model of an Auto class, or of a class of the library, from a folder or hub id, in fp32; UserError if it can't be loaded.

    `dropout_rate` replaces the one that its configuration has.
    """
    import transformers

    from pipeline.models import loading

    try:
        config = transformers.AutoConfig.from_pretrained(parent, trust_remote_code=False)
        if dropout_rate is not None:
            config.update(dropout(config.model_type, dropout_rate))
        return loading.from_pretrained(getattr(transformers, auto), parent, config=config)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--parent {parent}: {auto} can't load it ({' '.join(str(error).split())[:200]})") from None


def resized(config: Any, changes: Mapping[str, Any]) -> Any:
    """Return a model's configuration with other values for some of its keys; UserError for one that it lacks or refuses.

    What follows from other keys, such as the width of a head, is worked out again.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    values, names = config.to_dict(), {key: config.attribute_map.get(key, key) for key in changes}
    if unknown := [f"{key} is no key of {config.model_type}" for key, name in names.items() if name not in values]:
        raise UserError(f"student: {', '.join(unknown)}; see the teacher's config.json")
    if changes.get("num_hidden_layers", config.num_hidden_layers) != config.num_hidden_layers:
        values.pop("layer_types", None)
    before = _heads(values)
    values |= {names[key]: value for key, value in changes.items()}
    # Not left to the library: without them a Qwen3 has 32 heads of keys, of 128 numbers each, whatever its other sizes are.
    values |= {key: size for key, size in _heads(values).items() if key not in changes and values.get(key) == before[key]}
    try:
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise UserError(f"student: {config.model_type} refuses it ({' '.join(str(error).split())[:200]})") from None


def _heads(values: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of heads that follow from a configuration's other values: equal parts of the width, each with its own keys."""
    if not {"hidden_size", "num_attention_heads"} <= values.keys():
        return {}
    return {
        "head_dim": values["hidden_size"] // values["num_attention_heads"],
        "num_key_value_heads": values["num_attention_heads"],
    }
