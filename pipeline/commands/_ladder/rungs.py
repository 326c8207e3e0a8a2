"""The rungs of a ladder: smaller models of a node, each trained by the node's own stage on a few token counts, and measured."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import life, manifest, profile
from pipeline.chain.profile import Node
from pipeline.commands.make import run
from pipeline.data import recipe as recipes
from pipeline.system import config, hashes
from pipeline.system.errors import UserError
from pipeline.system.process import say

FOLDER = "ladder"  # of a profile's runs, in which the rungs of each node have a folder
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")  # options of a stage that builds its model
_SHARES = 0.2, 0.4, 0.6  # of the node's attention heads, which the rungs have
_WARMUP = 10  # a rung warms up for at most one in so many of its steps
_FEWEST = 20  # steps of the shortest rung
ROWS = 100  # held-out rows that a rung is measured on, at most


@dataclasses.dataclass(frozen=True)
class Size:
    """A size of the node's model: so many heads as wide as the node's, and as many layers to a head as it has."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int

    @property
    def name(self) -> str:
        """Width and depth."""
        return f"{self.hidden_size}x{self.num_hidden_layers}"

    @classmethod
    def of(cls, node: Node, heads: int) -> Size:
        """Return the size with so many heads that has the proportions of the node's model."""
        width, layers, own = (getattr(options(node), name) for name in SIZES)
        return cls(width // own * heads, max(1, round(layers * heads / own)), heads)


@dataclasses.dataclass(frozen=True)
class Text:
    """The text as the node's trainer reads it."""

    steps: int  # of one pass
    tokens: float  # of a step


@dataclasses.dataclass(frozen=True)
class Rung:
    """One run: a size and how many steps it trains."""

    size: Size
    steps: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.size.name}-{self.steps}"


@dataclasses.dataclass(frozen=True)
class Measured:
    """A finished rung."""

    rung: Rung
    parameters: int
    tokens: int  # that it read
    seconds: float
    nats: float  # of all held-out tokens
    held_out: int  # tokens
    size: float  # bytes

    @property
    def loss(self) -> float:
        """Nats a held-out token."""
        return self.nats / self.held_out

    @property
    def operations(self) -> float:
        """Floating point operations of its training, counted as 6 for each parameter and token (Kaplan et al. 2020)."""
        return 6.0 * self.parameters * self.tokens

    @property
    def bits(self) -> float:
        """Bits a held-out byte for each nat of loss."""
        return self.held_out / self.size / math.log(2)


def options(node: Node) -> Any:
    """Return the options of a node's stage."""
    return node.stage.split(node.settings)[0]


def chosen(whole: profile.Profile, name: str) -> Node:
    """Return the node of a profile that the ladder is for; UserError where it has none, or the named one isn't one."""
    fits = [node.name for node in whole.nodes.values() if not _unfit(node)]
    if not name and fits:
        return whole.nodes[fits[0]]
    which = f"there {'are' if len(fits) > 1 else 'is'} {', '.join(fits)}" if fits else "the profile has no node of that kind"
    if not name:
        raise UserError(f"profile {whole.name}: no node builds a causal model of its own sizes from text, which a ladder needs")
    if name not in whole.nodes:
        raise UserError(f"STAGE={name}: profile {whole.name} has no such node; {which}")
    if why := _unfit(whole.nodes[name]):
        raise UserError(f"STAGE={name}: {why}; a ladder trains causal models of several sizes from nothing, and {which}")
    return whole.nodes[name]


def _unfit(node: Node) -> str:
    """Return why there is no ladder for a node, or ""."""
    if node.control_of:
        return "it is a control"
    if not {field.name for field in dataclasses.fields(node.stage.Options)} >= {*SIZES, "objective", "recipe"}:
        return "it builds no model of its own sizes"
    if node.parents:
        return f"it goes on from {' and '.join(node.parents.values())}"
    if node.signature is None:
        return "its options are at fault; `make check` names the faults"
    return "" if node.signature.gives == "causal" else f"its model is of family {node.signature.gives}"


