"""What the objectives on pictures share: their rows, what lies in an example, and the options that they don't read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.models import processors, vision
from pipeline.models.build import one_of
from pipeline.objectives import Example, Objective, Text
from pipeline.system.config import option
from pipeline.system.errors import UserError


@dataclass(frozen=True)
class VisionObjective(Objective):
    """Pretrain a vision transformer; an example is a picture at the size that the model reads, in 8 bits a colour."""

    reads = "images"
    family = "vision"
    accepts: ClassVar[tuple[str, ...]] = ("vision", "masked_vision")
    architectures: ClassVar[tuple[str, ...]] = ("vit",)
    unread: ClassVar[tuple[str, ...]] = ("vocab_size", "max_length", "language", "tokenizer_recipe")
    note = "A batch holds pictures, no tokens."

    image_size: int = option(32, "pixels of a side to which pictures are scaled", at_least=8)
    patch_size: int = option(8, "pixels of a side of the patches that they are cut into", at_least=1)

    def processor(self, folder: str) -> Any:
        """Return the image processor of a folder or hub id."""
        return processors.image_processor(folder)

    def new_processor(self, learn: Callable[[], Any]) -> Any:
        """Return an image processor for pictures of the size; nothing is learned for it."""
        return vision.new_processor(self.image_size)

    def vocabulary(self, processor: Any) -> int:
        """Return 0, since pictures have no tokens."""
        return 0

    def same_inputs(self, one: Any, other: Any) -> bool:
        """Say whether two models get the same of a picture."""
        return bool(processors.identity(one) == processors.identity(other))

    def sized(self, processor: Any, length: int) -> str:
        """Return in words what is read at once."""
        side = vision.side(processor)
        return f"pictures of {side} × {side} pixels"

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield pictures at the size that the model reads, (side, side, 3) uint8 as bytes."""
        from pipeline.data import pictures

        side, resample = vision.side(text.tokenizer), int(text.tokenizer.resample)
        for number, row in enumerate(text.rows):
            try:
                image = pictures.shown(row["image"])
            except pictures.Unreadable as error:  # of a recipe that made the row itself
                text.dropped[str(error)] += 1
                continue
            yield {"pixels": pictures.pixels(image, side, resample).tobytes(), "row": number}

    def known(self, architecture: str) -> None:
        """Raise UserError for an architecture that the objective has no model of."""
        one_of(self.architectures, architecture)

    def fits(self, config: Any) -> None:
        """Raise UserError where a parent has other sizes than the options say, by which batches are made."""
        faults = [
            f"objective_options: {name}: {getattr(self, name)}, but the parent has {getattr(config, name)}, which it keeps; give that"
            for name in ("image_size", "patch_size")
            if getattr(self, name) != getattr(config, name)
        ]
        if faults:
            raise UserError(*faults)

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write a plain checkpoint that transformers loads, with its image processor."""
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
