"""Settings under which nothing can move, or everything is wrecked."""

from tests.zoo import chosen

option = chosen(__name__)
option("sft dpo pretrain", "learning_rate: ", "A schedule was switched off by its rate.", learning_rate=0)
option("sft finetune", "learning_rate: ", "A sign slipped in from a formula.", learning_rate=-1e-3)
option("sft dpo", "moved no weight", "An exponent has a digit too many.", learning_rate=1e-30)
option("sft pretrain", "learning_rate|worse|not finite|unlikely", "The rate of another optimizer was kept.", learning_rate=0.9)
option(
    "sft finetune",
    "no step would be trained",
    "A trial run was to stop right away, and the setting stayed.",
    num_train_epochs=0,
)
option("sft", "no step would be trained", "0 was meant as no limit.", max_steps=0)
option("sft dpo", "clipped away", "A tolerance was typed into the wrong line.", max_grad_norm=1e-12)
option("sft", "weight_decay: ", "A sign slipped in.", weight_decay=-0.1)
option("sft", "weight_decay: ", "A percentage was typed where a share is expected.", weight_decay=50)
option("sft", "adam_beta2: ", "One was rounded up.", adam_beta2=1.0)
option("sft", "adam_epsilon: ", "An exponent was lost.", adam_epsilon=1)
option("sft dpo pretrain", "are not over within", "The warm-up of a large run was kept for a small one.", warmup_steps=10_000)
option("sft", "gradient_accumulation_steps: ", "0 was meant as off.", gradient_accumulation_steps=0)
option("sft", "per_device_train_batch_size: ", "0 was meant as automatic.", per_device_train_batch_size=0)
option("sft", "per_device_train_batch_size: ", "A sign slipped in.", per_device_train_batch_size=-4)
option("sft dpo", "lora_alpha: ", "0 was meant as no scaling.", lora_alpha=0)
option("sft", "r: ", "0 was meant as full training.", r=0)
option("sft", "lora_dropout: ", "A share was read as a switch.", lora_dropout=1.0)
option("dpo", "beta: |likelihood|unlikely|coin", "The pull to the parent was to be switched off.", beta=0)
option("dpo kto", "beta: ", "A sign slipped in, and the rejected side is preferred.", beta=-0.1)
option("sft", "target_modules", "The names of another architecture's layers.", target_modules="nothing")
option("sft dpo", "v_prjo", "A letter slipped in one of the names of layers.", plain=False, target_modules="[q_proj, v_prjo]")
option("dpo", "label_smoothing: ", "Half of the labels wrong: the loss has no gradient left.", label_smoothing=0.5)
option("sft", "lr_scheduler_type", "A typing error.", lr_scheduler_type="lineer")
option("sft dpo", "max_length|no row is left", "Characters were meant in thousands.", max_length=4)
option(
    "rlhf reward distill self_train kto",
    "learning_rate",
    "A schedule was switched off by its rate.",
    plain=False,
    learning_rate=0,
)
option(
    "rlhf",
    "nothing to learn",
    "The pattern of a reward has a typing error, so every answer gets 0.",
    name="a reward that nothing gets",
    plain=False,
    rewards={"regex": {"weight": 1, "pattern": "zzzqqq"}},
)
option(
    "rlhf",
    "nothing to learn",
    "A temperature near 0 makes all answers to a prompt the same.",
    name="sampling without chance",
    plain=False,
    temperature=1e-6,
)
option(
    "kto",
    "desirable_weight|moved no weight",
    "Both kinds of thumbs were switched off one after the other.",
    plain=False,
    desirable_weight=0,
    undesirable_weight=0,
)
option(
    "sft dpo finetune",
    "dataloader_drop_last",
    "The batch size of a large data set was kept for a small one.",
    plain=False,
    dataloader_drop_last=True,
    per_device_train_batch_size=4000,
)
option("sft finetune", "moved no weight", "An exponent has a digit too many.", plain=False, learning_rate=1e-9)
option("sft", "lora_alpha|rose from|not finite", "A scale was typed in another unit.", plain=False, lora_alpha=1000000)
option("distill", "temperature", "Soft targets without any difference left.", plain=False, temperature=1e6)
option("sft", "adam_beta1: ", "One was rounded up.", adam_beta1=1.0)
option("sft", "max_grad_norm: ", "-1 was meant as off.", max_grad_norm=-1)
option("sft", "warmup_steps: ", "A sign slipped in.", warmup_steps=-5)
option("sft", "lora_alpha: ", "A sign slipped in.", lora_alpha=-16)
option("sft dpo", "max_length: ", "0 was meant as no limit.", max_length=0)
option("rlhf", "temperature: ", "A sign slipped in.", plain=False, temperature=-1.0)
option("rlhf", "at least 2 generations", "One answer has nothing to be compared with.", plain=False, num_generations=1)
option("rlhf", "max_completion_length: ", "0 was meant as no limit.", plain=False, max_completion_length=0)
option("finetune", "last_layers: ", "0 was meant as the head alone.", plain=False, strategy="last_n", last_layers=0)
option("distill", "soft_weight: ", "A share was typed as a factor.", plain=False, soft_weight=1.5)
option("distill", "temperature: ", "0 was meant as off.", plain=False, temperature=0)
option("pairs", "makes no pair", "One answer makes no pair.", plain=False, answers=1)
option("self_train", "nothing passed", "A threshold that no reward reaches.", plain=False, threshold=5.0)
option("self_train", "rounds: ", "0 was meant as one.", plain=False, rounds=0)
option("dpo", "so steep|beta: ", "An exponent slipped in.", beta=1e9)
option("kto", "so steep|beta: ", "An exponent slipped in.", beta=1e9)
option("rlhf", "beta: ", "An exponent slipped in.", plain=False, beta=1e9)
option(
    "dpo",
    "gives no weight a gradient|loss_weights",
    "The only loss was weighed down to nothing.",
    loss_type="sigmoid",
    loss_weights=[0.0],
)
option(
    "dpo", "loss_weights", "A sign slipped in, and the rejected side is preferred.", loss_type="sigmoid", loss_weights=[-1.0]
)
option("dpo", "ld_alpha", "A share was typed as a percentage.", ld_alpha=50)
option("kto", "desirable_weight", "A factor was meant as a share of a million.", desirable_weight=1e6)
option("reward", "center_rewards", "A penalty that drowns the preferences.", center_rewards_coefficient=1e6)
option("sft", "neftune_noise_alpha", "Noise in the units of another library.", neftune_noise_alpha=1000)
option(
    "sft",
    "learning_rate: ",
    "The decay is longer than the run, and the rate begins at its end.",
    lr_scheduler_type="warmup_stable_decay",
    lr_scheduler_kwargs={"num_decay_steps": 100_000},
)
option(
    "sft",
    "learning_rate: ",
    "The least rate of a schedule is above the greatest one.",
    lr_scheduler_type="cosine_with_min_lr",
    lr_scheduler_kwargs={"min_lr": 5.0},
)
option("sft", "num_train_epochs", "Steps were typed where epochs are expected.", plain=False, num_train_epochs=1_000_000)
option("sft", "are more than the", "The accumulation of a large data set.", plain=False, gradient_accumulation_steps=4096)
option("pretrain", "flops: ", "-1 was meant as no limit.", plain=False, flops=-1)
option("rlhf", "top_p: |min_p: ", "A share was typed as a percentage.", plain=False, min_p=5)
option("rlhf", "top_k: ", "-1 was meant as off.", plain=False, top_k=-1)
option("rlhf", "reward_clip_range: ", "The two ends of a range were exchanged.", plain=False, reward_clip_range=[1.0, -1.0])
option("rlhf", "top_entropy_quantile: ", "0 was meant as off.", plain=False, algorithm="grpo", top_entropy_quantile=0)
option(
    "finetune",
    "prompt_tokens: ",
    "Soft tokens that leave no room for a text.",
    plain=False,
    strategy="prompt",
    prompt_tokens=5000,
)
