"""Models by name and size, and what several objectives ask of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.tokens import IGNORED
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# What makes the folder of an embedder a model of sentence-transformers, too.
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
_WIDER = 4  # feed-forward layers of all but Llama-like models are this much wider than the rest
# What each model type calls its dropout. Pretraining goes without: it reads a text once or a few times, and learns
# sooner (so do ALBERT and T5 1.1). Contrastive learning, whose views it makes, asks for it.
_BERT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_DROPOUT = {
    "bert": _BERT, "roberta": _BERT, "electra": _BERT, "albert": _BERT, "t5": ("dropout_rate",), "bart": ("dropout",),
    "modernbert": ("embedding_dropout", "mlp_dropout", "attention_dropout"),
}  # fmt: skip


def configuration(architecture: str, tokenizer: PreTrainedTokenizerBase, sizes: Mapping[str, int], **more: Any) -> Any:
    """Return the configuration of a model type at a size, whatever that type calls its sizes.

    `sizes`: hidden_size, num_hidden_layers, num_attention_heads, max_position_embeddings.
    """
    from transformers import AutoConfig

    width, depth, heads, places = (
        sizes[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    )
    names = {
        "t5": {"d_model": width, "num_layers": depth, "num_decoder_layers": depth, "num_heads": heads, "d_kv": width // heads, "d_ff": _WIDER * width},
        "bart": {
            "d_model": width, "max_position_embeddings": places,
            **{f"{side}_{name}": value for side in ("encoder", "decoder")
               for name, value in {"layers": depth, "attention_heads": heads, "ffn_dim": _WIDER * width}.items()},
        },
        "roberta": {**sizes, "intermediate_size": _WIDER * width, "max_position_embeddings": places + int(tokenizer.pad_token_id) + 1},
        "albert": {**sizes, "embedding_size": width, "intermediate_size": _WIDER * width},
        "electra": {**sizes, "embedding_size": width, "intermediate_size": _WIDER * width},
    }  # fmt: skip
    special = {
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id,
    }  # fmt: skip
    given = names.get(architecture, {**sizes, "intermediate_size": _WIDER * width}) | dropout(architecture, 0.0)
    return AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **special, **(given | more))


def dropout(architecture: str, share: float) -> dict[str, float]:
    """Return a dropout under the names that a model type has for it."""
    return dict.fromkeys(_DROPOUT.get(architecture, ()), share)


def build(auto: str, architecture: str, tokenizer: PreTrainedTokenizerBase, sizes: Mapping[str, int], **more: Any) -> Any:
    """Return a model of an Auto class with random weights; UserError if the architecture has none."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    try:
        return getattr(transformers, auto).from_config(configuration(architecture, tokenizer, sizes, **more))
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise UserError(
            f"architecture: {architecture}: no model of it can be built for this objective ({' '.join(str(error).split())[:160]})"
        ) from None


def one_of(architectures: Sequence[str], architecture: str) -> None:
    """Raise UserError where an Auto class would build a model, but not the one that the objective means."""
    if architecture not in architectures:
        raise UserError(
            f"architecture: {architecture}: no model of it can be built for this objective; known are {', '.join(architectures)}"
        )


def load(auto: str, parent: str, share: float | None = None) -> Any:
    """Return a model of an Auto class from a folder or hub id, in fp32; UserError if it can't be loaded.

    share: of its dropout, if it is to be another one than it has.
    """
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(parent)
        if share is not None:
            config.update(dropout(config.model_type, share))
        return getattr(transformers, auto).from_pretrained(parent, config=config, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--parent {parent}: {auto} can't load it ({' '.join(str(error).split())[:200]})") from None


def token_nats(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "none") -> torch.Tensor:
    """Return -log p of each label, (batch, length) in nats, 0 where the label is ignored; or with `sum` their sum."""
    import torch

    nats = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction=reduction
    )
    return nats if reduction == "sum" else nats.view(labels.shape)


@contextmanager
def at(model: Any, places: torch.Tensor) -> Iterator[None]:
    """Have a model give logits of some places alone, (places, vocabulary): most of a head's work would be thrown away."""
    head = getattr(model, "module", model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, states: (states[0][places],))
    try:
        yield
    finally:
        hook.remove()


def decoder_logits(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return an encoder-decoder's logits, (batch, length, vocabulary).

    Given labels, a model makes a loss of its own that nobody reads; some (NLLB, Blenderbot) only then know what to decode.
    """
    given = dict(batch)
    shift = getattr(getattr(model, "module", model), "prepare_decoder_input_ids_from_labels", None)
    if shift is not None:
        labels = given.pop("labels")
        if "decoder_input_ids" not in given:
            given["decoder_input_ids"] = shift(labels=labels)
    logits: torch.Tensor = model(**given).logits
    return logits


def summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -Σ log p of targets, (places,) in nats; 0 where there is none."""
    import torch

    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def asked(labels: torch.Tensor) -> torch.Tensor:
    """Return how many labels are not ignored."""
    return (labels != IGNORED).sum()


def token_scores(logits: torch.Tensor, labels: torch.Tensor) -> tuple[list[float], list[float]]:
    """Return nats and number of targets of each row."""
    return token_nats(logits, labels).sum(-1).tolist(), (labels != IGNORED).sum(-1).float().tolist()


def save_embedder(model: Any, folder: Path) -> None:
    """Write beside an encoder that a text's embedding is the mean over its tokens, in the form of sentence-transformers."""
    (folder / "modules.json").write_text(json.dumps(_MODULES, indent=2) + "\n", encoding="utf-8")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2) + "\n", encoding="utf-8")
