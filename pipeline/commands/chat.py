"""Talk to a finished stage in the terminal, or to base, SFT and DPO side by side.

    python stages/chat.py --runs runs/tiny --stage dpo

Answers stream, by the stage's own generation settings. /reset forgets the conversation, /system TEXT sets what
stands before it, /stage NAME changes the model, /all asks base, SFT and DPO; an empty line, Ctrl-D or Ctrl-C ends.
"""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path
from typing import Any

from pipeline.chain import manifest, request
from pipeline.system import config, process
from pipeline.system.errors import Stopped, UserError

ALL = ("pretrain", "sft", "dpo")
HELP = "/reset, /system TEXT, /stage NAME, /all; an empty line ends"
_LONGEST = 256  # tokens of an answer, at most


class Speaker:
    """A finished stage with its own side of the conversation."""

    def __init__(self, runs: Path, name: str) -> None:
        from pipeline.models import checkpoint, tokenizer
        from pipeline.system import hardware

        folder = request.finished(runs, name)
        self.name, self.turns = name, list[dict[str, str]]()
        self.vocabulary = tokenizer.load(str(folder))
        if not self.vocabulary.chat_template and manifest.read(runs / "sft"):
            self.vocabulary.chat_template = tokenizer.load(str(runs / "sft")).chat_template
        if not self.vocabulary.chat_template:
            raise UserError(f"{folder}: has no chat template; only a chat model can be talked to")
        self.model: Any = checkpoint.load(str(folder)).to(hardware.device()).eval()
        self.model.config.use_cache = True
        settings = self.model.generation_config  # the stage's own; with a borrowed template it stops at an answer's end, too
        own = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        settings.eos_token_id = sorted({token for token in own if token is not None} | set(tokenizer.stop_ids(self.vocabulary)))
        if settings.pad_token_id is None:
            settings.pad_token_id = self.vocabulary.pad_token_id

    def answer(self, system: str, line: str) -> None:
        """Stream an answer, and remember both sides; UserError where the conversation is longer than the model's context."""
        import torch

        from pipeline.models.tokenizer import render

        turns = [*self.turns, {"role": "user", "content": line}]
        ids = render(self.vocabulary, [{"role": "system", "content": system}] * bool(system) + turns, answer_next=True)
        room = int(getattr(self.model.config, "max_position_embeddings", len(ids) + _LONGEST)) - len(ids)
        if room < 1:
            raise UserError(f"{self.name}: the conversation is longer than the {len(ids) + room} tokens it can read; /reset")
        row = torch.tensor([ids], device=self.model.device)
        with torch.no_grad():
            said = self.model.generate(
                row, attention_mask=torch.ones_like(row), max_new_tokens=min(room, _LONGEST), streamer=_stream(self.vocabulary)
            )
        text = str(self.vocabulary.decode(said[0, len(ids) :], skip_special_tokens=True))
        self.turns = [*turns, {"role": "assistant", "content": text.strip()}]


def _stream(vocabulary: Any) -> Any:
    """Return what prints an answer as it comes; no character of it moves the cursor or rings a bell."""
    from transformers import TextStreamer

    class Terminal(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            shown = "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")
            super().on_finalized_text(shown, stream_end)

    return Terminal(vocabulary, skip_prompt=True, skip_special_tokens=True)


class Chat:
    """One conversation: who answers, and what was said."""

    def __init__(self, runs: Path, stage: str) -> None:
        self.runs, self.system = runs, ""
        self.speakers: list[Speaker] = []
        self.switch(stage)

    def switch(self, stage: str) -> None:
        """Talk to another stage, or to all; as before where there is no such stage."""
        names = [name for name in ALL if manifest.read(self.runs / name)] if stage == "all" else [stage]
        self.speakers = [Speaker(self.runs, name) for name in names or ALL[-1:]]

    def take(self, line: str) -> None:
        """Answer a line, or do what it commands."""
        command, _, rest = line.partition(" ")
        if command == "/reset" or command == "/system":
            self.system = rest.strip() if command == "/system" else self.system
            for speaker in self.speakers:
                speaker.turns = []
        elif command == "/all" or (command == "/stage" and rest.strip()):
            self.switch("all" if command == "/all" else rest.strip())
            print(f"{', '.join(speaker.name for speaker in self.speakers)}; the conversation begins anew", flush=True)
        elif command.startswith("/"):
            print(f"{command}: no such command; there are {HELP}", flush=True)
        else:
            for speaker in self.speakers:
                if len(self.speakers) > 1:
                    print(f"{speaker.name:<8} ", end="", flush=True)
                speaker.answer(self.system, line)


def main() -> int:
    """Read lines, stream answers."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("runs", "stage"), sys.argv[1:])
    if faults:
        raise UserError(*faults)
    runs, stage = Path(str(flags.get("runs", "runs/tiny"))), str(flags.get("stage", "dpo"))
    try:
        chat = Chat(runs, stage)
        print(f"{', '.join(speaker.name for speaker in chat.speakers)} of {runs}; {HELP}", flush=True)
        while line := _ask():
            try:
                chat.take(line)
            except UserError as error:
                print("\n".join(error.faults), flush=True)
    except Stopped as stop:
        if stop.status != 130:
            raise
        print()  # Ctrl-C: a conversation may end at any moment
    return 0


def _ask() -> str:
    if sys.stdin.isatty():
        import readline  # noqa: F401  arrow keys and the lines before
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return ""


if __name__ == "__main__":
    sys.exit(process.execute(main))
