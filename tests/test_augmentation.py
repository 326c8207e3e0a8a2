"""Augmentation: each by hand, what it may change, that it is drawn by seed, stage, epoch and example alone, on training rows only."""

import json
import shutil

import numpy as np
import pytest

from pipeline import ROOT, augmentation
from pipeline.augmentation.collator import Varying
from pipeline.chain import manifest
from pipeline.data import types
from pipeline.models import tokenization
from pipeline.system.errors import UserError
from pipeline.tasks import load
from tests.conftest import Fails
from tests.test_finetune import flags, write_rows
from tests.test_predict import lines
from tests.test_tasks import ROWS, examples_of


def varied(name, ids, special, options=None, seed=0):
    class Words:
        mask_token_id, unk_token_id = 4, 1

    ids = np.array(ids)
    made = augmentation.load(name, options).vary(ids, ~np.isin(ids, special), Words(), np.random.default_rng(seed))
    assert len(made) == len(ids)
    return made.tolist()


def test_token_dropout_hides_a_share_and_nothing_special():
    ids = [2, *range(10, 1010), 3, *range(2000, 3000), 3]
    found = varied("token_dropout", ids, [2, 3], {"share": 0.2})
    hidden = [place for place, (one, two) in enumerate(zip(ids, found, strict=True)) if one != two]
    assert {found[place] for place in hidden} == {4}
    assert 340 < len(hidden) < 460
    assert [found[0], found[1001], found[-1]] == [2, 3, 3]


@pytest.mark.parametrize("seed", range(20))
def test_span_swap_moves_tokens_within_their_text(seed):
    ids = [2, 10, 11, 12, 13, 14, 15, 3, 20, 21, 3, 30, 3]
    found = varied("span_swap", ids, [2, 3], {"longest": 2}, seed)
    assert sorted(found[1:7]) == ids[1:7]
    assert found[8:10] == [21, 20]
    assert [found[place] for place in (0, 7, 10, 11, 12)] == [2, 3, 3, 30, 3]
    moved = [place for place in range(1, 7) if found[place] != ids[place]]
    assert len(moved) in (2, 4)  # two spans of one token or of two
    if len(moved) == 4:
        assert moved[1] == moved[0] + 1
        assert moved[3] == moved[2] + 1
        assert [found[place] for place in moved] == [ids[place] for place in (*moved[2:], *moved[:2])]


def test_every_swap_of_spans_can_be_drawn():
    """Of three tokens, one each: the three pairs, each about as often."""
    drawn = [tuple(varied("span_swap", [10, 11, 12], [], {"longest": 1}, seed)) for seed in range(600)]
    counts = {found: drawn.count(found) for found in set(drawn)}
    assert counts.keys() == {(11, 10, 12), (12, 11, 10), (10, 12, 11)}
    assert min(counts.values()) > 150


@pytest.mark.parametrize("name", ["token_dropout", "span_swap"])
def test_what_is_drawn_depends_on_seed_stage_epoch_and_example_alone(parents, name):
    task, words, _, made, _ = examples_of("classification", parents["mlm"])
    rows = [{key: value for key, value in row.items() if key != "row"} | {"example": number} for number, row in enumerate(made)]

    def drawn(numbers, seed=1, stage="a", epoch=0):
        collator = Varying(task.collator(words, _Column(made)), augmentation.load(name), words, seed, stage)
        collator.epoch = epoch
        batch = collator([rows[number] for number in numbers])
        assert "example" not in batch
        return [ids[mask == 1].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]

    every = list(range(len(rows)))
    first = drawn(every)
    assert first != [row["input_ids"] for row in rows]
    assert drawn(every[::-1])[::-1] == first
    assert [drawn([number])[0] for number in every] == first
    for other in ({"seed": 2}, {"stage": "b"}, {"epoch": 1}):
        assert drawn(every, **other) != first
    assert drawn(every, epoch=1) == drawn(every, epoch=1)


