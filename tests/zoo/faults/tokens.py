"""Tokenizers and weights that don't belong together."""

import json
import random

from tests.zoo import fault, named, on

APART = "don't belong together"


def vocabulary(setup, change):
    path = setup.model / "tokenizer.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@fault("sft dpo kto finetune", f"{APART}|unigram")
def another_order_of_tokens(setup):
    """The tokenizer was trained once more, and the same pieces got other numbers."""

    def change(found):
        words = found["model"]["vocab"]
        held = {token["content"] for token in found["added_tokens"]}
        free = [word for word in words if word not in held]
        found["model"]["vocab"] = words | dict(zip(free, [words[word] for word in reversed(free)], strict=True))

    vocabulary(setup, change)


@fault("sft", f"{APART}|unigram")
def a_tokenizer_of_another_text(setup):
    """Two projects of the same size lie side by side, and the tokenizer came from the other one."""
    from pipeline.models import tokenization

    texts = ["Sphinx of black quartz, judge my vow!", "Wir zwölf Boxkämpfer jagen Viktor quer über den Deich."] * 20
    made = tokenization.train(texts, 311, 64)
    made.chat_template = (setup.model / "chat_template.jinja").read_text()
    made.save_pretrained(setup.model)


@fault("sft dpo", APART)
def a_larger_tokenizer(setup):
    """Tokens were added to the tokenizer and the embeddings were not resized."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(setup.model)
    made.add_tokens([f"<new{number}>" for number in range(20)])
    made.save_pretrained(setup.model)


@fault("sft", f"{APART}|unigram")
def embeddings_moved_by_one(setup):
    """A padding token was put first, and every other token moved by one."""
    setup.weights(
        lambda found: {name: value.roll(7, 0) * 30 if "embed_tokens" in name else value for name, value in found.items()}
    )


@fault("sft", "unknown|end token|eos")
def no_end_of_text(setup):
    """tokenizer_config.json was written by hand, and eos_token is missing."""
    path = setup.model / "tokenizer_config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "eos_token"}))


@fault("sft", "no tokenizer can be loaded")
def no_tokenizer(setup):
    """Only config.json and the weights were copied."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (setup.model / name).unlink()


@fault("sft", "no tokenizer can be loaded|brackets|nested|can't be read")
def a_tokenizer_of_brackets(setup):
    """A broken writer left 200,000 brackets in tokenizer.json."""
    (setup.model / "tokenizer.json").write_text("[" * 200_000)


@fault("sft", "brackets|nested|config.json")
def a_configuration_of_brackets(setup):
    """A broken writer left 200,000 brackets in config.json."""
    (setup.model / "config.json").write_text("[" * 200_000)


add = named(__name__)


add(
    "rlhf pairs self_train distill",
    "belong together|guessing",
    "another order",
    "The tokenizer was trained once more, and the same pieces got other numbers.",
    another_order_of_tokens,
)
add(
    "sft rlhf",
    "belong together|guessing",
    "another order gpt2",
    "The same with a model of another architecture.",
    another_order_of_tokens,
    on("gpt2"),
)


def _swap(s):
    path = s.model / "tokenizer.json"
    t = path.read_text()
    path.write_text(t.replace("<|im_start|>", "<|x|>").replace("<|im_end|>", "<|im_start|>").replace("<|x|>", "<|im_end|>"))


add("dpo", "belong together", "turn tokens swapped", "Begin and end of a turn were exchanged in tokenizer.json.", _swap)
add(
    "finetune",
    "unknown to the tokenizer",
    "another script",
    "An encoder of one script is fine-tuned on texts in another.",
    lambda s: setattr(
        s, "rows", [r | {"text": r["text"].translate({i: i + 0x410 - 97 for i in range(97, 123)})} for r in s.rows]
    ),
)


def renumbered(change):
    """Return what gives the pieces of a tokenizer that are no added tokens other numbers; `change`: of their list."""

    def plant(setup):
        def renumber(found):
            model = found["model"]
            held = {token["content"] for token in found["added_tokens"]}
            if isinstance(model["vocab"], list):  # Unigram: a piece and its score
                places = [at for at, (piece, _) in enumerate(model["vocab"]) if piece not in held]
                for at, entry in zip(places, change([model["vocab"][at] for at in places]), strict=True):
                    model["vocab"][at] = entry
                return
            free = [word for word in sorted(model["vocab"], key=model["vocab"].get) if word not in held]
            numbers = [model["vocab"][word] for word in free]
            model["vocab"] |= dict(zip(change(free), numbers, strict=True))

        vocabulary(setup, renumber)

    return plant


def shuffled(words):
    return random.Random(1).sample(words, len(words))


TWICE = "The tokenizer was trained once more, and the same pieces got other numbers."
add("distill", APART, "another order for answers", TWICE, renumbered(shuffled), on("sft", reads="messages"))
for parent in ("t5", "bart", "electra", "roberta"):
    add("finetune", APART, f"another order {parent}", TWICE, renumbered(shuffled), on(parent))
add("finetune", APART, "another order causal", TWICE, renumbered(shuffled), on("pretrain"))
add("finetune", APART, "another order t5 writing", TWICE, renumbered(shuffled), on("t5", task="sequence_to_sequence"))
add("reward", APART, "another order reward", TWICE, renumbered(shuffled))
for parent, stages in (("pretrain", "distill"), ("sft", "sft dpo"), ("gpt2", "sft"), ("qwen3", "kto")):
    add(
        stages,
        APART,
        f"all moved by one {parent}",
        "A token was put before all others, and every number moved by one.",
        renumbered(lambda words: [*words[1:], words[0]]),
        on(parent),
    )


def without_frame(setup):
    """Take away what puts a tokenizer's own tokens around a text."""
    vocabulary(setup, lambda found: found.update(post_processor=None))


LOST = "A tokenizer was trained once more and saved without its post-processor."
add("finetune", "no text begins with", "no begin token", LOST, without_frame)
add("finetune", "no text begins with", "no begin token roberta", LOST, without_frame, on("roberta"))
add("finetune", "never learn to stop", "targets without an end", LOST, without_frame, on("t5", task="sequence_to_sequence"))
