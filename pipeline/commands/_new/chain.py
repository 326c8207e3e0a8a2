"""The nodes and recipes of a new profile, put together from what was surveyed; each stage writes its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.chain import profile, stages, starter
from pipeline.chain.stage import PARENT, Stage
from pipeline.chain.starter import Facts
from pipeline.commands import evaluate
from pipeline.commands._new import draft, survey
from pipeline.commands._new.survey import Base, Given
from pipeline.data import recipe as recipes
from pipeline.system.errors import UserError

WORDS = ("text", "chats", "pairs")  # in the order of the chain
BASE = "base"
_FIRST = WORDS[0]


class Chain:
    """The nodes of a new profile, put together one after the other."""

    def __init__(self, name: str, given: Mapping[str, Given], base: Base | None) -> None:
        self.name, self.given, self.base = name, given, base
        self.places = {word: recipes.FOLDER / f"{name}-{word}.yaml" for word in given}
        self.folder = profile.FOLDER / name
        first = given.get(_FIRST)
        size = sum(len(row["text"].encode()) for row in first.train.kept) if first else 0
        self.model = starter.Model(base.parameters) if base else starter.fitting(size)
        self.facts: dict[str, Facts] = {}  # word → what its stage was told
        self.nodes: dict[str, str] = {}  # name → the file

    def build(self) -> None:
        """Measure the rows and let each stage write its nodes; UserError with every fault."""
        lengths = self._lengths()
        faults: list[str] = []
        bounded = [found for word, found in lengths.items() if word != _FIRST] or [(starter.LENGTHS[1],)]
        agreed = starter.agreed_length(bounded, self.base.positions if self.base else None)
        chats, parent = bool(self.base and self.base.chats), ""
        for word in (BASE, *WORDS):
            if word not in (self.given if word != BASE else {BASE} if self.base else {}):
                continue
            rows = self.given.get(word)
            kinds = fitting(word, rows.type if rows else "")
            for stage in kinds:
                faults += self._family(stage, parent)
                facts = Facts(self.model, agreed, self.base.where if self.base else "", parent, chats)
                if rows:
                    facts = Facts(
                        self.model, agreed, facts.base, parent, chats, f"{self.name}-{word}", rows.items, len(rows.train.kept),
                        lengths[word], word == _FIRST,
                    )  # fmt: skip
                    self.facts[word] = facts
                self._add(stage, facts, release=len(kinds) > 1 and stage is kinds[0])
            parent = kinds[0].kind
            chats = chats or any("chat_template" in text for text in self.nodes.values())
        draft.settle(faults)

    def _lengths(self) -> dict[str, tuple[int, ...]]:
        if self.base and self.base.tokenizer:
            tokenizer = survey.templated(self.base.tokenizer)
        else:
            tokenizer = survey.tokenizer(
                self.given.get(_FIRST) or survey.retold(_FIRST, list(self.given.values())), self.model.vocab_size or 4096
            )
        found: dict[str, tuple[int, ...]] = {}
        faults: list[str] = []
        for word, rows in self.given.items():
            try:
                found[word] = survey.lengths(rows, fitting(word, rows.type)[0], tokenizer)
            except UserError as error:
                faults += error.faults
        draft.settle(faults)
        return found

    def _family(self, stage: Stage, parent: str) -> list[str]:
        """Return that the base is a model that a stage can't go on from."""
        takes = stage.takes.get(PARENT, ()) if parent else ()
        if not self.base or not takes or self.base.family in takes:
            return []
        return [
            f"BASE={self.base.where}: is a model of family {self.base.family or 'unknown'}, but {stage.kind} takes {' or '.join(takes)}"
        ]

    def _add(self, stage: Stage, facts: Facts, release: bool) -> None:
        """Take the nodes of a stage into the profile, each with its parent."""
        for suffix, lines in stage.starter(facts).items():
            first: starter.Lines = {}
            if facts.parent and "control_of" not in lines:
                first[PARENT] = (facts.parent, "the node that it goes on from")
            if release and not suffix:
                first["release"] = (True, "of the nodes at the end, the one that is pushed under the name itself")
            title = f"A control of {stage.kind}." if "control_of" in lines else stage.about
            self.nodes[f"{stage.kind}{suffix}"] = draft.node(title, first | lines)

    def files(self) -> dict[Path, str]:
        """Return the text of every file of the profile and its recipes."""
        found = {path: recipe_text(self.name, self.given[word]) for word, path in self.places.items()}
        found |= {self.folder / f"{name}.yaml": text for name, text in self.nodes.items()}
        if not self.model.small:
            few: starter.Lines = {
                "rows": (100, "held-out rows of a node that are measured, since the model is slow on a CPU"),
                "max_new_tokens": (48, "longest answer"), "samples": (3, "prompts that every model answers"),
            }  # fmt: skip
            if aligned := self.given.get(WORDS[-1]):
                few["rows_of"] = ({aligned.type: 200}, f"more {aligned.items}, since each says little")
            found[self.folder / evaluate.SETTINGS] = draft.node("How the nodes are measured.", few)
        return found


def fitting(word: str, type: str = "") -> list[Stage]:
    """Return the stages that a word of `make new` is for, of those the ones that read rows of a type."""
    found = [stage for stage in map(stages.load, stages.known()) if stage.given_as == word]
    return [stage for stage in found if not type or stage.reads == type]


def recipe_text(name: str, given: Given) -> str:
    """Return a recipe's file."""
    recipe, rows = given.recipe, len(given.train.kept) + given.held_out
    formats = ", ".join(given.train.formats)
    lines: starter.Lines = {
        "type": (recipe.type, f"{rows:,} {given.items}, detected as {formats}"),
        "held_out": (recipe.held_out, f"share that is not trained on but measured: {given.held_out:,} {given.items}"),
    }
    if recipe.cut:
        lines["cut"] = (
            recipe.cut,
            "characters of a part: there are few documents, so long ones are cut and some parts held out",
        )
    if again := survey.repeated(given):
        lines["deduplicate"] = (False, f"true drops the {again:,} rows that were there before")
    written = draft.node(f"Written by `make new PROFILE={name}`; docs/your-own.md explains every key.", lines) + "sources:\n"
    for source in given.sources:
        written += "  - " + "\n    ".join(f"{key}: {draft.scalar(value)}" for key, value in source.items()) + "\n"
    return written
