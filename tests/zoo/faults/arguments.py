"""Arguments that are ignored, or mean something else here."""

from tests.zoo import chosen

option = chosen(__name__)
option("sft dpo", "fp16", "The profile of a GPU is started on a CPU.", fp16=True)
option("sft dpo", "label_smoothing", "Known from translation; trl's losses don't read it.", label_smoothing_factor=0.1)
option("kto", "label_smoothing: unknown key", "An option of another method was carried over.", plain=False, label_smoothing=0.1)
option("sft", "fsdp", "The profile of eight GPUs is started on one process.", fsdp="full_shard")
option("sft", "deepspeed", "A configuration that lies on another machine.", deepspeed="ds.json")
option("sft dpo pretrain", "did you mean|learning_rte", "A typing error in a key.", plain=False, learning_rte=1e-3)
option("sft dpo", "max_length", "The length of a larger model.", max_length=4096)
option("sft", "eval_steps", "Evaluation was to run, and its strategy is off.", eval_steps=10)
option("sft", "group_by_length|unknown|did you mean", "An option of an older version.", plain=False, group_by_length=True)
option("sft", "report_to|wandb", "A logger that is not installed.", plain=False, report_to="wandb")
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
