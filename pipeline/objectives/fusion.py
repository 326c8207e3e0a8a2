"""A weighted sum of objectives that share a trunk.

Each part has the model that it has alone, and whatever stands in both of two models at the same place below their heads (embeddings
and layers) is one and the same. All parts read the same rows, each as it hides or varies them, and the gradients of their losses
add up in the trunk. What is handed on is the model of `lead`, with the other parts' models beside it, in folders of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline import objectives
from pipeline.objectives import Example, Objective, Scores, Text
from pipeline.system.config import option
from pipeline.system.errors import UserError

_HEAD = "pooler."  # of an encoder's own parameters, what stands above its layers


@dataclass(frozen=True)
class Fusion(Objective):
    """Train several objectives at once on one trunk."""

    members: ClassVar[Mapping[str, Objective]] = {}  # the parts by name, the leading one first; of each fusion its own
    family = ""  # this and what else an objective declares is that of the parts
    accepts = ()
    architectures = ()

    parts: dict[str, float] = option({"contrastive": 1.0, "mlm": 1.0}, "objective: what its loss is multiplied by")  # noqa: RUF009
    shared: dict[str, Any] = option({}, "options that all parts have")  # noqa: RUF009
    options: dict[str, Any] = option({}, "objective: options that it alone has")  # noqa: RUF009
    lead: str = option("", "the part whose model is handed on and whose examples all read; empty: the first by name")

    def __post_init__(self) -> None:
        """Take over what the parts declare; UserError where they don't belong together."""
        found = self._members()
        first, others = found[self.leading], list(found.values())
        faults = [
            f"objective_options: parts: {name}: expected a number above 0" for name, one in self.parts.items() if not one > 0
        ]
        for what, said in (("reads", "rows of type"), ("tokenizer_type", "a tokenizer of kind")):
            if len(kinds := {getattr(one, what) for one in others}) > 1:
                faults.append(f"objective_options: parts: read {said} {' and '.join(sorted(kinds))}, so they share no trunk")
        names = [metric.name for one in others for metric in one.metrics]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            faults.append(f"objective_options: parts: have the same figures, {', '.join(twice)}, and could not be told apart")
        if faults:
            raise UserError(*faults)
        declared = {name: getattr(first, name) for name in ("reads", "family", "accepts", "architectures", "tokenizer_type")}
        declared |= {
            "metrics": tuple(metric for one in others for metric in one.metrics),
            "judged_by": tuple(dict.fromkeys(against for one in others for against in one.judged_by)),
            "unread": tuple(name for name in first.unread if all(name in one.unread for one in others)),
            "note": " ".join(dict.fromkeys(one.note for one in others if one.note)),
            "by_row": all(one.by_row for one in others), "accumulates": all(one.accumulates for one in others),
            "chance_level": {name: level for one in others for name, level in one.chance_level.items()}, "members": found,
        }  # fmt: skip
        for name, value in declared.items():
            object.__setattr__(self, name, value)

    @property
    def leading(self) -> str:
        """The part whose model is handed on."""
        return self.lead or min(self.parts)

    def _members(self) -> dict[str, Objective]:
        """Return the parts by name, the leading one first; UserError where there are too few, or options are of none."""
        faults = ["objective_options: parts: name two objectives at least"] * (len(self.parts) < 2)
        faults += [f"objective_options: {key}: {name}: is none of the parts"
                   for key, given in (("lead", {self.lead} - {""}), ("options", self.options)) for name in given
                   if name not in self.parts]  # fmt: skip
        faults += ["objective_options: parts: fusion can't be a part of itself"] * ("fusion" in self.parts)
        if faults:
            raise UserError(*faults)
        order = [self.leading, *(name for name in sorted(self.parts) if name != self.leading)]
        return {name: objectives.load(name, {**self.shared, **self.options.get(name, {})}) for name in order}

    @property
    def first(self) -> Objective:
        """The leading part."""
        return self.members[self.leading]

    def others(self) -> list[Objective]:
        """Return the parts, whose code counts, too."""
        return list(self.members.values())

    @property
    def weights(self) -> Mapping[str, float]:
        """What each part of each loss is multiplied by."""
        return {
            f"{name}.{part}": float(self.parts[name]) * weight
            for name, one in self.members.items() for part, weight in one.weights.items()
        }  # fmt: skip

    def processor(self, folder: str) -> Any:
        """Return that of the leading part."""
        return self.first.processor(folder)

    def new_processor(self, learn: Callable[[], Any]) -> Any:
        """Return that of the leading part."""
        return self.first.new_processor(learn)

    def vocabulary(self, processor: Any) -> int:
        """Return that of the leading part."""
        return self.first.vocabulary(processor)

    def same_inputs(self, one: Any, other: Any) -> bool:
        """Say what the leading part says."""
        return self.first.same_inputs(one, other)

    def sized(self, processor: Any, length: int) -> str:
        """Return in words what is read at once."""
        return self.first.sized(processor, length)

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return the models of all parts, new and of the same sizes, on one trunk."""
        return joined(
            {
                name: one.build_model(tokenizer, architecture if architecture in one.architectures else one.architectures[0], **sizes)
                for name, one in self.members.items()
            },
            self._losses,
        )  # fmt: skip

    def load_model(self, parent: str) -> Any:
        """Return the leading part's model of a folder or hub id; those of others are beside it, or begin from it."""
        found = {self.leading: self.first.load_model(parent)}
        for name, one in self.members.items():
            beside = Path(parent) / name
            if name != self.leading:
                found[name] = one.load_model(str(beside) if (beside / "config.json").is_file() else parent)
        return joined(found, self._losses)

    def fresh(self, model: Any) -> Any:
        """Return models of the same sizes with random weights, on one trunk."""
        return joined({name: one.fresh(model.parts[name]) for name, one in self.members.items()}, self._losses)

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield the examples of the leading part."""
        yield from self.first.examples(text)

    def collator(self, tokenizer: Any, dataset: Any, seed: int) -> Fusing:
        """Return what makes a batch for each part of the same rows."""
        return Fusing({name: one.collator(tokenizer, dataset, seed) for name, one in self.members.items()})

    def held_out_collator(self, tokenizer: Any, dataset: Any, seed: int) -> Fusing:
        """Return what makes a held-out batch for each part of the same rows."""
        return Fusing({name: one.held_out_collator(tokenizer, dataset, seed) for name, one in self.members.items()})

    def _each(self, batch: Mapping[str, Any]) -> Iterator[tuple[str, Objective, dict[str, Any]]]:
        """Yield each part with its batch."""
        for name, one in self.members.items():
            yield name, one, columns_of(name, batch)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the items of each part of each loss."""
        return {f"{name}.{key}": value for name, one, own in self._each(batch) for key, value in one.counts(own).items()}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return each part of each loss, summed over its items."""
        found: dict[str, Any] = model(batch=dict(batch))
        return found

    def _losses(self, models: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        return {
            f"{name}.{key}": value
            for name, one, own in self._each(batch)
            for key, value in one.losses(models[name], own).items()
        }

    def scorable_targets(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a held-out batch as each part scores it."""
        return {
            f"{name}_{key}": value for name, one, own in self._each(batch) for key, value in one.scorable_targets(own).items()
        }

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the metrics of all parts."""
        return {key: pair for name, one, own in self._each(batch) for key, pair in one.scores(model.parts[name], own).items()}

    def rivals(self, known: Sequence[Example], size: int) -> dict[str, Callable[[Mapping[str, Any]], Scores]]:
        """Return the rivals of all parts."""

        def asked(name: str, rival: Callable[[Mapping[str, Any]], Scores]) -> Callable[[Mapping[str, Any]], Scores]:
            return lambda batch: rival(next(own for part, _, own in self._each(batch) if part == name))

        return {
            title: asked(name, rival) for name, one in self.members.items() for title, rival in one.rivals(known, size).items()
        }

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write the leading part's model as it writes it, and the others beside it."""
        self.first.save(model.parts[self.leading], tokenizer, folder)
        for name, one in model.parts.items():
            if name != self.leading:
                one.save_pretrained(folder / name)


