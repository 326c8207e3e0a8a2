"""Talk to a finished model in the terminal, or to those of its lineage side by side.

    python -m pipeline.commands.chat --runs runs/tiny [--node NAME]

Without --node the released node answers, with --node all every chat model that it descends from, too. Answers stream, by
the node's own generation settings. /reset forgets the conversation, /system TEXT sets what stands before it, /node NAME
changes the model, /all asks all of them; an empty line, Ctrl-D or Ctrl-C ends.
"""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path
from typing import Any

from pipeline.chain import finished
from pipeline.chain.finished import Finished
from pipeline.system import config, process
from pipeline.system.errors import Stopped, UserError

MAKE = {"runs": "OUT", "node": "STAGE"}
ALL = "all"
HELP = "/reset, /system TEXT, /node NAME, /all; an empty line ends"
_LONGEST = 256  # tokens of an answer, at most


class Speaker:
    """A finished model with its own side of the conversation."""

    def __init__(self, runs: Path, node: Finished) -> None:
        from pipeline.models import checkpoint, tokenization
        from pipeline.system import hardware

        self.name, self.turns = node.name, list[dict[str, str]]()
        self.tokenizer = tokenization.load(str(node.folder))
        self.tokenizer.chat_template = self.tokenizer.chat_template or _borrowed(runs, node)
        if not self.tokenizer.chat_template:
            raise UserError(f"{node.folder}: has no chat template; only a chat model can be talked to")
        self.model: Any = checkpoint.load(str(node.folder)).to(hardware.device()).eval()
        self.model.config.use_cache = True
        settings = self.model.generation_config  # the node's own; with a borrowed template it stops at an answer's end, too
        own = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        stops = {token for token in own if token is not None} | set(tokenization.stop_ids(self.tokenizer))
        settings.eos_token_id = sorted(stops)
        if settings.pad_token_id is None:
            settings.pad_token_id = self.tokenizer.pad_token_id

    def answer(self, system: str, line: str) -> None:
        """Stream an answer, and remember both sides; UserError where the conversation is longer than the model's context."""
        import torch

        from pipeline.models.tokenization import render

        turns = [*self.turns, {"role": "user", "content": line}]
        ids = render(self.tokenizer, [{"role": "system", "content": system}] * bool(system) + turns, answer_next=True)
        room = int(getattr(self.model.config, "max_position_embeddings", len(ids) + _LONGEST)) - len(ids)
        if room < 1:
            raise UserError(f"{self.name}: the conversation is longer than the {len(ids) + room} tokens it can read; /reset")
        row = torch.tensor([ids], device=self.model.device)
        with torch.no_grad():
            said = self.model.generate(
                row, attention_mask=torch.ones_like(row), max_new_tokens=min(room, _LONGEST), streamer=_stream(self.tokenizer)
            )
        text = str(self.tokenizer.decode(said[0, len(ids) :], skip_special_tokens=True))
        self.turns = [*turns, {"role": "assistant", "content": text.strip()}]


def _borrowed(runs: Path, node: Finished) -> str | None:
    """Return the chat template of the first finished node that descends from one without a template of its own."""
    from pipeline.models import tokenization

    where = node.folder.resolve()  # a parent of another folder may have the same name
    for other in finished.finished(runs):
        if other.family == node.family and any(older.folder.resolve() == where for older in finished.lineage(other.folder)):
            template = tokenization.load(str(other.folder)).chat_template
            if template:
                return str(template)
    return None


def _stream(tokenizer: Any) -> Any:
    """Return what prints an answer as it comes; no character of it moves the cursor or rings a bell."""
    from transformers import TextStreamer

    class Terminal(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            shown = "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")
            super().on_finalized_text(shown, stream_end)

    return Terminal(tokenizer, skip_prompt=True, skip_special_tokens=True)


class Chat:
    """One conversation: who answers, and what was said."""

    def __init__(self, runs: Path, name: str) -> None:
        self.runs, self.system = runs, ""
        self.speakers: list[Speaker] = []
        self.switch(name)

    def switch(self, name: str) -> None:
        """Talk to another node, or to all; as before where there is no such node."""
        self.speakers = [Speaker(self.runs, node) for node in self._nodes(name)]

    def _nodes(self, name: str) -> list[Finished]:
        released = finished.answering(self.runs, "" if name == ALL else name)
        if name != ALL:
            return [released]
        line = [node for node in finished.lineage(released.folder) if node.family == released.family]
        return [finished.answering(node.folder.parent, node.folder.name) for node in line]

    def take(self, line: str) -> None:
        """Answer a line, or do what it commands."""
        command, _, rest = line.partition(" ")
        if command == "/reset" or command == "/system":
            self.system = rest.strip() if command == "/system" else self.system
            for speaker in self.speakers:
                speaker.turns = []
        elif command == "/all" or (command == "/node" and rest.strip()):
            self.switch(ALL if command == "/all" else rest.strip())
            print(f"{', '.join(speaker.name for speaker in self.speakers)}; the conversation begins anew", flush=True)
        elif command.startswith("/"):
            print(f"{command}: no such command; there are {HELP}", flush=True)
        else:
            width = max(len(speaker.name) for speaker in self.speakers)
            for speaker in self.speakers:
                if len(self.speakers) > 1:
                    print(f"{speaker.name:<{width}} ", end="", flush=True)
                speaker.answer(self.system, line)


def main() -> int:
    """Read lines, stream answers."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("runs", "node"), sys.argv[1:])
    if faults:
        raise UserError(*faults)
    runs, name = Path(str(flags.get("runs", "runs/tiny"))), str(flags.get("node", ""))
    try:
        chat = Chat(runs, name)
        print(f"{', '.join(speaker.name for speaker in chat.speakers)} of {runs}; {HELP}", flush=True)
        while line := _read():
            try:
                chat.take(line)
            except UserError as error:
                print("\n".join(error.faults), flush=True)
    except Stopped as stop:
        if stop.status != 130:
            raise
        print()  # Ctrl-C: a conversation may end at any moment
    return 0


def _read() -> str:
    if sys.stdin.isatty():
        import readline  # noqa: F401  arrow keys and the lines before
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return ""


if __name__ == "__main__":
    sys.exit(process.execute(main))
