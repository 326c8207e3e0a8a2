"""Somebody adds a method of their own: a stage, a metric, a recipe with a judge, one file each, and a profile that uses them.

They lie in tests/new_method and are written into a copy of the checkout, where no other file is touched, and the whole house must know them:
make, resuming, evaluation, report, card, gate, chat, why, verify, push.
"""

import base64
import hashlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipeline import ROOT
from tests.conftest import printed_by_card
from tests.forked import call

FILES = ROOT / "tests" / "new_method"  # each where it goes in the checkout


def written(profile, *names):
    """Return path → text of files of somebody's own, and of their profile."""
    paths = [*names, *(path.relative_to(FILES).as_posix() for path in (FILES / "stages" / "profiles" / profile).glob("*.yaml"))]
    return {path: (FILES / path).read_text() for path in paths}


ADDED = written("hush", "stages/shun.py", "pipeline/evaluation/metrics/ending.py", "data_recipes/addings.py")
PARTS = written(
    "parts", "data_recipes/addings.py", "pipeline/data/types/opinions.py", "pipeline/objectives/gaps.py", "pipeline/tasks/number.py",
    "stages/heed.py",
)  # fmt: skip
SERIES = ("pipeline/data/types/series.py", "pipeline/objectives/forecast.py")  # a type of rows and what reads it
WAVES = written("waves", "data_recipes/waves.py", *SERIES)
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "runs", "mine", "__pycache__", ".*_cache", "*.egg-info", ".ci")


def listing(folder):
    """Digest of every file of a checkout, save for what running it leaves behind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and "__pycache__" not in name and not name.startswith(("runs", "again")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Checkout:
    """A copy of the project with somebody's own files in it."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("pipeline", "stages", "data_recipes"):
            shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
        for name in ("Makefile", "pyproject.toml", "requirements.lock", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        self.before = listing(folder)
        self.environment = os.environ | {
            "PYTHONPATH": str(folder), "PROFILE": "hush", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "RUNS": "runs",
            "XDG_CACHE_HOME": str(folder.parent / "cache"),
        }  # fmt: skip

    def add(self, files):
        for name, text in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)

    def touched(self):
        """Files that are not as they were."""
        after = listing(self.folder)
        return {name for name in after.keys() | self.before.keys() if after.get(name) != self.before.get(name)}

    def start(self, *words, **variables):
        command = [sys.executable, "-m", "pipeline.commands", *words]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment | variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def together(self, profile, *flags):
        """Run every command on a profile, each node with these flags, in one process; return what was printed."""
        status, out, err = call(self.folder, "-c", TOGETHER, profile, *flags, **self.environment)
        assert status == 0, out + err
        return out

    def run(self, *words, given=None, **variables):
        """Run a command with the variables of make; return what it printed. `given`: what it reads, in a process of its own."""
        if given is None:
            status, out, err = call(self.folder, *words, **self.environment | variables)
        else:
            with self.start(*words, **variables) as process:
                out, err = process.communicate(given)
            status = process.returncode
        assert status == 0, out + err
        return out


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def record(folder):
    return json.loads((folder / "manifest.json").read_text())


def kill_while(process, log, step):
    """Send SIGKILL to all that a command started, once a step is logged."""
    until = time.time() + 180
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.time() < until
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path / "copy")


def section(page, name):
    return page.split(f'id="{name}"')[1].split("<h2", 1)[0]


def marked(line):
    """The text of the tokens that count."""
    return html.unescape(re.sub(r"<[^>]+>", "", "".join(re.findall(r"<mark>(.*?)</mark>", line, flags=re.DOTALL))))


def shown(runs, page):
    """What evaluation, report and card must show of the new stage, the new metric and the new judge."""
    summary = json.loads((runs / "evaluate.json").read_text())
    for name, rival in (("quiet", "voice"), ("quieter", "quiet")):
        block = summary["nodes"][name]
        assert (block["stage"], block["title"]) == ("shun", "Shunning")
        assert block["metrics"]["finished"]["unit"] == "share"
        assert {"finished", "reply_length", "likelier", "exact_match", "win_rate"} <= set(block["figures"])
        assert block["primary"]["metric"] == "finished"
        assert block["primary"]["against"] == rival
    block = summary["nodes"]["quiet"]
    assert {label: model["role"] for label, model in block["models"].items() if "," not in label and "even" not in label} == {
        "quiet": "node", "voice": "parent", "quiet-cold": "control",
    }  # fmt: skip
    assert {"voice", "quiet-cold"} <= {one["against"] for one in block["comparisons"] if one["metric"] == "reply_length"}
    assert "quiet-cold" not in summary["nodes"]
    assert "finished" in summary["nodes"]["voice"]["figures"], "the metric is measured of every node that chats"
    assert summary["missing"] == []

    for title in ("quiet: Shunning", "quieter: Shunning"):
        assert title in page
    figures = html.unescape(section(page, "evaluation"))
    assert "share of the replies that the model ends by itself" in figures
    assert " tokens [" in figures
    losses = section(page, "loss")
    assert all(f"{name}, training: from" in losses for name in ("quiet", "quiet-cold", "quieter"))
    masks = section(page, "masks")
    assert masks.count("first step: the same") == 5
    assert "Of a rejected answer only what follows the first difference counts" in masks
    for name in ("quiet", "quiet-cold", "quieter"):
        batch = masks.split(f">{name}: Shunning</h3>")[1].split("<h3")[0]
        lines = re.split(r"<h4>(.*?)</h4>", batch)
        assert lines[1::2][:2] == ["row 1, chosen", "row 1, rejected"]
        assert re.fullmatch(r"\d+ and \d+ make \d+\.<\|im_end\|>", marked(lines[2]))
        assert re.fullmatch(r" And that is that\.<\|im_end\|>", marked(lines[4]))
    return summary


