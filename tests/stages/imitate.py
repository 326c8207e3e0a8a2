"""A causal model, a masked one as its teacher and text in, a causal model that sees texts as the teacher does out.

    python stages/imitate.py --parent runs/mine/pretrain --teacher runs/mine/mlm --output runs/mine/imitate

It goes on learning to write the text, while the mean of its last hidden states is drawn towards the teacher's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Stage
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.system.config import option
from pipeline.system.errors import UserError

TEACHER = "teacher"


@dataclass
class Loss:
    """Both parts of the loss: −log p of the text, and one minus the cosine to the teacher's view of it."""

    teacher: Any
    weights: Mapping[str, float]

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the targets of the text, and the texts."""
        from pipeline.models.logits import num_targets

        return {"text": num_targets(batch["labels"][:, 1:]), TEACHER: len(batch["labels"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sums of both parts."""
        import torch

        from pipeline.models.logits import token_nats

        ids, mask = batch["input_ids"], batch["attention_mask"]
        seen = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        with torch.no_grad():
            given = {"input_ids": batch["teacher_ids"], "attention_mask": batch["teacher_mask"]}
            taught = self.teacher.to(ids.device)(**given, output_hidden_states=True)
        ours, theirs = _mean(seen.hidden_states[-1], mask), _mean(taught.hidden_states[-1], batch["teacher_mask"])
        apart = 1 - torch.nn.functional.cosine_similarity(ours, theirs)
        return {"text": token_nats(seen.logits[:, :-1], batch["labels"][:, 1:], "sum"), TEACHER: apart.sum()}


def _mean(states: Any, mask: Any) -> Any:
    """Return the mean of the hidden states of each text, (texts, width)."""
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


@dataclass
class Collator:
    """Pads what each of the two models reads with its own padding token."""

    pad_id: int
    teacher_pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch of both."""
        from pipeline.data.batches import pad

        taught = pad([{"input_ids": row["teacher_ids"]} for row in rows], self.teacher_pad_id)
        batch = pad([{key: row[key] for key in ("input_ids", "labels")} for row in rows], self.pad_id)
        return batch | {"teacher_ids": taught["input_ids"], "teacher_mask": taught["attention_mask"]}


class Imitation(Stage):
    """Train the parent on text and on its teacher's view of the same text."""

    title = "Imitation"
    about = "A causal model that was drawn towards a masked one, its teacher."
    reads = "text"
    takes: ClassVar[dict[str, tuple[str, ...]]] = {PARENT: ("causal",), TEACHER: ("masked",)}
    library = "transformers.TrainingArguments"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 1e-3}
    primary = (Against("loss", PARENT),)

    @dataclass(frozen=True)
    class Options:
        """Our own options of imitation."""

        recipe: str = option("world", "data recipe that gives text")
        max_length: int = option(64, "tokens of a text; longer ones are dropped", at_least=8)
        pull: float = option(1.0, "weight of the distance to the teacher", at_least=0.0)

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return each text as both models read it."""
        from pipeline.data import tokens
        from pipeline.models import tokenization
        from pipeline.training import guards
        from pipeline.training.loop import prepare

        teacher, longest = tokenization.load(run.parents[TEACHER]), run.options.max_length

        def examples() -> Iterator[dict[str, Any]]:
            encoded = tokens.pieces(
                rows.kept, lambda row: tokens.encode_text(row, tokenizer), longest, False, rows.dropped_by_encoding
            )
            for example in encoded:
                text = rows.kept[example["row"]]["text"]
                yield example | {"teacher_ids": list(teacher(text, truncation=True, max_length=longest)["input_ids"])}

        dataset = prepare(run, rows, examples())
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        return Batches(dataset, Collator(int(tokenizer.pad_token_id), int(teacher.pad_token_id)), {})

    def train(self, run: Run) -> None:
        """Train every parameter of the parent; the teacher stays as it is."""
        from transformers import set_seed

        from pipeline.models import build, checkpoint, tokenization
        from pipeline.training import guards
        from pipeline.training.loop import DEFAULTS, FORCED, fit, hand_over
        from pipeline.training.trainer import ObjectiveTrainer

        arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = tokenization.load(run.parent), checkpoint.load(run.parent)
        teacher = build.load("AutoModelForMaskedLM", run.parents[TEACHER]).eval().requires_grad_(False)
        if teacher.config.hidden_size != model.config.hidden_size:
            raise UserError(
                f"--teacher: is {teacher.config.hidden_size} wide, but the parent {model.config.hidden_size}; take one as wide"
            )
        guards.fits_parent(model, tokenizer, run.options.max_length)
        made = self.batches(run, rows, tokenizer, model)
        loss = Loss(teacher, {"text": 1.0, TEACHER: run.options.pull})
        trainer = ObjectiveTrainer(loss, model, arguments, made.collator, made.dataset, processing_class=tokenizer)
        fit(run, trainer, rows)
        hand_over(run, trainer, tokenizer, made.sample)


STAGE = Imitation

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))
