"""The routes of the server: those of OpenAI's API that one causal model can serve, with its bodies and its errors."""

from __future__ import annotations

import json
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from pipeline.commands._serve.answers import Answer, Model
from pipeline.commands._serve.requests import ChatRequest, CompletionRequest, Refused, refusal


def build(model: Model) -> FastAPI:
    """Return the application that serves a model."""
    app = FastAPI(title="tristage serve", docs_url=None, redoc_url=None, openapi_url=None)
    card = {"id": model.name, "object": "model", "created": int(time.time()), "owned_by": "tristage"}

    def known(name: str) -> None:
        if name != model.name:
            raise Refused(f"The model '{name}' does not exist; this server has '{model.name}'", "model", "model_not_found", 404)

    async def answered(request: ChatRequest | CompletionRequest, form: Callable[..., dict[str, Any]]) -> Any:
        known(request.model)
        ids, beside = model.prompt(request)
        settings, answer = model.settings(request, len(ids)), Answer(len(ids))
        pieces = model.stream(request, ids, beside, settings, answer)
        if request.stream:
            return StreamingResponse(_events(request, form, pieces, answer), media_type="text/event-stream")
        text = "".join([piece async for piece in pieces])
        return JSONResponse(form(text, answer.reason) | {"usage": answer.usage})

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> Any:
        head = _head("chatcmpl", "chat.completion.chunk" if request.stream else "chat.completion", model.name)

        def form(text: str | None, reason: str | None) -> dict[str, Any]:
            said = {"role": "assistant", "content": text} if not request.stream else {} if text is None else {"content": text}
            kind = "delta" if request.stream else "message"
            return head | {"choices": [{"index": 0, kind: said, "logprobs": None, "finish_reason": reason}]}

        return await answered(request, form)

    @app.post("/v1/completions")
    async def complete(request: CompletionRequest) -> Any:
        head = _head("cmpl", "text_completion", model.name)

        def form(text: str | None, reason: str | None) -> dict[str, Any]:
            return head | {"choices": [{"index": 0, "text": text or "", "logprobs": None, "finish_reason": reason}]}

        return await answered(request, form)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    def retrieve(name: str) -> dict[str, Any]:
        known(name)
        return card

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    _answer_errors(app)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Give every error the body and status that OpenAI's API has for it."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = refusal(list(error.errors()), error.body)
        return JSONResponse(found.body, found.status)

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> JSONResponse:
        said = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(Refused(said, status=error.status_code).body, error.status_code)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(_failure(error), 500)


def _head(prefix: str, kind: str, name: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": name}


def _failure(error: Exception) -> dict[str, Any]:
    """Return the body of an error that is ours, and print where it came from."""
    traceback.print_exception(error, file=sys.stderr)
    return Refused(f"{type(error).__name__} in the server; its terminal says more", status=500).body


async def _events(
    request: ChatRequest | CompletionRequest, form: Callable[..., dict[str, Any]], pieces: AsyncIterator[str], answer: Answer
) -> AsyncIterator[str]:
    """Yield the events of a stream: who speaks, the pieces, why it ended, the usage if it was asked for, [DONE]."""
    usage = {"usage": None} if request.stream_options and request.stream_options.include_usage else {}
    if isinstance(request, ChatRequest):
        first = form("", None) | usage
        first["choices"][0]["delta"]["role"] = "assistant"
        yield _event(first)
    try:
        async for piece in pieces:
            yield _event(form(piece, None) | usage)
        yield _event(form(None, answer.reason) | usage)
        if usage:
            yield _event(form(None, None) | {"choices": [], "usage": answer.usage})
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield _event(_failure(error))


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
