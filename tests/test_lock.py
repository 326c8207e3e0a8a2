"""One process a stage: a lock that the dead let go, that has one name, and that is a file of its own."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.chain import manifest
from pipeline.system.errors import UserError
from pipeline.system.lock import Lock
from tests.conftest import flags_of

HOLD = """
import sys
from pathlib import Path
from pipeline.system.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
input()
"""


def test_two_at_once_are_refused_and_a_dead_one_holds_nothing(run, copy, data):
    (copy / "sft" / manifest.NAME).unlink()
    manifest.claim(copy / "sft", {"inputs": "x"})
    before = sorted(path.name for path in (copy / "sft").iterdir())
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, copy / "sft"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        host = json.loads((copy / ".sft.lock").read_text())["host"]
        with pytest.raises(UserError, match=f"process {other.pid} on {host} is at work there"):
            Lock(copy / "sft").take()
        status, _, err = run("sft", *flags_of("sft", copy, data))
        assert status == 2
        assert f"sft: --output {copy / 'sft'}: process {other.pid} on {host} is at work there; wait for it or stop it" in err
        assert sorted(path.name for path in (copy / "sft").iterdir()) == before
        (copy / ".sft.lock").unlink()  # somebody tidies up
        with pytest.raises(UserError, match=f"process {other.pid} on {host} is at work there"):
            Lock(copy / "sft").take()
        assert not (copy / ".sft.lock").exists()
        other.kill()
    lock = Lock(copy / "sft")
    lock.take()
    assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    lock.release()
    assert not lock.path.exists()


def test_a_lock_file_that_went_away_is_not_the_lock(tmp_path, monkeypatch):
    """Another process lets go between our opening of the file and our lock on it: what we hold has no name any more."""
    import fcntl

    lock, taken = Lock(tmp_path / "sft"), []
    lockf = fcntl.lockf

    def late(file, how):
        if not taken:
            lock.path.unlink()
        taken.append(file)
        lockf(file, how)

    monkeypatch.setattr(fcntl, "lockf", late)
    lock.take()
    assert len(taken) == 3  # the second of them is taken again, the last one is beside the temporary files
    assert os.stat(lock.path).st_ino == os.fstat(lock._file).st_ino
    lock.release()


def test_two_names_of_a_folder_have_one_lock(tmp_path):
    (tmp_path / "big" / "sft").mkdir(parents=True)
    (tmp_path / "sft").symlink_to(tmp_path / "big" / "sft")
    assert Lock(tmp_path / "sft").path == Lock(tmp_path / "big" / "sft").path
