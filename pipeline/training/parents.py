"""Whether a parent knows the tokens that it is about to be trained on, and what its own likelihoods tell of the rows.

What a node hands on is whole, however strange the data is to it, and its record holds the digest of each of its files; so only
parents from elsewhere are asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.chain.stage import PARENT
from pipeline.data.tokens import IGNORED
from pipeline.models import parts
from pipeline.system import hashes
from pipeline.system.errors import UserError
from pipeline.training.familiarity import KNOWN_ROWS, KNOWN_TOKENS, Familiarity, cost_of, measured, next_tokens, targets

if TYPE_CHECKING:
    from pipeline.chain.run import Run

_WORSE = 2.0  # nats a token above guessing; a model that learned other tokens stands far higher, an untrained one below
_KNOWN = 1.0  # nats a token below the same text with its tokens exchanged: a model with its own tokens on strange text is at 2
_NOTHING = 0.1  # the same of a model that knows nothing; one of a few steps is at 0.8
_FEW = 20  # words below which they say nothing
_JUDGED = 40  # tokens from which on the choice of the exchange is weighed
_ERRORS, _MORE = (
    2.0,
    3.5,
)  # standard deviations of exchanged rows that known rows are below them, and where they cost far more than a guess
_WORDS = (
    0.5  # share of tokens of several characters in text that a tokenizer was made for; in other text all may be new to a model
)
_PAIRS = 16  # that are looked at for swapped columns
_COIN = math.log(2)  # nats of a discriminator's guess


def known(run: Run, model: Any, examples: Any, tokenizer: Any, role: str = PARENT) -> None:
    """Raise UserError, or warn, where a causal model from elsewhere does not know the tokens of the examples, or finds pairs swapped."""
    if (role == PARENT and run.record.get("starts_from") == "random") or not _asked(run, role):
        return
    knows("causal", model, examples, tokenizer, run.say, role)
    for warning in (swapped(lambda: model, examples, tokenizer), ends_answers(model, examples)):
        if warning:
            run.say(warning)


def known_by_itself(run: Run, examples: Any, tokenizer: Any) -> None:
    """Raise UserError, or warn, where a parent from elsewhere does not know the tokens of the examples, whatever is trained on it.

    It is loaded with the head with which it was pretrained; one that has none can't be asked.
    """
    if not _asked(run, PARENT) or not examples:
        return
    if opened := pretrained(run.parents[PARENT]):
        size = opened[1].get_input_embeddings().weight.shape[0]
        knows(*opened, _Blind(examples, tokenizer, size), tokenizer, run.say)


class _Blind(Sequence[Any]):
    """Encoded rows without the tokens of pictures, and those around them, which a parent that reads texts alone has no embedding for.

    `size`: of its vocabulary.
    """

    def __init__(self, rows: Sequence[Any], tokenizer: Any, size: int) -> None:
        self.rows, self.token, self.size = rows, parts.token_of(tokenizer), size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        row = self.rows[at]
        if self.token is None or "input_ids" not in row:
            return row
        ids = row["input_ids"]
        kept = {key: row[key] for key in ("input_ids", "labels") if key in row}
        return {
            key: [value for value, one in zip(values, ids, strict=True) if one != self.token and one < self.size]
            for key, values in kept.items()
        }


def pretrained(folder: str) -> tuple[str, Any] | None:
    """Return a model's family and the model as it was pretrained; None where it has no head that could be asked."""
    import transformers

    from pipeline.models import families, loading

    settings = Path(folder) / "config.json"
    if not settings.is_file():
        return None
    named = str((json.loads(settings.read_text(encoding="utf-8")).get("architectures") or [""])[0])
    family = families.family_of(named)
    autos = {
        "causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM",
        "discriminator": "AutoModelForPreTraining",
    }  # fmt: skip
    return (family, loading.from_pretrained(getattr(transformers, autos[family]), folder).eval()) if family in autos else None


def _asked(run: Run, role: str) -> bool:
    return not run.quiet and not (Path(run.parents[role]) / hashes.RECORD).is_file()


