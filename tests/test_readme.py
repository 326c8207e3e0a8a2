"""READMEs and docs agree with the code: commands, make targets, files, flags, figures, worked examples."""

import ast
import importlib
import os
import re
import subprocess

import pytest

from pipeline import ROOT

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = [ENGLISH, CHINESE, *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = ROOT / "docs" / "stages.md"
# Files and folders that the docs speak of and a checkout doesn't hold: what runs write, and a reader's own.
WRITTEN = r"runs/|mine/|adapter/|data_recipes/mine-|stages/profiles/(mine|margin|PROFILE|NAME)\b|\.aside|[^/]*\.(json|jsonl|csv|html|gguf|parquet)$|.*/?(NAME|NODE)\b"
SUFFIX = r"py|md|yaml|yml|toml|jinja|lock|json|jsonl|csv|html|gguf|txt|png"


def fences(path):
    """Kind and text of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def blocks(path, kind):
    return [text for found, text in fences(path) if found == kind]


def spans(path):
    """What stands in backticks in the prose."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def commands(path):
    texts = blocks(path, "console") if path.suffix == ".md" else [path.read_text()]
    found = [line.strip() for text in texts for line in text.splitlines()]
    return {line.removeprefix("$ ") for line in found if re.match(r"(\$ )?(make\b|LAUNCH=|echo .*\| make)", line)}


def test_the_readme_shows_what_ci_runs():
    assert commands(ENGLISH) == commands(ROOT / ".ci" / "run")
    assert len(commands(ENGLISH)) >= 6


def figures(path):
    """The numbers of the table of what was measured, row by row."""
    table = re.findall(r"^(?:\|[^|\n]*){3}\|$", path.read_text().partition("tests/figures.py")[2], flags=re.MULTILINE)
    return [re.findall(r"\d+(?:\.\d+)?", row.split("|", 2)[2]) for row in table]


def test_the_chinese_readme_tells_the_same_story():
    assert len(commands(CHINESE)) >= 6
    assert commands(CHINESE) == commands(ENGLISH)
    for kind in ("text", ""):
        for shown in blocks(CHINESE, kind):
            assert shown in blocks(ENGLISH, kind), "what is shown is not what README.md shows"
    assert len(figures(ENGLISH)) > 10
    assert figures(CHINESE) == figures(ENGLISH)
    assert {name for name in spans(CHINESE) if name.isascii()} - set(spans(ENGLISH)) == set()


def told():
    """What `make help` prints."""
    return subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text()
    written = re.findall(r"^([a-z][a-z -]*):(?!=)", makefile, flags=re.MULTILINE)
    found = {path.stem.replace("_", "-") for path in (ROOT / "pipeline" / "commands").glob("[a-z]*.py")}
    targets = found | {name for rule in written for name in rule.split()}
    nodes = {path.stem for path in (ROOT / "stages" / "profiles" / "tiny").glob("*.yaml")} - {"evaluate", "push"}
    assert len(targets) > 15
    assert len(nodes) == 4
    text = told()
    for target in (targets | nodes) - {"all", "help", "make"}:
        assert re.search(rf"^make {re.escape(target)} ", text, flags=re.MULTILINE), target


def test_every_make_command_of_the_docs_has_its_target():
    text = told()
    nodes = {path.stem for path in (ROOT / "stages" / "profiles").glob("*/*.yaml")} | {"finetune"}
    for page in PAGES:
        shown = [line for line in "\n".join(blocks(page, "console")).splitlines() if line.startswith("$ ")]
        for goal in re.findall(r"\bmake ([a-z][a-z-]*)", "\n".join([*spans(page), *shown])):
            assert goal in nodes | {"help"} or re.search(rf"^make {goal} ", text, flags=re.MULTILINE), (
                f"{page.name}: make {goal}"
            )


def paths(page):
    """Names in backticks, links, or commands that look like files or folders of the checkout, with their examples aside."""
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()) if "://" not in link]
    yield from ((link, page.parent / link) for link in links)
    shown = [block for kind in ("console", "text") for block in blocks(page, kind)]
    for word in re.findall(
        rf"[\w.*/-]+\.(?:{SUFFIX})\b|\b(?:stages|pipeline|tests|docs|data_recipes)/[\w./*-]*", "\n".join([*spans(page), *shown])
    ):
        yield word, ROOT / word


def exists(page, word, path):
    if re.match(WRITTEN, word) or (page.parent / word).exists() or path.exists():
        return True
    if "*" in word:
        return any(ROOT.glob(word))
    if "/" not in word:  # a file that is named without its folder
        return any(ROOT.glob(f"[!.]*/**/{word}"))
    return word in examples() or any(ROOT.glob(f"[!.]*/**/{word}"))


def examples():
    """Path → text of the files that docs/stages.md lets a reader write."""
    return dict(re.findall(r"The whole of `([\w./]+)`[^`]*```python\n(.*?)```", EXAMPLES.read_text(), flags=re.DOTALL))


def test_files_are_found_in_the_docs():
    assert len([word for page in PAGES for word, _ in paths(page)]) > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_docs_name_no_file_that_does_not_exist(page):
    assert [word for word, path in paths(page) if not exists(page, word, path)] == []


def declared():
    """Names of all options: ours, by their dataclasses' source, and those that the flags of commands and the driver have."""
    found = {"help", "config", "output", "data", "key", "value"}
    for path in [*(ROOT / "stages").glob("*.py"), *(ROOT / "pipeline").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[a-z_]+", node.value):
                found.add(node.value)
    return found


def test_the_docs_name_no_flag_that_does_not_exist():
    from transformers import TrainingArguments

    known = declared() | set(TrainingArguments.__dataclass_fields__)
    theirs = {"nproc_per_node", "cpu", "num_processes", "config_file"}  # of torchrun and accelerate
    for page in PAGES:
        flags = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9_]+)", page.read_text()))
        assert flags <= known | theirs, f"{page.name}: {flags - known - theirs}"


@pytest.mark.parametrize("file", sorted(examples()))
def test_the_worked_examples_use_what_is_there(file):
    """They parse, and every name that they import from us exists."""
    tree = ast.parse(examples()[file])
    ours = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pipeline")]
    assert ours
    for node in ours:
        module = importlib.import_module(str(node.module))
        for alias in node.names:
            assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), (
                f"{node.module}.{alias.name}"
            )
    assert not (ROOT / file).exists(), "an example that is part of the checkout needs no copy in the docs"


def test_the_declaration_is_explained_attribute_by_attribute():
    from pipeline.chain.stage import Stage

    text = EXAMPLES.read_text()
    names = {name for name in [*vars(Stage), *Stage.__annotations__] if not name.startswith("_")}
    own = {"kind", "script", "story", "split"}  # that nobody overrides
    assert [name for name in sorted(names - own) if f"`{name}" not in text and f"`{name}(" not in text] == []


def test_the_picture_is_there():
    assert (ROOT / "docs" / "report.png").stat().st_size > 10_000
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_no_script_bears_a_library_name():
    import importlib.util
    import sys

    for path in (ROOT / "stages").glob("*.py"):
        found = importlib.util.find_spec(path.stem)
        assert found is None or path.stem in sys.stdlib_module_names or "site-packages" not in str(found.origin), path
