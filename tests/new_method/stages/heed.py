"""A chat model and opinions in, an aligned model out: KTO (Ethayarajh et al. 2024) by trl's trainer."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import Against, Stage
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.training.chat import ChatOptions


class Heeding(Stage):
    """Heed what was liked."""

    title = "Heeding"
    about = "A chat model that heeds opinions."
    reads = "opinions"
    library = "trl.KTOConfig"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 1e-3}
    primary = (Against("win_rate", "even chances"),)
    Options = ChatOptions

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return answers, each beside that of the row before it, from which the trainer estimates a divergence."""
        from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

        from pipeline.data import tokens
        from pipeline.training import guards
        from pipeline.training.chat import row_length
        from pipeline.training.loop import prepare

        longest = row_length(run, model)

        def encoded(row: Row) -> tokens.Tokens:
            found = tokens.encode_messages(row["prompt"] + row["completion"], tokenizer)
            targets = [at for at, label in enumerate(found["labels"]) if label != tokens.IGNORED]
            ids = found["input_ids"][: targets[-1] + 1]  # a template may put more after the end of an answer
            return {"input_ids": ids, "liked": int(row["liked"]), "start": targets[0]}

        examples = list(tokens.pieces(rows.kept, encoded, longest, False, rows.dropped_by_encoding))
        for before, example in zip([examples[-1], *examples], list(examples), strict=False):
            ids, start, last = before["input_ids"], before["start"], example["start"]
            example |= {"prompt_ids": example["input_ids"][:last], "completion_ids": example["input_ids"][last:]}
            example |= {"KL_completion_ids": ids[start:], "label": example.pop("liked")}
        kept = ("prompt_ids", "completion_ids", "KL_completion_ids", "label", "row")
        dataset = prepare(run, rows, ({key: example[key] for key in kept} for example in examples))
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        sample = {"input_ids": dataset[0]["prompt_ids"] + dataset[0]["completion_ids"]}
        return Batches(dataset, DataCollatorForUnpairedPreference(int(tokenizer.pad_token_id), longest), sample)

    def train(self, run: Run) -> None:
        """Train the adapter."""
        from transformers import set_seed
        from trl import KTOTrainer

        from pipeline.training.chat import open_parent, row_length
        from pipeline.training.loop import DEFAULTS, FORCED, fit, hand_over
        from pipeline.training.trainer import StageTrainer

        class Opinions(StageTrainer, KTOTrainer):
            """trl's trainer on rows that went through our chat template already."""

            def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
                return dataset

        arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = open_parent(run)
        arguments.max_length = row_length(run, model)
        made = self.batches(run, rows, tokenizer, model)
        trainer = Opinions(
            model,
            args=arguments,
            data_collator=made.collator,
            train_dataset=made.dataset,
            processing_class=tokenizer,
            peft_config=run.options.adapter(),
        )
        fit(run, trainer, rows)
        hand_over(run, trainer, tokenizer, made.sample)


STAGE = Heeding

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))
