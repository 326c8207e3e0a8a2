"""What an evaluator sees of one node: its model and those it is compared with, its held-out rows, its judge."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.chain import manifest, stages
from pipeline.chain.finished import Finished
from pipeline.chain.stage import Stage
from pipeline.data import recipe as recipes
from pipeline.data import types
from pipeline.data.image_inputs import PIXEL_COLUMN, ImageCollator, ImageInputs
from pipeline.data.judge import Judge
from pipeline.data.recipe import Recipe
from pipeline.data.tokens import Tokens
from pipeline.data.types import Row
from pipeline.evaluation import inference
from pipeline.models import checkpoint, parts, processors, reward_model, vision_language
from pipeline.models.control import Unfit
from pipeline.models.families import ANSWERING, family_of
from pipeline.models.tokenization import render
from pipeline.system import hashes
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.system.hardware import device

Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """The options of the evaluation."""

    rows: int = option(400, "held-out rows of a node that are measured, at most", at_least=1)
    rows_of: dict[str, int] = option({}, "dataset type: how many, where its rows shall be more or fewer")  # noqa: RUF009
    resamples: int = option(1000, "bootstrap resamples behind an interval", at_least=1)
    max_new_tokens: int = option(64, "longest answer that is generated", at_least=1)
    samples: int = option(4, "prompts that all models answer side by side", at_least=1)
    seed: int = option(42, "of the judge's questions and the sampled answers")

    def limit(self, reads: str) -> int:
        """Return how many held-out rows of a dataset type are measured at most."""
        return self.rows_of.get(reads, self.rows)


class StageModel:
    """A model that is measured, in a folder or on a hub; weights, tokenizer and answers are made when they are first needed.

    `template` is the chat template that it is asked by where it has none of its own.
    """

    def __init__(self, where: str, label: str, template: str | None = None) -> None:
        self.where, self.label, self.template = where, label, template
        self.record = manifest.read(Path(where)) if Path(where).is_dir() else None
        self._replies: dict[str, list[inference.Reply]] = {}

    @cached_property
    def _stage(self) -> Stage | None:
        """The stage that made it; None of a model that is no node."""
        return stages.load(str(self.record["stage"])) if self.record else None

    @cached_property
    def _options(self) -> Any:
        """The options that it was made with, where it is a node."""
        return self._stage.split(self.record["config"])[0] if self._stage and self.record else None

    @cached_property
    def config(self) -> Any:
        """The model's configuration, as transformers reads it."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.where, trust_remote_code=False)

    @cached_property
    def family(self) -> str:
        """The model's family; empty where neither a record nor the name of its class tells."""
        if self.record:
            return str(self.record["family"])
        return family_of((self.config.architectures or [""])[0], self.config.num_labels)

    @property
    def positions(self) -> float:
        """How many tokens it can read at once; infinite where nothing bounds it."""
        return float(getattr(self.config.get_text_config(), "max_position_embeddings", math.inf))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, with the borrowed template where it has none of its own; of rows that are no text what their stage has for it."""
        made = self._stage if self.family not in ANSWERING else None
        tokenizer = made.processor(self._options, self.where) if made else processors.load(self.where)
        if tokenizer is None or processors.of_pictures(tokenizer):
            self.borrows = False
            return tokenizer
        if self.sees:
            vision_language.name_image_token(tokenizer, self.config)
        self.borrows = bool(self.template) and not tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template or self.template
        return tokenizer

    @property
    def chats(self) -> bool:
        """Whether it is a model that writes, with a chat template of its own."""
        return self.family in ANSWERING and bool(self.tokenizer.chat_template) and not self.borrows

    @cached_property
    def model(self) -> Any:
        """The model in fp32 on the device: a causal one ready to answer, a node of another family as its stage loads it."""
        if self.family not in ANSWERING and self._stage:
            return self._stage.load_model(self._options, self.where).to(device()).eval()
        model = checkpoint.load(self.where).to(device()).eval()
        model.generation_config = checkpoint.generation(self.tokenizer)  # a base model, too, stops at the end of an answer
        model.config.use_cache = True
        return model

    @cached_property
    def reward_model(self) -> Any:
        """The model of family `reward` in fp32, ready to score."""
        return reward_model.load(self.where).to(device()).eval()

    def release(self) -> None:
        """Let go of the weights; what it answered stays."""
        self.__dict__.pop("model", None)
        self.__dict__.pop("reward_model", None)

    @property
    def sees(self) -> bool:
        """Whether it reads pictures beside texts."""
        return self.family == vision_language.FAMILY

    @cached_property
    def image_inputs(self) -> ImageInputs:
        """What makes its input of the pictures of a conversation, where it sees."""
        return ImageInputs.from_folder(self.where, self.config)

    def prompt(self, turns: Turns, encode: Callable[[Turns], Mapping[str, list[int]]] | None = None) -> dict[str, Any]:
        """Return an encoded conversation, its pictures under `pixels`; without them where it sees none.

        `encode`: messages → columns of ids; by default `input_ids` of a conversation whose answer is asked for.
        """
        encode = encode or (lambda given: {"input_ids": render(self.tokenizer, given, answer_next=True)})
        return (
            self.image_inputs.add_images(encode(parts.bare(turns)), parts.pictures(turns))
            if self.sees
            else dict(encode(parts.texts_alone(turns)))
        )

    def nats(self, rows: Sequence[Tokens]) -> list[float]:
        """Return −Σ log p of the rows' targets."""
        pad_id = int(self.tokenizer.pad_token_id)
        return inference.nats(self.model, rows, pad_id, ImageCollator(self.image_inputs, pad_id) if self.sees else None)

    def rewards(self, rows: Sequence[Tokens]) -> list[float]:
        """Return its scores of rows, where it is a reward model."""
        return inference.rewards(self.reward_model, rows, int(self.tokenizer.pad_token_id))

    def replies(self, prompts: Sequence[Turns], max_new_tokens: int, seed: int | None = None) -> list[inference.Reply]:
        """Return a reply to each conversation: greedy, or sampled with a seed."""
        given = [self.prompt(turns) for turns in prompts]
        return self.continued(
            [one["input_ids"] for one in given], max_new_tokens, seed, [one.get(PIXEL_COLUMN, b"") for one in given]
        )

    def continued(
        self, prompts: Sequence[list[int]], max_new_tokens: int, seed: int | None = None, pixels: Sequence[bytes] = ()
    ) -> list[inference.Reply]:
        """Return what it writes after each prompt (ids), asked once and remembered; `pixels`: the pictures of each."""

        def beside(places: Sequence[int]) -> dict[str, Any]:
            return self.image_inputs.columns([pixels[place] for place in places])

        key = json.dumps([prompts, max_new_tokens, seed, [hashes.digest([one.hex()]) for one in pixels if one]])
        if key not in self._replies:
            more = [beside] if any(pixels) else []
            self._replies[key] = inference.replies(self.model, self.tokenizer, prompts, max_new_tokens, seed, *more)
        return self._replies[key]


