"""Questions about a text: {"context": str, "question": str, "answers": [{"text": str, "start": int}, …]}.

`start` counts characters of the context; the list is empty where the text holds no answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data.doubts import Doubt
from pipeline.data.types import DatasetType, Format, Malformed, Row
from pipeline.data.types._columns import text


def _row(context: str, question: Any, texts: Any, starts: Any) -> Row:
    """Return one question, the space around its answers aside; questions about one context belong together."""
    if not isinstance(question, str):
        raise Malformed(f"question is {type(question).__name__}, not text")
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise Malformed("answers: text and answer_start are no lists of the same length")
    answers = []
    for answer, start in zip(texts, starts, strict=True):
        if not isinstance(answer, str) or not answer.strip():
            raise Malformed(f"answers: {answer!r} is no text; a question without an answer has none")
        if not isinstance(start, int) or context[start : start + len(answer)] != answer:
            raise Malformed(f"answers: {answer[:40]!r} does not stand at {start} of the context")
        answers.append({"text": answer.strip(), "start": start + len(answer) - len(answer.lstrip())})
    group = hashlib.sha256(context.encode()).hexdigest()[:12]
    return {"context": context, "question": question, "answers": answers, "group": group}


def _question(row: Mapping[str, Any]) -> Row:
    """Convert a row of the hub's SQuAD."""
    given = row["answers"]
    if not isinstance(given, Mapping) or not {"text", "answer_start"} <= given.keys():
        raise Malformed("answers has not the columns text and answer_start")
    return _row(text(row, "context"), row["question"], given["text"], given["answer_start"])


def _article(row: Mapping[str, Any]) -> list[Row]:
    """Convert an article of SQuAD's own file: paragraphs, each with questions."""
    return [
        _row(text(part, "context"), asked["question"], [item["text"] for item in asked["answers"]],
             [item["answer_start"] for item in asked["answers"]])
        for part in row["paragraphs"] for asked in part["qas"]
    ]  # fmt: skip


def _file(row: Mapping[str, Any]) -> list[Row]:
    """Convert the whole of SQuAD's own file."""
    try:
        return [found for article in row["data"] for found in _article(article)]
    except (TypeError, KeyError) as error:
        raise Malformed(f"not the form of SQuAD's file (data, paragraphs, qas, answers): {error}") from None


class Answers(DatasetType):
    """One question a row, the text that it is about, and where its answers stand."""

    columns = "`context`, `question`, and `answers`, each a `text` and where it has its `start`; none where there is no answer"
    items = "questions"
    asks = ("context",)
    filled = ("context", "question")
    blank: ClassVar[dict[str, Any]] = {"answers": {"text": [], "answer_start": []}}
    formats = (
        Format("SQuAD", frozenset({"context", "question", "answers"}), _question),
        Format("SQuAD's own file", frozenset({"data", "version"}), _file),
    )

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return questions without an answer, where nearly all have none."""
        return [Doubt(sum(not row["answers"] for row in rows), 0.95, "have no answer: a model learns to find nothing", 1.0)]


TYPE = Answers()
