"""Data that says something else than it should."""

import random

from tests.zoo import ANIMALS, fault, named, on


@fault("sft", "same answer|answers? (is|are) (all )?(the same|equal)")
def one_answer_for_all(setup):
    """A join on the wrong column gave every question the first answer."""
    setup.messages(lambda _, turns: [turns[0], {"role": "assistant", "content": "I do not know."}])


@fault("finetune", "one label|only label|single label|same label|never differs|every row")
def one_label_for_all(setup):
    """A filter left rows of one class."""
    setup.rows = [row | {"label": "glad"} for row in setup.rows]


@fault("finetune", "'gladd'|gladd")
def a_label_typed_wrong(setup):
    """Somebody typed a label in by hand."""
    setup.rows[7]["label"] = "gladd"


@fault("finetune", "'Glad'|Glad")
def a_label_in_another_case(setup):
    """Two annotators wrote the same label differently."""
    for row in setup.rows[::6]:
        row["label"] = row["label"].capitalize()


@fault("dpo reward", "swapped|rejected .*likelier|short")
def swapped_pairs(setup):
    """The columns were read in the wrong order."""
    setup.rows = [
        row | {"chosen": " ".join(ANIMALS)[: 4 + at % 5], "rejected": row["chosen"]} for at, row in enumerate(setup.rows)
    ]


@fault("dpo reward", "contradict")
def pairs_that_contradict_each_other(setup):
    """Two annotators disagreed, and both votes were kept."""
    setup.rows += [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in setup.rows]


@fault("dpo reward", "blanks|case")
def pairs_that_differ_in_blanks(setup):
    """One side was stripped, the other was not."""
    setup.rows = [row | {"rejected": row["chosen"] + "  "} for row in setup.rows]


@fault("dpo reward", "blanks|case")
def pairs_that_differ_in_case(setup):
    """One side went through a normaliser."""
    setup.rows = [row | {"rejected": row["chosen"].lower()} for row in setup.rows]


@fault("dpo reward", "equals? rejected|same|equal")
def pairs_that_are_equal(setup):
    """A sampler gave the same answer twice."""
    setup.rows = [row | {"rejected": row["chosen"]} for row in setup.rows]


@fault("sft pretrain", "mojibake|encoding|UTF-8")
def mojibake(setup):
    """UTF-8 was read as Latin-1 and saved."""
    wrong = "Grüße — ‘so’".encode().decode("latin-1")
    if setup.stage == "pretrain":
        setup.rows = [{"text": f"{row['text']} {wrong}"} for row in setup.rows]
    else:
        setup.messages(lambda _, turns: [turns[0], {"role": "assistant", "content": turns[1]["content"] + wrong}])


@fault("sft pretrain", "replacement|encoding|U\\+FFFD")
def replacement_characters(setup):
    """A file was decoded with errors="replace"."""
    if setup.stage == "pretrain":
        setup.rows = [{"text": row["text"].replace("w", "\ufffd")} for row in setup.rows]
    else:
        setup.messages(
            lambda _, turns: [turns[0], {"role": "assistant", "content": turns[1]["content"].replace("d", "\ufffd")}]
        )


@fault("sft", "role|no assistant text")
def a_role_typed_wrong(setup):
    """A writer of the rows has a typing error in a role."""
    setup.messages(lambda _, turns: [turns[0], turns[1] | {"role": "assistent"}])


@fault("sft", "role|assistant")
def roles_swapped(setup):
    """Questions and answers were read in the wrong order."""
    setup.messages(lambda _, turns: [turns[0] | {"role": "assistant"}, turns[1] | {"role": "user"}])


@fault("sft", "dropped: .*no assistant text")
def empty_answers(setup):
    """A scraper found no answer and wrote an empty one."""
    setup.messages(lambda at, turns: [turns[0], turns[1] | {"content": "" if at % 2 else turns[1]["content"]}])


@fault("sft", "placeholder|'(nan|None|null)'|same answer")
def answers_of_nan(setup):
    """A table had gaps, and they were written as text."""
    setup.messages(lambda at, turns: [turns[0], turns[1] | {"content": "nan" if at % 2 else turns[1]["content"]}])


