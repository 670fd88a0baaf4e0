"""A server on this machine that speaks the hub's interface, as far as magmerge uses it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".gguf")
"""Endings of files that are kept as large ones, and served from elsewhere."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repo:
    """A model: its commits, each a table of files, and the names of commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        content = "".join(f"{name}{sha256(data)}" for name, data in sorted(files.items()))
        commit = hashlib.sha1(f"{len(self.commits)}{content}".encode()).hexdigest()
        self.commits[commit] = files
        self.refs[branch] = commit
        return commit

    def resolved(self, revision: str) -> str | None:
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class Hub:
    """The models that are served, what was asked for, and what goes wrong."""

    repos: dict[str, Repo] = field(default_factory=dict)
    token: str = "hf_SECRETtokenSECRET"
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    drops: dict[str, list[int]] = field(default_factory=dict)
    """By the name of a file: after how many bytes its next answers end."""
    busy: int = 0
    """How many of the next requests of ranges are answered with 503."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, name: str, folder: Path, **more: Any) -> str:
        """A folder as a model's first or next commit."""
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        repo = self.repos.setdefault(name, Repo(**more))
        for data in files.values():
            self.blobs[sha256(data)] = data
        return repo.commit(files)

    def fetched(self, ending: str) -> list[str]:
        """The files of this ending that were got, by GET."""
        got = [urlsplit(path).path for method, path, _ in self.asked if method == "GET"]
        return [path for path in got if path.endswith(ending)]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, self.path, dict(self.headers)))
        cdn = re.fullmatch(r"/cdn/([0-9a-f]{64})/(.+)", path)
        if cdn:
            # Signed addresses are given to whoever has them; a token does not belong here.
            assert "Authorization" not in self.headers
            self._content(self.hub.blobs[cdn[1]], {"ETag": f'"{cdn[1]}"'}, cdn[2])
            return
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|refs)(?:/(.+))?)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/((?:refs/pr/)?[^/]+)/(.+)", path)
        match = api or file
        if match is None:
            self._refuse(404, "EntryNotFound")
            return
        repo = self._repo(match[1], content=file is not None)
        if repo is None:
            return
        if api and api[2] == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in repo.refs.items()
            ]
            self._json({"branches": branches, "tags": [], "converts": []})
            return
        revision = (api[3] if api else file[2]) or "main"  # type: ignore[index]
        commit = repo.resolved(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return
        files = repo.commits[commit]
        if api:
            told = [self._told(name, data, api[2] == "tree") for name, data in files.items()]
            info = {"id": api[1], "sha": commit, "siblings": told, "gated": repo.gated}
            self._json(told if api[2] == "tree" else info)
        elif file[3] not in files:  # type: ignore[index]
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        else:
            self._file(file[3], files[file[3]], commit)  # type: ignore[index]

    def _told(self, name: str, data: bytes, tree: bool) -> dict[str, Any]:
        told: dict[str, Any] = {"size": len(data)}
        oid = hashlib.sha1(data).hexdigest()
        if name.endswith(LARGE):
            lfs = {"size": len(data), "pointerSize": 130}
            told["lfs"] = {**lfs, "oid": sha256(data)} if tree else {**lfs, "sha256": sha256(data)}
        if tree:
            return {"type": "file", "path": name, "oid": oid, **told}
        return {"rfilename": name, "blobId": oid, **told}

    def _file(self, name: str, data: bytes, commit: str) -> None:
        headers = {"X-Repo-Commit": commit}
        if not name.endswith(LARGE):
            self._content(data, {**headers, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, name)
            return
        digest = sha256(data)
        # Another host, as the real one's storage is.
        place = f"http://localhost:{self.hub.port}/cdn/{digest}/{name}"
        self._answer(
            302,
            b"",
            {
                **headers,
                "Location": place,
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
            },
        )

    def _content(self, data: bytes, headers: dict[str, str], name: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        code, part = 200, data
        if asked:
            if self.hub.busy:
                self.hub.busy -= 1
                self._answer(503, b"", {})
                return
            start, stop = int(asked[1]), int(asked[2] or len(data) - 1) + 1
            code, part = 206, data[start:stop]
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        drops = self.hub.drops.get(name, [])
        kept = drops.pop(0) if drops and self.command == "GET" else len(part)
        self.hub.sent[name] = self.hub.sent.get(name, 0) + (
            min(kept, len(part)) if self.command == "GET" else 0
        )
        self._answer(code, part, headers, kept)
        if kept < len(part):
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)

    def _repo(self, name: str, *, content: bool) -> Repo | None:
        """The model, if who asks may know of it; its files, if he may have them."""
        known = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        repo = self.hub.repos.get(name)
        if "Authorization" in self.headers and not known:
            self._refuse(401, "", {"X-Error-Message": "Invalid credentials in header"})
        elif repo is None or (repo.private and not known):
            self._refuse(404 if known else 401, "RepoNotFound")
        elif repo.gated and content and not known:
            self._refuse(401, "GatedRepo", {"X-Error-Message": "Access is restricted"})
        else:
            return repo
        return None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(("POST", self.path, dict(self.headers)))
        if path == "/api/validate-yaml":
            if b"BAD" in body:
                told = b'{"errors": [{"message": "no such licence"}], "warnings": []}'
                self._answer(400, told, {"Content-Type": "application/json"})
            else:
                self._json({"errors": [], "warnings": []})
            return
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._refuse(401, "", {"X-Error-Message": "Invalid username or password."})
            return
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told.get('organization') or 'me'}/{told['name']}"
            if name.startswith("others/"):
                self._refuse(403, "")
                return
            if name in self.hub.repos:
                self._answer(409, b'{"error": "exists"}', {"Content-Type": "application/json"})
                return
            private = bool(told.get("private")) or told.get("visibility") == "private"
            self.hub.repos[name] = Repo(private=private)
            self.hub.repos[name].commit({".gitattributes": b""})
            self._json({"url": f"{self.hub.endpoint}/{name}", "id": name})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", path):
            files = [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            self._json({"files": files})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**one, "authenticated": True,
                 "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]  # fmt: skip
            self._json({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._commit(match[1], match[2], body)
        else:
            self._refuse(404, "")

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        repo = self.hub.repos[name]
        files = dict(repo.commits[repo.refs[branch]])
        for line in body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        commit = repo.commit(files, branch)
        self._json(
            {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "commitOid": commit}
        )

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.asked.append(("PUT", self.path, dict(self.headers)))
        oid = self.path.rpartition("/")[2]
        assert sha256(body) == oid
        self.hub.blobs[oid] = body
        self._answer(200, b"", {})

    def _refuse(self, code: int, kind: str, headers: dict[str, str] | None = None) -> None:
        self._answer(code, b"{}", {"X-Error-Code": kind, **(headers or {})})

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(
        self, code: int, body: bytes, headers: dict[str, str], kept: int | None = None
    ) -> None:
        self.send_response(code)
        for key, value in headers.items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:kept])


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub at a port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
