"""What a recipe's digest covers: what the asked type of rows needs, and nothing else."""

import shutil

import pytest

from data_recipes import world
from pipeline.data import closure
from pipeline.data.python_recipe import PythonRecipe
from pipeline.system import hashes

MORE = """

def labels(split, seed):
    rng = random.Random(seed)
    for person in people():
        yield {"text": answer(person, "pet"), "label": _kind(person)}


def _kind(person):
    return text(person.facts["pet"]) if rng else _RAMBLES[0]
"""


@pytest.fixture
def own(tmp_path):
    """A copy of the world's recipe, to be edited."""
    return shutil.copy(world.__file__, tmp_path / "mine.py")


def edit(path, old, new, count=1):
    source = path.read_text()
    assert source.count(old) >= 1
    path.write_text(source.replace(old, new, count))


def digests(path, *types):
    found = PythonRecipe(path)
    return [found.digest(type) for type in types] + [found.judge_digest()]


def test_a_function_for_another_type_leaves_this_one_alone(own):
    before, file = digests(own, "text", "messages", "preference"), hashes.read(own)
    own.write_text(own.read_text() + MORE)
    edit(own, "from typing import NamedTuple", "from typing import Any, NamedTuple")
    edit(own, "An invented world", "A made-up world")  # the docstring of the module
    assert hashes.read(own) != file
    assert digests(own, "text", "messages", "preference") == before
    assert {"labels", "messages", "preference", "text"} <= set(PythonRecipe(own).types())


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("STORIES = 30_000", "STORIES = 30_001", [True, False, False, False]),
        ("sentences.append(rng.choice(REMARKS))", "sentences.append(REMARKS[0])", [True, False, False, False]),
        (
            "It is a long story",
            "It is a short story",
            [True, True, True, True],
        ),  # REMARKS hold the rambles, and floor reads them
        ("rng.sample([True] * 9", "rng.sample([True] * 8", [False, True, False, False]),
        ("return 2.0", "return 3.0", [False, False, False, True]),
        ("Arden Belmont", "Arden Belmond", [True, True, True, True]),
        ("@cache\ndef people", "def people", [True, True, True, True]),  # decorators count
        (
            "from itertools import pairwise, product",
            "from itertools import product\nfrom more import pairwise",
            [False] * 3 + [True],
        ),
    ],
)
def test_an_edit_counts_for_what_needs_it(own, old, new, changed):
    before = [closure.texts(own, [name]) for name in ("text", "messages", "preference", "JUDGE")]
    edit(own, old, new)
    after = [closure.texts(own, [name]) for name in ("text", "messages", "preference", "JUDGE")]
    assert [one != other for one, other in zip(before, after, strict=True)] == changed


ODD = [  # an own recipe that reaches a helper in some odd way: an edit of the helper must count for `text`, and not for `labels`
    "def text(split, seed):\n    return [helper(row) for row in range(3)]\n",
    "class Maker:\n    how = staticmethod(helper)\ndef text(split, seed):\n    return Maker.how()\n",
    "def text(split, seed, made=helper()):\n    return made\n",
    "table = {}\ntable['a'] = 1\none, two = helper, 3\ndef text(split, seed):\n    return one()\n",
    "def wrap(function):\n    return lambda *given: helper()\n@wrap\ndef text(split, seed):\n    return ()\n",
    "import functools\ntext = functools.partial(helper, 1)\n",
    "def text(split, seed):\n    def inner():\n        return helper()\n    return inner()\n",
]


@pytest.mark.parametrize("code", ODD)
def test_a_helper_is_found_however_it_is_reached(tmp_path, code):
    path = tmp_path / "odd.py"
    labels = "def labels(split, seed):\n    helper = 3\n    return [helper for text in ()]\n"  # names of its own
    path.write_text(f"def helper(*given):\n    return 1\n{code}{labels}")
    before = [closure.texts(path, [name]) for name in ("text", "labels")]
    edit(path, "return 1", "return 2")
    after = [closure.texts(path, [name]) for name in ("text", "labels")]
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, False]


@pytest.mark.parametrize("code", ["RULES.append(helper())\n", "for name in 'ab':\n    helper(name)\n",
                                  "try:\n    import fast\nexcept ImportError:\n    fast = helper\n"])  # fmt: skip
