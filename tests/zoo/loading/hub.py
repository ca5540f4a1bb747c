"""A model hub on this machine, over HTTP, as huggingface_hub talks to one: a repository at one commit."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY = "org/far"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `folder` as `REPOSITORY` at `COMMIT`, and keeps what it was asked: (method, path, user agent)."""

    def __init__(self, folder: Path, *, delay: float = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.delay = folder, delay  # seconds before the content of a file
        self.asked: list[tuple[str, str, str]] = []

    def handle_error(self, *_: object) -> None:
        """A client may be killed."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(folder: Path, *, delay: float = 0) -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    with Hub(folder, delay=delay) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path, self.headers["User-Agent"] or ""))
        file = self.server.folder / path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
        if path in (f"/api/models/{REPOSITORY}/revision/{COMMIT}", f"/api/models/{REPOSITORY}"):
            content = json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": []}).encode()
        elif path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            files = [f for f in sorted(self.server.folder.rglob("*")) if f.is_file()]
            content = json.dumps(
                [
                    {
                        "type": "file",
                        "path": f.relative_to(self.server.folder).as_posix(),
                        "size": f.stat().st_size,
                        "oid": _oid(f),
                    }
                    for f in files
                ]
            ).encode()
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/") and file.is_file():
            content = file.read_bytes()
        else:
            content = None
        self.send_response(200 if content is not None else 404)
        if content is None:
            self.send_header("X-Error-Code", "RevisionNotFound" if "revision" in path else "EntryNotFound")
        elif file.is_file():
            self.send_header("ETag", f'"{_oid(file)}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content:
            time.sleep(self.server.delay if file.is_file() else 0)
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
