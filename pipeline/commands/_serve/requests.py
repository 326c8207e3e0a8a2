"""What a client may ask of the server, as OpenAI's API defines it, and how a refusal looks.

Everything that would change the answer and can't be done here (several answers, log-probabilities, tools) is refused by name;
pictures come as data URLs, and no address is fetched; what has no bearing on it (`user`, `metadata`, `store`) is accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.data.types import Malformed
from pipeline.data.types._pictures import message_picture


class Refused(Exception):
    """A request that gets an error body; `status` is that of HTTP."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _encodable(text: str) -> str:
    """Return a text that UTF-8 can hold; JSON may spell half of a surrogate pair, which neither tokenizer nor reply can."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half of a surrogate pair (\\ud...), which is no text")
    return text


Str = Annotated[str, AfterValidator(_encodable)]


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class _Request(BaseModel):
    """Fields that both endpoints have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Str
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    seed: int | None = None
    n: int | None = 1
    user: Str | None = None

    @field_validator("n")
    @classmethod
    def _one(cls, given: int | None) -> int | None:
        if given not in (None, 1):
            raise ValueError(f"this server gives one answer to a request, not {given}")
        return given

    @field_validator("stop")
    @classmethod
    def _few(cls, given: Any) -> Any:
        if isinstance(given, list) and len(given) > 4:
            raise ValueError(f"at most 4 strings, not {len(given)}")
        return given

    @model_validator(mode="after")
    def _options(self) -> _Request:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self

    @property
    def stops(self) -> list[str]:
        """The strings before which an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def longest(self) -> int | None:
        """The greatest number of new tokens, where it is given."""
        return self.max_tokens


class _Text(BaseModel):
    type: Literal["text"]
    text: Str


class _Address(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    url: Str
    detail: Literal["auto", "low", "high"] | None = None  # of which there is one here


class _Picture(BaseModel):
    type: Literal["image_url"]
    image_url: _Address


class _Message(BaseModel):
    """One turn; the template decides which roles it can render.

    Fields of an answer that hold nothing are taken, since clients send back a whole message of an earlier answer.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Str | list[Annotated[_Text | _Picture, Field(discriminator="type")]]
    name: Str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def shows(self) -> bool:
        """Whether it has pictures."""
        return not isinstance(self.content, str) and any(part.type == "image_url" for part in self.content)

    def turn(self) -> dict[str, Any]:
        """Return role and content as chat templates know them, pictures in their places; Refused for one that can't be shown."""
        found: Any = self.content
        if self.shows:
            found = [
                {"type": "text", "text": part.text} if isinstance(part, _Text) else {"type": "image", "image": _shown(part)}
                for part in self.content
                if not isinstance(part, str)
            ]
        elif not isinstance(self.content, str):
            found = "".join(part.text for part in self.content if isinstance(part, _Text))
        return {"role": "system" if self.role == "developer" else self.role, "content": found}


def _shown(part: _Picture) -> dict[str, str]:
    """Return the picture of a data URL; Refused for an address, which nothing fetches, and for what is no picture."""
    if not part.image_url.url.startswith("data:"):
        raise Refused("image_url: a picture is sent as a data URL (data:image/png;base64,…); no address is fetched", "messages")
    try:
        cell = message_picture(part.image_url.url)
    except Malformed as error:
        raise Refused(str(error), "messages") from None
    if "fault" in cell:
        raise Refused(f"image_url: {cell['fault']}", "messages")
    return cell


class _Format(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class ChatRequest(_Request):
    """A request to /v1/chat/completions."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: _Format | None = None
    logprobs: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    modalities: list[Literal["text"]] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def longest(self) -> int | None:
        """The greatest number of new tokens, under either of its names."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def longest_name(self) -> str:
        """That name."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"


class CompletionRequest(_Request):
    """A request to /v1/completions: text, or ids of tokens, to be gone on from."""

    prompt: Str | list[Str] | list[int]
    logprobs: None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None
    longest_name: ClassVar[str] = "max_tokens"

    @field_validator("prompt")
    @classmethod
    def _single(cls, given: Any) -> Any:
        if isinstance(given, list) and (not given or (isinstance(given[0], str) and len(given) > 1)):
            raise ValueError(f"this server takes one prompt a request, not {len(given)}")
        return given


TEXTS_ALONE = "expected text, or a list of parts of type text; this model reads nothing else"
_FORMS = {
    "content": TEXTS_ALONE,
    "stop": "expected text that is not empty, or up to four of them",
    "prompt": "expected one text, or the ids of its tokens",
}  # fields that may have several forms, of which pydantic names each
_CAN_NOT = frozenset(
    """logprobs top_logprobs echo best_of suffix response_format tools tool_choice parallel_tool_calls functions function_call
    modalities audio prediction reasoning_effort verbosity web_search_options""".split()
)  # arguments of OpenAI's that would change the answer


def refusal(faults: list[Any], body: Any) -> Refused:
    """Return all that pydantic found as one refusal; `param` is the first field that is at fault."""
    said: dict[str, str] = {}
    for fault in faults:
        place = [str(part) for part in fault["loc"] if part != "body"]
        missing = fault["type"] == "missing" and bool(_FORMS.keys() & place[-1:])  # the field itself
        several = next((name for name in _FORMS if name in place and not missing and fault["type"] != "value_error"), "")
        place = place[: place.index(several) + 1] if several else place
        name = place[0] if place else ""
        value = body.get(name) if isinstance(body, dict) else None
        if several:
            text = f"{'.'.join(place)}: {_FORMS[several]}"
        elif not place and fault["type"] != "value_error":
            text = "expected an object of JSON, sent with the header Content-Type: application/json"
        elif name in _CAN_NOT:
            text = f"{name}: {str(value)[:60]!a}: this server can't do it"
        elif fault["type"] == "extra_forbidden":
            text = (
                f"Unrecognized request argument: {'.'.join(place)}"
                if len(place) == 1
                else f"{'.'.join(place)}: not supported here"
            )
        elif fault["type"] == "missing":
            text = f"Missing required parameter: '{'.'.join(place)}'"
        else:
            text = f"{'.'.join(place) or 'the body'}: {fault['msg'].removeprefix('Value error, ')}"
        said.setdefault(name, text)
    return Refused("; ".join(said.values()), next(iter(said)) or None)
