"""The README's commands are those that .ci/run runs."""

import re

from pipeline import ROOT


def commands(path, prefix=""):
    text = path.read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL) if path.suffix == ".md" else [text]
    found = [line.strip() for block in blocks for line in block.splitlines()]
    return {line.removeprefix("$ ") for line in found if re.match(r"(\$ )?(make\b|LAUNCH=|echo .*\| make)", line)}


def test_the_readme_shows_what_ci_runs():
    assert commands(ROOT / "README.md") == commands(ROOT / ".ci" / "run")
    assert len(commands(ROOT / "README.md")) >= 6


def blocks(path, kind):
    return re.findall(rf"```{kind}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def figures(path):
    """The numbers of the table of what was measured, row by row."""
    table = re.findall(r"^(?:\|[^|\n]*){3}\|$", path.read_text().partition("tests/figures.py")[2], flags=re.MULTILINE)
    return [re.findall(r"\d+(?:\.\d+)?", row.split("|", 2)[2]) for row in table]


def test_the_chinese_readme_tells_the_same_story():
    english, chinese = ROOT / "README.md", ROOT / "README.zh-CN.md"
    assert len(commands(chinese)) >= 6
    assert commands(chinese) <= commands(english)
    for shown in blocks(chinese, "text"):
        assert shown in blocks(english, "text"), "what is printed is not what README.md shows"
    assert len(figures(english)) > 10
    assert figures(chinese) == figures(english)


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = (
        re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1]
        .replace("$(STAGES) finetune $(TASKS)", "pretrain sft dpo control finetune")
        .split()
    )
    told = "\n".join(re.findall(r'@echo "(make.*)"', makefile))
    for target in targets:
        assert target in ("all", "help") or re.search(rf"make {target}\b", told), target


def test_no_script_bears_a_library_name():
    import importlib.util
    import sys

    for path in (ROOT / "stages").glob("*.py"):
        found = importlib.util.find_spec(path.stem)
        assert found is None or path.stem in sys.stdlib_module_names or "site-packages" not in str(found.origin), path