@fault("kto", "all .*thumbs are up|both kinds")
def all_thumbs_up(setup):
    """The rows of one export have one label."""
    setup.rows = [row | {"label": True} for row in setup.rows]


@fault("kto", "both|contradict")
def thumbs_that_contradict_each_other(setup):
    """The same answer was rated up and down."""
    setup.rows += [row | {"label": not row["label"]} for row in setup.rows]


@fault("sft", "dropped: [0-9,]+ .*longer than max_length|no row is left")
def answers_longer_than_rows(setup):
    """max_length is what was left from a trial."""
    setup.messages(lambda at, turns: [turns[0], turns[1] | {"content": turns[1]["content"] * (40 if at % 2 else 1)}])


@fault("sft", "no row|empty|holds no")
def no_rows(setup):
    """A filter let nothing through."""
    setup.text = "\n"


@fault("sft", "line 45|row 45|:45")
def a_broken_line(setup):
    """Two processes wrote into one file."""
    import json

    lines = [json.dumps(row) for row in setup.rows]
    lines[44] = lines[44][:30] + lines[45]
    setup.text = "\n".join(lines) + "\n"


@fault("sft", "nested")
def a_row_of_brackets(setup):
    """A broken writer left 200,000 brackets in a line."""
    setup.text = '{"messages": ' + "[" * 200_000 + "\n"


@fault("sft", "messages")
def another_type_of_rows(setup):
    """Pairs were given where conversations are read."""
    setup.rows = [{"prompt": f"Who saw the {a}?", "score": 1} for a in ANIMALS]


@fault("sft dpo pretrain", "dropped: .*(equal|twice|duplicate|same)|the same as another")
def the_same_row_many_times(setup):
    """An export was appended to itself."""
    setup.rows = setup.rows[:3] * 40


@fault("finetune", "chance|no better|not better")
def shuffled_labels(setup):
    """The label column was sorted apart from the texts."""
    rng = random.Random(0)
    labels = [row["label"] for row in setup.rows]
    rng.shuffle(labels)
    setup.rows = [row | {"label": label} for row, label in zip(setup.rows, labels, strict=True)]


add = named(__name__)
s2s = on("t5", task="sequence_to_sequence")


def change(stages, says, name, story, how, sound=None):
    """Register a fault that makes other rows of all rows."""
    add(stages, says, name, story, lambda setup: setattr(setup, "rows", how(setup.rows)), sound)


