"""Arguments that are ignored, or mean something else here."""

from tests.zoo import fault


def option(key, value, says, story, stages="sft", plain=True):
    """Register a fault that is one option."""

    def plant(setup):
        setup.options[key] = value

    plant.__doc__, plant.__name__, plant.__module__ = story, f"{key} {value}", __name__
    fault(stages, says, plain)(plant)


option("fp16", True, "fp16", "The profile of a GPU is started on a CPU.", "sft dpo")
option("label_smoothing_factor", 0.1, "label_smoothing", "Known from translation; trl's losses don't read it.", "sft dpo")
option("label_smoothing", 0.1, "label_smoothing: unknown key", "An option of another method was carried over.", "kto", False)
option("fsdp", "full_shard", "fsdp", "The profile of eight GPUs is started on one process.", "sft")
option("deepspeed", "ds.json", "deepspeed", "A configuration that lies on another machine.", "sft")
option("learning_rte", 1e-3, "did you mean|learning_rte", "A typing error in a key.", "sft dpo pretrain", False)
option("max_length", 4096, "max_length", "The length of a larger model.", "sft dpo")
option("eval_steps", 10, "eval_steps", "Evaluation was to run, and its strategy is off.", "sft")
option("group_by_length", True, "group_by_length|unknown|did you mean", "An option of an older version.", "sft", False)
option("report_to", "wandb", "report_to|wandb", "A logger that is not installed.", "sft", False)
option("neftune_noise_alpha", -5, "neftune_noise_alpha", "A sign slipped in.", "sft")
option("seed", -1, "seed", "−1 was meant as a random one.", "sft")
option("desirable_weight", -1, "desirable_weight", "A sign slipped in.", "kto")
