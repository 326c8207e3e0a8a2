"""How long training waits for its batches of pictures, in seconds of the processor: at most 5% of its time.

    python -m pytest -m measured -s tests/test_waits.py

The sizes are those of profiles `vision` and `emoji`, the pictures drawn scenes. Batches are made where the model is trained, so
that no worker hides what they take.
"""

import importlib
import itertools
import json
import time

import pytest

from pipeline import ROOT
from tests.conftest import last, make_quietly

pytestmark = pytest.mark.measured
PROFILES = ROOT / "stages" / "profiles"
ROWS, WARM, STEPS = 640, 5, 25
READS = {"pretrain": "text", "pretrain-clip": "image_text", "sft": "messages"}  # nodes of profile `vision`
MOST = 0.05


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Return the flags of a node of the profile on its first rows, made in a folder of its own."""
    folder = tmp_path_factory.mktemp("waits")
    scenes = importlib.import_module("data_recipes.scenes")

    def found(name):
        kind, path = READS.get(name, "image_text"), folder / f"{name}.jsonl"
        rows = itertools.islice(getattr(scenes, kind)("train", 42), ROWS)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        profile, more = ("vision", []) if name in READS else ("emoji", ["--flops", 0])
        if name == "sft":
            more = ["--parent", folder / "pretrain", "--vision", folder / "pretrain-clip"]
        named = {"config": PROFILES / profile / f"{name}.yaml", "data": path, "output": folder / name, "save_strategy": "'no'"}
        return [*(word for key, value in named.items() for word in (f"--{key}", value)), *more]

    return found


def waited(name, flags):
    """Train a node for some steps; return the seconds of the processor that its batches take and those of all, without the first steps."""
    from pipeline.training.trainer import StageTrainer

    spent, ends, ask = [], [], StageTrainer.get_batch_samples

    def watched(trainer, *given):
        began = time.process_time()
        ends.append(began)
        found = ask(trainer, *given)
        spent.append(time.process_time() - began)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageTrainer, "get_batch_samples", watched)
        make_quietly(name.partition("-")[0], *last([*flags, "--max_steps", WARM + STEPS + 1]))
    assert len(ends) == WARM + STEPS + 1
    return sum(spent[WARM:-1]), ends[-1] - ends[WARM]


def test_training_hardly_waits_for_pictures(flags):
    make_quietly("pretrain", *last([*flags("pretrain"), "--max_steps", 1]))
    shares = {}
    for name in ("pretrain-simclr", "pretrain-mae", "pretrain-clip", "sft"):
        batches, whole = waited(name, flags(name))
        shares[name] = batches / whole
        print(f"\n{name}: batches take {shares[name]:.1%} of the time: {1000 * batches / STEPS:.1f} of {1000 * whole / STEPS:.1f} ms a step")  # fmt: skip
    assert all(share <= MOST for share in shares.values()), shares
