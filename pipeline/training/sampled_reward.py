"""Rewards of sampled answers to held-out prompts, by the rewards that a node was trained with, beside the parent's."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import StageModel, Subject
from pipeline.models import parts
from pipeline.models.families import ANSWERING
from pipeline.rewards import Completion
from pipeline.rewards.mixture import Mixture
from pipeline.training import rewarded


class SampledReward(Evaluator):
    """Scores one sampled answer of each model to each held-out prompt."""

    reads, gives = "prompts", ANSWERING
    metrics = (
        Metric("sampled_reward", "mean reward of one sampled answer to each held-out prompt, by the rewards that the node was "
                                 "trained with", "score", "more"),
        Metric("ended", "share of sampled answers to held-out prompts that the model ended by itself", "share", "more"),
    )  # fmt: skip

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield both of every model that chats; prompts that no reward could be given for, with any of them, are left out."""
        rows, models = subject.rows, subject.chatting
        if not rows or not models:
            return
        mixture = Mixture(rewarded.parts(subject.finished.options, subject.finished.parents.get(rewarded.ROLE, "")))
        answers = {model.label: _answers(model, subject) for model in models}
        scores = {label: mixture.scores(found) for label, found in answers.items()}
        scored = [place for place in range(len(rows)) if all(found[place] is not None for found in scores.values())]
        if len(scored) < len(rows):
            subject.skipped["held-out prompts with an answer that could not be scored"] += len(rows) - len(scored)
        for label, found in scores.items():
            if scored:
                yield Measurement(label, "sampled_reward", share([float(found[place] or 0.0) for place in scored]))
            yield Measurement(label, "ended", share([float(one.ended) for one in answers[label]]))


def _answers(model: StageModel, subject: Subject) -> list[Completion]:
    settings, turns = subject.settings, [parts.filled(row["prompt"], row.get("images", ())) for row in subject.rows]
    replies = model.replies(turns, settings.max_new_tokens, settings.seed)
    prompts = [tuple(model.prompt(prompt)["input_ids"]) for prompt in turns]
    return [
        Completion(row["prompt"], str(reply), reply.ids, prompt, reply.ended, row)
        for row, prompt, reply in zip(subject.rows, prompts, replies, strict=True)
    ]
