"""Arguments that are ignored, or mean something else here."""

from tests.zoo import chosen, named, on

option, add = chosen(__name__), named(__name__)
option("sft dpo", "fp16", "The profile of a GPU is started on a CPU.", fp16=True)
option("sft dpo", "label_smoothing", "Known from translation; trl's losses don't read it.", label_smoothing_factor=0.1)
option("kto", "label_smoothing: unknown key", "An option of another method was carried over.", plain=False, label_smoothing=0.1)
option("sft", "fsdp", "The profile of eight GPUs is started on one process.", fsdp="full_shard")
option("sft", "deepspeed", "A configuration that lies on another machine.", deepspeed="ds.json")
option("sft dpo pretrain", "did you mean|learning_rte", "A typing error in a key.", plain=False, learning_rte=1e-3)
option("sft dpo", "max_length", "The length of a larger model.", max_length=4096)
option("sft", "eval_steps", "Evaluation was to run, and its strategy is off.", eval_steps=10)
option("sft", "group_by_length|unknown|did you mean", "An option of an older version.", plain=False, group_by_length=True)
option("sft", "report_to|comet", "A logger that is not installed.", plain=False, report_to="comet_ml")
option("sft", "neftune_noise_alpha", "A sign slipped in.", neftune_noise_alpha=-5)
option("sft", "seed", "−1 was meant as a random one.", seed=-1)
option("kto", "desirable_weight", "A sign slipped in.", desirable_weight=-1)
option("finetune", "last_layers", "The number of layers of a larger model.", plain=False, strategy="last_n", last_layers=50)
option("finetune", "label_smoothing", "The task's loss does not read it.", plain=False, label_smoothing_factor=0.1)
option("reward", "center_rewards", "A sign slipped in.", plain=False, center_rewards_coefficient=-1.0)
option(
    "sft",
    "optim_target_modules",
    "An option of GaLore with an optimizer that doesn't read it.",
    plain=False,
    optim_target_modules="all-linear",
)
option("sft", "optim_args", "Arguments for an optimizer that has none.", plain=False, optim_args="foo=1")
option(
    "dpo", "label_smoothing", "A smoothing that this loss does not read.", plain=False, loss_type="hinge", label_smoothing=0.2
)
option("rlhf", "vllm", "An option of vLLM, which is not switched on.", plain=False, vllm_mode="server")
option("rlhf", "reward_weights", "Weights are written beside each reward.", plain=False, reward_weights=[0.5])
option("sft", "tf32", "The profile of a GPU is started on a CPU.", plain=False, tf32=True)
option("sft", "bf16_full_eval", "Precision of an evaluation that nothing runs.", plain=False, bf16_full_eval=True)
option(
    "sft",
    "per_device_eval_batch_size",
    "Batch size of an evaluation that nothing runs.",
    plain=False,
    per_device_eval_batch_size=3,
)
option(
    "sft",
    "reduce_lr_on_plateau",
    "A schedule that waits for an evaluation.",
    plain=False,
    lr_scheduler_type="reduce_lr_on_plateau",
)
option("sft", "liger", "The profile of a GPU is started on a CPU.", plain=False, use_liger_kernel=True)
option(
    "sft finetune", "parallelism_config", "Tensor parallelism on one process.", plain=False, parallelism_config={"tp_size": 2}
)
option("sft", "hub_model_id", "A name on the hub for a training that never pushes.", plain=False, hub_model_id="a/b")
READ = "is read only with"
option("sft dpo", READ, "A rank was kept when the adapter was given up.", plain=False, method="full", r=8)
option("sft", READ, "A switch of an adapter that is not there.", plain=False, method="full", use_dora=True)
option("sft", READ, "A dropout of an adapter that is not there.", plain=False, method="full", lora_dropout=0.1)
option("finetune", READ, "All layers are trained, and a number says how many.", plain=False, strategy="full", last_layers=1)
option("finetune", READ, "A rank for a head alone.", plain=False, strategy="frozen", r=8)
option("finetune", READ, "Soft tokens of a prompt that is not there.", plain=False, strategy="full", prompt_tokens=5)
option("sft", "refuses .*bitsandbytes", "The optimizer of a package that is not installed.", optim="adamw_bnb_8bit")
option("sft", "refuses .*num_cycles", "Arguments of another schedule.", lr_scheduler_kwargs={"num_cycles": 3})
option("sft", "refuses .*max, should be one of", "A mode of the compiler that it does not have.", torch_compile_mode="max")
option("sft", "refuses .*process group", "The backend of a launch on GPUs, on one process.", ddp_backend="nccl")
option("sft", "eval_strategy", "Evaluation by steps, which no stage does.", plain=False, eval_strategy="steps")
option(
    "sft", "load_best_model_at_end", "The best of checkpoints that nobody measures.", plain=False, load_best_model_at_end=True
)
option("sft", "dataset_text_field", "The column's name, which the recipe tells.", plain=False, dataset_text_field="body")
option("dpo", "did you mean sigmoid", "A typing error in the name of a loss.", loss_type="sigmoids")

