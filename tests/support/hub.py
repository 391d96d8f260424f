"""A Hugging Face hub on this machine: one that has models in directories, and one that takes what is pushed."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Pushed:
    """What a hub was told: repositories that were made, branches, and files by repository, as the last commit has them."""

    made: list[dict[str, Any]] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuse: int | None = None
    role: str = "write"
    slow_s: float = 0.0


@contextmanager
def receive_pushes(pushed: Pushed) -> Iterator[str]:
    """Serve a hub that takes what is pushed to it, as huggingface_hub sends small files; yields its address."""

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            pushed.tokens.add(str(self.headers.get("Authorization")))
            path = self.path.partition("?")[0]
            if pushed.refuse is not None:
                return self.answer({"error": "You do not have the rights"}, pushed.refuse)
            if path == "/api/repos/create":
                pushed.made.append(json.loads(body))
                return self.answer({"url": f"https://huggingface.co/{json.loads(body)['organization']}/demo"})
            repo = "/".join(path.split("/")[3:5])
            if "/branch/" in path:
                pushed.branches.append(path.rpartition("/")[2])
                return self.answer({})
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if "/preupload/" in path:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
                ]
                return self.answer({"files": files})
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            pushed.files[repo] = {file["path"]: base64.b64decode(file["content"]) for file in sent}
            return self.answer({"commitUrl": f"https://huggingface.co/{repo}/commit/{SHA}", "commitOid": SHA})

        def do_GET(self) -> None:
            if self.path == "/api/whoami-v2":
                time.sleep(pushed.slow_s)
                whose = {"type": "user", "name": "me", "auth": {"accessToken": {"role": pushed.role}}}
                return self.answer(whose if pushed.refuse is None else {}, pushed.refuse or 200)
            return self.answer({"id": "me/demo", "sha": SHA, "siblings": []})

        def answer(self, value: dict[str, Any], status: int = 200) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing on the screen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@contextmanager
def serve_hub(models: dict[str, Path]) -> Iterator[str]:
    """Serve models, by id, as the hub does; yields the address for HF_ENDPOINT."""

    class Hub(BaseHTTPRequestHandler):
        """What huggingface_hub asks of a model: its files with sizes, and a file with its hash."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            for name, directory in models.items():
                if path.startswith(f"/api/models/{name}"):
                    listed = sorted(directory.iterdir())
                    if "/tree/" in path:
                        tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": SHA} for f in listed]
                        return self.send(json.dumps(tree).encode(), body)
                    files = [{"rfilename": f.name, "size": f.stat().st_size} for f in listed]
                    found = {"id": name, "modelId": name, "sha": SHA, "private": False, "siblings": files, "tags": []}
                    return self.send(json.dumps(found).encode(), body)
                if path.startswith(f"/{name}/resolve/"):
                    file = directory / path.rpartition("/")[2]
                    if file.is_file():
                        return self.send(file.read_bytes(), body)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, content: bytes, body: bool) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing on the screen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
