"""Data that says something else than it should."""

import random

from tests.zoo import ANIMALS, fault


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
def labels_drawn_by_lot(setup):
    """The label column was sorted apart from the texts."""
    rng = random.Random(0)
    labels = [row["label"] for row in setup.rows]
    rng.shuffle(labels)
    setup.rows = [row | {"label": label} for row, label in zip(setup.rows, labels, strict=True)]
