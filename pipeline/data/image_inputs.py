"""Pictures of conversations as a model reads them: its own size and levels, and in their places a token for each patch, or one alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.data import pictures
from pipeline.data.batches import CausalCollator
from pipeline.models import processors, vision, vision_language
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import torch

PIXEL_COLUMN = "pixels"  # of an encoded row: all its pictures, (pictures, side, side, 3) uint8 as bytes


@dataclass(frozen=True)
class ImageInputs:
    """What makes a model's input of the pictures of a conversation."""

    image_processor: Any  # the tower's image processor
    image_token_id: int  # that stands for a patch
    tokens_per_image: int
    image_size: int  # its side, in pixels

    @property
    def identity(self) -> list[Any]:
        """All that decides how rows are encoded, as JSON values."""
        return [self.image_token_id, self.tokens_per_image, self.image_size, self.image_processor.to_json_string()]

    @classmethod
    def for_config(cls, config: Any, image_processor: Any) -> ImageInputs:
        """Return those of a vision-language model by its configuration; UserError where its image processor makes pictures of another size."""
        found = cls(
            image_processor,
            config.image_token_id,
            vision_language.of(config).num_tokens(config),
            config.vision_config.image_size,
        )
        crops = getattr(image_processor, "do_center_crop", False)
        size = getattr(image_processor, "crop_size", None) if crops else image_processor.size
        if not size or (size.height, size.width) != (found.image_size, found.image_size):
            raise UserError(
                f"--vision: its image processor makes pictures of {dict(size or image_processor.size)}, and the tower reads {found.image_size} by {found.image_size}"
            )
        return found

    @classmethod
    def from_folder(cls, folder: str, config: Any, role: str = "parent") -> ImageInputs:
        """Return those of a vision-language model by its configuration, with the image processor of a folder or hub id."""
        return cls.for_config(config, processors.image_processor(folder, role))

    def resized(self, cell: Mapping[str, str]) -> bytes:
        """Return the picture of a row's cell at the size that the tower reads, (side, side, 3) uint8 as bytes."""
        import numpy as np

        found = self.image_processor(images=pictures.shown(cell), do_rescale=False, do_normalize=False, return_tensors="np")
        levels = np.asarray(getattr(found, vision.PIXELS, found)[0])  # that of Idefics returns them alone
        return bytes(np.clip(np.rint(levels), 0, 255).astype(np.uint8).transpose(1, 2, 0).tobytes())

    def add_images(self, tokens: Mapping[str, list[int]], cells: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Return encoded columns with as many tokens in the place of each picture as it has patches, and the pictures under `pixels`.

        UserError where the columns have another number of places than there are pictures, which a template lost or wrote twice.
        """
        marked = next(iter(tokens.values()))
        if marked.count(self.image_token_id) != len(cells):
            raise UserError(
                f"chat_template: writes {marked.count(self.image_token_id)} image tokens for {len(cells)} pictures; it must write one for each "
                'part of type "image"'
            )
        expanded = {name: self._expanded(ids, marked if len(ids) == len(marked) else ids) for name, ids in tokens.items()}
        return {**expanded, PIXEL_COLUMN: b"".join(map(self.resized, cells))}

    def _expanded(self, values: Sequence[int], ids: Sequence[int]) -> list[int]:
        return [
            value
            for value, one in zip(values, ids, strict=True)
            for _ in range(self.tokens_per_image if one == self.image_token_id else 1)
        ]

    def columns(self, pixels: Sequence[bytes]) -> dict[str, torch.Tensor]:
        """Return what a batch of encoded rows has beside its tokens: the pictures in their order, as the tower reads them.

        (pictures, 3, side, side); nothing where there are none.
        """
        size = 3 * self.image_size**2
        each = [row[start : start + size] for row in pixels for start in range(0, len(row), size)]
        return {vision.PIXELS: vision.normalised(vision.stacked(each, self.image_size), self.image_processor)} if each else {}

    def thumbnails(self, batch: Mapping[str, torch.Tensor]) -> list[list[str]]:
        """Return of each row of a batch its pictures, as many as it has places for."""
        pixels = batch.get(vision.PIXELS)
        shown = [] if pixels is None else pictures.thumbnails(vision.shown(pixels, self.image_processor))
        counts = [int(count) // self.tokens_per_image for count in (batch["input_ids"] == self.image_token_id).sum(1)]
        left = iter(shown)
        return [list(itertools.islice(left, count)) for count in counts]

    def prompt_columns(self, pixels: Sequence[bytes]) -> dict[str, Any]:
        """Return the pictures of prompts and how many each has, as trl's trainers that sample take them; nothing where there are none."""
        columns = self.columns(pixels)
        return {**columns, "num_images": [len(row) // (3 * self.image_size**2) for row in pixels]} if columns else {}


def pixels_of_batch(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the column of a batch that holds its pictures; nothing where there is none."""
    return {name: batch[name] for name in (vision.PIXELS,) if name in batch}


def pixels_once_per_pair(columns: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the pictures of a batch of pairs once, where it has them for both sides, one half after the other."""
    return {name: column.chunk(2)[0] for name, column in pixels_of_batch(columns).items()}


@dataclass
class ImagePromptCollator:
    """Batch encoded prompts with their pictures: what `ids` gives of all but these, and the pictures, for each of `answers` in turn."""

    image_inputs: ImageInputs
    ids: Callable[[list[Any]], Mapping[str, Any]]  # trl's collator, or `pad`
    answers: int = 1  # to a prompt that a batch holds, one after another, as a pair has two

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows; `pixel_values` holds the pictures of all prompts, once for each answer."""
        batch = self.ids([{key: value for key, value in row.items() if key != PIXEL_COLUMN} for row in rows])
        return {**batch, **self.image_inputs.columns([row[PIXEL_COLUMN] for row in rows] * self.answers)}

    def thumbnails(self, batch: Mapping[str, Any]) -> list[list[str]]:
        """Return the pictures of each prompt of a batch, whose answers have the same."""
        shown = self.image_inputs.thumbnails(batch)
        return shown[: len(shown) // self.answers]


@dataclass
class ImageCollator:
    """Batch encoded rows with their pictures: what `CausalCollator` gives, and `pixel_values` where a row has pictures."""

    image_inputs: ImageInputs
    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows; the pictures of all of them stand in one tensor, in the order of their places."""
        batch = CausalCollator(self.pad_id)([{key: row[key] for key in ("input_ids", "labels")} for row in rows])
        return batch | self.image_inputs.columns([row[PIXEL_COLUMN] for row in rows])

    def thumbnails(self, batch: Mapping[str, torch.Tensor]) -> list[list[str]]:
        """Return the pictures of each row of a batch."""
        return self.image_inputs.thumbnails(batch)
