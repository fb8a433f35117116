"""A small stand-in for W&B's server: it answers the queries of W&B's own client from run directories. Loopback only.

W&B publishes no server that installs from a package registry; the queries are those that the client sends.
"""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from roadmap import files
from roadmap.runs import metrics, schema
from tests.wandb_artifacts import Artifacts

SENT = (schema.STATUS, schema.CORRECT, schema.PREDICTIONS, schema.LABELS)
KEY = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """Serve the run directories below `runs`, and `foreign` runs of other people's code, as project `team/roadmap`."""

    def __init__(self, runs: Path, foreign: int = 0, nested: bool = False, page: int = 0) -> None:
        """`nested` gives summaries in the shape of `define_metric(summary=...)`; `page` caps the runs in one page."""
        self.runs = [node(path, nested) for path in sorted(runs.rglob("seed*"))] + [stranger(i) for i in range(foreign)]
        self.page = page
        self.fail: dict[str, list[tuple[int, dict[str, str]]]] = {}  # word of the query -> answers before the true one
        self.always: dict[str, int] = {}  # a word of the query -> status of every answer
        self.asked: list[str] = []
        self.alerts: list[dict[str, Any]] = []
        self.delay_s = 0.0  # before every answer
        self.closed = threading.Event()
        self.crash = False  # the client's process dies of an answer that has nothing in it
        handler = type("Handler", (Handler,), {"server_of_test": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.artifacts = Artifacts(self.url)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        """Return the address for WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        """Stop serving: from now on the connection is dead."""
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, query: str, values: dict[str, Any]) -> dict[str, Any] | None:
        """Return the `data` of a GraphQL answer."""
        if "upsertBucket" in query:
            self.take(values)
            entity = {"id": "e", "name": "team"}
            run = {"id": "r", "name": values["name"], "displayName": values["displayName"], "config": "{}"}
            run |= {"description": "", "sweepName": None, "project": {"id": "p", "name": "roadmap", "entity": entity}}
            return {"upsertBucket": {"bucket": run | {"historyLineCount": 0}, "inserted": True}}
        if "createRunFiles" in query:
            if self.crash:
                return {}
            place = f"{self.url}/uploads/{values['run']}"
            files = [{"name": name, "uploadUrl": f"{place}/{name}"} for name in values["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if (answer := self.artifacts.answer(query, values)) is not None:
            return answer
        if "notifyScriptableRunAlert" in query:
            self.alerts.append(values)
            return {"notifyScriptableRunAlert": {"success": True}}
        if "viewer" in query:
            about = {"name": "U", "email": None, "admin": False, "deletedAt": None, "apiKeys": None}
            viewer = {"id": "v", "entity": "team", "username": "u", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer | about}
        if values.get("entity") != "team" or values.get("project") != "roadmap":
            return {"project": None}
        if "runs(" in query:
            return {"project": self.listing(values)}
        name = values.get("name", values.get("run", values.get("runName")))
        run = next((run for run in self.runs if run["name"] == name), None)
        if run is None:
            return {"project": {"internalId": "1", "run": None}}
        if "parquetHistory" in query:
            return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}}
        if "history(" in query:
            rows = [row for row in run["rows"] if values["minStep"] <= row["_step"] < values["maxStep"]]
            return {"project": {"run": {"history": [json.dumps(row) for row in rows[: values["pageSize"]]]}}}
        if "files(" in query:
            wanted = values.get("fileNames") or list(run["disk"])
            found = [file(self.url, run, name) for name in wanted if name in run["disk"]]
            page = {"endCursor": None, "hasNextPage": False}
            files = {"fileCount": len(found), "files": {"edges": found, "pageInfo": page}}
            return {"project": {"internalId": "1", "run": files}}
        return {"project": {"internalId": "1", "run": public(run)}}

    def take(self, values: dict[str, Any]) -> dict[str, Any]:
        """Keep what a client says of the run that it writes; return the run."""
        run = next((run for run in self.runs if run["name"] == values["name"]), None)
        if run is None:
            run = {"name": values["name"], "state": "running", "config": {}, "summary": {}, "rows": [], "disk": {}}
            run |= {"displayName": None, "group": None, "events": []}
            self.runs.append(run)
        told = {"displayName": "displayName", "group": "groupName", "jobType": "jobType", "commit": "commit"}
        run |= {key: values[name] for key, name in told.items() if values.get(name) is not None}
        run["config"] |= {key: about["value"] for key, about in json.loads(values.get("config") or "{}").items()}
        return run

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """Keep the rows and the summary that a client streams."""
        run = next(run for run in self.runs if run["name"] == name)
        for file, part in body.get("files", {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if file == "wandb-history.jsonl":
                run["rows"][part["offset"] :] = lines
            elif file == "wandb-summary.json":
                run["summary"] |= lines[-1]
            elif file == "wandb-events.jsonl":
                run["events"] += lines
        if body.get("complete"):
            run["state"] = "failed" if body.get("exitcode") else "finished"

    def listing(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return one page of the runs that the filter lets through."""
        group = json.loads(values["filters"] or "{}").get("group")
        found = [run for run in self.runs if group is None or run["group"] == group]
        start = int(values["cursor"] or 0)
        end = start + min(self.page or 10**6, values["perPage"])
        edges = [{"node": public(run), "cursor": str(start + i + 1)} for i, run in enumerate(found[start:end])]
        more = {"endCursor": str(end), "hasNextPage": end < len(found)}
        runs = {"edges": edges, "pageInfo": more}
        return {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}


def node(path: Path, nested: bool) -> dict[str, Any]:
    """Return a run as the mirror of a run directory leaves it at W&B."""
    status = files.read_json(path / schema.STATUS)
    summary = files.read_json(path / schema.SUMMARY) if (path / schema.SUMMARY).exists() else {}
    rows = metrics.read_metrics(path / schema.METRICS).rows
    sent = [
        {k: v for k, v in row.items() if k != "kind" and v is not None} | {"_step": i} for i, row in enumerate(rows)
    ]
    last = {key: value for row in sent for key, value in row.items()}
    told = last | {key: value for key, value in summary.items() if value is not None}
    if nested:
        told |= {key: {"last": told[key], "max": 99.99} for key in ("top1", "top5", "val/top1") if key in told}
    facts = {key: value for key, value in status.items() if key not in ("state", "epoch", "step")}
    config = yaml.safe_load((path / schema.CONFIG).read_text()) | facts
    return {
        "name": f"id{abs(hash(path)) % 10**12}",
        "displayName": "/".join(path.parts[-3:]),
        "state": {"done": "finished", "failed": "failed"}.get(status["state"], "running"),
        "group": path.parents[2].name,
        "config": config,
        "summary": told,
        "rows": sent,
        "disk": {name: (path / name).read_bytes() for name in SENT if (path / name).exists()},
    }


def stranger(number: int) -> dict[str, Any]:
    """Return a run that has nothing to do with the roadmap."""
    about = {
        "config": {"lr": 0.1, "step": 3},
        "summary": {"loss": 1.0, "top1": 99.0},
        "rows": [{"_step": 0, "loss": 1.0}],
        "disk": {},
    }
    return {"name": f"other{number}", "displayName": "theirs", "state": "finished", "group": None, **about}


def public(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run in the form of the client's fragments."""
    return {
        "id": run["name"],
        "name": run["name"],
        "displayName": run["displayName"],
        "state": run["state"],
        "group": run["group"],
        "config": json.dumps({key: {"value": value} for key, value in run["config"].items()}),
        "summaryMetrics": json.dumps(run["summary"], sort_keys=True),
        "systemMetrics": "{}",
        "historyKeys": {"lastStep": len(run["rows"]) - 1, "keys": {}},
        "historyLineCount": len(run["rows"]),
        "user": {"name": "u", "username": "u"},
        "projectId": 1,
        "tags": [],
        "sweepName": None,
        "jobType": run.get("jobType"),
        "commit": run.get("commit"),
        "readOnly": False,
        "createdAt": "2026-01-01T00:00:00Z",
        "heartbeatAt": "2026-01-01T00:00:00Z",
        "description": "",
        "notes": "",
    }


def file(url: str, run: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a run file in the form of the client's fragment."""
    address = f"{url}/files/{run['name']}/{name}"
    about = {"id": name, "name": name, "url": address, "directUrl": address, "sizeBytes": len(run["disk"][name])}
    about |= {"mimetype": "application/octet-stream", "updatedAt": "2026-01-01T00:00:00Z", "md5": ""}
    return {"node": about, "cursor": name}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server_of_test: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def parse_request(self) -> bool:
        """Let a slow server be slow, whatever it is asked."""
        read = super().parse_request()
        self.server_of_test.closed.wait(self.server_of_test.delay_s)
        return read

    def do_PUT(self) -> None:
        """Take a file."""
        self.server_of_test.asked.append(self.path)
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind, run, name = [*unquote(self.path).strip("/").split("/", 2), "", ""][:3]
        for found in self.server_of_test.runs:
            if kind == "uploads" and found["name"] == run:
                found["disk"][name] = data
        if kind == "artifacts":
            self.server_of_test.artifacts.take(run, name, data)
        self.reply(200, b"{}")

    def do_POST(self) -> None:
        """Answer a query, or fail as the test wishes."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if not self.path.startswith("/graphql"):
            self.server_of_test.asked.append(self.path)
            if self.path.endswith("/file_stream"):
                self.server_of_test.stream(self.path.split("/")[-2], json.loads(body))
            return self.reply(200, b"{}")
        asked = json.loads(body)
        self.server_of_test.asked.append(asked["query"])
        if not self.failed(asked["query"]):
            data = self.server_of_test.answer(asked["query"], asked.get("variables") or {})
            self.reply(200, json.dumps({"data": data}).encode())
        return None

    def do_GET(self) -> None:
        """Send a run file."""
        self.server_of_test.asked.append(self.path)
        kind, run, name = [*unquote(self.path).strip("/").split("/", 2), "", ""][:3]
        runs = self.server_of_test.runs if kind == "files" else []
        found = [item["disk"].get(name) for item in runs if item["name"] == run]
        if kind == "artifacts":
            found = [self.server_of_test.artifacts.found[int(run)]["files"].get(name)]
        if not self.failed(self.path):
            self.reply(200, found[0]) if found and found[0] is not None else self.reply(404, b"{}")

    def failed(self, asked: str) -> bool:
        """Send the failure that is due, if one is."""
        server = self.server_of_test
        for word, answers in server.fail.items():
            if word in asked and answers:
                status, headers = answers.pop(0)
                self.reply(status, b'{"errors": [{"message": "as the test wishes"}]}', headers)
                return True
        for word, status in server.always.items():
            if word in asked:
                self.reply(status, b'{"errors": [{"message": "as the test wishes"}]}')
                return True
        return False

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Send an answer."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
