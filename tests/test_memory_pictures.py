"""Any number of pictures: memory up to the first step that does not grow with them.

    PICTURES=100000 python -m pytest -m measured tests/test_memory_pictures.py -s

20,000 where nobody says another number; 1,000 is what it is held against.
"""

import io
import os
import shutil
import tarfile
import time

import pytest

from tests.conftest import command
from tests.images import drawn, saved
from tests.test_memory import GROWTH, watched

pytestmark = pytest.mark.measured
PICTURES = int(os.environ.get("PICTURES", "20000"))
FLAGS = [
    *("--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2"),
    *("--max_steps", "1", "--per_device_train_batch_size", "8"),
]
OBJECTIVES = {"tar": ["--objective", "clip", "--vocab_size", "300", "--max_length", "32"], "folder": ["--objective", "simclr"]}


def written(path, count, kind):
    """Write pictures of 32 by 32 pixels with texts into a tar, or into a folder by class."""
    path.mkdir(parents=True)
    if kind == "tar":
        with tarfile.open(path / "a.tar", "w") as archive:
            for number in range(count):
                for ending, content in (("png", saved(drawn(number, side=32))), ("txt", f"picture {number}".encode())):
                    member = tarfile.TarInfo(f"{number}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        return path / "a.tar"
    for label in ("even", "odd"):
        (path / label).mkdir()
    for number in range(count):
        (path / ("even", "odd")[number % 2] / f"{number}.png").write_bytes(saved(drawn(number, side=32)))
    return path


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_memory_does_not_grow_with_the_pictures(tmp_path, kind):
    peaks = {}
    for count in (1000, PICTURES):
        data = written(tmp_path / f"{count}", count, kind)
        flags = ["--data", data, "--output", tmp_path / f"out{count}", *FLAGS, *OBJECTIVES[kind]]
        began = time.monotonic()
        peaks[count], lines = watched(command("pretrain", flags), tmp_path / f"cache{count}")
        spent = max(cpu for _, cpu, _ in lines)
        print(f"\n{kind}, {count:,} pictures: {peaks[count] / 1e6:,.0f} MB of anonymous memory, {time.monotonic() - began:.0f} s ({spent:.0f} s of CPU):")  # fmt: skip
        print("".join(f"  {at:6.1f} s {line}" for at, _, line in lines[:16]))
        for made in ("", "out", "cache"):
            shutil.rmtree(tmp_path / f"{made}{count}")
    assert peaks[PICTURES] - peaks[1000] < GROWTH
