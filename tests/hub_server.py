"""A server on this machine that answers as Hugging Face and Kaggle do, as far as their clients ask: for tests."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

COMMIT, LATER = "a" * 40, "b" * 40
LARGE = (".safetensors", ".h5", ".bin")  # whose tag is a sha256


class Hub:
    """What the server has, and what it was asked for.

    Attributes:
        files: of Hugging Face, by repository and name, or by `REPOSITORY@COMMIT` and name if a commit has others.
        kaggle: of Kaggle, by handle and name.
        commits: the newest commit, by repository, if it is not COMMIT; of a tag by `REPOSITORY@TAG`.
        gated: repositories that only `token` may read; `hidden`: those that seem not to be there without it.
        halved: names of files of which the connection gives half at first, then the rest.
        broken: names of files of which no more than half ever comes.
        held: names of files that are sent when an event is set.
        asked: lines such as `GET /owner/name/resolve/COMMIT/config.json`, with the range that was asked for.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.kaggle: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.gated: set[str] = set()
        self.token = "hf_secret"
        self.halved: set[str] = set()
        self.broken: set[str] = set()
        self.held: dict[str, threading.Event] = {}
        self.tags: dict[str, str] = {}
        self.asked: list[str] = []
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *words: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """What Kaggle's client asks for: one file of a version of a model."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = ("ownerSlug", "modelSlug", "framework", "instanceSlug", "versionNumber")
        handle = "/".join(str(asked[word]) for word in words).lower().replace("model_framework_", "")
        self.hub.asked.append(f"POST {self.path} {handle} {asked['path']}")
        if handle in self.hub.gated:
            self._answer(403, b"{}")
        elif asked["path"] in self.hub.kaggle.get(handle, {}):
            self.send_response(302)
            self.send_header("Location", f"{self.hub.url}/kaggle/{handle}?{urllib.parse.quote(asked['path'])}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._answer(404, b"{}")

    def do_GET(self) -> None:
        hub, asked = self.hub, urllib.parse.unquote(self.path)
        hub.asked.append(" ".join(filter(None, (self.command, asked, self.headers.get("Range")))))
        if match := re.fullmatch(r"/kaggle/(.+)\?(.+)", asked):
            self._send(match[2], hub.kaggle[match[1]][match[2]], {})
            return
        match = re.match(r"/(?:api/models/)?([^/]+/[^/]+)/(resolve|tree)/([^/?]+)/?(.*)", asked)
        assert match, asked
        repository, kind, revision, name = match.groups()
        commit = hub.commits.get(repository, COMMIT)
        if revision != "main":
            commit = hub.commits.get(f"{repository}@{revision}", revision)
        files = hub.files.get(f"{repository}@{commit}", hub.files.get(repository, {}))
        allowed = self.headers.get("Authorization") == f"Bearer {hub.token}"
        if repository not in hub.files:
            self._answer(404 if allowed else 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif repository in hub.gated and not allowed:
            status = 403 if self.headers.get("Authorization") else 401
            self._answer(status, b"", {"X-Error-Code": "GatedRepo"})
        elif not re.fullmatch("[0-9a-f]{40}", commit):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif kind == "tree":
            known = [{"type": "file", "path": one, "size": 1, "oid": "0"} for one in files]
            self._answer(200, json.dumps(known).encode())
        elif name not in files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            content = files[name]
            algorithm = hashlib.sha256 if name.endswith(LARGE) else hashlib.sha1
            tag = hub.tags.get(name) or algorithm(content).hexdigest()
            self._send(name, content, {"ETag": f'"{tag}"', "X-Repo-Commit": commit})

    def _send(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        hub, start = self.hub, int((self.headers.get("Range") or "bytes=0-").split("=")[1].rstrip("-"))
        end = len(content)
        if self.command == "GET" and name in hub.held:
            hub.held[name].wait()
        if self.command == "GET" and name in hub.halved | hub.broken:
            hub.halved.discard(name)
            end = len(content) // 2
        if start:
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        headers = {**headers, "Accept-Ranges": "bytes"}
        self._answer(206 if start else 200, content[start:], headers, max(0, end - start))

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, count: int = -1) -> None:
        """Answer with `count` bytes of `body`, or with all of it."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if count < 0 else body[:count])
        self.close_connection = True


@contextmanager
def serve(monkeypatch: pytest.MonkeyPatch, folder: Any) -> Iterator[Hub]:
    """Serve on this machine alone, and make the clients ask there; caches are in `folder`, no token is set."""
    import kagglehub.clients
    import kagglesdk.kaggle_env
    from huggingface_hub import constants, file_download

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # what HF_ENDPOINT is, when the client is first imported
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64)  # it keeps what it has in pieces of this size
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    environments = kagglesdk.kaggle_env._env_to_endpoint
    monkeypatch.setitem(environments, kagglesdk.kaggle_env.KaggleEnv.PROD, hub.url)
    # It looks through all modules that are loaded for who asks, which takes longer than all else here.
    monkeypatch.setattr(kagglehub.clients, "get_user_agent", lambda: "kagglehub")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(folder / "kaggle"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(folder))
    monkeypatch.setenv("KERAS_HOME", str(folder / "keras"))
    for name in ("HF_TOKEN", "KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
