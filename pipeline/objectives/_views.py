"""Views of pictures: a random part of each, mirrored, in other colours (Chen et al. 2020, appendix A), drawn by seed, epoch and example.

What is random is drawn for each picture by itself; what follows from it is done to a whole batch at once, in a tenth of the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import pictures
from pipeline.models import vision
from pipeline.objectives import Example
from pipeline.objectives.collator import EXAMPLE

if TYPE_CHECKING:
    import torch

DRAWN = 11  # numbers of which a view is made
_RATIO = 4 / 3  # of the sides of a part, at most
_JITTERED, _GREY = 0.8, 0.2  # shares of views whose colours change, and that lose them
_PLAIN = (1.0, 1.0, 1.0, 0.0, 0.0)  # brightness, contrast, saturation, hue, grey of a view in its own colours
_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue in how bright a pixel is
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # a turn of the last two changes the hue


@dataclass(frozen=True)
class Drawing:
    """How far views go."""

    area: float = 0.2  # of the picture that a view shows, at least
    mirror: float = 0.5  # share of views that are mirrored
    colour: float = 0.5  # strength of the changes of colour

    def draw(self, numbers: np.ndarray) -> np.ndarray:
        """Return a view for each row of numbers that are uniform in [0, 1), (views, 11).

        (views, 9): centre and half sides of its part in [-1, 1], brightness, contrast, saturation, hue, whether grey.
        """
        turn, reach = math.log(_RATIO), 0.8 * self.colour
        area, ratio = _between(self.area, 1.0, numbers[:, 0]), np.exp(_between(-turn, turn, numbers[:, 1]))
        wide, high = np.minimum(1.0, np.sqrt(area * ratio)), np.minimum(1.0, np.sqrt(area / ratio))
        across, down = _between(wide - 1, 1 - wide, numbers[:, 2]), _between(high - 1, 1 - high, numbers[:, 3])
        wide = np.where(numbers[:, 4] < self.mirror, -wide, wide)
        levels, hue = _between(1 - reach, 1 + reach, numbers[:, 5:8]), _between(-0.2, 0.2, numbers[:, 8]) * self.colour
        changed, grey = ((numbers[:, at] < share) & (self.colour > 0) for at, share in ((9, _JITTERED), (10, _GREY)))
        colours = np.where(changed[:, None], np.column_stack([levels, hue]), _PLAIN[:4])
        return np.column_stack([across, down, wide, high, colours, grey])


def _between(low: Any, top: Any, numbers: np.ndarray) -> Any:
    """Return numbers that are uniform in [0, 1) as numbers that are so between two bounds."""
    return low + (top - low) * numbers


@dataclass
class Viewing:
    """Batch pictures in views: (views · pictures, 3, side, side) `pixel_values`, first the first view of each.

    `noise`: side of the patches for each of which a number in [0, 1) is drawn beside the views, under that name; 0 for none.
    """

    processor: Any
    seed: int
    drawing: Drawing
    views: int = 1
    noise: int = 0
    epoch: int = 0

    def __call__(self, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return the views of pictures whose `pixels` are (side, side, 3) uint8."""
        import torch

        side = vision.side(self.processor)
        patches = (side // self.noise) ** 2 if self.noise else 0
        first = self.views * DRAWN
        numbers = self._numbers(rows, first + patches)
        drawn = self.drawing.draw(numbers[:, :first].reshape(-1, DRAWN)).astype(np.float32)
        levels = vision.levels(vision.stacked((row["pixels"] for row in rows), side)).repeat(self.views, 1, 1, 1)
        places = torch.from_numpy(drawn).reshape(len(rows), self.views, -1).transpose(0, 1)
        shown = view(levels, places.reshape(len(levels), -1))
        found = {vision.PIXELS: vision.scaled(shown, self.processor)}
        return found | ({"noise": torch.from_numpy(numbers[:, first:].astype(np.float32))} if self.noise else {})

    def _numbers(self, rows: Sequence[Example], count: int) -> np.ndarray:
        """Return numbers in [0, 1) for each row, (rows, count): those at its own place in the sequence of an epoch."""
        bits = np.random.PCG64([self.seed, self.epoch])  # a generator for each row would take six times as long
        rng, found, place = np.random.Generator(bits), np.empty((len(rows), count)), 0
        for line, row in zip(found, rows, strict=True):
            bits.advance(row[EXAMPLE] * count - place)
            rng.random(out=line)
            place = (row[EXAMPLE] + 1) * count
        return found

    def thumbnails(self, batch: Mapping[str, torch.Tensor]) -> list[list[str]]:
        """Return of each picture of a batch its views as the model is shown them."""
        shown = pictures.thumbnails(vision.shown(batch[vision.PIXELS], self.processor))
        count = len(shown) // self.views
        return [shown[row::count] for row in range(count)]


def view(levels: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Return views of pictures; levels between 0 and 1, (pictures, 3, side, side), `drawn`: (pictures, 9) by `Drawing.draw`."""
    import torch

    grid = _grid(drawn[:, :4], *levels.shape[2:])
    levels = torch.nn.functional.grid_sample(levels, grid, padding_mode="border", align_corners=False)
    if bool((drawn[:, 4:] == torch.tensor(_PLAIN)).all()):  # as of masked autoencoding, whose steps are short
        return levels
    bright, contrast, saturation, hue, grey = (column.view(-1, 1, 1, 1) for column in drawn[:, 4:].T)
    levels = (levels * bright).clamp(0, 1)
    levels = (contrast * levels + (1 - contrast) * _bright(levels).mean((2, 3), keepdim=True)).clamp(0, 1)
    levels = (saturation * levels + (1 - saturation) * _bright(levels)).clamp(0, 1)
    levels = torch.einsum("nij,njhw->nihw", _turned(hue.flatten() * 2 * math.pi), levels).clamp(0, 1)
    return torch.where(grey > 0, _bright(levels).expand_as(levels), levels)


def _grid(parts: torch.Tensor, high: int, wide: int) -> torch.Tensor:
    """Return the points at which parts of pictures, (views, 4), are read; (views, high, wide, 2).

    What `affine_grid` gives, to the bit on a CPU; as a product of matrices it takes six times as long.
    """
    import torch

    across, down, half_wide, half_high = parts.T.unsqueeze(-1)
    columns, rows = (torch.linspace(-1, 1, size) * (size - 1) / size for size in (wide, high))  # middles of pixels
    points = torch.broadcast_tensors((half_wide * columns + across).unsqueeze(1), (half_high * rows + down).unsqueeze(2))
    return torch.stack(points, -1)


def _bright(levels: torch.Tensor) -> torch.Tensor:
    import torch

    return (levels * torch.tensor(_WEIGHTS).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _turned(angles: torch.Tensor) -> torch.Tensor:
    """Return what turns the hue of colours by angles, (angles, 3, 3)."""
    import torch

    yiq = torch.tensor(_YIQ)
    one, none = torch.ones_like(angles), torch.zeros_like(angles)
    cosine, sine = torch.cos(angles), torch.sin(angles)
    turn = torch.stack([one, none, none, none, cosine, -sine, none, sine, cosine], 1).view(-1, 3, 3)
    found: torch.Tensor = torch.linalg.inv(yiq) @ turn @ yiq
    return found
