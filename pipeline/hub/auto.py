"""Which of the library's Auto classes loads a model: by the end of its architecture's name, else by its family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ENDINGS = {  # the first that fits
    "ForCausalLM": "AutoModelForCausalLM", "LMHeadModel": "AutoModelForCausalLM", "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification", "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering", "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM", "ForPreTraining": "AutoModelForPreTraining", "Model": "AutoModel",
}  # fmt: skip
_FAMILIES = {
    "causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "discriminator": "AutoModelForPreTraining",
    "seq2seq": "AutoModelForSeq2SeqLM", "embedder": "AutoModel", "classifier": "AutoModelForSequenceClassification",
    "tagger": "AutoModelForTokenClassification", "reader": "AutoModelForQuestionAnswering",
    "reward": "AutoModelForSequenceClassification",
}  # fmt: skip


def of(family: str, config: Mapping[str, Any]) -> str:
    """Return the class's name for a family and a model's config.json; empty where no class loads it, as word vectors."""
    if family == "vectors":
        return ""
    architecture = str((config.get("architectures") or [""])[0])
    return next(
        (name for ending, name in _ENDINGS.items() if architecture.endswith(ending)), _FAMILIES.get(family, "AutoModel")
    )
