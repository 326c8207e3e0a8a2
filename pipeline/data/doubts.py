"""What rows mean, judged after they were read: what can hardly be meant is told, and nothing is dropped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from pipeline.data.types import DatasetType, Row

_SHORTEST_CUT, _WORDS = 20, 4  # characters, and words before the last, of a sentence that may have been cut
_FEW, _MOST = 20, 100_000  # rows below which nothing is judged, and that are looked at
_CHARACTERS = 10_000_000  # of those, at most, about: they are in memory together
_WRONG = re.compile("[ÃÂâ][\u0080-\u00bf\u20ac\u201a-\u2122]")  # UTF-8 that was read as Latin-1 or Windows-1252
_GAPS = {
    "nan", "none", "null", "nil", "n/a", "undefined", "nat", "<na>", "todo", "#n/a", "#ref!", "#value!", "#name?", "#div/0!", "#num!",
}  # fmt: skip
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x7f]")
_ENTITY = re.compile("&(?:amp|quot|lt|gt|nbsp|apos|#[0-9]{2,5}|#x[0-9a-fA-F]{2,5});")
_ESCAPED = re.compile(r"\\[nrt](?![a-z])")  # as two characters; with a small letter after it, it may be TeX or a path


class Doubt(NamedTuple):
    """What rows can hardly mean, and how many of them."""

    rows: int
    share: float  # of the rows, from which on it is told
    said: str  # what they do, after "... of ... rows"
    fatal: float = 2.0  # share from which on nothing is trained on them; above 1: never


def of(rows: Iterable[Row], kind: DatasetType) -> list[str]:
    """Return a line for each doubt about the rows of a type, with how many rows it is about; UserError for what can't be meant."""
    few: list[Row] = []
    texts: list[str] = []
    size = 0
    for row in islice(rows, _MOST):
        few.append(kind.told(row))  # without the bytes of pictures: all of these are in memory together
        texts.append(kind.document(row))
        size += max(len(texts[-1]), kind.characters(few[-1]))
        if size >= _CHARACTERS:
            break
    if len(few) < _FEW:
        return []
    found = [
        Doubt(sum("\ufffd" in text for text in texts), 0.01, "hold the replacement character U+FFFD: their encoding was lost", 0.5),
        Doubt(sum(bool(_WRONG.search(text)) for text in texts), 0.01, "look like UTF-8 that was read in another encoding (mojibake)", 0.9),
        Doubt(len(few) - len({repr(row) for row in few}), 0.5, "are the same as another row"),
        Doubt(sum(bool(_CONTROL.search(text)) for text in texts), 0.05, "hold control characters, such as NUL: a binary file, or a broken export", 0.5),
        Doubt(sum("<" not in text and bool(_ENTITY.search(text)) for text in texts), 0.5, "write characters as HTML entities (&amp;, &#39;) without being HTML"),
        Doubt(sum("\n" not in text.replace("\n\n", "") and bool(_ESCAPED.search(text)) for text in texts), 0.5, "write line breaks as a backslash and a letter: they were escaped twice"),
        Doubt(sum(text.strip().isdecimal() for text in texts), 0.9, "are nothing but a number: is it the right column?", 1.0),
        *kind.doubts(few),
    ]  # fmt: skip
    told = {
        f"{one.rows:,} of {len(few):,} rows {one.said}": one for one in found if one.rows and one.rows >= one.share * len(few)
    }
    fatal = [line for line, one in told.items() if one.rows >= one.fatal * len(few)]
    if fatal:
        raise UserError(*(f"{line}; nothing is trained on such rows" if line in fatal else line for line in told))
    return list(told)


def same_answer(answers: Sequence[str]) -> Doubt:
    """Return how many rows have the most frequent answer, where nearly all of them do."""
    return same(answers, "have the same answer: there is nothing in the prompts to learn from", 1.0)


def same(values: Sequence[object], said: str, fatal: float = 2.0) -> Doubt:
    """Return how many rows have the most frequent value, where nearly all of them do."""
    return Doubt(Counter(values).most_common(1)[0][1], 0.95, said, fatal)


