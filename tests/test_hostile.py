"""What somebody else wrote ends in a plain line within seconds, whatever it is, and writes nothing outside of its folder."""

import copy
import itertools
import json
import shutil

import pytest
import yaml

from pipeline.chain import manifest, profile
from pipeline.commands import compare_objectives
from pipeline.hub import sent
from pipeline.system import config, hashes
from pipeline.system.errors import UserError

WRONG = ("../../x",)
WRONG_TOO = ("missing", 7, None, True, "x", "\x1b[2J", [], [7], {}, {"x": [7]}, 1e400)
VALUES = pytest.mark.parametrize("values", [WRONG, pytest.param(WRONG_TOO, marks=pytest.mark.slow)], ids=["some", "others"])


def places(value, path=()):
    """Yield the path of every value within a value, one of each list."""
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def altered(record, path, value):
    """Return a record in which one value is another, or is missing; its digest over itself fits, where it has one."""
    found = copy.deepcopy(record)
    at = found
    for key in path[:-1]:
        at = at[key]
    if value == "missing":
        del at[path[-1]]
    else:
        at[path[-1]] = value
    if sent.SEAL in found and path != (sent.SEAL,):
        found[sent.SEAL] = hashes.digest({key: item for key, item in found.items() if key != sent.SEAL})
    return found


@pytest.fixture
def received(chain, tmp_path, monkeypatch):
    """A node and what it descends from, as somebody sent them; stages are not run."""
    from pipeline.commands import make

    monkeypatch.setattr(make, "run", lambda command: 1)
    shutil.copytree(chain, tmp_path / "sent")
    return tmp_path / "sent"


def plain(status, out, err, allowed=(1, 2)):
    """Whether a person was shown lines, and nothing that moves a cursor."""
    return status in allowed and "Traceback" not in err and "\x1b" not in out + err


def sealed(folder):
    """Return the record of a node as it would leave for a hub."""
    made = manifest.read(folder)
    files = {name: entry["sha256"] for name, entry in made["files"].items()}
    figures = {"loss": {"value": 1.0, "low": 0.5, "high": 1.5, "n": 9}}
    record = sent.record(made, files, {made["parents"][0]["outputs"]: ("me/small", "tag")}, None, {}, ())
    record["figures"] = {"options": {"rows": 9}, "own": figures}
    return altered(record, ("title",), record["title"])


@VALUES
@pytest.mark.parametrize("leaves", [manifest.read, sealed])
def test_a_record_of_any_shape_ends_in_a_plain_line(run, data, received, hub, tmp_path, leaves, values):
    record = leaves(received / "sft")
    wrong = []
    for path in places(record):
        if path[0] in ("request", "files", "pushed") and len(path) > 2:
            continue
        for value in values:
            (received / "sft" / manifest.NAME).write_text(json.dumps(altered(record, path, value)))
            flags = ["--output", tmp_path / "again", "--data", data / "chats.jsonl"]
            ended = run("reproduce", "--hub", received / "sft", *flags)
            if not plain(*ended):
                wrong.append((path, value, ended[0], ended[2][-300:]))
    assert not wrong, "\n".join(map(str, wrong))
    assert {path.name for path in tmp_path.iterdir()} <= {"sent", "again"}


SETTINGS = ("compare_objectives", "compare_alignment", "compare_refusals")


@VALUES
@pytest.mark.parametrize("command", SETTINGS)
def test_settings_of_any_shape_end_in_a_plain_line(run, tmp_path, monkeypatch, command, values):
    def begun(*given):
        raise UserError("begins to train and to measure")

    monkeypatch.setattr(compare_objectives, "compared", begun)
    file = sorted(profile.FOLDER.glob(f"*/{command}.yaml"))[0]
    shutil.copytree(file.parent, tmp_path / "profile")
    given = config.read_profile(file)
    wrong = []
    for path in places(given):
        for value in values:
            (tmp_path / "profile" / file.name).write_text(yaml.safe_dump(altered(given, path, value)))
            ended = run(command, "--config", tmp_path / "profile" / file.name, "--runs", tmp_path / "runs")
            if not plain(*ended):
                wrong.append((path, value, ended[0], ended[2][-300:]))
    assert not wrong, "\n".join(map(str, wrong))
    (tmp_path / "profile" / file.name).write_text("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in itertools.pairwise("abcdefghi")
    ))  # fmt: skip
    assert "its aliases make more than" in run(command, "--config", tmp_path / "profile" / file.name)[2]


TEMPLATES = {
    "never ends": "{% for i in range(10 ** 9) %}{% for j in range(10 ** 9) %}{% endfor %}{% endfor %}",
    "explodes": "{% set x = namespace(v='a' * 1000) %}{% for i in range(40) %}{% set x.v = x.v ~ x.v %}{% endfor %}{{ x.v }}",
    "reaches out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}
FILES = {
    "text": "[" * 200_000,
    "chats": json.dumps({"messages": [{"role": "\x1b[2J", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    "pairs": json.dumps({"prompt": {"x": "\x1b]0;"}, "chosen": "\x1b[2J", "rejected": "c"}),
}


@pytest.mark.parametrize("word", FILES)
def test_new_survives_files_that_nobody_has_looked_at(run, house, word):
    (house / "a.jsonl").write_text(FILES[word] + "\n")
    ended = run("new", "--profile", "mine", f"--{word}", house / "a.jsonl")
    assert plain(*ended, allowed=(0, 2))  # a role may have any name
    assert "a.jsonl" in ended[1] + ended[2]
    assert (ended[0] == 0) == any((house / "profiles").iterdir())


@pytest.mark.parametrize("name", TEMPLATES)
def test_new_survives_a_template_that_nobody_has_looked_at(run, house, chain, data, name):
    base = shutil.copytree(chain / "sft", house / "base")
    (base / "chat_template.jinja").write_text(TEMPLATES[name])
    ended = run("new", "--profile", "mine", "--base", base, "--chats", data / "chats.jsonl")
    assert plain(*ended), ended
    assert "template" in ended[2]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text", ["[" * 200_000, "7", "{}", '{"architectures": [["\\u001b[2J"]], "model_type": "llama"}', "\x1b[2J"]
)
def test_a_model_that_nobody_has_looked_at(run, house, chain, data, name, text):
    base = shutil.copytree(chain / "sft", house / "base")
    (base / manifest.NAME).unlink()
    (base / name).write_text(text)
    assert plain(*run("new", "--profile", "mine", "--base", base, "--chats", data / "chats.jsonl"), allowed=(0, 2))
    flags = ["--parent", base, "--data", data / "chats.jsonl", "--max_steps", 1]
    ended = run("sft", "--output", house / "made", *flags)
    assert plain(*ended, allowed=(0, 2))
    if name == "config.json" and "llama" in text:  # without its sizes, which are then those of 7B
        assert "config.json asks for 6,738,415,616 parameters" in ended[2]
