"""The part of a Python recipe that some of its names need: their definitions, and all that these refer to, however deep.

Definitions count by their source text; `ast` and `symtable` only find them. So a function that is added for another
type of rows leaves the digest of this one as it was, and an edit of a helper that it calls does not. Statements
at the module's level that define nothing always count, since they may change anything. So does the whole file where
code looks names up by itself (`globals`, `eval`, …).
"""

from __future__ import annotations

import ast
import functools
import symtable
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline import ROOT

FOLDER = ROOT / "data_recipes"
_DYNAMIC = {"globals", "eval", "exec", "vars", "__import__", "import_module"}
_DYNAMIC_ATTRIBUTES = {("importlib", "import_module"), ("sys", "modules")}
_WHOLE = "*"  # stands for every name of a module
_SILENT = ("if TYPE_CHECKING:", 'if __name__ == "__main__":', "if __name__ == '__main__':")


class Import(NamedTuple):
    """What an imported name stands for: a recipe of ours or None, and the name in it, or `*` for the recipe itself."""

    recipe: str | None
    name: str


class Unit(NamedTuple):
    """A statement at the level of a module."""

    text: str
    defines: frozenset[str]
    uses: frozenset[str]  # names at the level of the module
    attributes: frozenset[tuple[str, str]]  # (name, attribute) of names of which nothing else is used
    imports: tuple[Import, ...]  # inside of functions and blocks
    dynamic: bool  # whether it looks names up by itself


class Module(NamedTuple):
    """A parsed recipe."""

    units: tuple[Unit, ...]
    imports: dict[str, Import]  # local name → what it stands for


@functools.cache
def _parse(source: str) -> Module:
    """Return the statements of a recipe and its imports."""
    lines = source.split("\n")
    units: list[Unit] = []
    imports: dict[str, Import] = {}
    for node in ast.parse(source).body:
        start = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", ()))])
        text = "\n".join(lines[start - 1 : node.end_lineno])
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not _spreads(node):
            imports |= dict(_imports(node))
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) and not text.startswith(_SILENT):
            units.append(_unit(node, text))
    return Module(tuple(units), imports)


def _unit(node: ast.stmt, text: str) -> Unit:
    inside = [inner for inner in ast.walk(node) if isinstance(inner, (ast.Name, ast.Attribute, ast.Import, ast.ImportFrom))]
    owners = {id(inner.value) for inner in inside if isinstance(inner, ast.Attribute)}
    read = {
        (inner.value.id, inner.attr)
        for inner in inside
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name)
    }
    bare = {inner.id for inner in inside if isinstance(inner, ast.Name) and id(inner) not in owners}
    imports = [found for inner in inside if isinstance(inner, (ast.Import, ast.ImportFrom)) for _, found in _imports(inner)]
    uses = frozenset(_globals(symtable.symtable(text, "recipe", "exec")))
    attributes = frozenset(item for item in read if item[0] not in bare)
    return Unit(text, _defines(node), uses, attributes, tuple(imports), bool(uses & _DYNAMIC or read & _DYNAMIC_ATTRIBUTES))


def _spreads(node: ast.Import | ast.ImportFrom) -> bool:
    """Say whether an import gives names that can't be told from it: `import data_recipes.world`, or a star."""
    if isinstance(node, ast.ImportFrom):
        return node.names[0].name == "*"
    return any(alias.name.startswith(f"{FOLDER.name}.") and not alias.asname for alias in node.names)


def _defines(node: ast.stmt) -> frozenset[str]:
    """Return the names that a statement does nothing but define; none where it may do more."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return frozenset({node.name})
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        flat = [item for target in targets for item in (target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target])]
        if all(isinstance(item, ast.Name) for item in flat):
            return frozenset(item.id for item in flat if isinstance(item, ast.Name))
    return frozenset()


def _globals(table: symtable.SymbolTable) -> Iterator[str]:
    """Yield the names at the level of the module that a statement refers to, in its functions and classes, too."""
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (top or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _globals(child)


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Import]]:
    """Yield the local name of everything that a statement imports, and what it stands for."""
    for alias in node.names:
        local = alias.asname or alias.name.partition(".")[0]
        if isinstance(node, ast.Import):
            yield local, _resolve(alias.name.split("."), [])
        else:
            module = [*([FOLDER.name] if node.level else []), *(node.module.split(".") if node.module else [])]
            yield local, _resolve(module, [alias.name])


def _resolve(module: list[str], name: list[str]) -> Import:
    parts = [*module, *name]
    if parts[0] == FOLDER.name and len(parts) > 1 and (FOLDER / f"{parts[1]}.py").is_file():
        return Import(parts[1], parts[2] if len(parts) > 2 else _WHOLE)
    return Import(None, ".".join(parts))


def _read(path: Path) -> Module:
    return _parse(path.read_text(encoding="utf-8"))


def files(path: Path) -> list[Path]:
    """Return a recipe's file and those of the shipped recipes that it imports, however deep."""
    found = [path]
    for known in found:  # grows while it is walked
        module = _read(known)
        every = [*module.imports.values(), *(item for unit in module.units for item in unit.imports)]
        for recipe in dict.fromkeys(item.recipe for item in every if item.recipe):
            if FOLDER / f"{recipe}.py" not in found:
                found.append(FOLDER / f"{recipe}.py")
    return found


def texts(path: Path, names: Iterable[str]) -> list[list[str]]:
    """Return the source texts of what `names` of a recipe need, by file, in an order that no file's name decides."""
    wanted: dict[Path, set[str]] = {}
    modules: dict[Path, Module] = {}
    todo = [(path, name) for name in names]
    while todo:
        where, name = todo.pop()
        if where not in modules:
            wanted[where], modules[where] = set(), _read(where)
        if name not in wanted[where]:
            todo += _needed(modules[where], where, name, first=not wanted[where])
            wanted[where].add(name)
    return sorted(_texts(modules[where], known) for where, known in wanted.items())


def _texts(module: Module, wanted: set[str]) -> list[str]:
    imported = [f"{name} = {module.imports[name]}" for name in sorted(wanted & module.imports.keys())]
    every = _WHOLE in wanted
    return imported + [unit.text for unit in module.units if every or not unit.defines or unit.defines & wanted]


def _needed(module: Module, where: Path, name: str, first: bool) -> Iterator[tuple[Path, str]]:
    """Yield what a name refers to; with `first` of its module, what the statements refer to that always count, too."""
    itself = module.imports.get(name)
    if itself and itself.recipe and itself.name != _WHOLE:
        yield FOLDER / f"{itself.recipe}.py", itself.name
    for unit in module.units:
        if name != _WHOLE and name not in unit.defines and (unit.defines or not first):
            continue
        if unit.dynamic:
            yield where, _WHOLE
        yield from ((where, used) for used in unit.uses)
        yield from ((FOLDER / f"{item.recipe}.py", item.name) for item in unit.imports if item.recipe)
        for used in unit.uses & module.imports.keys():
            imported = module.imports[used]
            if imported.recipe and imported.name == _WHOLE:
                read = [attribute for owner, attribute in unit.attributes if owner == used]
                yield from ((FOLDER / f"{imported.recipe}.py", item) for item in read or [_WHOLE])
