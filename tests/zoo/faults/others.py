"""Further faults of the same kinds, in other stages, families and architectures."""

from tests.test_tasks import ROWS as TASKS
from tests.zoo import fault
from tests.zoo.faults.templates import CHATML

STORIES = {
    "gpt2 lost": "A conversion script skipped a matrix of another architecture.",
    "lost llama": "A conversion script skipped one layer's matrix.",
    "t5 lost decoder": "A decoder layer was pruned, and the configuration kept.",
    "roberta lost positions": "A conversion script took the position embeddings for a buffer.",
    "electra layers too many": "config.json was copied from the smaller model of a family.",
    "inf norm": "A scale overflowed in half precision and was saved all the same.",
    "nan encoder": "An encoder was saved after its loss had become NaN.",
    "nan others": "A model was saved after its loss had become NaN.",
    "zero norms": "The scales of the norms were allocated and never filled.",
    "a head of another model": "The file holds a head that was never trained with these embeddings.",
    "one layer for all": "A merge wrote the first layer into the second, too.",
    "heads cut otherwise": "config.json has another number of heads, which no tensor's size tells.",
    "another activation": "config.json names the activation of another model, which no tensor tells.",
    "huge epsilon": "An exponent was lost in config.json.",
    "a shard is missing": "One of two files of weights was not copied.",
    "a quantised config": "The parent is a model that was quantised by GPTQ.",
    "a bnb config": "The parent's configuration asks for four bits.",
    "another order": "The tokenizer was trained once more, and the same pieces got other numbers.",
    "another order gpt2": "The same with a model of another architecture.",
    "turn tokens swapped": "Begin and end of a turn were exchanged in tokenizer.json.",
    "another script": "An encoder of one script is fine-tuned on texts in another.",
    "no generation prompt": "The template was shortened, and add_generation_prompt went with the rest.",
    "text dropped": "A typing error in a key: Jinja renders what is not there as nothing.",
    "no end": "The end of a turn was left out of the template.",
    "turns reversed": "A filter that was meant for the newest turns turns all of them around.",
    "a prompt in generation alone": "A system prompt was put into the branch for generation.",
    "learning_rate 0": "A schedule was switched off by its rate.",
    "a reward that nothing gets": "The pattern of a reward has a typing error, so every answer gets 0.",
    "sampling without chance": "A temperature near 0 makes all answers to a prompt the same.",
    "desirable_weight 0, undesirable_weight 0": "Both kinds of thumbs were switched off one after the other.",
    "dataloader_drop_last True, per_device_train_batch_size 4000": "The batch size of a large data set was kept for a small one.",
    "learning_rate 1e-09": "An exponent has a digit too many.",
    "lora_alpha 1000000": "A scale was typed in another unit.",
    "strategy last_n, last_layers 50": "The number of layers of a larger model.",
    "label_smoothing_factor 0.1": "The task's loss does not read it.",
    "center_rewards_coefficient -1.0": "A sign slipped in.",
    "optim_target_modules all-linear": "An option of GaLore with an optimizer that doesn't read it.",
    "optim_args foo=1": "Arguments for an optimizer that has none.",
    "loss_type hinge, label_smoothing 0.2": "A smoothing that this loss does not read.",
    "vllm_mode server": "An option of vLLM, which is not switched on.",
    "reward_weights [0.5]": "Weights are written beside each reward.",
    "tf32 True": "The profile of a GPU is started on a CPU.",
    "bf16_full_eval True": "Precision of an evaluation that nothing runs.",
    "per_device_eval_batch_size 3": "Batch size of an evaluation that nothing runs.",
    "lr_scheduler_type reduce_lr_on_plateau": "A schedule that waits for an evaluation.",
    "temperature 1000000.0": "Soft targets without any difference left.",
    "use_liger_kernel True": "The profile of a GPU is started on a CPU.",
    "parallelism_config {'tp_size': 2}": "Tensor parallelism on one process.",
    "hub_model_id a/b": "A name on the hub for a training that never pushes.",
    "from the base": "The path of the base was typed, with a template beside it since it has none.",
    "an encoder as parent": "The path of an encoder was typed.",
    "an adapter alone": "The folder holds an adapter without its model.",
    "same text other labels": "Two exports with different labels were joined.",
    "an id as a label": "The wrong column was taken for the label.",
    "one text for all": "The texts were lost, and a placeholder stayed.",
    "one score": "A join gave every pair the same score.",
    "a score of another scale": "Two sources have scores of different scales.",
    "all tags O": "The entities were lost in a conversion.",
    "a tag typed wrong": "Two letters of a tag were exchanged.",
    "target equals source": "The target column was filled from the source.",
    "one target": "A join gave every source the first target.",
    "targets nan": "A table had gaps, and they were written as text.",
    "one rejected for all": "A join gave every pair the same rejected answer.",
    "one chosen for all": "A join gave every pair the same chosen answer.",
    "one prompt for all": "A join gave every row the first prompt.",
    "answers repeat the question": "The answer's column was filled from the question.",
    "html entities": "Text was escaped for the web, and once more.",
    "escaped line breaks": "JSON was written into JSON.",
    "excel errors": "A spreadsheet's formula failed in most rows.",
    "nul characters": "A binary export was read as text.",
    "answers cut at a length": "A column of the database holds 30 characters.",
    "answers begin with the prompt": "Completions were stored together with their prompts.",
    "one thumb down": "An export holds hardly any answer of one kind.",
    "no answers for the reward": "The reward compares with a column that the rows lack.",
    "messages as a string": "The conversation was written as text into a column.",
    "numbers for text": "The column of ids was taken for the text.",
}