TOGETHER = """
import sys
from pathlib import Path
from pipeline.chain import life, profile, stages
from pipeline.commands import check, evaluate, report, verify, why
from pipeline.hub import gate
from pipeline.chain import finished, manifest

def call(body, *argv):
    sys.argv = list(argv)
    assert body() == 0, argv

_, named, *given = sys.argv
call(check.main, "check", "--profile", named, "--runs", "runs")
folder = profile.find(named)
for name, node in profile.load(folder).nodes.items():
    flags = [] if node.control_of else given
    call(lambda: life.run_stage(type(node.stage)), name, "--config", str(node.file), "--output", f"runs/{named}/{name}", *flags)
call(evaluate.main, "evaluate", "--config", str(folder / "evaluate.yaml"), "--runs", f"runs/{named}")
call(report.main, "report", "--runs", f"runs/{named}")
call(verify.main, "verify", "--runs", f"runs/{named}")
call(why.main, "why", "--profile", named, "--runs", "runs")
path = Path(f"runs/{named}/evaluate.json")
print("gate:", gate.reasons(finished.finished(path.parent), manifest.read(path.parent, path.name), path))
"""


def test_a_method_of_ones_own_is_known_everywhere(checkout):
    """The quick version: a few steps of every node in one process."""
    checkout.add(ADDED)
    out = checkout.together("hush", "--max_steps", "6")
    runs = checkout.folder / "runs" / "hush"
    shown(runs, (runs / "report.html").read_text())
    assert record(runs / "quiet")["parents"][0]["node"] == "voice"
    assert record(runs / "quiet-cold")["steps"] == record(runs / "quiet")["steps"] == 6
    assert record(runs / "quiet")["tokens"] > 0
    assert record(runs / "quiet")["flops"] > 0
    assert "quiet: Shunning, on 29 held-out pairs of addings" in out
    assert re.search(r"^finished +\d+\.\d% \[", out, flags=re.MULTILINE)
    assert "quieter: a control" not in out
    assert "quiet-cold: a control of quiet, made to be compared with and not to be used" in out
    assert checkout.touched() == set(ADDED)


@pytest.mark.slow
def test_every_other_part_is_one_file_too(checkout):
    """A type of rows with a stage that reads it by a trainer of trl, an objective, a task."""
    checkout.add(PARTS)
    out = checkout.together("parts", "--max_steps", "6")
    runs = checkout.folder / "runs" / "parts"
    blocks = json.loads((runs / "evaluate.json").read_text())["nodes"]
    assert {"loss", "filled"} <= set(blocks["ground"]["figures"])
    assert blocks["reckon"]["primary"]["metric"] == "near"
    assert blocks["reckon"]["primary"]["against"] == "mean number"
    assert blocks["heed"]["primary"]["against"] == "even chances"
    masks = section((runs / "report.html").read_text(), "masks")
    assert masks.count("first step: the same") == 5
    rows = re.split(r"<h4>row \d</h4>", masks.split(">heed: Heeding</h3>")[1].split("<h3")[0])[1:]
    assert len(rows) == 4
    for number, row in enumerate(rows):
        assert re.fullmatch(r"\d+ and \d+ make \d+\.( And that is that\.)?<\|im_end\|>", marked(row)), number
    for said in ("filled: share of the gaps", "distance: mean distance", "heed: Heeding"):
        assert said in out
    assert checkout.touched() == set(PARTS)


