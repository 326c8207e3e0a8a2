"""Shares of sources in the training tokens: how often the examples of each source are read so that the tokens divide as asked.

One epoch of a mixture has about as many tokens as all sources together. A source whose share is larger than its part of these
is read more than once, one whose share is smaller in part (Brown et al. 2020, table 2.2). Rows that are held out take no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

_READ = 10_000  # examples whose lengths are counted at once
_FITTED = 10_000  # examples that are tried for what is left of a share


class Part(NamedTuple):
    """The rows of one source among those for training, and its share of the tokens."""

    name: str
    start: int
    stop: int
    share: float


@dataclass(frozen=True)
class Got:
    """What a source has in one epoch of the mixture."""

    source: str
    asked: float  # share of the tokens
    got: float
    tokens: int
    epochs: float  # how often each of its tokens is read, in the mean

    def __str__(self) -> str:
        return f"{self.source} {self.got:.1%} of the tokens (asked {self.asked:.1%}), read {self.epochs:.2f} times"


def told(recipe: Mapping[str, Any]) -> list[str]:
    """Return in words how the rows of a recipe were read, by a node's record of it: as a stream, in shares, or neither."""
    lines = []
    if found := recipe.get("stream"):
        epochs = f" in {found['epochs'][0]:.2f} epochs" if "mixture" not in recipe else ""
        lines.append(
            f"streamed: {recipe['rows']:,} rows read{epochs}, and {found['held_out']:,} left out as held out; "
            f"the data is known by its {found['known_by']}"
        )
    if shares := recipe.get("mixture"):
        turn = "in all" if found else "an epoch"
        lines.append(f"mixture: {'; '.join(f'{Got(**share)} {turn}' for share in shares)}")
    return lines


def mixed(dataset: Dataset, parts: Sequence[Part], seed: int) -> tuple[Dataset, list[dict[str, Any]]]:
    """Return the examples of one epoch of a mixture in random order, and what each source has of it.

    Raises UserError where a source has no example.
    """
    import numpy as np

    lengths, rows = _counted(dataset)
    rng = np.random.default_rng([seed, 12])
    sources = np.searchsorted([part.stop for part in parts], rows, side="right")
    have = [int(lengths[sources == number].sum()) for number in range(len(parts))]
    if empty := [part.name for part, tokens in zip(parts, have, strict=True) if not tokens]:
        raise UserError(*(f"mixture: {name}: no row of it is left for training" for name in empty))
    asked = [part.share / sum(part.share for part in parts) for part in parts]
    drawn = [_drawn(np.flatnonzero(sources == number), lengths, share * sum(have), rng) for number, share in enumerate(asked)]
    tokens = [int(lengths[numbers].sum()) for numbers in drawn]
    found = [
        Got(part.name, round(share, 6), round(count / sum(tokens), 6), count, round(count / own, 6))
        for part, share, count, own in zip(parts, asked, tokens, have, strict=True)
    ]
    order = rng.permutation(np.concatenate(drawn))
    return dataset.select(order), [asdict(item) for item in found]


def _counted(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of each example, and the number of the row that it was made from."""
    import numpy as np

    columns = [name for name in dataset.column_names if name.endswith("_ids") and not name.endswith("type_ids")]
    arrow, lengths, rows = dataset.select_columns([*columns, "row"]).with_format("arrow"), [], []
    for start in range(0, len(dataset), _READ):
        table = arrow[start : start + _READ]
        lengths.append(sum(table[name].combine_chunks().value_lengths().to_numpy() for name in columns))
        rows.append(table["row"].to_numpy())
    return np.concatenate(lengths).astype(np.int64), np.concatenate(rows)


def _drawn(numbers: np.ndarray, lengths: np.ndarray, wanted: float, rng: np.random.Generator) -> np.ndarray:
    """Return examples, each as often as it is read, that have about so many tokens: all of them so often, and a part by chance."""
    import numpy as np

    passes, left = divmod(wanted, int(lengths[numbers].sum()))
    order = rng.permutation(numbers)
    until = int(np.searchsorted(np.cumsum(lengths[order]), left, side="right"))
    left -= lengths[order[:until]].sum()
    more = []
    for number in order[until : until + _FITTED]:  # what fits into the rest
        if lengths[number] <= left:
            more.append(number)
            left -= lengths[number]
    return np.concatenate([*[numbers] * int(passes), order[:until], np.array(more, dtype=order.dtype)])
