"""What makes a model's input of a row's content, as it lies beside a model: a tokenizer, for pictures an image processor, or both."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pipeline.models import tokenization
from pipeline.system import hashes
from pipeline.system.errors import UserError

_IMAGES, _TEXTS = "preprocessor_config.json", ("tokenizer.json", "tokenizer_config.json")
_LEVEL, _NARROWEST = 1 / 255, 0.02  # of 256, as a share of the whole; and the least deviation of levels in photos
_BOTH, _PAIR = "processor_config.json", "VisionTextDualEncoderProcessor"  # of models that lay pictures beside texts


def load(folder: str, role: str = "parent") -> Any:
    """Return the tokenizer of a folder or hub id, where it has none its image processor, or what holds both; UserError if there is neither."""
    if reads_pairs(folder):
        return pair(folder, role)
    return image_processor(folder, role) if reads_images_alone(folder) else tokenization.load(folder, role)


def pair(folder: str, role: str = "parent") -> Any:
    """Return what holds the image processor and the tokenizer of a folder or hub id; UserError if either is missing."""
    return joined(image_processor(folder, role), tokenization.load(folder, role))


def joined(images: Any, tokenizer: Any) -> Any:
    """Return what holds an image processor and a tokenizer, of a model that lays pictures beside texts."""
    from transformers import VisionTextDualEncoderProcessor

    return VisionTextDualEncoderProcessor(images, tokenizer)


def tokenizer_of(processor: Any) -> Any:
    """Return the tokenizer of a processor, which may be one; None where it reads pictures alone."""
    return None if hasattr(processor, "image_mean") else getattr(processor, "tokenizer", processor)


def image_processor(folder: str, role: str = "parent") -> Any:
    """Return the image processor of a folder or hub id, of pillow on every machine; UserError if there is none."""
    from transformers import AutoImageProcessor

    try:
        found = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"--{role} {folder}: no image processor can be loaded ({' '.join(str(error).split())[:200]})") from None
    if faults := _unfit(found):
        raise UserError(*(f"--{role} {folder}: {_IMAGES}: {fault}" for fault in faults))
    return found


def _unfit(processor: Any) -> list[str]:
    """Return what of an image processor would not give its model levels from 0 to 1, normalised once."""
    factor, found = getattr(processor, "rescale_factor", _LEVEL), []
    if not getattr(processor, "do_rescale", True) or not math.isclose(factor, _LEVEL, rel_tol=0.02):
        scale = f"rescale_factor is {factor:g}" if getattr(processor, "do_rescale", True) else "do_rescale is false"
        found.append(f"{scale}; levels of 0 to 255 are made levels of 0 to 1 here, by 1/255")
    if getattr(processor, "do_normalize", False):
        named = {"image_mean": (0.0, 1.0), "image_std": (_NARROWEST, 1.0)}
        for name, (low, high) in named.items():
            values = list(getattr(processor, name, None) or [low])
            if not all(low <= value <= high for value in values):
                found.append(f"{name} is {values}, of levels from 0 to 1, where each lies between {low:g} and {high:g}")
    return found


def reads_images_alone(folder: str) -> bool:
    """Say whether a folder or hub id has an image processor and no tokenizer."""
    return _file(folder, _IMAGES) is not None and not any(_file(folder, name) for name in _TEXTS)


def reads_pairs(folder: str) -> bool:
    """Say whether what lies in a folder or on a hub reads pictures and texts, to lay them beside each other."""
    if not (found := _file(folder, _BOTH)):
        return False
    try:
        return bool(json.loads(Path(found).read_text(encoding="utf-8"))["processor_class"] == _PAIR)
    except (OSError, ValueError, KeyError, TypeError):  # which loading it will say
        return False


def _file(folder: str, name: str) -> str | None:
    """Return where a file of a folder or hub id lies; None where there is none."""
    from transformers.utils import cached_file

    quietly = dict.fromkeys(
        (
            "_raise_exceptions_for_gated_repo",
            "_raise_exceptions_for_missing_entries",
            "_raise_exceptions_for_connection_errors",
        ),
        False,
    )
    found: str | None = cached_file(folder, name, **quietly)
    return found


def of_pictures(processor: Any) -> bool:
    """Say whether a processor reads pictures, alone or beside texts."""
    return hasattr(processor, "image_processor") or hasattr(processor, "image_mean")


def identity(processor: Any) -> str:
    """Return the digest of all that decides what it makes of a row; empty where that is not known."""
    if hasattr(processor, "image_processor"):
        both = [identity(part) for part in (processor.image_processor, processor.tokenizer)]
        return hashes.digest(both) if all(both) else ""
    if of_pictures(processor):
        return hashes.digest(["images", processor.to_json_string()])
    return tokenization.identity(processor)
