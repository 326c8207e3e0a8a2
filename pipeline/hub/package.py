"""A node made ready to leave: the files that may, a card, a picture of the loss, a record without this machine's names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.chain import manifest
from pipeline.chain.finished import Finished, lineage
from pipeline.chain.stage import PARENT
from pipeline.evaluation import blocks
from pipeline.evaluation.blocks import Block
from pipeline.hub import card, curve, leaks, readback, sections
from pipeline.hub import sent as sent_record
from pipeline.hub.leaks import Content
from pipeline.hub.upload import Delivery, sha256
from pipeline.models.families import auto_class
from pipeline.system import hashes
from pipeline.system.errors import UserError

LICENSE = "apache-2.0"
_WEIGHTS = "parent"  # what a node starts from that takes the weights of its parent


@dataclass(frozen=True)
class Terms:
    """What the person decides about the cards."""

    license: str = ""
    language: str = ""
    datasets: Sequence[str] = ()
    watts: float = 0.0
    adapter: bool = False
    code: str = ""


@dataclass(frozen=True)
class Base:
    """The model on the hub whose weights a node took."""

    repo: str = ""  # empty where it is not on the hub
    revision: str = ""  # empty where none is known
    missing: bool = False  # weights were taken, but not from a model on the hub


@dataclass(frozen=True)
class Package:
    """A node that is ready to leave."""

    folder: Path
    delivery: Delivery
    loader: str  # Auto class that loads it
    weights: frozenset[str]  # the files that its tag stands for
    missing_base: bool = False  # the model whose weights it took is not on the hub
    under: tuple[str, str] | None = None  # repository and revision that its adapter goes on
    withheld: Sequence[str] = ()  # files of the node that are not among those that may leave


def tag(node: Finished) -> str:
    """Return the tag of a node, from the digest over the files that are there."""
    there = {
        name: {"sha256": hashes.read(node.folder / name)} for name in node.record["files"] if (node.folder / name).is_file()
    }
    return f"tristage-{hashes.outputs(there)[:12]}"


def pack(
    node: Finished, repo: str, repositories: Mapping[str, tuple[str, str]], summary: Mapping[str, Any] | None, terms: Terms,
    forced: Sequence[str] = (),
) -> Package:  # fmt: skip
    """Return a finished node as it will lie in `repo`; `repositories`: outputs → repository and tag of the nodes on the hub.

    Raises UserError where an adapter is asked for and its base is not on the hub.
    """
    folder, record, line = node.folder, node.record, lineage(node.folder)
    own = {name: folder / name for name in record["files"] if (folder / name).is_file()}
    files: dict[str, Content] = {name: path for name, path in own.items() if leaks.may_leave(name)}
    weights, base = frozenset(files), _base(node, repositories)
    adapter = terms.adapter and "adapter/adapter_config.json" in own
    if adapter:
        files |= _adapter(own, node, base)
    forced = [leaks.sentence(reason) for reason in forced]
    log, block = _log(folder), blocks.of(record, summary)
    if block:
        block = Block(leaks.without_paths(block.found))
    if log:
        files[sections.CURVE] = curve.draw(log, f"{node.name}: training loss", block.bounds() if block else {}).encode()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if "config.json" in files else {}
    place, tagged = repositories[record["outputs"]]
    subject = card.Subject(
        place, tagged, [leaks.clean(older.record) for older in line], repositories, config, about=node.stage.about, log=log,
        block=block, samples=_samples(node, summary, block), template="chat_template.jinja" in files, base=base.repo,
        adapter=adapter, forced=forced, watts=terms.watts, license=terms.license or LICENSE, license_given=bool(terms.license),
        language=terms.language or _language(line), datasets=list(dict.fromkeys([*terms.datasets, *_datasets(line)])), code=terms.code,
        base_revision=base.revision, begin=_begin(files), pipeline_tag=node.stage.pipeline_tag(node.options),
        shapes={name: tuple(value.shape) for name, value in node.stage.sample_inputs(node.options).items()},
    )  # fmt: skip
    files["README.md"] = card.write(subject).encode()
    digests = {name: sha256(content) for name, content in sorted(files.items())}
    sent = sent_record.record(record, digests, repositories, block, (summary or {}).get("options", {}), forced)
    files[manifest.NAME] = (json.dumps(sent, indent=2, ensure_ascii=False) + "\n").encode()
    digests[manifest.NAME] = sha256(files[manifest.NAME])
    delivery = Delivery(repo, files, digests, tagged, f"{node.name} {record['outputs'][:12]}, by tristage")
    withheld = sorted(name for name in own if name not in files)
    under = (base.repo, base.revision) if adapter else None
    return Package(folder, delivery, subject.auto, weights, base.missing, under, withheld)


def _base(node: Finished, repositories: Mapping[str, tuple[str, str]]) -> Base:
    """Return the model whose weights a node took: its parent, or what it adopted."""
    record = node.record
    if not node.trained:
        adopted = [
            str(record["config"][field.name])
            for field in dataclasses.fields(node.stage.Options)
            if field.metadata.get("by_content") and record["config"].get(field.name)
        ]
        return Base(next((name for name in adopted if _is_hub_id(name)), ""))
    made = next((entry for entry in record["parents"] if entry["role"] == PARENT), None)
    if made is None or record["starts_from"] != _WEIGHTS:
        return Base()
    if "hub" in made:
        return Base(str(made["hub"]), "main")
    found = repositories.get(made["outputs"])
    return Base(*found) if found else Base(missing=True)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _begin(files: Mapping[str, Content]) -> str:
    """Return the tokenizer's attribute with the token that begins a text, which is the one that ends it where it has no other."""
    path = files.get("tokenizer_config.json")
    known = json.loads(path.read_text(encoding="utf-8")) if isinstance(path, Path) else {}
    return "bos_token" if known.get("bos_token") else "eos_token"


