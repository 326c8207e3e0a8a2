"""A stream as the trainer reads it: examples by their number in the run, and a position that goes into each checkpoint.

Row `i` of a run belongs to the process that the trainer gives it to, and each process reads its own parts of the data in
their own order. A position names the chunk and the row of it that come next, so a checkpoint is gone on from by reading
one chunk of each pool, wherever in the data it was written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.chain import manifest
from pipeline.data import packing, stream, token_tables
from pipeline.data.mixture import Got
from pipeline.data.shards import Encode
from pipeline.data.stream import Place, Stream
from pipeline.system import process
from pipeline.system.errors import UserError

POSITION = "position"  # the column that says where the stream goes on behind an example
_COUNTED = ("dropped", "dropped_by_encoding", "truncated")


@dataclass
class _Chunk:
    """The examples of a chunk, and the order in which they are read."""

    examples: Any
    order: np.ndarray
    origins: list[str]  # of its rows
    next: Place
    kept: int
    held_out: int
    counted: Mapping[str, Counter[str]]


@dataclass
class _Head:
    """Where one process stands in one pool, and what was counted of this chunk and of those before it."""

    place: Place = field(default_factory=Place)
    row: int = 0  # examples of the chunk that were given out
    tokens: int = 0  # given out so far; of examples without any, how many
    kept: int = 0
    held_out: int = 0
    counted: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in _COUNTED})
    chunk: _Chunk | None = None  # where it was read

    def state(self) -> dict[str, Any]:
        """Return what a position says of it, as JSON."""
        own = {"place": self.place, "row": self.row, "tokens": self.tokens, "kept": self.kept, "held_out": self.held_out}
        return own | self.counted

    @classmethod
    def at(cls, state: Mapping[str, Any]) -> _Head:
        """Return one that stands where a state says."""
        counted = {name: Counter(state[name]) for name in _COUNTED}
        return cls(Place(*state["place"]), state["row"], state["tokens"], state["kept"], state["held_out"], counted)

    def count(self, chunk: _Chunk) -> None:
        """Add what was counted in a chunk."""
        self.kept, self.held_out = self.kept + chunk.kept, self.held_out + chunk.held_out
        for name in _COUNTED:
            self.counted[name] += chunk.counted[name]

    def give(self) -> dict[str, Any]:
        """Return the next example of the chunk, its rows by where they stand."""
        assert self.chunk
        example: dict[str, Any] = dict(self.chunk.examples[int(self.chunk.order[self.row])])
        rows, origins = example["row"], self.chunk.origins
        example["row"] = [origins[row] for row in rows] if isinstance(rows, list) else origins[rows]
        self.row += 1
        self.tokens += len(next((value for name, value in example.items() if name.endswith("_ids")), (1,)))
        return example


class Reader:
    """The examples of one process, one after the other."""

    def __init__(self, owner: Streamed, process: int, state: Mapping[str, Any] | None = None) -> None:
        """Begin at the first row, or go on from a position, `state`."""
        self.owner, self.process = owner, process
        self._pools = owner.stream.pools
        self.next: int = state["next"] if state else 0
        self._heads = [_Head.at(head) for head in state["pools"]] if state else [_Head() for _ in self._pools]
        for number, head in enumerate(self._heads):
            if state:
                head.chunk = owner.chunk(number, head.place, process)  # which its state has counted
            self._fill(number)

    def give(self) -> dict[str, Any]:
        """Return the next example, of the pool that has the fewest tokens for its share."""
        number = min(range(len(self._heads)), key=lambda pool: self._heads[pool].tokens / (self._pools[pool].share or 1.0))
        example = self._heads[number].give()
        self._fill(number)
        self.next += 1
        return example

    def position(self) -> str:
        """Return where it stands, from which another goes on."""
        heads = [head.state() | {"epochs": self._epochs(number)} for number, head in enumerate(self._heads)]
        return json.dumps({"next": self.next, "processes": self.owner.processes, "chunk": stream.CHUNK, "pools": heads})

    def _epochs(self, number: int) -> float:
        """Return how often the parts of a pool that this process reads were read, as far as examples of them were given out."""
        head, parts = self._heads[number], len(self._pools[number].order(0, self.process, self.owner.processes))
        assert head.chunk
        behind = parts if head.chunk.next.epoch > head.place.epoch else head.chunk.next.part
        share = head.row / len(head.chunk.order)
        return round(head.place.epoch + (head.place.part + share * (behind - head.place.part)) / parts, 4)

    def _fill(self, number: int) -> None:
        """See to it that a pool has an example; UserError where a whole epoch has none."""
        head = self._heads[number]
        epoch = head.place.epoch
        while head.chunk is None or head.row >= len(head.chunk.order):
            if head.chunk is not None:
                head.place, head.row = head.chunk.next, 0
            if head.place.epoch > epoch + 1:
                raise UserError(f"{self._pools[number].name}: no row is left for training in a whole epoch")
            head.chunk = self.owner.chunk(number, head.place, self.process)
            head.count(head.chunk)


class Streamed(torch.utils.data.Dataset[Any]):
    """The rows of a whole run, each read when the trainer asks for it, in order."""

    def __init__(self, stream: Stream, encode: Encode, packed: int, arguments: TrainingArguments) -> None:
        """Divide a run's rows among its processes; `packed`: tokens of a row that holds several documents; 0 where examples are not packed but numbered."""
        self.stream, self.encode, self.packed = stream, encode, packed
        self.batch, self.processes = int(arguments.train_batch_size), int(arguments.world_size)
        self.rows = arguments.max_steps * self.batch * arguments.gradient_accumulation_steps * self.processes
        self._begins: dict[int, Mapping[str, Any]] = {}  # process → where it goes on
        self._readers: dict[int, Reader] = {}
        stream.divided(self.processes)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row, with the position behind it; another than the next one is looked for from where the run went on."""
        batch, place = divmod(index, self.batch)
        turn, process = divmod(batch, self.processes)
        number = turn * self.batch + place
        reader, begin = self._readers.get(process), self._begins.get(process)
        begin = begin if begin and begin["next"] <= number else None
        # Who looked at the first rows before a run went on left a reader there, and all rows between would be read again.
        if reader is None or reader.next > number or (begin and reader.next < begin["next"]):
            reader = self._readers[process] = Reader(self, process, begin)
        while reader.next < number:
            reader.give()
        example = reader.give() | {POSITION: reader.position()}
        return example if self.packed else example | {"example": index}

    def chunk(self, pool: int, place: Place, process: int) -> _Chunk:
        """Return the examples of a chunk, packed or not, shuffled by its place alone."""
        chunk = self.stream.chunk(pool, place, process, self.processes)
        rows = chunk.rows
        dataset = token_tables.table(self.encode(rows))
        if self.packed and len(dataset):
            dataset = packing.pack(dataset, self.packed)
        order = np.random.default_rng([self.stream.seed, pool, *place, process]).permutation(len(dataset))
        kept = len(rows.kept) - rows.dropped_by_encoding.total()
        counted = {name: getattr(rows, name) for name in _COUNTED}
        return _Chunk(dataset, order, chunk.origins, chunk.next, kept, rows.held_out, counted)

    def resume(self, checkpoint: Path) -> str:
        """Go on behind the last row that a checkpoint was trained on, and return that position.

        Raises UserError where the stream was divided among another number of processes, or into chunks of another size.
        """
        saved = json.loads(_file(checkpoint, 0).read_text(encoding="utf-8"))
        processes = saved["processes"]
        if saved.get("chunk") != stream.CHUNK:
            raise UserError(
                f"{checkpoint}: its stream was cut into chunks of another size by another version; start the stage anew"
            )
        if processes != self.processes:
            raise UserError(f"{checkpoint}: {processes} processes divided the stream; start as many, not {self.processes}")
        position = _file(checkpoint, process.rank()).read_text(encoding="utf-8")
        self._begins = {process.rank(): json.loads(position)}
        return position

    def record(self, position: str) -> dict[str, Any]:
        """Return what a node's record says of the rows that all processes read up to their positions."""
        saved = json.loads(position)
        every = gather_object([saved]) if self.processes > 1 else [saved]
        heads = [[_Head.at(one["pools"][number]) for one in every] for number in range(len(self.stream.pools))]
        flat = [head for found in heads for head in found]
        dropped = sum((head.counted["dropped"] + head.counted["dropped_by_encoding"] for head in flat), Counter[str]())
        truncated = sum((head.counted["truncated"] for head in flat), Counter[str]())
        kept = sum(head.kept for head in flat)
        found: dict[str, Any] = {"rows": kept + dropped.total(), "kept": kept, "dropped": dict(dropped)}
        found |= {"truncated": dict(truncated)} if truncated else {}
        read = [[one["pools"][number]["epochs"] for one in every] for number in range(len(heads))]
        epochs = [round(sum(found) / len(found), 4) for found in read]
        found["stream"] = {
            "held_out": sum(head.held_out for head in flat), "epochs": epochs,
            "known_by": "revision" if any(source.hub for source in self.stream.recipe.given) else "names, sizes and times of files",
        }  # fmt: skip
        if len(self.stream.pools) > 1:
            shares = sum(pool.share for pool in self.stream.pools)
            given = [sum(head.tokens for head in found) for found in heads]
            found["mixture"] = [
                asdict(Got(pool.name, round(pool.share / shares, 6), round(own / sum(given), 6), own, epoch))
                for pool, own, epoch in zip(self.stream.pools, given, epochs, strict=True)
            ]
        return found


def _file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"stream-{rank}.json"


class Positions(TrainerCallback):
    """Writes the position of each process into each checkpoint, before it is sealed."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the position behind the last row that was trained on."""
        manifest.write_json(
            _file(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", process.rank()),
            json.loads(self.trainer.position),
        )
