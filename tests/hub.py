"""A small hub for tests: the protocol that `huggingface_hub` speaks, on loopback, with faults on demand.

    python tests/hub.py 8999

Models and data sets in memory; tokens `hf_test` (user me), `hf_other` (user other), and two of me that may not write, `hf_read` and `hf_fine`. A commit is all or
nothing and takes only large files that were uploaded whole, as on the real one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKENS = {"hf_test": "me", "hf_other": "other", "hf_read": "me", "hf_fine": "me"}
READING = {"hf_read": "read", "hf_fine": "fineGrained"}  # tokens that may not write, and what the hub calls their role
SIGNATURE = "X-Amz-Signature=5ecre7"  # of an upload's address: whoever has it may write, so no log may show it
_LARGE = (".safetensors", ".parquet", ".bin", ".png")
_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class File:
    """One file of a commit."""

    data: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def oid(self) -> str:
        content = self.pointer if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass
class Repo:
    """A repository: its commits in order, the newest last, and its tags."""

    kind: str
    name: str
    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def commit(self, files: dict[str, File]) -> str:
        said = json.dumps([self.kind, self.name, len(self.commits), {path: file.oid for path, file in files.items()}])
        oid = hashlib.sha1(said.encode()).hexdigest()
        self.commits[oid] = files
        return oid

    def resolve(self, revision: str) -> str:
        found = {"main": self.head, **self.tags, **{oid: oid for oid in self.commits}}.get(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return found


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, text: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = (
            status,
            {"X-Error-Message": text, **({"X-Error-Code": code} if code else {}), **(headers or {})},
        )


@dataclass
class Fault:
    """What goes wrong with the next requests that fit: a status, a cut connection, a lost answer, or slowness."""

    pattern: str  # found in "METHOD /path"
    kind: str = "status"  # status, cut (half of the body is read), lost (done, but no answer), slow
    times: int = 1
    status: int = 500
    text: str = "Internal error"
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


class Hub(ThreadingHTTPServer):
    """The server and what it holds."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.hold = threading.RLock()
        self.counts: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> Hub:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def handle_error(self, request, client_address) -> None:
        """A client that was killed is no news; anything else is a fault of this server."""
        if not isinstance(sys.exception(), (ConnectionError, ValueError)):
            super().handle_error(request, client_address)

    def fail(self, pattern: str, **more) -> None:
        self.faults.append(Fault(pattern, **more))

    def fault(self, line: str) -> Fault | None:
        with self.hold:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def visible(self):
        """Yield repository, revision and files of all that a reader can ask for."""
        for repo in self.repos.values():
            for oid, files in repo.commits.items():
                yield repo.name, oid, files


