"""Keys of the libraries' classes that mean nothing here, can only wreck a run, or are read only together with another key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.system.optimizers import MUON

# What the stage itself decides. A profile that sets one of these would be ignored or would break the chain.
RESERVED = {
    "output_dir": "use --output",
    "resume_from_checkpoint": "a half-finished stage goes on by itself",
    "ignore_data_skip": "a stage that goes on skips what it has read",
    "save_only_model": "a checkpoint without its optimizer resumes to other weights",
    "enable_jit_checkpoint": "a stage saves by itself when it is asked to stop, at the end of a step",
    "eval_strategy": "a node is measured when it is done; set patience where a stage has that option",
    "eval_steps": "a node is measured when it is done",
    "eval_delay": "a node is measured when it is done",
    "eval_on_start": "a node is measured when it is done",
    "load_best_model_at_end": "use patience",
    **dict.fromkeys(
        (
            "per_device_eval_batch_size",
            "eval_accumulation_steps",
            "bf16_full_eval",
            "fp16_full_eval",
            "batch_eval_metrics",
            "prediction_loss_only",
            "greater_is_better",
            "do_eval",
            "do_predict",
            "include_for_metrics",
            "eval_on_each_node",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_packing",
            "num_generations_eval",
        ),
        "nothing is evaluated while a stage trains; a node is measured when it is done",
    ),
    **dict.fromkeys(
        ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
        "a stage never pushes while it trains; use make push HUB=namespace/name",
    ),
    "do_train": "a stage always trains",
    "reward_weights": "write each weight beside its reward, `rewards: {NAME: 0.5}`",
    "metric_for_best_model": "a task names its own figure",
    "push_to_hub": "a stage never pushes while it trains",
    "hub_token": "the token comes from the environment or the hub login",
    "token": "the token comes from the environment or the hub login",
    "dataset_text_field": "the recipe names the type of its rows",
    "dataset_kwargs": "rows are prepared by the recipe",
    "assistant_only_loss": "SFT always trains on the assistant's tokens alone",
    "completion_only_loss": "SFT always trains on the assistant's tokens alone",
    "chat_template_path": "use chat_template",
    "packing": "rows are packed wherever the model keeps documents apart",
    "packing_strategy": "rows are packed by best fit",
    "padding_free": "rows are packed row by row",
    "model_init_kwargs": "the model comes from --parent",
    "truncation_mode": "rows longer than max_length are dropped and counted",
    "remove_unused_columns": "the collator needs every column",
    "label_names": "the collator names its labels",
    "length_column_name": "lengths stand in the column `length`",
    "disable_tqdm": "a stage shows its progress by itself",
    "include_num_input_tokens_seen": "tokens are always counted, without padding",
    "logging_nan_inf_filter": "a loss that is not finite always ends the stage",
    "restore_callback_states_from_checkpoint": "a half-finished stage goes on by itself",
    "average_tokens_across_devices": "a loss is always an average over the tokens of all processes",
    "auto_find_batch_size": "the batch size is a part of what is trained; lower per_device_train_batch_size, raise gradient_accumulation_steps",
    "use_cache": "documents in one row would see each other through it",
    "local_rank": "the launcher says it",
    "accelerator_config": "other keys decide which rows a batch has and in which order",
    "cast_lm_head_to_fp32": "weights are in fp32 already",
    "trust_remote_code": "code of a model's own is never run",
    "dataset_num_proc": "rows are prepared by the recipe",
    "max_tool_calling_iterations": "answers are sampled without tools",
    "multi_objective_aggregation": "rewards are added up by their weights",
    "log_completions_hub_repo": "a stage never pushes while it trains; use make push HUB=namespace/name",
    **dict.fromkeys(("eos_token", "pad_token"), "the parent's tokenizer says which token it is"),
    **dict.fromkeys(
        ("teacher_model_name_or_path", "teacher_model_revision", "teacher_model_init_kwargs"),
        "name the model as a parent, `teacher: NODE`",
    ),
}


_SIZE = (lambda value: value >= 0, "expected at least 0")
_SHARE = (lambda value: 0 <= value < 1, "expected a number from 0 to below 1")
_PART = (lambda value: 0 <= value <= 1, "expected a number from 0 to 1")
_COUNT = (lambda value: value >= 1, "expected at least 1")
_MORE = (lambda value: value > 0, "expected more than 0")
_SEED = (lambda value: 0 <= value < 2**32, "expected a number from 0 to below 2**32")
# Values that a library takes and under which no weight changes, or none is left whole: key → what fits, and why others don't.
SENSIBLE: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (lambda value: 0 < value <= 1, "no weight changes at 0 or below, and above 1 all are wrecked"),
    "num_train_epochs": (lambda value: 0 < value <= 1e5, "expected more than 0, at which no step would be trained, and at most 100,000"),
    "max_steps": (lambda value: value == -1 or value >= 1, "no step would be trained; -1 means that the epochs decide"),
    "max_grad_norm": (lambda value: value == 0 or value >= 1e-6, "every gradient would be clipped away; 0 clips none"),
    "adam_beta1": _SHARE, "adam_beta2": _SHARE, "label_smoothing_factor": _SHARE,
    "weight_decay": _SHARE,
    "adam_epsilon": (lambda value: 0 < value < 1e-2, "expected a number above 0 and below 0.01, which would hide the gradients"),
    "warmup_steps": _SIZE, "beta": (lambda value: 0 <= value <= 1000, "expected a number from 0 to 1000, above which nothing but the pull to the parent is left"), "logging_steps": _MORE,
    "per_device_train_batch_size": _COUNT, "gradient_accumulation_steps": _COUNT, "num_generations": _COUNT,
    "desirable_weight": _SIZE, "undesirable_weight": _SIZE, "neftune_noise_alpha": (lambda value: 0 <= value <= 100, "expected at least 0 and at most 100, where nothing but noise is left"),
    "seed": _SEED,
    "center_rewards_coefficient": (lambda value: 0 <= value <= 10, "expected a number from 0 to 10, above which the preferences count for nothing"), "num_iterations": _COUNT, "steps_per_generation": _COUNT, "epsilon": _SIZE, "rpo_alpha": _SIZE,
    "top_p": (lambda value: 0 < value <= 1, "expected a number above 0 and at most 1"),
    "repetition_penalty": _MORE,
    "max_completion_length": _COUNT, "generation_batch_size": _COUNT, "top_k": _SIZE, "min_p": _PART,
    "temperature": (lambda value: value >= 0.01, "expected at least 0.01, below which all answers to a prompt are the same and there is nothing to learn"),
    "save_steps": _MORE, "save_total_limit": _COUNT, "dataloader_num_workers": _SIZE,
    "dataloader_prefetch_factor": _COUNT, "torch_empty_cache_steps": _COUNT, "pad_to_multiple_of": _COUNT,
    "data_seed": _SEED, "ddp_timeout": _COUNT, "ddp_bucket_cap_mb": _COUNT, "precompute_ref_batch_size": _COUNT,
    "ref_model_sync_steps": _COUNT, "ref_model_mixup_alpha": _PART, "ld_alpha": _PART, "discopop_tau": _MORE, "epsilon_high": _SIZE,
    "delta": _MORE, "top_entropy_quantile": (lambda value: 0 < value <= 1, "expected a number above 0 and at most 1"), "loss_weights": _SIZE, "entropy_coef": _SIZE, "sapo_temperature_neg": _MORE, "sapo_temperature_pos": _MORE,
    "router_aux_loss_coef": _SIZE, "off_policy_mask_threshold": _SIZE, "num_completions_to_print": _COUNT,
}  # fmt: skip


_ADAM = re.compile(f"adam|lion|ademamix|lomo|{MUON}", re.IGNORECASE)
Read = Callable[[str], str]  # key → the value that it has, as text
# Keys that a library reads only together with others: key, as a pattern → whether it is read, and where that is so.
NEEDS: dict[str, tuple[Callable[[Read], bool], str]] = {
    "optim_target_modules": (lambda read: read("optim").startswith(("galore", "apollo")), "an optim of GaLore or APOLLO"),
    "optim_args": (lambda read: not read("optim").startswith(("adamw_torch", "adamw_apex", "adafactor", MUON)), "an optim that has arguments of its own"),
    "adam_.*": (lambda read: bool(_ADAM.search(read("optim"))), "an optim of Adam's kind"),
    "warmup_steps": (lambda read: read("lr_scheduler_type") != "constant", "a schedule that warms up; constant does not, constant_with_warmup does"),
    "lr_scheduler_kwargs": (lambda read: not read("lr_scheduler_type").startswith("constant"), "a schedule that has arguments; constant has none"),
    "vllm_.*": (lambda read: read("use_vllm") == "True", "use_vllm: true"),
    "(gradient|activation)_checkpointing_kwargs": (lambda read: "True" in (read("gradient_checkpointing"), read("activation_checkpointing")), "gradient_checkpointing: true"),
    "liger_kernel_config": (lambda read: read("use_liger_kernel") == "True", "use_liger_kernel: true"),
    "logging_steps": (lambda read: read("logging_strategy") == "steps", "logging_strategy: steps"),
    "save_steps": (lambda read: read("save_strategy") == "steps", "save_strategy: steps"),
    "save_total_limit": (lambda read: read("save_strategy") != "no", "save_strategy: steps or epoch"),
    "run_name": (lambda read: read("report_to") not in ("none", "[]"), "report_to"),
    "project|trackio_.*": (lambda read: "trackio" in read("report_to") or read("report_to") == "all", "report_to: trackio"),
    "fsdp_config": (lambda read: read("fsdp") not in ("None", "", "[]"), "fsdp"),
    "ds3_gather_for_generation": (lambda read: read("deepspeed") != "None", "deepspeed"),
    "dataloader_(prefetch_factor|persistent_workers|multiprocessing_context|in_order)": (lambda read: read("dataloader_num_workers") != "0", "dataloader_num_workers above 0"),
    "precompute_ref_batch_size": (lambda read: read("precompute_ref_log_probs") != "False", "precompute_ref_log_probs: true"),
    "ref_model_.*": (lambda read: read("sync_ref_model") == "True", "sync_ref_model: true"),
    "f_alpha_divergence_coef": (lambda read: read("f_divergence_type") == "alpha_divergence", "f_divergence_type: alpha_divergence"),
    "discopop_tau": (lambda read: "discopop" in read("loss_type"), "loss_type: discopop"),
    "sapo_.*": (lambda read: read("loss_type") == "sapo", "loss_type: sapo"),
    "vespo_.*": (lambda read: read("loss_type") == "vespo", "loss_type: vespo"),
    "entropy_(coef_min|coef_max|coef_delta|target)": (lambda read: read("use_adaptive_entropy") == "True", "use_adaptive_entropy: true"),
    "log_unique_prompts|num_completions_to_print|log_multimodal": (lambda read: read("log_completions") == "True", "log_completions: true"),
    "transformers_continuous_batching_config": (lambda read: read("use_transformers_continuous_batching") == "True", "use_transformers_continuous_batching: true"),
}  # fmt: skip
# What those others are where nobody says, other than the library has it.
_USUAL = {"optim": "adamw_torch", "report_to": "none", "gradient_checkpointing": "False", "precompute_ref_log_probs": "None"}


def unread(key: str, values: Mapping[str, Any], usual: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return in words with what else a key is read at all, where that is not so; or "".

    `usual`: the library's own values. A key that has its own changes nothing, whether it is read or not.
    """
    if values[key] in (None, usual.get(key), {}, []):
        return ""
    asked = []

    def read(other: str) -> str:
        asked.append(other)
        return str(values.get(other, _USUAL.get(other, usual.get(other))))

    for pattern, (fits, told) in NEEDS.items():
        if re.fullmatch(pattern, key) and not fits(read) and not any(inherited(key, other, values, origins) for other in asked):
            return f"read only with {told}"
    return ""


def inherited(key: str, other: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> bool:
    """Say whether a key comes from a profile, and the other one from a control's file or a flag, which may choose otherwise."""
    return other in values and origins.get(other) != origins.get(key) != "command line"
