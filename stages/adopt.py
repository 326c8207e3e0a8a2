"""A model from elsewhere in, a stage directory out, so that the chain can start from it.

    python stages/adopt.py --config stages/profiles/smollm2/adopt.yaml --output runs/smollm2/pretrain

Takes a hub id or model folder (--model), or the files of one inside an installed package (--package and
--pattern), also as GGUF. The weights are written as fp32 safetensors, beside the model's own tokenizer and template.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.chain.stage import Edges, Run, Stage, run_stage


@dataclass(frozen=True)
class Options:
    """Our own options of adoption."""

    model: str = option("", "hub id or folder of a model", by_content=True)
    package: str = option("", "installed distribution that carries the model")
    pattern: str = option("*.gguf", "which files of the package")
    family: Literal["causal", "embedder"] = option("causal", "causal, or embedder for an encoder without a head")


def sources(options: Any) -> list[Path]:
    """Return the files whose content is adopted; a hub id is known by its name alone."""
    from pipeline.chain import manifest
    from pipeline.data.sources import package_files

    if bool(options.model) == bool(options.package):
        raise UserError("adopt: give either model (a hub id or folder) or package (with pattern)")
    if options.package:
        return package_files(options.package, options.pattern)
    folder = Path(options.model)
    return [folder / name for name in manifest.files(folder)] if folder.is_dir() else []


def edges(options: Options) -> Edges:
    """Return the family that is adopted."""
    return Edges("", options.family, ())


STAGE = Stage(name="pretrain", edges=edges, options=Options, arguments=None, needs_parent=False, sources=sources)


def adopt(run: Run) -> None:
    """Load the model with its tokenizer and write both as a stage."""
    from pipeline.models import checkpoint, tokenizer
    from pipeline.models import build as _models

    files = sources(run.options) if run.options.package else []
    folder = str(files[0].parent) if files else run.options.model
    gguf = next((file for file in files if file.suffix == ".gguf"), None)
    if run.options.family == "embedder":
        vocabulary, model = tokenizer.load(folder), _models.load("AutoModel", folder)
        model.save_pretrained(run.result)
        vocabulary.save_pretrained(run.result)
        _models.save_embedder(model, run.result)
    else:
        vocabulary, model = _converted(run, gguf) if gguf else (tokenizer.load(folder), checkpoint.load(folder))
        checkpoint.save(model, vocabulary, run.result)
    run.say(f"{model.num_parameters():,} parameters, vocabulary {len(vocabulary):,}")


def _converted(run: Run, file: Path) -> tuple[Any, Any]:
    """Return tokenizer and causal model of a GGUF file, its weights in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    run.say(f"converting {file.name} of the package {run.options.package} to fp32 safetensors")
    vocabulary: Any = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.quantization_config = None
    del model.config.quantization_config
    return vocabulary, model


if __name__ == "__main__":
    sys.exit(run_stage(STAGE, adopt, str(__doc__)))