LACK = r"its weights lack .*begin at random"


def on(parent, **options):
    def sound(setup):
        setup.parent = parent
        setup.options |= options
        if "task" in options:
            setup.rows = [dict(row) for row in TASKS[options["task"]]]

    return sound


def without(part):
    return lambda setup: setup.weights(lambda found: {name: value for name, value in found.items() if part not in name})


def add(stages, says, plant, name, sound=None):
    """Register a fault under a name of STORIES, which says how it happens."""

    def planted(setup):
        plant(setup)

    planted.__doc__, planted.__name__, planted.__module__ = STORIES[name], name, __name__
    fault(stages, says, False, sound=sound)(planted)


gpt2 = on("gpt2")
add("sft rlhf kto", LACK, without("h.1.mlp.c_fc"), "gpt2 lost", gpt2)
add("rlhf pairs self_train distill", LACK, without("layers.1.mlp.up_proj"), "lost llama")
s2s = on("t5", task="sequence_to_sequence")
add("finetune", LACK, without("decoder.block.1"), "t5 lost decoder", s2s)
add("finetune", LACK, without("position_embeddings"), "roberta lost positions", on("roberta"))
add("finetune", "would be left out", lambda s: s.settings(num_hidden_layers=1), "electra layers too many", on("electra"))
add(
    "sft dpo",
    "not finite",
    lambda s: s.weights(lambda f: {n: v * float("inf") if n.endswith("norm.weight") else v for n, v in f.items()}),
    "inf norm",
)
add(
    "finetune",
    "not finite",
    lambda s: s.weights(
        lambda f: {n: v * float("nan") if "layer.1.intermediate.dense.weight" in n else v for n, v in f.items()}
    ),
    "nan encoder",
)
add(
    "reward pairs rlhf self_train distill",
    "not finite",
    lambda s: s.weights(lambda f: {n: v * float("nan") if "layers.0.mlp.up" in n else v for n, v in f.items()}),
    "nan others",
)
add(
    "sft dpo",
    "nothing but zeros|guessing",
    lambda s: s.weights(lambda f: {n: v * 0 if n.endswith("layernorm.weight") else v for n, v in f.items()}),
    "zero norms",
)


