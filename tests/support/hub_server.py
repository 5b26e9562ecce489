"""A server on this machine that speaks as much of the Hugging Face hub's API as kora uses."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

__all__ = ["Hub", "serving_hub"]


class Hub:
    """What lies on it.

    Args:
        url: Where it listens.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.status = 0  # with which it refuses everything

    def sha(self, name: str) -> str:
        content = b"".join(k.encode() + v for k, v in sorted(self.files[name].items()))
        return hashlib.sha1(content).hexdigest()


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        server: Any = self.server
        found: Hub = server.hub
        return found

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path).split("?")[0]
        self.hub.asked.append(f"POST {path}")
        if self.hub.status:
            self.answer({"error": "refused"}, self.hub.status)
        elif self.headers.get("Authorization") != "Bearer secret":
            self.answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            name = f"{owner}/{asked['name']}"
            self.hub.files.setdefault(name, {})
            self.hub.private[name] = bool(asked.get("private"))
            self.answer({"url": f"{self.hub.url}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.hub.files[name][entry["value"]["path"]] = content
            where = f"https://huggingface.co/{name}/commit/{self.hub.sha(name)}"
            self.answer({"commitUrl": where, "commitOid": self.hub.sha(name), "success": True})
        else:
            self.answer({"error": f"unknown: {path}"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path).split("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.status:
            self.answer({"error": "refused"}, self.hub.status)
            return
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            if name not in self.hub.files:
                self.answer(
                    {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"}
                )
                return
            files = self.hub.files[name]
            if "/tree/" in path:  # asked by newer clients
                tree = [
                    {"type": "file", "path": file, "size": len(content), "oid": file}
                    for file, content in files.items()
                ]
                self.answer(tree)
                return
            names = [{"rfilename": file} for file in files]
            self.answer({"id": name, "sha": self.hub.sha(name), "siblings": names})
            return
        owner, name, _, _, file = path.strip("/").split("/", 4)
        content = self.hub.files[f"{owner}/{name}"][file]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": self.hub.sha(f"{owner}/{name}"),
        }
        self.answer(content, 200, headers)

    def answer(self, content: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        plain = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(plain)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(plain)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """It, as long as it is wanted."""
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
