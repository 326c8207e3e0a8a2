"""Questions about a text: {"context": str, "question": str, "answers": [{"text": str, "start": int}, …]}.

`start` counts characters of the context; the list is empty where the text holds no answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline.data.types import DatasetType, Format, Malformed, Row
from pipeline.data.types._columns import text


def _question(row: Mapping[str, Any]) -> Row:
    """Convert SQuAD's columns, the space around an answer aside; questions about one context belong together."""
    context, given = text(row, "context"), row["answers"]
    if not isinstance(given, Mapping) or not {"text", "answer_start"} <= given.keys():
        raise Malformed("answers has not the columns text and answer_start")
    texts, starts = given["text"], given["answer_start"]
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
    return {"context": context, "question": text(row, "question"), "answers": answers, "group": group}


class Answers(DatasetType):
    """One question a row, the text that it is about, and where its answers stand."""

    columns = "`context`, `question`, and `answers`, each a `text` and where it has its `start`; none where there is no answer"
    items = "questions"
    asks = ("context",)
    filled = ("context", "question")
    formats = (Format("SQuAD", frozenset({"context", "question", "answers"}), _question),)


TYPE = Answers()