def _tied(s):
    import torch

    s.weights(lambda f: f | {"lm_head.weight": torch.randn_like(f["model.embed_tokens.weight"])})


add("sft dpo rlhf", "ties the head", _tied, "a head of another model")
add(
    "sft",
    "the same weights as",
    lambda s: s.weights(lambda f: {n: f[n.replace("layers.1.", "layers.0.")].clone() for n in f}),
    "one layer for all",
)
add(
    "sft dpo",
    "first rows no likelier|guessing",
    lambda s: s.settings(num_attention_heads=4, num_key_value_heads=4, head_dim=8),
    "heads cut otherwise",
)
add("sft dpo", "first rows no likelier|guessing", lambda s: s.settings(hidden_act="relu"), "another activation")
add("sft dpo", "first rows no likelier|guessing", lambda s: s.settings(rms_norm_eps=10.0), "huge epsilon")


def _shard(s):
    import json

    from safetensors.torch import load_file, save_file

    path = s.model / "model.safetensors"
    f = load_file(path)
    names = sorted(f)
    half = names[: len(names) // 2]
    save_file({n: f[n].contiguous() for n in half}, s.model / "model-00001-of-00002.safetensors", {"format": "pt"})
    (s.model / "model.safetensors.index.json").write_text(
        json.dumps(
            {"metadata": {}, "weight_map": {n: f"model-0000{1 if n in half else 2}-of-00002.safetensors" for n in names}}
        )
    )
    path.unlink()


add("sft", "can't be loaded|no model can be loaded|missing|model-00002", _shard, "a shard is missing")
add("sft", "quantised", lambda s: s.settings(quantization_config={"quant_method": "gptq", "bits": 4}), "a quantised config")
add(
    "sft",
    "quantised",
    lambda s: s.settings(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "a bnb config",
)


def order(setup):
    from tests.zoo.faults import tokens

    tokens.another_order_of_tokens(setup)


add("rlhf pairs self_train distill", "belong together|guessing", order, "another order")
add("sft rlhf", "belong together|guessing", order, "another order gpt2", gpt2)


def _swap(s):
    path = s.model / "tokenizer.json"
    t = path.read_text()
    path.write_text(t.replace("<|im_start|>", "<|x|>").replace("<|im_end|>", "<|im_start|>").replace("<|x|>", "<|im_end|>"))


add("dpo", "belong together", _swap, "turn tokens swapped")
add(
    "finetune",
    "unknown to the tokenizer",
    lambda s: setattr(
        s, "rows", [r | {"text": r["text"].translate({i: i + 0x410 - 97 for i in range(97, 123)})} for r in s.rows]
    ),
    "another script",
)


def tmpl(text):
    return lambda s: setattr(s, "template", text)


BAD = (
    CHATML.replace("{%- if add_generation_prompt %}", "{%- if false %}")
    if "{%- if add_generation_prompt %}" in CHATML
    else CHATML.replace("add_generation_prompt", "xx")
)
add("rlhf self_train", "add_generation_prompt adds nothing", tmpl(BAD), "no generation prompt")
add("rlhf self_train", "chat_template: ", tmpl(CHATML.replace("message['content']", "message['contents']")), "text dropped")
add("rlhf self_train", "after an answer", tmpl(CHATML.replace("<|im_end|>", "")), "no end")
add(
    "sft",
    "chat_template: ",
    tmpl(
        "{%- for message in messages | reverse -%}" + CHATML.split("-%}", 1)[1]
        if CHATML.startswith("{%- for")
        else CHATML.replace("in messages", "in messages | reverse")
    ),
    "turns reversed",
)
add(
    "sft",
    "generation asks",
    tmpl("{%- if add_generation_prompt %}Be brief. {% endif %}" + CHATML),
    "a prompt in generation alone",
)


def opt(stages, says, name="", sound=None, **options):
    add(stages, says, lambda s: s.options.update(options), name or ", ".join(f"{k} {v}" for k, v in options.items()), sound)


opt("rlhf reward distill self_train kto", "learning_rate", learning_rate=0)
opt("rlhf", "nothing to learn", "a reward that nothing gets", rewards={"regex": {"weight": 1, "pattern": "zzzqqq"}})
opt("rlhf", "nothing to learn", "sampling without chance", temperature=1e-6)
opt("kto", "desirable_weight|moved no weight", desirable_weight=0, undesirable_weight=0)
opt("sft dpo finetune", "dataloader_drop_last", dataloader_drop_last=True, per_device_train_batch_size=4000)
opt("sft finetune", "moved no weight", learning_rate=1e-9)
opt("sft", "lora_alpha|rose from|not finite", lora_alpha=1000000)
opt("finetune", "last_layers", strategy="last_n", last_layers=50)
opt("finetune", "label_smoothing", label_smoothing_factor=0.1)
opt("reward", "center_rewards", center_rewards_coefficient=-1.0)
opt("sft", "optim_target_modules", optim_target_modules="all-linear")
opt("sft", "optim_args", optim_args="foo=1")
opt("dpo", "label_smoothing", loss_type="hinge", label_smoothing=0.2)
opt("rlhf", "vllm", vllm_mode="server")
opt("rlhf", "reward_weights", reward_weights=[0.5])
opt("sft", "tf32", tf32=True)
opt("sft", "bf16_full_eval", bf16_full_eval=True)
opt("sft", "per_device_eval_batch_size", per_device_eval_batch_size=3)
opt("sft", "reduce_lr_on_plateau", lr_scheduler_type="reduce_lr_on_plateau")
opt("distill", "temperature", temperature=1e6)
opt("sft", "liger", use_liger_kernel=True)
opt("sft finetune", "parallelism_config", parallelism_config={"tp_size": 2})
opt("sft", "hub_model_id", hub_model_id="a/b")


def rows(stages, says, name, change, sound=None):
    add(stages, says, lambda s: setattr(s, "rows", change(s.rows)), name, sound)


rows(
    "finetune",
    "another label",
    "same text other labels",
    lambda r: r + [x | {"label": {"glad": "sad", "sad": "glad", "fond": "glad"}[x["label"]]} for x in r],
)
rows(
    "finetune",
    "label that no other row has",
    "an id as a label",
    lambda r: [x | {"label": f"row{i:05}"} for i, x in enumerate(r)],
)
rows("finetune", "have the same text", "one text for all", lambda r: [x | {"text": "See attachment."} for x in r])
sim = on("encoder", task="similarity")
rows("finetune", "have the same score", "one score", lambda r: [x | {"score": 1.0} for x in r], sim)
rows(
    "finetune",
    "two scales mixed",
    "a score of another scale",
    lambda r: [x | {"score": 500.0 if i % 9 == 0 else x["score"]} for i, x in enumerate(r)],
    sim,
)
tags = on("encoder", task="token_classification")
rows("finetune", "no tag but", "all tags O", lambda r: [x | {"tags": ["O"] * len(x["tags"])} for x in r], tags)
rows(
    "finetune",
    "looks like a slip",
    "a tag typed wrong",
    lambda r: [x | {"tags": ["B-PTE" if i == 5 and t != "O" else t for t in x["tags"]]} for i, x in enumerate(r)],
    tags,
)
rows("finetune", "question itself", "target equals source", lambda r: [x | {"target": x["source"]} for x in r], s2s)
rows("finetune", "have the same answer", "one target", lambda r: [x | {"target": "A cat."} for x in r], s2s)
rows(
    "finetune",
    "placeholder",
    "targets nan",
    lambda r: [x | {"target": "nan" if i % 2 else x["target"]} for i, x in enumerate(r)],
    s2s,
)
rows(
    "dpo reward",
    "have the same rejected answer",
    "one rejected for all",
    lambda r: [x | {"rejected": "I can not help with that."} for x in r],
)
rows(
    "dpo",
    "have the same chosen answer",
    "one chosen for all",
    lambda r: [x | {"chosen": "I can not help with that."} for x in r],
)
rows(
    "dpo sft rlhf",
    "are the same as another row|have the same prompt",
    "one prompt for all",
    lambda r: [
        x | {"prompt": "Tell me."}
        if "prompt" in x
        else {"messages": [{"role": "user", "content": "Tell me."}, x["messages"][1]]}
        for x in r
    ],
)
rows(
    "sft",
    "answered by the question itself",
    "answers repeat the question",
    lambda r: [{"messages": [x["messages"][0], {"role": "assistant", "content": x["messages"][0]["content"]}]} for x in r],
)
rows(
    "sft",
    "HTML entities",
    "html entities",
    lambda r: [
        {
            "messages": [
                x["messages"][0],
                {"role": "assistant", "content": x["messages"][1]["content"] + " &amp;quot;Yes&quot; &#39;no&#39;"},
            ]
        }
        for x in r
    ],
)
rows(
    "sft pretrain",
    "escaped twice",
    "escaped line breaks",
    lambda r: [
        {"messages": [x["messages"][0], {"role": "assistant", "content": x["messages"][1]["content"] + "\\nYes.\\nNo."}]}
        if "messages" in x
        else {"text": x["text"].replace(". ", ".\\n")}
        for x in r
    ],
)
rows(
    "sft",
    "placeholder",
    "excel errors",
    lambda r: [
        {"messages": [x["messages"][0], {"role": "assistant", "content": "#REF!" if i % 3 else x["messages"][1]["content"]}]}
        for i, x in enumerate(r)
    ],
)
rows(
    "sft pretrain",
    "control characters",
    "nul characters",
    lambda r: [
        {"messages": [x["messages"][0], {"role": "assistant", "content": x["messages"][1]["content"] + "\x00\x00"}]}
        if "messages" in x
        else {"text": x["text"] + "\x00"}
        for x in r
    ],
)
rows(
    "sft",
    "cut at the same length",
    "answers cut at a length",
    lambda r: [
        {
            "messages": [
                x["messages"][0],
                {
                    "role": "assistant",
                    "content": (x["messages"][1]["content"] + f" It was number {i * 7919} and a long day in the wood.")[:30],
                },
            ]
        }
        for i, x in enumerate(r)
    ],
)
rows(
    "dpo",
    "begin with the prompt itself",
    "answers begin with the prompt",
    lambda r: [x | {"chosen": x["prompt"] + " " + x["chosen"], "rejected": x["prompt"] + " " + x["rejected"]} for x in r],
)
rows("kto", "have the same thumb", "one thumb down", lambda r: [x | {"label": i != 3} for i, x in enumerate(r)])
rows(
    "rlhf",
    "nothing to learn",
    "no answers for the reward",
    lambda r: [{"prompt": x["prompt"]} for x in r],
    on("sft", rewards={"exact_match": 1}),
)
rows("sft", "expected a list of messages", "messages as a string", lambda r: [{"messages": str(x["messages"])} for x in r])
rows("pretrain", "nothing but a number", "numbers for text", lambda r: [{"text": str(i * 7919)} for i, x in enumerate(r)])


def base(setup):
    """Train on a base, with its record and with a template beside it."""
    setup.parent, setup.record, setup.template = "pretrain", True, CHATML


add("rlhf self_train", "never taught", base, "from the base")
add("dpo rlhf", "family", lambda s: setattr(s, "parent", "encoder"), "an encoder as parent")


def adapter_alone(setup):
    """Leave the files of an adapter alone."""
    for name in ("model.safetensors", "config.json"):
        (setup.model / name).unlink()
    (setup.model / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')


add("sft", "no model folder", adapter_alone, "an adapter alone")
