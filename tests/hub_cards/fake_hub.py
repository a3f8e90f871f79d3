"""A small server that speaks as much of the Hub's HTTP API as pushing and loading need, for the real client.

Written from what `huggingface_hub` sends: create a repository, check the card, ask which files go to large storage,
upload those, commit, and read files back.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLACES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
LARGE = (".safetensors", ".jpg", ".parquet", ".onnx")
PREFIX = r"(?P<kind>datasets/|spaces/)?(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """Files of the newest commit: bytes, by path. `commits` has a message and the paths of each."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[tuple[str, list[str]]] = field(default_factory=list)

    @property
    def revision(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


class FakeHub(ThreadingHTTPServer):
    """`with FakeHub(token) as hub:` listens on 127.0.0.1 at `hub.url`.

    Attributes:
        repos: By `OWNER/NAME`, with `datasets/` in front for a dataset, `spaces/` for a Space.
        stored: Uploaded large files by their SHA-256.
        uploads: How many bytes were uploaded to large storage, in order.
        broken: Requests with a line that matches this pattern get the status `broken_status`.
    """

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.uploads: list[int] = []
        self.broken: str | None = None
        self.broken_status = 403
        self.unknown: list[str] = []

    def __enter__(self) -> "FakeHub":
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        if not isinstance(value, bytes):
            self.send_header("Content-Type", "application/json")
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer(self) -> None:
        body = self.body()
        path = self.path.partition("?")[0]
        request = f"{self.command} {path}"
        if self.server.broken and re.search(self.server.broken, request):
            return self.reply({"error": "something broke"}, self.server.broken_status)
        upload = re.fullmatch(r"PUT /storage/(?P<oid>\w{64})", request)
        if upload:
            # As on the Hub, this address is signed, and whoever has it needs no token.
            assert hashlib.sha256(body).hexdigest() == upload["oid"]
            self.server.stored[upload["oid"]] = body
            self.server.uploads.append(len(body))
            return self.reply()
        if self.command in ("POST", "PUT") and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.reply({"error": "Invalid credentials"}, 401)
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, request)
            if match:
                return method(self, body, **match.groupdict())
        if request == "HEAD /":  # a command asks whether the Hub can be reached
            return self.reply()
        self.server.unknown.append(request)
        return self.reply({"error": f"no such page: {request}"}, 404)

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        kind = {"dataset": "datasets/", "space": "spaces/"}.get(wanted.get("type"), "")
        name = f"{kind}{wanted.get('organization') or 'somebody'}/{wanted['name']}"
        answer = {"url": f"{self.server.url}/{name}", "name": name.removeprefix(kind)}
        if name in self.server.repos:
            return self.reply({"error": "You already created this repo", **answer}, 409)
        self.server.repos[name] = Repo(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return self.reply(answer)

    def nothing(self, body: bytes) -> None:
        self.reply({})

    def whoami(self, body: bytes) -> None:
        self.reply({"type": "user", "name": "somebody", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate(self, body: bytes) -> None:
        card = json.loads(body)["content"]
        self.reply({"errors": [] if card.startswith("---\n") else [{"message": "no metadata"}], "warnings": []})

    def preupload(self, body: bytes, kind: str, repo: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.reply({"files": files})

    def batch(self, body: bytes, kind: str | None, repo: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.stored:
                found["actions"] = {
                    "upload": {"href": f"{self.server.url}/storage/{wanted['oid']}"},
                    "verify": {"href": f"{self.server.url}/api/verify"},
                }
            objects.append(found)
        self.reply({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def verify(self, body: bytes) -> None:
        known = json.loads(body)["oid"] in self.server.stored
        self.reply({}, 200 if known else 404)

    def commit(self, body: bytes, kind: str, repo: str) -> None:
        target = self.server.repos[PLACES[kind] + repo]
        message, files = "", {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        target.files.update(files)
        target.commits.append((message, sorted(files)))
        self.reply(
            {
                "success": True,
                "commitOid": target.revision,
                "commitUrl": f"{self.server.url}/{repo}/commit/{target.revision}",
                "hookOutput": "",
            }
        )

    def info(self, body: bytes, kind: str, repo: str) -> None:
        target = self.server.repos.get(PLACES[kind] + repo)
        if target is None:
            return self.reply({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": name} for name in target.files]
        return self.reply({"_id": "1", "id": repo, "sha": target.revision, "siblings": siblings, "private": False})

    def tree(self, body: bytes, kind: str, repo: str) -> None:
        target = self.server.repos[PLACES[kind] + repo]
        self.reply(
            [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in target.files.items()
            ]
        )

    def resolve(self, body: bytes, kind: str | None, repo: str, revision: str, path: str) -> None:
        target = self.server.repos.get((kind or "") + repo)
        if target is None:
            return self.reply({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        commit = {"X-Repo-Commit": target.revision}
        if path not in target.files:
            return self.reply({"error": "Entry not found"}, 404, {**commit, "X-Error-Code": "EntryNotFound"})
        data = target.files[path]
        return self.reply(data, headers={**commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})


API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = (
    (r"POST /api/repos/create", Handler.create),
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"GET /api/agent-harnesses", Handler.nothing),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"POST {API}/preupload/main", Handler.preupload),
    (rf"POST /{PREFIX}\.git/info/lfs/objects/batch", Handler.batch),
    (r"POST /api/verify", Handler.verify),
    (rf"POST {API}/commit/main", Handler.commit),
    (rf"GET {API}(?:/revision/\w+)?", Handler.info),
    (rf"GET {API}/tree/\w+.*", Handler.tree),
    (rf"(?:GET|HEAD) /{PREFIX}/resolve/(?P<revision>\w+)/(?P<path>.+)", Handler.resolve),
)
