"""Generation of one answer at a time, streamed as it comes, on the thread that transformers' own server generates on."""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.cli.serving.utils import DirectStreamer, InferenceThread

from pipeline.commands._serve.requests import TEXTS_ALONE, ChatRequest, CompletionRequest, Refused
from pipeline.data import tokens
from pipeline.evaluation import inference
from pipeline.models import checkpoint, tokenization
from pipeline.system import hardware
from pipeline.system.errors import UserError

LONGEST = 1024  # tokens of an answer where nobody says how many and the model has room for more


@dataclass
class Answer:
    """An answer as it grows: how many tokens were read and written, and why it ended once it has."""

    read: int
    written: int = 0
    reason: str | None = None  # stop or length

    @property
    def usage(self) -> dict[str, int]:
        """The counts as OpenAI names them."""
        return {"prompt_tokens": self.read, "completion_tokens": self.written, "total_tokens": self.read + self.written}


class _Penalties(LogitsProcessor):
    """Lower what was written already: by `often` for each time, and by `once` (OpenAI's frequency and presence penalty)."""

    def __init__(self, read: int, often: float, once: float) -> None:
        self.read, self.often, self.once = read, often, once

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the scores of the next token, (1, vocabulary)."""
        written = torch.bincount(input_ids[0, self.read :], minlength=scores.shape[-1])[: scores.shape[-1]]
        return scores - self.often * written - self.once * (written > 0)  # type: ignore[return-value]


class _Streamer(DirectStreamer):
    """Text as it comes, and the newest token."""

    last = -1

    def put(self, value: torch.Tensor) -> None:
        """Take tokens from `generate`."""
        self.last = int(value.flatten()[-1])
        super().put(value)


class Model:
    """The one model that is served."""

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.tokenizer: Any = tokenization.load(folder)
        self.model = checkpoint.load(folder).to(hardware.device()).eval()
        self.model.config.use_cache = True
        self.image_inputs = inference.load_image_inputs(self.model, self.tokenizer, folder)
        self.positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        checkpoint.ends_answers(self.model.generation_config, self.tokenizer)
        self._thread = InferenceThread()

    def prompt(self, request: ChatRequest | CompletionRequest) -> tuple[list[int], dict[str, torch.Tensor]]:
        """Return the tokens before the answer, and the pictures in their places; Refused where there can be none."""
        if isinstance(request, ChatRequest):
            if not self.tokenizer.chat_template:
                raise Refused(f"{self.name} has no chat template; ask it by /v1/completions", "model")
            if not self.image_inputs and any(message.shows for message in request.messages):
                raise Refused(f"messages: content: {TEXTS_ALONE}", "messages")
            turns = [message.turn() for message in request.messages]
            try:
                return inference.prompt(self.model, self.tokenizer, self.image_inputs, turns)
            except UserError as error:
                raise Refused(f"the chat template can't render these messages: {'; '.join(error.faults)}", "messages") from None
        given = request.prompt
        size = len(self.tokenizer)
        if isinstance(given, list) and isinstance(given[0], int):
            if any(not 0 <= int(token) < size for token in given):
                raise Refused(f"prompt: ids of tokens are from 0 to {size - 1}", "prompt")
            return [int(token) for token in given], {}
        text = given if isinstance(given, str) else str(given[0])
        return tokens.encode_text({"text": text}, self.tokenizer)["input_ids"][:-1], {}  # as pretraining began each text

    def settings(self, request: ChatRequest | CompletionRequest, read: int) -> Any:
        """Return the node's own generation settings with what was asked for; Refused where the context is too short."""
        room = self.positions - read if self.positions else LONGEST
        if room < 1 or (request.longest or 0) > room:
            wanted = f"{read + (request.longest or 0)} tokens ({read} in the prompt, {request.longest or 0} for the answer)"
            raise Refused(
                f"This model's maximum context length is {self.positions} tokens, but {wanted} were requested",
                request.longest_name if room > 0 else ("messages" if isinstance(request, ChatRequest) else "prompt"),
                "context_length_exceeded",
            )
        found = copy.deepcopy(self.model.generation_config)
        found.max_new_tokens = request.longest or min(room, LONGEST)
        if request.temperature is not None or request.top_p is not None:
            found.do_sample = request.temperature != 0
            found.temperature, found.top_p, found.top_k = request.temperature or 1.0, request.top_p or 1.0, 0
        if request.logit_bias:
            found.sequence_bias = self._biases(request.logit_bias)
        return found

    def _biases(self, given: dict[str, float]) -> list[Any]:
        size = len(self.tokenizer)
        if wrong := [token for token in given if not token.isdecimal() or len(token) > len(str(size)) or int(token) >= size]:
            raise Refused(f"logit_bias: {wrong[0][:20]!a}: ids of tokens are from 0 to {size - 1}", "logit_bias")
        return [[[int(token)], float(bias)] for token, bias in given.items()]

    async def stream(
        self, request: ChatRequest | CompletionRequest, ids: list[int], beside: Mapping[str, Any], settings: Any, answer: Answer
    ) -> AsyncIterator[str]:
        """Yield an answer piece by piece, up to a string that ends it, and keep count in `answer`; `beside`: pictures.

        Requests wait for each other, so the draws of each come from its own seed alone. Whoever stops reading ends it.
        """
        queue: asyncio.Queue[Any] = asyncio.Queue()
        streamer = _Streamer(self.tokenizer._tokenizer, asyncio.get_running_loop(), queue)
        done = self._thread.async_submit(self._generate, request, ids, beside, settings, streamer)
        done.add_done_callback(lambda ended: queue.put_nowait(ended.exception()))
        held, stops = "", request.stops
        keep = max(map(len, stops), default=1) - 1  # letters that may be the beginning of a string that ends it
        try:
            piece = await queue.get()
            while isinstance(piece, str):
                held += piece
                while isinstance(piece, str) and not queue.empty():  # several pieces are one event
                    piece = queue.get_nowait()
                    held += piece if isinstance(piece, str) else ""
                if found := [place for stop in stops if (place := held.find(stop)) >= 0]:
                    answer.written, answer.reason = streamer.total_tokens, "stop"
                    if held[: min(found)]:
                        yield held[: min(found)]
                    return
                if ready := held[: len(held) - keep] if keep else held:
                    held = held[len(ready) :]
                    yield ready
                if isinstance(piece, str):
                    piece = await queue.get()
            if piece is not None:
                raise piece
            answer.written = streamer.total_tokens
            if held:
                yield held
            answer.reason = (
                "length" if answer.written >= settings.max_new_tokens and streamer.last not in settings.eos_token_id else "stop"
            )
        finally:
            streamer.cancel()

    def _generate(
        self,
        request: ChatRequest | CompletionRequest,
        ids: list[int],
        beside: Mapping[str, Any],
        settings: Any,
        streamer: _Streamer,
    ) -> None:
        """Generate, on the thread of inference."""
        if streamer._cancelled.is_set():
            return
        torch.manual_seed((secrets.randbits(63) if request.seed is None else request.seed) % 2**63)
        row = torch.tensor([ids], device=self.model.device)
        penalties = _Penalties(len(ids), request.frequency_penalty or 0.0, request.presence_penalty or 0.0)
        with torch.no_grad():
            self.model.generate(
                row, attention_mask=torch.ones_like(row), generation_config=settings, streamer=streamer, **beside,
                logits_processor=[penalties] if penalties.often or penalties.once else [],
            )  # fmt: skip
