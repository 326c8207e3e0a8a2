"""Distillation: a student learns its teacher's distribution of every next token, on given rows or on its own answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import kl_div, log_softmax, pad
from torch.utils.checkpoint import checkpoint as recomputed
from transformers import AutoModelForCausalLM
from trl import DistillationTrainer
from trl.trainer.utils import RepeatSampler

from pipeline.data.types import Row
from pipeline.models import build, checkpoint, tokenization
from pipeline.models.logits import IGNORED, at, num_targets, summed
from pipeline.system.errors import UserError
from pipeline.training import guards
from pipeline.training.loop import passes
from pipeline.training.policy import PromptOrder, PromptTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.chain.run import Run

TEACHER = "teacher"  # the role; also the part of the loss that its distributions are
_AT_ONCE = 2**24  # logits whose probabilities are held at the same time
_KEPT = 2**30  # bytes of a teacher's logits that are kept, at most


def divergence(student: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float) -> torch.Tensor:
    """Return the sum over positions of the generalised Jensen-Shannon divergence of two distributions, in nats.

    `student`, `teacher`: logits, (positions, vocabulary). Agarwal et al. 2024, eq. 1, with M = β teacher + (1 − β) student:
    β KL(teacher ‖ M) + (1 − β) KL(student ‖ M); at its ends the limits that trl takes, too: β 0 is KL(teacher ‖ student), as
    Hinton et al. 2015 have it, β 1 is KL(student ‖ teacher), as in MiniLLM (Gu et al. 2024, eq. 1).
    """
    ours, theirs = (log_softmax(logits.float() / temperature, -1) for logits in (student, teacher))
    if beta in (0.0, 1.0):
        return _kl(ours, theirs) if beta else _kl(theirs, ours)
    share = torch.tensor(beta, device=ours.device)
    mixture = torch.logaddexp(ours + (1 - share).log(), theirs + share.log())
    return beta * _kl(theirs, mixture) + (1 - beta) * _kl(ours, mixture)


def _kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return Σ KL(one ‖ other) of log-probabilities."""
    return kl_div(other, one, reduction="sum", log_target=True)


