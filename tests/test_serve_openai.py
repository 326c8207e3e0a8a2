"""The server by the official openai client: what OpenAI's API allows works, what can't be done is refused in its words."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from pipeline import ROOT
from pipeline.commands import serve
from tests.test_chat import QUESTION, answers

JSON = {"Content-Type": "application/json"}
ASKED = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def server(voices, tmp_path_factory):
    """A server of the released node: (its address, its model's name)."""
    for name in serve.MODULES:
        pytest.importorskip(name, reason=f"{name} is not installed: make setup")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    home = tmp_path_factory.mktemp("home")  # whose hub cache is not there yet
    command = [sys.executable, "-m", "pipeline.commands.serve", "--runs", voices, "--port", str(port)]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    address, end = f"http://127.0.0.1:{port}", time.time() + 90
    while time.time() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=1)
            break
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    assert process.poll() is None, process.stderr.read().decode()
    yield f"{address}/v1", str(voices / "dpo")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert f"transformers at {address}/v1, model {voices / 'dpo'}" in process.stdout.read().decode()


@pytest.fixture(scope="module")
def client(server):
    """The official client at the server, which asks only once."""
    import openai

    return openai.OpenAI(base_url=server[0], api_key="none", max_retries=0)


@pytest.fixture
def ask(client, server):
    """Ask the model that is served."""

    def call(endpoint="chat", **more):
        given = {"chat": {"messages": ASKED}, "text": {"prompt": "The cat"}}[endpoint]
        made = (client.chat.completions if endpoint == "chat" else client.completions).create
        return made(**{"model": server[1], "max_tokens": 8} | given | more)

    return call


def said(answer):
    return answer.choices[0].message.content


def test_the_openai_client_gets_the_nodes_greedy_answer(client, server, voices):
    import openai

    asked = {"model": server[1], "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
    wanted = answers(voices / "dpo", ("user", QUESTION), length=12)
    assert wanted
    assert client.chat.completions.create(**asked).choices[0].message.content == wanted
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(pieces) == wanted
    assert len(pieces) > 3
    assert client.models.list().object == "list"
    with pytest.raises(openai.NotFoundError):  # no other model is loaded from anywhere
        client.chat.completions.create(**asked | {"model": "someone/model"})


def test_greedy_without_settings_and_at_temperature_0(ask, voices):
    wanted = answers(voices / "dpo", ("user", QUESTION), length=8)
    assert said(ask()) == said(ask(temperature=0)) == said(ask(temperature=0, top_p=0.5)) == wanted


def test_temperature_and_top_p_sample(ask):
    assert len({said(ask(temperature=2.0, seed=seed)) for seed in range(6)}) > 1
    assert len({said(ask(temperature=1.0)) for _ in range(6)}) > 1  # each by draws of its own
    assert said(ask(temperature=2.0, top_p=1e-6)) == said(ask())


def test_a_seed_gives_the_same_answer_beside_other_requests(ask):
    alone = said(ask(temperature=1.5, seed=5))
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        seeds = [5, 1, 5, 2, 5, 3]
        beside = list(pool.map(lambda seed: said(ask(temperature=1.5, seed=seed)), seeds))
    assert [beside[place] for place in (0, 2, 4)] == [alone] * 3


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_string(ask, stream):
    whole = said(ask())
    stop = whole[3:6]
    wanted = whole[: whole.find(stop)]
    made = ask(stop=["never said", stop], stream=stream)
    if stream:
        chunks = list(made)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert said(made) == wanted
        assert made.choices[0].finish_reason == "stop"
        assert said(ask(stop=stop)) == wanted


def test_finish_reason_and_usage(ask, server, voices):
    from transformers import AutoTokenizer

    short = ask(max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    assert short.usage.total_tokens == short.usage.prompt_tokens + 2
    tokenizer = AutoTokenizer.from_pretrained(voices / "dpo")
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert short.usage.prompt_tokens == len(ids)
    assert ask(max_completion_tokens=3, max_tokens=None).usage.completion_tokens == 3


def test_streams_end_with_usage_where_it_is_asked_for(ask):
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], ask().usage.completion_tokens)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said(ask())
    assert all(chunk.usage is None for chunk in ask(stream=True))


