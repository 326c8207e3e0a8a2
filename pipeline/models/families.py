"""What the name of a model's class tells: its family in the chain, and the Auto class of transformers that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Ending of a class's name, family, Auto class; the first that fits counts. Without a family no stage reads the model.
_KINDS = [
    ("ForCausalLM", "causal", "AutoModelForCausalLM"),
    ("LMHeadModel", "causal", "AutoModelForCausalLM"),
    ("ForMaskedLM", "masked", "AutoModelForMaskedLM"),
    ("ElectraForPreTraining", "discriminator", "AutoModelForPreTraining"),
    ("ViTMAEForPreTraining", "masked_vision", "AutoModelForPreTraining"),
    ("ForPreTraining", "masked", "AutoModelForPreTraining"),
    ("LlavaForConditionalGeneration", "vision_language", "AutoModelForImageTextToText"),
    ("IdeficsForVisionText2Text", "vision_language", "AutoModelForImageTextToText"),
    ("ForConditionalGeneration", "seq2seq", "AutoModelForSeq2SeqLM"),
    ("ForSequenceClassification", "classifier", "AutoModelForSequenceClassification"),
    ("ForImageClassification", "image_classifier", "AutoModelForImageClassification"),
    ("ForTokenClassification", "tagger", "AutoModelForTokenClassification"),
    ("ForQuestionAnswering", "reader", "AutoModelForQuestionAnswering"),
    ("ViTModel", "vision", "AutoModel"),
    ("VisionTextDualEncoderModel", "dual_encoder", "AutoModel"),
    ("ForMultipleChoice", "", "AutoModelForMultipleChoice"),
    ("Model", "embedder", "AutoModel"),
]

ANSWERING = ("causal", "vision_language")  # families whose models write on after what they were given


def family_of(architecture: str, outputs: int = 0) -> str:
    """Return a model's family by the name of its class and the number of its outputs, or an empty string.

    A classifier with a single output has nothing to tell apart: it scores, as a reward model does.
    """
    family = next((family for ending, family, _ in _KINDS if architecture.endswith(ending)), "")
    return "reward" if family == "classifier" and outputs == 1 else family


def auto_class(family: str, config: Mapping[str, Any]) -> str:
    """Return the Auto class for a family and a model's config.json, else the model's own class; empty for word vectors, which none loads."""
    if family == "vectors":
        return ""
    architecture = str((config.get("architectures") or [""])[0])
    by_name = (auto for ending, _, auto in _KINDS if architecture.endswith(ending))
    by_family = (auto for _, known, auto in _KINDS if known and known == ("classifier" if family == "reward" else family))
    return next(by_name, None) or next(by_family, architecture or "AutoModel")
