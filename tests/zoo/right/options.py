"""Options that are unusual and right."""

from tests.zoo import correct


def options(stages, **given):
    """Register a setup that is right and has other options."""

    def plant(setup):
        setup.options |= given

    plant.__doc__, plant.__name__, plant.__module__ = (
        "Options.",
        ", ".join(f"{key} {value}" for key, value in given.items()),
        __name__,
    )
    correct(stages)(plant)


options("sft dpo kto reward", method="full")
options("sft", lr_scheduler_type="constant")
options("sft", gradient_accumulation_steps=4, per_device_train_batch_size=1)
options("sft", num_train_epochs=0.5)
options("sft", max_grad_norm=0)
options("sft", optim="adafactor")
options("sft", weight_decay=0.3, adam_beta2=0.95)
options("sft", learning_rate=1e-6)
options("sft", warmup_steps=3)
options("sft", init="random", method="full")
options("sft dpo", use_dora=True)
options("sft", gradient_checkpointing=True)
options("dpo", loss_type="ipo")
options("dpo", loss_type="hinge")
options("dpo", beta=2.0)
options("dpo", loss_type="robust", label_smoothing=0.1)
options("sft", optim="sgd", learning_rate=0.5, max_grad_norm=0)
options("sft", optim="adafactor", lr_scheduler_type="cosine")
options("sft dpo", target_modules="[q_proj, v_proj]", r=2)
options("sft", loss_type="dft")
options("sft dpo", dataloader_drop_last=True)
options("reward", center_rewards_coefficient=0.01)
options("kto", desirable_weight=1.5)
options("rlhf", algorithm="grpo")
options("rlhf", beta=0)
options("rlhf", method="full")
options("pairs", answers=6)
options("self_train", rounds=2)
options("distill", soft_weight=0.5, temperature=2.0)
options("distill", beta=1.0)
options("finetune", strategy="last_n", last_layers=1)
options("finetune", init="random")
options("finetune", strategy="frozen")
options("finetune", strategy="lora")
options("pretrain", objective="mlm")
options("pretrain", objective="rtd")
options("pretrain", objective="span_corruption")
options("pretrain", objective="contrastive")


@correct("dpo")
def the_likelihood_beside_the_pairs(setup):
    """Two losses, weighed."""
    setup.options |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]}


for objective in ("mlm_nsp", "mlm_sop", "denoising", "cbow", "skipgram"):
    options("pretrain", objective=objective)
options("pretrain", hidden_size=40, num_attention_heads=5, num_hidden_layers=1, vocab_size=263, per_device_train_batch_size=7)
options("pretrain", max_length=9)
options("sft", max_length=61, per_device_train_batch_size=3, gradient_accumulation_steps=2)
options("sft", lr_scheduler_type="constant_with_warmup", warmup_steps=3)
options("sft", lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 1e-5})
options("sft", lr_scheduler_type="inverse_sqrt", warmup_steps=0.1)
options("sft", save_strategy="epoch", save_total_limit=1, logging_strategy="epoch")
options("sft", dataloader_num_workers=1, dataloader_persistent_workers=True)
options("sft", neftune_noise_alpha=5)
options("sft", gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
options("sft", learning_rate=2e-2, r=1, lora_alpha=1)
options("sft", target_modules="all-linear", use_rslora=True, r=32)
options("kto", loss_type="apo_zero_unpaired")
options("kto", undesirable_weight=0)
options("dpo", beta=10)
options("dpo", beta=0.01, loss_type="apo_zero")
options("dpo", precompute_ref_log_probs=False)
options("rlhf", algorithm="grpo", loss_type="dr_grpo", scale_rewards="none")
options("rlhf", temperature=0.7, top_p=0.9)
options("finetune", patience=2, validation=0.2)
options("finetune", strategy="prompt", prompt_tokens=5)
options("self_train", method="full")
