"""Every task: what a row becomes, what is not read of it, its loss, what is trained, and a parent's own labels."""

import importlib.util
import json
from collections import Counter

import numpy as np
import pytest
import torch

from pipeline import objectives, tasks
from pipeline.data import token_tables, tokens
from pipeline.data.recipe import Rows
from pipeline.models import tokenization
from pipeline.models.prompt import add_prompt
from pipeline.system.errors import UserError
from pipeline.training import strategies
from tests.conftest import mostly_slow

IGNORED = tokens.IGNORED
ANIMALS = "cat dog hen owl fox bee ant cow elk eel".split()
TEXTS = [f"The {a} saw the {b} and was {'glad' if number % 3 else 'sad'} of it."
         for number, (a, b) in enumerate((a, b) for a in ANIMALS for b in ANIMALS if a != b)]  # fmt: skip
ROWS = {
    "classification": [{"text": text, "label": "sad" if "sad" in text else "glad"} for text in TEXTS],
    "multilabel_classification": [
        {"text": text, "labels": sorted({word for word in text.split() if word in ANIMALS[:3]})} for text in TEXTS
    ],
    "question_answering": [
        {"context": text, "question": "Who saw it?", "answers": [{"text": text.split()[1], "start": 4}] if number % 2 else []}
        for number, text in enumerate(TEXTS)
    ],
    "token_classification": [
        {"tokens": text.split(), "tags": ["B-PET" if word in ANIMALS else "O" for word in text.split()]} for text in TEXTS
    ],
    "regression": [{"text": text, "value": 10.0 * len(text)} for text in TEXTS],
    "retrieval": [{"text": text, "positive": " ".join(reversed(text.split()))} for text in TEXTS],
    "sequence_to_sequence": [{"source": text, "target": text.split()[1]} for text in TEXTS],
    "similarity": [
        {"text": text, "text_pair": TEXTS[number // 2], "score": float(number % 2)} for number, text in enumerate(TEXTS)
    ],
}  # fmt: skip
JUDGED = all(importlib.util.find_spec(name) for name in ("sacrebleu", "rouge_score"))
judged = pytest.mark.skipif(not JUDGED, reason="make setup-data installs what judges sequence to sequence")
NAMES = [name for name in sorted(ROWS) if JUDGED or name != "sequence_to_sequence"]
FAMILIES = {
    "causal": "llama",
    "mlm": "bert",
    "rtd": "electra",
    "span_corruption": "t5",
    "denoising": "bart",
    "contrastive": "bert",
}


NO_HEAD = {("token_classification", "denoising")}  # transformers has no such class


def parent(folder, name, architecture=None, tokenizer=None):
    """Write a small model with random weights as an objective would hand it on; return its folder."""
    objective = objectives.load(name)
    tokenizer = tokenizer or tokenization.train(TEXTS, 400, 64, objective.tokenizer_type)
    torch.manual_seed(0)
    model = objective.build_model(
        tokenizer, architecture or objective.architectures[0], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    objective.save(model, tokenizer, folder)
    return folder


def fits(name):
    """Return the objective whose model a task takes."""
    return "span_corruption" if name == "sequence_to_sequence" else "mlm"


def examples_of(name, folder, rows=None, max_length=32, **options):
    """Return task, tokenizer, model, and a data set of examples."""
    task = tasks.load(name, options)
    rows = Rows(kept=rows or ROWS[name][:24])
    tokenizer = tokenization.load(str(folder))
    model = task.load_model(str(folder), task.labels(rows.kept))
    made = task.examples(rows, tokenizer, max_length, list(model.config.id2label.values()))
    return task, tokenizer, model, list(made), rows


def column(name, path, folder, rows=None, **options):
    task, tokenizer, model, made, _ = examples_of(name, folder, rows, **options)
    return task, tokenizer, model, token_tables.numbered(token_tables.write(made, path))


# Each by hand: what a row becomes.


def test_two_texts_and_a_label_by_hand(parents):
    rows = [{"text": "The cat", "text_pair": "the dog", "label": "yes"}, {"text": "The hen", "text_pair": "a", "label": "no"}]
    _, words, _, made, _ = examples_of("classification", parents["mlm"], rows)
    assert words.convert_ids_to_tokens(made[0]["input_ids"]) == ["[CLS]", "The", "cat", "[SEP]", "the", "dog", "[SEP]"]
    assert made[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert [row["label"] for row in made] == [1, 0]  # no, yes


def test_an_answer_in_windows_by_hand(parents):
    row = {"context": "The cat saw the dog and was glad of it.", "question": "Who?", "answers": [{"text": "dog", "start": 16}]}
    _, words, _, made, _ = examples_of("question_answering", parents["mlm"], [row], max_length=12, stride=2)
    shown = [words.convert_ids_to_tokens(window["input_ids"]) for window in made]
    question = len(words.encode("Who?", add_special_tokens=False))
    assert len(shown) > 1
    assert all(window[0] == "[CLS]" and window[-1] == "[SEP]" for window in shown)
    holding = [(window, row) for window, row in zip(shown, made, strict=True) if "dog" in window[question + 2 :]]
    assert holding
    for window, found in zip(shown, made, strict=True):
        there = "dog" in window[question + 2 :]
        assert (found["start"], found["end"]) == ((window.index("dog"),) * 2 if there else (0, 0))
    inner = [window[question + 2 : -1] for window in shown]
    assert inner[0][-2:] == inner[1][:2]  # the stride
    assert all(found["row"] == 0 for found in made)


def test_an_answer_that_no_window_holds_is_counted(parents):
    rows = [
        {
            "context": "The cat saw the dog and was glad of it.",
            "question": "Who?",
            "answers": [{"text": "cat saw the dog and was glad", "start": 4}],
        },
        {"context": "The cat.", "question": "Who was it that saw the dog and was glad of it?", "answers": []},
    ]
    task, words, model, made, counted = examples_of("question_answering", parents["mlm"], rows, max_length=10, stride=1)
    judged = Rows(kept=rows)
    task.predict(model, words, judged, 10)
    assert judged.truncated == {"question that leaves no more than 1 of 10 tokens for the context": 1}
    assert made == []
    assert counted.dropped_by_encoding == {
        "answer that no window holds": 1,
        "question that leaves no more than 1 of 10 tokens for the context": 1,
    }


def test_tags_stand_at_the_last_piece_of_a_word_and_no_word_is_lost(parents):
    rows = [{"tokens": ["The", "catdog", "saw"], "tags": ["O", "B-PET", "O"]}]
    _, words, model, made, _ = examples_of("token_classification", parents["mlm"], rows)
    pieces = words.convert_ids_to_tokens(made[0]["input_ids"])
    assert pieces[:3] == ["[CLS]", "The", "cat"]
    assert pieces[-2:] == ["saw", "[SEP]"]
    tag = model.config.label2id
    inside = len(pieces) - 5
    assert inside > 0
    assert made[0]["labels"] == [IGNORED, tag["O"], *[IGNORED] * inside, tag["B-PET"], tag["O"], IGNORED]
    long = [{"tokens": TEXTS[0].split() * 9, "tags": ["O"] * len(TEXTS[0].split()) * 9}]
    *_, windows, _ = examples_of("token_classification", parents["mlm"], long)
    assert len(windows) > 1
    assert sum(label != IGNORED for window in windows for label in window["labels"]) == len(long[0]["tokens"])


@pytest.mark.parametrize("name", ["causal", "mlm", "span_corruption"])
def test_words_are_found_again_under_every_tokenizer(parents, name):
    _, words, _, made, _ = examples_of("token_classification", parents[name])
    for example, row in zip(made, ROWS["token_classification"], strict=False):
        ends = [
            words.decode([token]).strip()
            for token, label in zip(example["input_ids"], example["labels"], strict=True)
            if label != IGNORED
        ]
        assert len(ends) == len(row["tokens"])
        assert all(word.endswith(piece.removeprefix("##")) for word, piece in zip(row["tokens"], ends, strict=True))


@judged
def test_source_and_target_by_hand(parents):
    rows = [{"source": "The cat saw", "target": "the dog"}, {"source": "The hen", "target": "glad " * 40}]
    _, words, _, made, counted = examples_of(
        "sequence_to_sequence", parents["span_corruption"], rows, prefix="was it ", longest_target=8
    )
    assert words.decode(made[0]["input_ids"]) == "was it The cat saw</s>"
    assert words.decode(made[0]["labels"]) == "the dog</s>"
    assert len(made) == 1
    assert counted.dropped_by_encoding == {"target of more than 8 tokens": 1}


def test_cut_texts_are_counted(parents):
    rows = [{"text": TEXTS[0] * 9, "label": "a"}, {"text": "b", "label": "b"}]
    task, words, model, made, counted = examples_of("classification", parents["mlm"], rows)
    assert len(made[0]["input_ids"]) == 32
    judged = Rows(kept=rows)
    task.predict(model, words, judged, 32)
    assert counted.truncated == judged.truncated == {"ends of texts of more than 32 tokens": 1}


# The loss and what is trained.


@pytest.mark.parametrize("name", [name for name in NAMES if tasks.declared(name).accumulates])
def test_accumulation_is_exact(parents, tmp_path, one_step, name):
    """The gradient's norm of 4 batches of 2 over that of 1 batch of 8, each part by its own items."""
    from pipeline.training.trainer import TaskTrainer

    norms = []
    options = {"balance": "weights"} if name == "classification" else {"stride": 4} if name == "question_answering" else {}
    for size, parts in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        task, words, model, dataset = column(name, tmp_path / f"{size}.arrow", parents[fits(name)], **options)
        norms.append(one_step(TaskTrainer, task, model, task.collator(words, dataset), dataset, words, size, parts))
    assert norms[1] / norms[0] == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize("source", [*FAMILIES, "modernbert", "roberta", "gpt2", "qwen3"])
@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_taken_or_refused_in_words(parents, tmp_path, name, source):
    """One step and one answer of each task on each family."""
    kind = {"modernbert": "mlm", "roberta": "mlm", "gpt2": "causal", "qwen3": "causal"}.get(source, source)
    folder = parents.get(source) or parent(tmp_path / "parent", kind, source)
    task = tasks.load(name)
    if objectives.load(kind).family not in task.accepts:
        pytest.skip("refused by its family")
    options = {"stride": 4} if name == "question_answering" else {}
    if (name, source) in NO_HEAD:
        with pytest.raises(UserError, match="can't load it"):
            examples_of(name, folder, **options)
        return
    task, words, model, made, _ = examples_of(name, folder, **options)
    from pipeline.training import guards

    guards.agree(words, model)
    made = list(task.examples(Rows(kept=ROWS[name][:24]), words, 32, list(model.config.id2label.values())))
    dataset = token_tables.numbered(token_tables.write(made, tmp_path / "rows.arrow"))
    columns = [key for key in dataset.column_names if key not in ("row", "example")]
    batch = task.collator(words, dataset)([{key: row[key] for key in columns} for row in dataset.select(range(4))])
    loss = task.losses(model, batch)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    said = task.predict(model, words, Rows(kept=ROWS[name][:5]), 32)
    alone = task.predict(model, words, Rows(kept=ROWS[name][:1]), 32)
    assert len(said) == 5
    assert json.loads(json.dumps(said)) == said
    assert said[0].keys() == alone[0].keys()
    for mine, theirs in zip(said[0].values(), alone[0].values(), strict=True):  # whatever it is answered beside
        if isinstance(mine, float):
            assert mine == pytest.approx(theirs, abs=1e-4)
    assert set(task.figures(ROWS[name][:5], said)) >= {task.primary}


@pytest.mark.parametrize("source", mostly_slow(FAMILIES, "causal", "mlm", "span_corruption"))
@pytest.mark.parametrize("name", NAMES)
def test_the_body_is_the_parents_and_each_strategy_trains_all_that_it_says(parents, name, source):
    """Some classes look for a parent's body under another name and leave it random; some read tokens elsewhere."""
    from transformers import AutoModel

    task = tasks.load(name, {"stride": 4} if name == "question_answering" else {})
    if objectives.load(source).family not in task.accepts or (name, source) in NO_HEAD:
        pytest.skip("refused")
    body = AutoModel.from_pretrained(parents[source]).state_dict()
    for strategy in ("full", "frozen", "last_n", "lora", "prompt"):
        words = tokenization.load(str(parents[source]))
        model = task.load_model(str(parents[source]), task.labels(ROWS[name]))
        own = model.base_model.state_dict()
        shared = [key for key in body if key in own and not key.startswith("pooler")]
        assert len(shared) > 10
        assert all(torch.equal(own[key], body[key]) for key in shared)
        prompt = []
        if strategy == "prompt":
            words, prompt = add_prompt(words, model, 2)
        made = list(task.examples(Rows(kept=ROWS[name][:8]), words, 32, list(model.config.id2label.values())))
        if not any(True for _ in strategies.heads(model)) and strategy == "frozen":
            with pytest.raises(UserError, match="leaves nothing to train"):
                strategies.chosen(strategy, model, 1, 4, 8, prompt)
            continue
        model = strategies.chosen(strategy, model, 1, 4, 8, prompt)
        assert all(token not in prompt for row in made for token in row.get("labels", []))
        assert all(row["input_ids"].count(token) == 1 for row in made for token in prompt)
        dataset = token_tables.numbered(token_tables.write(made, parents[source] / f"{name}-{strategy}.arrow"))
        columns = [key for key in dataset.column_names if key not in ("row", "example", "token_type_ids")]
        task.losses(model, task.collator(words, dataset)([{key: row[key] for key in columns} for row in dataset]))[
            "loss"
        ].backward()
        trained = {key for key, value in model.named_parameters() if value.requires_grad}
        still = {key for key in trained if model.get_parameter(key).grad is None}
        assert trained
        assert not still, strategy


def changed(before, model):
    after = dict(model.named_parameters())
    return {name for name, value in before.items() if name in after and not torch.equal(value, after[name])}


@pytest.mark.parametrize(
    ("strategy", "trained"),
    [
        ("full", {"embeddings", "layer.0", "layer.1", "pooler", "classifier"}),
        ("frozen", {"pooler", "classifier"}),
        ("last_n", {"layer.1", "pooler", "classifier"}),
        ("lora", {"layer.0", "layer.1", "pooler", "classifier"}),
        ("prompt", {"word_embeddings", "pooler", "classifier"}),
    ],
)
def test_a_strategy_trains_what_it_says_and_nothing_else(parents, strategy, trained):
    torch.manual_seed(0)
    task, words, model, made, _ = examples_of("classification", parents["mlm"])
    prompt = []
    if strategy == "prompt":
        words, prompt = add_prompt(words, model, 3)
        made = list(task.examples(Rows(kept=ROWS["classification"][:24]), words, 32, ["glad", "sad"]))
        assert words.convert_ids_to_tokens(made[0]["input_ids"])[:5] == [
            "[CLS]",
            "<prompt_0>",
            "<prompt_1>",
            "<prompt_2>",
            "The",
        ]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    adapted = strategies.chosen(strategy, model, 1, 4, 8, prompt)
    optimizer = torch.optim.AdamW([value for value in adapted.parameters() if value.requires_grad], lr=0.01)
    rows = [{key: row[key] for key in ("input_ids", "token_type_ids", "label")} for row in made[:8]]
    from pipeline.tasks.classification import Weighted

    batch = Weighted(0, np.ones(2))(rows)
    for _step in range(3):
        optimizer.zero_grad()
        task.losses(adapted, batch)["loss"].backward()
        optimizer.step()
    whole = adapted.merge_and_unload() if hasattr(adapted, "merge_and_unload") else adapted
    moved = changed(before, whole)
    assert {part for part in trained if any(part in name for name in moved)} == trained
    assert all(any(part in name for part in trained) for name in moved)
    if strategy == "prompt":
        words_before, words_after = before["bert.embeddings.word_embeddings.weight"], whole.get_input_embeddings().weight
        rest = torch.ones(len(words_after), dtype=torch.bool)
        rest[prompt] = False
        assert torch.equal(words_before[rest[: len(words_before)]], words_after[rest])
        assert not torch.equal(words_before[prompt], words_after[prompt])


def test_prompts_come_with_the_plain_checkpoint(parents, tmp_path):
    from transformers import AutoTokenizer

    for name in FAMILIES:
        words = tokenization.load(str(parents[name]))
        model = objectives.load(name).load_model(str(parents[name]))
        made, ids = add_prompt(words, model, 2)
        made.save_pretrained(tmp_path / name)
        again = AutoTokenizer.from_pretrained(tmp_path / name)
        plain = tokenization.load(str(parents[name]))
        text = "The cat saw the dog."
        assert [token for token in again(text)["input_ids"] if token not in ids] == plain(text)["input_ids"]
        assert [token for token in again(text)["input_ids"] if token in ids] == ids
        assert model.get_input_embeddings().weight.shape[0] >= len(again)
        assert again.all_special_tokens[: len(plain.all_special_tokens)] == plain.all_special_tokens


@judged
def test_what_leaves_nothing_to_train_is_refused(parents, tmp_path):
    model = tasks.load("sequence_to_sequence").load_model(str(parents["span_corruption"]))
    with pytest.raises(UserError, match="leaves nothing to train"):
        strategies.chosen("frozen", model, 1, 4, 8, [])
    model = tasks.load("classification").load_model(str(parents["mlm"]), ["a", "b"])
    with pytest.raises(UserError, match="no 9 layers of its own"):
        strategies.chosen("last_n", model, 9, 4, 8, [])
    albert = tasks.load("classification").load_model(str(parent(tmp_path / "albert", "mlm", "albert")), ["a", "b"])
    with pytest.raises(UserError, match="no 1 layers of its own"):
        strategies.chosen("last_n", albert, 1, 4, 8, [])


@judged
def test_both_stacks_of_an_encoder_decoder_train_their_last_layer(parents):
    for name in ("span_corruption", "denoising"):
        model = tasks.load("sequence_to_sequence").load_model(str(parents[name]))
        strategies.chosen("last_n", model, 1, 4, 8, [])
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        assert {side for side in ("encoder", "decoder") if any(side in name and ".1." in name for name in trained)} == {
            "encoder",
            "decoder",
        }
        assert not any(".0." in name.replace("layer.0", "") and "layers.0" in name for name in trained)


# Skewed labels.


def skewed(path, folder, balance):
    rows = [
        *ROWS["classification"][:3],
        *[{"text": text, "label": "rare"} for text in TEXTS[:2]],
        {"text": "a", "label": "once"},
    ]
    rows = [{"text": f"{row['text']} {number}", "label": row["label"]} for number, row in enumerate(rows)]
    return column("classification", path, folder, rows, balance=balance)


def test_weights_have_a_mean_of_one_over_the_rows(parents, tmp_path):
    task, words, _, dataset = skewed(tmp_path / "rows.arrow", parents["mlm"], "weights")
    batch = task.collator(words, dataset)([{key: row[key] for key in ("input_ids", "label")} for row in dataset])
    assert float(batch["weight"].mean()) == pytest.approx(1)
    by_label = {int(label): float(weight) for label, weight in zip(batch["label"], batch["weight"], strict=True)}
    counts = Counter(dataset["label"])
    assert len({round(weight * counts[label], 5) for label, weight in by_label.items()}) == 1


def test_sampling_gives_every_label_as_many_and_leaves_nothing_out(parents, tmp_path):
    task, _, _, dataset = skewed(tmp_path / "rows.arrow", parents["mlm"], "sampling")
    arranged = task.arrange(dataset, 1)
    assert set(Counter(arranged["label"]).values()) == {max(Counter(dataset["label"]).values())}
    assert set(arranged["row"]) == set(dataset["row"])
    assert arranged["row"] == task.arrange(dataset, 1)["row"]


def test_tags_of_another_scheme_are_refused_or_stand_for_themselves():
    rows = [{"tokens": ["a"], "tags": ["NOUN"]}, {"tokens": ["b"], "tags": ["O"]}]
    with pytest.raises(UserError, match=r"'NOUN' is not O, B-… or I-….*scheme: plain"):
        tasks.load("token_classification").labels(rows)
    with pytest.raises(UserError, match=r"'S-A' is not O, B-… or I-…; .*single ones, set task_options: {scheme: iobes}"):
        tasks.load("token_classification").labels([{"tags": ["B-A", "S-A"]}])
    plain = tasks.load("token_classification", {"scheme": "plain"})
    assert plain.labels(rows) == ["NOUN", "O"]
    assert set(plain.figures(rows, [{"tags": ["NOUN"]}, {"tags": [""]}])) == {plain.primary} == {"accuracy"}


def test_words_without_a_piece_are_counted_and_not_answered(parents):
    rows = [{"tokens": ["The", "\u200b", "cat"], "tags": ["O", "O", "B-PET"]}]
    task, words, model, _, counted = examples_of("token_classification", parents["mlm"], rows)
    assert counted.truncated == {"words that the tokenizer has no token for": 1}
    judged = Rows(kept=rows)
    assert task.predict(model, words, judged, 32)[0]["tags"][1] == ""
    assert judged.truncated == counted.truncated


def test_what_looks_like_a_special_token_is_text(parents):
    rows = [{"text": "a [SEP] b </s>", "label": "x"}, {"text": "b", "label": "y"}]
    for name in ("mlm", "span_corruption"):
        _, words, _, made, _ = examples_of("classification", parents[name], rows)
        assert sum(token in words.all_special_ids for token in made[0]["input_ids"]) == sum(
            token in words.all_special_ids for token in made[1]["input_ids"]
        ) + made[0]["input_ids"].count(words.unk_token_id)


def test_labels_of_a_parent_with_a_head_keep_their_numbers(parents, tmp_path):
    task = tasks.load("classification")
    model = task.load_model(str(parents["mlm"]), ["sad", "glad"])
    assert model.config.id2label == {0: "sad", 1: "glad"}
    model.save_pretrained(tmp_path / "head")
    tokenization.load(str(parents["mlm"])).save_pretrained(tmp_path / "head")
    again = task.load_model(str(tmp_path / "head"), ["glad", "sad"])
    assert again.config.id2label == {0: "sad", 1: "glad"}
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    other = task.load_model(str(tmp_path / "head"), ["a", "b", "c"])
    assert other.classifier.weight.shape[0] == 3
    other = task.load_model(str(tmp_path / "head"), ["happy", "glum"])  # as many, but others
    assert not torch.equal(other.classifier.weight, model.classifier.weight)
    assert torch.equal(other.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)
