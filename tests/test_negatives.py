"""Negatives of all processes: two processes take the step that one takes with a batch of both, and see no row of theirs twice."""

import json

import pytest
from safetensors.torch import load_file

from tests import test_clip
from tests.conftest import mostly_slow
from tests.forked import launched
from tests.test_finetune import flags as of_tasks
from tests.test_image_objectives import SIZES
from tests.test_image_objectives import flags as of_pictures
from tests.test_launch import ONE_STEP
from tests.test_tasks import parent

CASES = {
    "clip": lambda folder: test_clip.flags(folder),
    "simclr": lambda folder: of_pictures("simclr", folder),
    "fusion": lambda folder: of_pictures("fusion", folder, "--objective_options", "{parts: {mae: 1, simclr: 1}}"),
}


def moved(start, end):
    """How the weights moved, by name."""
    files = [path.relative_to(start) for path in start.rglob("model.safetensors")]
    return {
        f"{file}/{name}": weights - load_file(start / file)[name]
        for file in files
        for name, weights in load_file(end / file).items()
    }


@pytest.mark.parametrize("name", mostly_slow(list(CASES), "clip", "fusion"))
def test_two_processes_take_the_step_of_one(run, tmp_path, name):
    """Weights that move by the gradient alone: to 1e-5 of its largest entry, whatever rank a row is on."""
    given = CASES[name](tmp_path)
    assert run("pretrain", *given, "--max_steps", "2", "--output", tmp_path / "start")[0] == 0
    given = [*given[2 * len(SIZES) :], "--parent", tmp_path / "start", *ONE_STEP, "--max_grad_norm", "0"]
    one, two = tmp_path / "one", tmp_path / "two"
    status, _, err = run("pretrain", *given, "--per_device_train_batch_size", "8", "--output", one)
    assert status == 0, err
    said = launched("pretrain", [*given, "--per_device_train_batch_size", "4", "--output", two], tmp_path)
    assert said.count("done in") == 1
    wanted, found = moved(tmp_path / "start", one), moved(tmp_path / "start", two)
    assert len(wanted) > 20
    largest = max(float(one.abs().max()) for one in wanted.values())
    assert max(float((found[key] - wanted[key]).abs().max()) for key in wanted) < 1e-5 * largest


@pytest.mark.slow
def test_two_processes_fine_tune_embeddings_as_one_does(run, tmp_path):
    """The same for `retrieval`, whose rows have equal texts among them."""
    source = parent(tmp_path / "parent", "mlm")
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)))  # fmt: skip
    more = ["--optim", "sgd", "--learning_rate", "0.5", "--max_steps", "1", "--max_grad_norm", "0"]
    given = [*of_tasks("retrieval", {"mlm": source}, tmp_path), *more]
    one, two = tmp_path / "one", tmp_path / "two"
    status, _, err = run("finetune", *given, "--per_device_train_batch_size", "8", "--output", one)
    assert status == 0, err
    assert launched("finetune", [*given, "--per_device_train_batch_size", "4", "--output", two], tmp_path).count("done in") == 1
    start, wanted, found = (load_file(folder / "model.safetensors") for folder in (source, one, two))
    largest = max(float((weights - start[f"bert.{name}"]).abs().max()) for name, weights in wanted.items())
    assert max(float((found[name] - weights).abs().max()) for name, weights in wanted.items()) < 1e-5 * largest
