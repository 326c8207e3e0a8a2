"""Settings under which nothing can move, or everything is wrecked."""

from tests.zoo import fault


def option(key, value, says, story, stages="sft", plain=True, name=""):
    """Register a fault that is one option."""

    def plant(setup):
        setup.options[key] = value

    plant.__doc__, plant.__name__, plant.__module__ = story, name or f"{key} {value}", __name__
    fault(stages, says, plain)(plant)


option("learning_rate", 0, "learning_rate: ", "A schedule was switched off by its rate.", "sft dpo pretrain")
option("learning_rate", -1e-3, "learning_rate: ", "A sign slipped in from a formula.", "sft finetune")
option("learning_rate", 1e-30, "moved no weight", "An exponent has a digit too many.", "sft dpo")
option(
    "learning_rate", 0.9, "learning_rate|worse|not finite|unlikely", "The rate of another optimizer was kept.", "sft pretrain"
)
option(
    "num_train_epochs",
    0,
    "no step would be trained",
    "A trial run was to stop right away, and the setting stayed.",
    "sft finetune",
)
option("max_steps", 0, "no step would be trained", "0 was meant as no limit.", "sft")
option("max_grad_norm", 1e-12, "clipped away", "A tolerance was typed into the wrong line.", "sft dpo")
option("weight_decay", -0.1, "weight_decay: ", "A sign slipped in.", "sft")
option("weight_decay", 50, "weight_decay: ", "A percentage was typed where a share is expected.", "sft")
option("adam_beta2", 1.0, "adam_beta2: ", "One was rounded up.", "sft")
option("adam_epsilon", 1, "adam_epsilon: ", "An exponent was lost.", "sft")
option(
    "warmup_steps", 10_000, "are not over within", "The warm-up of a large run was kept for a small one.", "sft dpo pretrain"
)
option("gradient_accumulation_steps", 0, "gradient_accumulation_steps: ", "0 was meant as off.", "sft")
option("per_device_train_batch_size", 0, "per_device_train_batch_size: ", "0 was meant as automatic.", "sft")
option("per_device_train_batch_size", -4, "per_device_train_batch_size: ", "A sign slipped in.", "sft")
option("lora_alpha", 0, "lora_alpha: ", "0 was meant as no scaling.", "sft dpo")
option("r", 0, "r: ", "0 was meant as full training.", "sft")
option("lora_dropout", 1.0, "lora_dropout: ", "A share was read as a switch.", "sft")
option("beta", 0, "beta: |likelihood|unlikely|coin", "The pull to the parent was to be switched off.", "dpo")
option("beta", -0.1, "beta: ", "A sign slipped in, and the rejected side is preferred.", "dpo kto")
option("target_modules", "nothing", "target_modules", "The names of another architecture's layers.", "sft")
option("target_modules", "[q_proj, v_prjo]", "v_prjo", "A letter slipped in one of the names of layers.", "sft dpo", False)
option("label_smoothing", 0.5, "label_smoothing: ", "Half of the labels wrong: the loss has no gradient left.", "dpo")
option("lr_scheduler_type", "lineer", "lr_scheduler_type", "A typing error.", "sft")
option("max_length", 4, "max_length|no row is left", "Characters were meant in thousands.", "sft dpo")
