"""A hub that fails, refuses or is slow, and a push that is killed: one plain line, nothing lost, no half a model."""

import itertools
import json
import os
import random
import signal
import time

import pytest

from tests import hub as server
from tests.forked import Forked
from tests.hub import SIGNATURE
from tests.test_push import head, push

AGAIN = pytest.mark.slow  # a fault of a kind that another one stands for
COMMIT, UPLOAD, TAG = "POST .*/commit/main", "PUT /upload/", "POST .*/tag/"


def whole(hub):
    """Assert that every revision that a reader can ask for is what the hub makes itself, or all of a model."""
    seen = 0
    for name, oid, files in hub.visible():
        if set(files) == {".gitattributes"}:
            continue
        sent = json.loads(files["manifest.json"].data)["pushed"]
        assert {path: files[path].sha256 for path in sent} == sent, (name, oid)
        assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(sent)
        seen += 1
    for repo in hub.repos.values():
        assert set(repo.tags.values()) <= set(repo.commits)
    return seen


def plain(err):
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (UPLOAD, {"kind": "cut", "times": 2}),
        pytest.param(UPLOAD, {"status": 500, "times": 2}, marks=AGAIN),
        (UPLOAD, {"status": 429, "headers": {"Retry-After": "1"}}),
        pytest.param(UPLOAD, {"kind": "lost"}, marks=AGAIN),
        ("POST /verify/", {"status": 503}),
        pytest.param("objects/batch", {"kind": "lost"}, marks=AGAIN),
        pytest.param("preupload", {"status": 502}, marks=AGAIN),
        pytest.param(COMMIT, {"status": 500, "times": 3}, marks=AGAIN),
        pytest.param(COMMIT, {"status": 429}, marks=AGAIN),
        pytest.param(COMMIT, {"kind": "cut"}, marks=AGAIN),
        (COMMIT, {"kind": "lost"}),
        (COMMIT, {"kind": "slow", "seconds": 0.5}),
        ("POST /api/repos/create", {"kind": "lost"}),
        pytest.param(TAG, {"kind": "lost"}, marks=AGAIN),
        (TAG, {"status": 500}),
        pytest.param("whoami", {"status": 504}, marks=AGAIN),
        pytest.param("GET .*/tree/", {"status": 500}, marks=AGAIN),
        ("GET .*/resolve/.*safetensors", {"kind": "cut"}),
        ("HEAD .*/resolve/", {"status": 500}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_passes_is_waited_for_and_said(run, ready, hub, pattern, fault):
    hub.fail(pattern, **fault)
    status, out, err = push(run, ready, "--node", "sft")
    assert status == 0, err
    assert hub.faults[0].times == 0, "the fault did not come"
    assert "pushed: me/small-sft" in out
    repo = hub.repos["model", "me/small-sft"]
    assert len(repo.commits) == 2, "one commit, also where its answer was lost"
    assert list(repo.tags.values()) == [repo.head]
    assert whole(hub) == 1
    if fault.get("kind") != "slow" and "resolve" not in pattern:  # the library resumes a download without a word
        assert "again" in out or "retry" in out


@pytest.mark.parametrize(
    ("pattern", "fault", "status", "words"),
    [
        (COMMIT, {"status": 500, "times": 999}, 1, "push to me/small-sft: the hub fails (500: Internal error); nothing is lost: the same command goes on"),
        pytest.param(COMMIT, {"status": 429, "times": 999}, 1, "the hub asks to wait (429", marks=AGAIN),
        pytest.param(UPLOAD, {"kind": "cut", "times": 999}, 1, "the network fails", marks=AGAIN),
        ("whoami", {"kind": "slow", "times": 999, "seconds": 3}, 1, "sign in: the network fails (ReadTimeout"),
        (UPLOAD, {"status": 413, "times": 9, "text": "Entity too large"}, 1, "the hub has no room for it (413: Entity too large)"),
        pytest.param(COMMIT, {"status": 403, "times": 9, "text": "Private repository storage limit reached"}, 1, "the hub has no room for it (403", marks=AGAIN),
        pytest.param("objects/batch", {"status": 507, "times": 9, "text": "quota"}, 1, "the hub has no room for it (507: quota)", marks=AGAIN),
        (COMMIT, {"status": 412, "text": "A commit has happened since"}, 1, "somebody else pushed there just now (412)"),
        pytest.param(COMMIT, {"status": 400, "text": "bad path"}, 1, "the hub refuses the request (400: bad path)", marks=AGAIN),
        (COMMIT, {"status": 401, "times": 9}, 2, "the hub refuses the token (401)"),
        ("preupload", {"status": 403, "text": "read token"}, 2, "not allowed (403: read token): the name is someone else's, or the token may not write; the token is that of me"),
    ],
)  # fmt: skip
def test_what_does_not_pass_is_one_plain_line_and_the_same_command_goes_on(run, ready, hub, pattern, fault, status, words):
    hub.fail(pattern, **fault)
    started = time.monotonic()
    found, out, err = push(run, ready, "--node", "sft", "--patience", "1")
    assert found == status, err
    assert words in plain(err)
    assert "pushed:" not in out
    assert time.monotonic() - started < 60
    assert whole(hub) == 0
    hub.faults.clear()
    assert push(run, ready, "--node", "sft")[0] == 0
    assert whole(hub) == 1


@pytest.mark.parametrize("seconds", [0.0, 7.0])
def test_a_failing_hub_is_asked_for_two_minutes_as_the_readme_says(hub, monkeypatch, seconds):
    """By a clock of the test's own: each call takes `seconds`."""
    import types

    import httpx2

    from pipeline import ROOT
    from pipeline.commands import push as pushing
    from pipeline.commands import push_data
    from pipeline.hub import upload
    from pipeline.system.errors import WorldError

    assert pushing.Options().patience == push_data.Options().patience == 120
    assert "A failing network is retried for two minutes, with a message." in (ROOT / "README.md").read_text()
    now, asked, said = [1000.0], [], []

    def passes(more):
        now[0] += more

    def fails():
        asked.append(now[0])
        passes(seconds)
        raise httpx2.ConnectError("no answer")

    monkeypatch.setattr(upload, "time", types.SimpleNamespace(monotonic=lambda: now[0], sleep=passes))
    with pytest.raises(WorldError, match="the network fails"):
        upload.Hub(said.append, pushing.Options().patience).attempt("ask", fails)
    assert 120 - seconds <= asked[-1] - asked[0] <= 120
    assert max(later - earlier for earlier, later in itertools.pairwise(asked)) <= 30 + seconds
    assert len(said) == len(asked) - 1
    assert now[0] - 1000 <= 120 + seconds


def test_an_object_that_storage_refuses_is_a_plain_line(hub, run, ready, monkeypatch):
    """Large file storage may answer 200 and refuse one object."""
    from tests.hub import Handler

    def batch(self, name, kind=None):
        objects = json.loads(self.body)["objects"]
        return {
            "value": {"objects": [{**item, "error": {"code": 507, "message": "Repository quota exceeded"}} for item in objects]}
        }

    monkeypatch.setattr("tests.hub.ROUTES", [(method, pattern, batch if handler is Handler.batch else handler) for method, pattern, handler in server.ROUTES])  # fmt: skip
    status, _, err = push(run, ready, "--node", "sft")
    assert status == 1
    assert "Repository quota exceeded" in plain(err)


def test_no_token(run, ready, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    status, _, err = push(run, ready)
    assert status == 2
    assert "no token: set HF_TOKEN, or run `hf auth login`" in plain(err)


def test_a_token_that_the_hub_does_not_know(run, ready, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    status, _, err = push(run, ready)
    assert status == 2
    assert "the hub refuses the token (401): set HF_TOKEN to a valid one" in plain(err)
    assert "hf_wrong" not in err


def test_the_name_of_somebody_else(run, ready, hub):
    status, _, err = run("push", "--hub", "other/small", "--runs", ready, "--node", "sft")
    assert status == 2
    assert "create other/small-sft: not allowed (403" in plain(err)
    assert "the token is that of me" in err


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_of_somebody_else(run, ready, hub, private):
    from huggingface_hub import HfApi

    HfApi(endpoint=hub.url, token="hf_other").create_repo("other/small-sft", private=private)
    status, _, err = run("push", "--hub", "other/small", "--runs", ready, "--node", "sft", "--public", "yes")
    assert status == 2
    assert "the name is someone else's, or the token may not write" in plain(err)


def test_a_licence_that_the_hub_does_not_know(run, ready, hub):
    status, _, err = push(run, ready, "--node", "sft", "--license", "My own")
    assert status == 2
    assert "Invalid metadata in README.md" in plain(err)
    assert "license" in err


def test_a_hub_that_is_not_there(run, ready, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    status, _, err = push(run, ready, "--patience", "1")
    assert status == 1
    assert "sign in: the network fails (ConnectError" in plain(err)


def test_offline(run, ready, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, _, err = push(run, ready)
    assert status == 2
    assert "HF_HUB_OFFLINE is set; unset it to push" in plain(err)


def test_the_token_and_the_keys_of_uploads_are_shown_nowhere(run, ready, hub, monkeypatch, tmp_path):
    """With every kind of failure, and with a hub that says the token in its answers."""
    token = "hf_" + "tEsT" * 8
    monkeypatch.setitem(server.TOKENS, token, "me")
    monkeypatch.setenv("HF_TOKEN", token)
    hub.fail(UPLOAD, status=500, times=2, text=f"{token} failed")
    hub.fail(UPLOAD, kind="cut")
    hub.fail(COMMIT, status=503, text=f"with {token}")
    hub.fail(TAG, status=500, text=token)
    told = push(run, ready, "--node", "sft")
    hub.fail("preupload", status=403, text=f"{token} may only read", times=2)
    told += push(run, ready, "--node", "dpo")
    assert (told[0], told[3]) == (0, 2)
    said = "".join(map(str, told))
    assert "…" in said
    for secret in (token, SIGNATURE):
        assert secret not in said
        for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
            assert secret.encode() not in path.read_bytes(), path
        for file in head(hub, "me/small-sft").values():
            assert secret.encode() not in file.data


class Push:
    """A push in a process of its own, that can be killed."""

    def __init__(self, hub, ready, folder):
        self.hub, self.begun = hub, len(hub.log)
        folder.mkdir(exist_ok=True)
        flags = ["--hub", "me/small", "--runs", ready]
        self.process = Forked("push", flags, folder, group=True, HF_ENDPOINT=hub.url, HF_TOKEN="hf_test")

    def asked(self):
        """Return how many requests it has made."""
        return len(self.hub.log) - self.begun

    def end(self):
        """Let it come to its end; return how many requests it took."""
        said = self.process.communicate()
        assert self.process.returncode == 0, said
        return self.asked()

    def kill(self, request, after):
        """Kill it a while after a request; say whether it was still at work."""
        while self.asked() < request and self.process.poll() is None:
            time.sleep(0.0005)
        time.sleep(after)
        alive = self.process.poll() is None
        if alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return alive


def killed(hub, ready, folder, run, times, seed):
    """Kill pushes at random requests, each on an empty hub; after each look at what a reader sees, then push again."""
    rng = random.Random(seed)
    requests = Push(hub, ready, folder).end()
    assert whole(hub) == 3
    states = []
    while len(states) < times:
        hub.repos.clear()
        hub.blobs.clear()
        if not Push(hub, ready, folder).kill(
            rng.randint(1, requests), rng.choice([0, rng.uniform(0, 0.01), rng.uniform(0, 0.3)])
        ):
            continue
        time.sleep(0.05)  # what the hub had begun to answer
        states.append(whole(hub))
        status, out, err = push(run, ready)
        assert status == 0, err
        assert out.count("pushed: ") == 3
        assert whole(hub) == 3, "one commit in each repository, however often it was begun"
        assert all(list(repo.tags.values()) == [repo.head] for repo in hub.repos.values())
    return states


@pytest.mark.slow
def test_a_killed_push_can_be_repeated(run, ready, hub, tmp_path):
    killed(hub, ready, tmp_path / "home", run, times=3, seed=0)


@pytest.mark.measured  # `make torture-push`: three minutes of what three kills prove already
def test_a_push_killed_at_twenty_moments_can_be_repeated(run, ready, hub, tmp_path):
    states = killed(hub, ready, tmp_path / "home", run, times=20, seed=1)
    assert len(set(states)) >= 3, f"the kills hit only pushes with {set(states)} models there"


@pytest.mark.slow
def test_a_push_that_is_stopped_says_so(hub, ready, tmp_path):
    stopped = Push(hub, ready, tmp_path / "home")
    while stopped.asked() < 8:
        time.sleep(0.001)
    stopped.process.send_signal(signal.SIGTERM)
    said = "".join(stopped.process.communicate(20))
    assert stopped.process.returncode == 143
    assert "push: stopped; the same command goes on" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("token", ["hf_read", "hf_fine"])
def test_a_token_that_may_not_write_never_pushes(run, ready, hub, monkeypatch, token):
    """Even where everything is there already, and nothing would be written."""
    assert push(run, ready)[0] == 0
    monkeypatch.setenv("HF_TOKEN", token)
    status, out, err = push(run, ready)
    assert status == 2
    assert "pushed: " not in out
    assert "may only read" in err if token == "hf_read" else "the token may not write" in err
