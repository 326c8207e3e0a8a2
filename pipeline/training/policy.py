"""The trainer of stages that learn from rewards of what they sample themselves, beside a trainer of trl that samples.

Group-relative methods (RLOO, Ahmadian et al. 2024; GRPO, Shao et al. 2024) compare the answers to one prompt with each
other: a group whose rewards are all alike teaches nothing, and is counted.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather, gather_object
from transformers import GenerationConfig, TrainingArguments
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from pipeline.data import shown
from pipeline.data.batches import Batches, pad
from pipeline.data.image_inputs import PIXEL_COLUMN, ImageInputs, ImagePromptCollator, pixels_of_batch
from pipeline.data.tokens import pieces
from pipeline.data.types import Row
from pipeline.models.tokenization import render, stop_ids
from pipeline.rewards import Completion
from pipeline.rewards.mixture import Mixture
from pipeline.system.errors import UserError
from pipeline.training import guards, vision_language
from pipeline.training.chat import row_length
from pipeline.training.loop import prepare
from pipeline.training.trainer import StageTrainer

if TYPE_CHECKING:
    from pipeline.chain.run import Run
    from pipeline.data.recipe import Rows

PROMPT = "number"  # the column that says which row of the recipe a prompt is
FIRST = 256  # completions after which rewards must have differed within some group
COUNTS = ("completions", "truncated", "unscored", "groups", "alike_groups")


class PromptOrder(RepeatSampler):
    """trl's order of prompts, drawn for each epoch from (seed, epoch), so that a run that goes on in a later one draws the same.

    It takes 8 bytes for each prompt, where trl's lists take more than 50.
    """

    def __init__(self, arguments: Any, dataset: Any) -> None:
        self.first = int(arguments.seed)
        super().__init__(
            dataset, mini_repeat_count=arguments.num_generations, batch_size=arguments.generation_batch_size // arguments.num_generations,
            repeat_count=arguments.num_iterations * arguments.steps_per_generation, shuffle=arguments.shuffle_dataset, seed=arguments.seed,
        )  # fmt: skip

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch."""
        if self.shuffle:
            self.generator.manual_seed(self.first + epoch)

    def __iter__(self) -> Iterator[int]:
        """Yield what trl's sampler yields."""
        number = self.num_samples
        order = torch.randperm(number, generator=self.generator) if self.shuffle else torch.arange(number)
        for start in range(0, number - number % self.batch_size, self.batch_size):
            chunk = order[start : start + self.batch_size].tolist()
            for _ in range(self.repeat_count):
                for index in chunk:
                    yield from itertools.repeat(index, self.mini_repeat_count)


def prompts(
    run: Run, rows: Rows, tokenizer: Any, model: Any, order: type[PromptOrder], image_inputs: ImageInputs | None = None
) -> Batches:
    """Return prompts that leave `max_completion_length` tokens for an answer; UserError where no position is left for one.

    `image_inputs`: what encodes their pictures, where the model reads any.
    """
    answer, whole = int(run.arguments["max_completion_length"]), row_length(run, model)
    if answer >= whole:
        raise UserError(f"max_completion_length: {answer} leaves no position for a prompt; the parent has {whole}")

    def encoded(part: Rows) -> Iterator[dict[str, Any]]:
        return pieces(
            part.kept,
            lambda row: vision_language.add_images(
                image_inputs, row, {"input_ids": render(tokenizer, row["prompt"], answer_next=True)}
            ),
            whole - answer,
            False,
            part.dropped_by_encoding,
            part.too_long,
        )

    dataset = prepare(run, rows, encoded, tokenizer, *vision_language.encoding_settings(image_inputs, whole - answer))
    guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
    shown.asked(rows.kept, tokenizer)
    dataset = dataset.add_column(PROMPT, dataset.select_columns("row").with_format("numpy")[:]["row"])
    sample = vision_language.sample_columns(image_inputs, dataset[0], dataset[0]["input_ids"])
    collator: Any = partial(pad, pad_id=int(tokenizer.pad_token_id))
    return Batches(dataset, ImagePromptCollator(image_inputs, collator) if image_inputs else collator, sample, order)


