"""Talk to a finished model in the terminal, or to those of its lineage side by side.

    python -m pipeline.commands.chat --runs runs/tiny [--node NAME]

Without --node the released node answers, with --node all every chat model that it descends from, too. Answers stream, by
the node's own generation settings. /image PATH shows a picture with the next message, /reset forgets the conversation, /system
TEXT sets what stands before it, /node NAME changes the model and keeps what was said, /all asks all of them, /set temperature 0.7 samples (/set alone shows what can be
set), /help lists these. Ctrl-C ends an answer; an empty line, Ctrl-D, or Ctrl-C before one ends the chat.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import finished
from pipeline.chain.finished import Finished
from pipeline.models.families import ANSWERING
from pipeline.system import config, process, signals
from pipeline.system.errors import Stopped, UserError

MAKE = {"runs": "OUT", "node": "STAGE"}
ALL = "all"
HELP = "/image PATH, /reset, /system TEXT, /node NAME, /all, /set NAME VALUE, /help; Ctrl-C ends an answer, an empty line ends the chat"
SAMPLING: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "temperature": (float, lambda value: value >= 0, "at least 0, which is greedy"),
    "top_p": (float, lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "top_k": (int, lambda value: value >= 0, "at least 0, which is all"),
    "repetition_penalty": (float, lambda value: value > 0, "above 0"),
    "max_new_tokens": (int, lambda value: value >= 1, "at least 1"),
    "seed": (int, lambda value: 0 <= value < 2**64, "at least 0 and below 2 to the power of 64"),
}
_LONGEST = 256  # tokens of an answer, at most


class Speaker:
    """A finished model with its own side of the conversation."""

    def __init__(self, runs: Path, node: Finished, turns: Sequence[dict[str, Any]] = ()) -> None:
        from pipeline.evaluation import inference
        from pipeline.models import checkpoint, tokenization
        from pipeline.system import hardware

        self.name, self.turns = node.name, list(turns)
        self.tokenizer = tokenization.load(str(node.folder))
        self.tokenizer.chat_template = self.tokenizer.chat_template or _borrowed(runs, node)
        if not self.tokenizer.chat_template:
            raise UserError(f"{node.folder}: has no chat template; only a chat model can be talked to")
        self.model: Any = checkpoint.load(str(node.folder)).to(hardware.device()).eval()
        self.model.config.use_cache = True
        self.image_inputs = inference.load_image_inputs(self.model, self.tokenizer, str(node.folder))
        checkpoint.ends_answers(self.model.generation_config, self.tokenizer)  # a borrowed template's end, too

    def answer(self, system: str, said: Any, given: Mapping[str, Any]) -> None:
        """Stream an answer, up to its end or to Ctrl-C, and remember both sides; `given`: settings beside the node's own.

        `said`: a text, or parts with pictures. Raises UserError where the conversation is longer than the model's context.
        """
        import torch

        from pipeline.evaluation.inference import prompt

        turns = [*self.turns, {"role": "user", "content": said}]
        ids, beside = prompt(
            self.model, self.tokenizer, self.image_inputs, [{"role": "system", "content": system}] * bool(system) + turns
        )
        room = int(getattr(self.model.config.get_text_config(), "max_position_embeddings", len(ids) + _LONGEST)) - len(ids)
        if room < 1:
            remedy = "/reset, or a shorter /system" if system else "/reset"
            raise UserError(f"{self.name}: the conversation is longer than the {len(ids) + room} tokens it can read; {remedy}")
        row, streamer = torch.tensor([ids], device=self.model.device), _stream(self.tokenizer)
        settings = _generation({**given, "max_new_tokens": min(room, given.get("max_new_tokens", _LONGEST))})
        if "seed" in given:
            torch.manual_seed(given["seed"])
        with torch.no_grad(), signals.interruptible():
            try:
                self.model.generate(row, attention_mask=torch.ones_like(row), streamer=streamer, **beside, **settings)
            except KeyboardInterrupt:
                streamer.end()
        text = str(self.tokenizer.decode(streamer.ids, skip_special_tokens=True))
        self.turns = [*turns, {"role": "assistant", "content": text.strip()}]


def _generation(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as `generate` takes them: a temperature or a share of the mass means that it samples."""
    found = {name: value for name, value in given.items() if name != "seed"}
    if found.get("temperature") == 0:
        return {name: value for name, value in found.items() if name not in ("temperature", "top_p", "top_k")} | {
            "do_sample": False
        }
    if found.keys() & {"temperature", "top_p", "top_k"}:
        found = {"temperature": 1.0, "top_k": 0, "do_sample": True} | found
    return found


