"""What a model card says: one function a section, each yielding Markdown from the records alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.chain.stage import DATA
from pipeline.data import mixture
from pipeline.system.hardware import watts

if TYPE_CHECKING:
    from pipeline.evaluation.blocks import Block
    from pipeline.hub.card import Subject

CURVE = "loss.svg"


def title(subject: Subject) -> Iterator[str]:
    """Yield name, what it is, and the one figure that says how good it is."""
    record = subject.record
    yield f"# {subject.repo.split('/')[1]}\n\n{subject.about}"
    if record["control_of"]:
        yield f"\nA control of `{record['control_of']}`: made to be compared with, and not to be used."
    if line := _headline(subject.block):
        yield f"\n{line}"


def _headline(block: Block | None) -> str:
    found = block.primary if block else None
    own = block.cell(found["metric"], block.own) if block and found else ""
    if not block or not found or not own:
        return ""
    return f"Held out, **{found['metric']} {own}**, against {found['against']}: {block.difference(found)}."


def warning(subject: Subject) -> Iterator[str]:
    """Yield what a push with FORCE=1 overruled."""
    if subject.forced:
        yield "## Pushed with FORCE=1\n\nThe checks that a push makes were overruled. They said:\n"
        yield from (f"- {reason}" for reason in subject.forced)


def _place(subject: Subject, record: Mapping[str, Any]) -> str:
    repo, tag = subject.repositories.get(record["outputs"], ("", ""))
    return f"[{repo}](/{repo}/tree/{tag})" if repo else "not pushed"


def chain(subject: Subject) -> Iterator[str]:
    """Yield the nodes that it descends from, with digests."""
    yield "## Where it comes from\n"
    known = {record["outputs"] for record in subject.records}
    made = [entry for record in subject.records for entry in record["parents"] if entry.get("outputs") not in known]
    if begins := dict.fromkeys(entry.get("hub") or entry["outputs"][:12] for entry in made):
        yield f"The chain begins with {', '.join(f'`{name}`' for name in begins)}.\n"
    yield "| node | repository | outputs | tokens | steps | training loss, first → last |\n|---|---|---|---:|---:|---|"
    for record in subject.records:
        loss = record.get("metrics")
        told = f"{loss['first_loss']:.3f} → {loss['last_loss']:.3f}" if loss else "none"
        yield (
            f"| {record['node']} | {_place(subject, record)} | `{record['outputs'][:12]}` | {record.get('tokens', 0):,} "
            f"| {record.get('steps', 0):,} | {told} |"
        )
    yield "\n`outputs` is the digest over all files of a node; `manifest.json` beside this card has the sha256 of each."


def data(subject: Subject) -> Iterator[str]:
    """Yield what each node was trained on, and what was dropped."""
    yield "## What it was trained on\n\n| node | recipe | rows kept | rows dropped, by reason |\n|---|---|---:|---|"
    for record in subject.records:
        recipe = record["recipe"]
        lost = {**recipe.get("dropped", {}), **recipe.get("truncated", {})}
        told = ", ".join(f"{count:,} {reason}" for reason, count in lost.items()) or "none"
        yield f"| {record['node']} | {_recipe(subject, recipe['name'])} | {recipe.get('kept', 0):,} | {told} |"
    for record in subject.records:
        yield from (f"\n{record['node']}, {line}." for line in mixture.told(record["recipe"]))


def _recipe(subject: Subject, name: str) -> str:
    """Return a recipe's name, linked to the data set on the hub that bears it."""
    place = next((place for place in subject.datasets if place.rpartition("/")[2] == name), "")
    return f"[{_cell(name)}](/datasets/{place})" if place else _cell(name) or "none"


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def evaluation(subject: Subject) -> Iterator[str]:
    """Yield figures with intervals, beside those of parent, controls and baselines on the same rows."""
    yield "## Evaluation\n"
    block = subject.block
    if not block:
        yield "These weights were not evaluated."
        return
    yield f"On {block.found['of'] or 'held-out rows'}, which no training saw; 95% intervals (bootstrap over rows).\n"
    yield f"| | {' | '.join(map(_cell, block.headings))} |\n|---|{'---|' * len(block.labels)}"
    for metric in block.found["figures"]:
        yield f"| {metric} | {' | '.join(block.cell(metric, label) for label in block.labels)} |"
    yield ""
    for metric in block.found["figures"]:
        if meaning := block.description(metric)["meaning"]:
            yield f"- `{metric}`: {meaning}"
    yield from (f"- {said}" for said in block.asked)
    if block.comparisons:
        yield "\nPaired differences on the same rows, of this model less the other:\n"
        yield from (f"- {item['metric']} against {item['against']}: {block.difference(item)}" for item in block.comparisons)
    yield from (f"- skipped: {count:,} {reason}" for reason, count in block.found.get("skipped", {}).items())


