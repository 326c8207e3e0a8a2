"""What somebody's files and model hold, looked at before a profile is written for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.chain.stage import Stage
from pipeline.data import recipe as recipes
from pipeline.data import source_recipe, types
from pipeline.data.documents import Documents
from pipeline.data.rows import Rows
from pipeline.data.seen import Seen
from pipeline.data.source_recipe import Source, SourceRecipe
from pipeline.models import tokenization
from pipeline.models.families import family_of
from pipeline.system import hashes
from pipeline.system.errors import UserError

_MEASURED = 20_000  # rows of a file whose tokens are counted; the others are taken to be like them
_LEARNED = 8_000_000  # characters that a tokenizer for measuring learns from
_SEED = 42  # that stages have unless their node says otherwise
_ENOUGH, _MOST = 50, 0.2  # held-out rows that tell something; the largest share of the rows held out for that
_FEW, _LONG, _PART = 100, 2000, 1000  # documents below which long ones are cut; their mean characters; those of a part


@dataclass(frozen=True)
class Given:
    """One file, glob, folder or hub id, read as rows of one type."""

    word: str  # by which it was given
    text: str  # as it was given
    sources: Sequence[Mapping[str, Any]]  # as the YAML recipe names them
    recipe: SourceRecipe
    train: Rows
    held_out: int

    @property
    def type(self) -> str:
        """The dataset type of its rows."""
        return self.recipe.type

    @property
    def items(self) -> str:
        """What its rows are called."""
        return types.load(self.type).items

    @property
    def dropped(self) -> dict[str, int]:
        """The rows that can't be used, by reason."""
        return dict(self.train.dropped)

    def sample(self) -> Sequence[Any]:
        """Return rows for measuring, spread over all."""
        return self.train.kept[:: -(-len(self.train.kept) // _MEASURED)]


def read(word: str, text: str, candidates: Sequence[str]) -> Given:
    """Return the rows of a file, glob, folder or hub id, or a mixture of these, of the first type that fits; UserError with every fault."""
    found = recipes.from_data(text, candidates[0])
    if not isinstance(found, SourceRecipe):
        raise UserError(f"{text}: is a node that hands on rows; name it as `data:` in the file of the node that reads them")
    return _settled(word, text, _named(text, found.given), found.given, _recognised(found.given[0], candidates))


def _named(text: str, given: Sequence[Source]) -> list[Mapping[str, Any]]:
    """Return the sources that a word names as a YAML recipe writes them."""
    mixed = any(source.share or source.held_out is not None for source in given)
    names = [part.rpartition("=")[0] for part in text.split(",")] if mixed else [text]
    return [
        {"hub" if source.hub else "files": name}
        | ({"share": source.share} if source.share else {})
        | ({"held_out": source.held_out} if source.held_out is not None else {})
        for name, source in zip(names, given, strict=True)
    ]


def retold(word: str, others: Sequence[Given]) -> Given:
    """Return what is said in rows of other types, as documents of type text; held out is the same as of those rows."""
    given = [replace(source, holds=other.type) for other in others for source in other.recipe.given]
    named = [{**source, "holds": other.type} for other in others for source in other.sources]
    share = max(other.recipe.held_out for other in others)
    return _measured(
        word, f"what is said in {' and '.join(other.text for other in others)}", named, SourceRecipe(word, given, "text", share)
    )


def _recognised(source: Source, candidates: Sequence[str]) -> str:
    """Return the first type that the first row is of; the first of all where none fits, so that its fault is told."""
    for where, row in islice(source.raw(Documents()), 1):
        for type in candidates:
            try:
                types.recognise(row, type, where)
            except UserError:
                continue
            return type
    return candidates[0]


def _settled(word: str, text: str, named: Sequence[Mapping[str, Any]], given: list[Source], type: str) -> Given:
    """Read the rows, and hold out enough of them where there are few."""
    found = _measured(word, text, named, SourceRecipe(text, given, type))
    if found.recipe.named:
        return found
    rows, cut = len(found.train.kept) + found.held_out, 0
    if type == "text" and rows < _FEW:
        characters = sum(len(row["text"]) for row in found.train.kept)
        if characters / rows > _LONG:
            cut, rows = _PART, characters // _PART
    share = min(_MOST, max(source_recipe.HELD_OUT, round(_ENOUGH / rows, 2)))
    if share == source_recipe.HELD_OUT and not cut:
        return found
    return _measured(word, text, named, SourceRecipe(text, given, type, share, cut=cut))


def _measured(word: str, text: str, named: Sequence[Mapping[str, Any]], recipe: SourceRecipe) -> Given:
    train = recipe.rows(recipe.type, "train", _SEED)
    return Given(word, text, named, recipe, train, train.held_out)


@dataclass(frozen=True)
class Base:
    """A model that a chain starts from, as far as it can be read from here."""

    where: str
    family: str
    parameters: int
    positions: int | None
    tokenizer: Any = None  # None where it could not be loaded

    @property
    def chats(self) -> bool:
        """Whether it brings a chat template; taken to be so where it could not be asked."""
        return self.tokenizer is None or bool(self.tokenizer.chat_template)


def base(where: str) -> Base:
    """Return what a model folder or hub id holds; UserError where a folder holds no model, or the hub has no such one.

    A hub that can't be reached is no fault: family and sizes are then taken for those of a common small chat model.
    """
    folder = Path(where)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"BASE={where}: no model folder: config.json is missing")
        return _loaded(where)
    if where.count("/") != 1 or where.startswith((".", "/")) or folder.parent.exists():
        raise UserError(f"BASE={where}: no such folder; give a model folder or a hub id, as in BASE=HuggingFaceTB/SmolLM2-135M")
    try:
        return _loaded(where)
    except UserError:
        return Base(where, "causal", 135_000_000, None)


def _loaded(where: str) -> Base:
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        with torch.device("meta"):
            parameters = AutoModel.from_config(config, trust_remote_code=False).num_parameters()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # the library reads config.json as it stands
        raise UserError(f"BASE={where}: no model folder ({' '.join(str(error).split())[:200]})") from None
    try:
        tokenizer = tokenization.load(where)
    except UserError as error:
        raise UserError(*(fault.replace("--parent ", "BASE=") for fault in error.faults)) from None
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return Base(where, family_of(str((config.architectures or [""])[0])), parameters, positions, tokenizer)


def tokenizer(text: Given, vocab_size: int) -> Any:
    """Return a tokenizer that learned from a bounded part of the text, with a chat template, to measure rows with."""
    left = _LEARNED
    texts = []
    for row in text.train.kept:
        if left <= 0:
            break
        texts.append(row["text"])
        left -= len(row["text"])
    return templated(tokenization.train(texts, vocab_size, 1024))


def templated(tokenizer: Any) -> Any:
    """Return a tokenizer with a chat template, its own if it has one; UserError where that does not end in time."""
    if not tokenizer.chat_template:
        tokenization.set_template(tokenizer, "chatml.jinja", "")
    tokenization.ends_in_time(tokenizer)
    return tokenizer


def lengths(given: Given, stage: Stage, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens of the rows, as the stage measures them; UserError where the template can't hold a row."""
    try:
        return tuple(stage.length(row, tokenizer) for row in given.sample())
    except UserError as error:
        raise UserError(*(f"{given.word.upper()}={given.text}: {fault}" for fault in error.faults)) from None


def repeated(given: Given) -> int:
    """Return how many rows for training were there before."""
    seen = Seen()
    return sum(not seen.new(hashes.digest(row)) for row in given.train.kept)