class _Column:
    """A data set of which a collator reads one column."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, name):
        return [row[name] for row in self.rows]


def test_training_rows_alone_are_varied(run, parents, tmp_path, monkeypatch):
    """The weights are others, the held-out predictions are those of the model on whole texts; a killed run ends with the same."""
    from pipeline.training.trainer import TaskTrainer

    plain, two = tmp_path / "plain", tmp_path / "two"
    given = {}
    for folder, more in ((plain, []), (two, ["--augmentation", "token_dropout", "--augmentation_options", "{share: 0.5}"])):
        folder.mkdir()
        given[folder] = flags("classification", parents, folder, "--save_steps", "2", *more)
        status, out, err = run("finetune", *given[folder])
        assert status == 0, err
    whole = manifest.read(two / "out")
    assert whole["config"]["augmentation"] == "token_dropout"
    assert whole["files"]["model.safetensors"] != manifest.read(plain / "out")["files"]["model.safetensors"]
    known = lines(two / "out/predictions.jsonl")
    assert [line["row"] for line in known] == [line["row"] for line in lines(plain / "out/predictions.jsonl")]
    task = load("classification")
    from pipeline.data.recipe import Rows

    again = task.predictor(str(two / "out"), 32)(Rows(kept=[line["row"] for line in known]))
    assert [line["label"] for line in again] == [line["said"]["label"] for line in known]

    killed = tmp_path / "killed"
    killed.mkdir()
    argv = [str(one).replace(str(two), str(killed)) for one in given[two]]
    shutil.copy(two / "rows.jsonl", killed / "rows.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "training_step", Fails(TaskTrainer.training_step, 3))
        assert run("finetune", *argv)[0] == 1
    status, out, err = run("finetune", *argv)
    assert status == 0, err
    assert "goes on from checkpoint-2" in out
    assert manifest.read(killed / "out")["files"]["model.safetensors"] == whole["files"]["model.safetensors"]


@pytest.mark.parametrize(
    "task", ["question_answering", "token_classification", "regression", "multilabel_classification", "similarity"]
)
def test_tokens_are_hidden_in_every_task(run, parents, tmp_path, task):
    status, _, err = run("finetune", *flags(task, parents, tmp_path, "--augmentation", "token_dropout"))
    assert status == 0, err


@pytest.mark.parametrize(
    ("task", "name", "said"),
    [
        ("question_answering", "span_swap", "span_swap: moves words, and this task's targets are positions of words; try token_dropout"),
        ("token_classification", "back_translation", "back_translation: moves words"),
        ("retrieval", "token_dropout", "changes tokens, by which this task finds equal texts in a batch; try back_translation"),
        ("classification", "noise", "augmentation: noise: no such augmentation; known are back_translation, span_swap, token_dropout"),
        ("classification", "back_translation", "command line: --translator is missing; finetune needs a seq2seq model"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(run, parents, tmp_path, task, name, said):
    status, _, err = run("finetune", *flags(task, parents, tmp_path, "--augmentation", name))
    assert status == 2
    assert said in err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_options_without_an_augmentation_and_tokenizers_without_a_mask_are_refused(run, parents, tmp_path):
    status, _, err = run("finetune", *flags("classification", parents, tmp_path, "--augmentation_options", "{share: 0.2}"))
    assert status == 2
    assert "augmentation_options: are read only with an augmentation" in err
    status, _, err = run("finetune", *flags("classification", parents, tmp_path, "--augmentation", "token_dropout", "--augmentation_options", "{shore: 0.2}"))  # fmt: skip
    assert status == 2
    assert "shore: unknown key; did you mean share?" in err
    causal = {"mlm": parents["causal"]}
    status, _, err = run("finetune", *flags("classification", causal, tmp_path, "--augmentation", "token_dropout"))
    assert status == 2
    assert "augmentation: the tokenizer has neither a mask token nor an unknown one" in err


@pytest.fixture
def reversing(monkeypatch):
    """A translation that is known: there, each word reversed; back, words alone."""
    from pipeline.augmentation.back_translation import BackTranslation

    asked = []

    def translated(self, role, folder, prefix, texts):
        asked.append((folder, prefix, len(texts)))
        return [text if prefix == "back: " else " ".join(reversed(text.split())) for text in texts]

    monkeypatch.setattr(BackTranslation, "_translated", translated)
    return asked


def test_further_rows_stand_beside_their_own_and_never_on_the_other_side(run, parents, tmp_path, reversing):
    rows = [*ROWS["classification"], {"text": "same", "label": "sad"}]
    rows.append({"text": " ".join(reversed(rows[3]["text"].split())), "label": "sad"})  # what row 3 becomes
    write_rows(tmp_path / "mine.jsonl", rows[:-1])
    write_rows(tmp_path / "last.jsonl", [rows[-1], {"text": "another", "label": "glad"}])
    given = flags("classification", parents, tmp_path, "--augmentation", "back_translation")
    options = {"prefix": "there: ", "back_prefix": "back: "}
    at = given.index("--data")
    given = [*given[:at], *given[at + 2 :], "--data", f"{tmp_path}/mine.jsonl=1,{tmp_path}/last.jsonl=held_out"]
    status, out, err = run("finetune", *given, "--augmentation_options", json.dumps(options),
                           "--translator", parents["span_corruption"])  # fmt: skip
    assert status == 0, err
    record = manifest.read(tmp_path / "out")
    others = len(ROWS["classification"]) - 1
    assert record["augmentation"] == {"rows": others, "examples": others, "dropped": {}}
    assert f"augmentation: {others} further rows of {len(rows) - 1}" in out
    assert f"on {others + len(rows) - 1:,} examples" in out
    assert record["recipe"]["kept"] == len(rows) - 1
    assert [line["row"]["text"] for line in lines(tmp_path / "out/predictions.jsonl")] == [rows[-1]["text"], "another"]
    assert len(reversing) == 2
    assert {"parent", "translator"} == set(record["request"]["parents"])


def test_each_text_of_a_row_is_translated_and_its_answer_stays(parents, reversing):
    made = augmentation.load("back_translation", {"back_prefix": "back: "})
    models = {"translator": str(parents["span_corruption"])}
    rows = [{"text": "a b", "text_pair": "c d", "label": "x"}, {"text": "e", "text_pair": "f", "label": "y"}]
    assert list(made.further(rows, types.load("labels"), models)) == [(0, {"text": "b a", "text_pair": "d c", "label": "x"})]
    rows = [{"source": "a b", "target": "c d"}]
    assert list(made.further(rows, types.load("translation"), models)) == [(0, {"source": "b a", "target": "c d"})]


def translator(parent, folder):
    """Return a copy of an encoder-decoder with large random weights that says words alone."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(parent, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: 3 * values for name, values in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"suppress_tokens": tokenization.load(str(folder)).all_special_ids}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_a_translation_is_the_one_that_the_library_gives(parents, tmp_path):
    """Of a model with random weights, text by text, whatever is translated beside it."""
    from transformers import AutoModelForSeq2SeqLM

    folder = translator(parents["span_corruption"], tmp_path / "model")
    made = augmentation.load("back_translation", {"prefix": "The ", "max_new_tokens": 7, "num_beams": 2})
    texts = [row["text"] for row in ROWS["classification"][:9]] + ["a", "a </s> b <extra_id_0>"]
    model, words = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), tokenization.load(folder)
    wanted = []
    for text in texts:
        ids = model.generate(
            **words("The " + text, return_tensors="pt", split_special_tokens=True),
            max_new_tokens=7,
            num_beams=2,
            do_sample=False,
        )
        wanted.append(words.decode(ids[0], skip_special_tokens=True).strip())
    assert all(wanted)
    assert len(set(wanted)) > 5
    assert made._translated("translator", folder, "The ", texts) == wanted