SET, WITHOUT = "can't be set here", "is not read with"
option("sft", READ, "Left over from a run with checkpointing.", gradient_checkpointing_kwargs={"use_reentrant": False})
option("sft", READ, "A warm-up with a schedule that has none.", warmup_steps=5, lr_scheduler_type="constant")
option(
    "sft", READ, "Arguments of a schedule that has none.", lr_scheduler_type="constant", lr_scheduler_kwargs={"num_cycles": 2}
)
option("sft", READ, "A name for a logger that is off.", run_name="second try")
option("sft", READ, "A step was given, and logs come by epochs.", plain=False, logging_strategy="epoch", logging_steps=5)
option("sft", READ, "Options of FSDP, which is not switched on.", fsdp_config={"min_num_params": 100})
option("sft", READ, "Options of kernels that are not switched on.", plain=False, liger_kernel_config={"rope": True})
option("sft finetune", READ, "Workers that stay, of which there are none.", dataloader_persistent_workers=True)
option("sft", READ, "A count of batches for workers, of which there are none.", plain=False, dataloader_prefetch_factor=4)
option("dpo", READ, "A reference that was to follow the model does not.", ref_model_sync_steps=16)
option("dpo", READ, "The coefficient of another divergence.", f_alpha_divergence_coef=0.3)
option("dpo", READ, "The temperature of another loss.", discopop_tau=0.2)
option(
    "dpo", READ, "The batch size of a reference that is not kept.", precompute_ref_log_probs=False, precompute_ref_batch_size=4
)
option("rlhf", READ, "Answers were to be shown, and the switch is off.", plain=False, num_completions_to_print=3)
option("rlhf", READ, "An option of GRPO's loss of another name.", plain=False, algorithm="grpo", sapo_temperature_neg=2.0)
option("rlhf", READ, "A target for an entropy that is not held.", plain=False, algorithm="grpo", entropy_target=0.4)
option("distill", WITHOUT, "The teacher was switched off, its temperature stayed.", plain=False, soft_weight=0, temperature=3.0)
option("distill", WITHOUT, "The teacher was switched off, the divergence stayed.", plain=False, soft_weight=0, beta=0.5)
option("finetune", WITHOUT, "Rows to look at for a patience that is not set.", plain=False, validation=0.2)
option("sft", SET, "The padded length is not what the collator makes.", plain=False, pad_to_multiple_of=8)
option("sft", SET, "Rows come in an order by seed.", plain=False, shuffle_dataset=True)
option("sft", SET, "A cache of keys lets packed documents see each other.", plain=False, use_cache=True)
option("sft", SET, "Code of the model's own, which is never run.", plain=False, trust_remote_code=True)
option("sft dpo", SET, "A filter that would hide a broken loss.", plain=False, logging_nan_inf_filter=True)
option("finetune", SET, "A label's name that the task decides.", plain=False, label_names=["label"])
option("sft", SET, "The batch size would change by itself where memory is short.", plain=False, auto_find_batch_size=True)
option("sft", SET, "Processes would each average over their own tokens.", plain=False, average_tokens_across_devices=False)
option("sft", SET, "The end token of another tokenizer.", plain=False, eos_token="</s>")
option("rlhf", SET, "Dropout was to stay on while answers are sampled.", plain=False, disable_dropout=False)
option(
    "rlhf",
    SET,
    "A switch for the template that is not handed to it.",
    plain=False,
    chat_template_kwargs={"enable_thinking": True},
)
option("distill", SET, "The teacher's name in the way of trl.", plain=False, reads="prompts", teacher_model_name_or_path="a/b")
option("sft dpo", "activation_offloading", "The profile of a GPU is started on a CPU.", activation_offloading=True)
option("sft finetune", "save_steps", "-1 was meant as never.", save_steps=-1)
option("sft", "save_total_limit", "0 was meant as no limit.", save_total_limit=0)
option("sft", "dataloader_num_workers", "-1 was meant as automatic.", dataloader_num_workers=-1)
option("sft", "train_sampling_strategy", "A typing error in the name of an order.", train_sampling_strategy="by_length")
option("dpo", "f_divergence_type", "A typing error in the name of a divergence.", f_divergence_type="reverse-kl")
option("rlhf", "loss_type", "A typing error in the name of a loss.", plain=False, algorithm="grpo", loss_type="dr-grpo")
option(
    "rlhf", "scale_rewards", "A typing error in how rewards are scaled.", plain=False, algorithm="grpo", scale_rewards="groups"
)
option(
    "rlhf", "generation_kwargs", "A typing error among the arguments of sampling.", plain=False, generation_kwargs={"top_kk": 5}
)
add(
    "pretrain",
    "num_hidden_layers is not read",
    "sizes beside a parent",
    "The depth of a new model was kept when a parent was named.",
    lambda setup: setup.options.update(num_hidden_layers=6),
    on("pretrain"),
)
