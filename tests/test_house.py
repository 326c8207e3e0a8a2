"""The house: rooms that import only from rooms below them, no stage named outside of its own script, no circles."""

import ast
import functools
import io
import re
import tokenize

from pipeline import ROOT
from pipeline.chain import stages

LAYERS = [
    {"system"}, {"models"}, {"data"}, {"chain"}, {"evaluation"}, {"objectives", "tasks", "augmentation", "rewards", "curation"}, {"training"}, {"report"}, {"hub"}, {"commands"},
]  # fmt: skip
_STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
LEVEL = {name: number for number, names in enumerate(LAYERS) for name in names}


def modules():
    return [path for path in sorted((ROOT / "pipeline").rglob("*.py")) if path.parent != ROOT / "pipeline"]


def imported(path):
    """Dotted names of ours that a file imports, those inside of functions too, those for type checkers alone aside."""
    tree = ast.parse(path.read_text())
    aside = {id(node) for block in ast.walk(tree) if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
             for node in ast.walk(block)}  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in aside:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(name):
    parts = name.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 and parts[1] in LEVEL else None


def test_every_room_has_a_level_and_every_file_a_room():
    assert {path.name for path in (ROOT / "pipeline").iterdir() if path.is_dir() and path.name != "__pycache__"} == set(LEVEL)
    assert [path.name for path in (ROOT / "pipeline").glob("*.py")] == ["__init__.py"]


def test_rooms_import_only_from_below():
    wrong = []
    for path in modules():
        mine = path.relative_to(ROOT / "pipeline").parts[0]
        for name in imported(path):
            theirs = room(name)
            if theirs and theirs != mine and LEVEL[theirs] >= LEVEL[mine]:
                wrong.append(f"{path.relative_to(ROOT)} ({mine}) imports {name}")
            assert not name.startswith(("stages.", "data_recipes")), path
    assert wrong == []


def test_no_module_imports_itself_in_a_circle():
    def top(path):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipeline"):
                for alias in node.names:
                    for name in (f"{node.module}.{alias.name}", node.module):
                        place = ROOT.joinpath(*name.split("."))
                        file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
                        if file.is_file():
                            yield file
                            break

    graph = {path: set(top(path)) - {path} for path in (ROOT / "pipeline").rglob("*.py")}
    done, path_now = set(), []

    def visit(file):
        assert file not in path_now, [str(item.relative_to(ROOT)) for item in [*path_now[path_now.index(file) :], file]]
        if file not in done:
            path_now.append(file)
            for other in graph.get(file, ()):
                visit(other)
            path_now.pop()
            done.add(file)

    for file in graph:
        visit(file)


@functools.cache
def words(path):
    """Identifiers and what stands in strings, docstrings aside: (line, word) of each."""
    return list(_words(path))


def _words(path):
    text = path.read_text()
    named = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body
    ]
    first = [
        node.body[0] for node in named if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
    ]
    told = {(node.lineno, node.col_offset) for node in first}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string
        elif token.type in _STRINGS and token.start not in told:
            yield from ((token.start[0], word) for word in re.findall(r"[A-Za-z_]+", token.string))


def test_no_stage_is_named_outside_of_its_script():
    kinds = set(stages.known())
    assert len(kinds) >= 5
    kinds -= {stages.load(kind).gives for kind in kinds}  # a family of models may be called like the stage that makes it
    kinds -= {stages.load(kind).given_as for kind in kinds}  # and so may a stage that makes what `make new` is given
    found = [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in (ROOT / "pipeline").rglob("*.py")
        for line, word in words(path)
        if word in kinds
    ]
    for kind in kinds:
        others = [path for path in (ROOT / "stages").glob("*.py") if path.stem != kind]
        found += [f"{path.relative_to(ROOT)}:{line}: {word}" for path in others for line, word in words(path) if word == kind]
    makefile = [line for line in (ROOT / "Makefile").read_text().splitlines() if not line.startswith("#")]
    found += [f"Makefile: {line}" for line in makefile if kinds & set(re.findall(r"[\w]+", line))]
    assert found == []


def test_stages_holds_stages():
    assert {path.name for path in (ROOT / "stages").iterdir() if path.name != "__pycache__"} == {
        f"{kind}.py" for kind in stages.known()
    } | {"profiles", "launch"}
    for kind in stages.known():
        stage = stages.load(kind)
        assert stage.kind == kind
        assert stage.title
        assert stage.about.endswith(".")


def test_no_model_or_tokenizer_is_loaded_without_saying_that_its_code_is_not_run():
    """Where nobody says it, the library asks on a terminal whether code that lies beside the weights may run."""
    unsaid = []
    for path in [*modules(), *(ROOT / "stages").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr not in ("from_pretrained", "from_config") or owner in (
                "loading",
                "PeftModel",
                "GenerationConfig",
            ):
                continue
            said = {one.arg: ast.unparse(one.value) for one in node.keywords}
            if said.get("trust_remote_code") != "False":
                unsaid.append(f"{path.relative_to(ROOT)}:{node.lineno}: {owner}")
    assert unsaid == []


def test_what_knows_of_pictures_is_listed():
    """A modality lies in a few files that say so: the list in docs/architecture.md is all of them."""
    told = (ROOT / "docs/architecture.md").read_text().partition("## Files that handle images")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`((?:pipeline|stages)/[\w/]+\.py)`", told))
    knows = re.compile(
        r"PIL|PIXELS|PICTURES|pixels|pixel_values|PIXEL_COLUMN|pixels_\w+|\w*Image\w*|image_\w+|raw_pixels|pictured"
    )
    found = {
        path.relative_to(ROOT).as_posix()
        for path in [*modules(), *(ROOT / "stages").glob("*.py")]
        if any(knows.fullmatch(word) for _, word in words(path))
    }
    assert found == listed
