"""The pictures of `scenes` with captions alone, few of them: for a tower from nothing, and for a language model that learns to say what it sees.

`image_text` has a picture with its caption; in `messages` the picture alone asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_recipes import scenes

PAIRS, CONVERSATIONS = 6_000, 2_000


def image_text(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield pictures with captions."""
    for number, rng in enumerate(scenes.seeded(seed, "captions", split, PAIRS)):
        scene = scenes.scene_of(rng, split)
        yield {"image": scenes.picture(scene, rng, f"{split}-{number}.png"), "text": scenes.caption(scene)}


def messages(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield conversations of a picture and its caption."""
    for number, rng in enumerate(scenes.seeded(seed, "asked", split, CONVERSATIONS)):
        scene = scenes.scene_of(rng, split)
        turns = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": scenes.caption(scene)}]
        yield {"messages": turns, "images": [scenes.picture(scene, rng, f"{split}-{number}.png")]}
