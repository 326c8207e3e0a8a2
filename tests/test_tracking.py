"""Trackers receive one run for each node, however often it is resumed, and one that fails never ends the training."""

import json
import sqlite3
import time

import pytest

from pipeline import ROOT
from pipeline.chain import manifest, resume
from tests.conftest import flags_of, last
from tests.forked import Forked

ALL = ("tensorboard", "wandb", "mlflow", "trackio")


@pytest.fixture
def trackers(monkeypatch, tmp_path):
    """Every tracker installed, without a network, writing into a folder of the test."""
    places = {
        "WANDB_MODE": "offline", "WANDB_DIR": tmp_path, "TRACKIO_DIR": tmp_path / "trackio",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlflow").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true",
    }  # fmt: skip
    for key, value in places.items():
        monkeypatch.setenv(key, str(value))
    for name in ALL:  # after the environment, which trackio reads when it is imported
        pytest.importorskip(name, reason="make setup-data installs the trackers")
    return tmp_path


def scalars(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(tag)]


def arrived(trackers):
    """Return the runs and entries that trackio's database holds; it sends late, from a thread of its own."""
    if not (trackers / "trackio" / "tristage.db").exists():
        return []
    with sqlite3.connect(trackers / "trackio" / "tristage.db") as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'metrics'").fetchone():
            return []
        return [(run, json.loads(metrics)) for run, metrics in database.execute("SELECT run_name, metrics FROM metrics")]


# Waits after a checkpoint, so that trackio, which sends late, from a thread of its own, has time before the kill.
WAITING = """
import runpy, time
from pipeline.chain import resume

def seal(checkpoint, sealed=resume.seal):
    sealed(checkpoint)
    time.sleep(600 if checkpoint.name == "checkpoint-20" else 0)

resume.seal = seal
runpy.run_path("stages/pretrain.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_killed_stage_goes_on_in_the_same_run_of_every_tracker(chain, data, trackers):
    folder = trackers / "mine" / "pretrain"
    flags = [*flags_of("pretrain", chain, data, folder), "--report_to", f"[{','.join(ALL)}]", "--logging_steps", "1"]
    flags += ["--max_steps", "60", "--save_steps", "10"]
    with Forked("-c", [WAITING, *last(flags)], trackers, group=True, checkout=str(ROOT)) as process:
        while not ((folder / "checkpoint-20" / resume.SEAL).exists() and arrived(trackers)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(9)
        process.wait()
    known = json.loads((folder / resume.TRACKED).read_text())
    with Forked("pretrain", flags, trackers) as process:
        out, err = process.communicate()
        assert process.returncode == 0, out + err
    name = f"mine/pretrain-{known['id']}"
    assert f"reports to {', '.join(ALL)} as {name}" in out

    losses = {entry["step"]: entry["loss"] for entry in map(json.loads, (folder / "log.jsonl").read_text().splitlines())}
    assert len(losses) == 60
    (place,) = (folder.parent / "tensorboard").iterdir()
    assert dict(scalars(place, "train/loss")) == pytest.approx(losses, rel=1e-5)

    import mlflow

    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'tristage'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (known["mlflow"], name, "FINISHED")
    assert {entry.step: entry.value for entry in client.get_metric_history(run.info.run_id, "loss")} == losses

    told = arrived(trackers)
    assert {run for run, _ in told} == {name}
    steps = {entry["train/global_step"] for _, entry in told if "train/loss" in entry}
    assert steps >= {1, *range(manifest.read(folder)["resumed_from"] + 1, 61)}  # it sends late: the kill took some with it
    wandb = sorted(path.name for path in (trackers / "wandb").iterdir() if path.name.startswith("offline-run-"))
    assert len(wandb) == 2  # parts of one run, which `wandb sync` puts together
    assert {part.rsplit("-", 1)[1] for part in wandb} == {known["id"]}
    assert not (folder / resume.TRACKED).exists()


@pytest.fixture
def tracker(monkeypatch):
    """TensorBoard's callback in a form that fails where it is told to."""
    from transformers.integrations import TensorBoardCallback

    from pipeline.training import tracking

    class Failing(TensorBoardCallback):
        fails = "on_log"

        def __init__(self):
            self.logging_dir, self.calls = None, 0

        def on_train_begin(self, *_, **__):
            self._fail("on_train_begin")

        def on_log(self, *_, **__):
            self._fail("on_log")

        def on_train_end(self, *_, **__):
            pass

        def _fail(self, event):
            if event == self.fails:
                raise ConnectionError("no route to the server")

    monkeypatch.setitem(tracking._KNOWN, "tensorboard", Failing)
    monkeypatch.setattr("transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK", {"tensorboard": Failing})
    return Failing


def test_a_tracker_that_fails_in_the_middle_is_told_of_once(run, chain, data, tmp_path, tracker):
    flags = [*flags_of("pretrain", chain, data, tmp_path / "out"), "--report_to", "tensorboard", "--logging_steps", "1"]
    status, out, err = run("pretrain", *flags)
    assert status == 0, err
    assert out.count("report_to: tensorboard failed (no route to the server); training goes on without it") == 1


def test_a_tracker_that_cannot_begin_stops_the_stage(run, chain, data, tmp_path, tracker):
    tracker.fails = "on_train_begin"
    status, _, err = run("pretrain", *flags_of("pretrain", chain, data, tmp_path / "out"), "--report_to", "tensorboard")
    assert (status, err) == (2, "pretrain: report_to: tensorboard can't begin a run: no route to the server\n")
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_is_not_installed_is_named(run, chain, data, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_trackio_available", lambda: False)
    status, _, err = run("pretrain", *flags_of("pretrain", chain, data, tmp_path / "out"), "--report_to", "trackio")
    assert status == 2
    assert "pip install trackio" in err
    assert not (tmp_path / "out").exists()
