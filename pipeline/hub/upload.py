"""To a hub: one commit that a reader sees whole or not at all, then a tag; every failure is one plain line.

Every step looks first at what is there, so that a push that was interrupted anywhere can be repeated.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.hub import faults
from pipeline.hub.leaks import Content
from pipeline.system import hashes
from pipeline.system.errors import UserError, WorldError

T = TypeVar("T")
_LOADED = (".safetensors", ".bin", ".pt", ".json", ".jinja", ".model", ".py", ".parquet")  # a library would load it
_LONGEST_WAIT = 30.0  # seconds between two tries


@dataclass(frozen=True)
class Delivery:
    """What goes into one repository: all of its files, by their path there."""

    repo: str
    files: Mapping[str, Content]
    digests: Mapping[str, str]  # sha256 of each, from when it was packed: a file that changes after that is noticed
    tag: str
    message: str
    kind: str = "model"  # or dataset


@dataclass(frozen=True)
class Repository:
    """A repository as it is."""

    head: str
    private: bool
    files: Mapping[str, Any]  # huggingface_hub's RepoFile by path
    tags: Mapping[str, str]


class Hub:
    """A hub that is written to. `patience`: seconds for which a hub that fails or is silent is asked again."""

    def __init__(self, say: Callable[[str], None], patience: float) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # read at import; xet has no fallback where a server lacks it
        import huggingface_hub
        from huggingface_hub.utils import _http

        def client() -> Any:
            made = _http.default_client_factory()
            made.timeout = patience
            return made

        huggingface_hub.set_client_factory(client)  # the library's own waits for ever
        huggingface_hub.utils.logging.set_verbosity_error()
        self.api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        self.token: str | None = huggingface_hub.get_token()
        told = logging.getLogger(_http.__name__)
        told.handlers, told.propagate = [faults.Retries(say, self.token)], False
        told.setLevel(logging.WARNING)
        self.say, self.patience, self.user = say, patience, ""

    def connect(self) -> None:
        """Ask who the token belongs to; UserError where there is none, it is refused or may only read."""
        found = self.attempt("sign in", self.api.whoami)
        self.user = str(found["name"])
        if ((found.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise UserError(f"sign in: the token of {self.user} may only read; make one that may write, in the hub's settings")

    def attempt(self, what: str, call: Callable[[], T]) -> T:
        """Return what a call gives, tried again while the world fails; UserError or WorldError where it can't be had."""
        started, wait = time.monotonic(), 1.0
        while True:
            try:
                return call()
            except (UserError, WorldError):  # of a step inside of this one, explained already
                raise
            except Exception as error:
                verdict, text = faults.explained(error, self.user, self.token)
                if verdict == "user":
                    raise UserError(f"{what}: {text}") from None
                left = self.patience - (time.monotonic() - started)
                if verdict == "world" or left <= 0:
                    again = "; nothing is lost: the same command goes on" if verdict == "again" else ""
                    raise WorldError(f"{what}: {text}{again}") from None
                wait = min(wait, left)  # the last try comes when the patience ends
                self.say(f"{what}: {text}; tries again in {math.ceil(wait)} s")
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    def look(self, repo: str, kind: str = "model") -> Repository | None:
        """Return a repository as it is, or None where there is none that the token may see."""
        from huggingface_hub.errors import RepositoryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        def call() -> Repository | None:
            try:
                info = self.api.repo_info(repo, repo_type=kind)
            except RepositoryNotFoundError:
                return None
            assert info.sha
            tree = self.api.list_repo_tree(repo, recursive=True, revision=info.sha, repo_type=kind)
            tags = self.api.list_repo_refs(repo, repo_type=kind).tags
            files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
            return Repository(info.sha, bool(info.private), files, {tag.name: tag.target_commit for tag in tags})

        return self.attempt(f"look at {repo}", call)

    def open(self, delivery: Delivery, public: bool, force: bool) -> None:
        """Make the repository, private, if there is none; UserError if what is there forbids the push."""
        repo, kind = delivery.repo, delivery.kind
        self.attempt(f"create {repo}", lambda: self.api.create_repo(repo, repo_type=kind, private=True, exist_ok=True))
        self.attempt(f"write to {repo}", lambda: self._may_write(repo, kind))
        repository = self._repository(delivery)
        if not repository.private and not public:
            raise UserError(f"{repo}: is public; PUBLIC=1 says that this is wanted, or make it private on the hub")
        strangers = [path for path in repository.files if path.endswith(_LOADED)]
        if strangers and "manifest.json" not in repository.files and not force:
            raise UserError(
                f"{repo}: holds what tristage did not push ({', '.join(strangers[:3])}); choose another name, or FORCE=1 to put "
                "this over it (its history stays)"
            )

    def _may_write(self, repo: str, kind: str) -> None:
        """Raise the library's error where the token may not write; a server that can't be asked will say so when it is written to."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self.api.auth_check(repo, repo_type=kind, write=True)
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in (404, 405):
                raise

    def commit(self, delivery: Delivery) -> tuple[str, int]:
        """Bring a repository to what the delivery holds, by one commit; return its id and how many files changed, 0 for none.

        A file of the last push that a library would load and that is no longer part of it goes with the same commit.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        def call() -> tuple[str, int]:
            repository = self._repository(delivery)
            operations: list[Any] = [
                CommitOperationAdd(path, str(content) if isinstance(content, Path) else content)
                for path, content in delivery.files.items()
                if not same(repository.files.get(path), content, delivery.digests[path])
            ]
            gone = [path for path in repository.files if path not in delivery.files and path.endswith(_LOADED)]
            operations += [CommitOperationDelete(path) for path in gone]
            if not operations:
                return repository.head, 0
            made = self.api.create_commit(
                delivery.repo,
                operations,
                commit_message=delivery.message,
                repo_type=delivery.kind,
                parent_commit=repository.head,
            )
            return str(made.oid), len(operations)

        return self.attempt(f"push to {delivery.repo}", call)

    def tag(self, delivery: Delivery, commit: str, what: frozenset[str]) -> str:
        """Tag a commit and return the one that the tag names: an older one where only the card has changed since.

        `what`: the files that the tag stands for. Raises UserError if the tag names other ones.
        """
        repository = self._repository(delivery)
        if delivery.tag not in repository.tags:
            self._create_tag(delivery, delivery.tag, commit)
            repository = self._repository(delivery)
        named = repository.tags[delivery.tag]
        if named != commit and (others := self._others(delivery, named, what)):
            raise UserError(
                f"{delivery.repo}: the tag {delivery.tag} names another {', '.join(sorted(others))}; delete it on the hub"
            )
        return named

    def tag_more(self, delivery: Delivery, commit: str, more: frozenset[str], suffix: str) -> str:
        """Return a tag with a suffix, made at `commit`, that names `more` files beside the weights: the delivery's tag may lack them."""
        tag = f"{delivery.tag}-{suffix}"
        there = self._repository(delivery).tags.get(tag)
        if there is None:
            self._create_tag(delivery, tag, commit)
        elif others := self._others(delivery, there, more):
            raise UserError(f"{delivery.repo}: the tag {tag} names another {', '.join(sorted(others))}; delete it on the hub")
        return tag

    def _create_tag(self, delivery: Delivery, tag: str, commit: str) -> None:
        self.attempt(
            f"tag {delivery.repo}",
            lambda: self.api.create_tag(delivery.repo, tag=tag, revision=commit, repo_type=delivery.kind, exist_ok=True),
        )

    def _others(self, delivery: Delivery, commit: str, what: frozenset[str]) -> list[str]:
        """Return which of these files are missing at a commit, or other ones."""
        tree = self.attempt(f"look at {delivery.repo}", lambda: list(
            self.api.list_repo_tree(delivery.repo, recursive=True, revision=commit, repo_type=delivery.kind)
        ))  # fmt: skip
        there = {entry.path: entry for entry in tree}
        return [path for path in what if not same(there.get(path), delivery.files[path], delivery.digests[path])]

    def publish(self, delivery: Delivery) -> None:
        """Make a repository public, where it is not."""
        if self._repository(delivery).private:
            self.attempt(
                f"make {delivery.repo} public",
                lambda: self.api.update_repo_settings(delivery.repo, private=False, repo_type=delivery.kind),
            )

    def _repository(self, delivery: Delivery) -> Repository:
        repository = self.look(delivery.repo, delivery.kind)
        if repository is None:
            raise UserError(f"{delivery.repo}: is not there, or the token may not see it; make it on the hub or choose another")
        return repository


def same(there: Any, content: Content, digest: str) -> bool:
    """Say whether a file on the hub (huggingface_hub's RepoFile, or None) is the one given, `digest` being its sha256."""
    if there is None:
        return False
    if there.lfs is not None:
        return str(there.lfs.sha256) == digest
    data = content.read_bytes() if isinstance(content, Path) else content
    return str(there.blob_id) == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(content: Content) -> str:
    """Return the sha256 of a file that is about to leave, in hex."""
    return hashes.read(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
