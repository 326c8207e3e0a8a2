"""Nothing leaks: a list of the files that may leave, a record without this machine's names, a search for secrets."""

from __future__ import annotations

import getpass
import json
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from pipeline import ROOT
from pipeline.system.errors import UserError

Content = Path | bytes
_WEIGHTS = r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
_TOKENIZER = (
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|(?:pre)?processor_config)\.json|vocab\.txt|merges\.txt"
    r"|(spiece|tokenizer|sentencepiece\.bpe)\.model|chat_template\.jinja"
)
ALLOWED = re.compile(
    rf"(generator/)?(config\.json|{_WEIGHTS}|generation_config\.json)|{_TOKENIZER}"
    r"|modules\.json|1_Pooling/config\.json|vectors\.txt"  # what sentence-transformers and word2vec readers load
)
ADAPTER = re.compile(r"adapter/(adapter_config\.json|adapter_model\.safetensors)")
_LEARNED = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "vectors.txt")  # pieces of text: no paths to look for

_SECRETS = {
    "a hub token": r"\bhf_[A-Za-z0-9]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS access key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    "an API key (sk-…)": r"(?<![\w-])sk-(proj-|ant-|or-)?[A-Za-z0-9_-]{24,}",
    "a Google API key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20}",
    "a Weights & Biases key": r"(?i)\bwandb[_-]?(api[_-]?)?key\W{1,4}[0-9a-f]{40}\b",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]+@",
    "a secret that is assigned": r"(?i)\b(api_?key|secret_?key|access_?token|auth_?token|password)\b[\"']?\s*[:=]\s*[\"'][^\"'\s]{12,}[\"']",
}  # fmt: skip
_HOMES = r"(/home/|/Users/|[A-Za-z]:\\+Users\\+)[\w.-]+"
_PATH = re.compile(r"(?<![\w/.:~])(~|[A-Za-z]:)?[/\\][^\s'\",;:()\[\]{}]*[/\\][^\s'\",;:()\[\]{}]*")
_ABSOLUTE = re.compile(r"(file:|~|[A-Za-z]:\\|[/\\]|\.\.[/\\])")


def may_leave(name: str, adapter: bool = False) -> bool:
    """Say whether a file of a node's folder is on the list of those that leave."""
    return bool(ALLOWED.fullmatch(name) or (adapter and ADAPTER.fullmatch(name)))


def _last(path: str) -> str:
    return PureWindowsPath(path.rstrip("/\\")).name or "a folder"


def _names() -> re.Pattern[str] | None:
    """Return a pattern of what this machine and its user are called."""
    host = socket.gethostname()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a user of that number
        user = ""
    names = {name for name in (host, host.split(".")[0], user, Path.home().name) if len(name) > 1}
    return re.compile(rf"(?i)(?<![A-Za-z0-9])({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})(?![A-Za-z0-9])") if names else None  # fmt: skip


def without_paths(value: Any) -> Any:
    """Return a JSON value whose paths are cut to their last name and that names neither host nor user."""
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    return _nameless(_last(value)) if _ABSOLUTE.match(value) else sentence(value)


def sentence(text: str) -> str:
    """Return a text for people whose paths are cut to their last name and that names neither host nor user."""
    return _nameless(_PATH.sub(lambda found: _last(found[0]), text))


def _nameless(text: str) -> str:
    names = _names()
    return names.sub("…", text) if names else text


def clean(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's record as it may leave: without the paths, user and host names of this machine.

    A parent that lies beside the node keeps its name as its path. `request` is withheld: its digest is `inputs`, and what it says is in `config`.
    """
    found = {key: value for key, value in record.items() if key != "request"}
    found["parents"] = [
        {key: _last(value) if key == "path" else value for key, value in made.items() if key != "path" or made["beside"]}
        for made in record["parents"]
    ]
    recipe = dict(record["recipe"])
    recipe["sources"] = [[Path(name).name if recipe.get("data") else name, sha256] for name, sha256 in recipe["sources"]]
    told = {key: record[key] for key in ("config", "overrides", "evaluation") if key in record} | {"recipe": recipe}
    for key, value in told.items():
        found[key] = without_paths(value)
    return found


def _texts(name: str, content: Content) -> Iterator[str]:
    """Yield what can be read in a file: all of it, or of safetensors the header with its metadata."""
    if not name.endswith(".safetensors"):
        yield (content.read_bytes() if isinstance(content, Path) else content).decode("utf-8", errors="replace")
        return
    if isinstance(content, bytes):
        yield content[8 : 8 + int.from_bytes(content[:8], "little")].decode("utf-8", errors="replace")
    else:
        with content.open("rb") as file:
            yield file.read(int.from_bytes(file.read(8), "little")).decode("utf-8", errors="replace")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{key}: "
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    else:
        yield str(value)


def _unescaped(name: str, text: str) -> str:
    """Return a text together with the strings of its JSON, in which a slash, a quote or any letter may be escaped."""
    if not name.endswith((".json", ".safetensors")):
        return text
    try:
        return text + "\n" + "\n".join(_strings(json.loads(text)))
    except ValueError:
        return text


def secrets(text: str, token: str | None = None) -> list[str]:
    """Return the kinds of secrets in a text; `token` is the one that is in use, of whatever form."""
    found = [kind for kind, pattern in _SECRETS.items() if re.search(pattern, text)]
    return [*found, "the hub token in use"] if token and len(token) > 5 and token in text else found


def _machine(text: str) -> bool:
    """Say whether a text holds a path of this machine or of somebody's home."""
    here = {str(folder) for folder in (Path.home(), ROOT, Path.cwd()) if len(folder.parts) > 1}
    return bool(re.search(_HOMES, text)) or any(re.search(rf"(?<![\w/]){re.escape(path)}(?![\w-])", text) for path in here)


def stop(where: str, files: Mapping[str, Content], token: str | None = None) -> None:
    """Raise UserError naming file and kind, never the secret, of everything that must not leave."""
    faults: list[str] = []
    for name, content in files.items():
        kinds: dict[str, None] = {}
        for text in _texts(name, content):
            readable = _unescaped(name, text)
            kinds |= dict.fromkeys(secrets(readable, token))
            if Path(name).name not in _LEARNED and _machine(readable):
                kinds["a path of this machine"] = None
        faults += [f"{where}: {name} holds {kind}; nothing was pushed" for kind in kinds]
    if faults:
        raise UserError(*faults)


def row_secrets(rows: Iterable[Mapping[str, Any]], token: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield number and kind of every secret in rows of data."""
    for number, row in enumerate(rows, start=1):
        for kind in secrets(json.dumps(row, ensure_ascii=False), token):
            yield number, kind
