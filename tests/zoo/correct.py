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
