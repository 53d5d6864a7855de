"""A Hub on this machine: one model, whose weights arrive slowly."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL, COMMIT = "someone/tiny", "0" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {"x": "model.safetensors"}}',
    "model.safetensors": b"w" * (1 << 17),
    "pytorch_model.bin": b"never",
    "modeling.py": b"never, unless it is trusted",
}
PARTS, PART_S = 8, 0.03
GATED = "someone/gated"
SENT: list[tuple[str, int]] = []
"""Files that were sent, and from which byte on."""
BREAKS: list[str] = []
"""Files whose next sending breaks off in the middle."""


def commit_of(revision: str) -> str:
    """A revision that is no branch is a commit."""
    return COMMIT if revision == "main" else revision


class Hub(BaseHTTPRequestHandler):
    """What ``huggingface_hub`` asks for: the model's commit, the list of its files, and the files."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{MODEL}/revision/"):
            commit = commit_of(path.rpartition("/")[2])
            siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
            info = {"id": MODEL, "sha": commit, "siblings": siblings}
            self._send(json.dumps(info).encode(), with_body)
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            self._send(json.dumps(tree).encode(), with_body)
        elif path.startswith(f"/{MODEL}/resolve/"):
            revision, name = path.split("/")[-2:]
            pause_s = PART_S if name.endswith(".safetensors") else 0.0
            self._send(FILES[name], with_body, pause_s, commit_of(revision))
        else:
            gated = GATED in path
            self.send_response(403 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, data: bytes, with_body: bool, pause_s: float = 0.0, commit: str = "") -> None:
        start = 0
        if with_body and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        step = max(1, len(data) // PARTS)
        name = self.path.partition("?")[0].rpartition("/")[2]
        if with_body and commit:
            SENT.append((name, start))
        for at in range(start, len(data) if with_body else 0, step):
            time.sleep(pause_s)
            self.wfile.write(data[at : at + step])
            if name in BREAKS and at > len(data) // 2:
                BREAKS.remove(name)
                self.close_connection = True
                return

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def hub() -> Iterator[str]:
    """Its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
