"""The frame of stages that train a chat model: options, opening of the parent, what marks the turns, the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline.system.config import option
from pipeline.training.adapter import AdapterOptions

if TYPE_CHECKING:
    from pipeline.chain.run import Run

LONGEST = 1024  # tokens of a row where nobody says how many and the parent has more positions


@dataclass(frozen=True)
class ChatOptions(AdapterOptions):
    """Options of every stage that trains a chat model."""

    recipe: str = option("world", "data recipe that gives its rows")
    chat_template: str = option("", "file with a chat template; empty keeps the parent's own")
    init: Literal["parent", "random"] = option("parent", "parent, or random weights of the same sizes, for a control")


@dataclass(frozen=True)
class QuantizedOptions(ChatOptions):
    """Options of the stages that can train an adapter on a parent in 4 bits; the names are those of BitsAndBytesConfig."""

    load_in_4bit: bool = option(
        False, "hold the frozen parent in 4 bits (QLoRA, by bitsandbytes)", needs=("method", "lora"), omitted=True
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = option(
        "nf4", "4-bit normal floats, or plain ones", needs=("load_in_4bit", True), omitted=True
    )
    bnb_4bit_use_double_quant: bool = option(
        False, "round the scales of the 4-bit weights, too", needs=("load_in_4bit", True), omitted=True
    )


class Opened(NamedTuple):
    """A parent that is ready to be trained."""

    tokenizer: Any
    model: Any


def open_parent(run: Run, whole: bool = False) -> Opened:
    """Load tokenizer and model of the parent, with the chosen template and what it needs; UserError where they don't fit.

    With `init: random` the weights are new ones, drawn after the parent's were read. `whole`: in fp32, also where the stage
    trains on them in 4 bits.
    """
    from pipeline.models import checkpoint, tokenization
    from pipeline.training import frozen, guards

    options: ChatOptions = run.options
    how = {} if whole else frozen.four_bits(run)
    tokenizer, model = tokenization.load(run.parent), checkpoint.load(run.parent, **how)
    frozen.settle(model)
    guards.fits_parent(model, tokenizer, _given_length(run))
    if warning := guards.ends_text(model, tokenizer):
        run.say(warning)
    own = tokenizer.chat_template
    added = tokenization.set_template(tokenizer, options.chat_template, run.parent)
    tokenization.ends_in_time(tokenizer)
    if run.signature.reads != "messages" and (warning := tokenization.another_template(tokenizer, own)):
        run.say(warning)
    if options.init == "random":
        model = checkpoint.writer(model.config).from_config(model.config, trust_remote_code=False)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
        run.say(f"adds {', '.join(added)} to the vocabulary, which the chat template needs")
    return Opened(tokenizer, model)


def row_length(run: Run, model: Any) -> int:
    """Return the greatest length of a row in tokens: `max_length`, or what the parent has positions for."""
    given = _given_length(run)
    if given is not None:
        return given
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or LONGEST
    run.say(f"max_length {min(positions, LONGEST):,}, since the parent has {positions:,} positions")
    return min(positions, LONGEST)


def _given_length(run: Run) -> int | None:
    """Return `max_length` where it is given, whether it belongs to the library's class or to the stage."""
    given = run.arguments.get("max_length", getattr(run.options, "max_length", None))
    return None if given is None else int(given)


def turn_markers(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Return the special tokens of an encoded conversation that mark its turns, which pretraining did not see."""
    from pipeline.models import parts

    known = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    known.add(parts.token_of(tokenizer))  # in whose place a model reads patches
    return sorted(set(ids) & set(tokenizer.all_special_ids) - known)
