"""Talk to a finished stage in the terminal.

    python stages/chat.py --runs runs/tiny --stage dpo

Answers stream. /reset forgets the conversation, /stage NAME changes the model, an empty line or Ctrl-D ends.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipeline import config, manifest, process
from pipeline.errors import UserError


def _load(runs: Path, stage: str) -> tuple[Any, Any]:
    """Return model and tokenizer of a finished stage; a base model borrows SFT's template."""
    from pipeline import checkpoint, hardware, tokenizer

    if manifest.read(runs / stage) is None:
        finished = sorted(path.parent.name for path in runs.glob("*/manifest.json"))
        raise UserError(
            f"{runs / stage}: not finished; {'finished are ' + ', '.join(finished) if finished else 'run make first'}"
        )
    vocabulary = tokenizer.load(str(runs / stage))
    if not vocabulary.chat_template and manifest.read(runs / "sft"):
        vocabulary.chat_template = tokenizer.load(str(runs / "sft")).chat_template
    if not vocabulary.chat_template:
        raise UserError(f"{runs / stage}: has no chat template; only a chat model can be talked to")
    model = checkpoint.load(str(runs / stage)).to(hardware.device()).eval()
    model.config.use_cache, model.generation_config = True, checkpoint.generation(vocabulary)
    return model, vocabulary


def main() -> int:
    """Read lines, stream answers."""
    flags, faults = config.read_flags(sys.argv[1:])
    faults += [
        f"command line: --{key}: unknown flag; known are --runs, --stage"
        for key in flags
        if key not in ("parent", "runs", "stage")
    ]
    if faults:
        raise UserError(*faults)
    runs, stage = Path(str(flags.get("runs", "runs/tiny"))), str(flags.get("stage", "dpo"))
    model, vocabulary = _load(runs, stage)
    from transformers import TextStreamer

    from pipeline.tokenizer import render

    print(f"{stage} of {runs}; /reset, /stage NAME, empty line to end", flush=True)
    turns: list[dict[str, str]] = []
    while line := _ask():
        if line == "/reset":
            turns = []
        elif line.startswith("/stage "):
            stage = line.split(maxsplit=1)[1]
            model, vocabulary = _load(runs, stage)
            turns = []
        else:
            turns.append({"role": "user", "content": line})
            ids = render(vocabulary, turns, answer_next=True)
            streamer = TextStreamer(vocabulary, skip_prompt=True, skip_special_tokens=True)
            turns.append({"role": "assistant", "content": _answer(model, vocabulary, ids, streamer)})
    return 0


def _answer(model: Any, vocabulary: Any, ids: list[int], streamer: Any) -> str:
    import torch

    row = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        said = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=256, streamer=streamer)
    return str(vocabulary.decode(said[0, len(ids) :], skip_special_tokens=True)).strip()


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    sys.exit(process.execute(main))
