"""A W&B server with one project, `me/kora`, whose runs and views a test sets and reads."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest


class Project(http.server.BaseHTTPRequestHandler):
    """The GraphQL of a W&B server with one project, `me/kora`, whose runs the test sets."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/graphql":  # telemetry of W&B
            self.send(b"{}")
            return
        asked = json.loads(body)
        named = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        operation = named[1] if named else ""
        variables = asked.get("variables") or {}
        server.asked.append(operation)
        answer = getattr(self, operation, None)
        data = answer(variables) if answer else {}
        self.send(json.dumps({"data": data}).encode())

    def Viewer(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        viewer = {"id": "VmlldzoxMjM=", "entity": "me", "username": "me", "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}}}

    GetDefaultEntity = Viewer

    def Runs(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        server: Any = self.server
        if (variables["entity"], variables["project"]) != ("me", "kora"):
            return {"project": None}
        first = int(variables.get("cursor") or 0)
        end = first + min(variables["perPage"], server.page)
        edges = [
            {"node": {"projectId": "1", **run}, "cursor": str(first + place + 1)}
            for place, run in enumerate(server.runs[first:end])
        ]
        more = {"endCursor": str(end), "hasNextPage": end < len(server.runs)}
        runs = {"edges": edges, "pageInfo": more}
        count = len(server.runs)
        return {"project": {"internalId": "1", "runCount": count, "readOnly": True, "runs": runs}}

    def RunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        server: Any = self.server
        folder = server.folders[variables["name"]]
        edges = [
            {
                "node": {
                    "id": name, "name": name, "sizeBytes": str((folder / name).stat().st_size),
                    "url": f"{server.url}/files/{variables['name']}/{name}", "directUrl": "",
                    "mimetype": "", "updatedAt": "2026-01-01T00:00:00", "md5": "",
                },
                "cursor": name,
            }
            for name in variables["fileNames"]
            if (folder / name).is_file()
        ]  # fmt: skip
        files = {"edges": edges, "pageInfo": {"endCursor": "", "hasNextPage": False}}
        run = {"fileCount": len(edges), "files": files}
        return {"project": {"internalId": "1", "run": run}}

    def View(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        server: Any = self.server
        if (variables["entityName"], variables["name"]) != ("me", "kora"):
            return {"project": None}
        found = [one for one in server.views.values() if one["name"] == variables["viewName"]]
        return {"project": {"allViews": {"edges": [{"node": one} for one in found]}}}

    def UpsertView2(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        server: Any = self.server
        identity = variables.get("id") or f"view{len(server.views)}"
        server.views[identity] = {**variables, "id": identity}
        view = {"id": identity, "name": variables["name"], "displayName": variables["displayName"]}
        return {"upsertView": {"view": {**view, "spec": "{}"}, "inserted": True}}

    upsertView = UpsertView2  # noqa: N815

    def ProjectViews(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        server: Any = self.server
        when = {"createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00"}
        user = {"username": "me", "photoUrl": "", "email": ""}
        found = [one for one in server.views.values() if one["type"] == "runs"]
        edges = [{"node": {**one, **when, "user": user}, "cursor": one["id"]} for one in found]
        more = {"endCursor": "", "hasNextPage": False}
        return {"project": {"allViews": {"edges": edges, "pageInfo": more}}}

    def ProjectInternalId(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"internalId": "1"}}

    projectInternalId = ProjectInternalId  # noqa: N815

    def GetProjects(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        node = {
            "id": "1", "internalId": "1", "name": "kora", "entityName": "me", "isBenchmark": False,
            "createdAt": "2026-01-01T00:00:00", "user": None,
        }  # fmt: skip
        more = {"endCursor": "", "hasNextPage": False}
        return {"models": {"edges": [{"node": node, "cursor": "1"}], "pageInfo": more}}

    def do_GET(self) -> None:
        server: Any = self.server
        _, _, run, name = unquote(self.path.partition("?")[0]).split("/", 3)
        server.asked.append(name)
        if server.without_files:
            self.send(b"gone", code=404)
        else:
            self.send((server.folders[run] / name).read_bytes())

    def send(self, content: bytes, *, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Project) as it:
        server: Any = it
        server.daemon_threads = True
        server.asked, server.runs, server.folders, server.page = [], [], {}, 3
        server.without_files, server.views = False, {}
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def node(identity: str, config: dict[str, Any], state: str = "finished") -> dict[str, Any]:
    """A run as the server tells of it."""
    told = {name: {"desc": None, "value": value} for name, value in config.items() if name}
    empty = dict.fromkeys(("sweepName", "commit", "description", "notes", "heartbeatAt"))
    return {
        **empty, "id": f"Run:{identity}", "name": identity, "displayName": f"run {identity}",
        "state": state, "tags": [], "group": "", "jobType": "fit", "readOnly": True,
        "createdAt": "2026-01-01T00:00:00", "config": json.dumps(told), "summaryMetrics": "{}",
        "systemMetrics": "{}", "historyLineCount": 1, "historyKeys": None,
        "user": {"name": "me", "username": "me"},
    }  # fmt: skip
