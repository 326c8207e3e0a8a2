"""A model from elsewhere in, a node out, so that a chain can start from it.

    python stages/adopt.py --config stages/profiles/smollm2/adopt.yaml --output runs/smollm2/adopt

Takes a hub id or model folder (--model), or the files of one inside an installed package (--package and
--pattern), also as GGUF. The weights are written as fp32 safetensors, beside the model's own tokenizer and template.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import Signature, Stage
from pipeline.chain.starter import Facts, Lines
from pipeline.system.config import option
from pipeline.system.errors import UserError


class Adoption(Stage):
    """Load the model with its tokenizer and hand both on."""

    title = "Adopted model"
    about = "A model from elsewhere, adopted as it is, in fp32, to start a chain from."
    takes: ClassVar[dict[str, tuple[str, ...]]] = {}
    given_as = "base"

    @dataclass(frozen=True)
    class Options:
        """Our own options of adoption."""

        model: str = option("", "hub id or folder of a model", by_content=True)
        package: str = option("", "installed distribution that carries the model")
        pattern: str = option("*.gguf", "which files of the package")
        family: Literal["causal", "embedder"] = option("causal", "causal, or embedder for an encoder without a head")

    def signature(self, options: Options) -> Signature:
        """Return the family that is adopted."""
        return Signature(gives=options.family)

    def sources(self, options: Options) -> list[Path]:
        """Return the files whose content is adopted; a hub id is known by its name alone."""
        from pipeline.data.sources import package_files
        from pipeline.system import hashes

        if bool(options.model) == bool(options.package):
            raise UserError("adopt: give either model (a hub id or folder) or package (with pattern)")
        if options.package:
            return package_files(options.package, options.pattern)
        folder = Path(options.model)
        return [folder / name for name in hashes.files(folder)] if folder.is_dir() else []

    def parameters(self, options: Options) -> int:
        """Return those of the weights in a folder."""
        from pipeline.models import loading

        return loading.stored(Path(options.model)) if options.model else 0

    def starter(self, facts: Facts) -> dict[str, Lines]:
        """Return one node that takes the model as it is."""
        return {
            "": {"model": (facts.base, "the model that the chain starts from; a folder is read from where the command runs")}
        }

    def train(self, run: Run) -> None:
        """Write the model and its tokenizer as a plain checkpoint."""
        from pipeline.models import build, checkpoint, tokenization
        from pipeline.models.embedder import save_embedder

        files = self.sources(run.options) if run.options.package else []
        folder = str(files[0].parent) if files else run.options.model
        gguf = next((file for file in files if file.suffix == ".gguf"), None)
        if run.options.family == "embedder":
            tokenizer, model = tokenization.load(folder), build.load("AutoModel", folder)
            model.save_pretrained(run.result)
            tokenizer.save_pretrained(run.result)
            save_embedder(model, run.result)
        else:
            tokenizer, model = _converted(run, gguf) if gguf else (tokenization.load(folder), checkpoint.load(folder))
            checkpoint.save(model, tokenizer, run.result)
        run.say(f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer):,}")


def _converted(run: Run, file: Path) -> tuple[Any, Any]:
    """Return tokenizer and causal model of a GGUF file, its weights in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    run.say(f"converting {file.name} of the package {run.options.package} to fp32 safetensors")
    tokenizer: Any = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        dtype=torch.float32,
        trust_remote_code=False,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.config.quantization_config = None
    del model.config.quantization_config
    return tokenizer, model


STAGE = Adoption

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))