def samples(subject: Subject) -> Iterator[str]:
    """Yield the same prompts, answered by every model that was measured."""
    if not subject.samples:
        return
    lines = []
    width = max(len(label) for sample in subject.samples for label in sample["answers"])
    for sample in subject.samples:
        lines += [f"> {_cut(sample['prompt'], 300)}"]
        lines += [f"  {label:<{width}} {_cut(text, 200)}" for label, text in sample["answers"].items()]
        lines.append("")
    text = "\n".join(lines).rstrip()
    fence = "`" * max(3, 1 + max((len(run) for run in text.replace("\n", " ").split() if set(run) == {"`"}), default=0))
    yield f"## The same prompts, answered by each model\n\nGreedy answers, not chosen by anybody; a model without a chat template goes on from the prompt as plain text, after the token that begins a text.\n\n{fence}text\n{text}\n{fence}"


def _cut(text: str, most: int) -> str:
    """Return a text in one line of at most `most` characters, with an ellipsis where it goes on."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def power(hardware: Mapping[str, Any], given: float) -> float:
    """Return the watts that an energy estimate assumes: those given, or a number for each kind of machine."""
    return given or watts(hardware)


def training(subject: Subject) -> Iterator[str]:
    """Yield the loss curve, machine, time and an estimate of the energy."""
    yield "## Training\n"
    if subject.log:
        yield f"![Training loss against tokens]({CURVE})\n"
    yield "| node | machine | time | memory at most | floating point operations | energy, estimated |\n|---|---|---:|---:|---:|---:|"
    for record in subject.records:
        machine, taken = record["hardware"], power(record["hardware"], subject.watts)
        named = ", ".join(machine["accelerators"]) or f"{machine['threads']} of {machine['cores']} {machine['machine']} cores"
        yield (
            f"| {record['node']} | {named} | {record['seconds']:,.0f} s | {record['peak_memory_bytes'] / 1e9:.2f} GB "
            f"| {record.get('flops', 0):.2e} | {record['seconds'] * taken / 3600:.2f} Wh at {taken:.0f} W |"
        )
    yield "\nThe energy is seconds times an assumed power of the whole machine, not a measurement."
    resumed = [str(record["node"]) for record in subject.records if "resumed_from" in record]
    if resumed:
        yield f"{', '.join(resumed)}: interrupted and resumed; what was trained after the last checkpoint and lost is not counted."
    versions = ", ".join(f"{name} {version}" for name, version in subject.record["versions"].items())
    yield f"\nVersions: {versions}."


def limits(subject: Subject) -> Iterator[str]:
    """Yield what it can't do, and its licence."""
    size = sum(
        entry["size"] for name, entry in subject.record["files"].items() if name.endswith(".safetensors") and "/" not in name
    )
    longest = subject.config.get("max_position_embeddings")
    yield "## Limits\n"
    yield f"- {size / 1e6:,.1f} MB of weights{f', a context of {longest:,} tokens' if longest else ''}."
    yield "- It knows what its training data says and nothing else, and it repeats what is wrong there. Nobody has tested it for safety."
    if subject.block:
        yield "- The figures above are of held-out rows of the same data: they say little about other text."
    if subject.trained and not subject.template and subject.auto == "AutoModelForCausalLM":
        yield "- It was not taught to follow instructions or to refuse anything."
    given = (
        "as its publisher gave it" if subject.license_given else "tristage's default, which nobody has checked against the data"
    )
    yield f"- Licence: {subject.license}, {given}. Terms of the data and of a parent model hold beside it."


def repeat(subject: Subject) -> Iterator[str]:
    """Yield how to make it again."""
    record = subject.record
    script, commit = record["script"], record["code"].get("commit")
    at = f"at commit {_linked(subject, commit)}" if commit else "from a tree without a commit"
    dirty = ", **with changes that no commit holds**" if record["code"].get("dirty") else ""
    flags = "".join(f" --{entry['role']} {entry['role'].upper()}" for entry in record["parents"])
    whose = "".join(f", `{entry['role'].upper()}` being {_parent(entry)}" for entry in record["parents"])
    own = record["recipe"].get("data") and not any(entry["role"] == DATA for entry in record["parents"])
    data = " --data DATA" if own else ""
    yield f"## Repeat it\n\nMade by `{script}` of tristage {at}{dirty}, seed {record['seed']}{whose}, with these settings:\n"
    yield f"```yaml\n{yaml.safe_dump(record['config'], sort_keys=False, allow_unicode=True).strip()}\n```\n"
    yield f"```console\n$ python {script} --config settings.yaml{flags}{data} --output runs/again\n```\n"
    yield f"`make reproduce HUB={subject.repo}@{subject.tag}` does that from here, and says whether the same comes out.\n"
    yield f"The same inputs have the digest `{record['inputs'][:12]}`; the same weights, on the same kind of machine, `{record['outputs'][:12]}`."


def _linked(subject: Subject, commit: str) -> str:
    """Return a commit, linked where the address of the code was given."""
    return f"[`{commit}`]({subject.code.rstrip('/')}/tree/{commit})" if subject.code else f"`{commit}`"


def _parent(entry: Mapping[str, Any]) -> str:
    if "hub" in entry:
        return f"`{entry['hub']}`"
    return f"a folder with {entry.get('node', 'a model')} of outputs `{entry['outputs'][:12]}`"
