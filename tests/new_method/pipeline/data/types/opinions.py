"""Answers with a verdict: {"prompt": messages, "completion": messages, "liked": bool}."""

from __future__ import annotations

from pipeline.data.types import DatasetType, Format, Messages, Row
from pipeline.data.types._columns import spoken


class Opinions(DatasetType):
    """One answer a row, liked or not."""

    columns = "`prompt` and `completion`, each a list of messages, and whether the answer is `liked`"
    items = "opinions"
    formats = (
        Format(
            "prompt, completion and liked",
            frozenset({"prompt", "completion", "liked"}),
            lambda row: {
                "prompt": spoken(row["prompt"], "user"),
                "completion": spoken(row["completion"], "assistant"),
                "liked": bool(row["liked"]),
            },
        ),
    )

    def prompt(self, row: Row) -> Messages | None:
        """Return the prompt."""
        return list(row["prompt"])


TYPE = Opinions()