def sizes(node: Node, heads: Sequence[int] | None) -> list[Size]:
    """Return the sizes of the rungs, the smallest first: those of given heads, or 20, 40 and 60% of the node's."""
    own = options(node).num_attention_heads
    found = set(heads or (max(1, round(own * share)) for share in _SHARES))
    while not heads and len(found) < len(_SHARES):
        found.add(next(count for count in range(1, len(_SHARES) + 1) if count not in found))
    return [Size.of(node, count) for count in sorted(found)]


def grid(text: Text, parameters: Mapping[Size, int], share: float, number: int) -> list[Rung]:
    """Return the rungs, the smallest size first, of each the longest first; UserError where the text is too small.

    The largest size reads half of a share of the text at most, and any other as much of the share as takes no more operations.
    Each size has so many token counts, each √2 fewer than the one before. `parameters`: of each size.
    """
    most = share * text.steps
    budget = max(parameters.values()) * most / 2
    found = [
        Rung(size, round(min(most, budget / count) / 2 ** (less / 2)))
        for size, count in parameters.items()
        for less in range(number)
    ]
    shortest = min(rung.steps for rung in found)
    if shortest < _FEWEST:
        needed = math.ceil(100 * _FEWEST * 2 ** ((number + 1) / 2) / text.steps) / 100
        larger = f"a larger share of it (--share {needed:.2f}), " if needed <= 1 else ""
        raise UserError(
            f"the text is too small: one pass is {text.steps:,} steps, so the shortest rung would have {shortest}, and fewer than {_FEWEST} "
            f"teach nothing; take {larger}smaller batches or more text"
        )
    return found


def look(whole: profile.Profile, node: Node, runs: Path, scratch: Path, sizes: Sequence[Size]) -> tuple[Text, dict[Size, int]]:
    """Return what the node's trainer says of its text, and the parameters of each size.

    It takes one step of the largest size. UserError where that can't be done.
    """
    from pipeline.commands import _plan
    from pipeline.commands._plan import devices

    data = recipes.load(options(node).recipe)
    if data.streams:
        raise UserError(
            f"recipe {data.name}: is streamed, and a text without an end has no share; take `stream: yes` out, or name a part of its files"
        )
    if not len(data.rows(node.stage.reads, "held_out", _seed(node)).kept):
        raise UserError(f"recipe {data.name}: holds no rows out, so no loss can be measured; see `held_out` in docs/data.md")
    once = dataclasses.replace(node, settings={key: value for key, value in node.settings.items() if key != "max_steps"})
    _plan.load_libraries([node.stage.library_of(node.settings)], "pipeline.training.planned")
    planner = _plan.Planner(whole, runs, scratch, devices.this())
    flags = [*_flags(node, sizes[-1]), "--num_train_epochs", "1"]
    why, answer = planner.run(once, "whole", *flags, follow_only=True)
    if answer is None:
        raise UserError(f"{node.file}: the largest rung can't be trained: {why or 'it trains no model by gradient descent'}")
    text = Text(answer["steps"], answer["tokens"] / answer["steps"])
    return text, {size: parameters(node, size, scratch / "whole" / node.name) for size in sizes}


def _seed(node: Node) -> int:
    return int(node.settings.get("seed", 42))


def _flags(node: Node, size: Size) -> list[str]:
    """Return the flags by which a node's script makes a model of a size and trains it for as long as it is told."""
    found = [word for key, value in _sized(node, size).items() for word in (f"--{key}", str(value))]
    return found + (["--flops", "0"] if node.settings.get("flops") else [])


def _sized(node: Node, size: Size) -> dict[str, Any]:
    """Return a size's options with its learning rate, which falls as the width grows (Yang et al. 2022, table 3: Adam, hidden weights).

    With one rate for all, the small sizes would learn too slowly, and the law would promise more of a larger one than it keeps.
    """
    found: dict[str, Any] = dataclasses.asdict(size)
    values = node.stage.split(node.settings)[1]
    own, width = values.get("learning_rate"), options(node).hidden_size
    if own and width != size.hidden_size and "adam" in str(values.get("optim", "adamw")):
        found["learning_rate"] = float(f"{own * width / size.hidden_size:.3g}")
    return found


