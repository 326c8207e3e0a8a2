"""One run of a stage: what was requested, where things lie, and the record that grows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.chain import request
from pipeline.chain.stage import DATA, PARENT, Signature, Stage
from pipeline.data import recipe as recipes
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.optimizers import MUON

RESULT = ".result"


@dataclasses.dataclass
class Run:
    """One run of a stage."""

    stage: Stage
    name: str  # of the node
    options: Any
    arguments: dict[str, Any]  # keys for the library's class
    parents: Mapping[str, str]  # role → folder or hub id
    output: Path
    recipe: recipes.Recipe
    record: dict[str, Any]
    strict: bool = False  # whether a change of code or library counts
    quiet: bool = False  # remade to look at its batches: nothing is printed

    @property
    def parent(self) -> str:
        """Folder or hub id of the model that the stage goes on from; empty where there is none."""
        return self.parents.get(PARENT, "")

    @property
    def signature(self) -> Signature:
        """What goes in and what comes out."""
        return self.stage.signature(self.options)

    @property
    def result(self) -> Path:
        """Where the model is written, until it is complete and moves into the node's folder."""
        return self.output / RESULT

    @property
    def seed(self) -> int:
        """The node's seed, from which every random choice comes."""
        return int(self.record["seed"])

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return process.main_process()

    def say(self, text: str) -> None:
        """Print one line for the person, once however many processes run."""
        if not self.quiet:
            process.say(self.name, text)

    def rows(self, split: str = "train") -> recipes.Rows:
        """Return the recipe's rows of a split; UserError if the data is broken or nothing is left."""
        return self.recipe.rows(self.signature.reads, split, self.seed)

    def unchanged(self) -> None:
        """Raise UserError where a parent or the data changed while they were read."""
        requested = self.record["request"]
        signature = self.signature
        data = {DATA: str(self.record["recipe"]["data"])} if DATA in requested["parents"] else {}
        for role, path in {**self.parents, **data}.items():
            now = request.parent_identity(role, path, self.stage, signature)
            if now != requested["parents"][role]:
                raise UserError(f"--{role} {path}: was changed while it was read; run the same command again")
        if "recipe" in requested and self.recipe.digest(signature.reads) != requested["recipe"]:
            raise UserError(f"recipe {self.recipe.name}: was changed while it was read; run the same command again")

    def library_arguments(self, **forced: Any) -> Any:
        """Build the library's argument object; UserError where it refuses a value."""
        from pipeline.system.hardware import placement

        library = self.stage.library_of(dataclasses.asdict(self.options))
        assert library
        values = placement() | self.arguments | {"output_dir": str(self.output)} | forced
        ours = values.get("optim") == MUON
        try:
            made = config.library_class(library)(**values | ({"optim": "adamw_torch"} if ours else {}))
        except Exception as error:  # of a package that is not installed, too, or of a file that is not there
            line = " ".join(str(error).split())
            raise UserError(f"{library} refuses the configuration: {line}{config.named_in(line, self.arguments)}") from None
        if ours:
            made.optim = MUON
        if getattr(made, "fp16", False) and made.device.type != "cuda":
            raise UserError(f"fp16: true would be ignored on {made.device.type}, which trains in fp32; leave it out")
        if made.device.type == "cpu":
            for key in ("use_liger_kernel", "activation_offloading"):
                if getattr(made, key, False):
                    raise UserError(f"{key}: true: needs a GPU; leave it out")
        if getattr(made, "deepspeed_plugin", None):
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            # With it every load would leave each process a part of the weights (ZeRO-3) before anything could be checked or
            # extended; the trainer divides the model when it begins.
            unset_hf_deepspeed_config()
        return made

    @classmethod
    def remade(cls, stage: Stage, record: Mapping[str, Any], parents: Mapping[str, str], scratch: Path) -> Run:
        """Return the run that made a finished node, to make its batches again into `scratch`; it prints nothing.

        `parents`: role → where that parent lies now; a teacher's tokenizer may be read from there.
        """
        options, arguments = stage.split(record["config"])
        data = {key: record["recipe"][key] for key in ("name", "type", "digest", "data", "sources")}
        recipe = recipes.of(record) if record["recipe"]["type"] else recipes.EMPTY
        again = {"stage": record["stage"], "seed": record["seed"], "request": record["request"], "recipe": data}
        return cls(stage, record["node"], options, arguments, parents, scratch, recipe, again, quiet=True)