@dataclass
class Fusing:
    """Make a batch for each part of the same rows: each column under the name of its part."""

    collators: dict[str, Any]
    epoch: int = 0

    def __call__(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return the columns of all parts."""
        batch: dict[str, Any] = {}
        for name, collator in self.collators.items():
            collator.epoch = self.epoch
            batch |= {f"{name}_{key}": value for key, value in collator(rows).items()}
        return batch

    def thumbnails(self, batch: Mapping[str, Any]) -> list[list[str]]:
        """Return of each row of a batch what the parts show of it, where they do."""
        shown = [
            collator.thumbnails(columns_of(name, batch)) for name, collator in self.collators.items() if hasattr(collator, "thumbnails")
        ]  # fmt: skip
        return [[image for part in row for image in part] for row in zip(*shown, strict=True)]


def columns_of(part: str, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch of a part."""
    return {key.removeprefix(f"{part}_"): value for key, value in batch.items() if key.startswith(f"{part}_")}


def joined(models: Mapping[str, Any], losses: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]) -> Any:
    """Return the models as one that the Trainer can save, each with the trunk of the first; UserError where it has another.

    forward returns the losses of a batch, by part.
    """
    import torch
    from transformers import PreTrainedModel

    lead, *others = models
    for name in others:
        _share(models[lead], models[name], f"{lead} and {name}")

    class Fused(PreTrainedModel):
        base_model_prefix = "lead"
        main_input_name = "input_ids"
        _supports_sdpa = _supports_flash_attn = True

        def __init__(self) -> None:
            super().__init__(models[lead].config)
            self.parts = torch.nn.ModuleDict(models)

        @property
        def lead(self) -> Any:
            return self.parts[lead]

        def get_input_embeddings(self) -> Any:
            return self.lead.get_input_embeddings()

        def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
            return losses(dict(self.parts.items()), batch)

    model = Fused()
    names: dict[int, str] = {}
    tied = {
        name: names[id(one)]
        for name, one in model.named_parameters(remove_duplicate=False)
        if names.setdefault(id(one), name) != name
    }
    Fused._tied_weights_keys = tied
    model.all_tied_weights_keys = tied
    return model


def _share(lead: Any, other: Any, said: str) -> None:
    """Let a model have the parameters of another one wherever both have one at the same place of their encoders."""
    theirs, own = dict(lead.base_model.named_parameters()), dict(other.base_model.named_parameters())
    odd = [
        name for name, one in own.items()
        if not name.startswith(_HEAD) and (name not in theirs or theirs[name].shape != one.shape)
    ]  # fmt: skip
    odd += [name for name in theirs if not name.startswith(_HEAD) and name not in own]
    if odd:
        raise UserError(
            f"objective_options: parts: {said} share no trunk: {len(odd):,} of its tensors differ, such as {odd[0]}; give both the "
            "same sizes and model types of one kind"
        )
    taken = {id(one): theirs[name] for name, one in own.items() if name in theirs}
    for module in other.modules():
        for name, one in list(module._parameters.items()):
            if id(one) in taken:
                module._parameters[name] = taken[id(one)]


OBJECTIVE = Fusion