def same_picture(shown: Sequence[Sequence[Mapping[str, str]]]) -> Doubt:
    """Return how many rows have the most frequent picture, where nearly all have it; `shown`: the cells of each row."""
    seen = [tuple(one.get("hash", "") for one in cells) for cells in shown if cells]
    return same(seen, "have the same picture, or nearly: was it read as it should be?") if len(seen) > 1 else Doubt(0, 1.0, "")


def repeated(asked: Sequence[str], answers: Sequence[str]) -> Doubt:
    """Return how many answers are what was asked, word for word."""
    count = sum(plain(question) == plain(answer) != "" for question, answer in zip(asked, answers, strict=True))
    return Doubt(count, 0.5, "are answered by the question itself", 1.0)


def contradictions(asked: Sequence[str], answers: Sequence[str]) -> int:
    """Return how many rows ask what another one asks, case and blanks aside, and are answered otherwise."""
    known: dict[str, set[str]] = {}
    questions = [plain(question) for question in asked]
    for question, answer in zip(questions, answers, strict=True):
        known.setdefault(question, set()).add(answer)
    return sum(len(known[question]) > 1 for question in questions)


def cut(answers: Sequence[str]) -> Doubt:
    """Return how many answers are exactly as long as the longest one and end in the middle of a sentence, in one word or another."""
    longest = max(map(len, answers), default=0)
    ends = [text.split(" ")[-1] for text in answers if len(text) == longest and _open(text)]
    if longest < _SHORTEST_CUT or not ends or Counter(ends).most_common(1)[0][1] > len(ends) / 2:  # a form ends in one word
        return Doubt(0, 0.0, "")
    return Doubt(
        len(ends),
        0.3,
        f"have an answer of exactly {longest:,} characters that ends without a sign: were they cut at the same length?",
    )


def _open(text: str) -> bool:
    return text.count(" ") >= _WORDS and (text[-1].isalnum() or text[-1] == " ")


def numbers(asked: Sequence[str], values: Sequence[float], what: str) -> list[Doubt]:
    """Return numbers (`what` they are called) that are all the same, contradict each other or lie far beyond the others."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[-len(ordered) // 4]
    far = 10 * max(high - low, abs(high), abs(low))
    beyond = sum(abs(value) > far for value in values) if far else 0
    return [
        same(values, f"have the same {what}: there is nothing to tell apart", 1.0),
        Doubt(contradictions(asked, list(map(str, values))), 0.1, f"have the text of another row and another {what}"),
        Doubt(
            beyond,
            0.0,
            f"have a {what} beyond ten times those of most rows (from {low:g} to {high:g}): are two scales mixed?",
        ),
    ]


def gaps(answers: Iterable[str]) -> Doubt:
    """Return how many answers are a word by which programs write a missing value."""
    count = sum(answer.strip().lower() in _GAPS for answer in answers)
    return Doubt(count, 0.05, "are answered by a placeholder such as 'nan' or 'None'", 0.4)


def plain(text: str) -> str:
    """Return a text without its blanks and its case."""
    return "".join(text.split()).casefold()


def typed(labels: Iterable[str]) -> list[Doubt]:
    """Return labels that look like a slip in a far more frequent one: in other case, or of nearly the same letters."""
    import difflib

    counts = Counter(labels)
    found = []
    for label, count in counts.items():
        others = [other for other, more in counts.items() if other != label and more >= 3 * count]
        alike = [other for other in counts if plain(other) == plain(label) and (counts[other], other) > (count, label)]
        turned = [other for other in others if len(label) > 3 and sorted(other) == sorted(label)]  # two letters are exchanged
        close = alike or turned or (difflib.get_close_matches(label, others, n=1, cutoff=0.85) if len(label) > 3 else [])
        if close and not label[-1].isdigit():
            found.append(Doubt(count, 0.0, f"have the label {label!r}, which looks like a slip in {close[0]!r}"))
    return found[:5]