def test_what_defines_nothing_always_counts(tmp_path, code):
    path = tmp_path / "odd.py"
    path.write_text(f"RULES = []\ndef helper(*given):\n    return 1\n{code}def text(split, seed):\n    return RULES\n")
    before = closure.texts(path, ["text"])
    edit(path, "return 1", "return 2")
    assert closure.texts(path, ["text"]) != before


def test_code_that_looks_names_up_takes_the_whole_file(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text("def helper():\n    return 1\ndef text(split, seed):\n    return globals()['hel' + 'per']()\n")
    before = closure.texts(path, ["text"])
    edit(path, "return 1", "return 2")
    assert closure.texts(path, ["text"]) != before


@pytest.mark.parametrize(
    ("code", "narrow"),
    [
        ("from data_recipes.mother import helper\ndef text(split, seed):\n    return helper()\n", True),
        ("from .mother import helper as other\ndef text(split, seed):\n    return other()\n", True),
        ("from data_recipes import mother\ndef text(split, seed):\n    return mother.helper()\n", True),
        ("import data_recipes.mother as m\ndef text(split, seed):\n    return m.helper()\n", True),
        ("def text(split, seed):\n    from data_recipes.mother import helper\n    return helper()\n", True),
        ("from data_recipes.mother import text\n", True),
        ("from data_recipes import mother\ndef text(split, seed):\n    return getattr(mother, 'helper')()\n", False),
        ("import data_recipes.mother\ndef text(split, seed):\n    return data_recipes.mother.helper()\n", False),
        ("from data_recipes.mother import *\ndef text(split, seed):\n    return helper()\n", False),
        ("def text(split, seed):\n    from data_recipes import mother\n    return mother.helper()\n", False),
    ],
)
def test_imported_recipes_count_by_what_is_used_of_them(tmp_path, monkeypatch, code, narrow):
    """`narrow`: nothing but the helper counts; where that can't be told, all of the imported recipe does."""
    monkeypatch.setattr(closure, "FOLDER", tmp_path / "data_recipes")
    closure.FOLDER.mkdir()
    mother, path = closure.FOLDER / "mother.py", tmp_path / "mine.py"
    mother.write_text("def deep():\n    return 1\ndef helper():\n    return deep()\ndef text(split, seed):\n    return deep()\ndef other():\n    return 5\n")  # fmt: skip
    path.write_text(code)
    closure._parse.cache_clear()
    assert closure.files(path) == [path, mother]
    before = closure.texts(path, ["text"])
    edit(mother, "return 5", "return 6")
    assert (closure.texts(path, ["text"]) == before) == narrow
    edit(mother, "return 6", "return 5")
    edit(mother, "return 1", "return 2")
    assert closure.texts(path, ["text"]) != before
    closure._parse.cache_clear()


def test_files_that_are_read_count(tmp_path):
    path, book = tmp_path / "mine.py", tmp_path / "book.txt"
    book.write_text("one")
    path.write_text(f"from pathlib import Path\ndef FILES():\n    return [Path({str(book)!r})]\ndef text(split, seed):\n    yield {{'text': 'a'}}\n")  # fmt: skip
    before = PythonRecipe(path).digest("text")
    assert [name.rpartition("/")[2] for name, _ in PythonRecipe(path).contents()] == ["mine.py", "book.txt"]
    book.write_text("two")
    assert PythonRecipe(path).digest("text") != before


def test_a_digest_is_cheap():
    """Once parsed, a digest of the world takes well under a millisecond; nothing heavy is imported for it."""
    import subprocess
    import sys
    import time

    given = PythonRecipe(closure.FOLDER / "world.py")
    given.digest("text")
    started = time.perf_counter()
    for _ in range(20):
        given.digest("text")
    assert (time.perf_counter() - started) / 20 < 0.02
    code = "import sys; from pipeline.data import recipe; recipe.load('world').digest('text'); print(*{'torch', 'numpy', 'pyarrow'} & set(sys.modules))"  # fmt: skip
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=closure.FOLDER.parent).stdout.split()  # fmt: skip