@dataclass
class SoftTargets:
    """The loss over given rows: soft_weight · T² · divergence + (1 − soft_weight) · −log p of the tokens (Hinton et al. 2015).

    The factor T² keeps the size of the gradient whatever the temperature T (their section 2.1). The teacher, frozen and
    without dropout, is asked only where there are targets, and not at all with weight 0. With `keeps` it is asked once about
    each row, by itself, so that what it says does not depend on the rows beside it and a run that goes on hears the same.
    """

    teacher: Any
    tokens: int  # of the vocabulary; both models may have more rows than that
    soft_weight: float
    beta: float
    temperature: float
    keeps: bool = False
    kept: dict[bytes, torch.Tensor] = field(default_factory=dict)

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the parts of the loss that weigh anything."""
        found = {TEACHER: self.soft_weight * self.temperature**2, "text": 1 - self.soft_weight}
        return {part: weight for part, weight in found.items() if weight}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of targets, which is that of both parts."""
        return dict.fromkeys(self.weights, num_targets(batch["labels"][:, 1:]))

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sums of the parts over the targets."""
        following = pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        positions = following != IGNORED
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits, found = _logits(model, inputs, positions)[:, : self.tokens], {}
        if TEACHER in self.weights:
            taught = self._remembered if self.keeps else self._taught
            found[TEACHER] = self._chunked(logits, taught(inputs, positions))
        if "text" in self.weights:
            found["text"] = summed(logits, following[positions])
        return found

    @torch.no_grad()
    def _taught(self, inputs: Mapping[str, Any], positions: torch.Tensor) -> torch.Tensor:
        """Return the teacher's logits at positions, (positions, vocabulary)."""
        return _logits(self.teacher, inputs, positions)[:, : self.tokens]

    def _remembered(self, inputs: Mapping[str, Any], positions: torch.Tensor) -> torch.Tensor:
        """Return the teacher's logits, from memory where it was asked about a row before."""
        found = []
        for place, targets in enumerate(positions):
            if not targets.any():
                continue
            end = int(targets.nonzero()[-1]) + 1  # a causal model does not see what comes after it, such as padding
            row = {key: value[place : place + 1, :end] for key, value in inputs.items()}
            key = b"".join(column.cpu().numpy().tobytes() for column in (*row.values(), targets[:end]))
            if key not in self.kept:
                self.kept[key] = self._taught(row, targets[None, :end]).float().cpu()
            found.append(self.kept[key].to(positions.device))
        return torch.cat(found) if found else self._taught(inputs, positions)

    def _chunked(self, logits: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Return the divergence; of many logits piece by piece, with probabilities computed again on the way back."""
        rows = max(1, _AT_ONCE // self.tokens)
        if len(logits) <= rows:
            return divergence(logits, theirs, self.beta, self.temperature)
        pairs = zip(logits.split(rows), theirs.split(rows), strict=True)
        parts = [recomputed(divergence, *pair, self.beta, self.temperature, use_reentrant=False) for pair in pairs]
        return torch.stack(parts).sum()


def _logits(model: Any, inputs: Mapping[str, Any], positions: torch.Tensor) -> torch.Tensor:
    with at(model, positions):
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits


def kept(dataset: Any, tokens: int, arguments: Any) -> bool:
    """Say whether a teacher's logits are kept: rows are read more than once, and those at all targets take a GiB at most."""
    if passes(arguments, len(dataset)) <= 1:
        return False
    left = _KEPT // (4 * tokens)
    for labels in dataset["labels"]:
        left -= sum(label != IGNORED for label in labels)
        if left < 0:
            return False
    return True


class AnswerOrder(PromptOrder):
    """The order of prompts, each of which is answered once."""

    def __init__(self, arguments: Any, dataset: Any) -> None:
        self.first = int(arguments.seed)
        repeats = arguments.gradient_accumulation_steps
        size = arguments.per_device_train_batch_size * arguments.world_size * repeats
        RepeatSampler.__init__(
            self, dataset, mini_repeat_count=1, batch_size=size, repeat_count=repeats, shuffle=arguments.shuffle_dataset,
            seed=arguments.seed,
        )  # fmt: skip


class AnswersTrainer(PromptTrainer, DistillationTrainer):
    """trl's on-policy trainer (Agarwal et al. 2024, eq. 3) on prompts that went through our template, with counts of answers."""

    def __init__(self, model: Any, teacher: Any, arguments: Any, rows: Sequence[Row], **named: Any) -> None:
        """`rows`: those of the recipe."""
        self._since = Counter[str]()  # since the last log
        super().__init__(model, teacher, arguments, rows=rows, **named)

    def _get_train_sampler(self, dataset: Any = None) -> AnswerOrder:
        return AnswerOrder(self.args, dataset if dataset is not None else self.train_dataset)

    def _generate(self, prompts: list[Any]) -> Any:
        """Sample an answer to each prompt, and count them and those that were cut."""
        found = super()._generate(prompts)
        counted = [[len(found[1]), sum(ids[-1] not in self.eos_token_ids for ids in found[1]), sum(map(len, found[0]))]]
        counts = self.accelerator.gather(torch.tensor(counted, device=self.accelerator.device)).sum(0).tolist()
        self._since.update(dict(zip(("completions", "truncated", "prompt_tokens"), counts, strict=True)))
        return found

    def log(self, logs: dict[str, float], *more: Any, **named: Any) -> None:
        """Add to a log of training what was counted since the one before."""
        if "loss" in logs:
            logs |= {name: self._since[name] for name in ("completions", "truncated", "prompt_tokens")}
            self._since.clear()
        super().log(logs, *more, **named)

    def floating_point_ops(self, inputs: Any) -> int:
        """Estimate the operations of a step of the student and of its sampling; the teacher's pass is not in it."""
        assert self._buffered_inputs
        batch = self._buffered_inputs[(self._step - 1) % self.args.gradient_accumulation_steps]
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        return int(super().floating_point_ops({"input_ids": ids}) * 4 / 3)


def same_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, chats: bool) -> None:
    """Raise UserError where a token is not the same thing to both, or, with `chats`, a conversation isn't."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        apart = sum(theirs.get(token) != number for token, number in ours.items())
        raise UserError(
            f"--{TEACHER}: its tokenizer is another: {apart:,} of the student's {len(ours):,} tokens are not the same there, which has "
            f"{len(theirs):,}; soft targets need one vocabulary. Take a teacher with the student's tokenizer, or leave out --parent: "
            "a new student takes the teacher's"
        )
    if chats and not teacher.chat_template:
        raise UserError(
            f"--{TEACHER}: has no chat template, so it never learned to answer; take a chat model, or set reads: text"
        )
    if chats and student.chat_template not in (None, teacher.chat_template):
        raise UserError(
            f"--{TEACHER}: its chat template is another than the student's; take a teacher that was trained with the same one"
        )


def opened(run: Run, arguments: Any) -> tuple[PreTrainedTokenizerBase, Any, Any]:
    """Return tokenizer, student and frozen teacher, which lies on the device, in bf16 where the student computes in it.

    Raises UserError where they don't share a vocabulary, or where rows would be longer than either can read.
    """
    options, chats = run.options, run.options.reads != "text"
    theirs = tokenization.load(run.parents[TEACHER], TEACHER)
    teacher = checkpoint.load(run.parents[TEACHER], TEACHER)
    guards.fits_parent(teacher, theirs, options.max_length, TEACHER)
    if run.parent:
        if options.student:
            raise UserError("student: --parent has its own sizes; leave out one of the two")
        tokenizer, student = tokenization.load(run.parent), checkpoint.load(run.parent)
        guards.fits_parent(student, tokenizer, options.max_length)
    else:
        if options.method != "full":
            raise UserError(
                f"method: {options.method} would leave a new student's random weights as they are; set method: full"
            )
        tokenizer, student = (
            theirs,
            AutoModelForCausalLM.from_config(build.resized(teacher.config, options.student), trust_remote_code=False),
        )
        student.config.use_cache = False
        guards.fits_parent(student, tokenizer, options.max_length, "student")
    same_tokens(tokenizer, theirs, chats)
    if chats:
        tokenizer.chat_template = theirs.chat_template
        student.generation_config = checkpoint.generation(tokenizer)
    run.say(
        f"student of {student.num_parameters():,} parameters, {student.num_parameters() / teacher.num_parameters():.1%} of the "
        f"teacher's {teacher.num_parameters():,}"
    )
    teacher = teacher.eval().requires_grad_(False).to(arguments.device, torch.bfloat16 if arguments.bf16 else torch.float32)
    return tokenizer, student, teacher


def adapted(student: Any, adapter: Any) -> Any:
    """Return the student, with an adapter where one is trained."""
    if adapter is None:
        return student
    from peft import get_peft_model

    return get_peft_model(student, adapter)
