"""The first batch of a node, made again from its recipe and tokenizer by the stage's own code: the mask proof."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.chain import request
from pipeline.chain.finished import Finished
from pipeline.chain.run import Run
from pipeline.data.batches import IDS, prefixes
from pipeline.report.lines import Line, illustrated, split
from pipeline.system.errors import UserError
from pipeline.system.words import counted

SHOWN = 600  # tokens of a batch, at most, in whole rows and at least one
_IMAGE = 40  # tokens in whose stead an image is shown


@dataclass(frozen=True)
class Batch:
    """The first batch of a node."""

    lines: Sequence[Line]
    more: int  # lines that are not shown
    rows: int  # of the batch
    read: int  # tokens of the batch, padding left out
    counted: int  # those of them that are in the loss
    note: str
    logged: int | None  # tokens that the node's log says it read in its first step
    step: int  # tokens that the first step reads, made again
    unit: str  # of what is read: tokens, or positions where a batch holds none

    @property
    def paired(self) -> bool:
        """Whether two lines belong together."""
        return any(line.second for line in self.lines)

    @property
    def rest(self) -> str:
        """What is not shown, counted in rows or, where two lines belong together, in pairs."""
        count, what = (self.more // 2, "pair") if self.paired else (self.more, "row")
        return counted(count, f"more {what}") if count else ""

    @property
    def agrees(self) -> bool | None:
        """Whether the node's own log has as many tokens in its first step; None where it does not say."""
        return None if self.logged is None else self.logged == self.step


def first(made: Finished) -> Batch:
    """Make a node's first batch again, as one process reads it; UserError where its recipe is no longer what it was."""
    from pipeline.models.processors import tokenizer_of
    from pipeline.training.trainer import take_rows

    record = made.record
    request.unaltered(made.folder, record)
    tokenizer = made.stage.processor(made.options, str(made.folder))
    with tempfile.TemporaryDirectory() as scratch:
        run = Run.remade(made.stage, record, made.parents, Path(scratch))
        if run.recipe.digest(record["recipe"]["type"]) != record["recipe"]["digest"]:
            raise UserError(f"recipe {run.recipe.name}: is no longer what {made.name} was made with")
        model = made.stage.load_model(made.options, str(made.folder))
        trainer, collator = _trainer(run, made, tokenizer, model)
        batches = iter(trainer.get_train_dataloader())
        step = [next(batches, None) for _ in range(trainer.args.gradient_accumulation_steps)]
    found = [batch for batch in step if batch is not None]
    for batch in found:
        take_rows(batch)
    tokenizer = tokenizer_of(tokenizer)
    columns, lines = prefixes(found[0]), _lines(found[0], record["family"], tokenizer, collator)
    tokens, shown = [token for line in lines for token in line.tokens], _beginning(lines)
    read = [_read(batch, model, tokenizer) for batch in found]
    return Batch(
        lines=shown, more=len(lines) - len(shown), rows=sum(len(found[0][f"{prefix}{IDS}"]) for prefix in columns) or len(lines),
        read=read[0], counted=sum(token.counts for token in tokens), note=made.stage.note(made.options), logged=_logged(made.folder),
        step=sum(read), unit="tokens" if columns else "positions",
    )  # fmt: skip


def _lines(batch: Mapping[str, Any], family: str, tokenizer: Any, collator: Any) -> list[Line]:
    """Return the rows of a batch, token by token where it holds any, with what `collator` shows of each; UserError where both are missing."""
    images = collator.thumbnails(batch) if hasattr(collator, "thumbnails") else []
    if images and not prefixes(batch):
        return [Line(f"row {number}", (), images=shown) for number, shown in enumerate(images, start=1)]
    return illustrated(split(batch, family, tokenizer), images)


def _trainer(run: Run, made: Finished, tokenizer: Any, model: Any) -> tuple[Any, Any]:
    """Return a trainer with the node's arguments, data and collator, so that its sampler is the node's, and that collator.

    It trains nothing; `model` is the node's, which is only looked at.
    """
    import torch
    from transformers import set_seed

    from pipeline.training.loop import DEFAULTS, FORCED
    from pipeline.training.trainer import StageTrainer

    arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
    rows = made.stage.rows(run)
    set_seed(run.seed)
    read = made.stage.batches(run, rows, tokenizer, model)

    class Ordered(StageTrainer):
        """Reads in the order of the node's own trainer."""

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return read.sampler(arguments, read.dataset) if read.sampler else super()._get_train_sampler(dataset)

    return Ordered(torch.nn.Linear(1, 1), arguments, read.collator, read.dataset, processing_class=tokenizer), read.collator


def _beginning(lines: Sequence[Line]) -> list[Line]:
    ends = itertools.accumulate(len(line.tokens) + _IMAGE * len(line.images) for line in lines)
    shown = max(1, sum(end <= SHOWN for end in ends))
    return list(lines[: shown + (shown < len(lines) and lines[shown].second)])  # both sides


def _read(batch: Mapping[str, Any], model: Any, tokenizer: Any) -> int:
    """Count tokens as the Trainer does, and patches of pictures; where words are drawn, in the text that they are drawn from."""
    from pipeline.training.trainer import positions_read

    if "words" in batch:
        batch = {IDS: batch["words"]}
    return positions_read(model, batch, int(tokenizer.pad_token_id) if tokenizer else 0)


def _logged(folder: Path) -> int | None:
    """Return the tokens of the first step, where the log has that step."""
    try:
        entry = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").partition("\n")[0])
    except (OSError, json.JSONDecodeError):
        return None
    if entry["step"] != 1:
        return None
    read = entry.get("prompt_tokens", entry["tokens"])  # of a trainer that samples, what it read before
    return None if read is None else int(read)
