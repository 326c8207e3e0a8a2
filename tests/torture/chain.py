"""The chain whose nodes are killed: a small profile with one node of each family, its rows, and the command of each node."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.chain import profile, stages
from pipeline.chain.profile import Node
from pipeline.chain.stage import PARENT, ROWS
from pipeline.data import recipe
from pipeline.training.adapter import AdapterOptions
from pipeline.training.answers import Sampled
from tests import checkout

SAVE = 4  # steps between checkpoints
SAVES = f"save_steps: {SAVE}\nlogging_steps: 2\n"
SIZES = (
    "hidden_size: 64\nnum_hidden_layers: 2\nnum_attention_heads: 2\nvocab_size: 600\nmax_length: 128\n"
    f"per_device_train_batch_size: 8\nlearning_rate: 1e-3\nmax_steps: 24\n{SAVES}"
)
SHORT = f"parent: sft\nper_device_train_batch_size: 4\nmax_length: 128\nmax_steps: 12\n{SAVES}"
SCORED = "parent: sft\nrewards: {regex: {pattern: e}}\n"  # a model that learned for a few steps gets nothing else right
NODES = {
    "pretrain": SIZES,
    "stream": f"stage: pretrain\nrecipe: data/stream.yaml\n{SIZES}",
    "mlm": f"stage: pretrain\nobjective: mlm\n{SIZES}",
    "rtd": f"stage: pretrain\nobjective: rtd\n{SIZES}",
    "spans": f"stage: pretrain\nobjective: span_corruption\n{SIZES}",
    "vectors": f"stage: pretrain\nobjective: contrastive\n{SIZES}",
    "words": f"stage: pretrain\nobjective: skipgram\n{SIZES}",
    "imitate": f"parent: pretrain\nteacher: mlm\nmax_length: 128\nper_device_train_batch_size: 4\nmax_steps: 16\n{SAVES}",
    "sft": "parent: imitate\nchat_template: chatml.jinja\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 2\n"
           f"lr_scheduler_type: constant\nmax_length: 128\nmax_steps: 16\n{SAVES}",
    "clip": f"stage: pretrain\nrecipe: scenes\nobjective: clip\nobjective_options: {{image_size: 32, patch_size: 16}}\n{SIZES}",
    "see": "stage: sft\nrecipe: scenes\nparent: pretrain\nvision: clip\ntower: frozen\nchat_template: chatml.jinja\n"
           f"per_device_train_batch_size: 4\nmax_length: 128\nmax_steps: 16\n{SAVES}",
    "cross": "stage: sft\nrecipe: scenes\nparent: pretrain\nvision: clip\ntower: frozen\nmethod: cross_attention\nresampler_n_latents: 4\n"
             f"resampler_depth: 1\nchat_template: chatml.jinja\nper_device_train_batch_size: 4\nmax_length: 128\nmax_steps: 16\n{SAVES}",
    "dpo": f"release: yes\n{SHORT}",
    "distill": f"parent: imitate\nteacher: pretrain\nmethod: lora\nper_device_train_batch_size: 4\nmax_length: 128\nmax_steps: 12\n{SAVES}",
    "distill-chat": "parent: sft\nteacher: dpo\nreads: prompts\nmethod: lora\nmax_completion_length: 8\nmax_length: 128\n"
                    f"per_device_train_batch_size: 4\nmax_steps: 12\n{SAVES}",
    "kto": SHORT,
    "reward": SHORT,
    "rlhf": "parent: sft\nreward: reward\nrewards: {model: 1, regex: {pattern: e}}\nmax_completion_length: 12\n"
            f"num_generations: 4\nper_device_train_batch_size: 16\nmax_steps: 12\n{SAVES}",
    "pairs": f"{SCORED}max_new_tokens: 24\nprompts: 256\n",
    "selftrain": f"stage: self_train\n{SCORED}max_new_tokens: 24\nprompts: 192\nrounds: 2\nper_device_train_batch_size: 4\nmax_steps: 16\n{SAVES}",
}  # fmt: skip
# A recipe of which nothing is kept: lines and row groups, each with its share; a chunk lasts for a few steps.
STREAM = "type: text\nstream: yes\nsources:\n  - files: data/lines.jsonl\n    share: 0.7\n  - files: data/groups.parquet\n    share: 0.3\n"
EVALUATE = "evaluate"  # no node, but killed like one: it measures what the released node descends from
MEASURED = ["--rows", "60", "--resamples", "100", "--max_new_tokens", "16"]
WORLD, PICTURED = (
    "world",
    "image_text",
)  # the recipe of texts; the type of all rows with pictures: a caption is a conversation, too
COUNTS = {WORLD: 3000, "scenes": 300}  # recipe → rows of each type; a picture takes as long as many texts


@dataclass
class Chain:
    """A copy of the checkout with the profile, and the folder of the uninterrupted chain."""

    checkout: Path
    nodes: dict[str, Node]
    reference: Path

    @property
    def data(self) -> Path:
        """Where the rows lie, a file for each recipe and dataset type."""
        return self.checkout / "data"

    def rows(self, name: str) -> tuple[str, str] | None:
        """Return recipe and dataset type of the rows that a node reads from a file; None where it reads none."""
        node = self.nodes[name]
        if not node.signature or not node.signature.reads or self.streams(name):
            return None
        found = str(node.settings.get("recipe", WORLD))
        return found, node.signature.reads if found == WORLD else PICTURED

    @property
    def lineage(self) -> Path:
        """The nodes that the released one descends from, which are evaluated."""
        return self.reference.parent / "lineage"

    def command(self, name: str, where: Path) -> list[str]:
        """Return the command that makes a node, or the evaluation, in a folder."""
        if name == EVALUATE:
            words = [
                "-m",
                f"pipeline.commands.{EVALUATE}",
                "--runs",
                str(self.lineage),
                "--output",
                str(where / "evaluate.json"),
            ]
            return [sys.executable, *words, *MEASURED]
        node = self.nodes[name]
        words = [str(node.stage.script), "--config", str(node.file), "--output", str(where / name)]
        for role, parent in node.parents.items():
            words += [f"--{role}", str(self.reference / parent)]
        if rows := self.rows(name):
            words += ["--data", str(self.data / f"{'-'.join(rows)}.jsonl")]
        return [sys.executable, *words]

    def streams(self, name: str) -> bool:
        """Say whether a node reads its rows while it trains."""
        return str(self.nodes[name].settings.get("recipe", "")).endswith("stream.yaml")

    def steps(self, name: str) -> int:
        """Return how many steps a node takes; 0 where it trains nothing."""
        return int(self.nodes[name].settings.get("max_steps", 0))

    def rounds(self, name: str) -> int:
        """Return how often a node samples."""
        return int(self.nodes[name].settings.get("rounds", 1))

    def having(self, phase: str) -> list[str]:
        """Return the nodes that have a phase, by what their stages declare."""
        if phase == EVALUATE:
            return [EVALUATE]
        wanted: dict[str, Callable[[Node], bool]] = {
            "data preparation": lambda node: trains(node) and self.rows(node.name) is not None,
            "tokenizer": lambda node: PARENT not in node.parents,
            "sampling": lambda node: issubclass(node.stage.Options, Sampled),
            "merging": lambda node: issubclass(node.stage.Options, AdapterOptions),
            "manifest": lambda node: True,
        }
        has = wanted.get(phase, trains)
        return [name for name, node in self.nodes.items() if has(node)]


def trains(node: Node) -> bool:
    """Say whether a node hands on a model and no rows."""
    return bool(node.signature and node.signature.gives != ROWS)


def built(folder: Path, names: Sequence[str]) -> Chain:
    """Copy the checkout, add the profile and rows of each type that its nodes read.

    `names`: the nodes that are wanted, with what they descend from; none: all.
    """
    copy = checkout.copied(folder / "checkout")
    stages.FOLDER = copy / "stages"  # of the copy, since it has more of them
    nodes = profile.load(checkout.write_profile(copy, "torture", **NODES)).nodes
    chain = Chain(copy, descent(nodes, names or nodes), folder / "reference")
    chain.data.mkdir()
    for name, kind in sorted({rows for rows in map(chain.rows, chain.nodes) if rows}):
        made = getattr(importlib.import_module(f"data_recipes.{name}"), kind)("train", 42)
        rows = itertools.islice(made, COUNTS[name])
        (chain.data / f"{name}-{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if any(map(chain.streams, chain.nodes)):
        write_stream(chain.data)
    return chain


def descent(nodes: dict[str, Node], names: Iterable[str]) -> dict[str, Node]:
    """Return the nodes of these names, and all that they descend from, parents first."""
    needed = set(names)
    if EVALUATE in needed:
        needed |= {name for name, node in nodes.items() if node.released}
    for name in reversed(nodes):
        needed |= set(nodes[name].parents.values()) if name in needed else set()
    return {name: node for name, node in nodes.items() if name in needed}


def write_stream(folder: Path) -> None:
    """Write the streamed recipe and its sources."""
    import pyarrow
    import pyarrow.parquet

    rows = list(recipe.load("world").rows("text", "train", 42).kept[:3000])
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2000]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[2000:]), folder / "groups.parquet", row_group_size=100)
    (folder / "stream.yaml").write_text(STREAM)
