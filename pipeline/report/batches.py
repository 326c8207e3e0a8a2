"""The first batch of a stage, made again from its recipe and tokenizer by the code that it was made by: the mask proof."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.chain import request
from pipeline.system import config
from pipeline.data import recipe as recipes
from pipeline.system.errors import UserError
from pipeline.report.lines import Line, split

SHOWN = 600  # tokens of a batch, at most, in whole rows and at least one
SHAPES = {"pretrain": "text", "sft": "messages", "control": "messages", "dpo": "preference"}
_ARGUMENTS = {"text": "transformers.TrainingArguments", "messages": "trl.SFTConfig", "preference": "trl.DPOConfig"}
_NOTES = {
    "masked": "The model is asked for the marked tokens; before each stands what it saw in its place, where that was another.",
    "discriminator": "The generator is asked for the marked tokens, the discriminator about every token: is it the original?",
    "seq2seq": "The model reads the text with holes and writes what is missing; only what it writes counts.",
    "embedder": "No single token is asked for: the loss is over whole texts, each read twice with other dropout, or two stretches of it.",
    "vectors": "The model is given the words around a place and tells the word that was there, the first one, from drawn ones.",
}


@dataclass(frozen=True)
class Batch:
    """The first batch of a stage."""

    lines: Sequence[Line]
    more: int  # lines that are not shown
    rows: int  # of the batch
    read: int  # tokens of the batch, padding left out
    counted: int  # those of them that are in the loss
    note: str
    logged: int | None  # tokens that the stage's log says it read in its first step
    step: int  # tokens that the first step reads, made again

    @property
    def paired(self) -> bool:
        """Whether two lines belong together."""
        return any(line.name.endswith(("rejected", "writes")) for line in self.lines)

    @property
    def agrees(self) -> bool | None:
        """Whether the stage's own log has as many tokens in its first step; None where it does not say."""
        return None if self.logged is None else self.logged == self.step


def first(folder: Path, record: Mapping[str, Any]) -> Batch:
    """Make a stage's first batch again, as one process reads it; UserError where its recipe is no longer what it was."""
    from pipeline.models import tokenizer
    from pipeline.training.trainer import ROW

    if record["stage"] not in SHAPES:
        raise UserError(f"{record['stage']}: how its batches are made is not known here")
    request.unaltered(folder, record)
    shape = SHAPES[record["stage"]]
    recipe = recipes.of(record, shape)
    if recipe.digest(shape) != record["recipe"]["digest"]:
        raise UserError(f"recipe {recipe.name}: is no longer what {record['stage']} was made with")
    vocabulary = tokenizer.load(str(folder))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(folder, record, recipe, vocabulary, Path(scratch))
        batches = iter(trainer.get_train_dataloader())
        step = [next(batches, None) for _ in range(trainer.args.gradient_accumulation_steps)]
    made = [batch for batch in step if batch is not None]
    for batch in made:
        batch.pop(ROW)
    lines = split(made[0], record["family"], vocabulary)
    tokens, shown = [token for line in lines for token in line.tokens], _beginning(lines)
    return Batch(
        lines=shown, more=len(lines) - len(shown), rows=len(made[0]["input_ids"]), read=_read(made[0], vocabulary), counted=sum(token.counts for token in tokens),
        note=_NOTES.get(record["family"], ""), logged=_logged(folder), step=sum(_read(batch, vocabulary) for batch in made),
    )  # fmt: skip


def _trainer(folder: Path, record: Mapping[str, Any], recipe: recipes.Recipe, vocabulary: Any, scratch: Path) -> Any:
    """Return a trainer with the stage's arguments, data and collator, so that its sampler is the stage's; it has no model."""
    import torch
    from transformers import set_seed

    from pipeline.system.hardware import placement
    from pipeline.training.trainer import StageTrainer
    from pipeline.training.loop import DEFAULTS, FORCED

    shape, seed = SHAPES[record["stage"]], int(record["seed"])
    kind = config.library_class(_ARGUMENTS[shape])
    known = {field.name for field in dataclasses.fields(kind)}
    given = {key: value for key, value in record["config"].items() if key in known}
    arguments = kind(**placement() | DEFAULTS | given | FORCED | {"output_dir": str(scratch)})
    rows = recipe.rows(shape, "train", seed)
    set_seed(seed)
    make = {"text": _text, "messages": _conversations, "preference": _pairs}[shape]
    dataset, collator = make(folder, record, rows, vocabulary, arguments, scratch / "rows.arrow")
    return StageTrainer(torch.nn.Linear(1, 1), arguments, collator, dataset, processing_class=vocabulary)


def _text(folder: Path, record: Mapping[str, Any], rows: recipes.Rows, vocabulary: Any, _: Any, path: Path) -> tuple[Any, Any]:
    from pipeline import objectives
    from pipeline.data import tokens

    options = record["config"]
    objective = objectives.load(options["objective"], options["objective_options"])
    text = objectives.Text(
        rows.kept, vocabulary, options["max_length"], options["language"], int(record["seed"]), Counter(), Counter()
    )
    dataset = tokens.write(objective.examples(text), path)
    collator = objective.collator(vocabulary, dataset, int(record["seed"]))
    if objective.packs and tokens.keeps_apart(objective.load_model(str(folder))):
        return tokens.pack(dataset, options["max_length"]), collator
    return tokens.numbered(dataset), collator


def _conversations(
    folder: Path, record: Mapping[str, Any], rows: recipes.Rows, vocabulary: Any, arguments: Any, path: Path
) -> tuple[Any, Any]:
    from pipeline.models import checkpoint
    from pipeline.data import tokens

    encoded = tokens.pieces(
        rows.kept, lambda row: tokens.encode_messages(row["messages"], vocabulary), arguments.max_length, False, Counter()
    )
    dataset = tokens.write(encoded, path)
    if tokens.keeps_apart(checkpoint.load(str(folder))):
        dataset = tokens.pack(dataset, arguments.max_length)
    return dataset, tokens.CausalCollator(int(vocabulary.pad_token_id))


def _pairs(
    folder: Path, record: Mapping[str, Any], rows: recipes.Rows, vocabulary: Any, arguments: Any, path: Path
) -> tuple[Any, Any]:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from pipeline.data import tokens

    encoded = tokens.pieces(rows.kept, lambda row: tokens.encode_pair(row, vocabulary), arguments.max_length, False, Counter())
    dataset = tokens.write(encoded, path)
    dataset = dataset.add_column("length", [tokens.pair_length(row) for row in dataset])
    return dataset, DataCollatorForPreference(
        int(vocabulary.pad_token_id), arguments.max_length, arguments.truncation_mode, arguments.pad_to_multiple_of
    )


def _beginning(lines: Sequence[Line]) -> list[Line]:
    ends = itertools.accumulate(len(line.tokens) for line in lines)
    shown = max(1, sum(end <= SHOWN for end in ends))
    return list(lines[: shown + (shown < len(lines) and lines[shown].name.endswith(("rejected", "writes")))])  # both sides


def _read(batch: Mapping[str, Any], vocabulary: Any) -> int:
    """Count tokens as the Trainer does: those of the attention mask, or all but padding."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return int((batch.get("words", batch["input_ids"]) != vocabulary.pad_token_id).sum())


def _logged(folder: Path) -> int | None:
    """Return the tokens of the first step, where the log has that step."""
    try:
        entry = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").partition("\n")[0])
    except (OSError, json.JSONDecodeError):
        return None
    return int(entry["tokens"]) if entry["step"] == 1 else None
