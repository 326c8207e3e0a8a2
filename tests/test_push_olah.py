"""What was pushed is read by strangers: a fresh process, through olah, a mirror server that others wrote."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from pipeline.chain import manifest
from pipeline.hub import readback
from tests.test_push import head, push

READER = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
repo, revision, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(repo, revision=revision)
model = AutoModelForCausalLM.from_pretrained(repo, revision=revision)
batch = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(json.dumps(model.generate(**batch, do_sample=False, max_new_tokens=8)[0].tolist()))
"""


@pytest.fixture
def mirror(hub, tmp_path):
    """Olah before the test hub; skipped only where it is not installed."""
    if importlib.util.find_spec("olah") is None:
        pytest.skip("olah is not installed; make setup-data installs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = hub.url.removeprefix("http://")
    flags = ["--host", "127.0.0.1", "--port", str(port), "--hf-scheme", "http", "--hf-netloc", where, "--hf-lfs-netloc", where]
    code = "import sys; from olah.server import cli; sys.exit(cli())"
    folders = ["--repos-path", str(tmp_path / "mirrored"), "--log-path", str(tmp_path / "logs")]
    told = (tmp_path / "olah.txt").open("w")
    process = subprocess.Popen([sys.executable, "-c", code, *flags, *folders], cwd=tmp_path, stdout=told, stderr=told)
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    assert process.poll() is None, (tmp_path / "olah.txt").read_text()[-2000:]
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_stranger_reads_it_through_a_mirror(run, ready, hub, mirror, tmp_path):
    from huggingface_hub import HfApi

    status, _, err = push(run, ready, "--public", "yes")
    assert status == 0, err
    tag = f"tristage-{manifest.read(ready / 'sft')['outputs'][:12]}"
    where = HfApi(endpoint=mirror, token=False).snapshot_download("me/small-sft", revision=tag, cache_dir=tmp_path / "cache")
    sent = json.loads(head(hub, "me/small-sft")["manifest.json"].data)["pushed"]
    assert readback.differences(tmp_path / where, sent) == []
    own = {name: entry["sha256"] for name, entry in manifest.read(ready / "sft")["files"].items() if name in sent}
    assert readback.differences(tmp_path / where, own) == []
    environment = os.environ | {"HF_ENDPOINT": mirror, "HF_HOME": str(tmp_path / "home")}
    del environment["HF_TOKEN"]
    command = [sys.executable, "-c", READER, "me/small-sft", tag, "Who saw the owl?"]
    read = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr[-2000:]
    tokenizer, model = readback._load(ready / "sft", "AutoModelForCausalLM")
    turns = [{"role": "user", "content": "Who saw the owl?"}]
    batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert json.loads(read.stdout) == model.generate(**batch, do_sample=False, max_new_tokens=8)[0].tolist()