class Subject:
    """A finished node with all that it is measured against; what could not be measured is counted with its reason."""

    def __init__(
        self, finished: Finished, node: StageModel, options: Options, parent: StageModel | None = None,
        others: Mapping[str, StageModel] | None = None, controls: Sequence[StageModel] = (), base: StageModel | None = None,
        first_chat: StageModel | None = None,
    ) -> None:  # fmt: skip
        self.finished, self.node, self.settings = finished, node, options
        self.parent, self.others, self.controls, self.base = parent, dict(others or {}), list(controls), base
        self.first_chat = first_chat  # the oldest model of its descent that chats, which may be the parent
        self.record: Mapping[str, Any] = finished.record
        self.skipped: Counter[str] = Counter()
        self.samples: list[dict[str, Any]] = []
        self.neighbours: list[dict[str, Any]] = []  # what a few rows found among all, by their numbers
        self.about, self.count = "", 0  # what the figures were measured on, in words; how many rows those are
        self.models: dict[str, dict[str, Any]] = {node.label: {"role": "node", "asked": ""}}
        if parent:
            self.models[parent.label] = {"role": "parent", "asked": ""}
        self.models |= {model.label: {"role": role, "asked": ""} for role, model in self.others.items()}
        self.models |= {control.label: {"role": "control", "asked": ""} for control in controls}

    @property
    def reads(self) -> str:
        """The dataset type of the node's rows; empty where it reads none."""
        return str(self.record["recipe"].get("type") or "")

    @property
    def seed(self) -> int:
        """The node's seed."""
        return int(self.record["seed"])

    @property
    def compared(self) -> list[StageModel]:
        """The node, its parent, parents of its family in other roles (a teacher), its controls, as far as there are any."""
        return [self.node, *([self.parent] if self.parent else []), *self.others.values(), *self.controls]

    @property
    def chatting(self) -> list[StageModel]:
        """Those of `compared` that can be asked by a chat template, their own or the node's."""
        return [model for model in self.compared if model.family in ANSWERING and model.tokenizer.chat_template]

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that the node was trained on."""
        return recipes.of(self.record) if self.reads else recipes.EMPTY

    @property
    def judge(self) -> Judge | None:
        """The recipe's judge, if it has one."""
        return self.recipe.judge

    def training(self) -> Sequence[Row]:
        """Return the rows that the node was trained on."""
        return self.recipe.rows(self.reads, "train", self.seed).kept

    @cached_property
    def rows(self) -> list[Row]:
        """Rows that the node held out, at most as many as the settings say, spread over all, that every model can read."""
        return list(self.numbered.values())

    @cached_property
    def numbered(self) -> dict[int, Row]:
        """`rows`, each under its number among all that the node held out, by which it can be read again."""
        if not self.reads or not self._as_trained():
            return {}
        kept = self.recipe.rows(self.reads, "held_out", self.seed).kept
        if not kept:
            self.skipped["its data is too small to hold any row out"] += 1
        step = max(1, math.ceil(len(kept) / self.settings.limit(self.reads)))
        found = self._fitting(dict(zip(range(0, len(kept), step), kept[::step], strict=True)))
        self.describe(list(found.values()), types.load(self.reads).items)
        return found

    def describe(self, rows: Sequence[Row], items: str, groups: int = 0) -> None:
        """Say on how many held-out items the figures are measured."""
        self.count = len(rows)
        self.about = about(len(rows), items, self.record["recipe"]["name"], groups)

    def add_model(self, label: str, role: str, asked: str = "", seconds: float | None = None) -> None:
        """Add a column, and how its model was asked or counted, in how long: one asked in another way, or a baseline."""
        self.models[label] = {"role": role, "asked": asked} | ({} if seconds is None else {"seconds": seconds})

    def _as_trained(self) -> bool:
        """Say whether the recipe is still the one that the node was trained on; only then it's known what was held out."""
        try:
            if self.recipe.digest(self.reads) == self.record["recipe"]["digest"]:
                return True
            self.skipped["its data changed since it was trained, so its held-out rows are no longer known; make it again"] += 1
        except UserError as error:
            self.skipped[f"its data can't be read: {error.faults[0]}"] += 1
        return False

    def _fitting(self, rows: dict[int, Row]) -> dict[int, Row]:
        """Return the rows that every model has positions for and a template that writes them; count the others."""
        conversations = [_conversations(row) for row in rows.values()]
        if not any(conversations):
            return rows  # plain text is cut in pieces, and other rows are cut by their task
        models = [model for model in [*self.compared, *([self.base] if self.base else [])] if model.tokenizer.chat_template]
        kept = {}
        for (number, row), found in zip(rows.items(), conversations, strict=True):
            try:
                if all(
                    len(model.prompt(turns, _whole(model))["input_ids"]) <= model.positions
                    for model in models
                    for turns in found
                ):
                    kept[number] = row
                else:
                    self.skipped["held-out rows longer than a model has positions"] += 1
            except Unfit as error:
                self.skipped[f"held-out rows: {error.reason}"] += 1
        return kept


def about(rows: int, items: str, recipe: str, groups: int = 0) -> str:
    """Return in words what figures are measured on, without this machine's folders."""
    of = f" of {groups:,} groups" if groups else ""
    named = [Path(part).name if Path(part).is_absolute() else part for part in recipe.split(",")]
    return f"{rows:,} held-out {items}{of} of {','.join(named)}"


def _conversations(row: Row) -> list[Turns]:
    """Return every conversation in a row, whatever its type: its turns, after its prompt where it has one, with its pictures."""
    found = {key: value for key, value in row.items() if isinstance(value, list) and value and _is_turn(value[0])}
    if images := row.get("images"):
        found = {key: parts.filled(value, images) for key, value in found.items()}
    prompt = found.pop("prompt", [])
    return [prompt + turns for turns in found.values()] or ([prompt] if prompt else [])


def _whole(model: StageModel) -> Callable[[Turns], Mapping[str, list[int]]]:
    """Return what encodes a conversation as a model reads it whole."""
    return lambda turns: {"input_ids": render(model.tokenizer, turns)}


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and {"role", "content"} <= set(value)
