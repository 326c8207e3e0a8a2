"""A disk that fills up, a folder that can't be written: a plain line, and nothing is lost."""

import os
import resource
import shutil
from pathlib import Path

import pytest

from pipeline.chain import manifest, resume
from tests.conftest import flags_of
from tests.forked import Forked


def test_a_full_disk_is_a_plain_line_and_leaves_the_last_checkpoint(chain, data, tmp_path, run):
    """A limit on the size of files stands for a file system with no room left: every write beyond it fails."""
    flags = [*flags_of("pretrain", chain, data, tmp_path / "pretrain"), "--save_steps", "2"]
    size = (chain / "pretrain" / "model.safetensors").stat().st_size
    with Forked("pretrain", flags, tmp_path, limit=(resource.RLIMIT_FSIZE, size // 2)) as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "the disk is full or can't be written" in err or "File too large" in err
    assert "the same command goes on" in err
    assert not (tmp_path / "pretrain" / manifest.NAME).exists()
    status, _, err = run("pretrain", *flags)
    assert status == 0, err
    assert manifest.read(tmp_path / "pretrain")["outputs"] == manifest.read(chain / "pretrain")["outputs"]


def test_room_is_asked_for_before_the_first_step(run, chain, data, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    flags = [*flags_of("pretrain", chain, data, tmp_path / "pretrain"), "--save_steps", "1"]
    status, _, err = run("pretrain", *flags)
    assert status == 2
    assert "1.0 MB are free, but 3 checkpoints of" in err
    assert not (tmp_path / "pretrain").exists()


def test_room_is_estimated_from_above_and_not_by_much(run, chain, data, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(resume, "clear", lambda folder: None)  # let the checkpoints stay
    needed = resume.needed
    monkeypatch.setattr(resume, "needed", lambda *given: asked.append(needed(*given)) or asked[-1])
    for name in ("pretrain", "sft"):
        out = tmp_path / name
        assert run(name, *flags_of(name, chain, data, out))[0] == 0
        taken = sum(path.stat().st_size for path in resume.latest(out).rglob("*") if "tokenizer" not in path.name)
        if name == "pretrain":  # an adapter this small is less than the random states beside it
            assert taken * 0.5 < asked[-1][0] < taken * 2
        assert (out / "model.safetensors").stat().st_size < asked[-1][1]


@pytest.mark.parametrize("kind", ["under a file", "read-only"])
def test_a_folder_that_cannot_be_written(run, chain, data, tmp_path, kind):
    folder = tmp_path / "there"
    if kind == "under a file":
        folder.write_text("")
    elif os.geteuid():
        folder.mkdir(mode=0o500)
    else:  # root may write where it is forbidden, but not where the system lets nobody
        folder = Path("/sys/kernel")
    status, _, err = run("sft", *flags_of("sft", chain, data, folder / "sft"))
    assert status == 2
    assert "can't be written" in err
    assert "Traceback" not in err