class PromptTrainer(StageTrainer):
    """A StageTrainer beside a trainer of trl that samples answers: it gives it prompts that went through our template."""

    samples = True

    def __init__(self, *given: Any, rows: Sequence[Row], **named: Any) -> None:
        """`rows`: those of the recipe, in which each example's prompt stands."""
        self.rows = rows
        self._prompt_ids: list[list[int]] = []
        _sampling(next(one for one in (*given, *named.values()) if isinstance(one, TrainingArguments)))
        super().__init__(*given, **named)

    def _generate_and_score_completions(self, inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Give trl the conversation of each example, and see to it that the ids are those that were prepared."""
        self._prompt_ids = [list(item["input_ids"]) for item in inputs]
        return super()._generate_and_score_completions(  # type: ignore[misc]
            [{"prompt": self.rows[item[PROMPT]]["prompt"], PROMPT: item[PROMPT]} for item in inputs]
        )

    def _tokenize_prompts(self, prompts: Sequence[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return self._prompt_ids, None, {}

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Leave it to trl, which counts prompts and answers when it samples."""


class PolicyTrainer(PromptTrainer):
    """A PromptTrainer beside trl's RLOO or GRPO trainer: our rewards, pictures of prompts, and counts of what taught nothing."""

    progress = ("mean_reward", "kl_per_answer")
    args: Any  # of trl
    num_generations: int
    temperature: float
    _metrics: dict[str, dict[str, list[float]]]  # trl's, of what it logs next
    _buffered_inputs: list[dict[str, torch.Tensor]]  # trl's, of the newest generation, a batch for each backward pass
    _step: int  # trl's, backward passes so far

    def __init__(
        self,
        model: Any,
        rewards: Mixture,
        arguments: Any,
        rows: Sequence[Row],
        image_inputs: ImageInputs | None = None,
        **named: Any,
    ) -> None:
        """`rows`: those of the recipe, in which what rewards need stands, too; `image_inputs`: what makes a model's input of their pictures.

        Without an adapter the reference is a copy of the model as it is now; trl would read it from a path again.
        """
        self.rewards, self.image_inputs = rewards, image_inputs
        self._shown: dict[str, Any] = {}  # pictures of the prompts that are being answered
        self._since, self._before = Counter[str](), Counter[str]()  # since the last log, and before that
        self._failed = Counter[str]()  # failures that were logged
        self._updates = 0  # steps of the optimizer in an epoch
        beta = arguments.beta
        reference = None if named.get("peft_config") or not beta else copy.deepcopy(model)
        arguments.beta = 0.0 if reference is not None else beta
        super().__init__(model, [_unused], arguments, rows=rows, **named)
        if reference is not None:
            arguments.beta = self.beta = beta
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        self._stops = set(stop_ids(named["processing_class"]))

    def _generate_and_score_completions(self, inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Let trl sample and score with the pictures that were prepared, and keep them beside the answers, of which it makes batches."""
        self._shown = self.image_inputs.prompt_columns([item[PIXEL_COLUMN] for item in inputs]) if self.image_inputs else {}
        self._shown = {name: self._prepare_input(value) for name, value in self._shown.items()}
        found = super()._generate_and_score_completions(inputs)
        shown, self._shown = self._shown, {}
        return {**found, **shown}

    def _tokenize_prompts(self, prompts: Sequence[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return self._prompt_ids, None, {name: value for name, value in self._shown.items() if torch.is_tensor(value)}

    def _get_per_token_logps_and_entropies(self, *given: Any, **named: Any) -> Any:
        return super()._get_per_token_logps_and_entropies(*given, **{**named, **self._shown})  # type: ignore[misc]

    def _get_train_sampler(self, dataset: Any = None) -> PromptOrder:
        return PromptOrder(self.args, dataset if dataset is not None else self.train_dataset)

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        self._updates = named["num_update_steps_per_epoch"]
        super()._run_epoch(*arguments, **named)

    def resumes_exactly(self, step: int) -> bool:
        """Say whether new answers are sampled after this step; those that are sampled already aren't saved."""
        micro = step % max(self._updates, 1) * self.args.gradient_accumulation_steps
        return bool(micro % (self.args.steps_per_generation * self.args.num_iterations) == 0)

    def _calculate_rewards(
        self, inputs: Sequence[Mapping[str, Any]], prompts: Any, completions: Any, ids: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Return the reward of each completion on all processes, (completions, 1); NaN, whose advantage is 0, where it has none."""
        tokenizer: Any = self.processing_class
        made = [
            Completion(
                prompt=item["prompt"], text=str(tokenizer.decode(list(answer), skip_special_tokens=True)).strip(), ids=tuple(answer),
                prompt_ids=tuple(prompt), ended=answer[-1] in self._stops, row=self.rows[item[PROMPT]],
            )
            for item, prompt, answer in zip(inputs, self._prompt_ids, ids, strict=True)
        ]  # fmt: skip
        scores = [float("nan") if score is None else score for score in self.rewards.scores(made)]
        for name, found in self.rewards.last.items():
            if known := [score for score in found if score is not None]:
                self._metrics["train"][f"rewards/{name}"].append(sum(known) / len(known))
        truncated = [float(not one.ended) for one in made]
        read = [float(len(prompt)) for prompt in self._prompt_ids]
        gathered: torch.Tensor = gather(torch.tensor([scores, truncated, read], device=self.accelerator.device).T.contiguous())
        self._count(gathered)
        return gathered[:, :1].contiguous()

    def _count(self, found: torch.Tensor) -> None:
        """Count completions and groups; UserError where the first ones never differ within a group."""
        if not self._since and not self._before:
            self._before = totals(Path(self.args.output_dir))
        groups = found[:, 0].view(-1, self.num_generations)
        alike = sum(len(known := group[~group.isnan()]) < 2 or bool(known.max() == known.min()) for group in groups)
        self._since.update(
            completions=len(found), truncated=int(found[:, 1].sum()), unscored=int(found[:, 0].isnan().sum()), groups=len(groups),
            alike_groups=alike, prompt_tokens=int(found[:, 2].sum()),
        )  # fmt: skip
        seen = self._since + self._before
        if seen["completions"] >= FIRST and seen["groups"] == seen["alike_groups"]:
            why = f", and {seen['unscored']:,} got none" if seen["unscored"] else ""
            raise UserError(
                f"rewards: within each of the first {seen['groups']:,} groups all {self.num_generations} answers got the same reward{why}; "
                "there is nothing to learn: take a reward that tells answers of this model apart, or raise temperature or num_generations"
            )

    def log(self, logs: dict[str, float], *more: Any, **named: Any) -> None:
        """Add to a log of training what was counted since the one before, and trl's means under plain names."""
        if "loss" in logs:
            metrics, counted = self._metrics["train"], self._since
            found: dict[str, Any] = {name: counted[name] for name in COUNTS}
            once = self.args.gradient_accumulation_steps == self.args.steps_per_generation and self.args.num_iterations == 1
            found["prompt_tokens"] = (
                counted["prompt_tokens"] if once else None
            )  # else a step reads less or more than is sampled to
            if metrics.get("reward"):
                found["mean_reward"] = _mean(metrics["reward"])
            if metrics.get("kl"):
                found["kl_per_answer"] = _mean(metrics["kl"]) * _mean(metrics["completions/mean_length"])
            failed = self._gathered_failures()
            if new := failed - self._failed:
                found["failures"] = dict(new)
            self._before, self._since, self._failed = self._before + counted, Counter(), failed
            for name in [name for name in metrics if name.startswith("rewards/_unused")]:
                del metrics[name]
            logs |= found
        super().log(logs, *more, **named)

    def _gathered_failures(self) -> Counter[str]:
        """Return what no reward could be given for, on all processes."""
        if self.accelerator.num_processes == 1:
            return Counter(self.rewards.failures)
        return sum((Counter(one) for one in gather_object([dict(self.rewards.failures)])), Counter[str]())

    def floating_point_ops(self, inputs: Any) -> int:
        """Estimate the operations of an update, and of the passes over its answers before: sampling, old and reference log-probabilities."""
        batch = self._buffered_inputs[(self._step - 1) % self.args.steps_per_generation]
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        before = 2 + (self.beta != 0)
        return int(
            super().floating_point_ops({"input_ids": ids, **pixels_of_batch(batch)})
            * (1 + before / 3 / self.args.num_iterations)
        )


def _sampling(arguments: Any) -> None:
    """Raise UserError for keys of the sampling that the library passes over, and for a range without any number in it."""
    known = vars(GenerationConfig()).keys()
    faults = [
        f"generation_kwargs: {key}: no key of transformers.GenerationConfig"
        for key in arguments.generation_kwargs or {}
        if key not in known
    ]
    low, high = getattr(arguments, "reward_clip_range", None) or (0.0, 1.0)
    if low >= high:
        faults.append(
            f"reward_clip_range: [{low:g}, {high:g}]: the first number must be below the second, or all rewards are the same"
        )
    if faults:
        raise UserError(*faults)


def _unused(**_: Any) -> list[None]:
    """Stand for the reward function that trl asks for; `_calculate_rewards` asks the mixture instead."""
    raise AssertionError("never called")


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def totals(output: Path) -> Counter[str]:
    """Return what a node's log counted over all its steps, and its failures by name and reason."""
    found, log = Counter[str](), output / "log.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        entry = json.loads(line)
        found.update({name: entry[name] for name in COUNTS if name in entry})
        found.update(entry.get("failures", {}))
    return found