def _borrowed(runs: Path, node: Finished) -> str | None:
    """Return the chat template of the first finished node that descends from one without a template of its own."""
    from pipeline.models import tokenization

    where = node.folder.resolve()  # a parent of another folder may have the same name
    for other in finished.finished(runs):
        if other.family in ANSWERING and any(older.folder.resolve() == where for older in finished.lineage(other.folder)):
            template = tokenization.load(str(other.folder)).chat_template
            if template:
                return str(template)
    return None


def _stream(tokenizer: Any) -> Any:
    """Return what prints an answer as it comes; no character of it moves the cursor or rings a bell."""
    from transformers import TextStreamer

    class Terminal(TextStreamer):
        ids: list[int] = []  # noqa: RUF012  of the answer so far

        def put(self, value: Any) -> None:
            if not self.next_tokens_are_prompt:
                self.ids = [*self.ids, *value.tolist()]
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            shown = "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")
            super().on_finalized_text(shown, stream_end)

    return Terminal(tokenizer, skip_prompt=True, skip_special_tokens=True)


class Chat:
    """One conversation: who answers, and what was said."""

    def __init__(self, runs: Path, name: str) -> None:
        self.runs, self.system = runs, ""
        self.settings: dict[str, Any] = {}
        self.shown: list[dict[str, str]] = []  # pictures that go with the next message
        self.speakers: list[Speaker] = []
        self.switch(name)

    def switch(self, name: str) -> None:
        """Talk to another node, or to all, about what was said so far; as before where there is no such node."""
        turns = self.speakers[-1].turns if self.speakers else []
        self.speakers = [Speaker(self.runs, node, turns) for node in self._nodes(name)]

    def set(self, words: Sequence[str]) -> None:
        """Show the settings, or change one; UserError where there is no such setting or value."""
        if words:
            kind, fits, range_ = SAMPLING.get(words[0], (str, None, ""))
            if fits is None:
                raise UserError(f"/set {words[0]}: no such setting; there are {', '.join(SAMPLING)}")
            try:
                value = kind(words[1])
            except (IndexError, ValueError):
                raise UserError(f"/set {' '.join(words)}: expected a number {range_}") from None
            if not fits(value):
                raise UserError(f"/set {' '.join(words)}: expected a number {range_}")
            self.settings[words[0]] = value
        print(", ".join(f"{name} {self.settings.get(name, '(of the node)')}" for name in SAMPLING), flush=True)

    def show(self, path: str) -> None:
        """Let a picture go with the next message; UserError where there is none, or nobody who could see it."""
        from pipeline.data import pictures

        if not any(speaker.image_inputs for speaker in self.speakers):
            raise UserError(
                f"/image: {', '.join(speaker.name for speaker in self.speakers)}: reads texts alone, and sees no picture"
            )
        try:
            cell = pictures.held(Path(path).expanduser().read_bytes(), path)
        except OSError as error:
            raise UserError(f"/image {path}: {error.strerror or error}") from None
        if "fault" in cell:
            raise UserError(f"/image {path}: {cell['fault']}")
        self.shown.append(cell)
        print(f"{path} goes with the next message", flush=True)

    def _nodes(self, name: str) -> list[Finished]:
        released = finished.answering(self.runs, "" if name == ALL else name)
        if name != ALL:
            return [released]
        line = [node for node in finished.lineage(released.folder) if node.family in ANSWERING]
        return [finished.answering(node.folder.parent, node.folder.name) for node in line]

    def take(self, line: str) -> None:
        """Answer a line, or do what it commands."""
        command, _, rest = line.partition(" ")
        if command == "/reset" or command == "/system":
            self.system = rest.strip() if command == "/system" else self.system
            self.shown = []
            for speaker in self.speakers:
                speaker.turns = []
        elif command == "/all" or (command == "/node" and rest.strip()):
            self.switch(ALL if command == "/all" else rest.strip())
            said = len(self.speakers[0].turns) // 2
            print(f"{', '.join(speaker.name for speaker in self.speakers)}; {said} answers are remembered", flush=True)
        elif command == "/image":
            self.show(rest.strip())
        elif command == "/set":
            self.set(rest.split())
        elif command == "/help":
            print(HELP, flush=True)
        elif command.startswith("/"):
            print(f"{command}: no such command; there are {HELP}", flush=True)
        else:
            content: Any = line
            if self.shown:
                content = [*({"type": "image", "image": one} for one in self.shown), {"type": "text", "text": line}]
                self.shown = []
            width = max(len(speaker.name) for speaker in self.speakers)
            for speaker in self.speakers:
                if len(self.speakers) > 1:
                    print(f"{speaker.name:<{width}} ", end="", flush=True)
                speaker.answer(self.system, content, self.settings)


def main() -> int:
    """Read lines, stream answers."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("runs", "node"), sys.argv[1:])
    if faults:
        raise UserError(*faults)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a byte that is no UTF-8 is no reason to end
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