def train(node: Node, rung: Rung, folder: Path) -> Path:
    """Train a rung by the node's script, or go on with it, or find that it is done; return its folder."""
    output = folder / rung.name
    flags = ["--config", str(node.file), "--output", str(output), *_flags(node, rung.size), "--max_steps", str(rung.steps)]
    warmup = node.settings.get("warmup_steps", 0)
    if warmup >= 1:  # below, it is a share already
        flags += ["--warmup_steps", str(min(int(warmup), rung.steps // _WARMUP))]
    if life.pending(node.stage, flags, dry=True) is not None and (
        status := run([sys.executable, str(node.stage.script), *flags])
    ):
        raise SystemExit(status)
    return output


def measured(rung: Rung, folder: Path) -> Measured:
    """Return the figures of a finished rung on rows that it held out, which are kept beside it."""
    from pipeline.chain import finished
    from pipeline.evaluation.inference import num_targets
    from pipeline.evaluation.metrics.text_loss import documents_of, nats_of
    from pipeline.evaluation.subject import Options, StageModel, Subject

    one = finished.read(folder)
    assert one
    kept, inputs = folder.with_suffix(".json"), hashes.digest([one.record["outputs"], one.record["recipe"]["digest"], ROWS])
    found = manifest.read(kept.parent, kept.name)
    if found is None or found["inputs"] != inputs:
        model = StageModel(str(folder), rung.name)
        texts = [str(row["text"]) for row in Subject(one, model, Options(rows=ROWS)).rows]
        if not texts:
            raise UserError(f"{folder}: its recipe changed while it was measured; run the same command again")
        pieces = documents_of(model, texts)
        found = {
            "inputs": inputs, "parameters": model.model.num_parameters(), "nats": sum(nats_of(model, pieces)),
            "tokens": sum(sum(num_targets(document)) for document in pieces),
            "bytes": sum(len(text.encode()) for text in texts),
        }  # fmt: skip
        manifest.write_json(kept, found)
    record = one.record
    said = Measured(
        rung, found["parameters"], record["tokens"], record["training_seconds"], found["nats"], found["tokens"], found["bytes"]
    )
    say("ladder", f"{rung.name}: {said.parameters:,} parameters, {said.tokens:,} tokens, held-out loss {said.loss:.3f}")
    return said


def parameters(node: Node, size: Size, like: Path) -> int:
    """Return how many parameters a size has, without making it. `like`: a finished model whose tokenizer it has."""
    import torch

    from pipeline.models import tokenization

    given = options(node)
    with torch.device("meta"):
        model = given.chosen.build_model(
            tokenization.load(str(like)), given.architecture or given.chosen.architectures[0],
            **dataclasses.asdict(size), max_position_embeddings=given.max_length,
        )  # fmt: skip
    return int(model.num_parameters())


def taken_over(node: Node, size: Size, steps: int, text: Text) -> dict[str, Any]:
    """Return the keys of the node's file that make it train a size for so many steps."""
    length: dict[str, Any] = (
        {"max_steps": steps} if "max_steps" in node.settings else {"num_train_epochs": round(steps / text.steps, 3)}
    )
    return _sized(node, size) | length | ({"flops": 0} if node.settings.get("flops") else {})


def write(node: Node, keys: dict[str, Any]) -> None:
    """Put keys into the node's file, each in the place of its line where it has one; everything else stays as it is."""
    lines = node.file.read_text(encoding="utf-8").splitlines()
    for key, value in keys.items():
        at = next((number for number, line in enumerate(lines) if line.partition(":")[0] == key), len(lines))
        lines[at : at + 1] = [f"{key}: {value}"]
    text = "\n".join(lines) + "\n"
    config.read_yaml(text)
    node.file.write_text(text, encoding="utf-8")