def test_content_as_parts_roles_and_fields_without_bearing(ask):
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[:5]}, {"type": "text", "text": QUESTION[5:]}]}]
    assert said(ask(messages=parts)) == said(ask())
    told = [{"role": "system", "content": "Answer."}, *ASKED]
    assert said(ask(messages=told)) == said(ask(messages=[{"role": "developer", "content": "Answer."}, *ASKED]))
    assert said(ask(user="me", metadata={"a": "b"}, store=False, n=1, response_format={"type": "text"})) == said(ask())
    longer = [*ASKED, {"role": "assistant", "content": "The dog."}, {"role": "user", "content": "Sure?"}]
    assert ask(messages=longer).usage.prompt_tokens > ask().usage.prompt_tokens


def test_an_answer_is_sent_back_as_it_came_or_with_its_empty_fields(ask):
    message = ask().choices[0].message
    filled = [message.model_dump(), message, {"role": "assistant", "content": message.content}]
    assert filled[0].keys() >= {"refusal", "tool_calls", "function_call", "audio", "annotations"}
    usages = {ask(messages=[turn, *ASKED], max_tokens=2).usage.prompt_tokens for turn in filled}
    assert len(usages) == 1
    assert said(ask(modalities=["text"], safety_identifier="me", prompt_cache_key="a")) == said(ask())


def test_penalties_and_biases(ask, voices):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(voices / "dpo")
    word = tokenizer.encode("x", add_special_tokens=False)[0]
    assert said(ask(logit_bias={str(word): 100}, max_tokens=4)) == "xxxx"
    assert said(ask(logit_bias={str(word): 100}, frequency_penalty=2.0, max_tokens=4)) == "xxxx"  # 2 of 100 at most
    free = ask("text", logit_bias={str(word): 30}, presence_penalty=2.0, max_tokens=4)
    assert free.choices[0].text.startswith("x")


