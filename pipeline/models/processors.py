"""What makes a model's input of a row's content, as it lies beside a model: a tokenizer or, for pictures, an image processor."""

from __future__ import annotations

from typing import Any

from pipeline.models import tokenization
from pipeline.system import hashes
from pipeline.system.errors import UserError

_IMAGES, _TEXTS = "preprocessor_config.json", ("tokenizer.json", "tokenizer_config.json")


def load(folder: str, role: str = "parent") -> Any:
    """Return the tokenizer of a folder or hub id or, where it has none, its image processor; UserError if there is neither."""
    return image_processor(folder, role) if reads_images_alone(folder) else tokenization.load(folder, role)


def image_processor(folder: str, role: str = "parent") -> Any:
    """Return the image processor of a folder or hub id, of pillow on every machine; UserError if there is none."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"--{role} {folder}: no image processor can be loaded ({' '.join(str(error).split())[:200]})") from None


def reads_images_alone(folder: str) -> bool:
    """Say whether a folder or hub id has an image processor and no tokenizer."""
    from transformers.utils import cached_file

    quietly = dict.fromkeys(
        (
            "_raise_exceptions_for_gated_repo",
            "_raise_exceptions_for_missing_entries",
            "_raise_exceptions_for_connection_errors",
        ),
        False,
    )
    return cached_file(folder, _IMAGES, **quietly) is not None and not any(
        cached_file(folder, name, **quietly) for name in _TEXTS
    )


def of_pictures(processor: Any) -> bool:
    """Say whether a processor reads pictures, and so has no tokens."""
    return hasattr(processor, "image_processor_type") or hasattr(processor, "image_mean")


def identity(processor: Any) -> str:
    """Return the digest of all that decides what it makes of a row; empty where that is not known."""
    if of_pictures(processor):
        return hashes.digest(["images", processor.to_json_string()])
    return tokenization.identity(processor)
