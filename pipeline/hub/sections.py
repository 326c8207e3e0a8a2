"""What a model card says: one function a section, each yielding Markdown from the records alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.evaluation import table
from pipeline.system.hardware import watts
from pipeline.hub import gate

if TYPE_CHECKING:
    from pipeline.hub.card import Subject

CURVE = "loss.svg"
_TITLES = {
    "pretrain": "A base model, pretrained from nothing: it goes on with a text, and was never taught to answer.",
    "sft": "A chat model: a base model fine-tuned on conversations, trained on the assistant's tokens alone.",
    "finetune": "A model of one supervised task, fine-tuned on labelled rows.",
    "dpo": "An aligned chat model: direct preference optimisation (Rafailov et al. 2023) of a chat model on pairs of answers.",
    "control": "A control and not a product: SFT's rows and steps from random weights, which shows what SFT alone would know.",
}
_MEANINGS = {
    "loss": "nats a token on the rows that a stage is about: text for a base model, replies for chat models, chosen answers for DPO",
    "bits_per_byte": "the same in bits a byte of text, which does not depend on the vocabulary",
    "reply_loss": "another stage's loss on SFT's rows", "chosen_loss": "another stage's loss on DPO's rows",
    "floor": "the exact entropy of the held-out text under its generator: no model can be below it",
    "completion": "facts that the base model completes right", "exact_match": "answers that are right to the letter, up to the first full stop",
    "accuracy": "pairs in which the chosen answer gained more log-probability over the base model than the rejected one",
    "likelier": "pairs in which the chosen answer is likelier than the rejected one",
    "win_rate": "how often a judge by rule prefers its answer to the parent's, a tie counting half",
}  # fmt: skip


def title(subject: Subject) -> Iterator[str]:
    """Yield name, what it is, and the one figure that says how good it is."""
    family = subject.record["family"]
    adopted = "A model that was adopted from elsewhere as it is, in fp32, to start a chain of stages from."
    told = (
        _TITLES.get(subject.stage, f"A {family} model, the stage {subject.stage} of a chain.") if subject.trained else adopted
    )
    if subject.stage == "pretrain" and family != "causal" and subject.trained:
        told = f"A {family} model, pretrained with the objective {subject.record['config'].get('objective')}."
    yield f"# {subject.repo.split('/')[1]}\n\n{told}"
    if line := _headline(subject):
        yield f"\n{line}"


def _headline(subject: Subject) -> str:
    found = gate.primary(subject.record, subject.summary) if subject.summary else None
    own = subject.summary["stages"].get(subject.stage, {}).get(found["metric"]) if found and subject.summary else None
    if not found or not own:
        return ""
    against = table.COLUMNS.get(found["against"], found["against"])
    return f"Held out, **{found['metric']} {table.figure(found['metric'], own)}**, against {against}: {_difference(found)}."


def _difference(found: Mapping[str, Any]) -> str:
    verdict = "better, clear of zero" if found["better"] else "not clearly better"
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}], {verdict}"


def warning(subject: Subject) -> Iterator[str]:
    """Yield what a push with FORCE=1 overruled."""
    if subject.forced:
        yield "## Pushed with FORCE=1\n\nThe checks that a push makes were overruled. They said:\n"
        yield from (f"- {reason}" for reason in subject.forced)


def _place(subject: Subject, record: Mapping[str, Any]) -> str:
    repo, tag = subject.shelves.get(record["outputs"], ("", ""))
    return f"[{repo}](/{repo}/tree/{tag})" if repo else "not pushed"


def chain(subject: Subject) -> Iterator[str]:
    """Yield the stages that it descends from, with digests."""
    yield "## Where it comes from\n"
    made = subject.records[0]["parents"]
    if made:
        yield f"The chain begins with `{made[0].get('hub') or made[0]['outputs'][:12]}`.\n"
    yield "| stage | repository | outputs | tokens | steps | training loss, first → last |\n|---|---|---|---:|---:|---|"
    for record in subject.records:
        loss = record.get("metrics")
        told = f"{loss['first_loss']:.3f} → {loss['last_loss']:.3f}" if loss else "none"
        yield (
            f"| {record['stage']} | {_place(subject, record)} | `{record['outputs'][:12]}` | {record.get('tokens', 0):,} "
            f"| {record.get('steps', 0):,} | {told} |"
        )
    yield "\n`outputs` is the digest over all files of a stage; `manifest.json` beside this card has the sha256 of each."


def data(subject: Subject) -> Iterator[str]:
    """Yield what each stage was trained on, and what was dropped."""
    yield "## What it was trained on\n\n| stage | recipe | rows kept | rows dropped, by reason |\n|---|---|---:|---|"
    for record in subject.records:
        recipe = record["recipe"]
        lost = {**recipe.get("dropped", {}), **recipe.get("left_out", {})}
        told = ", ".join(f"{count:,} {reason}" for reason, count in lost.items()) or "none"
        yield f"| {record['stage']} | {_cell(recipe['name']) or 'none'} | {recipe.get('kept', 0):,} | {told} |"


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def evaluation(subject: Subject) -> Iterator[str]:
    """Yield figures with intervals, against parent and control."""
    yield "## Evaluation\n"
    summary = subject.summary
    if not summary:
        yield "These weights were not evaluated."
        return
    shown = [str(record["stage"]) for record in subject.records]
    rivals = [item["against"] for item in summary["comparisons"] if item["stage"] == subject.stage]
    names = [name for name in table.COLUMNS if name in summary["stages"] and name in {*shown, *rivals, "control"}]
    names += [name for name in shown if name in summary["stages"] and name not in names]
    yield "On rows that no stage was trained on, with 95% intervals (bootstrap over rows).\n"
    yield f"| | {' | '.join(table.COLUMNS.get(name, name) for name in names)} |\n|---|{'---|' * len(names)}"
    metrics = dict.fromkeys(metric for name in names for metric in summary["stages"][name])
    for metric in metrics:
        cells = [table.figure(metric, found[metric]) if metric in (found := summary["stages"][name]) else "" for name in names]
        yield f"| {metric} | {' | '.join(cells)} |"
    yield ""
    yield from (f"- `{metric}`: {meaning}" for metric, meaning in _MEANINGS.items() if metric in metrics)
    if "control" in names:
        yield "- control: SFT's rows and steps from random weights, which is what SFT alone would know"
    paired = [item for item in summary["comparisons"] if item["stage"] == subject.stage]
    if paired:
        yield "\nPaired differences on the same rows, of this model less the other:\n"
        yield from (f"- {item['metric']} against {table.COLUMNS.get(item['against'], item['against'])}: {_difference(item)}" for item in paired)  # fmt: skip
    yield from (f"- left out: {count:,} {reason}" for reason, count in summary.get("left_out", {}).items())


def samples(subject: Subject) -> Iterator[str]:
    """Yield the same prompts, answered by every stage."""
    samples = (subject.summary or {}).get("samples") or []
    if not samples:
        return
    lines = []
    for sample in samples:
        lines += [f"> {' '.join(sample['prompt'].split())[:300]}"]
        lines += [
            f"  {table.COLUMNS.get(name, name):<8} {' '.join(text.split())[:200]}" for name, text in sample["answers"].items()
        ]
        lines.append("")
    text = "\n".join(lines).rstrip()
    fence = "`" * max(3, 1 + max((len(run) for run in text.replace("\n", " ").split() if set(run) == {"`"}), default=0))
    yield f"## The same prompts, answered by each stage\n\nGreedy answers, not chosen by anybody.\n\n{fence}text\n{text}\n{fence}"


def power(hardware: Mapping[str, Any], given: float) -> float:
    """Return the watts that an energy estimate assumes: those given, or a number for each kind of machine."""
    return given or watts(hardware)


def training(subject: Subject) -> Iterator[str]:
    """Yield the loss curve, machine, time and an estimate of the energy."""
    yield "## Training\n"
    if subject.log:
        yield f"![Training loss against tokens]({CURVE})\n"
    yield "| stage | machine | time | memory at most | floating point operations | energy, estimated |\n|---|---|---:|---:|---:|---:|"
    for record in subject.records:
        machine, taken = record["hardware"], power(record["hardware"], subject.watts)
        named = ", ".join(machine["accelerators"]) or f"{machine['threads']} of {machine['cores']} {machine['machine']} cores"
        yield (
            f"| {record['stage']} | {named} | {record['seconds']:,.0f} s | {record['peak_memory_bytes'] / 1e9:.2f} GB "
            f"| {record.get('flops', 0):.2e} | {record['seconds'] * taken / 3600:.2f} Wh at {taken:.0f} W |"
        )
    yield "\nThe energy is seconds times an assumed power of the whole machine, not a measurement."
    resumed = [str(record["stage"]) for record in subject.records if "resumed_from" in record]
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
    if subject.summary:
        yield "- The figures above are of held-out rows of the same data: they say little about other text."
    if subject.stage == "pretrain" and subject.trained:
        yield "- It was not taught to follow instructions or to refuse anything."
    given = (
        "as its publisher gave it" if subject.license_given else "tristage's default, which nobody has checked against the data"
    )
    yield f"- Licence: {subject.license}, {given}. Terms of the data and of a parent model hold beside it."


def repeat(subject: Subject) -> Iterator[str]:
    """Yield how to make it again."""
    record = subject.record
    script = next((name for name in record["code"]["files"] if name.startswith("stages/")), "")
    commit = record["code"].get("commit")
    at = f"at commit `{commit}`" if commit else "from a tree without a commit"
    dirty = ", **with changes that no commit holds**" if record["code"].get("dirty") else ""
    made = record["parents"]
    parent = " --parent PARENT" if made else ""
    whose = f", `PARENT` being {_parent(subject, made[0])}" if made else ""
    data = " --data DATA" if record["recipe"].get("data") else ""
    yield f"## Repeat it\n\nMade by `{script}` of tristage {at}{dirty}, seed {record['seed']}{whose}, with these settings:\n"
    yield f"```yaml\n{yaml.safe_dump(record['config'], sort_keys=False, allow_unicode=True).strip()}\n```\n"
    yield f"```console\n$ python {script} --config settings.yaml{parent}{data} --output runs/again\n```\n"
    yield f"The same inputs have the digest `{record['inputs'][:12]}`; the same weights, on the same kind of machine, `{record['outputs'][:12]}`."


def _parent(subject: Subject, made: Mapping[str, Any]) -> str:
    if "hub" in made:
        return f"`{made['hub']}`"
    return f"a folder with {made.get('stage', 'a model')} of outputs `{made['outputs'][:12]}`"