@pytest.mark.parametrize("model", ["span_corruption", "denoising"])
def test_any_encoder_decoder_translates(run, parents, tmp_path, model):
    """Whole runs with models of random weights that say words alone: T5 there, and T5 or BART back."""
    folders = [translator(parents[name], tmp_path / way) for name, way in (("span_corruption", "there"), (model, "back"))]
    roles = ["--translator", folders[0], "--back_translator", folders[1], "--augmentation_options", "{max_new_tokens: 5}"]
    given = flags("classification", parents, tmp_path, "--augmentation", "back_translation", *roles)
    status, out, err = run("finetune", *given)
    assert status == 0, err
    record = manifest.read(tmp_path / "out")
    assert {"parent", "translator", "back_translator"} == set(record["request"]["parents"])
    further = record["augmentation"]["rows"]
    assert f"augmentation: {further} further rows of {record['recipe']['kept']}" in out
    assert further > 10
    assert record["augmentation"]["examples"] == further


@pytest.mark.parametrize(
    ("harm", "said"),
    [("causal", "is a model of family causal, but finetune takes seq2seq as its translator"), ("no tokenizer", "knows no word of the texts"), ("weights", "can't be loaded"),
     ("silent", "augmentation: none of 82 rows came back with other words"), ("another tokenizer", "embeddings")],
)  # fmt: skip
def test_a_model_that_does_not_translate_is_one_plain_line(run, parents, tmp_path, harm, said):
    folder = shutil.copytree(parents["causal" if harm == "causal" else "span_corruption"], tmp_path / "model")
    if harm == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    if harm == "another tokenizer":
        words = tokenization.load(str(folder))
        words.add_tokens([f"word{number}" for number in range(5000)])
        words.save_pretrained(folder)
    if harm == "weights":
        (folder / "model.safetensors").write_bytes(b"broken")
    given = flags("classification", parents, tmp_path, "--augmentation", "back_translation", "--translator", folder)
    status, _, err = run("finetune", *given)
    assert status == 2
    assert said in err
    assert harm == "silent" or str(folder) in err
    assert "Traceback" not in err


def test_a_new_augmentation_is_one_file(monkeypatch, tmp_path):
    """It is found by its name, as in a checkout that has the file."""
    source = (ROOT / "pipeline/augmentation/token_dropout.py").read_text()
    (tmp_path / "token_shuffle.py").write_text(source.replace("0.1,", "0.3,"))
    monkeypatch.setattr(augmentation, "__path__", [*augmentation.__path__, str(tmp_path)])
    assert "token_shuffle" in augmentation.known()
    assert augmentation.load("token_shuffle").share == 0.3
    with pytest.raises(UserError, match="share: expected at most"):
        augmentation.load("token_shuffle", {"share": 2})