def test_rows_that_are_neither_text_nor_pictures_take_two_files(checkout, hub, tmp_path):
    """Series of numbers: trained on by a model of the library, measured, shown, pushed, and read back by its own class."""
    checkout.add(WAVES)
    out = checkout.together("waves")
    runs = checkout.folder / "runs" / "waves"
    block = json.loads((runs / "evaluate.json").read_text())["nodes"]["pretrain"]
    assert block["primary"]["against"] == "last value"
    assert block["primary"]["better"] is True
    assert block["primary"]["high"] < 0
    figures = block["figures"]["error"]
    assert figures["pretrain"]["high"] < figures["untrained"]["low"]
    assert "on 60 held-out series of waves" in out
    assert "error: mean squared error of what follows" in out
    made = record(runs / "pretrain")
    assert made["tokens"] == 10 * 300 * 2 * 24, "numbers that were read: ten epochs of two windows of each series"
    assert made["recipe"]["truncated"] == {"ends of series, shorter than 32 numbers": 300}
    assert (made["family"], made["flops"] > 0) == ("forecaster", True)

    masks = section((runs / "report.html").read_text(), "masks")
    assert "32 rows of 768 positions." in masks
    assert "The node's own log has 768 positions in its first step: the same." in masks
    drawings = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', masks)
    assert len(drawings) == 15
    lines = re.findall(r'points="([^"]+)"', base64.b64decode(drawings[0]).decode())
    assert [len(line.split()) for line in lines] == [25, 8], "what is read with the first number that follows, then these"
    assert len({point.split(",")[1] for point in lines[0].split()}) > 20, "numbers are not rounded on their way"

    out = checkout.run("push", HUB="me/any", PROFILE="waves", HF_ENDPOINT=hub.url, HF_TOKEN="hf_test")
    assert "outputs for sample inputs by PatchTSTForPrediction" in out
    repo = hub.repos["model", "me/any"]
    files = repo.commits[repo.head]
    assert not any("token" in name for name in files)
    card = files["README.md"].data.decode()
    assert "pipeline_tag: time-series-forecasting" in card
    assert "tensor(" in printed_by_card(hub, card, tmp_path)
    assert checkout.touched() == set(WAVES)


def test_the_docs_show_the_code_that_is_tested():
    page = (ROOT / "docs" / "your-own.md").read_text()
    assert [name for name in SERIES if f"```python\n{WAVES[name]}```\n" not in page] == []


def test_the_files_that_are_touched_can_be_counted():
    """What is added beside a profile: a stage, a metric, a recipe with its judge, a type, an objective, a task: one file each."""
    files = [name for name in ADDED | PARTS if "/profiles/" not in name]
    assert {name for name in WAVES if "/profiles/" not in name and not name.startswith("data_recipes/")} == set(SERIES)
    assert sorted(name.rpartition("/")[0] for name in files) == [
        "data_recipes", "pipeline/data/types", "pipeline/evaluation/metrics", "pipeline/objectives", "pipeline/tasks", "stages", "stages",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_whole_life_of_a_method_of_ones_own(checkout, hub):
    """As a user would: make, a kill, make again, and every command."""
    checkout.add(ADDED)
    runs = checkout.folder / "runs" / "hush"
    checkout.run("make", GOAL="voice")
    shutil.copytree(checkout.folder / "runs", checkout.folder / "again")
    checkout.run("make", GOAL="quiet", RUNS="again")

    process = checkout.start("make")
    kill_while(process, runs / "quiet" / "log.jsonl", 23)
    assert not (runs / "quiet" / "manifest.json").exists()
    out = checkout.run("make")
    assert re.search(r"quiet +goes on from checkpoint-(15|20|25)", out), out
    assert digest(runs / "quiet") == digest(checkout.folder / "again" / "hush" / "quiet")
    assert digest(runs / "quiet") != digest(runs / "quiet-cold") != digest(runs / "quieter")

    assert "5 nodes, no fault" in checkout.run("check")
    assert out.count("judged by this") >= 4
    assert "quiet: Shunning, on 29 held-out pairs of addings" in out
    checkout.run("report")
    shown(runs, (runs / "report.html").read_text())
    assert "nothing changed" in checkout.run("make")
    assert "5 nodes and evaluate.json agree" in checkout.run("verify")
    told = checkout.run("why", STAGE="quieter")
    assert [line.split()[0] for line in told.splitlines()] == ["soil", "voice", "quiet", "quieter"]
    said = checkout.run("chat", given="What do 2 and 3 make?\n", STAGE="all")
    assert re.search(r"soil .*\nvoice +.*\nquiet +.*\nquieter +.*", said)

    out = checkout.run("push", HUB="me/thing", HF_ENDPOINT=hub.url, HF_TOKEN="hf_test")
    assert {name for _, name in hub.repos} == {"me/thing", "me/thing-quiet", "me/thing-voice", "me/thing-soil"}
    assert out.count("read back and equal") == 4
    repo = hub.repos["model", "me/thing-quiet"]
    card = repo.commits[repo.head]["README.md"].data.decode()
    assert "A chat model that shuns what was rejected" in card
    assert "Held out, **finished" in card
    assert "- `reply_length`: mean length of a reply in tokens" in card
    assert "quiet-cold (control)" in card
    assert "stages/shun.py" in card
    assert checkout.touched() == set(ADDED)
