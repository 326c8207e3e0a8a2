"""Rows that are unusual and right."""

import unicodedata

from tests.zoo import ROWS, correct

TURNS = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"}]


@correct("sft dpo")
def decomposed_letters(setup):
    """Letters and accents are characters of their own, as macOS writes them."""
    changed = unicodedata.normalize("NFD", "é")
    if setup.stage == "sft":
        setup.messages(lambda _, turns: [turns[0], turns[1] | {"content": turns[1]["content"].replace("e", changed)}])
    else:
        setup.rows = [row | {"chosen": row["chosen"].replace("e", changed)} for row in setup.rows]


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
