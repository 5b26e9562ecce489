"""W&B servers on this machine: one that answers as it should until it fails, and ways to fail."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["FAULTS", "Answers", "after_the_look", "always", "serving", "silence", "unfinished_tls"]


class Answers(http.server.BaseHTTPRequestHandler):
    """What a W&B server says to a run that starts and logs, until it fails."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        named = re.search(rb"(?:query|mutation)\s+(\w+)", body)
        operation = named[1].decode() if named else ""
        variables = json.loads(body).get("variables") or {} if operation else {}
        server.asked.append(operation or self.path)
        if server.fails(server):
            server.fault(self)
            return
        if operation == "UpsertBucket":
            server.ids.append(variables.get("name"))
        project = {"id": "p", "name": "kora", "entity": {"id": "e", "name": "me"}}
        bucket = {
            "id": "UnVu", "name": server.ids[-1] if server.ids else "", "displayName": "tiny",
            "description": "", "config": "{}", "sweepName": None, "project": project,
            "historyLineCount": 0,
        }  # fmt: skip
        viewer = {"id": "VmlldzoxMjM=", "entity": "me", "username": "me", "flags": "{}"}
        files = [
            {"name": name, "uploadUrl": f"{server.url}/upload"}
            for name in (variables.get("files") or [])
        ]
        if operation == "CreateArtifact":
            server.artifacts.append(variables["input"])
        known = {"id": "QTox", "state": "COMMITTED", "artifactSequence": {"id": "s"}}
        created = {"runID": "UnVu", "uploadHeaders": [], "files": files}
        data = {
            "CreateRunFiles": {} if server.damaged else {"createRunFiles": created},
            "ArtifactType": {"project": None},
            "CreateArtifact": {"createArtifact": {"artifact": known}},
            "Viewer": {"viewer": {**viewer, "teams": {"edges": []}}},
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
        }
        self.answer(200, json.dumps({"data": data.get(operation, {})}).encode())

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(200)

    def do_GET(self) -> None:
        """Where a client is sent by a redirect."""
        server: Any = self.server
        server.asked.append(self.path)
        server.fault(self)

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send(self, data: bytes, *, every_s: float = 0.5) -> bool:
        """Send some bytes of an answer and wait; False where the test is over, or nobody reads."""
        server: Any = self.server
        try:
            self.connection.sendall(data)
        except OSError:
            return False
        return not server.over.wait(every_s)

    def log_message(self, *args: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Says nothing of clients that have hung up."""

    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        pass


# -- ways to fail --------------------------------------------------------------------------------


def silence(handler: Any) -> None:
    handler.server.over.wait(300)


def _drip(handler: Any) -> None:
    handler.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", every_s=0)
    while handler.send(b" "):
        pass


def _drip_headers(handler: Any) -> None:
    handler.send(b"HTTP/1.1 200 OK\r\nX-Slow: ", every_s=0)
    while handler.send(b"a"):
        pass


def _huge(handler: Any) -> None:
    handler.send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n", every_s=0)
    for _ in range(200):
        if not handler.send(b" " * 1_000_000, every_s=0):
            return


def _cut(handler: Any) -> None:
    handler.send(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"data": {', every_s=0)
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


FAULTS: dict[str, Callable[[Any], None]] = {
    "silence": silence,
    "a body in drips": _drip,
    "headers in drips": _drip_headers,
    "no data": lambda it: it.answer(200, b'{"data": null}'),
    "an error": lambda it: it.answer(500, b"out of order"),
    "no JSON": lambda it: it.answer(200, b"<html>Please log in.</html>"),
    "a redirect to itself": lambda it: it.answer(302, Location=it.path),
    "200 MB": _huge,
    "half an answer": _cut,
}


def always(server: Any) -> bool:
    return True


def after_the_look(server: Any) -> bool:
    return len(server.asked) > 1


@contextmanager
def serving(fault: Callable[[Any], None] = silence) -> Iterator[Any]:
    """A server; `fails` says of each request whether it is answered or meets the fault."""
    with Server(("127.0.0.1", 0), Answers) as it:
        server: Any = it
        server.asked, server.ids, server.artifacts = [], [], []
        server.fails, server.fault, server.damaged = lambda server: False, fault, False
        server.over = threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


@contextmanager
def unfinished_tls() -> Iterator[str]:
    """Address of a server that a connection is made to, and that never answers the handshake."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"https://127.0.0.1:{listening.getsockname()[1]}"