def _adapter(own: Mapping[str, Path], node: Finished, base: Base) -> dict[str, Content]:
    """Return the adapter's files, its base being the one on the hub."""
    if not base.repo:
        raise UserError(f"ADAPTER=1: {node.folder}: its parent is not on the hub; push it first, or leave ADAPTER away")
    parent = Path(node.parent()) / "config.json"
    if parent.is_file():
        sizes = [json.loads(path.read_text(encoding="utf-8")).get("vocab_size") for path in (parent, own["config.json"])]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"ADAPTER=1: {node.folder}: added tokens to its base, so its adapter fits no pushed model; leave ADAPTER away"
            )
    loader = auto_class(node.family, json.loads(own["config.json"].read_text(encoding="utf-8")))
    if parent.is_file() and readback.adapts(parent.parent, node.folder / "adapter", node.folder, loader):
        raise UserError(
            f"ADAPTER=1: {node.folder}: its adapter on {loader}.from_pretrained of its parent is not this model; leave ADAPTER away"
        )
    settings = json.loads(own["adapter/adapter_config.json"].read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": base.repo, "revision": base.revision}
    found: dict[str, Content] = {name: path for name, path in own.items() if leaks.ADAPTER.fullmatch(name)}
    return found | {"adapter/adapter_config.json": (json.dumps(settings, indent=2) + "\n").encode()}


def _log(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [entry for line in lines if line.endswith("}") and "loss" in (entry := json.loads(line))]


def _samples(node: Finished, summary: Mapping[str, Any] | None, block: Block | None) -> Sequence[Mapping[str, Any]]:
    """Return the prompts that the evaluation had answered, where it asked this very node."""
    if not summary or not block or summary["measured"].get(node.name) != node.record["outputs"]:
        return ()
    return [sample for sample in summary.get("samples", []) if node.name in sample["answers"]]


def _language(line: Sequence[Finished]) -> str:
    found = (str(node.record["config"].get("language", "")) for node in line)
    return next((language for language in found if language), "")


def _datasets(line: Sequence[Finished]) -> list[str]:
    """Return the data sets of a hub among what a node and those before it were trained on."""
    sources = [source for node in line for source in node.record["recipe"]["sources"]]
    return list(dict.fromkeys(name for name, mark in sources if name.count("/") == 1 and len(mark) != 64))
