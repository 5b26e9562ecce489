"""A server that speaks as much of Lightning AI's API as jobs need, and runs their commands here.

Each job has a folder as its home, where what it writes is found afterwards, as on the drive of a
teamspace. What it does not have: machines, images, costs that are real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

OWNER, TEAMSPACE, STUDIO = "me", "space", "lab"


class LightningAI:
    """The state of the server; tests read and set it."""

    def __init__(self, drive: Path) -> None:
        self.drive = drive
        self.jobs: dict[str, dict[str, Any]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.asked: list[tuple[str, str, str]] = []  # method, path, body
        self.failures: list[int] = []  # status codes for the next requests that create a job
        self.silent = False  # every request fails with 400
        self.refuses = False  # every request fails with 401
        self.deaf: set[str] = set()  # the ids of jobs about which a request fails with 400
        self.loses_logs = False  # a request for a log fails with 400
        self.slow = 0  # looks until a job starts
        self.cost = 0.5  # of each job
        self.studio: list[Path] = []  # files of the Studio, which its snapshots have

    def submitted(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body["name"]
        while any(job["name"] == name for job in self.jobs.values()):
            name += "-x"
        job = {
            "id": f"j{len(self.jobs)}", "name": name, "projectId": "p1", "spec": body["spec"],
            "state": "pending", "totalCost": self.cost, "looks": 0,
            "createdAt": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        self.jobs[job["id"]] = job
        if not self.slow:
            self._begin(job)
        return job

    def seen(self, job: dict[str, Any]) -> dict[str, Any]:
        """A job as it is now."""
        job["looks"] += 1
        process = self.processes.get(job["id"])
        if job["state"] == "pending" and job["looks"] > self.slow:
            self._begin(job)
        elif job["state"] == "running" and process is not None and process.poll() is not None:
            job["state"] = "completed" if process.poll() == 0 else "failed"
            job["stoppedAt"] = "2026-01-01T00:00:09Z"
        return job

    def _begin(self, job: dict[str, Any]) -> None:
        home = self.drive / job["name"]
        home.mkdir(parents=True)
        for path in self.studio:
            shutil.copy(path, home)
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with (self.drive / f"{job['name']}.log").open("wb") as log:
            self.processes[job["id"]] = subprocess.Popen(
                ["bash", "-ec", job["spec"]["command"]], cwd=home, env=env, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        job["state"], job["startedAt"] = "running", "2026-01-01T00:00:01Z"

    def stopped(self, job: dict[str, Any]) -> None:
        process = self.processes.get(job["id"])
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        job["state"] = "stopped"

    def log(self, job: dict[str, Any]) -> list[str]:
        path = self.drive / f"{job['name']}.log"
        return path.read_text(errors="replace").splitlines() if path.is_file() else []

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        """The answer to a request; a status code alone for a failure."""
        project = {
            "id": "p1", "name": TEAMSPACE, "ownerId": "u1", "ownerType": "user",
            "projectSettings": {"preferredCluster": "c1"},
        }  # fmt: skip
        if self.refuses:
            return 401
        if self.silent:
            return 400
        if path == "/v1/auth/user":
            return {"id": "u1", "username": OWNER}
        if path.startswith("/v1/memberships"):
            member = {"projectId": "p1", "ownerId": "u1", "ownerType": "user", "userId": "u1"}
            return {"memberships": [{**member, "name": TEAMSPACE, "displayName": TEAMSPACE}]}
        if path.startswith("/v1/projects/p1/cloudspaces"):
            studio = {"id": "s1", "name": STUDIO, "clusterId": "c1", "projectId": "p1"}
            if path.endswith("/s1"):
                return studio
            return {"cloudspaces": [studio] if query.get("name", [STUDIO]) == [STUDIO] else []}
        if path == "/v1/projects/p1/jobs" and method == "POST":
            if self.failures:
                return self.failures.pop(0)
            return self.submitted(body)
        if path == "/v1/projects/p1/jobs":
            return {"jobs": [self.seen(job) for job in self.jobs.values()]}
        if path == "/v1/projects/p1/page-logs":
            if self.loses_logs:
                return 400
            (job,) = (self.jobs[one] for one in query["jobIds"][0].split(","))
            lines = self.log(job)
            return {"entries": [{"message": line, "line": n} for n, line in enumerate(lines)]}
        if one := re.fullmatch(r"/v1/projects/p1/jobs/(j\d+)", path):
            job = self.jobs.get(one[1])
            if job is None:
                return 404
            if one[1] in self.deaf:
                return 400
            if method == "PUT":
                self.stopped(job)
            return self.seen(job)
        if path == "/v1/projects/p1/multi-machine-jobs":
            return {"multiMachineJobs": []}
        if "clusters" in path:
            return {"clusters": [{"id": "c1", "name": "c1", "spec": {"driver": "LIGHTNING"}}]}
        if path.startswith("/v1/projects/p1"):
            return project if path == "/v1/projects/p1" else {}
        return {"projects": [project]} if path == "/v1/projects" else {}


class _Handler(BaseHTTPRequestHandler):
    now: LightningAI

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(size).decode() if size else ""
        url = urlparse(self.path)
        self.now.asked.append((self.command, self.path, text))
        body = json.loads(text) if text.startswith("{") else {}
        found = self.now.answer(self.command, url.path, parse_qs(url.query), body)
        code = found if isinstance(found, int) else 200
        content = json.dumps({"message": "no"} if code != 200 else found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815


@cache
def _url() -> str:
    """Where the server is; one for all tests of a process, as the SDK keeps its address."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{http.server_port}"


@pytest.fixture
def lightning_ai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LightningAI]:
    """The server, with credentials for it in the environment and its drive in place."""
    pytest.importorskip("lightning_sdk")
    from lightning_sdk.lightning_cloud import env

    server = _Handler.now = LightningAI(tmp_path / "drive")
    monkeypatch.setattr(env, "LIGHTNING_CLOUD_URL", _url())
    monkeypatch.setenv("LIGHTNING_CLOUD_URL", _url())
    monkeypatch.setenv("LIGHTNING_USER_ID", "u1")
    monkeypatch.setenv("LIGHTNING_API_KEY", "a-secret-of-lightning")
    monkeypatch.setattr("kora.grid.launchers.lightning_jobs._DRIVE", server.drive)
    yield server
    for process in server.processes.values():
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