def test_plain_text_is_gone_on_from(ask, voices):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(voices / "dpo")
    text = ask("text")
    assert text.object == "text_completion"
    ids = [tokenizer.bos_token_id, *tokenizer.encode("The cat", add_special_tokens=False)]
    assert text.usage.prompt_tokens == len(ids)
    assert ask("text", prompt=ids).choices[0].text == ask("text", prompt=["The cat"]).choices[0].text == text.choices[0].text
    streamed = ask("text", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text.choices[0].text


def test_models_are_listed(client, server):
    assert [model.id for model in client.models.list()] == [server[1]]
    assert client.models.retrieve(server[1]).id == server[1]


WRONG = {
    "n": ({"n": 2}, 400, "n", "one answer"),
    "temperature below": ({"temperature": -0.1}, 400, "temperature", "greater than or equal to 0"),
    "temperature above": ({"temperature": 2.1}, 400, "temperature", "less than or equal to 2"),
    "temperature as text": ({"temperature": "hot"}, 400, "temperature", "number"),
    "top_p": ({"top_p": 0}, 400, "top_p", "greater than 0"),
    "max_tokens": ({"max_tokens": 0}, 400, "max_tokens", "at least|greater than or equal to 1"),
    "too many": ({"max_tokens": 100_000}, 400, "max_tokens", "maximum context length"),
    "too long": ({"messages": [{"role": "user", "content": "cat " * 3000}]}, 400, "messages", "maximum context length"),
    "no messages": ({"messages": []}, 400, "messages", "at least 1"),
    "text for messages": ({"messages": "hello"}, 400, "messages", "list"),
    "no content": ({"messages": [{"role": "user"}]}, 400, "messages", "expected text|content"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]}, 400, "messages",
                  "parts of type text"),
    "role": ({"messages": [{"role": "cat", "content": "a"}]}, 400, "messages", "role"),
    "tool role": ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}, 400, "messages", "role"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools", "can't do it"),
    "logprobs": ({"logprobs": True}, 400, "logprobs", "can't do it"),
    "response_format": ({"response_format": {"type": "json_object"}}, 400, "response_format", "can't do it"),
    "top_logprobs": ({"top_logprobs": 2}, 400, "top_logprobs", "can't do it"),
    "functions": ({"functions": [{"name": "f"}]}, 400, "functions", "can't do it"),
    "speech": ({"modalities": ["text", "audio"]}, 400, "modalities", "can't do it"),
    "effort": ({"reasoning_effort": "low"}, 400, "reasoning_effort", "can't do it"),
    "stop": ({"stop": ""}, 400, "stop", "not empty"),
    "five stops": ({"stop": list("abcde")}, 400, "stop", "up to four|at most 4"),
    "stream_options": ({"stream_options": {"include_usage": True}}, 400, None, "only allowed when stream"),
    "frequency_penalty": ({"frequency_penalty": 3}, 400, "frequency_penalty", "less than or equal to 2"),
    "logit_bias": ({"logit_bias": {"cat": 1}}, 400, "logit_bias", "ids of tokens"),
    "a long id": ({"logit_bias": {"9" * 5000: 1}}, 400, "logit_bias", "ids of tokens"),
    "model": ({"model": "gpt-4o"}, 404, "model", "does not exist"),
    "unknown": ({"extra_body": {"top_k": 5}}, 400, "top_k", "Unrecognized request argument"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_as_openai_refuses_it(ask, name):
    import re

    import openai

    given, status, param, text = WRONG[name]
    with pytest.raises(openai.APIStatusError) as found:
        ask(**given)
    assert found.value.status_code == status
    assert isinstance(found.value, openai.NotFoundError if status == 404 else openai.BadRequestError)
    assert found.value.param == param
    assert found.value.type == "invalid_request_error"
    assert re.search(text, found.value.body["message"])
    assert said(ask())  # and goes on


def test_wrong_texts_to_go_on_from(ask):
    import openai

    for given in ({"prompt": ["a", "b"]}, {"prompt": []}, {"prompt": [10**6]}, {"echo": True}, {"best_of": 3}, {"suffix": "a"}):
        with pytest.raises(openai.BadRequestError):
            ask("text", **given)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/chat/completions", b"{", 400),
        ("POST", "/chat/completions", b"[1]", 400),
        ("POST", "/chat/completions", b"{}", 400),
        ("POST", "/chat/completions", b"", 400),
        ("POST", "/chat/completions", b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}', 400),
        ("GET", "/chat/completions", None, 405),
        ("POST", "/nothing", b"{}", 404),
        ("GET", "/models/other", None, 404),
    ],
)
def test_bodies_of_errors(server, method, path, body, status):
    asked = urllib.request.Request(server[0] + path, body, JSON, method=method)
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(asked)
    assert found.value.code == status
    assert set(json.loads(found.value.read())["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("key", ["content", "name"])
def test_half_of_a_surrogate_pair_is_refused(server, key):
    message = {"role": "user", "content": "a"} | {key: "\ud800"}
    for path, given in (("chat/completions", {"messages": [message]}), ("completions", {"prompt": "\ud800"})):
        asked = urllib.request.Request(f"{server[0]}/{path}", json.dumps({"model": server[1]} | given).encode(), JSON)
        with pytest.raises(urllib.error.HTTPError) as found:
            urllib.request.urlopen(asked)
        assert found.value.code == 400
        assert "\\ud" in json.loads(found.value.read())["error"]["message"]


def test_a_body_without_its_header_is_told_what_is_missing(server):
    asked = urllib.request.Request(f"{server[0]}/chat/completions", b"{}", {"Content-Type": "text/plain"})
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(asked)
    assert "Content-Type: application/json" in json.loads(found.value.read())["error"]["message"]


def test_a_client_that_leaves_does_not_hold_up_the_others(ask):
    for _ in range(3):
        stream = ask(stream=True, max_tokens=30)
        next(iter(stream))
        stream.close()
    assert said(ask())


def test_eight_clients_at_once(ask):
    alone = said(ask())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: said(ask()), range(16))) == [alone] * 16


def test_another_client_of_the_protocol_notices_no_difference(server, ask):
    """huggingface_hub's, which shares no code with OpenAI's."""
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import BadRequestError

    client = InferenceClient(base_url=server[0], api_key="none")
    asked = {"messages": ASKED, "model": server[1], "max_tokens": 8}
    whole = client.chat_completion(**asked)
    assert said(whole) == said(ask())
    assert whole.usage.total_tokens == ask().usage.total_tokens
    chunks = list(client.chat_completion(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said(whole)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert said(client.chat_completion(**asked, temperature=1.5, seed=5)) == said(ask(temperature=1.5, seed=5))
    assert said(client.chat_completion(**asked, stop=[said(whole)[3:6]])) == said(ask(stop=said(whole)[3:6]))
    with pytest.raises(BadRequestError, match="less than or equal to 2"):
        client.chat_completion(**asked, temperature=2.1)