change(
    "finetune",
    "another label",
    "same text other labels",
    "Two exports with different labels were joined.",
    lambda r: r + [x | {"label": {"glad": "sad", "sad": "glad", "fond": "glad"}[x["label"]]} for x in r],
)
change(
    "finetune",
    "label that no other row has",
    "an id as a label",
    "The wrong column was taken for the label.",
    lambda r: [x | {"label": f"row{i:05}"} for i, x in enumerate(r)],
)
change(
    "finetune",
    "have the same text",
    "one text for all",
    "The texts were lost, and a placeholder stayed.",
    lambda r: [x | {"text": "See attachment."} for x in r],
)
sim = on("encoder", task="similarity")
change(
    "finetune",
    "have the same score",
    "one score",
    "A join gave every pair the same score.",
    lambda r: [x | {"score": 1.0} for x in r],
    sim,
)
change(
    "finetune",
    "two scales mixed",
    "a score of another scale",
    "Two sources have scores of different scales.",
    lambda r: [x | {"score": 500.0 if i % 9 == 0 else x["score"]} for i, x in enumerate(r)],
    sim,
)
tags = on("encoder", task="token_classification")
change(
    "finetune",
    "no tag but",
    "all tags O",
    "The entities were lost in a conversion.",
    lambda r: [x | {"tags": ["O"] * len(x["tags"])} for x in r],
    tags,
)
change(
    "finetune",
    "looks like a slip",
    "a tag typed wrong",
    "Two letters of a tag were exchanged.",
    lambda r: [x | {"tags": ["B-PTE" if i == 5 and t != "O" else t for t in x["tags"]]} for i, x in enumerate(r)],
    tags,
)
change(
    "finetune",
    "question itself",
    "target equals source",
    "The target column was filled from the source.",
    lambda r: [x | {"target": x["source"]} for x in r],
    s2s,
)
change(
    "finetune",
    "have the same answer",
    "one target",
    "A join gave every source the first target.",
    lambda r: [x | {"target": "A cat."} for x in r],
    s2s,
)
change(
    "finetune",
    "placeholder",
    "targets nan",
    "A table had gaps, and they were written as text.",
    lambda r: [x | {"target": "nan" if i % 2 else x["target"]} for i, x in enumerate(r)],
    s2s,
)
change(
    "dpo reward",
    "have the same rejected answer",
    "one rejected for all",
    "A join gave every pair the same rejected answer.",
    lambda r: [x | {"rejected": "I can not help with that."} for x in r],
)
change(
    "dpo",
    "have the same chosen answer",
    "one chosen for all",
    "A join gave every pair the same chosen answer.",
    lambda r: [x | {"chosen": "I can not help with that."} for x in r],
)
change(
    "dpo sft rlhf",
    "are the same as another row|have the same prompt",
    "one prompt for all",
    "A join gave every row the first prompt.",
    lambda r: [
        x | {"prompt": "Tell me."}
        if "prompt" in x
        else {"messages": [{"role": "user", "content": "Tell me."}, x["messages"][1]]}
        for x in r
    ],
)
change(
    "sft",
    "answered by the question itself",
    "answers repeat the question",
    "The answer's column was filled from the question.",
    lambda r: [{"messages": [x["messages"][0], {"role": "assistant", "content": x["messages"][0]["content"]}]} for x in r],
)
change(
    "sft",
    "HTML entities",
    "html entities",
    "Text was escaped for the web, and once more.",
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
change(
    "sft pretrain",
    "escaped twice",
    "escaped line breaks",
    "JSON was written into JSON.",
    lambda r: [
        {"messages": [x["messages"][0], {"role": "assistant", "content": x["messages"][1]["content"] + "\\nYes.\\nNo."}]}
        if "messages" in x
        else {"text": x["text"].replace(". ", ".\\n")}
        for x in r
    ],
)
change(
    "sft",
    "placeholder",
    "excel errors",
    "A spreadsheet's formula failed in most rows.",
    lambda r: [
        {"messages": [x["messages"][0], {"role": "assistant", "content": "#REF!" if i % 3 else x["messages"][1]["content"]}]}
        for i, x in enumerate(r)
    ],
)
change(
    "sft pretrain",
    "control characters",
    "nul characters",
    "A binary export was read as text.",
    lambda r: [
        {"messages": [x["messages"][0], {"role": "assistant", "content": x["messages"][1]["content"] + "\x00\x00"}]}
        if "messages" in x
        else {"text": x["text"] + "\x00"}
        for x in r
    ],
)
change(
    "sft",
    "cut at the same length",
    "answers cut at a length",
    "A column of the database holds 30 characters.",
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
change(
    "dpo",
    "begin with the prompt itself",
    "answers begin with the prompt",
    "Completions were stored together with their prompts.",
    lambda r: [x | {"chosen": x["prompt"] + " " + x["chosen"], "rejected": x["prompt"] + " " + x["rejected"]} for x in r],
)
change(
    "kto",
    "have the same thumb",
    "one thumb down",
    "An export holds hardly any answer of one kind.",
    lambda r: [x | {"label": i != 3} for i, x in enumerate(r)],
)
change(
    "rlhf",
    "nothing to learn",
    "no answers for the reward",
    "The reward compares with a column that the rows lack.",
    lambda r: [{"prompt": x["prompt"]} for x in r],
    on("sft", rewards={"exact_match": 1}),
)
change(
    "sft",
    "expected a list of messages",
    "messages as a string",
    "The conversation was written as text into a column.",
    lambda r: [{"messages": str(x["messages"])} for x in r],
)
change(
    "pretrain",
    "nothing but a number",
    "numbers for text",
    "The column of ids was taken for the text.",
    lambda r: [{"text": str(i * 7919)} for i, x in enumerate(r)],
)
add(
    "sft dpo reward",
    r"train.jsonl:\d+: has the same prompt or text as a held-out row",
    "prompts on both sides",
    "The rows of the test were drawn from those of the training, and stayed among them.",
    lambda setup: setattr(setup, "held_out", [dict(row) for row in setup.rows[::9]]),
)