def knows(
    family: str, model: Any, rows: Sequence[Any], tokenizer: Any, say: Callable[[str], None], role: str = "parent"
) -> None:
    """Raise UserError where a parent learned other tokens than those of the rows; say where it learned none.

    Whoever knows the tokens finds the text likelier than with its ids exchanged at random, however strange it is. What is no target may
    cost more than a guess, since no training was ever about it.
    """
    size = model.get_input_embeddings().weight.shape[0]
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}
    ids = [one for one in range(min(size, len(tokenizer))) if one not in special]
    guessing = _COIN if family == "discriminator" else math.log(size)
    cost = cost_of(family, model, rows, tokenizer, ids)
    found = measured(cost, ids, guessing) if cost else None
    if found is None:
        return
    real, gap = found.real, found.exchanged - found.real.all
    guess = f"guessing among its {size:,} tokens costs {guessing:.2f}" if guessing > _COIN else f"a coin costs {guessing:.2f}"
    if found.moved:
        raise UserError(
            f"--{role}: finds the first rows far likelier with every token's number moved by {found.moved} than as they are "
            f"({real.all:.2f} nats a token): a token was added before the others or lost, so weights and tokenizer don't belong together"
        )
    # What is not finite is told at the first step.
    if real.targets > guessing + _WORSE and max(gap, found.asked) < _KNOWN:
        raise UserError(
            f"--{role}: costs {real.targets:.2f} nats a token on the first rows, where {guess}: weights and tokenizer don't belong "
            "together, or the weights are wrecked"
        )
    doubtful = gap < _NOTHING or _doubtful(found, guessing, rows, tokenizer, ids)
    if doubtful and not _knows_words(family, model, rows, tokenizer, ids, guessing):
        say(
            f"the {role} finds the first rows no likelier ({real.all:.2f} nats a token) than the same rows with their tokens "
            f"exchanged at random ({found.exchanged:.2f} ± {found.deviation:.2f}): its weights know nothing of these tokens, as if they "
            "were never trained, or weights and tokenizer don't belong together"
        )


def _doubtful(found: Familiarity, guessing: float, rows: Sequence[Any], tokenizer: Any, ids: Collection[int]) -> bool:
    """Say whether rows that the tokenizer was made for are no likelier than by the luck of an exchange."""
    needed = _MORE if guessing > _COIN and found.real.all > guessing + _WORSE else _ERRORS
    if found.errors >= needed or found.real.tokens < _JUDGED:
        return False
    known = set(ids)
    return _made_for(
        tokenizer, [one for at in range(min(KNOWN_ROWS, len(rows))) for one in targets(rows[at])["input_ids"] if one in known]
    )


def _knows_words(family: str, model: Any, rows: Sequence[Any], tokenizer: Any, ids: Sequence[int], guessing: float) -> bool:
    """Say whether a causal parent clearly tells the words of the rows from each other, where letters between them are strange to it."""
    words = [one for one, word in zip(ids, _words(tokenizer, ids), strict=True) if word]
    if family != "causal" or not words:
        return False
    found = measured(lambda exchange: next_tokens(model, rows, exchange, words), words, guessing)
    return bool(found and found.real.tokens >= _FEW and found.exchanged - found.real.all >= _KNOWN)


def _made_for(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Say whether a tokenizer has words for a text, and does not only spell it."""
    return sum(_words(tokenizer, ids)) >= _WORDS * max(1, len(ids))


def _words(tokenizer: Any, ids: Sequence[int]) -> list[bool]:
    """Return which tokens have several characters."""
    return [len(str(one).strip("Ġ▁#")) > 1 for one in tokenizer.convert_ids_to_tokens(list(ids))]


def swapped(load: Callable[[], Any], rows: Sequence[Any], tokenizer: Any) -> str:
    """Return a warning where a causal model finds nearly all chosen sides of the first pairs short and unlikely, or "".

    `load`: returns the model; it is not called where the chosen sides are not shorter. What the tokenizer only spells, emoji for
    example, is unlikely on whichever side it stands.
    """
    if len(rows) < _PAIRS or not {"prompt_ids", "chosen_ids", "rejected_ids"} <= rows[0].keys():
        return ""
    first = [rows[at] for at in range(_PAIRS)]
    shorter = [row for row in first if len(row["chosen_ids"]) < len(row["rejected_ids"])]
    if len(shorter) < 0.9 * _PAIRS or not _made_for(tokenizer, [one for row in shorter for one in row["chosen_ids"]]):
        return ""
    model, unlikely = load(), 0
    for row in shorter:
        chosen, rejected = (next_tokens(model, [row | {"chosen_ids": row[side]}]) for side in ("chosen_ids", "rejected_ids"))
        unlikely += bool(chosen and rejected and chosen.targets > rejected.targets + _KNOWN)
    if unlikely < 0.9 * _PAIRS:
        return ""
    return (
        f"in {unlikely} of the first {_PAIRS} pairs the chosen side is the shorter one, and the parent finds it unlikely and the "
        "rejected side likely: are the columns swapped?"
    )


def ends_answers(model: Any, rows: Sequence[Any]) -> str:
    """Return a warning where a chat model finds the token that ends the first rows' answers less likely than guessing, or ""."""
    answers = [targets(row) for row in (rows[at] for at in range(min(KNOWN_ROWS, len(rows)))) if "prompt_ids" in row]
    ends = [
        row | {"labels": [IGNORED] * (len(row["labels"]) - 1) + row["labels"][-1:]}
        for row in answers
        if len(row["labels"]) <= KNOWN_TOKENS
    ]
    size, nats = model.get_input_embeddings().weight.shape[0], next_tokens(model, ends)
    if nats is None or nats.targets <= math.log(size):
        return ""
    return (
        f"the parent finds the token that ends an answer less likely ({nats.targets:.2f} nats) than guessing among its {size:,} tokens "
        f"({math.log(size):.2f}): it was trained to end its answers otherwise, or tokenizer and weights don't belong together"
    )
