"""Nothing that was typed or read moves a terminal's cursor or shows a token."""

import io
import json

import pytest

from pipeline.system import process
from pipeline.system.errors import UserError
from pipeline.system.readable import Readable, clean

TOKEN = "hf_" + "aB3dE5gH7jK9" * 3


def test_control_characters_are_written_as_numbers_and_text_stays():
    assert clean("a\x1b[2Jb\rc\x07d\x9be\tf\n") == "a\\x1b[2Jb\\x0dc\\x07d\\x9be\tf\n"
    assert clean("Grüße 猫 🙂 العربية") == "Grüße 猫 🙂 العربية"


@pytest.mark.parametrize("text", [TOKEN, f"--{TOKEN}: unknown", f"https://{TOKEN}@huggingface.co", f"token={TOKEN}!"])
def test_a_token_is_cut(text):
    assert TOKEN[4:] not in clean(text)
    assert "hf_…" in clean(text)


def test_names_that_look_a_little_like_tokens_stay():
    for text in ("hf_hub_download", "hf_transfer", "sk-learn", "HF_TOKEN", "task-specific-head-of-a-very-long-name-indeed"):
        assert clean(text) == text


def test_a_stream_keeps_what_its_terminal_has():
    inner = io.StringIO()
    stream = Readable(inner)
    print("a\x1b", "b", file=stream)
    stream.writelines(["c\x00"])
    assert (inner.getvalue(), stream.isatty()) == ("a\\x1b b\nc\\x00", False)


def test_faults_and_tracebacks_of_any_script_are_readable(capfd):
    def refuses():
        print("said \x1b[31m")
        raise UserError(f"key {TOKEN}\x1b]0;x\x07")

    def breaks():
        raise AssertionError(f"value {TOKEN}\x1b[2J")

    assert (process.execute(refuses), process.execute(breaks)) == (2, 1)
    out, err = capfd.readouterr()
    assert "\x1b" not in out + err
    assert TOKEN[4:] not in err
    assert "Traceback" in err


@pytest.mark.parametrize(
    "flags", [[f"--{TOKEN}", "1"], ["--learning_rate", TOKEN], ["--parent", TOKEN], ["--lr_scheduler_type", TOKEN], [TOKEN, "x"]]
)  # fmt: skip
def test_no_stage_prints_a_token_that_was_typed(run, chain, data, tmp_path, flags):
    given = {"--parent": chain / "sft", "--data": data / "chats.jsonl", "--output": tmp_path / "out"}
    rest = [word for key, value in given.items() if key not in flags for word in (key, value)]
    status, out, err = run("sft", *rest, *flags)
    assert status == 2
    assert TOKEN[4:] not in out + err


def test_a_role_with_an_escape_sequence_is_shown_as_text(run, chain, tmp_path):
    rows = [{"messages": [{"role": "user\x1b[2J", "content": "a"}, {"role": "assistant", "content": "b\x1b]0;c\x07"}]}] * 30
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, err = run("sft", "--parent", chain / "sft", "--data", path, "--output", tmp_path / "out", "--max_steps", "1")
    assert "\x1b" not in out + err
