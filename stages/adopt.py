"""A model from elsewhere in, a stage directory out, so that the chain can start from it.

    python stages/adopt.py --config stages/profiles/smollm2/adopt.yaml --output runs/smollm2/pretrain

Takes a hub id or model folder (--model), or a GGUF file inside an installed package (--package and
--pattern). The weights are written as fp32 safetensors, beside the model's own tokenizer and template.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import option
from pipeline.errors import UserError
from pipeline.stage import Run, Stage, run_stage


@dataclass(frozen=True)
class Options:
    """Our own options of adoption."""

    model: str = option("", "hub id or folder of a causal model", by_content=True)
    package: str = option("", "installed distribution that carries the model as a GGUF file")
    pattern: str = option("*.gguf", "which file of the package")


def sources(options: Any) -> list[Path]:
    """Return the files whose content is adopted; a hub id is known by its name alone."""
    from pipeline import manifest
    from pipeline.data.sources import package_files

    if bool(options.model) == bool(options.package):
        raise UserError("adopt: give either model (a hub id or folder) or package (with pattern)")
    if options.package:
        return package_files(options.package, options.pattern)
    folder = Path(options.model)
    return [folder / name for name in manifest.files(folder)] if folder.is_dir() else []


STAGE = Stage(name="pretrain", shape="", options=Options, arguments=None, needs_parent=False, sources=sources)


def adopt(run: Run) -> None:
    """Load the model with its tokenizer and write both as a stage."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline import checkpoint, tokenizer

    if run.options.package:
        from transformers import GgufConfig

        file = sources(run.options)[0]
        run.say(f"converting {file.name} of the package {run.options.package} to fp32 safetensors")
        vocabulary: Any = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        model.config.quantization_config = None
        del model.config.quantization_config
    else:
        vocabulary, model = tokenizer.load(run.options.model), checkpoint.load(run.options.model)
    checkpoint.save(model, vocabulary, run.result)
    run.say(f"{model.num_parameters():,} parameters, vocabulary {len(vocabulary):,}")


if __name__ == "__main__":
    sys.exit(run_stage(STAGE, adopt, str(__doc__)))
