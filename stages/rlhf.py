"""A chat model, prompts and rewards in, an aligned model out: reinforcement learning from its own answers.

    python stages/rlhf.py --config stages/profiles/feedback/rlhf.yaml --parent runs/tiny/sft --output runs/feedback/rlhf

`algorithm: rloo` (Ahmadian et al. 2024, eq. 7; every other key is one of trl.RLOOConfig) or `algorithm: grpo` (Shao et al.
2024, eq. 3; trl.GRPOConfig). Several answers to each prompt are sampled, without dropout, and compared with each other.
What they are worth is said by rules (`rewards: {judge: 1.0, length: {weight: 0.1}}`), by a trained model (`reward: NODE`,
a second parent), or by both, weighted. The reference of `beta`, by which an answer's KL is charged, is the parent.
A checkpoint or a stop waits until new answers are sampled, since only there a resume is exact.

`use_vllm` and its keys go to trl as they are, which also logs the gap between vLLM's log-probabilities and ours under
GRPO; with them it was never run here. With `tower: frozen` or `trained` the parent is a model that reads pictures, and
prompts may hold some; rewards are rules then, and vLLM, which would be asked without the pictures, is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Signature
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.training import rewarded, vision_language
from pipeline.training.rewarded import ROLE, UNREAD, RewardedStage, RewardOptions

_CLASSES = {"rloo": ("trl.RLOOConfig", "RLOOTrainer"), "grpo": ("trl.GRPOConfig", "GRPOTrainer")}


class RLHF(RewardedStage):
    """Raise the reward of sampled answers, held to the parent, and hand on a merged model."""

    title = "RLHF"
    about = "An aligned chat model: reinforcement learning (RLOO or GRPO) from rewards of its own answers."
    library = _CLASSES["rloo"][0]
    defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 1e-4, "beta": 0.05, "num_generations": 8, "max_completion_length": 256,
    }  # fmt: skip
    takes: ClassVar[dict[str, tuple[str, ...]]] = {**RewardedStage.takes, PARENT: ("causal", "vision_language")}
    ignores = UNREAD
    primary = (Against("win_rate", "even chances"), Against("sampled_reward", "parent"))

    @dataclass(frozen=True)
    class Options(RewardOptions, vision_language.TowerOptions):
        """Those of every chat stage, the rewards, and which method."""

        algorithm: Literal["rloo", "grpo"] = option("rloo", "rloo or grpo")

    def library_of(self, values: Mapping[str, Any]) -> str | None:
        """Return the configuration of the algorithm."""
        return _CLASSES.get(str(values.get("algorithm")), _CLASSES["rloo"])[0]

    def signature(self, options: Any) -> Signature:
        """Return what goes in and comes out; UserError where a rule is at fault, or dropout is asked for."""
        found = super().signature(options)
        if options.lora_dropout:
            raise UserError("lora_dropout: answers are sampled and learned from without dropout; leave it out")
        if options.tower and rewarded.needs_model(options):
            raise UserError(
                "rewards: a reward model reads no pictures, and tower says that prompts hold some; give rules alone"
            )
        plain = replace(found, takes={**found.takes, PARENT: ("causal",)})
        return vision_language.signature(options, plain) if options.tower else plain

    def note(self, options: Any) -> str:
        """Return why no token counts."""
        return (
            "Only prompts stand here, each once for every answer that is sampled to it. What is learned from are the answers, "
            "which are not written down."
        )

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return prompts that leave room for an answer, each as often as it is answered."""
        from pipeline.training.policy import PromptOrder, prompts

        return prompts(run, rows, tokenizer, model, PromptOrder, vision_language.load_image_inputs(run, model))

    def train(self, run: Run) -> None:
        """Sample, score and learn; the model without the adapter, or a frozen copy of it, is the reference."""
        import trl
        from transformers import set_seed

        from pipeline.models import checkpoint
        from pipeline.rewards.mixture import Mixture
        from pipeline.training import guards
        from pipeline.training.chat import open_parent
        from pipeline.training.loop import DEFAULTS, FORCED, fit, hand_over
        from pipeline.training.policy import PolicyTrainer, totals
        from pipeline.training.rollouts import no_dropout

        class Policy(PolicyTrainer, getattr(trl, _CLASSES[run.options.algorithm][1])):  # type: ignore[misc]
            """The algorithm's trainer of trl, with our prompts and rewards."""

        arguments = run.library_arguments(
            **DEFAULTS | vision_language.default_arguments(run.options) | run.arguments | FORCED | {"disable_dropout": True}
        )
        if arguments.sync_ref_model:
            raise UserError("sync_ref_model: the reference is the parent, which stays as it is; leave it out")
        vision_language.check_sampling(arguments, run.options)
        mixture = Mixture(rewarded.parts(run.options, run.parents.get(ROLE, "")))
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = open_parent(run)
        model = vision_language.build_model(run, tokenizer, model)
        vision_language.set_trainable(model, run.options)
        guards.ends(tokenizer)
        model.generation_config = checkpoint.generation(tokenizer)  # a new template brings an end token of its own
        made = self.batches(run, rows, tokenizer, model)
        image_inputs = vision_language.load_image_inputs(run, model)
        trainer = Policy(
            model, mixture, arguments, rows.kept, image_inputs, train_dataset=made.dataset, processing_class=tokenizer,
            peft_config=vision_language.adapter(model, run.options, ()),
        )  # fmt: skip
        with no_dropout(trainer.model):
            fit(run, trainer, rows)
        run.record["rollouts"] = dict(totals(run.output))
        hand_over(run, trainer, tokenizer, made.sample, vision_language.save_function(image_inputs))


STAGE = RLHF

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))
