"""A Hugging Face hub on this machine, which has models in directories."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"


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