def checked(card: str) -> list[str]:
    """Return what is wrong with a card's metadata, by the rules that the hub documents."""
    match = re.match(r"^---\n(.*?)\n---\n", card, flags=re.DOTALL)
    if not match:
        return ["no metadata"]
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    faults = []
    if not re.fullmatch(r"[a-z0-9.\-]+", str(data.get("license", ""))):
        faults.append('"license" must be one of the known licences')
    for key in ("language", "tags", "datasets", "base_model", "metrics"):
        values = data.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str) or not value:
                faults.append(f'"{key}" must be text or a list of texts')
            if key == "language" and not re.fullmatch(r"[a-z]{2,3}|code|multilingual", str(value)):
                faults.append(f'"language" {value}: not an ISO 639 code')
            if key in ("base_model", "datasets") and not re.fullmatch(r"[\w.\-]+/[\w.\-]+|[\w.\-]+", str(value)):
                faults.append(f'"{key}" {value}: not an id of the hub')
    if data.get("base_model_relation", "finetune") not in ("adapter", "merge", "quantized", "finetune"):
        faults.append('"base_model_relation" is unknown')
    for model in data.get("model-index", []):
        for number, result in enumerate(model["results"]):
            where = f'"model-index[0].results[{number}]'
            faults += [f'{where}.{key}" is required' for key in ("task", "dataset", "metrics") if not result.get(key)]
            faults += [f'{where}.task.type" is required'] * (not result.get("task", {}).get("type"))
            faults += [
                f'{where}.dataset.{key}" is required' for key in ("type", "name") if not result.get("dataset", {}).get(key)
            ]
            faults += [
                f'{where}.metrics" need type and value' for item in result["metrics"] if not {"type", "value"} <= set(item)
            ]
    return faults


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def user(self) -> str:
        if self.word and self.word not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS.get(self.word, "")

    @property
    def word(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self, kind: str, name: str) -> dict:
        self.repo(kind, name, write=True)
        return {"value": {}}

    def answer(self, value=None, status: int = 200, body: bytes | None = None, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        found = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        for key, text in found.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_one(self) -> None:
        hub = self.server
        path = urlsplit(self.path).path
        line = f"{self.command} {path}"
        hub.log.append(line)
        fault = hub.fault(line)
        size = int(self.headers.get("Content-Length", 0))
        if fault and fault.kind == "cut":
            self.rfile.read(size // 2)
            self.close_connection = True
            self.connection.close()
            return
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b""
            while length := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self.body = self.rfile.read(size)  # before an error too, or the next request on this connection is garbled
        if len(self.body) < size and "Transfer-Encoding" not in self.headers:
            return  # the client died
        try:
            if fault and fault.kind == "slow":
                time.sleep(fault.seconds)
            if fault and fault.kind == "status":
                raise Refusal(fault.status, fault.text, headers=fault.headers)
            with hub.hold:
                found = self.route(unquote(path))
            if fault and fault.kind == "lost":
                self.close_connection = True
                self.connection.close()
                return
            self.answer(**found)
        except Refusal as refusal:
            self.answer({"error": str(refusal)}, refusal.status, headers=refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = lambda self: self.handle_one()

    def route(self, path: str) -> dict:
        for method, pattern, handler in ROUTES:
            if method in (self.command, "ANY") and (match := re.fullmatch(pattern, path)):
                return handler(self, **match.groupdict())
        raise Refusal(404, f"no such page: {path}")

    def repo(self, kind: str, name: str, write: bool = False) -> Repo:
        user, found = self.user(), self.server.repos.get((kind.rstrip("s") or "model", name))
        owner = name.split("/")[0]
        if found is None or (found.private and user != owner):
            raise Refusal(404 if user else 401, "Repository not found", code="RepoNotFound")
        if write and (user != owner or self.word in READING):
            raise Refusal(403, f"You don't have the rights to write to {name}")
        return found

    def whoami(self) -> dict:
        if not (user := self.user()):
            raise Refusal(401, "Invalid username or password.")
        role = READING.get(self.word, "write")
        return {
            "value": {"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token", "accessToken": {"role": role}}}
        }

    def create(self) -> dict:
        asked, user = json.loads(self.body), self.user()
        owner, kind = asked.get("organization") or user, asked.get("type", "model")
        name = f"{owner}/{asked['name']}"
        if not user:
            raise Refusal(401, "Invalid username or password.")
        if owner != user:
            raise Refusal(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}")
        prefix = "" if kind == "model" else f"{kind}s/"
        there = (kind, name) in self.server.repos
        if not there and self.word in READING:
            raise Refusal(403, "this token may not create a repository")
        if not there:
            self.server.repos[kind, name] = Repo(kind, name, asked.get("visibility") == "private")
            self.server.repos[kind, name].commit({".gitattributes": File(_ATTRIBUTES, False)})
        found = {"url": f"{self.server.url}/{prefix}{name}", "name": name}
        return {
            "value": {**found, **({"error": "You already created this repo"} if there else {})},
            "status": 409 if there else 200,
        }

    def settings(self, kind: str, name: str) -> dict:
        repo, asked = self.repo(kind, name, write=True), json.loads(self.body)
        repo.private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
        return {"value": {"private": repo.private}}

    def info(self, kind: str, name: str, revision: str | None = None) -> dict:
        repo = self.repo(kind, name)
        sha = repo.resolve(revision or "main")
        key = "modelId" if kind == "models" else "_name"
        return {"value": {
            "_id": "0", "id": name, key: name, "author": name.split("/")[0], "sha": sha, "private": repo.private, "gated": False,
            "disabled": False, "tags": [], "downloads": 0, "likes": 0, "createdAt": "2026-01-01T00:00:00.000Z",
            "lastModified": "2026-01-01T00:00:00.000Z", "siblings": [{"rfilename": path} for path in repo.commits[sha]],
        }}  # fmt: skip

    def refs(self, kind: str, name: str) -> dict:
        repo = self.repo(kind, name)
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in repo.tags.items()]
        return {"value": {
            "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head}], "converts": [], "tags": tags,
        }}  # fmt: skip

    @staticmethod
    def entry(path: str, file: File) -> dict:
        large = {"lfs": {"oid": file.sha256, "size": len(file.data), "pointerSize": len(file.pointer)}} if file.large else {}
        return {"type": "file", "path": path, "size": len(file.data), "oid": file.oid, **large}

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> dict:
        repo = self.repo(kind, name)
        start = f"{folder}/" if folder else ""
        found = {path: file for path, file in repo.commits[repo.resolve(revision)].items() if path.startswith(start)}
        if folder and not found:
            raise Refusal(404, f"{folder} does not exist on {revision}", code="EntryNotFound")
        deep = parse_qs(urlsplit(self.path).query).get("recursive", ["False"])[0].lower() in ("true", "1")
        entries, folders = [], set()
        for path, file in found.items():
            parts = path.removeprefix(start).split("/")
            folders |= {start + "/".join(parts[:depth]) for depth in range(1, len(parts))}
            entries += [self.entry(path, file)] if len(parts) == 1 or deep else []
        kept = [name for name in folders if deep or "/" not in name.removeprefix(start)]
        return {"value": [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(kept)] + entries}

    def paths(self, kind: str, name: str, revision: str) -> dict:
        repo = self.repo(kind, name)
        there = repo.commits[repo.resolve(revision)]
        form = "json" not in self.headers.get("Content-Type", "")
        asked = parse_qs(self.body.decode())["paths"] if form else json.loads(self.body)["paths"]
        return {"value": [self.entry(path, there[path]) for path in asked if path in there]}

    def commits(self, kind: str, name: str, revision: str) -> dict:
        repo = self.repo(kind, name)
        repo.resolve(revision)
        date = "2026-01-01T00:00:00.000Z"
        return {"value": [
            {"id": oid, "title": "a commit", "message": "", "date": date, "authors": []} for oid in reversed(repo.commits)
        ]}  # fmt: skip

    def preupload(self, kind: str, name: str, revision: str) -> dict:
        repo = self.repo(kind, name, write=True)
        there, found = repo.commits[repo.resolve(revision)], []
        for asked in json.loads(self.body)["files"]:
            mode = "lfs" if asked["path"].endswith(_LARGE) or asked["size"] > 10_000_000 else "regular"
            old = there.get(asked["path"])
            oid = {"oid": old.etag} if old else {}
            found.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return {"value": {"files": found}}

    def batch(self, name: str, kind: str | None = None) -> dict:
        self.repo(kind or "models", name, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.url}/upload/{asked['oid']}?{SIGNATURE}"}
            verify = {"href": f"{self.server.url}/verify/{asked['oid']}"}
            actions = {} if asked["oid"] in self.server.blobs else {"actions": {"upload": upload, "verify": verify}}
            objects.append({**asked, **actions})
        return {"value": {"transfer": "basic", "objects": objects}}

    def upload(self, oid: str) -> dict:
        if SIGNATURE not in self.path or hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "XAmzContentSHA256Mismatch")
        self.server.blobs[oid] = self.body
        return {"value": {}}

    def verify(self, oid: str) -> dict:
        if len(self.server.blobs.get(oid, b"")) != json.loads(self.body)["size"]:
            raise Refusal(422, "not the size that was announced")
        return {"value": {"message": "Size and oid are correct"}}

    def commit(self, kind: str, name: str, revision: str) -> dict:
        repo = self.repo(kind, name, write=True)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if revision != "main" or not header.get("summary"):
            raise Refusal(400, "a commit needs a summary and goes to main")
        if header.get("parentCommit", repo.head) != repo.head:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[repo.head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = File(self.server.blobs[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refusal(400, f"unknown operation {line['key']}")
        oid = repo.commit(files)
        return {"value": {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"}}

    def tag(self, kind: str, name: str, revision: str) -> dict:
        repo, asked = self.repo(kind, name, write=True), json.loads(self.body)
        if asked["tag"] in repo.tags:
            raise Refusal(409, f"Tag {asked['tag']} already exists")
        repo.tags[asked["tag"]] = repo.resolve(revision)
        return {"value": {}}

    def validate(self) -> dict:
        faults = [{"message": text} for text in checked(json.loads(self.body)["content"])]
        return {"value": {"errors": faults, "warnings": []}, "status": 400 if faults else 200}

    def resolve(self, name: str, revision: str, file: str, kind: str | None = None) -> dict:
        repo = self.repo(kind or "models", name)
        sha = repo.resolve(revision)
        found = repo.commits[sha].get(file)
        if found is None:
            raise Refusal(404, f"Entry not found: {file}", code="EntryNotFound", headers={"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{found.oid}"', "Accept-Ranges": "bytes"}
        if found.large:
            headers |= {"X-Linked-Etag": f'"{found.sha256}"', "X-Linked-Size": str(len(found.data))}
        return self.ranged(found.data, headers)

    def ranged(self, data: bytes, headers: dict[str, str]) -> dict:
        headers |= {"Content-Type": "application/octet-stream"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            if start >= len(data):
                raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{len(data)}"})
            part = f"bytes {start}-{end}/{len(data)}"
            return {"body": data[start : end + 1], "status": 206, "headers": headers | {"Content-Range": part}}
        return {"body": data, "headers": headers}


_API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_WEB = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+?)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("PUT", f"{_API}/settings", Handler.settings),
    ("GET", f"{_API}/auth-check/write", Handler.may_write),
    ("ANY", f"{_API}(?:/revision/(?P<revision>[^/]+))?", Handler.info),
    ("GET", f"{_API}/refs", Handler.refs),
    ("GET", f"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", Handler.tree),
    ("POST", f"{_API}/paths-info/(?P<revision>[^/]+)", Handler.paths),
    ("GET", f"{_API}/commits/(?P<revision>[^/]+)", Handler.commits),
    ("POST", f"{_API}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", f"{_API}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", f"{_API}/tag/(?P<revision>[^/]+)", Handler.tag),
    ("POST", rf"{_WEB}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/upload/(?P<oid>[0-9a-f]{64})", Handler.upload),
    ("POST", "/verify/(?P<oid>[0-9a-f]{64})", Handler.verify),
    ("ANY", rf"{_WEB}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", Handler.resolve),
]


if __name__ == "__main__":
    hub = Hub(int(sys.argv[1]))
    print(f"a hub for tests on {hub.url}; HF_ENDPOINT={hub.url} HF_TOKEN=hf_test", flush=True)
    hub.serve_forever()
