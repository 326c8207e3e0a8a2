import json

import pytest

from pipeline import ROOT
from pipeline.chain import manifest, stages
from pipeline.system import hashes
from pipeline.system.errors import UserError


def test_canonical_digest():
    assert hashes.digest({"b": 1, "a": [1, 2]}) == hashes.digest(json.loads('{"a":[1,2],"b":1}'))
    assert hashes.digest({"a": 1}) != hashes.digest({"a": "1"})


def test_the_record_is_written_last_and_covers_every_file(tmp_path):
    (tmp_path / ".result" / "adapter").mkdir(parents=True)
    (tmp_path / "log.jsonl").write_text("log")
    for name in ("model.safetensors", "adapter/a.json"):
        (tmp_path / ".result" / name).write_text(name)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "x").write_text("x")
    manifest.claim(tmp_path, {"inputs": "abc"})
    assert manifest.read(tmp_path) is None
    record = manifest.seal(tmp_path, tmp_path / ".result", {"inputs": "abc", "stage": "sft"})
    assert list(record["files"]) == ["adapter/a.json", "model.safetensors"]
    assert record == manifest.read(tmp_path)
    (tmp_path / "model.safetensors").write_text("other")
    assert hashes.outputs(hashes.files(tmp_path)) != record["outputs"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        manifest.read(tmp_path)


def test_nothing_of_the_machine_enters_a_record():
    import socket

    text = json.dumps([manifest.commit(), manifest.sources(stages.script("sft")), manifest.versions(), manifest.hardware()])
    assert socket.gethostname() not in text
    assert str(ROOT) not in text
